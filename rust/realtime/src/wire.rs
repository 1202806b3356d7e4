//! What goes to a socket: bytes that are made once and shared by all who get them.
//!
//! Strategy: the payload of a frame is not copied to stand behind its head; the two are written together.

use std::sync::Arc;

use flx_core::hub::position::quote;
use flx_core::hub::stream_event;
use flx_core::ws::frame::{DEFLATED, MAX_SERVER_HEAD};
use flx_core::ws::{Close, Opcode, frame};

/// The first octets of whole messages.
const TEXT: u8 = 0x80 | Opcode::Text as u8;
const BINARY: u8 = 0x80 | Opcode::Binary as u8;

/// A whole frame, head and payload.
#[derive(Clone, Debug)]
pub struct Wire {
    head: [u8; MAX_SERVER_HEAD],
    head_len: u8,
    payload: Arc<[u8]>,
}

impl Wire {
    /// A text message. The payload must be UTF-8; that of a JSON encoder is.
    #[must_use]
    pub fn text(payload: impl Into<Arc<[u8]>>) -> Self {
        Self::frame(Opcode::Text, payload)
    }

    /// A binary message.
    #[must_use]
    pub fn binary(payload: impl Into<Arc<[u8]>>) -> Self {
        Self::frame(Opcode::Binary, payload)
    }

    pub(crate) fn frame(opcode: Opcode, payload: impl Into<Arc<[u8]>>) -> Self {
        let payload = payload.into();
        let (head, head_len) = frame::head(opcode, payload.len());
        Self { head, head_len: head_len as u8, payload }
    }

    pub(crate) fn close(code: u16, reason: &str) -> Self {
        let mut bytes = Vec::new();
        Close { code, reason }.write(&mut bytes);
        Self::raw(bytes)
    }

    /// A piece of a stream of events: a chunk of HTTP/1.1 (RFC 9112 section 7.1), around what the hub has made for it.
    #[must_use]
    pub fn chunk(payload: &[u8]) -> Self {
        Self::raw(in_chunk(payload))
    }

    /// The last event of a stream, and the end of its chunks: who gets this was not cut off.
    pub(crate) fn farewell(code: u16, reason: &str) -> Self {
        let mut json = format!(r#"{{"type":"closed","code":{code},"reason":"#);
        quote(reason, &mut json);
        json.push('}');
        let mut bytes = in_chunk(&stream_event("closed", &json, None));
        bytes.extend_from_slice(b"0\r\n\r\n");
        Self::raw(bytes)
    }

    /// Bytes that are no frame, or a whole one: the answer to a handshake.
    pub(crate) fn raw(bytes: Vec<u8>) -> Self {
        Self { head: [0; MAX_SERVER_HEAD], head_len: 0, payload: bytes.into() }
    }

    /// Several in one piece.
    #[must_use]
    pub fn joined(wires: &[Self]) -> Self {
        Self::raw(wires.iter().flat_map(|wire| wire.rest(0)).collect::<Vec<_>>().concat())
    }

    /// The same message, compressed to this (RFC 7692 section 7.2.1).
    pub(crate) fn deflated(&self, payload: &[u8]) -> Self {
        let opcode = if self.head[0] == BINARY { Opcode::Binary } else { Opcode::Text };
        let mut wire = Self::frame(opcode, payload);
        wire.head[0] |= DEFLATED;
        wire
    }

    /// The payload, where it is a message that is not compressed.
    pub(crate) fn message(&self) -> Option<&[u8]> {
        (self.head_len > 0 && matches!(self.head[0], TEXT | BINARY)).then_some(&self.payload)
    }

    /// What no other message has for as long as this one is there: where the payload lies, and what it is.
    pub(crate) fn identity(&self) -> (usize, u8) {
        (self.payload.as_ptr().addr(), self.head[0])
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload.len()
    }

    /// What follows its first `offset` bytes.
    pub(crate) fn rest(&self, offset: usize) -> [&[u8]; 2] {
        let head = &self.head[..usize::from(self.head_len)];
        let payload = &self.payload[offset.saturating_sub(head.len()).min(self.payload.len())..];
        [&head[offset.min(head.len())..], payload]
    }
}

/// Frames that go out together, and the same in one piece.
#[derive(Clone, Debug)]
pub enum Bundle {
    /// Mostly it is one.
    One(Wire),
    /// Several, and the piece.
    Many(Vec<Wire>, Wire),
}

impl Bundle {
    /// Of these frames.
    #[must_use]
    pub fn of(mut wires: impl ExactSizeIterator<Item = Wire>) -> Self {
        if wires.len() == 1
            && let Some(only) = wires.next()
        {
            return Self::One(only);
        }
        let wires: Vec<_> = wires.collect();
        let whole = Wire::joined(&wires);
        Self::Many(wires, whole)
    }

    pub(crate) fn wires(&self) -> &[Wire] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(wires, _) => wires,
        }
    }

    pub(crate) fn whole(&self) -> &Wire {
        match self {
            Self::One(whole) | Self::Many(_, whole) => whole,
        }
    }
}

/// Bytes of different bundles that are made before any of them is sent.
const PART_BYTES: usize = 1 << 20;

/// The bundles of the first of these, and which of them is each one's: of at least one, and of no more than come to
/// [`PART_BYTES`] and one bundle. Neighbours that get the same share it.
pub(crate) fn bundled<T>(
    all: &[T],
    is_same: impl Fn(&T, &T) -> bool,
    make: impl Fn(&T) -> Bundle,
) -> (Vec<Bundle>, Vec<usize>) {
    let (mut bundles, mut which, mut bytes): (Vec<Bundle>, _, _) = (Vec::new(), Vec::with_capacity(all.len()), 0);
    for (at, one) in all.iter().enumerate() {
        if at == 0 || !is_same(&all[at - 1], one) {
            if bytes >= PART_BYTES {
                break;
            }
            let bundle = make(one);
            bytes += bundle.whole().len();
            bundles.push(bundle);
        }
        which.push(bundles.len() - 1);
    }
    (bundles, which)
}

fn in_chunk(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:x}\r\n", payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The twin is the frame in one piece.
    #[test]
    fn what_is_left_of_a_frame_is_the_same_wherever_it_is_torn() {
        for length in [0, 1, 125, 126, 70_000] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let mut whole = Vec::new();
            frame::write_head(&mut whole, Opcode::Text, payload.len());
            whole.extend_from_slice(&payload);
            let wire = Wire::text(payload);
            assert_eq!(whole.len(), wire.len());
            for offset in (0..whole.len().min(20)).chain([whole.len()]) {
                assert_eq!(whole[offset..], wire.rest(offset).concat(), "{length} from {offset}");
            }
        }
        let raw = Wire::raw(b"HTTP".to_vec());
        assert_eq!((4, b"TP".to_vec()), (raw.len(), raw.rest(2).concat()));
    }
    #[test]
    fn bundles_are_made_in_parts_of_bounded_size() {
        let of = |number: &usize| Bundle::of([0, 1].map(|_| Wire::text(vec![*number as u8; 150_000])).into_iter());
        // Ten that differ, each for two neighbours, and one more of the last.
        let all: Vec<usize> = (0..20).map(|at| at / 2).chain([9]).collect();
        let (mut left, mut parts) = (&all[..], 0);
        while !left.is_empty() {
            let (bundles, which) = bundled(left, |one, other| one == other, of);
            assert!(bundles.iter().map(|it| it.whole().len()).sum::<usize>() < PART_BYTES + 301_000);
            for (number, at) in left.iter().zip(&which) {
                assert_eq!(*number as u8, bundles[*at].wires()[0].rest(20).concat()[0]);
            }
            assert_eq!(left[..which.len()].iter().collect::<std::collections::BTreeSet<_>>().len(), bundles.len());
            left = &left[which.len()..];
            parts += 1;
        }
        assert_eq!(3, parts);
    }
}
