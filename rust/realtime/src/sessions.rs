//! The realtime protocol over a listener: connections hear what the hub has for them, each thread's as a shard of their own.
//!
//! Strategy: a session is a small record beside the connection's. What a client asks is answered at once out of the hub;
//! handshakes and history, which need the rest of the process, go over the [`Desk`]. In each turn a slice of the connections
//! that are due is served: the hub is held while it says what they get, not while that is written.
//!
//! Rules:
//! - frames of history go out before anything that the hub's memory has for the same connection;
//! - limits of a client's messages, and the answers, are those of the ASGI face;
//! - what a client says while it catches up is heard when that is over, as there: one subscription joins on after the other,
//!   a `ping` is answered when all have, and all answers have the order of what they answer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flx_core::hub::{COHORT, ConnKey, Delivery, Dialect, Frame, Profile, Refused, Shard};
use flx_core::ws::close::code;

use crate::desk::{Caller, Desk, Handshake, History, Order, Owner, Question, Refresh};
use crate::outbox::{Outbox, Taken};
use crate::protocol::{self, Asked, Complaint};
use crate::request::{Fault, Request};
use crate::seat::Seat;
use crate::service::{Closed, ConnId, Message, Service, Upgrade};
use crate::shared_hub::Guard;
use crate::wheel::Wheel;
use crate::wire::{Bundle, Wire, bundled};

/// Messages of a client in a second, and at once.
const MESSAGES_PER_S: f32 = 50.0;
/// What a client may say while it catches up: messages, and bytes of them. It is as many as it may have subscriptions, each
/// with a position of some kilobytes.
const MAX_WAITING: usize = 256;
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// Between two looks at those who wait for their `ping` to be answered, where they are many.
const PINGS_MS: u64 = 5;
/// Complaints after which a client is sent away.
const MAX_OFFENCES: u8 = 10;
/// The one path that is served without an upgrade.
const EVENTS: &str = "/v1/events";
/// Milliseconds that the client of a stream that was lost waits: from the first, by so many more.
const RETRY_MS: (u64, u64) = (500, 2_500);
/// So long before its token ends a client is told; where less is left than twice that, when half of it is over.
const WARNING_MS: u64 = 60_000;

const REFUSED: &str = "the topics may not be heard";

/// What there is to say to a handshake without asking anybody.
pub type Refusals = Box<dyn FnMut(Fault) -> Vec<u8> + Send>;

#[derive(Debug)]
struct Session {
    /// Of its connection, whose index is its place in the table.
    generation: u32,
    key: ConnKey,
    ends_ms: u64,
    /// The lower half of the milliseconds.
    heard_ms: u32,
    allowance: f32,
    offences: u8,
    dialect: Dialect,
    is_fed: bool,
    /// By which the roster knows whose it is.
    seat: Seat,
    /// What was said since it catches up; none when it does not.
    waiting: Option<Box<Waiting>>,
}

/// Messages that wait, and in their places those that were too much.
type Waiting = VecDeque<Result<Box<[u8]>, Complaint>>;

/// The sessions of a listener's thread.
pub struct Sessions {
    desk: Arc<Desk>,
    thread: usize,
    shard: Shard,
    refusals: Refusals,
    /// By the connections' index.
    table: Vec<Option<Session>>,
    /// By the index in the hub: which user of it is meant, and its connection.
    by_key: Vec<(u32, ConnId)>,
    /// Ends of tokens.
    ends: Wheel,
    due: Vec<u32>,
    deliveries: Vec<Delivery>,
    /// Who has caught up and may go on speaking.
    heard_out: Vec<ConnId>,
    /// Whose `ping` is answered when they have been given everything up to an order. So many are looked at in a turn.
    pinging: VecDeque<(ConnId, ConnKey, u64)>,
}

impl Sessions {
    /// The sessions of one more thread at this desk.
    #[must_use]
    pub fn new(desk: Arc<Desk>, refusals: Refusals, handle: crate::listener::Handle) -> Self {
        let now_ms = desk.now_ms();
        let (thread, shard) = desk.serve(handle);
        Self {
            desk,
            thread,
            shard,
            refusals,
            table: Vec::new(),
            by_key: Vec::new(),
            ends: Wheel::new(now_ms),
            due: Vec::new(),
            deliveries: Vec::new(),
            heard_out: Vec::new(),
            pinging: VecDeque::new(),
        }
    }

    /// The hub. It need not call this thread, whose turn comes before it sleeps: not where that turn is over (`closed`).
    fn hub(&self) -> Guard<'_> {
        let mut hub = self.desk.hub();
        hub.awake(self.shard);
        hub
    }

    const fn caller(&self, conn: ConnId) -> Caller {
        Caller { thread: self.thread, conn }
    }

    fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        let session = self.table.get_mut(conn.index as usize)?.as_mut()?;
        (session.generation == conn.generation).then_some(session)
    }

    /// Hears a message, now or when the client has caught up; a complaint when it is not acceptable.
    fn hear(&mut self, conn: ConnId, payload: &[u8], now_ms: u64, out: &mut Outbox<'_>) -> Result<(), Complaint> {
        let Some(session) = self.session(conn) else { return Ok(()) };
        let passed_s = (now_ms as u32).wrapping_sub(session.heard_ms) as f32 / 1_000.0;
        session.heard_ms = now_ms as u32;
        session.allowance = (session.allowance.max(0.0) + passed_s * MESSAGES_PER_S).min(MESSAGES_PER_S) - 1.0;
        let is_too_much = session.allowance < 0.0;
        let Some(waiting) = &mut session.waiting else {
            return if is_too_much {
                Err(protocol::TOO_MANY_MESSAGES)
            } else {
                self.handle(conn, payload, now_ms, out)
            };
        };
        let bytes: usize = waiting.iter().flatten().map(|message| message.len()).sum();
        if is_too_much || waiting.len() >= MAX_WAITING || bytes + payload.len() > MAX_WAITING_BYTES {
            let why = if is_too_much { protocol::TOO_MANY_MESSAGES } else { protocol::refused(Refused::Busy) };
            waiting.push_back(Err(why));
            self.offended(conn, out);
        } else {
            waiting.push_back(Ok(payload.into()));
        }
        Ok(())
    }

    /// Does what a message asks for; a complaint when it cannot be.
    fn handle(&mut self, conn: ConnId, payload: &[u8], now_ms: u64, out: &mut Outbox<'_>) -> Result<(), Complaint> {
        let Some(session) = self.session(conn) else { return Ok(()) };
        let (key, dialect, seat) = (session.key, session.dialect, session.seat.number());
        match protocol::parse(payload)? {
            Asked::Ping => {
                let hub = self.hub();
                let (order, is_level) = (hub.order(), hub.has_passed(key, hub.order()));
                drop(hub);
                if is_level {
                    out.message(conn, protocol::pong(wall_us()));
                } else if let Some(session) = self.session(conn) {
                    session.waiting = Some(Box::default());
                    self.pinging.push_back((conn, key, order));
                }
            }
            Asked::Other => out.message(conn, protocol::echo(payload)),
            Asked::Refresh(token) => {
                let caller = self.caller(conn);
                self.desk.ask(Question::Refresh(Refresh { caller, key, seat, token }));
            }
            Asked::Unsubscribe(pattern) => {
                self.hub().unsubscribe(key, &pattern, now_ms);
                out.message(conn, protocol::unsubscribed(&pattern));
            }
            Asked::Subscribe(pattern, from) => {
                let subscribed = self.hub().subscribe(key, &pattern, from.as_deref(), now_ms);
                let subscribed = subscribed.map_err(protocol::refused)?;
                send(conn, &subscribed.frames, dialect, out);
                if let Some(since) = subscribed.history {
                    let history = History { caller: self.caller(conn), key, patterns: vec![pattern.into()], since };
                    self.desk.ask(Question::History(history));
                    if let Some(session) = self.session(conn) {
                        session.waiting = Some(Box::default());
                    }
                }
            }
        }
        Ok(())
    }

    /// Hears what those have said meanwhile who have caught up; when there is more to do. After what was taken from the hub is
    /// written: the answers' positions cover it.
    fn hear_waiting(&mut self, now_ms: u64, out: &mut Outbox<'_>) -> Option<u64> {
        for conn in std::mem::take(&mut self.heard_out) {
            let Some(mut waiting) = self.session(conn).and_then(|session| session.waiting.take()) else { continue };
            while let Some(message) = waiting.pop_front() {
                match message.map(|payload| self.handle(conn, &payload, now_ms, out)) {
                    Ok(Ok(())) => {}
                    Ok(Err(complaint)) => self.complain(conn, complaint, out),
                    // It was counted when it came.
                    Err(complaint) => out.message(conn, protocol::error(complaint)),
                }
                if let Some(again) = self.session(conn).and_then(|session| session.waiting.as_mut()) {
                    *again = waiting;
                    break;
                }
            }
        }
        self.desk.hub().wakes_at(self.shard)
    }

    /// Answers those who are level now; they may go on speaking. When to look at those who were not looked at.
    fn tell_level(&mut self, now_ms: u64, out: &mut Outbox<'_>) -> Option<u64> {
        let most = self.pinging.len().min(COHORT);
        let hub = self.desk.hub();
        let (level, behind): (Vec<_>, Vec<_>) =
            self.pinging.drain(..most).partition(|(_, key, order)| hub.has_passed(*key, *order));
        drop(hub);
        let others = !self.pinging.is_empty();
        self.pinging.extend(behind);
        for (conn, _, _) in level {
            out.message(conn, protocol::pong(wall_us()));
            self.heard_out.push(conn);
        }
        others.then_some(now_ms + PINGS_MS)
    }

    fn complain(&mut self, conn: ConnId, complaint: Complaint, out: &mut Outbox<'_>) {
        out.message(conn, protocol::error(complaint));
        self.offended(conn, out);
    }

    /// Sends what others have for connections here.
    fn send_orders(&mut self, orders: Vec<(ConnId, Order)>, now_ms: u64, out: &mut Outbox<'_>) {
        for (conn, order) in orders {
            match order {
                Order::History(frames, is_all) => {
                    self.send_history(conn, &frames, out);
                    if is_all {
                        self.heard_out.push(conn);
                    }
                }
                Order::Say(messages, is_complaint) => {
                    for message in messages {
                        out.message(conn, Wire::text(message.as_bytes()));
                    }
                    if is_complaint {
                        self.offended(conn, out);
                    }
                }
                Order::EndAt(ends_ms) => {
                    if let Some(session) = self.session(conn) {
                        session.ends_ms = ends_ms;
                        self.ends.set(conn.index, warns_at(now_ms, ends_ms));
                    }
                }
            }
        }
    }

    fn send_history(&mut self, conn: ConnId, frames: &[Frame], out: &mut Outbox<'_>) {
        let Some(dialect) = self.session(conn).map(|session| session.dialect) else { return };
        send(conn, frames, dialect, out);
        let has_room = out.has_room(conn);
        if let Some(session) = self.session(conn) {
            session.is_fed = !has_room;
            if has_room {
                self.desk.ask(Question::Room(self.caller(conn)));
            }
        }
    }

    /// Sends away who has been complained about too often.
    fn offended(&mut self, conn: ConnId, out: &mut Outbox<'_>) {
        if let Some(session) = self.session(conn) {
            session.offences = session.offences.saturating_add(1);
            if session.offences > MAX_OFFENCES {
                out.close(conn, code::POLICY, code::reason(code::POLICY));
            }
        }
    }

    /// Writes what is due and tells the hub what was not taken; when there is more.
    fn deliver(&mut self, out: &mut Outbox<'_>) -> Option<u64> {
        let begun = Instant::now();
        // All before the first is written: their places lie far apart, and are fetched together here.
        let found = self.deliveries.drain(..).filter_map(|Delivery { conn: key, turn }| {
            let (_, conn) =
                self.by_key.get(key.index as usize).filter(|(generation, _)| *generation == key.generation)?;
            out.has(*conn).then_some((key, *conn, turn))
        });
        let found: Vec<_> = found.collect();
        let (mut put_back, mut writes, mut left) = (Vec::new(), 0, &found[..]);
        while !left.is_empty() {
            let (bundles, which) = bundled(
                left,
                |(.., one), (.., other)| Arc::ptr_eq(one, other),
                |(.., turn)| {
                    let frames = turn.frames.iter();
                    Bundle::of(frames.map(|frame| protocol::wire(Arc::clone(&frame.payload), turn.dialect)))
                },
            );
            let sends: Vec<_> = left.iter().zip(&which).map(|((_, conn, _), at)| (*conn, &bundles[*at])).collect();
            for ((key, _, turn), (taken, became)) in left.iter().zip(out.bundles(&sends)) {
                match became {
                    Taken::Sent => writes += 1,
                    Taken::Last | Taken::Full => {
                        writes += u64::from(taken > 0);
                        put_back.push((*key, turn, taken));
                    }
                    Taken::Gone => {}
                }
            }
            left = &left[which.len()..];
        }
        let mut hub = self.desk.hub();
        for (key, turn, taken) in put_back {
            hub.put_back(key, turn, taken);
        }
        hub.spent(self.shard, writes, begun.elapsed().as_micros() as u64);
        hub.wakes_at(self.shard)
    }

    /// Warns whose token ends soon, and closes whose has ended.
    fn end_tokens(&mut self, now_ms: u64, out: &mut Outbox<'_>) {
        let mut due = std::mem::take(&mut self.due);
        self.ends.expire(now_ms, &mut due);
        for index in due.drain(..) {
            let Some(Some(session)) = self.table.get(index as usize) else { continue };
            let conn = ConnId { index, generation: session.generation };
            let left_ms = session.ends_ms.saturating_sub(now_ms);
            if left_ms == 0 {
                out.close(conn, code::TOKEN_ENDED, code::reason(code::TOKEN_ENDED));
            } else {
                out.message(conn, protocol::expiring(left_ms.div_ceil(1_000), session.dialect));
                self.ends.set(index, session.ends_ms);
            }
        }
        self.due = due;
    }
}

impl Service for Sessions {
    fn upgrade(&mut self, conn: ConnId, request: &Request<'_>, peer: SocketAddr, _: u64) -> Upgrade {
        if !request.is_handshake() && request.path != EVENTS {
            return Upgrade::Refuse((self.refusals)(Fault::NoUpgrade));
        }
        let method = (!request.is_handshake()).then(|| request.method.to_owned());
        let headers = request.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
        let query = request.query.unwrap_or_default().to_owned();
        let (caller, path) = (self.caller(conn), request.path.to_owned());
        let handshake = Handshake { caller, method, peer, path, query, headers };
        self.desk.ask(Question::Handshake(handshake));
        Upgrade::Later
    }

    fn refusal(&mut self, fault: Fault, _: u64) -> Vec<u8> {
        (self.refusals)(fault)
    }

    fn opened(&mut self, conn: ConnId, now_ms: u64, out: &mut Outbox<'_>) {
        let Some(newcomer) = self.desk.newcomer(self.caller(conn)) else {
            self.desk.count_closed(code::INTERNAL);
            return out.close(conn, code::INTERNAL, code::reason(code::INTERNAL));
        };
        let (dialect, tenant) = (newcomer.dialect, newcomer.owner.tenant.clone());
        let profile = Profile { shard: self.shard, tenant, rights: newcomer.rights, dialect };
        let Ok(key) = self.hub().connect(profile) else {
            self.desk.leave(newcomer.client_id.as_deref(), &newcomer.owner);
            self.desk.count_closed(code::TOO_MANY);
            return out.close(conn, code::TOO_MANY, code::reason(code::TOO_MANY));
        };
        newcomer.seat.heard_as(key);
        match &newcomer.client_id {
            Some(client_id) => out.message(conn, protocol::connected(client_id)),
            None => out.message(conn, protocol::retry(RETRY_MS.0 + spread(conn) % RETRY_MS.1)),
        }
        let (index, of_hub) = (conn.index as usize, key.index as usize);
        if self.table.len() <= index {
            self.table.resize_with(index + 1, || None);
        }
        if self.by_key.len() <= of_hub {
            self.by_key.resize(of_hub + 1, (key.generation, conn));
        }
        self.by_key[of_hub] = (key.generation, conn);
        self.ends.set(conn.index, warns_at(now_ms, newcomer.ends_ms));
        self.table[index] = Some(Session {
            generation: conn.generation,
            key,
            ends_ms: newcomer.ends_ms,
            heard_ms: now_ms as u32,
            allowance: MESSAGES_PER_S,
            offences: 0,
            dialect,
            is_fed: false,
            seat: newcomer.seat,
            waiting: None,
        });
        if dialect == Dialect::EventStream {
            let topics: Vec<&str> = newcomer.topics.iter().map(|topic| &**topic).collect();
            let subscribed = self.hub().subscribe_all(key, &topics, newcomer.from.as_deref(), now_ms);
            // They were judged before the answer began; rights do not grow less in between.
            let Ok(subscribed) = subscribed else { return out.close(conn, code::POLICY, REFUSED) };
            send(conn, &subscribed.frames, dialect, out);
            if let Some(since) = subscribed.history {
                let history = History { caller: self.caller(conn), key, patterns: newcomer.topics, since };
                self.desk.ask(Question::History(history));
            }
        }
    }

    fn message(&mut self, conn: ConnId, message: Message<'_>, now_ms: u64, out: &mut Outbox<'_>) {
        let payload = match message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
        };
        if let Err(complaint) = self.hear(conn, payload, now_ms, out) {
            self.complain(conn, complaint, out);
        }
    }

    fn writable(&mut self, conn: ConnId, now_ms: u64, _: &mut Outbox<'_>) {
        let Some(session) = self.session(conn) else { return };
        let key = session.key;
        if std::mem::take(&mut session.is_fed) {
            self.desk.ask(Question::Room(self.caller(conn)));
        }
        self.hub().writable(key, now_ms);
    }

    fn pinged(&mut self, conn: ConnId, _: u64, out: &mut Outbox<'_>) {
        if let Some(dialect) = self.session(conn).map(|session| session.dialect) {
            out.message(conn, protocol::heartbeat(wall_us(), dialect));
        }
    }

    fn draining(&mut self, conn: ConnId, in_ms: u64, _: u64, out: &mut Outbox<'_>) {
        if let Some(dialect) = self.session(conn).map(|session| session.dialect) {
            out.message(conn, protocol::reconnect(in_ms, dialect));
        }
    }

    fn closed(&mut self, conn: ConnId, why: Closed, _: u64) {
        if let Some(newcomer) = self.desk.newcomer(self.caller(conn)) {
            self.desk.leave(newcomer.client_id.as_deref(), &newcomer.owner);
        }
        if self.session(conn).is_none() {
            return;
        }
        if let Some(session) = self.table[conn.index as usize].take() {
            self.ends.unset(conn.index);
            // Not as one who is awake: what ended it may be this thread's turn, after which it sleeps.
            self.desk.hub().disconnect(session.key);
            leave(&self.desk, &session);
            self.desk.count_closed(match why {
                Closed::ByServer(code) => code,
                Closed::ByClient(_) | Closed::Lost => code::NONE,
            });
        }
    }

    fn turn(&mut self, now_ms: u64, out: &mut Outbox<'_>) -> Option<u64> {
        self.end_tokens(now_ms, out);
        let mut hub = self.desk.hub();
        let orders = self.desk.orders(self.thread);
        hub.take(self.shard, now_ms, COHORT, &mut self.deliveries);
        drop(hub);
        self.send_orders(orders, now_ms, out);
        let mut next = self.deliver(out);
        let pings = if self.pinging.is_empty() { None } else { self.tell_level(now_ms, out) };
        if !self.heard_out.is_empty() {
            next = self.hear_waiting(now_ms, out);
        }
        next.into_iter().chain(self.ends.wakes_at()).chain(pings).min()
    }
}

/// A thread that ends leaves nobody behind in what it shares with others.
impl Drop for Sessions {
    fn drop(&mut self) {
        let mut hub = self.desk.hub();
        for session in self.table.drain(..).flatten() {
            hub.disconnect(session.key);
            leave(&self.desk, &session);
        }
    }
}

/// Gives back what a connection held: a stream has no name.
fn leave(desk: &Desk, session: &Session) {
    if let Some(guest) = session.seat.guest() {
        let client_id = (session.dialect != Dialect::EventStream).then_some(&*guest.client_id);
        desk.leave(client_id, &Owner::of(&guest));
    }
}

fn send(conn: ConnId, frames: &[Frame], dialect: Dialect, out: &mut Outbox<'_>) {
    for frame in frames {
        out.message(conn, protocol::wire(Arc::clone(&frame.payload), dialect));
    }
}

/// When to tell that a token ends.
fn warns_at(now_ms: u64, ends_ms: u64) -> u64 {
    ends_ms - WARNING_MS.min(ends_ms.saturating_sub(now_ms) / 2)
}

/// A number that is another one for each connection.
const fn spread(conn: ConnId) -> u64 {
    conn.generation.wrapping_mul(0x9e37_79b1) as u64
}

/// Microseconds since 1970.
fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;

    /// There are twenty thousand of them.
    #[test]
    fn the_records_of_an_idle_connection_are_small() {
        assert_eq!((56, 88), (size_of::<Option<Session>>(), size_of::<Connection>()));
    }
}
