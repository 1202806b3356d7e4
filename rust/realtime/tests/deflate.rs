//! Compressed messages (RFC 7692) over raw sockets: what is agreed on, what is heard, and what is sent.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use flx_realtime::deflate::Deflated;
use flx_realtime::listener::{Limits, Listener};
use parts::{Client, PATIENCE, close, frame, head, limits, listen};

const LIMITS: fn() -> Limits = || Limits { deflate: true, ..limits() };
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const DEFLATED: u8 = 0x40;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;
const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";

/// A WebSocket whose client offers these extensions, and what it is answered.
fn open(listener: &Listener, offer: &str) -> (Client, Option<String>) {
    let mut client = Client::tcp(listener);
    let head = head("/").replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"));
    client.send(head.as_bytes());
    let answer = client.http();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let line = answer.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
    (client, line.map(str::to_owned))
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 1024);
    Compress::new(Compression::best(), false).compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

fn inflated(payload: &[u8], window: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let mut inflate = Decompress::new_with_window_bits(false, window);
    for input in [payload, &[0, 0, 0xff, 0xff]] {
        inflate.decompress_vec(input, &mut out, FlushDecompress::Sync).unwrap();
    }
    out
}

/// First octets and payloads.
type Frames = Vec<(u8, Vec<u8>)>;

/// What a client is sent when it sends this, to the end, inflated; of a Close its code.
fn answers(listener: &Listener, stream: &[u8], piece: usize) -> Frames {
    let (mut client, _) = open(listener, "permessage-deflate");
    for piece in stream.chunks(piece) {
        if std::io::Write::write_all(&mut client.0, piece).is_err() {
            break;
        }
    }
    let mut seen = client.frames();
    for (first, payload) in &mut seen {
        if *first & DEFLATED != 0 {
            *payload = inflated(payload, 15);
        }
    }
    if let Some((CLOSE, payload)) = seen.last_mut() {
        payload.truncate(2);
    }
    seen
}

#[test]
fn it_is_agreed_on_when_both_want_it() {
    let bare = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let (on, _told) = listen(LIMITS());
    assert_eq!(Some(bare), open(&on, "permessage-deflate; client_max_window_bits").1.as_deref());
    let ten = format!("{bare}; server_max_window_bits=10");
    assert_eq!(Some(ten), open(&on, "permessage-deflate; server_max_window_bits=10").1);
    for offer in ["permessage-deflate; server_max_window_bits=8", "permessage-deflate; x", "x-webkit-deflate-frame", ""]
    {
        assert_eq!(None, open(&on, offer).1, "{offer}");
    }
    let mut client = Client::tcp(&on);
    client.send(head("/").replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: a;;b\r\n\r\n").as_bytes());
    assert!(client.rest().ends_with("Extensions"));
    // A service that answers later finds what was agreed.
    let (off, _told) = listen(limits());
    assert_eq!(None, open(&off, "permessage-deflate").1);
    assert_eq!(None, open(&off, "a;;b").1);
}

#[test]
fn every_case_is_answered_as_the_rfc_says() {
    let (listener, _told) = listen(LIMITS());
    let exact = vec![b'x'; 65_536];
    let over = vec![b'x'; 65_537];
    let noise = std::iter::successors(Some(7_u64), |n| Some(n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1)));
    let noise: Vec<u8> = noise.take(65_536).map(|n| (n >> 56) as u8).collect();
    assert!(deflated(&noise).len() > 65_536);
    let bye = close(1000, b"");
    let good: [(&str, Vec<u8>, Frames); 8] = [
        ("short", frame(TEXT | DEFLATED, HELLO), vec![(TEXT, b"Hello".to_vec())]),
        ("not compressed", frame(TEXT, b"Hello"), vec![(TEXT, b"Hello".to_vec())]),
        (
            "fragments with a Ping between (7.2.3.1)",
            [frame(0x41, &HELLO[..3]), frame(PING, b"p"), frame(0x80, &HELLO[3..])].concat(),
            vec![(PONG, b"p".to_vec()), (TEXT, b"Hello".to_vec())],
        ),
        ("a last block (7.2.3.4)", frame(0xc2, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), vec![(BINARY, b"Hello".to_vec())]),
        ("not shorter (7.2.3.3)", frame(0xc1, b"\x00\x05\x00\xfa\xffHello\x00"), vec![(TEXT, b"Hello".to_vec())]),
        ("empty (7.2.3.6)", frame(0xc1, b"\x00"), vec![(TEXT, b"".to_vec())]),
        (
            "twice the same, and nothing is taken over",
            [frame(0xc1, HELLO), frame(TEXT, b"."), frame(0xc1, HELLO)].concat(),
            vec![(TEXT, b"Hello".to_vec()), (TEXT, b".".to_vec()), (TEXT, b"Hello".to_vec())],
        ),
        ("longer than what is in it", frame(0xc2, &deflated(&noise)), vec![(BINARY, noise)]),
    ];
    let bad: [(&str, Vec<u8>, u16); 12] = [
        ("on a continuation", [frame(0x41, &HELLO[..3]), frame(0xc0, &HELLO[3..])].concat(), 1002),
        ("on a continuation of what is not compressed", [frame(0x01, b"a"), frame(0xc0, b"b")].concat(), 1002),
        ("on a Ping", frame(PING | DEFLATED, b""), 1002),
        ("on a Pong", frame(PONG | DEFLATED, b""), 1002),
        ("on a Close", frame(CLOSE | DEFLATED, b""), 1002),
        ("with another bit", frame(TEXT | DEFLATED | 0x20, HELLO), 1002),
        ("another bit alone", frame(TEXT | 0x10, b"a"), 1002),
        ("what cannot be inflated", frame(0xc1, b"\xff\xff"), 1007),
        ("what is cut off", frame(0xc1, &HELLO[..4]), 1007),
        ("text that is none", frame(0xc1, &deflated(b"\xed\xa0\x80")), 1007),
        ("a byte too many", frame(0xc1, &deflated(&over)), 1009),
        ("a bomb", frame(0xc2, &deflated(&vec![0; 40 << 20])), 1009),
    ];
    for (name, sent, expected) in good {
        let expected = [expected, vec![(CLOSE, 1000_u16.to_be_bytes().to_vec())]].concat();
        let stream = [sent, bye.clone()].concat();
        for piece in [usize::MAX, 1 + stream.len() / 50] {
            assert!(expected == answers(&listener, &stream, piece), "{name}");
        }
    }
    for (name, sent, code) in bad {
        for piece in [usize::MAX, 1 + sent.len() / 50] {
            assert_eq!(vec![(CLOSE, code.to_be_bytes().to_vec())], answers(&listener, &sent, piece), "{name}");
        }
    }
    // As much as a message may have goes both ways, compressed.
    let seen = answers(&listener, &[frame(0xc1, &deflated(&exact)), bye].concat(), usize::MAX);
    assert!(seen[0] == (0xc1, exact));
    assert!(listener.is_alive());
}

#[test]
fn who_has_not_agreed_may_not() {
    let (listener, _told) = listen(LIMITS());
    let mut client = Client::open(&listener);
    client.send(&frame(0xc1, HELLO));
    assert_eq!(Some((CLOSE, 1002)), client.frame().map(|(first, it)| (first, u16::from_be_bytes([it[0], it[1]]))));
}

#[test]
fn a_frame_for_all_is_compressed_once_for_all_who_agreed() {
    let (listener, _told) = listen(LIMITS());
    let mut plain = Client::open(&listener);
    let mut narrow = open(&listener, "permessage-deflate; server_max_window_bits=9").0;
    let mut packed: Vec<_> = (0..20).map(|_| open(&listener, "permessage-deflate").0).collect();
    let numbers: Vec<_> = (0..400).map(|n| format!("{{\"n\":{}}}", n % 37)).collect();
    let text = numbers.join(",");
    plain.send(&frame(TEXT, format!("all {text}").as_bytes()));
    assert_eq!(Some((TEXT, text.clone().into_bytes())), plain.frame());
    let (first, payload) = narrow.frame().unwrap();
    assert_eq!((0xc1, text.clone()), (first, String::from_utf8(inflated(&payload, 9)).unwrap()));
    let frames: Vec<_> = packed.iter_mut().map(|client| client.frame().unwrap()).collect();
    assert_eq!((0xc1, text.clone()), (frames[0].0, String::from_utf8(inflated(&frames[0].1, 15)).unwrap()));
    assert!(frames.iter().all(|frame| *frame == frames[0]));
    // Counted when the turn is over.
    let begun = Instant::now();
    while listener.deflated().sent_bytes == 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    let Deflated { made, bytes, sent_bytes } = listener.deflated();
    assert_eq!((2, 21 * (text.len() as u64 + 4)), (made, bytes));
    assert_eq!(20 * (frames[0].1.len() as u64 + 4) + payload.len() as u64 + 4, sent_bytes);
    assert!(sent_bytes < bytes / 3);
}
