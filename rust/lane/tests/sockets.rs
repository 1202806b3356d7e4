//! WebSockets over real sockets: handshakes, frames, and ends.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::time::{Duration, Instant};

use bytes::Bytes;
use flx_lane::call::Room;
use flx_lane::server::Limits;
use flx_lane::service::Told;
use flx_lane::socket::{Message, Socket};
use http::{HeaderValue, Response, header};
use parts::{Client, Event, HANDSHAKE, Lane, close, frame, serve};

const LARGEST: usize = 1 << 20;

fn open(lane: &Lane) -> (Client, u64, Socket) {
    let mut client = lane.client();
    client.send(HANDSHAKE.as_bytes());
    let handshake = lane.handshake();
    let number = handshake.number();
    let socket = handshake.accept(Vec::new());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    (client, number, socket)
}

/// The next message of a socket.
fn message(lane: &Lane, number: u64) -> Message {
    lane.next(|event| match event {
        Event::Told(it, Told::Message(message)) if it == number => Some(message),
        _ => None,
    })
}

fn text(text: &str) -> Message {
    Message::Text(Bytes::copy_from_slice(text.as_bytes()))
}

fn end(code: u16) -> (u8, Vec<u8>) {
    (0x88, code.to_be_bytes().to_vec())
}

#[test]
fn a_handshake_is_accepted_with_a_subprotocol() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(HANDSHAKE.as_bytes());
    let handshake = lane.handshake();
    let own = (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("flx.v1"));
    let socket = handshake.accept(vec![own]);
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for line in [
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\n",
        "sec-websocket-protocol: flx.v1\n",
        "upgrade: websocket\n",
        "connection: upgrade\n",
    ] {
        assert!(head.contains(line), "{head}");
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    drop(socket);
}

#[test]
fn a_handshake_is_refused_with_a_whole_answer() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(HANDSHAKE.as_bytes());
    let response = Response::builder().status(403).header("x-why", "because").body(Bytes::from_static(b"no")).unwrap();
    assert!(lane.handshake().refuse(response));
    let answer = client.answer();
    assert_eq!((403, "no", true), (answer.status, answer.text(), answer.is_complete));
    assert_eq!(Some("because"), answer.header("x-why"));
    client.get("/now");
    assert_eq!("now", client.answer().text());
}

#[test]
fn a_handshake_that_nobody_decides_about_ends_its_connection() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(HANDSHAKE.as_bytes());
    drop(lane.handshake());
    assert!(client.is_cut());
}

#[test]
fn a_handshake_whose_client_left_finds_nobody() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(HANDSHAKE.as_bytes());
    let handshake = lane.handshake();
    let number = handshake.number();
    assert!(handshake.ask_for_end());
    drop(client);
    lane.gone(number);
    let socket = handshake.accept(Vec::new());
    assert_eq!(Message::Close(1006), message(&lane, number));
    assert_eq!(Room::Gone, socket.text("nobody"));
}

#[test]
fn what_is_no_sound_handshake_is_a_request() {
    let lane = serve(Limits::default());
    for (sound, wrong) in [
        ("Version: 13", "Version: 12"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc"),
    ] {
        let mut client = lane.client();
        client.send(HANDSHAKE.replace(sound, wrong).as_bytes());
        assert!(lane.call().answer(parts::said("a request")), "{wrong}");
        assert_eq!("a request", client.answer().text());
    }
}

#[test]
fn messages_go_both_ways() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    for length in [0, 1, 125, 126, 65_535, 65_536, LARGEST] {
        let said = "x".repeat(length);
        client.send(&frame(0x81, said.as_bytes()));
        assert!(text(&said) == message(&lane, number));
        socket.took();
        client.send(&frame(0x82, said.as_bytes()));
        assert!(Message::Binary(said.clone().into()) == message(&lane, number));
        socket.took();
        assert_eq!(Room::Taken, socket.text(&said));
        assert_eq!(Room::Taken, socket.binary(&Bytes::from(said.clone())));
        assert!(Some((0x81, said.clone().into_bytes())) == client.frame());
        assert!(Some((0x82, said.into_bytes())) == client.frame());
    }
}

#[test]
fn what_follows_the_handshake_at_once_is_heard() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.send(&[HANDSHAKE.as_bytes(), &frame(0x81, b"early")].concat());
    let handshake = lane.handshake();
    let number = handshake.number();
    let _socket = handshake.accept(Vec::new());
    assert_eq!(text("early"), message(&lane, number));
}

#[test]
fn fragments_are_one_message_and_a_ping_between_them_is_answered() {
    let lane = serve(Limits::default());
    let (mut client, number, _socket) = open(&lane);
    client.send(&frame(0x01, "h\u{e9}".as_bytes()[..2].as_ref()));
    client.send(&frame(0x89, b"ping"));
    assert_eq!(Some((0x8a, b"ping".to_vec())), client.frame());
    client.send(&frame(0x00, &"h\u{e9}".as_bytes()[2..]));
    client.send(&frame(0x80, b"!"));
    assert_eq!(text("h\u{e9}!"), message(&lane, number));
}

#[test]
fn what_no_client_may_send_is_ended_with_its_code() {
    let lane = serve(Limits::default());
    let unmasked = b"\x81\x02hi".to_vec();
    let mut reserved = frame(0x81, b"hi");
    reserved[0] = 0xc1;
    let mut large = frame(0x82, &vec![0; LARGEST + 1]);
    let fragments = [frame(0x02, &vec![0; LARGEST]), frame(0x80, b"x")].concat();
    large.extend(frame(0x81, b"and more"));
    for (expected, sent) in [
        (1007, frame(0x81, b"\xff\xfe")),
        (1002, unmasked),
        (1002, reserved),
        (1002, frame(0x80, b"continues nothing")),
        (1002, frame(0x89, &[0; 126])),
        (1002, frame(0x83, b"")),
        (1002, frame(0x88, b"\x03")),
        (1007, frame(0x88, b"\x03\xe8\xff")),
        (1009, large),
        (1009, fragments),
    ] {
        let (mut client, number, socket) = open(&lane);
        client.send(&sent);
        assert_eq!(Some(end(expected)), client.frame(), "{:02x?}", &sent[..2]);
        assert!(client.is_at_end(), "{expected}");
        assert_eq!(Message::Close(1006), message(&lane, number));
        parts::until(|| socket.text("nobody") == Room::Gone);
    }
}

#[test]
fn a_client_that_ends_it_is_answered_with_its_code() {
    let lane = serve(Limits::default());
    for (sent, told) in [(close(1000), 1000_u16), (close(4001), 4001), (frame(0x88, b""), 1005)] {
        let (mut client, number, socket) = open(&lane);
        client.send(&sent);
        let answer = client.frame().unwrap();
        assert_eq!(0x88, answer.0);
        assert_eq!(if told == 1005 { Vec::new() } else { told.to_be_bytes().to_vec() }, answer.1);
        assert!(client.is_at_end());
        assert_eq!(Message::Close(told), message(&lane, number));
        parts::until(|| socket.text("nobody") == Room::Gone);
    }
}

#[test]
fn an_application_that_ends_it_hears_what_the_client_says_to_it() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    assert_eq!(Room::Taken, socket.text("last"));
    assert_eq!(Room::Taken, socket.close(4404, "not here"));
    assert_eq!(Some((0x81, b"last".to_vec())), client.frame());
    assert_eq!(Some((0x88, [&4404_u16.to_be_bytes()[..], b"not here"].concat())), client.frame());
    client.send(&frame(0x81, b"said before it was read"));
    client.send(&close(4404));
    assert!(client.is_at_end());
    assert_eq!(Message::Close(4404), message(&lane, number));
}

#[test]
fn a_reason_that_is_too_long_is_cut_between_characters() {
    let lane = serve(Limits::default());
    let (mut client, _, socket) = open(&lane);
    assert_eq!(Room::Taken, socket.close(4404, &"\u{e9}".repeat(100)));
    let expected = [&4404_u16.to_be_bytes()[..], "\u{e9}".repeat(61).as_bytes()].concat();
    assert_eq!(Some((0x88, expected)), client.frame());
}

#[test]
fn a_client_that_does_not_answer_the_end_is_not_waited_for_long() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    let begun = Instant::now();
    assert_eq!(Room::Taken, socket.close(1000, ""));
    assert_eq!(Some(end(1000)), client.frame());
    assert!(client.is_cut());
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert_eq!(Message::Close(1006), message(&lane, number));
}

#[test]
fn a_client_that_vanishes_is_told() {
    let lane = serve(Limits::default());
    let (client, number, socket) = open(&lane);
    drop(client);
    assert_eq!(Message::Close(1006), message(&lane, number));
    parts::until(|| socket.text("nobody") == Room::Gone);
}

#[test]
fn a_socket_that_is_dropped_says_so_after_what_it_had_to_say() {
    let lane = serve(Limits::default());
    // Many times: which of two things is seen first is a matter of chance.
    for _ in 0..30 {
        let (mut client, number, socket) = open(&lane);
        for _ in 0..16 {
            assert_eq!(Room::Taken, socket.text("words"));
        }
        drop(socket);
        for _ in 0..16 {
            assert_eq!(Some((0x81, b"words".to_vec())), client.frame());
        }
        assert_eq!(Some(end(1011)), client.frame());
        client.send(&close(1011));
        assert!(client.is_at_end());
        assert_eq!(Message::Close(1011), message(&lane, number));
    }
}

/// Says large things until no more are taken for a while; how many.
fn fill(lane: &Lane, socket: &Socket) -> usize {
    let piece = Bytes::from(vec![7; 65_536]);
    let mut count = 0;
    loop {
        while socket.binary(&piece) == Room::Taken {
            count += 1;
            assert!(count < 10_000, "nothing bounds it");
        }
        if lane.events.recv_timeout(parts::SOON).is_err() {
            return count;
        }
    }
}

#[test]
fn what_a_client_does_not_read_waits_and_is_bounded() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    let count = fill(&lane, &socket);
    for _ in 0..count {
        assert_eq!(65_536, client.frame().unwrap().1.len());
    }
    assert_eq!(Room::Taken, lane.put(number, || socket.text("on")));
    assert_eq!(Some((0x81, b"on".to_vec())), client.frame());
}

#[test]
fn a_client_is_heard_while_it_does_not_read() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    fill(&lane, &socket);
    client.send(&frame(0x81, b"slower, please"));
    assert_eq!(text("slower, please"), message(&lane, number));
}

#[test]
fn a_dropped_socket_is_not_kept_by_a_client_that_reads_nothing() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    fill(&lane, &socket);
    let begun = Instant::now();
    drop(socket);
    assert_eq!(Message::Close(1006), message(&lane, number));
    assert!(begun.elapsed() < Duration::from_secs(8));
    while client.frame_or_cut() {}
}

#[test]
fn a_client_that_reads_nothing_for_long_is_given_up() {
    let lane = serve(Limits { write: Duration::from_millis(500), ..Limits::default() });
    let (mut idle, _, other) = open(&lane);
    let (_client, number, socket) = open(&lane);
    let piece = Bytes::from(vec![7; 65_536]);
    while lane.put(number, || socket.binary(&piece)) == Room::Taken {}
    // Who has nothing to take is no such client.
    assert_eq!(Room::Taken, other.text("still here"));
    assert_eq!(Some((0x81, b"still here".to_vec())), idle.frame());
}

#[test]
fn an_application_that_does_not_take_is_not_read_for() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    let piece = frame(0x82, &vec![7; 50_000]);
    let written = client.stuff(&piece);
    assert!(written < parts::MUCH);
    let waiting: Vec<_> = lane.events.try_iter().collect();
    assert_eq!(16, waiting.len(), "so many are there, and no more");
    // As soon as it takes, the rest comes, and nothing was lost.
    let whole = written.div_ceil(piece.len());
    let rest = whole * piece.len() - written;
    let mut writer = Client(client.0.try_clone().unwrap());
    writer.0.set_write_timeout(None).unwrap();
    let last = piece[piece.len() - rest..].to_vec();
    let writing = std::thread::spawn(move || writer.send(&last));
    for _ in 0..16 {
        socket.took();
    }
    for _ in 16..whole {
        assert!(matches!(message(&lane, number), Message::Binary(bytes) if bytes.len() == 50_000));
        socket.took();
    }
    writing.join().unwrap();
}

#[test]
fn pings_cost_no_turn_of_the_application() {
    let lane = serve(Limits::default());
    let (mut client, number, _socket) = open(&lane);
    for round in 0..15_u8 {
        client.send(&frame(0x81, b"not taken"));
        assert_eq!(text("not taken"), message(&lane, number));
        for _ in 0..40 {
            client.send(&frame(0x89, &[round]));
            assert_eq!(Some((0x8a, vec![round])), client.frame());
        }
    }
}

#[test]
fn a_client_that_takes_no_pongs_may_not_ping_for_ever() {
    let lane = serve(Limits::default());
    let (mut client, number, socket) = open(&lane);
    let pings: Vec<u8> = frame(0x89, &[7; 125]).repeat(1_000);
    let written = client.stuff(&pings);
    assert!(written < parts::MUCH, "every one of them is kept");
    // As soon as it reads, all goes on.
    let mut writer = Client(client.0.try_clone().unwrap());
    writer.0.set_write_timeout(None).unwrap();
    let rest = pings[written % pings.len()..].to_vec();
    let writing = std::thread::spawn(move || {
        writer.send(&rest);
        writer.send(&frame(0x81, b"on"));
        assert_eq!(Room::Taken, socket.text("and on"));
        socket
    });
    while client.frame().unwrap() != (0x81, b"and on".to_vec()) {}
    assert_eq!(text("on"), message(&lane, number));
    writing.join().unwrap();
}
