//! The connections of one thread, and what a service may do with them.
//!
//! Strategy: everything that ends a connection is noted here and carried out by the thread between two calls of the service, so
//! that a service is never called from within a call of its own.
//!
//! The frames of a turn leave together (`ring.rs`) where they are plain bytes for a plain socket that has room: by one system
//! call, as it would be by one each. What that did not take is tried again the other way, which says what becomes of it.

use std::io;
use std::os::fd::AsFd;
use std::slice;

use flx_core::ws::close::code;
use slab::Slab;

use crate::connection::{Connection, Kind, NEVER, Protocol, State, Written};
use crate::deflate::Deflater;
use crate::extensions::WindowBits;
use crate::listener::Limits;
use crate::ring::{Ring, Sent};
use crate::service::{Closed, ConnId};
use crate::wheel::Wheel;
use crate::wire::{Bundle, Wire};

/// What is longer goes alone: it would be copied.
const MAX_TOGETHER: usize = 4096;

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
    /// Where many sends go by one call, if they may.
    pub(crate) ring: Option<Ring>,
}

/// What a service sends through.
pub struct Outbox<'a>(pub(crate) &'a mut Table);

impl Outbox<'_> {
    /// Sends frames of which the client may as well be told later, or in other words: a full socket does not take them. Each
    /// connection is named once. How many were taken, and what became of the last that was tried, by their places.
    pub fn bundles(&mut self, sends: &[(ConnId, &Bundle)]) -> Vec<(usize, Taken)> {
        let mut taken = self.together(sends).into_iter();
        let said = sends.iter().map(|(conn, bundle)| match taken.next().unwrap_or(Sent::Untried) {
            Sent::Untried => self.frames(*conn, bundle.wires(), bundle.whole()),
            Sent::Taken(taken) if taken == bundle.whole().len() => (bundle.wires().len(), Taken::Sent),
            Sent::Taken(taken) => self.rest(*conn, bundle, taken),
            Sent::Unknown => {
                self.0.lost(*conn);
                (0, Taken::Gone)
            }
        });
        said.collect()
    }

    /// Sends a bundle by a call of its own.
    fn frames(&mut self, conn: ConnId, wires: &[Wire], whole: &Wire) -> (usize, Taken) {
        let Table { connections, deflater, now_ms, .. } = &mut *self.0;
        let found = connections.get_mut(conn.index as usize);
        let Some(connection) = found.filter(|it| it.is_open_as(conn)) else { return (0, Taken::Gone) };
        let written = match connection.deflate {
            None => connection.frames(wires, whole, *now_ms),
            Some(window) => deflated(connection, deflater, window, wires, *now_ms),
        };
        self.said(conn, &written)
    }

    /// Sends by one system call what can be; what became of it, by places.
    fn together(&mut self, sends: &[(ConnId, &Bundle)]) -> Vec<Sent> {
        let Table { connections, ring, limits, .. } = &mut *self.0;
        if sends.len() < limits.together || ring.is_none() {
            return Vec::new();
        }
        let mut places = Vec::with_capacity(sends.len());
        let mut ready = Vec::with_capacity(sends.len());
        for (place, (conn, bundle)) in sends.iter().enumerate() {
            let found = connections.get(conn.index as usize).filter(|it| it.is_open_as(*conn));
            if let Some(socket) = found.and_then(Connection::open_way)
                && bundle.whole().len() <= MAX_TOGETHER
            {
                ready.push((socket.as_fd(), bundle.whole()));
                places.push(place);
            }
        }
        if ready.len() < limits.together {
            return Vec::new();
        }
        let Some((sent, left)) = ring.take().map(|ring| ring.send(&ready)) else { return Vec::new() };
        *ring = left;
        if places.len() == sends.len() {
            return sent;
        }
        let mut all: Vec<Sent> = sends.iter().map(|_| Sent::Untried).collect();
        for (place, sent) in places.into_iter().zip(sent) {
            all[place] = sent;
        }
        all
    }

    /// Sends what the socket has not taken of a bundle, until it says itself that it is full.
    fn rest(&mut self, conn: ConnId, bundle: &Bundle, taken: usize) -> (usize, Taken) {
        let now_ms = self.0.now_ms;
        let Some(connection) = self.0.open(conn) else { return (0, Taken::Gone) };
        let written = connection.frames_after(taken, bundle.wires(), bundle.whole(), now_ms);
        self.said(conn, &written)
    }

    /// Notes what became of frames.
    fn said(&mut self, conn: ConnId, written: &io::Result<(usize, Written)>) -> (usize, Taken) {
        match written {
            Ok((begun, Written::All)) => (*begun, Taken::Sent),
            Ok((begun, written)) => {
                self.0.rearm(conn.index);
                (*begun, if *written == Written::Part { Taken::Last } else { Taken::Full })
            }
            Err(_) => {
                self.0.lost(conn);
                (0, Taken::Gone)
            }
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

#[cfg(test)]
mod tests;
