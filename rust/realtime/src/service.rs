//! What a listener serves: who may connect, what is done with what they say, and what they are told.

use std::net::SocketAddr;

use crate::outbox::Outbox;
use crate::request::{Fault, Request};

/// A connection of one thread of a listener. The index is dense, and used again after the connection has ended, with
/// another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Which.
    pub index: u32,
    /// Which of those that had the index.
    pub generation: u32,
}

/// The answer to a handshake.
#[derive(Clone, Debug)]
pub enum Upgrade {
    /// It becomes a WebSocket; with a subprotocol, when one was chosen.
    Accept(Option<&'static str>),
    /// It becomes a stream of events, of which this is the head of the HTTP answer; its body is chunked.
    Stream(Vec<u8>),
    /// It gets this HTTP answer, whole, and is closed.
    Refuse(Vec<u8>),
    /// The answer comes later, by [`Handle::answer`](crate::listener::Handle::answer).
    Later,
}

/// A message of a client.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// Text.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client said so, with this code (1005: without one).
    ByClient(u16),
    /// The transport broke, or ended without a word.
    Lost,
    /// It was closed from here, with this code.
    ByServer(u16),
}

/// What one thread of a listener serves. Times are monotonic milliseconds of the listener's clock.
///
/// Of a connection is told: its `upgrade`; when that is accepted `opened`, then `message` and `writable`; and at the end
/// `closed`, once, for every handshake that was not refused.
pub trait Service: Send + 'static {
    /// Decides about a handshake that is sound as far as RFC 6455 goes, or about a request that asks for no upgrade; the rest
    /// is not judged yet: path, `Host`, `Origin`, subprotocols, credentials.
    fn upgrade(&mut self, conn: ConnId, request: &Request<'_>, peer: SocketAddr, now_ms: u64) -> Upgrade;

    /// The whole HTTP answer to what is no handshake, or comes at the wrong time. It must say `Connection: close`.
    fn refusal(&mut self, fault: Fault, now_ms: u64) -> Vec<u8>;

    /// The connection is a WebSocket or a stream now.
    fn opened(&mut self, conn: ConnId, now_ms: u64, out: &mut Outbox<'_>);

    /// The client said something.
    fn message(&mut self, conn: ConnId, message: Message<'_>, now_ms: u64, out: &mut Outbox<'_>);

    /// The socket has room again, after [`Outbox::frame`] has met a full one.
    fn writable(&mut self, conn: ConnId, now_ms: u64, out: &mut Outbox<'_>);

    /// A Ping was sent, or would have been if it were no stream: so long nothing may have been heard by a client that sees no
    /// Pings.
    fn pinged(&mut self, conn: ConnId, now_ms: u64, out: &mut Outbox<'_>);

    /// The client is to be told that it should come back in `in_ms`; then it will be closed with 1012.
    fn draining(&mut self, conn: ConnId, in_ms: u64, now_ms: u64, out: &mut Outbox<'_>);

    /// The connection is over.
    fn closed(&mut self, conn: ConnId, why: Closed, now_ms: u64);

    /// Called after each look at the sockets: what is due may be sent. Returns when it wants to be called again at the latest;
    /// earlier calls must be cheap.
    fn turn(&mut self, now_ms: u64, out: &mut Outbox<'_>) -> Option<u64>;
}
