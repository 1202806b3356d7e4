//! Strict base64url (RFC 4648 section 5 as RFC 7515 uses it): no padding, no white space, no second spelling.
//!
//! Rule: every byte string has exactly one accepted text. The unused bits of the last character must be zero, so a
//! signature cannot be re-spelled into a "different" token that verifies too.

use crate::error::Reason;

const BAD: u8 = 0xff;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const TABLE: [u8; 256] = {
    let mut table = [BAD; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        table[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    table
};

/// A bit that no good group of four has.
const BAD_GROUP: u32 = 1 << 24;

/// What a character adds to the 24 bits of its group, by its place in it.
static GROUPS: [[u32; 256]; 4] = {
    let mut groups = [[BAD_GROUP; 256]; 4];
    let mut place = 0;
    while place < 4 {
        let mut byte = 0;
        while byte < 256 {
            if TABLE[byte] != BAD {
                groups[place][byte] = (TABLE[byte] as u32) << (18 - 6 * place);
            }
            byte += 1;
        }
        place += 1;
    }
    groups
};

/// Decodes `text`, or refuses it.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Reason> {
    let mut out = Vec::new();
    decode_into(text, &mut out)?;
    Ok(out)
}

/// Replaces the content of `out` with what `text` decodes to. After a refusal the content means nothing.
pub fn decode_into(text: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    out.clear();
    out.resize(decoded_len(text.len()), 0);
    decode_slice(text, out).map(|_| ())
}

/// Bytes that a canonical text of this length decodes to.
const fn decoded_len(text: usize) -> usize {
    text / 4 * 3 + text % 4 * 3 / 4
}

/// Decodes `text` into the beginning of `out` and returns how many bytes that are; refuses what does not fit too.
pub fn decode_slice(text: &[u8], out: &mut [u8]) -> Result<usize, Reason> {
    let length = decoded_len(text.len());
    let out = out.get_mut(..length).ok_or(Reason::InvalidBase64)?;
    let mut groups = text.chunks_exact(4);
    let mut triples = out.chunks_exact_mut(3);
    // One test at the end finds any bad character.
    let mut seen = 0;
    let [first, second, third, fourth] = &GROUPS;
    for (group, triple) in groups.by_ref().zip(triples.by_ref()) {
        let bits = first[usize::from(group[0])]
            | second[usize::from(group[1])]
            | third[usize::from(group[2])]
            | fourth[usize::from(group[3])];
        seen |= bits;
        triple.copy_from_slice(&bits.to_be_bytes()[1..]);
    }
    if seen & BAD_GROUP != 0 {
        return Err(Reason::InvalidBase64);
    }
    match (groups.remainder(), triples.into_remainder()) {
        ([], []) => {}
        (&[a, b], [first]) => {
            let [a, b] = [a, b].map(|byte| TABLE[byte as usize]);
            if (a | b) & 0xc0 != 0 || b & 0x0f != 0 {
                return Err(Reason::InvalidBase64);
            }
            *first = a << 2 | b >> 4;
        }
        (&[a, b, c], [first, second]) => {
            let [a, b, c] = [a, b, c].map(|byte| TABLE[byte as usize]);
            if (a | b | c) & 0xc0 != 0 || c & 0x03 != 0 {
                return Err(Reason::InvalidBase64);
            }
            (*first, *second) = (a << 2 | b >> 4, b << 4 | c >> 2);
        }
        _ => return Err(Reason::InvalidBase64),
    }
    Ok(length)
}

/// Encodes `bytes`, without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity((bytes.len() * 8).div_ceil(6));
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit.
    fn obvious(bytes: &[u8]) -> String {
        let bit = |place: usize| bytes.get(place / 8).map_or(0, |byte| usize::from(byte >> (7 - place % 8) & 1));
        let digit = |index: usize| (index * 6..index * 6 + 6).fold(0, |sum, place| sum * 2 + bit(place));
        (0..(bytes.len() * 8).div_ceil(6)).map(|index| ALPHABET[digit(index)] as char).collect()
    }

    proptest! {
        #[test]
        fn it_encodes_as_bit_by_bit(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(obvious(&bytes), encode(&bytes));
        }
    }

    #[test]
    fn a_second_spelling_is_refused() {
        assert_eq!(Ok(vec![0]), decode(b"AA"));
        for bad in [
            &b"AB"[..],
            b"A",
            b"AAAAA",
            b"AA==",
            b"AA=",
            b"A A",
            b"AA\n",
            b"AAB",
            b"AA+A",
            b"AA/A",
            b"AA.A",
            b"\xffAAA",
        ] {
            assert_eq!(Err(Reason::InvalidBase64), decode(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
            prop_assert_eq!(Ok(bytes.clone()), decode(encode(&bytes).as_bytes()));
        }

        #[test]
        fn an_accepted_text_is_the_only_one(text in "[A-Za-z0-9_=+/ -]{0,12}") {
            if let Ok(bytes) = decode(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
