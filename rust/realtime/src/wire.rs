//! What goes to a socket: bytes that are made once and shared by all who get them.

use std::sync::Arc;

use flx_core::ws::{Close, Opcode, frame};

/// A whole frame, head and payload.
#[derive(Clone, Debug)]
pub struct Wire(Arc<[u8]>);

impl Wire {
    /// A text message. The payload must be UTF-8; that of a JSON encoder is.
    #[must_use]
    pub fn text(payload: &[u8]) -> Self {
        Self::frame(Opcode::Text, payload)
    }

    /// A binary message.
    #[must_use]
    pub fn binary(payload: &[u8]) -> Self {
        Self::frame(Opcode::Binary, payload)
    }

    pub(crate) fn frame(opcode: Opcode, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(payload.len() + 10);
        frame::write_head(&mut bytes, opcode, payload.len());
        bytes.extend_from_slice(payload);
        Self(bytes.into())
    }

    pub(crate) fn close(code: u16, reason: &str) -> Self {
        let mut bytes = Vec::new();
        Close { code, reason }.write(&mut bytes);
        Self(bytes.into())
    }

    /// Bytes that are no frame: the answer to a handshake.
    pub(crate) fn raw(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
