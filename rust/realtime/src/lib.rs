//! The WebSocket side of FLX API: a listener with threads of its own, and the decisions of a handshake, which the ASGI
//! endpoint shares with it.
//!
//! Strategy: frames, deadlines and heads are read by pure parts ([`flx_core::ws`], [`wheel`], [`request`], [`handshake`],
//! [`extensions`]). A
//! [`listener`] moves their bytes and asks a [`service`] what to do; it knows nothing of topics or tokens.
#![deny(unsafe_code)]

mod connection;
pub mod deflate;
pub mod desk;
pub mod extensions;
pub mod handshake;
mod inbound;
pub mod listener;
pub mod outbox;
pub mod protocol;
pub mod request;
mod ring;
pub mod seat;
pub mod service;
pub mod sessions;
pub mod shared_hub;
mod stream;
pub mod tls;
pub mod wheel;
pub mod wire;
mod worker;
