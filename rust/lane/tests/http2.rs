//! HTTP/2, by a client that begins with it: streams beside each other, and their ends.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::future::poll_fn;

use bytes::Bytes;
use flx_lane::body::Fault;
use flx_lane::call::Room;
use flx_lane::server::Limits;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response};
use parts::{Lane, PATIENCE, SOON, said, serve};
use tokio::runtime::{Builder, Runtime};

/// A connection whose frames are moved by a thread of their own.
struct Client {
    runtime: Runtime,
    send: SendRequest<Bytes>,
}

impl Client {
    fn of(lane: &Lane) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = lane.address;
        let send = runtime.block_on(async move {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            send
        });
        Self { runtime, send }
    }

    fn ask(&mut self, path: &str, is_whole: bool) -> (ResponseFuture, h2::SendStream<Bytes>) {
        let request = Request::post(format!("http://a{path}")).body(()).unwrap();
        let send = &mut self.send;
        self.runtime.block_on(async {
            // A clone knows nothing of what waits before it.
            poll_fn(|context| send.poll_ready(context)).await.unwrap();
            send.send_request(request, is_whole).unwrap()
        })
    }

    fn answer(&self, response: ResponseFuture) -> Result<String, h2::Error> {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, whole(response)).await }).unwrap()
    }
}

async fn whole(response: ResponseFuture) -> Result<String, h2::Error> {
    let mut body = response.await?.into_body();
    let mut found = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        found.extend(data);
    }
    Ok(String::from_utf8(found).unwrap())
}

#[test]
fn streams_are_answered_in_any_order() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    let asked: Vec<_> = (0..90).map(|number| client.ask(&format!("/held?{number}"), true).0).collect();
    let mut calls: Vec<_> = asked.iter().map(|_| lane.request()).collect();
    calls.reverse();
    for (head, (_, call)) in calls {
        assert!(call.answer(said(head.uri.query().unwrap().to_owned())));
    }
    for (number, response) in asked.into_iter().enumerate() {
        assert_eq!(number.to_string(), client.answer(response).unwrap());
    }
}

#[test]
fn bodies_go_both_ways() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    for length in [0, 1, 70_000, 1_000_000] {
        let body = "x".repeat(length);
        let (response, mut send) = client.ask("/echo", false);
        send.send_data(body.clone().into(), true).unwrap();
        assert!(client.answer(response).unwrap() == body, "{length}");
    }
    let (response, mut send) = client.ask("/small", false);
    send.send_data(vec![b'x'; 300_000].into(), true).unwrap();
    assert_eq!("TooLarge", client.answer(response).unwrap());
    let (response, _) = client.ask("/now", true);
    assert_eq!("now", client.answer(response).unwrap());
}

#[test]
fn a_stream_that_the_client_resets_is_gone_and_the_others_stay() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    let (_response, mut send) = client.ask("/held", true);
    let call = lane.call();
    let (other, _) = client.ask("/held", true);
    let stays = lane.call();
    assert!(call.ask_for_end() && stays.ask_for_end());
    send.send_reset(Reason::CANCEL);
    lane.gone(call.number());
    assert!(!call.answer(said("nobody")));
    assert!(stays.answer(said("there")));
    assert_eq!("there", client.answer(other).unwrap());
}

#[test]
fn a_reset_while_the_body_comes_breaks_it() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    let (_response, mut send) = client.ask("/held", false);
    send.send_data("half".into(), false).unwrap();
    // It has arrived when what came after it was answered.
    let (response, _) = client.ask("/now", true);
    client.answer(response).unwrap();
    send.send_reset(Reason::CANCEL);
    let (body, call) = lane.request().1;
    assert_eq!(Some(Fault::Broken), body.err());
    parts::until(|| call.is_gone());
}

#[test]
fn a_call_without_an_answer_resets_its_stream_only() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    let (response, _) = client.ask("/held", true);
    drop(lane.call());
    assert!(client.answer(response).unwrap_err().is_reset());
    let (response, _) = client.ask("/now", true);
    assert_eq!("now", client.answer(response).unwrap());
}

#[test]
fn a_stream_has_its_end_or_a_reset() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    for is_whole in [true, false] {
        let (response, _) = client.ask("/held", true);
        let stream = lane.call().stream(Response::new(()));
        for _ in 0..5 {
            assert_eq!(Room::Taken, stream.part(&Bytes::from_static(b"part")));
        }
        if is_whole {
            stream.end();
            assert_eq!("part".repeat(5), client.answer(response).unwrap());
        } else {
            drop(stream);
            assert!(client.answer(response).unwrap_err().is_reset());
        }
    }
}

#[test]
fn what_a_client_gives_no_window_for_is_not_made() {
    let lane = serve(Limits::default());
    let mut client = Client::of(&lane);
    let (response, _) = client.ask("/held", true);
    let call = lane.call();
    let number = call.number();
    let stream = call.stream(Response::new(()));
    let piece = Bytes::from(vec![b'x'; 16_384]);
    let mut count = 0;
    let mut fill = || {
        while stream.part(&piece) == Room::Taken {
            count += 1;
        }
        count
    };
    let mut sent = fill();
    while lane.events.recv_timeout(parts::SOON).is_ok() {
        sent = fill();
    }
    assert!(sent < 40, "{sent} parts of nobody");
    let reading = client.runtime.spawn(whole(response));
    assert_eq!(Room::Taken, lane.put(number, || stream.part(&Bytes::from_static(b"last"))));
    stream.end();
    let body = client.runtime.block_on(reading).unwrap().unwrap();
    assert_eq!((sent * 16_384 + 4, true), (body.len(), body.ends_with("last")));
}

#[test]
fn a_connection_without_requests_ends_and_one_under_way_is_answered() {
    let lane = serve(Limits { idle: parts::SOON, ..Limits::default() });
    let mut client = Client::of(&lane);
    let (held, _) = client.ask("/held", true);
    let call = lane.call();
    let end = client.runtime.block_on(async {
        let refused = async {
            while poll_fn(|context| client.send.poll_ready(context)).await.is_ok() {
                tokio::time::sleep(parts::SOON / 10).await;
            }
        };
        tokio::time::timeout(PATIENCE, refused).await
    });
    assert!(end.is_ok(), "it asks for no more");
    assert!(call.answer(said("still")));
    assert_eq!("still", client.answer(held).unwrap());
    // And a new one is served.
    let mut client = Client::of(&lane);
    let (response, _) = client.ask("/now", true);
    assert_eq!("now", client.answer(response).unwrap());
}

#[test]
fn no_more_streams_than_allowed_are_open_at_once() {
    let lane = serve(Limits { streams: 3, ..Limits::default() });
    let mut client = Client::of(&lane);
    // The limit is known once something was answered.
    let (response, _) = client.ask("/now", true);
    client.answer(response).unwrap();
    let asked: Vec<_> = (0..3).map(|_| client.ask("/held", true).0).collect();
    let calls: Vec<_> = asked.iter().map(|_| lane.call()).collect();
    // It waits at the client for one of the others to end.
    let (more, _) = client.ask("/held?more", true);
    assert!(lane.events.recv_timeout(parts::SOON).is_err());
    for call in calls {
        assert!(call.answer(said("yes")));
    }
    assert!(lane.call().answer(said("more")));
    assert_eq!("more", client.answer(more).unwrap());
}

#[test]
fn who_opens_and_resets_streams_for_ever_is_sent_away_and_keeps_nothing() {
    const FLOOD: usize = 20_000;
    let lane = serve(Limits::default());
    let mut raw = lane.client();
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let mut sent = 0;
    // GET of `/held`, in indexed fields (RFC 7541, appendix A), and its reset.
    let mut flood = (0..FLOOD).map(|at| {
        let stream = (2 * at as u32 + 1).to_be_bytes();
        let asks = [b"\0\0\x0c\x01\x05", &stream[..], b"\x82\x86\x04\x05/held\x41\x01a"].concat();
        [&asks[..], b"\0\0\x04\x03\0", &stream, &8_u32.to_be_bytes()].concat()
    });
    while let Some(bytes) = flood.next() {
        let more = flood.by_ref().take(99).flatten();
        let burst: Vec<u8> = bytes.into_iter().chain(more).collect();
        if std::io::Write::write_all(&mut raw.0, &burst).is_err() {
            break;
        }
        sent += 100;
    }
    // Whether it was cut or not: nothing of it is under way.
    drop(raw);
    let mut calls = 0;
    while let Ok(event) = lane.events.recv_timeout(parts::SOON) {
        if let parts::Event::Request(_, _, _, call) = event {
            parts::until(|| call.is_gone());
            calls += 1;
        }
    }
    assert!(calls <= sent, "{calls} of {sent}");
    lane.served();
}

#[test]
fn heads_without_an_end_are_not_kept() {
    let lane = serve(Limits::default());
    let mut raw = lane.client();
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    raw.send(b"\0\0\x01\x01\x01\0\0\0\x01\x82");
    // A literal field of sixteen thousand bytes in each CONTINUATION.
    let field = [&b"\x00\x01x\x7f\x81\x7c"[..], &vec![b'y'; 16_000]].concat();
    let length = (field.len() as u32).to_be_bytes();
    let frame = [&length[1..], b"\x09\0\0\0\0\x01", &field].concat();
    let begun = std::time::Instant::now();
    while std::io::Write::write_all(&mut raw.0, &frame).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "it is read for ever");
    }
    lane.served();
}

/// None at all, less than the answer, or what a client has by itself, for an answer that has more.
#[test]
fn who_gives_no_window_is_sent_away_in_the_end() {
    for (window, path) in [(0, "/now"), (1, "/now"), (65_535, "/much")] {
        holds_on(window, path);
    }
}

fn holds_on(window: u32, path: &str) {
    let limits = Limits { idle: SOON, write: SOON, ..Limits::default() };
    let lane = serve(limits);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(lane.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (mut send, connection) = builder.initial_window_size(window).handshake::<_, Bytes>(stream).await.unwrap();
        let request = Request::get(format!("http://a{path}")).body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        // It answers pings, reads everything, and takes no byte of the body. The answer is held, and so is the client.
        let held = tokio::spawn(async move { response.await.map(http::Response::into_body) });
        let ended = tokio::time::timeout(PATIENCE, connection).await;
        assert!(ended.is_ok(), "the connection is still there");
        drop((held, send));
    });
}
