//! RFC 6455 over a real socket: a list of cases modelled on those of the Autobahn test suite, whose numbers they carry. Each
//! goes through the wire three times: in one piece, octet by octet, and cut in the middle.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use flx_realtime::listener::Listener;
use parts::{Client, close, frame, limits, listen};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;

/// What must come back until the stream ends.
#[derive(Clone)]
struct Case {
    number: &'static str,
    sent: Vec<Vec<u8>>,
    expected: Vec<(u8, Vec<u8>)>,
}

/// A case that ends well: the client closes with 1000 behind what it sent, and gets that back.
fn good(number: &'static str, sent: &[Vec<u8>], expected: &[(u8, &[u8])]) -> Case {
    let mut sent = sent.to_vec();
    sent.push(close(1000, b""));
    let mut expected: Vec<_> = expected.iter().map(|(first, payload)| (*first, payload.to_vec())).collect();
    expected.push((CLOSE, 1000_u16.to_be_bytes().to_vec()));
    Case { number, sent, expected }
}

/// A case that ends with a Close of this code.
fn bad(number: &'static str, sent: &[Vec<u8>], before: &[(u8, &[u8])], code: u16) -> Case {
    let mut expected: Vec<_> = before.iter().map(|(first, payload)| (*first, payload.to_vec())).collect();
    expected.push((CLOSE, code.to_be_bytes().to_vec()));
    Case { number, sent: sent.to_vec(), expected }
}

fn run(listener: &Listener, case: &Case, pieces: &[&[u8]]) {
    let mut client = Client::open(listener);
    for piece in pieces {
        // After the listener has closed, what is left of a bad case may not be taken any more.
        if std::io::Write::write_all(&mut client.0, piece).is_err() {
            break;
        }
    }
    let mut seen = client.frames();
    if let Some((CLOSE, payload)) = seen.last_mut() {
        assert!(payload.len() <= 125 && str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok());
        payload.truncate(2);
    }
    assert_eq!(case.expected, seen, "case {} in {} pieces", case.number, pieces.len());
}

fn framing() -> Vec<Case> {
    let long = vec![b'*'; 65_535];
    let longest = vec![0xfe; 65_536];
    let mut cases = vec![good("1.1.1", &[frame(TEXT, b"")], &[(TEXT, b"")])];
    for (number, length) in [("1.1.2", 125), ("1.1.3", 126), ("1.1.4", 127), ("1.1.5", 128), ("1.1.6", 65_535)] {
        cases.push(good(number, &[frame(TEXT, &long[..length])], &[(TEXT, &long[..length])]));
    }
    cases.push(good("1.2.7", &[frame(BINARY, &longest)], &[(BINARY, &longest)]));
    cases.push(bad("9.*", &[frame(BINARY, &vec![0; 65_537])], &[], 1009));
    cases.push(bad("9.* by fragments", &[frame(0x02, &longest), frame(0x80, b"x")], &[], 1009));
    cases.push(bad("lengths that are too wide", &[vec![0x81, 0xfe, 0, 5, 1, 2, 3, 4]], &[], 1002));
    cases.push(bad("lengths of 64 bits", &[vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]], &[], 1002));
    cases.push(bad("no mask", &[vec![0x81, 1, b'x']], &[], 1002));
    cases
}

fn pings_and_pongs() -> Vec<Case> {
    let full = vec![0xfe; 125];
    let ten: Vec<_> = (0..10).map(|n| frame(PING, &[n])).collect();
    let payloads: Vec<_> = (0..10_u8).map(|n| [n]).collect();
    let pongs: Vec<(u8, &[u8])> = payloads.iter().map(|payload| (PONG, &payload[..])).collect();
    vec![
        good("2.1", &[frame(PING, b"")], &[(PONG, b"")]),
        good("2.2", &[frame(PING, b"Hello, world!")], &[(PONG, b"Hello, world!")]),
        good("2.3", &[frame(PING, b"\x00\xff\xfe\xfd")], &[(PONG, b"\x00\xff\xfe\xfd")]),
        good("2.4", &[frame(PING, &full)], &[(PONG, &full)]),
        bad("2.5", &[frame(PING, &[0; 126])], &[], 1002),
        good("2.7", &[frame(PONG, b"")], &[]),
        good("2.9", &[frame(PONG, b"unasked"), frame(PING, b"x")], &[(PONG, b"x")]),
        good("2.10", &ten, &pongs),
    ]
}

fn reserved() -> Vec<Case> {
    let hello = || frame(TEXT, b"Hello");
    let echo: &[(u8, &[u8])] = &[(TEXT, b"Hello")];
    let mut cases = vec![
        bad("3.1", &[frame(0x81 | 0x10, b"x")], &[], 1002),
        bad("3.2", &[hello(), frame(0x81 | 0x20, b"x"), frame(PING, b"")], echo, 1002),
        bad("3.5", &[frame(0x82 | 0x40, b"x")], &[], 1002),
        bad("3.6", &[frame(0x89 | 0x50, b"x")], &[], 1002),
        bad("3.7", &[frame(0x88 | 0x70, b"")], &[], 1002),
    ];
    for (number, opcode) in [("4.1.1", 3), ("4.1.2", 4), ("4.1.3", 5), ("4.1.4", 6), ("4.1.5", 7)] {
        cases.push(bad(number, &[hello(), frame(0x80 | opcode, b""), frame(PING, b"")], echo, 1002));
    }
    for (number, opcode) in [("4.2.1", 0xb), ("4.2.2", 0xc), ("4.2.3", 0xd), ("4.2.4", 0xe), ("4.2.5", 0xf)] {
        cases.push(bad(number, &[hello(), frame(0x80 | opcode, b""), frame(PING, b"")], echo, 1002));
    }
    cases
}

fn fragments() -> Vec<Case> {
    let (first, more, last) = (|t: &[u8]| frame(0x01, t), |t: &[u8]| frame(0x00, t), |t: &[u8]| frame(0x80, t));
    let (pong, echo) = ((PONG, &b"p"[..]), (TEXT, &b"ab"[..]));
    let ping = || frame(PING, b"p");
    vec![
        bad("5.1", &[frame(0x09, b"a"), frame(0x8a, b"b")], &[], 1002),
        bad("5.2", &[frame(0x0a, b"a"), frame(0x8a, b"b")], &[], 1002),
        good("5.3", &[first(b"a"), last(b"b")], &[echo]),
        good("5.6", &[first(b"a"), ping(), last(b"b")], &[pong, echo]),
        good("5.8", &[first(b"a"), more(b""), ping(), more(b""), ping(), last(b"b")], &[pong, pong, echo]),
        bad("5.9", &[frame(0x80, b"x"), frame(TEXT, b"y")], &[], 1002),
        bad("5.12", &[frame(0x00, b"x"), frame(TEXT, b"y")], &[], 1002),
        bad("5.15", &[first(b"a"), last(b"b"), more(b"c"), frame(TEXT, b"d")], &[echo], 1002),
        bad("5.18", &[first(b"a"), frame(TEXT, b"b")], &[], 1002),
        bad("5.18 with bytes", &[first(b"a"), frame(0x02, b"b")], &[], 1002),
        good("5.19", &[first(b"a"), more(b""), ping(), last(b"b"), ping()], &[pong, echo, pong]),
        good("6.1.2", &[first(b""), more(b""), last(b"")], &[(TEXT, b"")]),
        good("6.1.3", &[first(b""), more(b"middle"), last(b"")], &[(TEXT, b"middle")]),
    ]
}

fn text() -> Vec<Case> {
    let kosme = "Hello-µ@ßöäüàá-UTF-8!! κόσμε \u{10ffff}".as_bytes();
    let (left, right) = kosme.split_at(7);
    let bytes: Vec<_> = kosme.iter().map(|byte| frame(0x00, &[*byte])).collect();
    let pieces = [&[frame(0x01, b"")], &bytes[..], &[frame(0x80, b"")]].concat();
    let mut cases = vec![
        good("6.2.1", &[frame(TEXT, kosme)], &[(TEXT, kosme)]),
        good("6.2.2", &[frame(0x01, left), frame(0x80, right)], &[(TEXT, kosme)]),
        good("6.2.3", &pieces, &[(TEXT, kosme)]),
        bad("6.3.1", &[frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited")], &[], 1007),
        bad("6.4.1", &[frame(0x01, b"\xce\xba"), frame(0x00, b"\xf4\x90\x80\x80")], &[], 1007),
        bad("6.4.3", &[frame(0x81, b"\xf4\x90\x80\x80 and so on")[..8].to_vec()], &[], 1007),
    ];
    for wrong in [
        &b"\x80"[..],
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
        b"\xce",
        b"\xe1\xbd",
    ] {
        cases.push(bad("6.5 to 6.23", &[frame(TEXT, wrong)], &[], 1007));
    }
    for right in ["\u{7f}", "\u{80}", "\u{7ff}", "\u{800}", "\u{ffff}", "\u{10000}", "\u{d7ff}", "\u{e000}", "\u{fffe}"]
    {
        cases.push(good("6.6 to 6.22", &[frame(TEXT, right.as_bytes())], &[(TEXT, right.as_bytes())]));
    }
    cases
}

fn closing() -> Vec<Case> {
    let empty = |number, sent: Vec<Vec<u8>>| Case { number, sent, expected: vec![(CLOSE, vec![])] };
    let mut cases = vec![
        good("7.1.1", &[frame(TEXT, b"Hello")], &[(TEXT, b"Hello")]),
        bad("7.1.3", &[close(1000, b""), close(1000, b""), frame(PING, b"")], &[], 1000),
        bad("7.1.4", &[close(1000, b""), frame(TEXT, b"never seen")], &[], 1000),
        bad("7.1.5", &[frame(0x01, b"a"), close(1000, b""), frame(0x80, b"b")], &[], 1000),
        empty("7.3.1", vec![frame(CLOSE, b"")]),
        bad("7.3.2", &[frame(CLOSE, b"a")], &[], 1002),
        bad("7.3.5", &[close(1000, &[b'*'; 123])], &[], 1000),
        bad("7.3.6", &[close(1000, &[b'*'; 124])], &[], 1002),
        bad("7.5.1", &[close(1000, b"\xce\xba\xed\xa0\x80")], &[], 1007),
    ];
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
        cases.push(bad("7.7", &[close(code, b"")], &[], code));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        cases.push(bad("7.9", &[close(code, b"")], &[], 1002));
    }
    cases
}

#[test]
fn every_case_is_answered_as_the_rfc_says() {
    let (listener, _told) = listen(limits());
    for case in [framing(), pings_and_pongs(), reserved(), fragments(), text(), closing()].concat() {
        let stream = case.sent.concat();
        run(&listener, &case, &[&stream]);
        let (left, right) = stream.split_at(stream.len() / 2);
        run(&listener, &case, &[left, right]);
        // A long stream in single octets says nothing that a short one does not.
        let octets: Vec<_> = stream.chunks(if stream.len() < 400 { 1 } else { 1 + stream.len() / 400 }).collect();
        run(&listener, &case, &octets);
    }
    assert!(listener.is_alive());
    listener.stop();
}
