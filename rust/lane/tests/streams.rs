//! Answers in parts: room for them, their end, and what a client sees where there is none.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use bytes::Bytes;
use flx_lane::call::{Room, Stream};
use flx_lane::server::Limits;
use http::Response;
use parts::{Client, Lane, serve};

const PIECE: usize = 65_536;

fn begin(lane: &Lane, client: &mut Client) -> (u64, Stream) {
    client.get("/held");
    let call = lane.call();
    (call.number(), call.stream(Response::new(())))
}

/// Puts parts until there is no room; how many there were.
fn fill(stream: &Stream) -> usize {
    let piece = Bytes::from(vec![7; PIECE]);
    let mut count = 0;
    loop {
        let room = stream.part(&piece);
        if room != Room::Taken {
            assert_eq!(Room::Full, room);
            return count;
        }
        count += 1;
        assert!(count * PIECE < parts::MUCH, "nothing bounds it");
    }
}

#[test]
fn parts_and_an_end_are_a_whole_answer() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    for _ in 0..3 {
        let (number, stream) = begin(&lane, &mut client);
        let said: Vec<_> = (0..100).map(|at| format!("part {at},")).collect();
        for part in &said {
            assert_eq!(Room::Taken, lane.put(number, || stream.part(&Bytes::from(part.clone()))));
        }
        stream.end();
        let answer = client.answer();
        assert_eq!((&*said.concat(), true), (answer.text(), answer.is_complete));
    }
}

#[test]
fn a_part_leaves_before_the_next_one_is_there() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let (_, stream) = begin(&lane, &mut client);
    client.head();
    let mut chunk = [0; 8];
    assert_eq!(Room::Taken, stream.part(&Bytes::from_static(b"abc")));
    std::io::Read::read_exact(&mut client.0, &mut chunk).unwrap();
    assert_eq!(b"3\r\nabc\r\n", &chunk);
    stream.end();
}

#[test]
fn a_stream_without_its_end_is_seen_to_be_cut() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let (_, stream) = begin(&lane, &mut client);
    let head = client.head();
    assert_eq!(Room::Taken, stream.part(&Bytes::from_static(b"half")));
    drop(stream);
    assert!(!client.body(head).is_complete);
}

/// In HTTP/1.0 a stream ends where its connection does: one that is given up must not end like that.
#[test]
fn a_stream_of_old_that_is_given_up_is_no_whole_one() {
    for is_given_up in [false, true] {
        let lane = serve(Limits::default());
        let mut client = lane.client();
        client.send(b"GET /held HTTP/1.0\r\nHost: a\r\n\r\n");
        let stream = lane.call().stream(Response::new(()));
        let head = client.head();
        assert!(!head.contains("chunked") && !head.contains("content-length"), "{head}");
        assert_eq!(Room::Taken, stream.part(&Bytes::from_static(b"half")));
        let mut half = Vec::new();
        assert!(client.exactly(4, &mut half));
        assert_eq!(b"half", &half[..]);
        if is_given_up {
            drop(stream);
        } else {
            stream.end();
        }
        assert_eq!(!is_given_up, client.is_at_end());
    }
}

#[test]
fn what_a_client_does_not_read_is_not_made() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let (number, stream) = begin(&lane, &mut client);
    let mut sent = fill(&stream);
    // As long as the lane takes some on: it ends where all that lies between is full.
    while let Ok(event) = lane.events.recv_timeout(parts::SOON) {
        assert!(matches!(event, parts::Event::Told(it, flx_lane::service::Told::Room) if it == number));
        sent += fill(&stream);
    }
    assert!(sent * PIECE < parts::MUCH, "{sent} parts of nobody");
    let head = client.head();
    let reading = std::thread::spawn(move || client.body(head));
    assert_eq!(Room::Taken, lane.put(number, || stream.part(&Bytes::from_static(b"last"))));
    stream.end();
    let answer = reading.join().unwrap();
    assert!(answer.is_complete && answer.body.ends_with(b"last"));
    assert_eq!(sent * PIECE + 4, answer.body.len());
}

#[test]
fn whoever_waits_for_room_is_told_that_the_client_left() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let (number, stream) = begin(&lane, &mut client);
    assert!(stream.ask_for_end());
    while let Room::Taken = stream.part(&Bytes::from(vec![7; PIECE])) {}
    drop(client);
    lane.gone(number);
    parts::until(|| stream.part(&Bytes::from_static(b"x")) == Room::Gone);
    assert!(!stream.ask_for_end());
}

#[test]
fn a_client_that_leaves_between_two_parts_is_noticed() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    let (number, stream) = begin(&lane, &mut client);
    client.head();
    assert!(stream.ask_for_end());
    drop(client);
    lane.gone(number);
    assert_eq!(Room::Gone, stream.part(&Bytes::from_static(b"x")));
}

#[test]
fn a_stream_that_begins_after_the_client_left_finds_nobody() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    client.get("/held");
    let call = lane.call();
    drop(client);
    parts::until(|| call.is_gone());
    let stream = call.stream(Response::new(()));
    assert!(!stream.ask_for_end());
    assert_eq!(Room::Gone, stream.part(&Bytes::from_static(b"x")));
}

/// Two threads for as many rounds as it takes to meet every order of "full", "room" and "one has left".
#[test]
fn no_room_is_lost_between_threads() {
    let lane = serve(Limits::default());
    let mut client = lane.client();
    for _ in 0..20 {
        let (number, stream) = begin(&lane, &mut client);
        let head = client.head();
        let reading = std::thread::spawn(move || (client.body(head), client));
        let piece = Bytes::from_static(&[1; 100]);
        for _ in 0..2_000 {
            assert_eq!(Room::Taken, lane.put(number, || stream.part(&piece)));
        }
        stream.end();
        let (answer, again) = reading.join().unwrap();
        assert_eq!((200_000, true), (answer.body.len(), answer.is_complete));
        client = again;
    }
}
