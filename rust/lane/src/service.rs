//! What a lane serves.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use http::request::Parts;

use crate::body::Fault;
use crate::call::Call;
use crate::socket::{Handshake, Message};

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// Whether the connection is one of TLS.
    pub is_secure: bool,
}

/// What becomes of a request by its head.
#[derive(Debug)]
pub enum Verdict<S> {
    /// It is answered, whatever its body is.
    Answer(Response<Bytes>),
    /// It is to be answered by a call.
    Go {
        /// What was found out about it.
        seen: S,
        /// The most its body may have; none: what there is of it is nobody's business, and nobody waits for it.
        limit: Option<u64>,
    },
}

/// What somebody who answers a call, or talks to a socket, wants to know.
#[derive(Debug)]
pub enum Told {
    /// The client is gone.
    Gone,
    /// There is room for more of the answer, or of what a socket is sent.
    Room,
    /// A socket has said something.
    Message(Message),
}

/// What a lane serves. Everything is called in its thread, and must not wait.
pub trait Service: Send + Sync + 'static {
    /// What was found out about a request by its head.
    type Seen: Send + 'static;

    /// Decides about a request by its head.
    fn head(&self, head: &Parts, peer: Peer) -> Verdict<Self::Seen>;

    /// A request is there, with its body or with what is wrong with that.
    fn request(&self, seen: Self::Seen, head: Parts, peer: Peer, body: Result<Bytes, Fault>, call: Call);

    /// A WebSocket is asked for, by a request that is sound as far as RFC 6455 goes.
    fn handshake(&self, head: Parts, peer: Peer, handshake: Handshake);

    /// Something that was asked for by a call or a socket, of this number.
    fn told(&self, number: u64, what: Told);

    /// After one or more of the three above: for now there is no more of it.
    fn laid(&self);
}
