//! HTTP/1.1 over real sockets: requests, their bodies, and whom an answer is for.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::thread;

use flx_lane::body::Fault;
use flx_lane::server::Limits;
use flx_lane::service::Told;
use parts::{LIMIT, SOON, said, serve};

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    for round in 0..100 {
        let body = format!("body {round}").repeat(round);
        client.post("/echo", body.as_bytes());
        assert_eq!(body, client.answer().text());
        client.get("/now");
        assert_eq!("now", client.answer().text());
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(
        b"GET /now HTTP/1.1\r\nHost: a\r\n\r\nPOST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none\
          POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ntwoGET /now HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let (_, (body, call)) = lane.request();
    assert_eq!(b"one", &*body.unwrap());
    assert!(call.answer(said("held")));
    let answers = [(); 4].map(|()| client.answer().text().to_owned());
    assert_eq!(["now", "held", "two", "now"].map(str::to_owned), answers);
}

#[test]
fn a_head_is_answered_with_a_length_and_no_body() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(b"HEAD /now HTTP/1.1\r\nHost: a\r\n\r\nHEAD /held HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(lane.call().answer(said("12345")));
    for length in ["3", "5"] {
        let head = client.head();
        assert!(head.contains(&format!("content-length: {length}\n")), "{head}");
    }
    client.get("/now");
    assert_eq!("now", client.answer().text());
}

#[test]
fn a_body_that_is_asked_for_comes() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    client.send(b"hello");
    assert_eq!("hello", client.answer().text());
}

#[test]
fn a_body_that_is_refused_is_not_asked_for() {
    let lane = serve(Limits::default());
    for path in ["/small", "/now"] {
        let mut client = lane.client();
        client.send(
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n").as_bytes(),
        );
        let answer = client.answer();
        assert_eq!(200, answer.status, "{answer:?}");
        assert_eq!(Some("close"), answer.header("connection"));
        assert!(client.is_at_end());
    }
}

#[test]
fn chunks_are_one_body() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    for _ in 0..3 {
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in ["3;x=y\r\nabc\r\n", "1\r\nd\r\n", "2\r\nef\r\n", "0\r\nTrailer: no\r\n\r\n"] {
            client.send(chunk.as_bytes());
        }
        assert_eq!("abcdef", client.answer().text());
    }
}

#[test]
fn a_body_of_its_limit_is_read() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let body = vec![b'x'; LIMIT as usize];
    client.post("/echo", &body);
    assert!(client.answer().body == body);
    client.post("/small", b"1234567890");
    assert_eq!(b"1234567890", &*lane.request().1.0.unwrap());
}

#[test]
fn a_body_over_its_limit_is_said_to_be_and_its_answer_arrives() {
    let lane = serve(Limits::default());
    for _ in 0..20 {
        let mut client = lane.client();
        // It reads only after all of it was written: a connection that is reset meanwhile would take the answer away.
        client.post("/small", &vec![b'x'; 300_000]);
        let answer = client.answer();
        assert_eq!(("TooLarge", true), (answer.text(), answer.is_complete));
        assert_eq!(Some("close"), answer.header("connection"));
        assert!(client.is_at_end());
        let mut client = lane.client();
        client.send(b"POST /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(b"9\r\n123456789\r\n2\r\n12\r\n");
        assert_eq!("TooLarge", client.answer().text());
    }
}

#[test]
fn a_body_that_does_not_come_is_late() {
    let lane = serve(Limits { body: SOON, ..Limits::default() });
    let mut client = lane.client();
    client.send(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell");
    let answer = client.answer();
    assert_eq!(("Late", Some("close")), (answer.text(), answer.header("connection")));
    client.send(b"o");
    assert!(client.is_at_end());
}

#[test]
fn a_body_that_is_malformed_is_broken() {
    let lane = serve(Limits::default());
    for wrong in ["zz\r\n", "3\r\nabcd\r\n0\r\n\r\n", "fffffffffffffffff\r\n"] {
        let mut client = lane.client();
        client.send(b"POST /broken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(wrong.as_bytes());
        let answer = client.answer();
        assert_eq!("Broken", answer.text(), "{wrong:?}");
        assert!(client.is_at_end());
    }
}

#[test]
fn a_body_that_is_cut_is_broken() {
    let lane = serve(Limits::default());
    for head in ["Content-Length: 9\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n9\r\n"] {
        let mut client = lane.client();
        client.send(format!("POST /held HTTP/1.1\r\nHost: a\r\n{head}cut").as_bytes());
        drop(client);
        assert_eq!(Some(Fault::Broken), lane.request().1.0.err());
    }
}

#[test]
fn a_request_with_two_lengths_is_none() {
    let lane = serve(Limits::default());
    for lengths in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: 3, 4\r\n",
        "Content-Length: +3\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
    ] {
        let mut client = lane.client();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: a\r\n{lengths}\r\nabcd").as_bytes());
        assert_eq!(400, client.answer().status, "{lengths}");
        assert!(client.is_at_end());
    }
}

#[test]
fn a_length_beside_chunks_does_not_count_and_hides_no_second_request() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
          3\r\nabc\r\n0\r\n\r\nGET /now HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let answer = client.answer();
    // To refuse it, or to end the connection after it, is as good (RFC 9112, section 6.1).
    if answer.status == 200 {
        assert_eq!("abc", answer.text());
        if answer.header("connection") != Some("close") {
            assert_eq!("now", client.answer().text());
        }
    }
}

#[test]
fn an_answer_without_the_body_does_not_wait_for_it_and_nothing_is_misread() {
    let lane = serve(Limits::default());
    // It is there: the next request is read after it.
    let mut client = lane.client();
    client.post("/now", b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!("now", answer.text());
    if answer.header("connection") == Some("close") {
        assert!(client.is_at_end());
    } else {
        client.get("/now");
        assert_eq!("now", client.answer().text());
    }
    // It is not there, and never comes: no next request is read at all.
    let mut client = lane.client();
    client.send(b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
    let answer = client.answer();
    assert_eq!(("now", Some("close")), (answer.text(), answer.header("connection")));
    client.send(b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.is_at_end());
}

#[test]
fn ten_thousand_answers_from_other_threads_reach_their_requests() {
    const CLIENTS: usize = 100;
    const EACH: usize = 100;
    let lane = serve(Limits::default());
    let address = lane.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                    let (send, connection) = h2::client::Builder::new()
                        .initial_max_send_streams(EACH)
                        .handshake::<_, bytes::Bytes>(stream)
                        .await
                        .unwrap();
                    tokio::spawn(connection);
                    let asked = (0..EACH).map(|request| {
                        let mut send = send.clone();
                        async move {
                            let path = format!("/held?{client}.{request}");
                            let asks = http::Request::get(format!("http://a{path}")).body(()).unwrap();
                            std::future::poll_fn(|context| send.poll_ready(context)).await.unwrap();
                            let (answer, _) = send.send_request(asks, true).unwrap();
                            let mut body = answer.await.unwrap().into_body();
                            let found = body.data().await.unwrap().unwrap();
                            assert_eq!(path.as_bytes(), &*found);
                        }
                    });
                    futures_util::future::join_all(asked).await;
                });
            })
        })
        .collect();
    // All are there; they are answered from four threads, in an order of nobody's.
    let mut calls: Vec<_> = (0..CLIENTS * EACH).map(|_| lane.request()).collect();
    calls.sort_by_key(|(_, (_, call))| call.number().wrapping_mul(0x9e37_79b9_7f4a_7c15));
    thread::scope(|scope| {
        for _ in 0..4 {
            let part = calls.split_off(calls.len().saturating_sub(CLIENTS * EACH / 4));
            scope.spawn(move || {
                for (head, (_, call)) in part {
                    assert!(call.answer(said(head.uri.path_and_query().unwrap().to_string())));
                }
            });
        }
    });
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_call_without_an_answer_ends_its_connection() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.get("/held");
    drop(lane.call());
    assert!(client.is_at_end());
    lane.served();
}

#[test]
fn whoever_asks_is_told_that_the_client_left() {
    let lane = serve(Limits::default());
    // Asked before it leaves.
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    assert!(call.ask_for_end());
    drop(client);
    let (number, what) = lane.told();
    assert!(matches!(what, Told::Gone) && number == call.number());
    assert!(call.is_gone());
    assert!(!call.answer(said("nobody")));
    // Asked after it left.
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    drop(client);
    parts::until(|| call.is_gone());
    assert!(!call.ask_for_end());
    assert!(lane.events.try_recv().is_err(), "nobody was to be told");
}

#[test]
fn what_nobody_asked_for_is_not_told() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.get("/held");
    assert!(lane.call().answer(said("yes")));
    assert_eq!("yes", client.answer().text());
    drop(client);
    lane.served();
    assert!(lane.events.try_recv().is_err());
}

#[test]
fn a_body_that_is_nobodys_business_is_not_waited_for() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(b"GET /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    let (_, (body, call)) = lane.request();
    assert_eq!(Ok(true), body.map(|body| body.is_empty()));
    assert!(call.answer(said("at once")));
    assert_eq!("at once", client.answer().text());
}
