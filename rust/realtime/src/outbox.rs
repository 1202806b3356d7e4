//! The connections of one thread, and what a service may do with them.
//!
//! Strategy: everything that ends a connection is noted here and carried out by the thread between two calls of the service, so
//! that a service is never called from within a call of its own.

use std::io;
use std::slice;

use flx_core::ws::close::code;
use slab::Slab;

use crate::connection::{Connection, Kind, NEVER, Protocol, State, Written};
use crate::deflate::Deflater;
use crate::extensions::WindowBits;
use crate::listener::Limits;
use crate::service::{Closed, ConnId};
use crate::wheel::Wheel;
use crate::wire::Wire;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is on its way.
    Sent,
    /// It is on its way, but the socket is full: the next one will not be taken before `writable`.
    Last,
    /// The socket is full: it was not taken, and `writable` will follow.
    Full,
    /// There is no such connection any more.
    Gone,
}

/// The connections of one thread.
pub(crate) struct Table {
    pub(crate) connections: Slab<Connection>,
    pub(crate) wheel: Wheel,
    pub(crate) limits: Limits,
    /// WebSockets and streams among the connections.
    pub(crate) open: usize,
    /// Handshakes that the service is deciding about.
    pub(crate) deciding: usize,
    pub(crate) now_ms: u64,
    /// Ends that the service has not been told of.
    pub(crate) partings: Vec<(ConnId, Closed)>,
    /// Connections to be forgotten.
    pub(crate) finished: Vec<ConnId>,
    pub(crate) deflater: Deflater,
}

/// What a service sends through.
pub struct Outbox<'a>(pub(crate) &'a mut Table);

impl Outbox<'_> {
    /// Sends a frame of which the client may as well be told later, or in other words: a full socket does not take it.
    pub fn frame(&mut self, conn: ConnId, wire: &Wire) -> Taken {
        self.frames(conn, slice::from_ref(wire), wire).1
    }

    /// Sends such frames, which are there in one piece (`whole`) too: to most they go by one call. How many were taken, and
    /// what became of the last that was tried.
    pub fn frames(&mut self, conn: ConnId, wires: &[Wire], whole: &Wire) -> (usize, Taken) {
        let Table { connections, deflater, now_ms, .. } = &mut *self.0;
        let found = connections.get_mut(conn.index as usize);
        let Some(connection) = found.filter(|it| it.is_open_as(conn)) else { return (0, Taken::Gone) };
        let written = match connection.deflate {
            None => connection.frames(wires, whole, *now_ms),
            Some(window) => deflated(connection, deflater, window, wires, *now_ms),
        };
        match written {
            Ok((begun, Written::All)) => return (begun, Taken::Sent),
            Ok(_) => self.0.rearm(conn.index),
            Err(_) => self.0.lost(conn),
        }
        match written {
            Ok((begun, Written::Part)) => (begun, Taken::Last),
            Ok((begun, _)) => (begun, Taken::Full),
            Err(_) => (0, Taken::Gone),
        }
    }

    /// Whether there is such a connection, and it is open.
    #[must_use]
    pub fn has(&self, conn: ConnId) -> bool {
        self.0.connections.get(conn.index as usize).is_some_and(|it| it.is_open_as(conn))
    }

    /// Sends a message that must not be left out: an answer. A client that lets too many of them wait is closed as too slow.
    pub fn message(&mut self, conn: ConnId, wire: Wire) {
        let Some(deflate) = self.0.open(conn).map(|connection| connection.deflate) else { return };
        let deflated = deflate.and_then(|window| self.0.deflater.once(&wire, window));
        if let Some(deflated) = &deflated {
            self.0.deflater.sent(&wire, deflated);
        }
        self.0.send(conn, Kind::Message, deflated.unwrap_or(wire));
    }

    /// Whether nothing waits for room in this connection's socket; if something does, `writable` will follow.
    pub fn has_room(&mut self, conn: ConnId) -> bool {
        self.0.open(conn).is_none_or(Connection::has_room)
    }

    /// Closes a connection with a code and a reason of 123 bytes at most.
    pub fn close(&mut self, conn: ConnId, code: u16, reason: &str) {
        self.0.close(conn, code, reason);
    }
}

/// Sends frames one by one, each compressed where that is worth it.
fn deflated(
    connection: &mut Connection,
    deflater: &mut Deflater,
    window: WindowBits,
    wires: &[Wire],
    now_ms: u64,
) -> io::Result<(usize, Written)> {
    for (at, wire) in wires.iter().enumerate() {
        let deflated = deflater.shared(wire, window);
        let sent = deflated.as_ref().unwrap_or(wire);
        let (begun, written) = connection.frames(slice::from_ref(sent), sent, now_ms)?;
        if let (Some(deflated), 1) = (&deflated, begun) {
            deflater.sent(wire, deflated);
        }
        if written != Written::All {
            return Ok((at + begun, written));
        }
    }
    Ok((wires.len(), Written::All))
}

impl Table {
    pub(crate) fn get(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|connection| connection.generation == conn.generation)
    }

    fn open(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|connection| connection.is_open_as(conn))
    }

    /// Moves its deadline to where it is now.
    pub(crate) fn rearm(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index as usize) {
            self.wheel.set(index, connection.due_ms(self.limits.write_ms));
        }
    }

    /// Sends what must be sent.
    pub(crate) fn send(&mut self, conn: ConnId, kind: Kind, wire: Wire) {
        let (bound, now_ms) = (self.limits.backlog_bytes, self.now_ms);
        let Some(connection) = self.get(conn) else { return };
        match connection.send(kind, wire, bound, now_ms) {
            Ok(true) if connection.is_flushed() => {}
            Ok(true) => self.rearm(conn.index),
            Ok(false) => self.drop_slow(conn),
            Err(_) => self.lost(conn),
        }
    }

    /// Says goodbye to a WebSocket, and waits a moment for the client to do the same; or to a stream.
    pub(crate) fn close(&mut self, conn: ConnId, code: u16, reason: &str) {
        let (next, last) = match self.get(conn).map(|connection| &connection.state) {
            Some(State::Open(Protocol::WebSocket)) => (State::Closing, Wire::close(code, reason)),
            Some(State::Open(Protocol::EventStream)) => (State::Lingering, Wire::farewell(code, reason)),
            _ => return,
        };
        self.part(conn, Closed::ByServer(code), next);
        self.wind_up(conn, last);
    }

    /// Sends the last thing there is to say, and leaves a moment for it to arrive.
    pub(crate) fn wind_up(&mut self, conn: ConnId, last: Wire) {
        let deadline_ms = self.now_ms + self.limits.close_ms;
        if let Some(connection) = self.get(conn) {
            (connection.ping_ms, connection.life_ms) = (NEVER, NEVER);
            connection.deadline_ms = deadline_ms;
        }
        self.send(conn, Kind::Close, last);
        self.end_when_flushed(conn);
        self.rearm(conn.index);
    }

    /// Ends our half of a connection that has nothing more to say and need not hear more.
    pub(crate) fn end_when_flushed(&mut self, conn: ConnId) {
        if let Some(connection) = self.get(conn)
            && matches!(connection.state, State::Lingering)
            && connection.is_flushed()
        {
            connection.stream.end();
        }
    }

    /// Forgets a client whose socket takes nothing: not even a Close would reach it.
    pub(crate) fn drop_slow(&mut self, conn: ConnId) {
        self.part(conn, Closed::ByServer(code::TOO_SLOW), State::Lingering);
        self.finished.push(conn);
    }

    /// Forgets a connection whose transport has failed or ended.
    pub(crate) fn lost(&mut self, conn: ConnId) {
        self.part(conn, Closed::Lost, State::Lingering);
        self.finished.push(conn);
    }

    /// Whether more handshakes may be read.
    pub(crate) fn may_decide(&self) -> bool {
        self.deciding < self.limits.deciding
    }

    /// Goes over to what follows; the service is to be told of the end, if it has heard of the connection.
    pub(crate) fn part(&mut self, conn: ConnId, why: Closed, next: State) {
        let Some(connection) = self.get(conn) else { return };
        let before = std::mem::replace(&mut connection.state, next);
        self.open -= usize::from(matches!(before, State::Open(_)));
        self.deciding -= usize::from(matches!(before, State::Waiting(..)));
        if matches!(before, State::Open(_) | State::Waiting(..)) {
            self.partings.push((conn, why));
        }
    }
}
