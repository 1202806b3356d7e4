//! The decoder against a slow twin: the same rules, applied to a whole stream at once, octet by octet.

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { message_bytes: 300, fragments: 4, deflate: false };
/// The same where it was negotiated that messages may be compressed.
const DEFLATE: Bounds = Bounds { deflate: true, ..BOUNDS };

/// An event that owns its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Deflated(bool, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
    Wrong(Violation),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Event::Deflated { is_text, payload } => Self::Deflated(is_text, payload.to_vec()),
            Event::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Event::Close(close) => Self::Close(close.code, close.reason.to_owned()),
        }
    }
}

/// What the decoder makes of a stream that comes in pieces of these sizes, over and over; and whether it forgot everything.
fn decode(stream: &[u8], sizes: &[usize]) -> (Vec<Seen>, bool) {
    decode_within(BOUNDS, stream, sizes)
}

fn decode_within(bounds: Bounds, stream: &[u8], sizes: &[usize]) -> (Vec<Seen>, bool) {
    let (mut decoder, mut seen, mut sizes) = (Decoder::default(), Vec::new(), sizes.iter().cycle());
    let mut stream = stream.to_vec();
    let mut rest = &mut stream[..];
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(size);
        rest = after;
        let mut at = 0;
        loop {
            match decoder.next(piece, &mut at, bounds) {
                Ok(Some(event)) => seen.push(event.into()),
                Ok(None) => break,
                Err(violation) => {
                    seen.push(Seen::Wrong(violation));
                    break;
                }
            }
        }
        assert!(at == size || decoder.is_over, "all is read");
    }
    (seen, decoder.is_idle())
}

/// The slow twin: section 5 read aloud. It looks at one frame after the other, and at text when a message is whole.
fn naive(bounds: Bounds, stream: &[u8]) -> Vec<Seen> {
    let (mut seen, mut at) = (Vec::new(), 0);
    // The first octet, the frames so far, and what was in them.
    let mut message: Option<(u8, u32, Vec<u8>)> = None;
    loop {
        match naive_frame(bounds, &stream[at..], message.as_ref()) {
            Err(violation) => {
                seen.push(Seen::Wrong(violation));
                return seen;
            }
            Ok(None) => return seen,
            Ok(Some((first, payload, size))) => {
                at += size;
                match first & 0x0f {
                    8 => {
                        seen.push(match Close::parse(&payload) {
                            Ok(close) => Seen::Close(close.code, close.reason.to_owned()),
                            Err(violation) => Seen::Wrong(violation),
                        });
                        return seen;
                    }
                    9 => seen.push(Seen::Ping(payload)),
                    10 => seen.push(Seen::Pong(payload)),
                    _ => {
                        let (begun, fragments, mut bytes) = message.take().unwrap_or((first, 0, Vec::new()));
                        let is_text = begun & 0x0f == 1;
                        bytes.extend(payload);
                        if first & 0x80 == 0 {
                            message = Some((begun, fragments + 1, bytes));
                        } else if begun & 0x40 != 0 {
                            seen.push(Seen::Deflated(is_text, bytes));
                        } else if !is_text {
                            seen.push(Seen::Binary(bytes));
                        } else {
                            let Ok(text) = String::from_utf8(bytes) else {
                                seen.push(Seen::Wrong(Violation::Utf8));
                                return seen;
                            };
                            seen.push(Seen::Text(text));
                        }
                    }
                }
            }
        }
    }
}

type Naive = Result<Option<(u8, Vec<u8>, usize)>, Violation>;

fn naive_frame(bounds: Bounds, bytes: &[u8], message: Option<&(u8, u32, Vec<u8>)>) -> Naive {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let opcode = first & 0x0f;
    if first & (if bounds.deflate { 0x30 } else { 0x70 }) != 0 {
        return Err(Violation::ReservedBits);
    }
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(Violation::UnknownOpcode);
    }
    if first & 0x40 != 0 && opcode != 1 && opcode != 2 {
        return Err(Violation::ReservedBits);
    }
    if opcode >= 8 && first & 0x80 == 0 {
        return Err(Violation::Control);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(Violation::Unmasked);
    }
    if opcode >= 8 && second & 0x7f > 125 {
        return Err(Violation::Control);
    }
    let bytes_of_length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if bytes.len() < 2 + bytes_of_length {
        return Ok(None);
    }
    let mut length = u128::from(second & 0x7f);
    if bytes_of_length > 0 {
        length = bytes[2..2 + bytes_of_length].iter().fold(0, |sum, &byte| sum * 256 + u128::from(byte));
        let fits_in_less = if bytes_of_length == 2 { length < 126 } else { length < 65_536 };
        if fits_in_less || length >= 1 << 63 {
            return Err(Violation::Length);
        }
    }
    let payload_at = 2 + bytes_of_length + 4;
    if bytes.len() < payload_at {
        return Ok(None);
    }
    if opcode < 8 {
        if message.is_some() != (opcode == 0) {
            return Err(Violation::Sequence);
        }
        let (begun, fragments, collected) =
            message.map_or((first, 0, 0), |(begun, fragments, bytes)| (*begun, *fragments, bytes.len()));
        if collected as u128 + length > if begun & 0x40 != 0 { 368 } else { 300 } {
            return Err(Violation::TooLarge);
        }
        if fragments + 1 > bounds.fragments {
            return Err(Violation::TooManyFragments);
        }
    }
    let mask = &bytes[payload_at - 4..payload_at];
    let Some(payload) = bytes.get(payload_at..payload_at + length as usize) else { return Ok(None) };
    let payload = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
    Ok(Some((first, payload, payload_at + length as usize)))
}

/// A frame as a client sends it, with every bit of its head to choose.
fn frame(first: u8, payload: &[u8], mask: [u8; 4], wide: bool) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 if !wide => out.push(0x80 | length as u8),
        length => {
            out.push(0xfe);
            out.extend((length as u16).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    out
}

/// Streams of mostly good frames: a slip ends a stream, so that it must be rare for what follows it to be seen.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => prop::sample::select(vec![0x81_u8, 0x82]),
        4 => prop::sample::select(vec![0x01_u8, 0x02]),
        2 => prop::sample::select(vec![0xc1_u8, 0xc2, 0x41, 0x42]),
        8 => prop::sample::select(vec![0x00_u8, 0x80]),
        4 => prop::sample::select(vec![0x89_u8, 0x8a]),
        1 => Just(0x88_u8),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        6 => "\\PC{0,8}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..6),
        1 => prop::collection::vec(Just(b'a'), 120..380),
        1 => prop::sample::select(vec![1000_u16, 1005, 4408]).prop_map(|code| code.to_be_bytes().to_vec()),
    ];
    let one = (first, payload, any::<[u8; 4]>(), prop::bool::weighted(0.02));
    (prop::collection::vec(one, 0..10), any::<prop::sample::Index>(), prop::bool::weighted(0.2)).prop_map(
        |(frames, cut, is_cut)| {
            let mut out: Vec<u8> =
                frames.iter().flat_map(|(first, payload, mask, wide)| frame(*first, payload, *mask, *wide)).collect();
            if is_cut {
                out.truncate(cut.index(out.len() + 1));
            }
            out
        },
    )
}

/// Whether the decoder saw what the twin saw. It may see that text is wrong before the twin, which waits for its end, does.
fn agree(naive: &[Seen], fast: &[Seen]) -> bool {
    match fast.split_last() {
        Some((Seen::Wrong(Violation::Utf8), before)) => naive.starts_with(before),
        _ => naive == fast,
    }
}

proptest! {
    #[test]
    fn pieces_are_read_as_the_whole_is(stream in stream(), sizes in prop::collection::vec(1_usize..40, 1..5)) {
        for bounds in [BOUNDS, DEFLATE] {
            let expected = naive(bounds, &stream);
            let (seen, _) = decode_within(bounds, &stream, &sizes);
            prop_assert!(agree(&expected, &seen), "{expected:?} {seen:?}");
            // When it is seen differs with the pieces; that it is seen, and what, does not.
            let (whole, _) = decode_within(bounds, &stream, &[usize::MAX]);
            prop_assert!(agree(&expected, &whole), "{expected:?} {whole:?}");
        }
    }

    #[test]
    fn wrong_text_is_never_taken(stream in stream(), size in 1_usize..20) {
        let wrong = |seen: &[Seen]| seen.last() == Some(&Seen::Wrong(Violation::Utf8));
        if wrong(&naive(BOUNDS, &stream)) {
            prop_assert!(wrong(&decode(&stream, &[size]).0));
        }
    }

    #[test]
    fn any_bytes_are_survived(stream: Vec<u8>, size in 1_usize..20) {
        for bounds in [BOUNDS, DEFLATE] {
            let (seen, _) = decode_within(bounds, &stream, &[size]);
            prop_assert!(agree(&naive(bounds, &stream), &seen));
        }
    }
}

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

#[test]
fn nothing_is_kept_between_messages() {
    let stream =
        [frame(0x01, b"Hel", KEY, false), frame(0x89, b"?", KEY, false), frame(0x80, b"lo", KEY, false)].concat();
    for size in 1..=stream.len() {
        let (seen, is_idle) = decode(&stream, &[size]);
        assert_eq!(vec![Seen::Ping(b"?".to_vec()), Seen::Text("Hello".to_owned())], seen);
        // What was lent last is let go at the call that says that there is no more.
        assert!(is_idle);
    }
    assert!(!decode(&stream[..3], &[3]).1, "a torn head is kept");
    assert_eq!(16, size_of::<Decoder>());
}

#[test]
fn a_message_that_is_whole_is_lent_where_it_lies() {
    let mut bytes = frame(0x81, b"Hello", KEY, false);
    let within = bytes.as_ptr_range();
    let (mut decoder, mut at) = (Decoder::default(), 0);
    match decoder.next(&mut bytes, &mut at, BOUNDS) {
        Ok(Some(Event::Text(text))) => assert!(text == "Hello" && within.contains(&text.as_ptr())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bounds_are_of_the_message_and_judged_by_the_head() {
    let many = [&frame(0x02, &[0; 300], KEY, false)[..], &frame(0x80, &[], KEY, false)].concat();
    assert_eq!(vec![Seen::Binary(vec![0; 300])], decode(&many, &[7]).0);
    let over = [&frame(0x02, &[0; 300], KEY, false)[..], &[0x80, 0x81, 1, 2, 3, 4]].concat();
    assert_eq!(vec![Seen::Wrong(Violation::TooLarge)], decode(&over, &[7]).0);
    let huge = [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
    assert_eq!(vec![Seen::Wrong(Violation::TooLarge)], decode(&huge, &[1]).0);
    let torn = [frame(0x01, b"", KEY, false), frame(0x00, b"", KEY, false).repeat(4)].concat();
    assert_eq!(vec![Seen::Wrong(Violation::TooManyFragments)], decode(&torn, &[100]).0);
}

#[test]
fn what_is_compressed_is_lent_as_it_came() {
    let torn = [frame(0x41, b"\xff", KEY, false), frame(0x89, b"?", KEY, false), frame(0x80, b"\x00", KEY, false)];
    let stream =
        [&frame(0xc2, b"\xf2\x48", KEY, false)[..], &torn.concat(), &frame(0x81, b"plain", KEY, false)].concat();
    let expected = vec![
        Seen::Deflated(false, b"\xf2\x48".to_vec()),
        Seen::Ping(b"?".to_vec()),
        Seen::Deflated(true, b"\xff\x00".to_vec()),
        Seen::Text("plain".to_owned()),
    ];
    for size in 1..=stream.len() {
        assert_eq!((expected.clone(), true), decode_within(DEFLATE, &stream, &[size]));
    }
    let again = [frame(0x41, b"a", KEY, false), frame(0xc0, b"b", KEY, false)].concat();
    assert_eq!(vec![Seen::Wrong(Violation::ReservedBits)], decode_within(DEFLATE, &again, &[100]).0);
}

#[test]
fn text_that_cannot_become_right_is_refused_before_its_message_ends() {
    let stream = [frame(0x01, b"\xce\xba", KEY, false), frame(0x00, b"\xf4\x90", KEY, false)].concat();
    assert_eq!(vec![Seen::Wrong(Violation::Utf8)], decode(&stream, &[100]).0);
    // Within a frame whose rest has not come.
    let begun = frame(0x81, b"\xed\xa0 and more", KEY, false);
    assert_eq!(vec![Seen::Wrong(Violation::Utf8)], decode(&begun[..8], &[8]).0);
}

#[test]
fn after_the_end_nothing_is_read() {
    let stream = [frame(0x88, &1000_u16.to_be_bytes(), KEY, false), frame(0x81, b"x", KEY, false)].concat();
    assert_eq!(vec![Seen::Close(1000, String::new())], decode(&stream, &[3]).0);
    for (wrong, violation) in [
        (frame(0x83, b"", KEY, false), Violation::UnknownOpcode),
        (frame(0x81, b"\x80", KEY, false), Violation::Utf8),
        (frame(0x88, b"x", KEY, false), Violation::CloseCode),
    ] {
        let stream = [wrong, frame(0x81, b"x", KEY, false)].concat();
        for size in [1, 4, 100] {
            assert_eq!(vec![Seen::Wrong(violation)], decode(&stream, &[size]).0);
        }
    }
}
