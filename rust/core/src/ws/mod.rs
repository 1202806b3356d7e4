//! WebSocket framing (RFC 6455), the server's side: bytes of a client become messages, messages become frames.
//!
//! Strategy: a [`Decoder`] is fed what a socket gave, in pieces of any size, and is asked for the next [`Event`]. A message
//! that lies whole in the piece is unmasked where it lies and lent out; only what is torn is collected, and what is not
//! torn costs a connection one pointer. What may not be is a [`Violation`], which knows the close code to answer with.
//!
//! Rules (a client's slip ends its connection, section 7.1.7; nothing is repaired):
//! - reserved bits are zero (5.2), but for the one that says that a message is compressed, on its first frame, where that was
//!   negotiated (RFC 7692); frames of a client are masked (5.1); lengths are written in the fewest bytes (5.2); control frames
//!   have 125 bytes at most and are whole (5.5);
//! - text is UTF-8, and what cannot become UTF-8 any more is refused as soon as it is seen, not at the message's end (8.1);
//! - a message has a bound in bytes and in fragments, and its head is enough to refuse it.
//!
//! - [`frame`]: heads of frames, and the frames a server sends
//! - [`mask`]: the XOR of section 5.3
//! - [`utf8`]: UTF-8 in pieces
//! - [`close`]: close codes and the payload of a Close frame
//! - [`decoder`]: from bytes to messages

pub mod close;
pub mod decoder;
pub mod frame;
pub mod mask;
pub mod utf8;

pub use close::Close;
pub use decoder::{Bounds, Decoder, Event};
pub use frame::Opcode;

use close::code;

/// What a client may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A reserved bit is set that no extension gave a meaning here.
    ReservedBits,
    /// An opcode that is not defined.
    UnknownOpcode,
    /// A client's frame without a mask.
    Unmasked,
    /// A length in more bytes than it needs, or of more than 63 bits.
    Length,
    /// A control frame that is a fragment or has more than 125 bytes.
    Control,
    /// A continuation of nothing, or a new message before the last one ended.
    Sequence,
    /// A Close frame whose payload is one byte, or whose code may not be sent.
    CloseCode,
    /// Text, or a reason to close, that is not UTF-8.
    Utf8,
    /// A message of more bytes than are taken.
    TooLarge,
    /// A message in more fragments than are taken.
    TooManyFragments,
    /// A message that says it is compressed, and is not.
    Deflate,
}

impl Violation {
    /// The close code that says so (section 7.4.1).
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Utf8 | Self::Deflate => code::INVALID_PAYLOAD,
            Self::TooLarge => code::TOO_LARGE,
            Self::TooManyFragments => code::POLICY,
            _ => code::PROTOCOL,
        }
    }

    /// What is wrong, for the Close frame; at most 123 bytes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "a reserved bit is set",
            Self::UnknownOpcode => "an opcode that is not defined",
            Self::Unmasked => "a frame without a mask",
            Self::Length => "a length that is not written in the fewest bytes",
            Self::Control => "a control frame that is too long or a fragment",
            Self::Sequence => "a fragment out of order",
            Self::CloseCode => "a close code that may not be sent",
            Self::Utf8 => "text that is not UTF-8",
            Self::TooLarge => "a message is longer than 64 KiB",
            Self::TooManyFragments => "a message in too many fragments",
            Self::Deflate => "a message that cannot be inflated",
        }
    }
}
