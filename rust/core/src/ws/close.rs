//! Close codes and the payload of a Close frame (RFC 6455 sections 5.5.1 and 7.4).

use super::Violation;
use super::frame::{self, CONTROL_BYTES, Opcode};

/// The codes that this side gives; those from 4000 on are ours, by the HTTP status they resemble. Python's list of them
/// (`flx_api.websocket.close_codes`) is held to be the same by its test.
pub mod code {
    /// It was done: the answer to a client's own.
    pub const NORMAL: u16 = 1000;
    /// A frame that may not be.
    pub const PROTOCOL: u16 = 1002;
    /// In place of a code, where a Close frame has none; never sent.
    pub const NONE: u16 = 1005;
    /// Text that is not UTF-8, or what cannot be inflated.
    pub const INVALID_PAYLOAD: u16 = 1007;
    /// Too often what is not acceptable.
    pub const POLICY: u16 = 1008;
    /// A message of more bytes than are taken.
    pub const TOO_LARGE: u16 = 1009;
    /// Something broke on this side.
    pub const INTERNAL: u16 = 1011;
    /// The server restarts (IANA's registry of close codes).
    pub const RESTARTING: u16 = 1012;
    /// The token has ended.
    pub const TOKEN_ENDED: u16 = 4401;
    /// Somebody who runs the service has ended it.
    pub const NOT_ALLOWED: u16 = 4403;
    /// Not fast enough; come back and resume.
    pub const TOO_SLOW: u16 = 4408;
    /// There is no room.
    pub const TOO_MANY: u16 = 4429;

    /// All of them, and what a Close frame says when there is nothing more exact to say.
    pub const REASONS: [(u16, &str); 12] = [
        (NORMAL, "bye"),
        (PROTOCOL, "a frame that may not be"),
        (NONE, "the peer went away"),
        (INVALID_PAYLOAD, "text that is not UTF-8"),
        (POLICY, "too many messages that are not acceptable"),
        (TOO_LARGE, "a message is longer than 64 KiB"),
        (INTERNAL, "something broke on our side"),
        (RESTARTING, "restarting; come back and resume"),
        (TOKEN_ENDED, "the token has ended"),
        (NOT_ALLOWED, "no longer allowed"),
        (TOO_SLOW, "too slow; come back and resume"),
        (TOO_MANY, "too many connections"),
    ];

    /// What a Close frame with this code says.
    #[must_use]
    pub fn reason(code: u16) -> &'static str {
        REASONS.iter().find(|(known, _)| *known == code).map_or("", |(_, reason)| reason)
    }
}

/// What a Close frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    /// Why; [`code::NONE`] when the frame does not say.
    pub code: u16,
    /// The same in words.
    pub reason: &'a str,
}

impl<'a> Close<'a> {
    /// Reads the payload of a Close frame.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Violation> {
        match payload {
            [] => Ok(Self { code: code::NONE, reason: "" }),
            [_] => Err(Violation::CloseCode),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !may_be_sent(code) {
                    return Err(Violation::CloseCode);
                }
                let reason = str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
                Ok(Self { code, reason })
            }
        }
    }

    /// Appends the whole frame. A reason that is too long is cut between two characters; a code that may not be sent is left
    /// away, and the reason with it.
    pub fn write(&self, out: &mut Vec<u8>) {
        if !may_be_sent(self.code) {
            frame::write_head(out, Opcode::Close, 0);
            return;
        }
        let mut end = self.reason.len().min(CONTROL_BYTES - 2);
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = &self.reason[..end];
        frame::write_head(out, Opcode::Close, reason.len() + 2);
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(reason.as_bytes());
    }
}

/// Whether a Close frame may carry this code: those that are defined and meant for the wire, and those of libraries and
/// applications (section 7.4.2).
#[must_use]
pub const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_are_for_programs_only_are_not_for_the_wire() {
        for good in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            assert!(may_be_sent(good), "{good}");
        }
        for bad in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert!(!may_be_sent(bad), "{bad}");
        }
    }

    #[test]
    fn every_reason_fits_a_frame() {
        for (code, reason) in code::REASONS {
            assert!(reason.len() <= CONTROL_BYTES - 2 && reason == code::reason(code), "{code}");
        }
        assert_eq!("", code::reason(4999));
    }

    #[test]
    fn a_payload_is_nothing_or_a_code_and_a_reason() {
        assert_eq!(Ok(Close { code: code::NONE, reason: "" }), Close::parse(b""));
        assert_eq!(Ok(Close { code: 1000, reason: "" }), Close::parse(b"\x03\xe8"));
        assert_eq!(Ok(Close { code: 4408, reason: "é" }), Close::parse(b"\x11\x38\xc3\xa9"));
        assert_eq!(Err(Violation::CloseCode), Close::parse(b"\x03"));
        assert_eq!(Err(Violation::CloseCode), Close::parse(b"\x03\xed"));
        assert_eq!(Err(Violation::Utf8), Close::parse(b"\x03\xe8\xff"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = "é".repeat(80);
        for (code, reason, expected) in
            [(1000, "", ""), (1012, "restarting", "restarting"), (4408, &long, &long[..122]), (code::NONE, "x", "")]
        {
            let mut frame = Vec::new();
            Close { code, reason }.write(&mut frame);
            assert_eq!([0x88, (frame.len() - 2) as u8], frame[..2]);
            assert_eq!(Ok(Close { code, reason: expected }), Close::parse(&frame[2..]));
        }
    }
}
