//! UTF-8 (RFC 3629) that comes in pieces which end anywhere, also within a character.
//!
//! Strategy: the standard library judges each piece; of a character that is torn, its first bytes are kept and judged with
//! those that follow. The library tells an end that came too early from bytes that can never be right.

/// What was seen so far is UTF-8, but for a character that may not be whole yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8 {
    torn: [u8; 4],
    len: u8,
}

/// Nothing that may follow makes it UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8 {
    /// Takes in the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while self.len > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(()) };
            piece = rest;
            self.torn[usize::from(self.len)] = byte;
            self.len += 1;
            match str::from_utf8(&self.torn[..usize::from(self.len)]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return Err(NotUtf8),
                Err(_) => {}
            }
        }
        if let Err(error) = str::from_utf8(piece) {
            let tail = &piece[error.valid_up_to()..];
            // Of a character that is not whole there are three bytes at most.
            if error.error_len().is_some() || tail.len() > 3 {
                return Err(NotUtf8);
            }
            self.torn[..tail.len()].copy_from_slice(tail);
            self.len = tail.len() as u8;
        }
        Ok(())
    }

    /// Whether it may end here: no character is torn.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Octet by octet, the way the grammar of RFC 3629 section 4 reads: what may follow what.
    fn by_the_grammar(text: &[u8]) -> Result<bool, NotUtf8> {
        let mut expected: Vec<(u8, u8)> = Vec::new();
        for &byte in text {
            if let Some((low, high)) = expected.pop() {
                if !(low..=high).contains(&byte) {
                    return Err(NotUtf8);
                }
                continue;
            }
            let tail = (0x80, 0xbf);
            expected = match byte {
                0x00..=0x7f => vec![],
                0xc2..=0xdf => vec![tail],
                0xe0 => vec![tail, (0xa0, 0xbf)],
                0xe1..=0xec | 0xee..=0xef => vec![tail, tail],
                0xed => vec![tail, (0x80, 0x9f)],
                0xf0 => vec![tail, tail, (0x90, 0xbf)],
                0xf1..=0xf3 => vec![tail, tail, tail],
                0xf4 => vec![tail, tail, (0x80, 0x8f)],
                _ => return Err(NotUtf8),
            };
        }
        Ok(expected.is_empty())
    }

    fn in_pieces(text: &[u8], size: usize) -> Result<bool, NotUtf8> {
        let mut seen = Utf8::default();
        for piece in text.chunks(size) {
            seen.feed(piece)?;
        }
        Ok(seen.is_whole())
    }

    /// Bytes that are nearly UTF-8: characters, with some of their bytes changed or missing.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        ("\\PC{0,12}", prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..3))
            .prop_map(|(text, slips)| {
                let mut bytes = text.into_bytes();
                for (at, byte, is_gone) in slips {
                    if bytes.is_empty() {
                        break;
                    }
                    let at = at.index(bytes.len());
                    if is_gone {
                        bytes.remove(at);
                    } else {
                        bytes[at] = byte;
                    }
                }
                bytes
            })
    }

    #[test]
    fn what_can_never_be_right_is_refused_at_its_first_byte_too_many() {
        for (text, refused_at) in [
            (&b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"[..], 7),
            (b"\xf4\x90", 2),
            (b"\xc0\xaf", 1),
            (b"\xe0\x80", 2),
            (b"\xff", 1),
            (b"a\x80", 2),
        ] {
            let mut seen = Utf8::default();
            let taken = text.iter().take_while(|&&byte| seen.feed(&[byte]).is_ok()).count();
            assert_eq!(refused_at, taken + 1, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_judged_as_the_grammar_judges_the_whole(text in nearly(), size in 1_usize..9) {
            prop_assert_eq!(by_the_grammar(&text), in_pieces(&text, size));
        }

        #[test]
        fn the_grammar_is_that_of_the_standard_library(text in nearly()) {
            prop_assert_eq!(str::from_utf8(&text).is_ok(), by_the_grammar(&text) == Ok(true));
        }
    }
}
