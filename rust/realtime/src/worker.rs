//! One thread of a listener: it looks at its sockets, lets the service speak, and does so again.
//!
//! Rules:
//! - readiness is told once (edges): a socket is read and written until it would block, or until it has had its share of a
//!   turn and is put on a list;
//! - one buffer for all that is received; nothing is kept of what was read whole;
//! - between two calls of the service what it has ended is settled, so that it hears of every end exactly once.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use flx_core::ws::Opcode;
use flx_core::ws::close::code;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustls::{ServerConfig, ServerConnection};
use slab::Slab;

use crate::connection::{Connection, Kind, Protocol, State};
use crate::deflate::{Deflater, Inflater};
use crate::listener::{Clock, Control, Handle, Limits, Load};
use crate::outbox::{Outbox, Table};
use crate::request::Fault;
use crate::ring::Ring;
use crate::service::{Closed, ConnId, Service};
use crate::stream::Stream;
use crate::wheel::Wheel;
use crate::wire::Wire;

pub(crate) const LISTENER: Token = Token(usize::MAX);
pub(crate) const WAKER: Token = Token(usize::MAX - 1);

const BUFFER_BYTES: usize = 64 * 1024;
/// Connections accepted in a turn.
const ACCEPTS: usize = 64;
/// Connections that are told in a turn that they should go.
const FAREWELLS: usize = 256;
/// How long nobody is accepted when there are no descriptors, or no room for strangers.
const PAUSE_MS: u64 = 100;
/// Bytes of plain text that TLS may keep of what its socket does not take.
const TLS_BYTES: usize = 64 * 1024;

/// Sending everybody away.
struct Drain {
    within_ms: u64,
    ends_ms: u64,
    /// How many there were when it began.
    total: u64,
    told: u64,
    /// The first index that has not been told; none when all have.
    next: Option<usize>,
}

/// What a thread has that lets connections in.
struct Door {
    listener: TcpListener,
    /// The threads besides it that serve them.
    others: Vec<Handle>,
}

pub(crate) struct Worker<S> {
    poll: Poll,
    door: Option<Door>,
    inbox: Receiver<Control>,
    is_called: Arc<AtomicBool>,
    load: Arc<Load>,
    /// Connections that another thread has given to this one since it last said how many it has.
    came: usize,
    tls: Option<Arc<ServerConfig>>,
    clock: Clock,
    pub(crate) service: S,
    pub(crate) table: Table,
    pub(crate) buffer: Vec<u8>,
    pub(crate) inflater: Inflater,
    next_generation: u32,
    may_accept: bool,
    accepts_at_ms: u64,
    /// Connections that had more to read than their share.
    pub(crate) again: Vec<ConnId>,
    /// Connections whose heads are read when others have been decided about.
    pub(crate) held_back: VecDeque<ConnId>,
    drain: Option<Drain>,
    /// When everything must be over, once it was told to stop.
    stops_ms: Option<u64>,
}

impl<S: Service> Worker<S> {
    pub(crate) fn new(
        poll: Poll,
        inbox: Receiver<Control>,
        handle: &Handle,
        limits: Limits,
        tls: Option<Arc<ServerConfig>>,
        clock: Clock,
        service: S,
    ) -> Self {
        let now_ms = clock.now_ms();
        let table = Table {
            connections: Slab::new(),
            wheel: Wheel::new(now_ms),
            limits,
            open: 0,
            deciding: 0,
            now_ms,
            partings: Vec::new(),
            finished: Vec::new(),
            deflater: Deflater::default(),
            ring: None,
        };
        Self {
            poll,
            door: None,
            inbox,
            is_called: Arc::clone(&handle.is_called),
            load: Arc::clone(&handle.load),
            came: 0,
            tls,
            clock,
            service,
            table,
            buffer: vec![0; BUFFER_BYTES],
            inflater: Inflater::default(),
            next_generation: 0,
            may_accept: false,
            accepts_at_ms: 0,
            again: Vec::new(),
            held_back: VecDeque::new(),
            drain: None,
            stops_ms: None,
        }
    }

    /// Lets connections in, for itself and others.
    pub(crate) fn listen(&mut self, mut listener: TcpListener, others: Vec<Handle>) -> io::Result<()> {
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        self.door = Some(Door { listener, others });
        Ok(())
    }

    /// Serves until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut due = Vec::new();
        if self.table.limits.together < usize::MAX {
            // Here and not where the rest is made: it is this thread's alone.
            self.table.ring = Ring::new().ok();
        }
        let mut turn_ms = Some(0);
        while !self.is_over() {
            match self.poll.poll(&mut events, self.timeout(turn_ms)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
            self.table.now_ms = self.clock.now_ms();
            for event in &events {
                match event.token() {
                    LISTENER => self.may_accept = true,
                    WAKER => {}
                    Token(index) => {
                        let Some(conn) = self.id(index) else { continue };
                        if event.is_writable() {
                            self.flush(conn);
                        }
                        if event.is_readable() {
                            self.read(conn, event.is_read_closed());
                        }
                    }
                }
            }
            for conn in mem::take(&mut self.again) {
                self.read(conn, true);
            }
            self.is_called.store(false, Ordering::Release);
            while let Ok(control) = self.inbox.try_recv() {
                self.obey(control);
            }
            while self.table.may_decide()
                && let Some(conn) = self.held_back.pop_front()
            {
                self.read(conn, true);
            }
            self.accept();
            self.farewells();
            self.table.wheel.expire(self.table.now_ms, &mut due);
            for index in due.drain(..) {
                self.due(index);
            }
            self.table.now_ms = self.clock.now_ms();
            turn_ms = self.service.turn(self.table.now_ms, &mut Outbox(&mut self.table));
            self.settle();
            self.load.has_ring(self.table.ring.is_some());
            self.load.is(self.table.connections.len(), self.table.open, mem::take(&mut self.came));
            self.table.deflater.forget();
            self.load.has_deflated(mem::take(&mut self.table.deflater.counts));
        }
    }

    fn is_over(&self) -> bool {
        self.stops_ms.is_some_and(|end| self.table.connections.is_empty() || self.table.now_ms >= end)
    }

    /// How long to sleep at most.
    fn timeout(&self, turn_ms: Option<u64>) -> Option<Duration> {
        let accepts_ms = self.may_accept.then_some(self.accepts_at_ms);
        let farewell_ms = self.drain.as_ref().and_then(|drain| drain.next).map(|_| 0);
        let goes_on = !self.again.is_empty() || (self.table.may_decide() && !self.held_back.is_empty());
        let again_ms = goes_on.then_some(0);
        let due = [turn_ms, accepts_ms, farewell_ms, again_ms, self.table.wheel.wakes_at(), self.stops_ms];
        let first = due.into_iter().flatten().min()?;
        Some(Duration::from_millis(first.saturating_sub(self.clock.now_ms())))
    }

    pub(crate) fn id(&self, index: usize) -> Option<ConnId> {
        let generation = self.table.connections.get(index)?.generation;
        Some(ConnId { index: index as u32, generation })
    }

    /// Tells the service of the ends that were noted, and forgets who is finished.
    pub(crate) fn settle(&mut self) {
        while let Some((conn, why)) = self.table.partings.pop() {
            self.service.closed(conn, why, self.table.now_ms);
        }
        while let Some(conn) = self.table.finished.pop() {
            if self.table.get(conn).is_some() {
                self.table.wheel.unset(conn.index);
                // The socket leaves the poll as it is closed.
                self.table.connections.remove(conn.index as usize);
            }
        }
    }

    fn accept(&mut self) {
        let now_ms = self.table.now_ms;
        if !self.may_accept || now_ms < self.accepts_at_ms {
            return;
        }
        for _ in 0..ACCEPTS {
            let Some(door) = &mut self.door else { return };
            let own = (self.table.connections.len(), self.table.connections.len() - self.table.open);
            let Some(place) = door.roomiest(own, self.table.limits.strangers) else {
                self.accepts_at_ms = now_ms + PAUSE_MS;
                return;
            };
            match door.listener.accept() {
                Ok((socket, peer)) => {
                    if let Some(socket) = door.hand_on(socket, peer, place) {
                        self.welcome(socket, peer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.may_accept = false;
                    return;
                }
                // No descriptors, or no memory, until somebody leaves; the client waits where it is.
                Err(error) if is_shortage(&error) => {
                    self.accepts_at_ms = now_ms + PAUSE_MS;
                    return;
                }
                // That one has gone again.
                Err(_) => {}
            }
        }
    }

    /// Takes a connection in; one that fails at once is gone again.
    fn welcome(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        let entry = self.table.connections.vacant_entry();
        let index = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if socket.set_nodelay(true).is_err()
            || self.poll.registry().register(&mut socket, Token(index), interest).is_err()
        {
            return;
        }
        let stream = match &self.tls {
            None => Stream::Plain(socket),
            Some(config) => match ServerConnection::new(Arc::clone(config)) {
                Ok(mut session) => {
                    session.set_buffer_limit(Some(TLS_BYTES));
                    Stream::tls(socket, session)
                }
                Err(_) => return,
            },
        };
        self.next_generation = self.next_generation.wrapping_add(1);
        let deadline_ms = self.table.now_ms + self.table.limits.handshake_ms;
        entry.insert(Connection::new(self.next_generation, stream, peer, deadline_ms));
        self.table.rearm(index as u32);
    }

    fn obey(&mut self, control: Control) {
        match control {
            Control::Welcome(socket, peer) => {
                self.came += 1;
                self.welcome(socket, peer);
            }
            Control::Answer(conn, upgrade) => self.answer(conn, upgrade),
            Control::Close(conn, code, reason) => self.table.close(conn, code, &reason),
            Control::Drain { within_ms } => {
                let total = self.table.open.max(1) as u64;
                let ends_ms = self.table.now_ms + within_ms;
                self.drain = Some(Drain { within_ms, ends_ms, total, told: 0, next: Some(0) });
            }
            Control::Stop => {
                self.stops_ms = Some(self.table.now_ms + self.table.limits.close_ms);
                self.door = None;
                let all = self.table.connections.iter();
                let all: Vec<_> = all.map(|(index, it)| (index, it.generation)).collect();
                for (index, generation) in all {
                    let conn = ConnId { index: index as u32, generation };
                    self.table.close(conn, code::RESTARTING, code::reason(code::RESTARTING));
                    if self.table.get(conn).is_some_and(|it| matches!(it.state, State::Head(_) | State::Waiting(..))) {
                        self.table.lost(conn);
                    }
                }
            }
        }
        self.settle();
    }

    /// Tells some more clients when they should go: one after the other, evenly over the time there is.
    fn farewells(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        let Some(first) = drain.next else { return };
        let end = self.table.connections.capacity().min(first + FAREWELLS);
        drain.next = (end < self.table.connections.capacity()).then_some(end);
        for index in first..end {
            let Some(conn) = self.id(index) else { continue };
            let (now_ms, Some(drain)) = (self.table.now_ms, &mut self.drain) else { return };
            let Some(connection) = self.table.get(conn).filter(|it| matches!(it.state, State::Open(_))) else {
                continue;
            };
            let in_ms = drain.within_ms * drain.told.min(drain.total) / drain.total;
            drain.told += 1;
            connection.deadline_ms = now_ms + in_ms;
            self.table.rearm(conn.index);
            self.service.draining(conn, in_ms, now_ms, &mut Outbox(&mut self.table));
        }
        self.settle();
    }

    /// Why nobody may come now, if so.
    pub(crate) fn fault_of_the_hour(&self) -> Option<Fault> {
        if let Some(drain) = &self.drain {
            let seconds = drain.ends_ms.saturating_sub(self.table.now_ms).div_ceil(1000);
            return Some(Fault::Draining((seconds as u32).max(1)));
        }
        (self.table.open >= self.table.limits.connections).then_some(Fault::Full)
    }

    /// Does what a connection's deadline asks for, if it is that time still.
    fn due(&mut self, index: u32) {
        let (now_ms, limits) = (self.table.now_ms, self.table.limits);
        let Some(conn) = self.id(index as usize) else { return };
        let Some(connection) = self.table.get(conn) else { return };
        if connection.due_ms(limits.write_ms) > now_ms {
            self.table.rearm(index);
            return;
        }
        match connection.state {
            State::Head(_) | State::Waiting(..) => {
                self.table.part(conn, Closed::Lost, State::Lingering);
                let answer = self.service.refusal(Fault::Timeout, now_ms);
                self.table.wind_up(conn, Wire::raw(answer));
            }
            State::Closing | State::Lingering => self.table.finished.push(conn),
            State::Open(_) if connection.stuck_ms(limits.write_ms) <= now_ms => self.table.drop_slow(conn),
            State::Open(_) if connection.deadline_ms <= now_ms => {
                self.table.close(conn, code::RESTARTING, code::reason(code::RESTARTING));
            }
            // The Ping waits behind what was begun: who takes nothing of that is stuck, above.
            State::Open(_) if connection.life_ms <= now_ms && !connection.is_flushed() => {
                connection.life_ms = now_ms + limits.life_ms;
                self.table.rearm(index);
            }
            State::Open(_) if connection.life_ms <= now_ms => {
                self.table.close(conn, code::TOO_SLOW, code::reason(code::TOO_SLOW));
            }
            State::Open(protocol) => {
                connection.ping_ms = now_ms + limits.ping_ms;
                if protocol == Protocol::WebSocket {
                    // From the first Ping that was not answered on.
                    connection.life_ms = connection.life_ms.min(now_ms + limits.life_ms);
                    self.table.send(conn, Kind::Ping, Wire::frame(Opcode::Ping, Vec::new()));
                }
                self.table.rearm(index);
                self.service.pinged(conn, now_ms, &mut Outbox(&mut self.table));
            }
        }
        self.settle();
    }
}

impl Door {
    /// Who has the fewest connections, of those that have room for strangers: 0 is this thread itself, then come the others.
    fn roomiest(&self, own: (usize, usize), strangers: usize) -> Option<usize> {
        let all = [own].into_iter().chain(self.others.iter().map(|other| other.load.count()));
        let with_room = all.enumerate().filter(|(_, (_, strange))| *strange < strangers);
        with_room.min_by_key(|(_, (all, _))| *all).map(|(place, _)| place)
    }

    /// Gives a connection to the thread at a place; back, when it is for this one.
    fn hand_on(&mut self, socket: TcpStream, peer: SocketAddr, place: usize) -> Option<TcpStream> {
        let Some(index) = place.checked_sub(1) else { return Some(socket) };
        let back = self.others[index].welcome(socket, peer).err();
        if back.is_some() {
            // It has ended, which is a bug: the others go on.
            self.others.swap_remove(index);
        }
        back
    }
}

/// Whether nobody can be accepted for a lack of something that comes back.
fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}
