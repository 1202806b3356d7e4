//! Who is waited for and how long, who waits outside, and how it all ends.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use flx_lane::call::Room;
use flx_lane::server::Limits;
use http::Response;
use parts::{HANDSHAKE, PATIENCE, SOON, said, serve};

fn hasty() -> Limits {
    Limits { head: SOON, ..Limits::default() }
}

#[test]
fn who_says_nothing_is_sent_away() {
    let lane = serve(hasty());
    assert!(lane.client().is_cut());
}

#[test]
fn who_begins_as_http2_does_and_says_no_more_is_sent_away() {
    let lane = serve(hasty());
    for beginning in ["P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut client = lane.client();
        client.send(beginning.as_bytes());
        assert!(client.is_cut(), "{beginning:?}");
    }
}

#[test]
fn an_http2_that_answers_no_ping_is_sent_away() {
    let lane = serve(Limits { keep_alive: SOON, ..hasty() });
    let mut client = lane.client();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    // What it is told until then: settings, a Ping, a farewell.
    let mut told = Vec::new();
    let _ = client.0.read_to_end(&mut told);
    assert!(told.len() < 1_000);
    assert!(client.is_cut());
}

#[test]
fn a_head_without_an_end_is_not_waited_for() {
    let lane = serve(hasty());
    let mut client = lane.client();
    client.send(b"GET /now HTTP/1.1\r\nHost: a\r\n");
    assert!(client.is_cut());
}

#[test]
fn the_time_between_two_requests_is_limited_too() {
    let lane = serve(hasty());
    assert!(lane.served().is_cut());
}

#[test]
fn an_answer_may_take_longer_than_a_head() {
    let lane = serve(hasty());
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    assert!(lane.client().is_cut(), "the time of a head is over");
    assert!(call.answer(said("late")));
    assert_eq!("late", client.answer().text());
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(b"GET /now HTTP/1.1\r\nHost: a\r\nX: ");
    client.send(&vec![b'x'; 70_000]);
    assert_eq!(431, client.answer().status);
}

#[test]
fn a_client_that_never_reads_its_answer_is_sent_away() {
    let lane = serve(Limits { write: SOON, ..Limits::default() });
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    let number = call.number();
    let stream = call.stream(Response::new(()));
    assert!(stream.ask_for_end());
    let piece = Bytes::from(vec![7; 65_536]);
    while lane.put(number, || stream.part(&piece)) == Room::Taken {}
    assert!(!stream.ask_for_end());
}

#[test]
fn who_comes_when_all_places_are_taken_waits_for_one() {
    let lane = serve(Limits { connections: 2, ..Limits::default() });
    let first = lane.served();
    let second = lane.served();
    let mut third = lane.client();
    third.get("/now");
    third.0.set_read_timeout(Some(SOON)).unwrap();
    let error = third.0.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
    third.0.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(first);
    assert_eq!("now", third.answer().text());
    drop(second);
    lane.served();
}

#[test]
fn every_place_comes_back_however_a_connection_ends() {
    let lane = serve(Limits { connections: 1, ..hasty() });
    for _ in 0..3 {
        drop(lane.client());
        lane.client().send(b"what is this\r\n\r\n");
        assert!(lane.client().is_cut());
        let mut dropped = lane.client();
        dropped.get("/held");
        drop(lane.call());
        assert!(dropped.is_cut());
        let mut socket = lane.client();
        socket.send(HANDSHAKE.as_bytes());
        let open = lane.handshake().accept(Vec::new());
        assert!(socket.head().starts_with("HTTP/1.1 101 "));
        drop((socket, open));
        lane.served();
    }
}

#[test]
fn an_open_socket_holds_its_place() {
    let lane = serve(Limits { connections: 1, ..Limits::default() });
    let mut socket = lane.client();
    socket.send(HANDSHAKE.as_bytes());
    let open = lane.handshake().accept(Vec::new());
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    let mut other = lane.client();
    other.get("/now");
    other.0.set_read_timeout(Some(SOON)).unwrap();
    assert!(other.0.read(&mut [0]).is_err(), "there is no place for it");
    other.0.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(socket);
    assert_eq!("now", other.answer().text());
    drop(open);
}

#[test]
fn a_stop_ends_what_is_idle_at_once() {
    let mut lane = serve(Limits::default());
    let mut clients = [lane.client(), lane.served(), lane.client()];
    clients[2].send(b"PRI");
    // They are accepted in their order.
    lane.served();
    assert!(lane.stop(PATIENCE) < Duration::from_secs(2));
    for client in &mut clients {
        assert!(client.is_cut());
    }
    assert!(std::net::TcpStream::connect(lane.address).is_err());
}

#[test]
fn a_stop_waits_for_what_is_under_way() {
    let mut lane = serve(Limits::default());
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    let address = lane.address;
    let stopping = lane.stopping(PATIENCE);
    parts::until(|| std::net::TcpStream::connect(address).is_err());
    assert!(call.answer(said("still")));
    let answer = client.answer();
    assert_eq!(("still", Some("close")), (answer.text(), answer.header("connection")));
    assert!(client.is_at_end());
    assert!(stopping.join().unwrap() < Duration::from_secs(10));
}

#[test]
fn a_stop_cuts_what_does_not_end() {
    let mut lane = serve(Limits::default());
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    assert!(call.ask_for_end());
    let mut streaming = lane.client();
    streaming.get("/held");
    let stream = lane.call().stream(Response::new(()));
    streaming.head();
    let took = lane.stop(SOON);
    assert!(took >= SOON && took < Duration::from_secs(5), "{took:?}");
    assert!(client.is_cut() && streaming.is_cut());
    lane.gone(call.number());
    assert!(!stream.ask_for_end());
    assert!(!call.answer(said("nobody")));
}

#[test]
fn a_stop_sends_open_sockets_away() {
    let mut lane = serve(Limits::default());
    let mut socket = lane.client();
    socket.send(HANDSHAKE.as_bytes());
    let handshake = lane.handshake();
    let number = handshake.number();
    let open = handshake.accept(Vec::new());
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(Room::Taken, open.text("last words"));
    let stopping = lane.stopping(PATIENCE);
    assert_eq!(Some((0x81, b"last words".to_vec())), socket.frame());
    assert_eq!(Some((0x88, 1001_u16.to_be_bytes().to_vec())), socket.frame());
    socket.send(&parts::close(1001));
    assert_eq!(None, socket.frame());
    assert!(stopping.join().unwrap() < Duration::from_secs(10));
    lane.closed(number, 1001);
    assert_eq!(Room::Gone, open.text("too late"));
}

#[test]
fn a_stop_cuts_a_socket_that_does_not_go() {
    let mut lane = serve(Limits::default());
    let mut socket = lane.client();
    socket.send(HANDSHAKE.as_bytes());
    let handshake = lane.handshake();
    let number = handshake.number();
    let open = handshake.accept(Vec::new());
    assert!(lane.stop(SOON) < Duration::from_secs(5));
    lane.closed(number, 1006);
    assert_eq!(Room::Gone, open.text("too late"));
}

#[test]
fn a_server_that_is_dropped_ends_too() {
    let lane = serve(Limits::default());
    let mut client = lane.served();
    let address = lane.address;
    drop(lane);
    assert!(client.is_cut());
    parts::until(|| std::net::TcpStream::connect(address).is_err());
}
