//! `CommandFrame` and `CommandBatch` of `daemon.proto`, written without an object for either.
//!
//! Rules: the numbers are those of the contract, whose generated code is the judge in the tests; a field that has its
//! default is not written (proto3); a frame's `seq` is known last, so it is put before the rest when the frame leaves.

use crate::admission::Principal;

const VARINT: u8 = 0;
const BYTES: u8 = 2;
/// `CommandBatch.frames`
const FRAMES: u8 = 1;

/// What a frame says, but for its `seq`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame<'a> {
    /// The name of the command.
    pub command: &'a str,
    /// A JSON object.
    pub args: &'a str,
    /// Who asks; nobody for a public command.
    pub principal: Option<&'a Principal>,
    /// Empty: none.
    pub idempotency_key: &'a str,
    /// Milliseconds since 1970; 0: none.
    pub deadline_unix_ms: u64,
    /// The request's.
    pub request_id: &'a str,
    /// Empty: none.
    pub traceparent: &'a str,
    /// Empty: the project's default.
    pub environment: &'a str,
    /// Where the request comes from.
    pub client_address: &'a str,
}

impl Frame<'_> {
    /// The message, but for its `seq`.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.args.len());
        self.put_operation(&mut out);
        self.put_request(&mut out);
        out
    }

    /// Appends what it says of its command.
    pub fn put_operation(&self, out: &mut Vec<u8>) {
        text(out, 2, self.command);
        text(out, 3, self.args);
        text(out, 5, self.idempotency_key);
        number(out, 6, self.deadline_unix_ms);
        text(out, 9, self.environment);
    }

    /// Appends what it says of its request, which is the same for all commands of one.
    pub fn put_request(&self, out: &mut Vec<u8>) {
        if let Some(principal) = self.principal {
            let inner = encoded(principal);
            tag(out, 4, BYTES);
            varint(out, inner.len() as u64);
            out.extend_from_slice(&inner);
        }
        text(out, 7, self.request_id);
        text(out, 8, self.traceparent);
        text(out, 12, self.client_address);
    }
}

/// Appends one frame to a batch: with a `seq`, unless that is 0, before what else it says.
pub fn join(batch: &mut Vec<u8>, seq: u64, frame: &[u8]) {
    tag(batch, FRAMES, BYTES);
    let own = if seq == 0 { 0 } else { 1 + varint_len(seq) };
    varint(batch, (own + frame.len()) as u64);
    number(batch, 1, seq);
    batch.extend_from_slice(frame);
}

/// A frame by itself, with its `seq`.
#[must_use]
pub fn whole(seq: u64, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(11 + frame.len());
    number(&mut out, 1, seq);
    out.extend_from_slice(frame);
    out
}

fn encoded(principal: &Principal) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    text(&mut out, 1, &principal.subject);
    text(&mut out, 2, principal.tenant.as_deref().unwrap_or_default());
    for role in &principal.roles {
        // One of many is written even when it is empty.
        bytes(&mut out, 3, role.as_bytes());
    }
    text(&mut out, 4, principal.token_id.as_deref().unwrap_or_default());
    text(&mut out, 5, principal.session.as_deref().unwrap_or_default());
    number(&mut out, 6, principal.expires_at.max(0).unsigned_abs());
    out
}

fn tag(out: &mut Vec<u8>, field: u8, kind: u8) {
    out.push(field << 3 | kind);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        tag(out, field, VARINT);
        varint(out, value);
    }
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    tag(out, field, BYTES);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn text(out: &mut Vec<u8>, field: u8, value: &str) {
    if !value.is_empty() {
        bytes(out, field, value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_its_frames_each_after_its_length() {
        let frame = Frame { command: "a.b", args: "{}", ..Frame::default() }.encoded();
        assert_eq!(b"\x12\x03a.b\x1a\x02{}".to_vec(), frame);
        let mut batch = Vec::new();
        join(&mut batch, 0, &frame);
        join(&mut batch, 300, &frame);
        assert_eq!(b"\x0a\x09\x12\x03a.b\x1a\x02{}\x0a\x0c\x08\xac\x02\x12\x03a.b\x1a\x02{}".to_vec(), batch);
        assert_eq!(b"\x08\xac\x02\x12\x03a.b\x1a\x02{}".to_vec(), whole(300, &frame));
    }

    #[test]
    fn a_number_is_as_long_as_it_is_said_to_be() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(varint_len(value), out.len(), "{value}");
        }
    }
}
