//! The lane: HTTP/1.1, HTTP/2 and WebSockets on a thread of its own, before Python.
//!
//! Strategy: hyper moves the bytes, a [`Service`](service::Service) decides by the head of a request, in the same thread and
//! at once. What is not answered there gets a [`Call`](call::Call), which travels to whoever answers it, in any thread; all
//! answers that are given together wake the lane once.
//!
//! Rules:
//! - the thread of the lane waits for nothing but its sockets;
//! - a body is whole, and within its limit, before anybody is asked about it;
//! - a call that is dropped without an answer ends its connection: nobody takes half an answer for a whole one.

pub mod body;
pub mod call;
mod connections;
pub mod server;
pub mod service;
pub mod socket;
mod wire;
