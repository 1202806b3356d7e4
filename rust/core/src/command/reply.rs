//! `ReplyBatch` of `daemon.proto`, read without an object for it or its frames.
//!
//! Rules: the numbers are those of the contract, whose generated code is the judge in the tests; of a field that comes
//! twice the last one counts, and what is not known is passed over (proto3).

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;
const FRAMES: u64 = 1;

/// What is said of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Which command.
    pub seq: u64,
    /// The code of what is against it; empty: nothing.
    pub code: &'a str,
    /// JSON.
    pub result: &'a [u8],
    /// The execution that goes on; empty: it is over.
    pub accepted_id: &'a str,
    /// Whether it is the answer of an earlier request with the same key.
    pub replayed: bool,
    /// The whole frame, as it came.
    pub frame: &'a [u8],
}

/// What is no message of protobuf's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The frames of a batch.
///
/// # Errors
/// `Malformed`: it is none.
pub fn replies(batch: &[u8]) -> Result<Vec<Reply<'_>>, Malformed> {
    let mut found = Vec::new();
    let mut rest = batch;
    while !rest.is_empty() {
        if let (FRAMES, Value::Bytes(frame)) = field(&mut rest)? {
            found.push(reply(frame)?);
        }
    }
    Ok(found)
}

fn reply(frame: &[u8]) -> Result<Reply<'_>, Malformed> {
    let mut found = Reply { frame, ..Reply::default() };
    let mut rest = frame;
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Value::Number(seq)) => found.seq = seq,
            (2, Value::Bytes(code)) => found.code = text(code)?,
            (3, Value::Bytes(result)) => found.result = result,
            (5, Value::Bytes(id)) => found.accepted_id = text(id)?,
            (6, Value::Number(replayed)) => found.replayed = replayed != 0,
            _ => {}
        }
    }
    Ok(found)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Value<'a>), Malformed> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        VARINT => Value::Number(varint(rest)?),
        BYTES => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Malformed)?;
            Value::Bytes(taken(rest, length)?)
        }
        FIXED64 => taken(rest, 8).map(|_| Value::Other)?,
        FIXED32 => taken(rest, 4).map(|_| Value::Other)?,
        _ => return Err(Malformed),
    };
    if tag >> 3 == 0 { Err(Malformed) } else { Ok((tag >> 3, value)) }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    str::from_utf8(bytes).map_err(|_| Malformed)
}

fn taken<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_frame_by_frame() {
        let one = b"\x08\xac\x02\x1a\x02{}";
        let other = b"\x08\x01\x12\x01c\x22\x03{ }\x2a\x01x\x30\x01";
        let mut batch = vec![0x0a, one.len() as u8];
        batch.extend_from_slice(one);
        batch.extend_from_slice(&[0x0a, other.len() as u8]);
        batch.extend_from_slice(other);
        assert_eq!(
            Ok(vec![
                Reply { seq: 300, result: b"{}", frame: one, ..Reply::default() },
                Reply { seq: 1, code: "c", accepted_id: "x", replayed: true, frame: other, ..Reply::default() },
            ]),
            replies(&batch)
        );
        assert_eq!(Ok(vec![]), replies(b""));
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let frame = b"\x08\x05\x39--------\x3d----\x42\x01-\x48\x07";
        let mut batch = vec![0x10, 0x01, 0x0a, frame.len() as u8];
        batch.extend_from_slice(frame);
        assert_eq!(Ok(vec![Reply { seq: 5, frame, ..Reply::default() }]), replies(&batch));
    }

    #[test]
    fn what_ends_too_early_is_no_batch() {
        let whole = b"\x0a\x07\x08\xac\x02\x1a\x02{}";
        for end in 1..whole.len() {
            assert_eq!(Err(Malformed), replies(&whole[..end]), "{end}");
        }
        for wrong in [&b"\x0b"[..], b"\x00\x00", b"\x0a\x03\x12\x01\xff", b"\x0a\x03\x2a\x01\xff"] {
            assert_eq!(Err(Malformed), replies(wrong), "{wrong:?}");
        }
        assert_eq!(Err(Malformed), replies(&[0xff; 11]));
    }
}
