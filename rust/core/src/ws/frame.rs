//! Heads of frames (RFC 6455 section 5.2).

use super::Violation;

/// Bytes of the longest head: two, eight of length, four of mask.
pub const MAX_HEAD: usize = 14;
/// Bytes of the longest payload of a control frame.
pub const CONTROL_BYTES: usize = 125;
/// The bit of the first octet (RSV1) that says that a message is compressed.
pub const DEFLATED: u8 = 0x40;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of a message.
    Continuation = 0x0,
    /// UTF-8.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The end.
    Close = 0x8,
    /// Asks for a Pong.
    Ping = 0x9,
    /// Answers a Ping.
    Pong = 0xa,
}

impl Opcode {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte & 0x0f {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Whether it speaks of the connection, not of a message.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x08 != 0
    }
}

/// The head of a client's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether the message that begins with it is compressed (RFC 7692 section 6).
    pub is_deflated: bool,
    /// Whether the message ends with it.
    pub is_final: bool,
    /// What it is.
    pub opcode: Opcode,
    /// What its payload is masked with.
    pub mask: [u8; 4],
    /// Bytes of its payload.
    pub length: u64,
    /// Bytes of the head itself.
    pub size: usize,
}

impl Head {
    /// Reads the head at the beginning of `bytes`; None when it is not whole. What is there is refused as soon as it is seen.
    /// `deflate`: it was negotiated that messages may be compressed.
    pub fn parse(bytes: &[u8], deflate: bool) -> Result<Option<Self>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let is_deflated = first & DEFLATED != 0;
        if first & 0x30 != 0 || (is_deflated && !deflate) {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::of(first).ok_or(Violation::UnknownOpcode)?;
        if is_deflated && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(Violation::ReservedBits);
        }
        let is_final = first & 0x80 != 0;
        if opcode.is_control() && !is_final {
            return Err(Violation::Control);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(Violation::Unmasked);
        }
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES {
            return Err(Violation::Control);
        }
        let (length, least, after) = match short {
            126 => match bytes[2..].first_chunk::<2>() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 126, 4),
                None => return Ok(None),
            },
            127 => match bytes[2..].first_chunk::<8>() {
                Some(length) => (u64::from_be_bytes(*length), 1 << 16, 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 0, 2),
        };
        if length < least || length > i64::MAX as u64 {
            return Err(Violation::Length);
        }
        let mask = bytes[after..].first_chunk::<4>();
        Ok(mask.map(|&mask| Self { is_deflated, is_final, opcode, mask, length, size: after + 4 }))
    }
}

/// Bytes of the longest head of a server: no mask.
pub const MAX_SERVER_HEAD: usize = 10;

/// The head of a whole, unmasked frame, which a server sends, and its length.
#[must_use]
pub fn head(opcode: Opcode, length: usize) -> ([u8; MAX_SERVER_HEAD], usize) {
    let mut head = [0; MAX_SERVER_HEAD];
    head[0] = 0x80 | opcode as u8;
    let size = match length {
        0..=125 => {
            head[1] = length as u8;
            2
        }
        126..=0xffff => {
            head[1] = 126;
            head[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..].copy_from_slice(&(length as u64).to_be_bytes());
            MAX_SERVER_HEAD
        }
    };
    (head, size)
}

/// Appends it.
pub fn write_head(out: &mut Vec<u8>, opcode: Opcode, length: usize) {
    let (head, size) = head(opcode, length);
    out.extend_from_slice(&head[..size]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<Head>, Violation> {
        Head::parse(bytes, false)
    }

    #[test]
    fn lengths_have_three_sizes_and_each_its_own_range() {
        for (head, length) in [
            (&[0x82, 0x80][..], 0),
            (&[0x82, 0xfd], 125),
            (&[0x82, 0xfe, 0, 126], 126),
            (&[0x82, 0xfe, 0xff, 0xff], 0xffff),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0], 0x1_0000),
            (&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i64::MAX as u64),
        ] {
            let whole = [head, &[1, 2, 3, 4]].concat();
            for cut in 0..whole.len() {
                assert_eq!(Ok(None), parse(&whole[..cut]), "{cut} bytes of {whole:?}");
            }
            let (opcode, mask, size) = (Opcode::Binary, [1, 2, 3, 4], whole.len());
            let expected = Head { is_deflated: false, is_final: true, opcode, mask, length, size };
            assert_eq!(Ok(Some(expected)), parse(&whole));
        }
        for head in [
            &[0x82, 0xfe, 0, 125][..],
            &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Err(Violation::Length), parse(head));
        }
    }

    #[test]
    fn the_first_bytes_are_enough_to_refuse() {
        for bits in [0x40, 0x20, 0x10] {
            assert_eq!(Err(Violation::ReservedBits), parse(&[0x81 | bits]));
        }
        for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
            assert_eq!(Err(Violation::UnknownOpcode), parse(&[0x80 | opcode]));
        }
        for opcode in [8, 9, 0xa] {
            assert_eq!(Err(Violation::Control), parse(&[opcode]));
            assert_eq!(Err(Violation::Control), parse(&[0x80 | opcode, 0xfe]));
        }
        assert_eq!(Err(Violation::Unmasked), parse(&[0x81, 5]));
    }

    #[test]
    fn only_the_first_frame_of_a_message_says_that_it_is_compressed() {
        for first in [0xc1, 0xc2, 0x41, 0x42] {
            let head = Head::parse(&[first, 0x80, 1, 2, 3, 4], true).unwrap().unwrap();
            assert!(head.is_deflated && head.is_final == (first & 0x80 != 0));
            assert!(!Head::parse(&[first & !DEFLATED, 0x80, 1, 2, 3, 4], true).unwrap().unwrap().is_deflated);
        }
        for first in [0xc0, 0x40, 0xc8, 0xc9, 0xca, 0xa1, 0x91, 0xe1, 0xd1] {
            assert_eq!(Err(Violation::ReservedBits), Head::parse(&[first], true), "{first:x}");
        }
    }

    #[test]
    fn a_server_writes_lengths_in_the_fewest_bytes() {
        for (length, expected) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (0xffff, &[0x81, 126, 0xff, 0xff]),
            (0x1_0000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            write_head(&mut out, Opcode::Text, length);
            assert_eq!(expected, out);
        }
    }
}
