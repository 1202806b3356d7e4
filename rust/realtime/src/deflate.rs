//! Compressed messages (RFC 7692): made once for everybody who gets them, and inflated within bounds.
//!
//! Strategy: no message refers to another, so what compresses and what inflates belongs to a thread and not to a connection.
//! A frame that goes to many is compressed when the first of them gets it; until the turn is over the result lies beside it,
//! found by where its payload lies in memory, which it keeps there.
//!
//! Rules:
//! - what is short, or does not become shorter, goes out as it is;
//! - no more is inflated than a message may have, and a byte more tells that it has too much: what comes out is never larger,
//!   whatever came in;
//! - a message that ends within a block is refused: behind it and the four octets that its sender has left away (section
//!   7.2.2) comes a last block of our own, which must be understood as one.

use std::collections::HashMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use flx_core::ws::Violation;

use crate::extensions::WindowBits;
use crate::service::Message;
use crate::wire::Wire;

/// Bytes of a message that is worth it: in fewer there is little to find twice.
const LEAST_BYTES: usize = 256;
const LEVEL: u32 = 2;
/// What a sender leaves away: an empty block that aligns what was before to whole octets.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// An empty block that is the last.
const LAST: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];
/// Bytes that are kept for compressing; a longer message gives them back.
const KEPT_BYTES: usize = 256 * 1024;

/// What was compressed, as it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deflated {
    /// Frames that were compressed, each once.
    pub made: u64,
    /// Bytes of frames times connections that got them compressed.
    pub bytes: u64,
    /// The same as they were sent.
    pub sent_bytes: u64,
}

impl Deflated {
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            made: self.made + other.made,
            bytes: self.bytes + other.bytes,
            sent_bytes: self.sent_bytes + other.sent_bytes,
        }
    }
}

/// What a thread compresses with.
#[derive(Default)]
pub(crate) struct Deflater {
    by_window: [Option<Compress>; WindowBits::COUNT],
    out: Vec<u8>,
    /// Frames of this turn by the address of their payload, which they keep; without a shorter one where there is none.
    made: HashMap<(usize, u8, WindowBits), (Wire, Option<Wire>)>,
    pub(crate) counts: Deflated,
}

impl Deflater {
    /// A frame that others may get too, if it is worth it.
    pub(crate) fn shared(&mut self, wire: &Wire, window: WindowBits) -> Option<Wire> {
        wire.message().filter(|payload| payload.len() >= LEAST_BYTES)?;
        let (address, kind) = wire.identity();
        let key = (address, kind, window);
        if let Some((_, made)) = self.made.get(&key) {
            return made.clone();
        }
        let made = self.once(wire, window);
        self.made.insert(key, (wire.clone(), made.clone()));
        made
    }

    /// A frame for one connection, if it is worth it.
    pub(crate) fn once(&mut self, wire: &Wire, window: WindowBits) -> Option<Wire> {
        let payload = wire.message().filter(|payload| payload.len() >= LEAST_BYTES)?;
        let fresh = || Compress::new_with_window_bits(Compression::new(LEVEL), false, window.get());
        let compress = self.by_window[window.place()].get_or_insert_with(fresh);
        compress.reset();
        self.out.clear();
        self.out.reserve(payload.len());
        let status = compress.compress_vec(payload, &mut self.out, FlushCompress::Sync);
        self.counts.made += 1;
        // Where there was no room for all of it, it is not shorter.
        let is_whole = matches!(status, Ok(Status::Ok))
            && compress.total_in() == payload.len() as u64
            && self.out.len() < self.out.capacity();
        let deflated = self.out.strip_suffix(&TAIL).filter(|it| is_whole && it.len() < payload.len());
        let made = deflated.map(|deflated| wire.deflated(deflated));
        self.out.shrink_to(KEPT_BYTES);
        made
    }

    /// A frame was sent compressed.
    pub(crate) fn sent(&mut self, wire: &Wire, deflated: &Wire) {
        self.counts.bytes += wire.len() as u64;
        self.counts.sent_bytes += deflated.len() as u64;
    }

    /// The turn is over: what comes next are other frames.
    pub(crate) fn forget(&mut self) {
        self.made.clear();
    }
}

/// What a thread inflates with.
#[derive(Default)]
pub(crate) struct Inflater {
    inner: Option<Decompress>,
    out: Vec<u8>,
}

impl Inflater {
    /// What is in a compressed message: `bound` bytes at most.
    pub(crate) fn message(&mut self, is_text: bool, payload: &[u8], bound: usize) -> Result<Message<'_>, Violation> {
        let inflated = self.inflate(payload, bound)?;
        if is_text {
            return str::from_utf8(inflated).map(Message::Text).map_err(|_| Violation::Utf8);
        }
        Ok(Message::Binary(inflated))
    }

    fn inflate(&mut self, payload: &[u8], bound: usize) -> Result<&[u8], Violation> {
        let inner = self.inner.get_or_insert_with(|| Decompress::new(false));
        self.out.resize(bound + 1, 0);
        // A stream of blocks may end within a message, and another begin (section 7.2.3.4).
        let (mut len, mut is_over) = (0, true);
        for mut input in [payload, &TAIL, &LAST] {
            while !input.is_empty() {
                if std::mem::take(&mut is_over) {
                    inner.reset(false);
                }
                let (read, written) = (inner.total_in(), inner.total_out());
                let status = inner.decompress(input, &mut self.out[len..], FlushDecompress::None);
                let status = status.map_err(|_| Violation::Deflate)?;
                let taken = (inner.total_in() - read) as usize;
                len += (inner.total_out() - written) as usize;
                if len > bound {
                    return Err(Violation::TooLarge);
                }
                is_over = status == Status::StreamEnd;
                if taken == 0 && !is_over {
                    return Err(Violation::Deflate);
                }
                input = &input[taken..];
            }
        }
        if is_over { Ok(&self.out[..len]) } else { Err(Violation::Deflate) }
    }
}

#[cfg(test)]
mod tests;
