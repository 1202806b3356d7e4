//! What the WebSocket programs of the benchmarks are made of: the frames, what servers say, and who judges it.

pub mod ages;
pub mod client;
pub mod dialect;
pub mod judge;
pub mod returning;
pub mod stream;
pub mod websocket;
