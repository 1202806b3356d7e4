//! As much of RFC 6455 as a load client and a bare sender need: heads of frames, masking, the two halves of the upgrade.
//!
//! Rules:
//! - Pure: bytes in, values out.
//! - A server's frames are unmasked, whole and at most `MOST` long; anything else is `Malformed`, not guessed.

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// Longer frames are taken for a loss of framing.
pub const MOST: usize = 16 * 1024 * 1024;
/// Opcodes (RFC 6455, 5.2).
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A client's masks need not be unpredictable here: there is no proxy on the loopback that they would protect.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What was read is no frame that a peer may send; says why.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The head of a frame: its opcode, where its payload begins and where it ends.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Head {
    pub opcode: u8,
    pub start: usize,
    pub end: usize,
    pub mask: Option<[u8; 4]>,
}

/// The head of the frame at the beginning of `bytes`; None when it is not all there yet.
///
/// # Errors
/// It is fragmented, uses reserved bits, or is longer than `MOST`.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0x80 == 0 || first & 0x0f == 0 {
        return Err(Malformed("a fragmented message"));
    }
    if first & 0x70 != 0 {
        return Err(Malformed("reserved bits"));
    }
    let (mut start, length) = match second & 0x7f {
        126 => match bytes.get(2..4) {
            Some(two) => (4, usize::from(u16::from_be_bytes([two[0], two[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|eight| eight.try_into().ok()) {
            Some(eight) => (10, usize::try_from(u64::from_be_bytes(eight)).unwrap_or(usize::MAX)),
            None => return Ok(None),
        },
        short => (2, usize::from(short)),
    };
    if length > MOST {
        return Err(Malformed("a frame without end"));
    }
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(mask) = bytes.get(start..start + 4).and_then(|four| four.try_into().ok()) else { return Ok(None) };
        start += 4;
        Some(mask)
    };
    Ok(Some(Head { opcode: first & 0x0f, start, end: start + length, mask }))
}

/// The head of a server's frame.
pub fn server_head(opcode: u8, length: usize, out: &mut Vec<u8>) {
    push_head(opcode, length, 0, out);
}

/// A client's frame, masked.
#[must_use]
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    push_head(opcode, payload.len(), 0x80, &mut out);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Take the mask off.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

#[allow(clippy::cast_possible_truncation)]
fn push_head(opcode: u8, length: usize, masked: u8, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    if length < 126 {
        out.push(masked | length as u8);
    } else if let Ok(short) = u16::try_from(length) {
        out.push(masked | 126);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// The request of an upgrade; `headers` are whole lines with their ends.
#[must_use]
pub fn upgrade_request(host: &str, path: &str, headers: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
    .into_bytes()
}

/// What answers a key (RFC 6455, 4.2.2).
#[must_use]
pub fn accept_of(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// The value of a header in a head of HTTP/1.1.
#[must_use]
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Where a head of HTTP/1.1 ends; None when it is not all there yet.
#[must_use]
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_any_length_is_read_as_it_was_written_and_not_before_it_is_whole() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut server = Vec::new();
            server_head(TEXT, length, &mut server);
            let start = server.len();
            server.extend_from_slice(&payload);
            assert_eq!(head(&server), Ok(Some(Head { opcode: TEXT, start, end: start + length, mask: None })));
            for cut in 0..start {
                assert_eq!(head(&server[..cut]), Ok(None));
            }
            let mut client = client_frame(TEXT, &payload);
            let found = head(&client).unwrap().unwrap();
            assert_eq!(found.end, client.len());
            unmask(&mut client[found.start..], found.mask.unwrap());
            assert_eq!(client[found.start..], payload);
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_malformed() {
        assert!(head(&[0x01, 0x00]).is_err(), "not final");
        assert!(head(&[0x80, 0x00]).is_err(), "a continuation");
        assert!(head(&[0xc1, 0x00]).is_err(), "a reserved bit");
        assert!(head(&[0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0]).is_err(), "a terabyte");
    }

    #[test]
    fn the_key_of_the_rfc_has_the_answer_of_the_rfc() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
