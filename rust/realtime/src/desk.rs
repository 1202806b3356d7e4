//! The desk between a listener's threads and the rest of the process: what the threads ask for, what they are told, and who
//! holds which client id.
//!
//! Strategy: one lock for small things. Handshakes and histories are asked for by the threads and answered from outside, in
//! batches; the bell is rung once for many. A thread serves a shard of the hub. Rules:
//! - a client id belongs to the subject (of its tenant) that first connected with it, for as long as it is connected;
//! - a place is taken when a handshake is accepted and given back when the connection is over, whatever happens in between.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flx_core::admission::roster::Guest;
use flx_core::hub::{Backfill, ConnKey, Dialect, Frame, Position, Rights, Shard};

use crate::listener::{Clock, Handle};
use crate::protocol::Secret;
use crate::seat::Seat;
use crate::service::{ConnId, Upgrade};
use crate::shared_hub::{Guard, SharedHub};

/// A connection of one of the threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Which thread's.
    pub thread: usize,
    /// Which of its connections.
    pub conn: ConnId,
}

/// A handshake, or a request for a stream, that is to be decided about.
#[derive(Debug)]
pub struct Handshake {
    /// Who asks.
    pub caller: Caller,
    /// The method of a request for a stream; none: it is a handshake of a WebSocket.
    pub method: Option<String>,
    /// From where.
    pub peer: SocketAddr,
    /// The target up to the question mark.
    pub path: String,
    /// What follows it.
    pub query: String,
    /// All header lines.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What a thread asks for.
#[derive(Debug)]
pub enum Question {
    /// May it come in? To be answered with `accept` or `refuse`.
    Handshake(Handshake),
    /// What does the daemon have of these patterns? To be answered with [`Desk::backfill`] or [`Desk::give_up`].
    History(History),
    /// A connection has taken the history it was given: there is room for more.
    Room(Caller),
    /// May it go on with another token? To be answered with [`Desk::renew`] and [`Desk::say`], or the latter alone.
    Refresh(Refresh),
}

/// History that a connection is to be given.
#[derive(Debug)]
pub struct History {
    /// Who asks.
    pub caller: Caller,
    /// The same in the hub.
    pub key: ConnKey,
    /// Of what.
    pub patterns: Vec<Box<str>>,
    /// Since where.
    pub since: Position,
}

/// A client offers another token.
#[derive(Debug)]
pub struct Refresh {
    /// Who asks.
    pub caller: Caller,
    /// The same in the hub.
    pub key: ConnKey,
    /// The same in the roster.
    pub seat: u64,
    /// The token.
    pub token: Secret,
}

/// Who a connection speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The tenant.
    pub tenant: Box<str>,
    /// The subject.
    pub subject: Box<str>,
}

impl Owner {
    /// Who has a place in the roster.
    pub(crate) fn of(guest: &Guest) -> Self {
        Self { tenant: guest.tenant().into(), subject: guest.principal.subject.as_str().into() }
    }
}

/// Who comes in.
#[derive(Debug)]
pub struct Newcomer {
    /// What it calls itself; a stream has no name.
    pub client_id: Option<Arc<str>>,
    /// Who it is.
    pub owner: Arc<Owner>,
    /// What it may hear.
    pub rights: Rights,
    /// What frames look like.
    pub dialect: Dialect,
    /// When its token ends, by the listener's clock.
    pub ends_ms: u64,
    /// Its place in the roster.
    pub seat: Seat,
    /// What a stream hears.
    pub topics: Vec<Box<str>>,
    /// And from where on.
    pub from: Option<Box<str>>,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIn {
    /// Another subject holds the client id.
    Taken,
    /// There are too many connections of this subject.
    TooMany,
    /// It has left.
    Gone,
}

/// What a thread is to do with a connection.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send history, and ask for more when that is taken; whether that is all of it.
    History(Vec<Frame>, bool),
    /// Send answers; whether they are a complaint.
    Say(Vec<String>, bool),
    /// Its token ends then.
    EndAt(u64),
}

/// A thread, as others see it.
struct Thread {
    handle: Handle,
    orders: Vec<(ConnId, Order)>,
}

#[derive(Default)]
struct Papers {
    threads: Vec<Thread>,
    questions: Vec<Question>,
    /// Handshakes that are not over; with a newcomer, once that is accepted.
    waiting: HashMap<Caller, Option<Newcomer>>,
    /// A tree: a table of as many ids would be half empty, and be copied as a whole each time that it grows.
    clients: BTreeMap<Arc<str>, (Arc<Owner>, usize)>,
    owners: HashMap<Arc<Owner>, usize>,
    /// Connections that have ended, by code.
    closed: BTreeMap<u16, u64>,
}

/// What the threads and the rest of the process share.
pub struct Desk {
    hub: Arc<SharedHub>,
    papers: Mutex<Papers>,
    /// Connections of one subject at most.
    per_owner: usize,
    clock: Clock,
    bell: Box<dyn Fn() + Send + Sync>,
}

impl Desk {
    /// `bell` is rung when there are questions, and must not block.
    #[must_use]
    pub fn new(hub: Arc<SharedHub>, per_owner: usize, clock: Clock, bell: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { hub, papers: Mutex::default(), per_owner, clock, bell }
    }

    /// The hub. Nothing may be waited for while it is held.
    pub fn hub(&self) -> Guard<'_> {
        self.hub.lock()
    }

    /// The hub's time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// What was asked since the last call.
    pub fn questions(&self) -> Vec<Question> {
        mem::take(&mut self.papers().questions)
    }

    /// Whether this client id is free for this owner, or already its own.
    pub fn is_free(&self, client_id: &str, owner: &Owner) -> bool {
        self.papers().clients.get(client_id).is_none_or(|(holder, _)| **holder == *owner)
    }

    /// Lets somebody in.
    pub fn accept(&self, caller: Caller, newcomer: Newcomer, subprotocol: Option<&'static str>) -> Result<(), NotIn> {
        let mut papers = self.papers();
        papers.seat(caller, newcomer, self.per_owner)?;
        papers.answer(caller, Upgrade::Accept(subprotocol));
        Ok(())
    }

    /// Lets somebody in who only listens; the answer begins with this head.
    pub fn accept_stream(&self, caller: Caller, newcomer: Newcomer, head: Vec<u8>) -> Result<(), NotIn> {
        let mut papers = self.papers();
        papers.seat(caller, newcomer, self.per_owner)?;
        papers.answer(caller, Upgrade::Stream(head));
        Ok(())
    }

    /// Sends somebody away with a whole HTTP answer.
    pub fn refuse(&self, caller: Caller, answer: Vec<u8>) {
        let mut papers = self.papers();
        papers.waiting.remove(&caller);
        papers.answer(caller, Upgrade::Refuse(answer));
    }

    /// Closes a connection with a code and a reason of 123 bytes at most.
    pub fn close(&self, Caller { thread, conn }: Caller, code: u16, reason: &str) {
        if let Some(thread) = self.papers().threads.get(thread) {
            thread.handle.close(conn, code, reason);
        }
    }

    /// Gives a connection what the daemon tells. When it has taken it, and wants more, there will be a [`Question::Room`].
    ///
    /// Returns: whether that was all, or nothing more is wanted; None when the history has ended: give up.
    pub fn backfill(&self, caller: Caller, key: ConnKey, batch: &Backfill<'_>) -> Option<bool> {
        let mut hub = self.hub();
        let (frames, is_done) = hub.backfill(key, batch, self.now_ms()).ok()?;
        // While the hub is held: what comes from its memory must not overtake this.
        self.papers().order(caller, Order::History(frames, is_done));
        Some(is_done)
    }

    /// Tells a connection that the history it waits for cannot be had.
    pub fn give_up(&self, caller: Caller, key: ConnKey, reason: &str) {
        let mut hub = self.hub();
        let frames = hub.give_up(key, reason, self.now_ms()).into_iter().collect();
        self.papers().order(caller, Order::History(frames, true));
    }

    /// Gives a connection the rights of another token, and its end.
    ///
    /// Returns: the patterns that it may no longer have, and has no longer.
    pub fn renew(&self, caller: Caller, key: ConnKey, rights: Rights, ends_ms: u64) -> Vec<Box<str>> {
        let lost = self.hub().set_rights(key, rights, self.now_ms());
        self.papers().order(caller, Order::EndAt(ends_ms));
        lost
    }

    /// Sends messages to a connection; a complaint counts against it.
    pub fn say(&self, caller: Caller, messages: Vec<String>, is_complaint: bool) {
        self.papers().order(caller, Order::Say(messages, is_complaint));
    }

    /// A thread that serves connections says how it is reached: its number, and its shard of the hub.
    pub(crate) fn serve(&self, handle: Handle) -> (usize, Shard) {
        let waker = handle.clone();
        let shard = self.hub.add_shard(move || waker.wake());
        let threads = &mut self.papers().threads;
        threads.push(Thread { handle, orders: Vec::new() });
        (threads.len() - 1, shard)
    }

    /// Asks something.
    pub(crate) fn ask(&self, question: Question) {
        let mut papers = self.papers();
        if let Question::Handshake(handshake) = &question {
            papers.waiting.insert(handshake.caller, None);
        }
        papers.questions.push(question);
        let is_first = papers.questions.len() == 1;
        drop(papers);
        if is_first {
            (self.bell)();
        }
    }

    /// What a thread is to do. To be asked for while the hub is held, and before anything is taken from it.
    pub(crate) fn orders(&self, thread: usize) -> Vec<(ConnId, Order)> {
        self.papers().threads.get_mut(thread).map(|thread| mem::take(&mut thread.orders)).unwrap_or_default()
    }

    /// Who comes in by this connection.
    pub(crate) fn newcomer(&self, caller: Caller) -> Option<Newcomer> {
        self.papers().waiting.remove(&caller).flatten()
    }

    /// How many have been let in and are not gone.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether there is somebody")]
    pub fn len(&self) -> usize {
        self.papers().owners.values().sum()
    }

    /// Connections that have ended, by code: 1005 when the client left, whatever it said.
    pub fn closed(&self) -> BTreeMap<u16, u64> {
        self.papers().closed.clone()
    }

    /// Gives a place back.
    pub(crate) fn leave(&self, client_id: Option<&str>, owner: &Owner) {
        self.papers().unseat(client_id, owner);
    }

    /// A connection has ended.
    pub(crate) fn count_closed(&self, code: u16) {
        *self.papers().closed.entry(code).or_default() += 1;
    }

    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Papers {
    /// Has a thread answer a handshake.
    fn answer(&self, Caller { thread, conn }: Caller, upgrade: Upgrade) {
        if let Some(thread) = self.threads.get(thread) {
            thread.handle.answer(conn, upgrade);
        }
    }

    /// Has a thread do something with a connection.
    fn order(&mut self, Caller { thread, conn }: Caller, order: Order) {
        if let Some(thread) = self.threads.get_mut(thread) {
            thread.orders.push((conn, order));
            thread.handle.wake();
        }
    }

    fn seat(&mut self, caller: Caller, mut newcomer: Newcomer, per_owner: usize) -> Result<(), NotIn> {
        let Some(place) = self.waiting.get_mut(&caller) else { return Err(NotIn::Gone) };
        // One copy of what many connections have in common.
        if let Some((known, _)) = self.owners.get_key_value(&newcomer.owner) {
            newcomer.owner = Arc::clone(known);
        }
        let holder = newcomer.client_id.as_ref().and_then(|client_id| self.clients.get(client_id));
        if holder.is_some_and(|(holder, _)| *holder != newcomer.owner) {
            return Err(NotIn::Taken);
        }
        let of_owner = self.owners.entry(Arc::clone(&newcomer.owner)).or_default();
        if *of_owner >= per_owner {
            return Err(NotIn::TooMany);
        }
        *of_owner += 1;
        if let Some(client_id) = &newcomer.client_id {
            let client = self.clients.entry(Arc::clone(client_id));
            client.or_insert_with(|| (Arc::clone(&newcomer.owner), 0)).1 += 1;
        }
        *place = Some(newcomer);
        Ok(())
    }

    fn unseat(&mut self, client_id: Option<&str>, owner: &Owner) {
        if let Some(client_id) = client_id
            && let Some((_, count)) = self.clients.get_mut(client_id)
        {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(client_id);
            }
        }
        if let Some(count) = self.owners.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
    }
}
