//! From bytes to messages (RFC 6455 sections 5.4 to 5.6 and 8.1).
//!
//! Strategy: what lies whole in the fed bytes is lent out of them; else the frame, the fragments before it and a torn head
//! are kept in a box, which is gone again with the message. After a violation or a Close nothing more is read.

use std::ops::Range;

use super::frame::{Head, MAX_HEAD, Opcode};
use super::utf8::{self, Utf8};
use super::{Close, Violation, mask};

/// How large a message may be, and whether it may be compressed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of a message, its fragments together.
    pub message_bytes: usize,
    /// Fragments of a message.
    pub fragments: u32,
    /// Whether messages may be compressed. Such a one is lent out as it came, and whoever inflates it holds it to the bound.
    pub deflate: bool,
}

impl Bounds {
    /// Bytes of a message as it comes: one that compression cannot shorten is a little longer than what is in it.
    const fn received_bytes(self, is_deflated: bool) -> usize {
        if is_deflated { self.message_bytes + self.message_bytes / 64 + 64 } else { self.message_bytes }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self { message_bytes: 65_536, fragments: 1024, deflate: false }
    }
}

/// What a client said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A whole message that is compressed, without the four octets at the end that say nothing (RFC 7692 section 7.2.1).
    Deflated {
        /// Whether text is in it.
        is_text: bool,
        /// What came.
        payload: &'a [u8],
    },
    /// To be answered with a Pong of the same payload.
    Ping(&'a [u8]),
    /// An answer, or a sign of life that nobody asked for.
    Pong(&'a [u8]),
    /// The last thing it says; to be answered with a Close, unless one was sent.
    Close(Close<'a>),
}

/// A frame whose payload has not come as a whole.
#[derive(Clone, Copy, Debug)]
struct Current {
    head: Head,
    taken: usize,
}

/// The message that fragments belong to.
#[derive(Debug, Default)]
struct Message {
    is_text: bool,
    is_deflated: bool,
    fragments: u32,
    bytes: Vec<u8>,
    utf8: Utf8,
}

/// What is torn.
#[derive(Debug, Default)]
struct Torn {
    head: [u8; MAX_HEAD],
    head_len: usize,
    current: Option<Current>,
    control: Vec<u8>,
    message: Option<Message>,
    /// What was lent out last; let go at the next call.
    lent: Option<Message>,
}

/// Where the payload of an event lies.
enum Place {
    /// In the fed bytes.
    Fed(Range<usize>),
    /// Collected, of a control frame.
    Control,
    /// Collected, of a message.
    Message,
}

/// What is whole.
struct Found {
    opcode: Opcode,
    is_deflated: bool,
    place: Place,
}

/// The state of one connection's inbound side.
#[derive(Debug, Default)]
pub struct Decoder {
    torn: Option<Box<Torn>>,
    is_over: bool,
}

impl Decoder {
    /// The next event in `bytes`; None when they are used up. `at` says how far they were read and is to be handed back
    /// unchanged; the bytes are unmasked in place. After a [`Violation`] or a Close, nothing follows.
    pub fn next<'a>(
        &'a mut self,
        bytes: &'a mut [u8],
        at: &mut usize,
        bounds: Bounds,
    ) -> Result<Option<Event<'a>>, Violation> {
        self.let_go();
        if self.is_over {
            *at = bytes.len();
            return Ok(None);
        }
        let found = self.step(bytes, at, bounds);
        let Self { torn, is_over } = self;
        let event = match found {
            Ok(Some(found)) => lend(torn.as_deref(), &found, bytes).map(Some),
            Ok(None) => Ok(None),
            Err(violation) => Err(violation),
        };
        *is_over = matches!(event, Err(_) | Ok(Some(Event::Close(_))));
        event
    }

    /// Whether nothing is kept of a frame or a message.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.torn.is_none()
    }

    /// Lets go of what was lent out at the last call.
    fn let_go(&mut self) {
        if let Some(torn) = &mut self.torn {
            torn.lent = None;
            if torn.current.is_none() {
                torn.control.clear();
            }
            if torn.is_idle() {
                self.torn = None;
            }
        }
    }

    fn step(&mut self, bytes: &mut [u8], at: &mut usize, bounds: Bounds) -> Result<Option<Found>, Violation> {
        loop {
            if let Some(torn) = &mut self.torn
                && torn.current.is_some()
            {
                let found = torn.collect(bytes, at)?;
                if found.is_some() || torn.current.is_some() {
                    return Ok(found);
                }
            }
            let Some(head) = self.head(&bytes[*at..], at, bounds.deflate)? else { return Ok(None) };
            let length = self.admit(&head, bounds)?;
            let is_alone = head.opcode.is_control() || (head.is_final && head.opcode != Opcode::Continuation);
            if is_alone && length <= bytes.len() - *at {
                let range = *at..*at + length;
                mask::apply(&mut bytes[range.clone()], head.mask, 0);
                *at = range.end;
                let Head { opcode, is_deflated, .. } = head;
                return Ok(Some(Found { opcode, is_deflated, place: Place::Fed(range) }));
            }
            let torn = self.torn.get_or_insert_default();
            torn.current = Some(Current { head, taken: 0 });
            if !head.opcode.is_control() {
                let message = torn.message.get_or_insert_default();
                message.is_text |= head.opcode == Opcode::Text;
                message.is_deflated |= head.is_deflated;
                message.fragments += 1;
            }
        }
    }

    /// The next head, put together where it is torn.
    fn head(&mut self, bytes: &[u8], at: &mut usize, deflate: bool) -> Result<Option<Head>, Violation> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let had = self.torn.as_ref().map_or(0, |torn| torn.head_len);
        if had == 0
            && let Some(head) = Head::parse(bytes, deflate)?
        {
            *at += head.size;
            return Ok(Some(head));
        }
        let torn = self.torn.get_or_insert_default();
        let end = MAX_HEAD.min(had + bytes.len());
        torn.head[had..end].copy_from_slice(&bytes[..end - had]);
        if let Some(head) = Head::parse(&torn.head[..end], deflate)? {
            torn.head_len = 0;
            *at += head.size - had;
            return Ok(Some(head));
        }
        torn.head_len = end;
        *at += end - had;
        Ok(None)
    }

    /// Whether this frame may follow what was there; the bytes of its payload.
    fn admit(&self, head: &Head, bounds: Bounds) -> Result<usize, Violation> {
        if head.opcode.is_control() {
            return Ok(head.length as usize);
        }
        let message = self.torn.as_ref().and_then(|torn| torn.message.as_ref());
        if message.is_some() != (head.opcode == Opcode::Continuation) {
            return Err(Violation::Sequence);
        }
        let (collected, fragments) = message.map_or((0, 0), |message| (message.bytes.len(), message.fragments));
        let is_deflated = message.map_or(head.is_deflated, |message| message.is_deflated);
        if head.length > (bounds.received_bytes(is_deflated) - collected) as u64 {
            return Err(Violation::TooLarge);
        }
        if fragments >= bounds.fragments {
            return Err(Violation::TooManyFragments);
        }
        Ok(head.length as usize)
    }
}

/// Turns the place of a payload into the payload.
fn lend<'a>(torn: Option<&'a Torn>, found: &Found, bytes: &'a [u8]) -> Result<Event<'a>, Violation> {
    let payload = match &found.place {
        Place::Fed(range) => &bytes[range.clone()],
        Place::Control => torn.map_or(&[][..], |torn| &torn.control),
        Place::Message => torn.and_then(|torn| torn.lent.as_ref()).map_or(&[][..], |message| &message.bytes),
    };
    if found.is_deflated {
        return Ok(Event::Deflated { is_text: found.opcode == Opcode::Text, payload });
    }
    Ok(match found.opcode {
        Opcode::Text => Event::Text(str::from_utf8(payload).map_err(|_| Violation::Utf8)?),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => Event::Close(Close::parse(payload)?),
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
    })
}

impl Torn {
    fn is_idle(&self) -> bool {
        self.head_len == 0 && self.current.is_none() && self.message.is_none()
    }

    /// Takes more of the current frame; what is whole with it.
    fn collect(&mut self, bytes: &mut [u8], at: &mut usize) -> Result<Option<Found>, Violation> {
        let Some(Current { head, taken }) = self.current else { return Ok(None) };
        let missing = head.length as usize - taken;
        let piece = &mut bytes[*at..];
        let end = missing.min(piece.len());
        let piece = &mut piece[..end];
        mask::apply(piece, head.mask, taken);
        *at += end;
        self.current = (end < missing).then_some(Current { head, taken: taken + end });
        if head.opcode.is_control() {
            self.control.extend_from_slice(piece);
            let found = Found { opcode: head.opcode, is_deflated: false, place: Place::Control };
            return Ok(self.current.is_none().then_some(found));
        }
        let Some(message) = &mut self.message else { return Ok(None) };
        if message.is_text && !message.is_deflated {
            message.utf8.feed(piece).map_err(|utf8::NotUtf8| Violation::Utf8)?;
        }
        message.bytes.extend_from_slice(piece);
        if self.current.is_some() || !head.is_final {
            return Ok(None);
        }
        if !message.utf8.is_whole() {
            return Err(Violation::Utf8);
        }
        let opcode = if message.is_text { Opcode::Text } else { Opcode::Binary };
        let is_deflated = message.is_deflated;
        self.lent = self.message.take();
        Ok(Some(Found { opcode, is_deflated, place: Place::Message }))
    }
}

#[cfg(test)]
mod tests;
