//! The WebSocket side of FLX API.
//!
//! For now the decisions of a handshake, which the ASGI endpoint and the native listener share; the listener itself
//! follows.
#![deny(unsafe_code)]

pub mod handshake;
pub mod request;
pub mod wheel;
