//! What comes from clients: bytes become a handshake or a request, then messages.

use std::io;
use std::mem;

use flx_core::ws::{Bounds, Event, Opcode};
use rustix::net::sockopt::set_tcp_user_timeout;

use crate::connection::{Handshake, Kind, NEVER, Protocol, State};
use crate::extensions;
use crate::outbox::Outbox;
use crate::request::{Fault, MAX_HEAD_BYTES, Request, Room, end_of_head};
use crate::service::{Closed, ConnId, Message, Service, Upgrade};
use crate::wire::Wire;
use crate::worker::Worker;

/// Reads of one connection in a turn.
const READS: usize = 4;
/// Pings of one read that are answered each; of more only the latest is, which is enough (section 5.5.3): a client would
/// otherwise have a system call for a few of its octets.
const PONGS: usize = 16;

impl<S: Service> Worker<S> {
    /// Writes what could not be written before.
    pub(crate) fn flush(&mut self, conn: ConnId) {
        let (now_ms, life_ms) = (self.table.now_ms, self.table.limits.life_ms);
        let Some(connection) = self.table.get(conn) else { return };
        let was_behind = !connection.is_flushed();
        let flushed = connection.flush(now_ms);
        if connection.life_ms < NEVER && was_behind && connection.is_flushed() {
            // A Ping may have waited until now.
            connection.life_ms = connection.life_ms.max(now_ms + life_ms);
        }
        match flushed {
            Ok(true) if matches!(connection.state, State::Open(_)) => {
                self.service.writable(conn, now_ms, &mut Outbox(&mut self.table));
            }
            Ok(_) => self.table.end_when_flushed(conn),
            Err(_) => self.table.lost(conn),
        }
        self.settle();
    }

    /// Reads what there is; `to_the_end` when a short read does not mean that this was all.
    pub(crate) fn read(&mut self, conn: ConnId, to_the_end: bool) {
        for _ in 0..READS {
            let may_decide = self.table.may_decide();
            let Some(connection) = self.table.get(conn) else { return };
            match &mut connection.state {
                State::Waiting(..) => return,
                State::Head(handshake) => {
                    // Once each, however often its client says more.
                    let was_held_back = mem::replace(&mut handshake.is_held_back, !may_decide);
                    if !may_decide {
                        if !was_held_back {
                            self.held_back.push_back(conn);
                        }
                        return;
                    }
                }
                _ => {}
            }
            let mut buffer = mem::take(&mut self.buffer);
            let goes_on = match connection.stream.read(&mut buffer) {
                Ok(0) => {
                    self.table.lost(conn);
                    false
                }
                Ok(size) => {
                    let is_drained = connection.stream.is_drained_by(size, buffer.len());
                    self.received(conn, &mut buffer[..size]);
                    to_the_end || !is_drained
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
                Err(_) => {
                    self.table.lost(conn);
                    false
                }
            };
            self.buffer = buffer;
            self.settle();
            if !goes_on {
                return;
            }
        }
        self.again.push(conn);
    }

    fn received(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let Some(connection) = self.table.get(conn) else { return };
        match &mut connection.state {
            State::Open(Protocol::WebSocket) | State::Closing => self.frames(conn, bytes),
            State::Head(handshake) => {
                let looked = handshake.received.len();
                handshake.received.extend_from_slice(bytes);
                match end_of_head(&handshake.received, looked) {
                    Some(end) if end <= MAX_HEAD_BYTES => self.decide(conn, end),
                    None if handshake.received.len() <= MAX_HEAD_BYTES => {}
                    _ => self.refuse(conn, Fault::TooLarge),
                }
            }
            // Nothing of it is read as a second request, so that nothing can hide behind the first.
            State::Open(Protocol::EventStream) | State::Waiting(..) | State::Lingering => {}
        }
    }

    /// Answers a handshake, whose head ends at `end`, or lets the service do so later.
    fn decide(&mut self, conn: ConnId, end: usize) {
        let Some(connection) = self.table.get(conn) else { return };
        let State::Head(mut handshake) = mem::replace(&mut connection.state, State::Lingering) else { return };
        let mut room = Room::default();
        let request = match Request::parse(&handshake.received[..end], &mut room) {
            Ok(request) => request,
            Err(fault) => return self.refuse(conn, fault),
        };
        if let Some(fault) = self.fault_of_the_hour() {
            return self.refuse(conn, fault);
        }
        if self.table.limits.deflate && request.is_handshake() {
            match extensions::negotiate(request.values("sec-websocket-extensions")) {
                Ok(taken) => handshake.deflate = taken,
                Err(extensions::MalformedOffers) => return self.refuse(conn, Fault::Extensions),
            }
        }
        match self.service.upgrade(conn, &request, handshake.peer, self.table.now_ms) {
            Upgrade::Later => {
                handshake.end = end;
                if let Some(connection) = self.table.get(conn) {
                    connection.state = State::Waiting(handshake);
                    self.table.deciding += 1;
                }
            }
            decided => self.carry_out(conn, decided, &handshake, end),
        }
    }

    fn carry_out(&mut self, conn: ConnId, decided: Upgrade, handshake: &Handshake, end: usize) {
        match decided {
            Upgrade::Accept(subprotocol) => {
                let mut room = Room::default();
                let request = Request::parse(&handshake.received[..end], &mut room);
                let extensions = handshake.deflate.map(|taken| taken.answer());
                let answer = request.map(|request| request.accepted(subprotocol, extensions.as_deref()));
                let Ok(Some(answer)) = answer else { return self.refuse(conn, Fault::NoUpgrade) };
                if let Some(connection) = self.table.get(conn) {
                    connection.deflate = handshake.deflate.map(|taken| taken.window_bits);
                }
                self.open(conn, Protocol::WebSocket, answer);
                // Who speaks before the answer is heard all the same.
                if end < handshake.received.len() {
                    self.frames(conn, &mut handshake.received[end..].to_vec());
                }
            }
            Upgrade::Stream(head) => self.open(conn, Protocol::EventStream, head),
            Upgrade::Refuse(answer) => self.table.wind_up(conn, Wire::raw(answer)),
            Upgrade::Later => {}
        }
    }

    /// Carries out what the service has decided about a handshake meanwhile.
    pub(crate) fn answer(&mut self, conn: ConnId, upgrade: Upgrade) {
        let fault = self.fault_of_the_hour();
        let Some(connection) = self.table.get(conn) else { return };
        if !matches!(connection.state, State::Waiting(..)) || matches!(upgrade, Upgrade::Later) {
            return;
        }
        if let (Upgrade::Accept(_) | Upgrade::Stream(_), Some(fault)) = (&upgrade, fault) {
            self.table.part(conn, Closed::Lost, State::Lingering);
            return self.refuse(conn, fault);
        }
        let State::Waiting(handshake) = mem::replace(&mut connection.state, State::Lingering) else { return };
        self.table.deciding -= 1;
        self.carry_out(conn, upgrade, &handshake, handshake.end);
        // What came meanwhile was left in the socket, and is not told again.
        self.read(conn, true);
    }

    fn refuse(&mut self, conn: ConnId, fault: Fault) {
        if let Some(connection) = self.table.get(conn) {
            connection.state = State::Lingering;
            let answer = self.service.refusal(fault, self.table.now_ms);
            self.table.wind_up(conn, Wire::raw(answer));
        }
    }

    /// Makes it a WebSocket or a stream, which begins with this answer.
    fn open(&mut self, conn: ConnId, protocol: Protocol, answer: Vec<u8>) {
        let (now_ms, every_ms) = (self.table.now_ms, self.table.limits.ping_ms);
        let life_ms = self.table.limits.life_ms as u32;
        let Some(connection) = self.table.get(conn) else { return };
        connection.state = State::Open(protocol);
        if protocol == Protocol::EventStream {
            // Its client cannot answer a Ping: that the kernel of the other side has answered must do. Where this cannot be
            // set, a client that is gone is forgotten when its socket is full.
            let _ = set_tcp_user_timeout(connection.stream.socket(), life_ms);
        }
        connection.deadline_ms = NEVER;
        // Those who came together are not asked together.
        let spread = u64::from(conn.generation.wrapping_mul(0x9e37_79b1)) % (every_ms / 2).max(1);
        connection.ping_ms = now_ms + every_ms / 2 + spread;
        self.table.open += 1;
        self.table.send(conn, Kind::Message, Wire::raw(answer));
        self.table.rearm(conn.index);
        self.service.opened(conn, now_ms, &mut Outbox(&mut self.table));
    }

    /// Reads frames of a WebSocket that is open, or was until a moment ago.
    fn frames(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let (now_ms, bounds) = (self.table.now_ms, self.table.limits.inbound);
        let Some(connection) = self.table.get(conn) else { return };
        let bounds = Bounds { deflate: connection.deflate.is_some(), ..bounds };
        // Whatever comes is a sign of life.
        connection.life_ms = NEVER;
        let mut decoder = mem::take(&mut connection.decoder);
        let (mut at, mut pings, mut unanswered) = (0, 0, None);
        loop {
            let is_open = self.table.get(conn).is_some_and(|connection| matches!(connection.state, State::Open(_)));
            let message = match decoder.next(bytes, &mut at, bounds) {
                Ok(Some(Event::Text(text))) => Ok(Message::Text(text)),
                Ok(Some(Event::Binary(bytes))) => Ok(Message::Binary(bytes)),
                Ok(Some(Event::Deflated { is_text, payload })) => {
                    self.inflater.message(is_text, payload, bounds.message_bytes)
                }
                Ok(Some(Event::Ping(payload))) => {
                    let pong = Wire::frame(Opcode::Pong, payload);
                    pings += 1;
                    if pings > PONGS {
                        unanswered = Some(pong);
                    } else if is_open {
                        self.table.send(conn, Kind::Pong, pong);
                    }
                    continue;
                }
                Ok(Some(Event::Pong(_))) => continue,
                Ok(Some(Event::Close(close))) => {
                    // Its code comes back; what was sent before it is read by then.
                    self.goodbye(conn, is_open, Closed::ByClient(close.code), close.code, "");
                    break;
                }
                Ok(None) => break,
                Err(violation) => Err(violation),
            };
            match message {
                Ok(message) if is_open => self.service.message(conn, message, now_ms, &mut Outbox(&mut self.table)),
                Ok(_) => {}
                Err(violation) => {
                    let code = violation.close_code();
                    self.goodbye(conn, is_open, Closed::ByServer(code), code, violation.reason());
                    break;
                }
            }
        }
        let Some(connection) = self.table.get(conn) else { return };
        connection.decoder = decoder;
        if let (Some(pong), State::Open(_)) = (unanswered, &connection.state) {
            self.table.send(conn, Kind::Pong, pong);
        }
    }

    /// Says the last word, if it was not said before, and listens no more.
    fn goodbye(&mut self, conn: ConnId, is_open: bool, why: Closed, code: u16, reason: &str) {
        self.table.part(conn, why, State::Lingering);
        if is_open {
            self.table.wind_up(conn, Wire::close(code, reason));
        } else {
            self.table.end_when_flushed(conn);
        }
    }
}
