//! The life of connections over real sockets: handshakes, clients that are slow or silent, drain and stop.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use flx_core::ws::Bounds;
use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::service::{Closed, Upgrade};
use parts::{Client, LARGE, PATIENCE, Told, close, closed, frame, head, limits, listen, next};

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

fn reason(code: u16, text: &str) -> (u8, Vec<u8>) {
    (CLOSE, [&code.to_be_bytes(), text.as_bytes()].concat())
}

#[test]
fn a_handshake_may_come_in_any_pieces_with_frames_behind_it() {
    let (listener, told) = listen(limits());
    let stream = [head("/spoken").as_bytes(), &frame(TEXT, b"early")].concat();
    for size in [1, 7, 64, stream.len()] {
        let mut client = Client::tcp(&listener);
        stream.chunks(size).for_each(|piece| client.send(piece));
        let answer = client.http();
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        assert!(answer.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(answer.contains("\r\nsec-websocket-protocol: flx.v1\r\n"));
        assert_eq!(Some((TEXT, b"early".to_vec())), client.frame());
        client.send(&close(1001, b"gone"));
        assert_eq!(Some(reason(1001, "")), client.frame());
        assert_eq!(None, client.frame());
        assert_eq!(Closed::ByClient(1001), closed(&told));
    }
}

#[test]
fn a_refusal_is_a_whole_answer_and_the_end() {
    let (listener, told) = listen(limits());
    let second = head("/");
    let long = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(30_000));
    for (request, expected) in [
        (head("/no"), "no"),
        (head("/").replace("Host: a\r\n", ""), "Host"),
        (head("/").replace("GET", "POST"), "Method"),
        (head("/").replace("Version: 13", "Version: 8"), "Version"),
        (head("/").replace("Host:", "Content-Length: 400\r\nHost:"), "Body"),
        ("\x16\x03\x01\x02\x00\r\n\r\n".to_owned(), "Malformed"),
        (long, "TooLarge"),
    ] {
        let mut client = Client::tcp(&listener);
        // What follows is no second request, whatever it looks like.
        client.send(format!("{request}{second}").as_bytes());
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 4") && answer.ends_with(&format!("\r\n\r\n{expected}")), "{answer}");
        assert_eq!(1, answer.matches("HTTP/1.1").count());
    }
    assert!(told.try_iter().all(|it| matches!(it, Told::Began)), "of none of them was the service told");
}

#[test]
fn an_answer_may_come_later() {
    let (listener, told) = listen(limits());
    let asked = || next(&told, |told| if let Told::Asked(handle, conn) = told { Some((handle, conn)) } else { None });
    let mut client = Client::tcp(&listener);
    client.send(head("/later").as_bytes());
    let (handle, conn) = asked();
    client.send(&frame(TEXT, b"patient"));
    handle.answer(conn, Upgrade::Accept(None));
    assert!(client.http().starts_with("HTTP/1.1 101 "));
    assert_eq!(Some((TEXT, b"patient".to_vec())), client.frame());
    // Once is enough, and who is gone is gone.
    handle.answer(conn, Upgrade::Refuse(b"HTTP/1.1 400 x\r\n\r\n".to_vec()));
    client.echo("still here");
    drop(client);
    assert_eq!(Closed::Lost, closed(&told));
    handle.answer(conn, Upgrade::Accept(None));

    let mut client = Client::tcp(&listener);
    client.send(head("/later").as_bytes());
    let (handle, conn) = asked();
    handle.answer(conn, Upgrade::Refuse(b"HTTP/1.1 401 x\r\nconnection: close\r\n\r\n".to_vec()));
    assert!(client.rest().starts_with("HTTP/1.1 401 "));
}

#[test]
fn who_dawdles_over_a_handshake_is_told_so() {
    let (listener, told) = listen(Limits { handshake_ms: 200, ..limits() });
    let mut silent = Client::tcp(&listener);
    let mut slow = Client::tcp(&listener);
    slow.send(&head("/").as_bytes()[..20]);
    let mut asks = Client::tcp(&listener);
    asks.send(head("/later").as_bytes());
    for client in [&mut silent, &mut slow, &mut asks] {
        assert!(client.rest().ends_with("Timeout"));
    }
    // Of the one whose service did not answer, the service is told.
    assert_eq!(Closed::Lost, closed(&told));
}

#[test]
fn everybody_is_sent_the_same_frame() {
    let (listener, _told) = listen(limits());
    let mut clients: Vec<_> = (0..50).map(|_| Client::open(&listener)).collect();
    clients[0].send(&frame(TEXT, format!("all {}", "x".repeat(70_000 - 5_000)).as_bytes()));
    for client in &mut clients {
        assert_eq!(Some((TEXT, vec![b'x'; 65_000])), client.frame());
    }
}

#[test]
fn the_service_may_close_and_both_sides_say_goodbye() {
    let (listener, told) = listen(limits());
    let mut client = Client::open(&listener);
    client.send(&[frame(TEXT, b"close"), frame(TEXT, b"too late")].concat());
    assert_eq!(Some(reason(4401, "as you wish")), client.frame());
    assert_eq!(Closed::ByServer(4401), closed(&told));
    client.send(&close(4401, b""));
    assert_eq!(None, client.frame());
    // Without an answer it ends all the same.
    let (listener, told) = listen(Limits { close_ms: 100, ..limits() });
    let mut client = Client::open(&listener);
    client.send(&frame(TEXT, b"close"));
    assert_eq!(Some(reason(4401, "as you wish")), client.frame());
    assert_eq!(None, client.frame());
    assert_eq!(Closed::ByServer(4401), closed(&told));
}

#[test]
fn a_stream_that_ends_without_a_word_is_lost() {
    let (listener, told) = listen(limits());
    let client = Client::open(&listener);
    client.half_close();
    assert_eq!(Closed::Lost, closed(&told));
}

#[test]
fn a_full_socket_takes_nothing_and_says_when_it_does_again() {
    let (listener, told) = listen(limits());
    let mut client = Client::open(&listener);
    client.send(&frame(TEXT, b"fill"));
    let bytes = next(&told, |told| if let Told::Full(bytes) = told { Some(bytes) } else { None });
    // Neither the kernel's buffers nor ours grow without end.
    assert!((100_000..16_000_000).contains(&bytes), "{bytes}");
    // A Ping is answered behind the frame that was begun, a text behind the Pong.
    client.send(&[frame(TEXT, b"waits"), frame(PING, b"1"), frame(PING, b"2")].concat());
    let mut taken = 0;
    let last = loop {
        match client.frame().unwrap() {
            (0x82, payload) => {
                assert_eq!(vec![7; LARGE], payload);
                taken += payload.len() as u64;
            }
            other => break other,
        }
    };
    assert_eq!(bytes, taken, "what was taken arrives, and whole");
    let pong = |payload: &[u8]| (0x8a, payload.to_vec());
    let after = client.frame().unwrap();
    if last == pong(b"1") {
        // The socket had room before the second Ping came.
        let texts = [after, client.frame().unwrap()];
        assert!(texts.contains(&(TEXT, b"waits".to_vec())) && texts.contains(&pong(b"2")));
    } else if last == pong(b"2") {
        assert_eq!((TEXT, b"waits".to_vec()), after);
    } else {
        assert_eq!((TEXT, b"waits".to_vec()), last);
    }
    next(&told, |told| matches!(told, Told::Writable(_)).then_some(()));
}

#[test]
fn who_takes_nothing_for_too_long_is_dropped_and_others_do_not_notice() {
    let (listener, told) = listen(Limits { write_ms: 300, ..limits() });
    let mut stalled = Client::open(&listener);
    let mut other = Client::open(&listener);
    stalled.send(&frame(TEXT, b"fill"));
    let (began, mut filled) = (Instant::now(), 0);
    let why = loop {
        assert!(began.elapsed() < PATIENCE);
        match told.try_recv() {
            // The kernel of a busy machine takes what was left a little later: the socket is not full yet.
            Ok(Told::Writable(_)) => stalled.send(&frame(TEXT, b"fill")),
            Ok(Told::Full(_)) => filled += 1,
            Ok(Told::Closed(_, why)) => break why,
            Ok(_) => {}
            Err(_) => other.echo("meanwhile"),
        }
    };
    assert_eq!(Closed::ByServer(4408), why);
    assert!(filled > 0);
    other.echo("still here");
}

#[test]
fn a_client_without_a_sign_of_life_is_closed_and_any_sign_will_do() {
    let (listener, told) = listen(Limits { ping_ms: 300, life_ms: 200, ..limits() });
    let mut lively = Client::open(&listener);
    let mut dead = Client::open(&listener);
    assert_eq!(Some((PING, vec![])), dead.frame());
    let watcher = thread::spawn(move || {
        for _ in 0..3 {
            assert_eq!(Some((PING, vec![])), lively.frame());
            lively.send(&frame(0x8a, b""));
        }
        lively
    });
    assert_eq!(Some(reason(4408, "too slow; come back and resume")), dead.frame());
    assert_eq!(Closed::ByServer(4408), closed(&told));
    watcher.join().unwrap().echo("still here");
}

#[test]
fn pings_that_come_before_the_time_for_an_answer_is_up_do_not_begin_it_anew() {
    let (listener, told) = listen(Limits { ping_ms: 100, life_ms: 350, ..limits() });
    let mut dead = Client::open(&listener);
    let mut pings = 0;
    let last = loop {
        match dead.frame() {
            Some((PING, _)) => pings += 1,
            other => break other,
        }
    };
    assert_eq!(Some(reason(4408, "too slow; come back and resume")), last);
    assert!((2..=6).contains(&pings), "{pings}");
    assert_eq!(Closed::ByServer(4408), closed(&told));
}

/// A Ping waits behind the frame that was begun: who takes that cannot have answered yet.
#[test]
fn who_takes_a_large_frame_slowly_is_not_asked_for_a_sign_of_life_before_it_has_the_ping() {
    const BYTES: usize = 24 << 20;
    let (ping_ms, life_ms, inbound) = (100, 1_000, Bounds { message_bytes: BYTES, ..Bounds::default() });
    // Made before the first Ping can come: that takes a while.
    let message = frame(0x82, &vec![7; BYTES]);
    let (listener, _told) = listen(Limits { ping_ms, life_ms, inbound, ..limits() });
    let mut client = Client::open(&listener);
    client.send(&message);
    // Pings that came before the frame was begun are answered by what was sent.
    let large = loop {
        let mut first = [0];
        client.0.read_exact(&mut first).unwrap();
        if first[0] != PING {
            break first[0];
        }
        client.0.read_exact(&mut first).unwrap();
    };
    let mut left = vec![0; 9 + BYTES];
    let begun = Instant::now();
    let mut at = 0;
    while begun.elapsed() < Duration::from_millis(2 * life_ms) && at < BYTES / 4 {
        client.0.read_exact(&mut left[at..at + 16_384]).unwrap();
        at += 16_384;
        thread::sleep(Duration::from_millis(10));
    }
    client.0.read_exact(&mut left[at..]).unwrap();
    assert_eq!((0x82, [7; 4]), (large, *left.last_chunk().unwrap()));
    assert_eq!(Some((PING, vec![])), client.frame());
    client.send(&frame(0x8a, b""));
    while client.frame() == Some((PING, vec![])) && begun.elapsed() < Duration::from_millis(7 * life_ms / 2) {
        client.send(&frame(0x8a, b""));
    }
    client.send(&frame(0x81, b"still here"));
    while client.frame().unwrap() != (0x81, b"still here".to_vec()) {}
}

/// Only the latest must be answered (section 5.5.3): many of them in a few octets each would cost a system call each.
#[test]
fn of_many_pings_that_come_together_the_first_and_the_last_are_answered() {
    let (listener, _told) = listen(limits());
    let mut client = Client::open(&listener);
    let pings: Vec<u8> = (0..4_000_u32).flat_map(|number| frame(PING, &number.to_be_bytes())).collect();
    client.send(&pings);
    let mut answered = Vec::new();
    while answered.last() != Some(&3_999) {
        let (first, payload) = client.frame().unwrap();
        assert_eq!(0x8a, first);
        answered.push(u32::from_be_bytes(payload.try_into().unwrap()));
    }
    assert!(answered.is_sorted() && answered.starts_with(&(0..16).collect::<Vec<_>>()), "{answered:?}");
    assert!(answered.len() < 1_000, "{}", answered.len());
    client.echo("still here");
}

#[test]
fn no_more_are_let_in_than_there_may_be() {
    let (listener, told) = listen(Limits { connections: 2, ..limits() });
    let _first = Client::open(&listener);
    let second = Client::open(&listener);
    let mut third = Client::tcp(&listener);
    third.send(head("/").as_bytes());
    assert!(third.rest().ends_with("Full"));
    drop(second);
    closed(&told);
    Client::open(&listener).echo("room again");
}

#[test]
fn strangers_wait_until_there_is_room() {
    let (listener, _told) = listen(Limits { strangers: 4, handshake_ms: 200, close_ms: 100, ..limits() });
    let mut strangers: Vec<_> = (0..12).map(|_| Client::tcp(&listener)).collect();
    Client::open(&listener).echo("after them");
    for stranger in &mut strangers {
        assert!(stranger.rest().ends_with("Timeout"));
    }
}

#[test]
fn a_drain_sends_all_away_evenly_and_lets_nobody_in() {
    let (listener, told) = listen(limits());
    let mut clients: Vec<_> = (0..20).map(|_| Client::open(&listener)).collect();
    listener.drain(1_000);
    let mut times: Vec<u64> = clients
        .iter_mut()
        .map(|client| {
            let (_, text) = client.frame().unwrap();
            String::from_utf8(text).unwrap().strip_prefix("reconnect ").unwrap().parse().unwrap()
        })
        .collect();
    let mut stranger = Client::tcp(&listener);
    stranger.send(head("/").as_bytes());
    assert!(stranger.rest().ends_with("Draining(1)"));
    times.sort_unstable();
    assert_eq!((0..20).map(|n| n * 50).collect::<Vec<_>>(), times);
    for client in &mut clients {
        assert_eq!(Some(reason(1012, "restarting; come back and resume")), client.frame());
        assert_eq!(Closed::ByServer(1012), closed(&told));
    }
}

#[test]
fn a_stop_closes_what_is_open_and_ends_the_threads() {
    let (told, hears) = std::sync::mpsc::channel();
    let address = ([127, 0, 0, 1], 0).into();
    let service = parts::service(&told);
    let listener = Listener::start(address, 2, limits(), None, Clock::default(), service).unwrap();
    let address = listener.address();
    let mut clients: Vec<_> = (0..8).map(|_| Client::open(&listener)).collect();
    let mut stranger = Client::tcp(&listener);
    let readers: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            thread::spawn(move || {
                let seen = client.frame();
                client.send(&close(1012, b""));
                (seen, client.frame())
            })
        })
        .collect();
    listener.stop();
    for reader in readers {
        assert_eq!((Some(reason(1012, "restarting; come back and resume")), None), reader.join().unwrap());
        assert_eq!(Closed::ByServer(1012), closed(&hears));
    }
    let _ = stranger.0.read(&mut [0]);
    assert!(TcpStream::connect(address).is_err());
    // The port is free at once.
    let service = parts::service(&told);
    let again = Listener::start(address, 1, limits(), None, Clock::default(), service).unwrap();
    Client::open(&again).echo("again");
    assert!(again.is_alive());
}
