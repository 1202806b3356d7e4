//! The desk between a listener's thread and the rest of the process: what the thread asks for, what it is told, and who holds
//! which client id.
//!
//! Strategy: one lock for small things. Handshakes and histories are asked for by the thread and answered from outside, in
//! batches; the bell is rung once for many. Rules:
//! - a client id belongs to the subject (of its tenant) that first connected with it, for as long as it is connected;
//! - a place is taken when a handshake is accepted and given back when the connection is over, whatever happens in between.

use std::collections::HashMap;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use flx_core::hub::{Backfill, ConnKey, Frame, Hub, Position, Profile};

use crate::listener::{Clock, Handle};
use crate::service::{ConnId, Upgrade};

/// A handshake that is to be decided about.
#[derive(Debug)]
pub struct Handshake {
    /// Which connection.
    pub conn: ConnId,
    /// Whose.
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
    /// What does the daemon have of a pattern? To be answered with [`Desk::backfill`] or [`Desk::give_up`].
    History(History),
    /// A connection has taken the history it was given: there is room for more.
    Room(ConnId),
}

/// History that a connection is to be given.
#[derive(Debug)]
pub struct History {
    /// Which connection.
    pub conn: ConnId,
    /// The same in the hub.
    pub key: ConnKey,
    /// Of what.
    pub pattern: Box<str>,
    /// Since where.
    pub since: Position,
}

/// Who a connection speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The tenant.
    pub tenant: Box<str>,
    /// The subject.
    pub subject: Box<str>,
}

/// Who comes in.
#[derive(Debug)]
pub struct Newcomer {
    /// What it calls itself.
    pub client_id: Box<str>,
    /// Who it is.
    pub owner: Arc<Owner>,
    /// What it may hear, and how.
    pub profile: Profile,
    /// When its token ends, by the listener's clock.
    pub ends_ms: u64,
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

/// Frames that a thread is to send to a connection.
pub(crate) type Order = (ConnId, Vec<Frame>);

#[derive(Debug, Default)]
struct Papers {
    questions: Vec<Question>,
    orders: Vec<Order>,
    /// Handshakes that are not over; with a newcomer, once that is accepted.
    waiting: HashMap<ConnId, Option<Newcomer>>,
    clients: HashMap<Box<str>, (Arc<Owner>, usize)>,
    owners: HashMap<Arc<Owner>, usize>,
}

/// What the threads and the rest of the process share.
pub struct Desk {
    hub: Mutex<Hub>,
    papers: Mutex<Papers>,
    /// Connections of one subject at most.
    per_owner: usize,
    clock: Clock,
    bell: Box<dyn Fn() + Send + Sync>,
    thread: OnceLock<Handle>,
}

impl Desk {
    /// `bell` is rung when there are questions, and must not block.
    #[must_use]
    pub fn new(hub: Hub, per_owner: usize, clock: Clock, bell: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { hub: Mutex::new(hub), papers: Mutex::default(), per_owner, clock, bell, thread: OnceLock::new() }
    }

    /// The hub. Nothing may be waited for while it is held.
    pub fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listener's time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Lets events that were fed to the hub go out.
    pub fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.wake();
        }
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
    pub fn accept(&self, conn: ConnId, newcomer: Newcomer, subprotocol: Option<&'static str>) -> Result<(), NotIn> {
        self.papers().seat(conn, newcomer, self.per_owner)?;
        self.answer(conn, Upgrade::Accept(subprotocol));
        Ok(())
    }

    /// Sends somebody away with a whole HTTP answer.
    pub fn refuse(&self, conn: ConnId, answer: Vec<u8>) {
        self.papers().waiting.remove(&conn);
        self.answer(conn, Upgrade::Refuse(answer));
    }

    /// Gives a connection what the daemon tells. When it has taken it, and wants more, there will be a [`Question::Room`].
    ///
    /// Returns: whether that was all, or nothing more is wanted; None when the history has ended: give up.
    pub fn backfill(&self, conn: ConnId, key: ConnKey, batch: &Backfill<'_>) -> Option<bool> {
        let mut hub = self.hub();
        let (frames, is_done) = hub.backfill(key, batch, self.now_ms()).ok()?;
        // While the hub is held: what comes from its memory must not overtake this.
        self.papers().orders.push((conn, frames));
        drop(hub);
        self.wake();
        Some(is_done)
    }

    /// Tells a connection that the history it waits for cannot be had.
    pub fn give_up(&self, conn: ConnId, key: ConnKey, reason: &str) {
        let mut hub = self.hub();
        if let Some(frame) = hub.give_up(key, reason, self.now_ms()) {
            self.papers().orders.push((conn, vec![frame]));
        }
        drop(hub);
        self.wake();
    }

    /// The thread that serves the connections says how it is reached.
    pub(crate) fn serve(&self, thread: Handle) {
        // A desk has one thread; a second would serve connections of the first.
        let _ = self.thread.set(thread);
    }

    /// Asks something.
    pub(crate) fn ask(&self, question: Question) {
        let mut papers = self.papers();
        if let Question::Handshake(handshake) = &question {
            papers.waiting.insert(handshake.conn, None);
        }
        papers.questions.push(question);
        let is_first = papers.questions.len() == 1;
        drop(papers);
        if is_first {
            (self.bell)();
        }
    }

    /// What is to be sent. To be asked for while the hub is held, and before anything is taken from it.
    pub(crate) fn orders(&self) -> Vec<Order> {
        mem::take(&mut self.papers().orders)
    }

    /// Who comes in by this connection.
    pub(crate) fn newcomer(&self, conn: ConnId) -> Option<Newcomer> {
        self.papers().waiting.remove(&conn).flatten()
    }

    /// Gives a place back.
    pub(crate) fn leave(&self, client_id: &str, owner: &Owner) {
        self.papers().unseat(client_id, owner);
    }

    fn answer(&self, conn: ConnId, upgrade: Upgrade) {
        if let Some(thread) = self.thread.get() {
            thread.answer(conn, upgrade);
        }
    }

    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Papers {
    fn seat(&mut self, conn: ConnId, newcomer: Newcomer, per_owner: usize) -> Result<(), NotIn> {
        let Some(place) = self.waiting.get_mut(&conn) else { return Err(NotIn::Gone) };
        if self.clients.get(&newcomer.client_id).is_some_and(|(holder, _)| *holder != newcomer.owner) {
            return Err(NotIn::Taken);
        }
        let of_owner = self.owners.entry(Arc::clone(&newcomer.owner)).or_default();
        if *of_owner >= per_owner {
            return Err(NotIn::TooMany);
        }
        *of_owner += 1;
        let client = self.clients.entry(newcomer.client_id.clone());
        client.or_insert_with(|| (Arc::clone(&newcomer.owner), 0)).1 += 1;
        *place = Some(newcomer);
        Ok(())
    }

    fn unseat(&mut self, client_id: &str, owner: &Owner) {
        if let Some((_, count)) = self.clients.get_mut(client_id) {
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
