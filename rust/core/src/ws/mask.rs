//! The mask of a client's frames (RFC 6455 section 5.3): an XOR that repeats every four bytes.

/// Masks or unmasks `data` in place; `offset` bytes of the payload were done before.
pub fn apply(data: &mut [u8], key: [u8; 4], offset: usize) {
    let mut turned = key;
    turned.rotate_left(offset % 4);
    let [a, b, c, d] = turned;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Eight bytes at a time; the compiler makes wider ones of it.
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the section says it: octet i of the payload with octet i modulo 4 of the key.
    fn octet_by_octet(data: &mut [u8], key: [u8; 4], offset: usize) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte ^= key[(offset + at) % 4];
        }
    }

    #[test]
    fn the_example_of_section_5_7_is_unmasked() {
        let mut data = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply(&mut data, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(b"Hello", &data);
    }

    proptest! {
        #[test]
        fn whole_words_do_what_octets_do(data: Vec<u8>, key: [u8; 4], offset in 0_usize..9) {
            let (mut fast, mut slow) = (data.clone(), data);
            apply(&mut fast, key, offset);
            octet_by_octet(&mut slow, key, offset);
            prop_assert_eq!(slow, fast);
        }

        #[test]
        fn pieces_do_what_the_whole_does(data: Vec<u8>, key: [u8; 4], cut: prop::sample::Index) {
            let (mut whole, mut pieces) = (data.clone(), data);
            apply(&mut whole, key, 0);
            let cut = cut.index(pieces.len() + 1);
            let (first, second) = pieces.split_at_mut(cut);
            apply(first, key, 0);
            apply(second, key, cut);
            prop_assert_eq!(whole, pieces);
        }
    }
}
