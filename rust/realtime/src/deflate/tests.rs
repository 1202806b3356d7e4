//! What is compressed here is inflated with a window of just the size that was agreed on, and what others compress in any way
//! that the RFC allows is inflated here.

use proptest::prelude::*;

use super::*;

const BOUND: usize = 4_096;

fn bits(bits: u8) -> WindowBits {
    WindowBits::new(bits).unwrap()
}

/// What a sender makes of a message: blocks of some level, flushed after each piece, each the last of its stream or not.
fn sent(pieces: &[(Vec<u8>, bool)], level: u32, window: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let mut compress = Compress::new_with_window_bits(Compression::new(level), false, window);
    for (piece, is_last) in pieces {
        let flush = if *is_last { FlushCompress::Finish } else { FlushCompress::Sync };
        compress.compress_vec(piece, &mut out, flush).unwrap();
        if *is_last {
            compress.reset();
        }
    }
    if pieces.last().is_none_or(|(_, is_last)| *is_last) {
        // What section 7.2.3.4 has behind a last block, and 7.2.3.6 in an empty message.
        out.push(0);
    } else {
        out.truncate(out.len() - TAIL.len());
    }
    out
}

/// The twin: a stream with a window of this size and as much room as it wants.
fn inflated_by(window: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let mut inflate = Decompress::new_with_window_bits(false, window);
    for input in [payload, &TAIL] {
        inflate.decompress_vec(input, &mut out, FlushDecompress::Sync).unwrap();
    }
    out
}

fn inflate(payload: &[u8]) -> Result<Vec<u8>, Violation> {
    Inflater::default().inflate(payload, BOUND).map(<[u8]>::to_vec)
}

/// Text in which things come again, near and far, or nothing does.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => "[a-f]{3,9}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..60),
        1 => (any::<u8>(), 1..1_500_usize).prop_map(|(byte, count)| vec![byte; count]),
    ];
    let words = prop::collection::vec(word, 1..12);
    (words, prop::collection::vec(any::<prop::sample::Index>(), 0..500))
        .prop_map(|(words, order)| order.iter().flat_map(|at| at.get(&words).clone()).collect())
}

proptest! {
    #[test]
    fn what_is_compressed_is_inflated_within_the_window(payload in text(), window in 9..=15_u8) {
        let wire = Wire::text(payload.clone());
        let made = Deflater::default().once(&wire, bits(window));
        if let Some(made) = &made {
            let whole = made.rest(0).concat();
            let at = made.rest(0)[0].len();
            prop_assert_eq!(0xc1, whole[0]);
            prop_assert!(made.len() < wire.len());
            prop_assert_eq!(payload.clone(), inflated_by(window, &whole[at..]));
            if payload.len() <= BOUND {
                prop_assert_eq!(Ok(payload.clone()), inflate(&whole[at..]));
            }
        }
        prop_assert!(made.is_none() || payload.len() >= LEAST_BYTES);
    }

    #[test]
    fn whatever_was_compressed_is_inflated_or_too_large(
        pieces in prop::collection::vec((text(), any::<bool>()), 0..4), level in 0..=9_u32, window in 9..=15_u8,
    ) {
        let message: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
        let expected = if message.len() > BOUND { Err(Violation::TooLarge) } else { Ok(message) };
        prop_assert_eq!(expected, inflate(&sent(&pieces, level, window)));
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused(payload in text(), level in 0..=9_u32, cut in any::<prop::sample::Index>()) {
        let whole = sent(&[(payload[..payload.len().min(BOUND)].to_vec(), false)], level, 15);
        let part = &whole[..cut.index(whole.len())];
        // There is no checksum: what is left may happen to end with a block. Then another block can follow.
        if let Ok(found) = inflate(part) {
            let whole = [part, &TAIL, b"\x00\x01\x00\xfe\xffZ\x00"].concat();
            prop_assert_eq!([&found[..], b"Z"].concat(), inflated_by(15, &whole));
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_grow(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..4)) {
        let mut inflater = Inflater::default();
        for payload in &payloads {
            let again = inflate(payload);
            let found = inflater.inflate(payload, BOUND).map(<[u8]>::to_vec);
            prop_assert!(found.as_ref().is_ok_and(|found| found.len() <= BOUND) || found.is_err());
            prop_assert_eq!(again, found, "nothing is left of the message before");
        }
    }
}

#[test]
fn the_examples_of_section_7_2_3_are_read() {
    for (payload, expected) in [
        (&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], "Hello"),
        (b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", "Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", "Hello"),
        (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", "Hello"),
        (b"\x00", ""),
    ] {
        assert_eq!(Ok(expected.as_bytes().to_vec()), inflate(payload), "{payload:x?}");
    }
    // The second message of 7.2.3.2 refers to the first, which was agreed not to be.
    assert_eq!(Err(Violation::Deflate), inflate(b"\xf2\x00\x11\x00\x00"));
    for cut in [&b""[..], b"\xf2\x48\xcd\xc9\xc9\x07", b"\xf2\x48", b"\x00\x05\x00\xfa\xff\x48\x65", b"\xff", b"\x07"] {
        assert_eq!(Err(Violation::Deflate), inflate(cut), "{cut:x?}");
    }
}

#[test]
fn a_bomb_is_not_inflated() {
    let bomb = sent(&[(vec![0; 50 << 20], false)], 9, 15);
    assert!(bomb.len() < 60 << 10);
    let mut inflater = Inflater::default();
    assert_eq!(Err(Violation::TooLarge), inflater.inflate(&bomb, BOUND).map(<[u8]>::len));
    assert_eq!(BOUND + 1, inflater.out.capacity());
    assert_eq!(Ok(5), inflater.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", BOUND).map(<[u8]>::len));
    let exact = sent(&[(vec![7; BOUND], false)], 6, 15);
    assert_eq!(Ok(BOUND), inflater.inflate(&exact, BOUND).map(<[u8]>::len));
    assert_eq!(Err(Violation::TooLarge), inflater.inflate(&exact, BOUND - 1).map(<[u8]>::len));
}

#[test]
fn text_is_text_when_it_is_inflated() {
    let mut inflater = Inflater::default();
    let wrong = sent(&[(b"\xce\xba\xed\xa0\x80".to_vec(), false)], 6, 15);
    assert!(matches!(inflater.message(true, &wrong, BOUND), Err(Violation::Utf8)));
    assert!(matches!(inflater.message(false, &wrong, BOUND), Ok(Message::Binary(b"\xce\xba\xed\xa0\x80"))));
}

#[test]
fn a_frame_for_many_is_compressed_once_for_each_window() {
    let mut deflater = Deflater::default();
    let wire = Wire::text(b"all the same ".repeat(100));
    let first = deflater.shared(&wire, bits(15)).unwrap();
    for _ in 0..100 {
        // As each connection's frame is put together: another head before the same payload.
        let again = deflater.shared(&wire.clone(), bits(15)).unwrap();
        assert_eq!(first.identity(), again.identity());
    }
    deflater.shared(&wire, bits(9)).unwrap();
    assert_eq!(2, deflater.counts.made);
    deflater.forget();
    deflater.shared(&wire, bits(15)).unwrap();
    assert_eq!(3, deflater.counts.made);
}

#[test]
fn what_is_not_worth_it_goes_out_as_it_is() {
    let mut deflater = Deflater::default();
    let short = Wire::text(vec![b'x'; LEAST_BYTES - 1]);
    let noise: Vec<u8> = (0..2_000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let noise: Vec<u8> =
        noise.iter().zip(noise.iter().skip(7)).flat_map(|(a, b)| [a ^ b, a.wrapping_mul(*b)]).collect();
    assert!(deflater.shared(&short, bits(15)).is_none());
    assert_eq!(0, deflater.counts.made);
    let incompressible = Wire::binary(noise);
    for _ in 0..3 {
        let made = deflater.shared(&incompressible, bits(15));
        assert!(made.is_none_or(|made| made.len() < incompressible.len()));
    }
    assert_eq!(1, deflater.counts.made);
    assert!(deflater.once(&Wire::raw(vec![b'x'; 1_000]), bits(15)).is_none(), "no frame");
    assert!(deflater.once(&Wire::close(1000, &"x".repeat(300)), bits(15)).is_none());
    let made = deflater.once(&Wire::binary(vec![b'x'; 1_000]), bits(15)).unwrap();
    assert_eq!(0xc2, made.rest(0)[0][0]);
    assert!(deflater.once(&made, bits(15)).is_none(), "nothing is compressed twice");
}
