//! The hub of a gateway: who hears what, and what each connection has still to get.
//!
//! Strategy: events go into logs whose bytes are the wire format ([`Hub::append`]); a connection is a cursor into the one order
//! in which they came, and has no queue. Connections that hear the same are an *audience*; those of an audience that are equally
//! far are *cohorts* of at most [`COHORT`], and what a cohort gets next is built once ([`Hub::take`]). An event costs its
//! topic's audiences one mark each; a topic is matched with patterns once, when either begins. Threads share a hub: the
//! connections of each are a [`Shard`], with audiences and cohorts of its own.
//!
//! What a shell does, around one lock that it never holds while it does I/O:
//! - feeds `append`, `advance`, `over`, `restart` from the daemon, `publish` and `publish_all` with what is in no journal;
//! - answers messages with `subscribe` and `unsubscribe`, sends the frames these return at once, and fetches history where
//!   [`Subscribed::history`] asks for it (`backfill`, `give_up`);
//! - calls `take` for each shard when `wakes_at` or `called` says so, writes what it got, and says of each connection that did
//!   not take all of it so with `put_back`, or `busy` when it took all but has room for no more, before the next `take`; and
//!   `writable` when it has;
//! - tells what writing cost (`spent`), and calls `sweep` now and then.
//!
//! Rules:
//! - What a client sees is the log with declared gaps, in the order in which it was heard; after each frame its position is
//!   honest: handed back, it brings everything that was not seen. Nothing is skipped silently.
//! - An event is delivered once per connection, however many of its subscriptions match.
//! - Memory is bounded by topic and in all; a slow connection costs none.
//! - No clock: milliseconds of a clock that never goes back are passed in.

mod audience;
mod frame;
mod governor;
mod ids;
mod lag;
mod latest;
mod log;
pub mod position;
mod presence;
mod queue;
mod reader;
mod resume;
pub mod rights;
mod store;
mod sweep;
pub mod topic;
mod topic_rules;
mod turn;

use std::collections::BTreeMap;

use audience::Fleet;
pub use frame::{Dialect, Frame, Turn, stream_event};
use lag::Lag;
pub use lag::{Ages, LAG_BOUNDS_MS};
pub use position::Position;
use presence::Presence;
pub use presence::PresenceChange;
use queue::Agenda;
pub use resume::{Backfill, Gone, Subscribed};
pub use rights::{Class, Refused, Rights};
use store::Store;
pub use topic_rules::TopicRule;
pub use turn::Delivery;

/// Connections of a cohort at most: one slice of a fleet, served together.
pub const COHORT: usize = 256;

/// How much a hub may hold and do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a topic's events; its latest slab (64 KiB at most) is kept in any case.
    pub topic_bytes: usize,
    /// Bytes of all topics' events.
    pub total_bytes: usize,
    /// How long events are kept.
    pub topic_ttl_ms: u64,
    /// Ephemeral topics that have no events any more, kept since the numbers go on for those who hear them by a pattern; when
    /// there are more, all numbers begin anew.
    pub empty_topics: usize,
    /// Patterns of one connection.
    pub max_subscriptions: usize,
    /// Connections.
    pub max_connections: usize,
    /// Bytes of the events in one frame, unless one event alone is longer.
    pub frame_bytes: usize,
    /// Bytes of the events in one turn of a connection that is behind, in the same way.
    pub turn_bytes: usize,
    /// The longest time for which events wait to travel together.
    pub max_window_ms: u64,
    /// Who has been behind for so long is given only the newest events of state topics.
    pub lag_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            topic_bytes: 4 << 20,
            total_bytes: 48 << 20,
            topic_ttl_ms: 15 * 60 * 1000,
            empty_topics: 16_384,
            max_subscriptions: 256,
            max_connections: 20_000,
            frame_bytes: 64 << 10,
            turn_bytes: 256 << 10,
            max_window_ms: 150,
            lag_ms: 1_000,
        }
    }
}

/// Something happened.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Whose topic it is.
    pub tenant: &'a str,
    /// The topic. Those under `bench.` live in this gateway alone.
    pub topic: &'a str,
    /// The journal's sequence number, or the line number (from 1) of a log; of no meaning for local topics.
    pub seq: u64,
    /// The topic's number before it, 0 when none. Not looked at for logs, whose lines are numbered without holes.
    pub prev: u64,
    /// Microseconds since 1970.
    pub ts_us: u64,
    /// Valid JSON; empty is `null`.
    pub data: &'a str,
}

impl Event<'_> {
    const fn json(&self) -> &str {
        if self.data.is_empty() { "null" } else { self.data }
    }
}

/// An event that is in no journal, but for its data.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// Whose topic it is.
    pub tenant: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// Microseconds since 1970.
    pub ts_us: u64,
}

/// A connection; a number is used again with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Dense, for tables of the shell.
    pub index: u32,
    /// Which user of the index it is.
    pub generation: u32,
}

/// The connections that one thread serves. All shards hear the same logs; each has its own turns, its own cohorts, and waits as
/// long as its own sending asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard(u32);

impl Shard {
    /// The one that every hub has.
    pub const FIRST: Self = Self(0);

    /// Dense, for tables of the shell.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who is connected, as far as it decides what is heard and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Who serves it.
    pub shard: Shard,
    /// The tenant whose topics are heard.
    pub tenant: Box<str>,
    /// Which of them.
    pub rights: Rights,
    /// What frames look like.
    pub dialect: Dialect,
}

/// There are as many connections as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What was counted since the hub began, and what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events heard.
    pub events: u64,
    /// Events times connections that got them.
    pub delivered: u64,
    /// Frames times connections that got them.
    pub frames: u64,
    /// Turns that were built, each once for those who get the same.
    pub turns: u64,
    /// Bytes of frames times connections that got them.
    pub sent_bytes: u64,
    /// Subscriptions from a position, and those among them for which the daemon was asked.
    pub resumes: u64,
    /// The same.
    pub asked: u64,
    /// Now: connections.
    pub connections: u64,
    /// Now: patterns of all connections.
    pub subscriptions: u64,
    /// Now: topics.
    pub topics: u64,
    /// Now: audiences.
    pub audiences: u64,
    /// Now: cohorts.
    pub cohorts: u64,
    /// Now: bytes of events.
    pub bytes: u64,
    /// Now: milliseconds between two turns of a connection, in the shard where they are most.
    pub window_ms: u64,
    /// Now: connections that have still something to get, or are not given anything until the daemon has told what is missing.
    pub behind: u64,
    /// Now: events of all topics since the place of the connection that is furthest behind.
    pub furthest: u64,
}

/// The hub of one process.
#[derive(Debug)]
pub struct Hub {
    limits: Limits,
    store: Store,
    fleet: Fleet,
    /// Why the history before this one ended.
    restarted_by: Box<str>,
    presence: Presence,
    stats: Stats,
    lag: Lag,
    /// Gaps told to connections, by reason.
    gaps: BTreeMap<Box<str>, u64>,
}

impl Hub {
    /// A hub that has heard nothing. `seed` is random; `local_epoch` names the history of topics of this process alone, another
    /// one in each process.
    #[must_use]
    pub fn new(limits: Limits, seed: u64, local_epoch: &str) -> Self {
        let store = Store::new(limits.clone(), seed, local_epoch);
        let fleet = Fleet::default();
        let (stats, lag, gaps, presence) = (Stats::default(), Lag::default(), BTreeMap::new(), Presence::default());
        let mut hub = Self { store, fleet, restarted_by: "".into(), presence, stats, lag, gaps, limits };
        hub.add_shard();
        hub
    }

    /// One more shard; the first of all is [`Shard::FIRST`], which every hub has.
    pub fn add_shard(&mut self) -> Shard {
        let shard = Shard(self.fleet.agendas.len() as u32);
        self.fleet.agendas.push(Agenda::new(self.limits.max_window_ms));
        shard
    }

    // --- what happens ------------------------------------------------------------------------------------------------

    /// Remembers an event and marks who is to get it; false when it was heard before.
    pub fn append(&mut self, event: &Event<'_>, now_ms: u64) -> bool {
        self.hear(event, false, now_ms).is_some()
    }

    fn hear(&mut self, event: &Event<'_>, ephemeral: bool, now_ms: u64) -> Option<u32> {
        let topic = self.open(event.tenant, event.topic, ephemeral);
        let before = self.hear_in(topic, event, now_ms)?;
        self.mark(topic, before, now_ms);
        Some(topic)
    }

    fn open(&mut self, tenant: &str, topic: &str, ephemeral: bool) -> u32 {
        let (id, made) = self.store.open(tenant, topic, ephemeral);
        if made {
            self.fleet.link_topic(&mut self.store, id);
        }
        id
    }

    /// Remembers an event of this topic, whose audiences have to be marked; the order before it, unless it was heard before.
    fn hear_in(&mut self, topic: u32, event: &Event<'_>, now_ms: u64) -> Option<u64> {
        let before = self.store.order;
        if let Some(log) = self.store.append(topic, event, now_ms)?.0 {
            self.fleet.link_topic(&mut self.store, log);
        }
        self.stats.events += 1;
        self.lag.heard(self.store.order, now_ms);
        Some(before)
    }

    fn mark(&mut self, topic: u32, before: u64, now_ms: u64) {
        if let Some(log) = self.store.topic(topic) {
            self.fleet.mark(&log.audiences, Some(topic), before, now_ms);
        }
    }

    /// Tells an event that is in no journal: of this gateway alone (`bench.`), or an ephemeral one (`app.`, `user.`), whose
    /// numbers are a chain of their own beside those of the journal; None for any other topic. The number that it got.
    pub fn publish(&mut self, tenant: &str, topic: &str, ts_us: u64, data: &str, now_ms: u64) -> Option<u64> {
        if !Self::may_publish(topic) {
            return None;
        }
        let ephemeral = !topic::is_local(topic);
        let id = self.hear(&Event { tenant, topic, seq: 0, prev: 0, ts_us, data }, ephemeral, now_ms)?;
        self.store.topic(id).map(|topic| topic.last_seq)
    }

    /// Tells many such events, all of them or none; false when one is of any other topic. `data_of` writes the JSON of an event,
    /// whose place in the list it is told, and how many its topic had before.
    pub fn publish_all(
        &mut self,
        posts: &[Post<'_>],
        now_ms: u64,
        mut data_of: impl FnMut(usize, u64, &mut String),
    ) -> bool {
        if !posts.iter().all(|post| Self::may_publish(post.topic)) {
            return false;
        }
        // In passes: what the events need lies far apart, and in short loops much of it is fetched at the same time (`glance`).
        let opened = posts.iter().map(|post| self.open(post.tenant, post.topic, !topic::is_local(post.topic)));
        let opened: Vec<u32> = opened.collect();
        self.store.glance(opened.iter().copied());
        let (mut data, mut heard) = (String::new(), Vec::with_capacity(posts.len()));
        for (place, (&Post { tenant, topic, ts_us }, id)) in posts.iter().zip(opened).enumerate() {
            data.clear();
            data_of(place, self.store.topic(id).map_or(0, |topic| topic.last_seq), &mut data);
            let event = Event { tenant, topic, seq: 0, prev: 0, ts_us, data: &data };
            heard.extend(self.hear_in(id, &event, now_ms).map(|before| (id, before)));
        }
        for (id, before) in heard {
            self.mark(id, before, now_ms);
        }
        true
    }

    /// Whether events that are in no journal can be of this topic.
    #[must_use]
    pub fn may_publish(topic: &str) -> bool {
        topic::is_local(topic) || matches!(Class::of(topic), Some(Class::App | Class::User))
    }

    /// The number of the latest event of a topic of this gateway alone; 0 before the first.
    #[must_use]
    pub fn number_of(&self, tenant: &str, topic: &str) -> u64 {
        let found = self.store.find(tenant, topic, false).and_then(|id| self.store.topic(id));
        found.filter(|topic| topic.kind.is_own()).map_or(0, |topic| topic.last_seq)
    }

    /// Ephemeral events were lost on their way here: whoever may miss one is told, and those that come begin a new epoch.
    pub fn lose(&mut self, reason: &str, now_ms: u64) {
        let before = self.store.order;
        let audiences = self.store.lose(reason);
        self.fleet.mark(&audiences, None, before, now_ms);
    }

    /// The daemon says that everything up to here was considered.
    pub fn advance(&mut self, seq: u64) {
        self.store.advance(seq);
    }

    /// An execution is over.
    pub fn over(&mut self, tenant: &str, execution: &str) {
        self.store.over(tenant, execution);
    }

    /// Begins anew in an epoch, after this number of its journal: nothing before is known, and everyone who subscribed to
    /// anything is told so, unless this is the first history.
    pub fn restart(&mut self, epoch: &str, seq: u64, reason: &str, now_ms: u64) {
        let first = self.store.epoch.is_empty();
        self.store.restart(epoch, seq);
        if !first {
            self.restarted_by = reason.into();
            self.fleet.reset(self.store.order, now_ms);
        }
    }

    /// The present epoch; empty before the first `restart`.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.store.epoch
    }

    /// How far the journal was heard.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.store.seq
    }

    /// The number of the latest event in the order in which this process heard them.
    #[must_use]
    pub const fn order(&self) -> u64 {
        self.store.order
    }

    /// Whether a connection was given everything that it was to hear up to an order.
    #[must_use]
    pub fn has_passed(&self, conn: ConnKey, order: u64) -> bool {
        self.fleet.get(conn).is_none_or(|found| {
            found.catching.is_none() && self.fleet.standing(conn.index, self.store.order).cursor >= order
        })
    }

    /// How far this process has come with all topics of a tenant.
    #[must_use]
    pub fn position(&self, tenant: &str) -> Position {
        self.store.position(tenant)
    }

    /// How far this process has come with the topics of all tenants: from there its follower goes on.
    #[must_use]
    pub fn position_of_all(&self) -> Position {
        self.store.position_of_all()
    }

    /// The connections that are furthest behind, the furthest first, and how many events this process has heard since where
    /// each of them is.
    #[must_use]
    pub fn laggards(&self, most: usize) -> Vec<(ConnKey, u64)> {
        self.fleet.laggards(self.store.order, most)
    }

    // --- who is there ------------------------------------------------------------------------------------------------

    /// Lets a connection in; it hears nothing yet. Its shard is one of this hub.
    pub fn connect(&mut self, profile: Profile) -> Result<ConnKey, Full> {
        if self.fleet.len() >= self.limits.max_connections || profile.shard.index() >= self.fleet.agendas.len() {
            return Err(Full);
        }
        Ok(self.fleet.connect(profile))
    }

    /// Forgets a connection.
    pub fn disconnect(&mut self, conn: ConnKey) {
        if let Some(found) = self.fleet.get(conn) {
            let has = self.fleet.patterns(conn.index);
            let held = found.catching.iter().flat_map(|catching| &catching.patterns);
            // Who catches up with what it hears already is there once.
            for pattern in has.iter().chain(held.filter(|pattern| !has.contains(pattern))) {
                self.presence.note(&found.profile, pattern, false);
            }
            self.fleet.leave(&mut self.store, conn.index);
            self.fleet.remove(conn.index);
        }
    }

    /// The patterns of a connection, in order.
    #[must_use]
    pub fn subscriptions(&self, conn: ConnKey) -> &[Box<str>] {
        self.fleet.get(conn).map_or(&[], |_| self.fleet.patterns(conn.index))
    }

    /// A connection is somebody else's rights from now on (the token was refreshed, or rights changed).
    ///
    /// Returns: the patterns that it may no longer have, and has no longer.
    pub fn set_rights(&mut self, conn: ConnKey, rights: Rights, now_ms: u64) -> Vec<Box<str>> {
        let Some(found) = self.fleet.get(conn) else { return Vec::new() };
        let profile = Profile { rights, ..(*found.profile).clone() };
        let (mut lost, kept): (Vec<_>, Vec<_>) =
            self.fleet.patterns(conn.index).iter().cloned().partition(|pattern| profile.rights.check(pattern).is_err());
        for pattern in self.catch_up_less(conn, |pattern| profile.rights.check(pattern).is_ok()) {
            if !lost.contains(&pattern) {
                lost.push(pattern);
            }
        }
        for pattern in &lost {
            self.note_presence(conn, pattern, false);
        }
        self.fleet.set_profile(conn.index, profile);
        let standing = self.fleet.standing(conn.index, self.store.order);
        self.settle_in(conn.index, kept, standing, now_ms);
        lost
    }

    // --- keeping house -----------------------------------------------------------------------------------------------

    /// So many connections of a shard were written to, which took so long.
    pub fn spent(&mut self, shard: Shard, frames: u64, busy_us: u64) {
        if let Some(agenda) = self.fleet.agendas.get_mut(shard.index()) {
            agenda.governor.spent(frames, busy_us);
        }
    }

    /// Gaps that were told to connections, by reason.
    #[must_use]
    pub const fn gaps(&self) -> &BTreeMap<Box<str>, u64> {
        &self.gaps
    }

    /// Frames by how long their oldest event was here before they were given to a connection. What a connection gets of the
    /// past that it asked for is not in it; a frame that was put back counts again when it is given again.
    #[must_use]
    pub const fn ages(&self) -> &Ages {
        &self.lag.ages
    }

    /// So many connections are told a gap.
    fn count_gaps(&mut self, reason: &str, count: u64) {
        if count > 0 {
            match self.gaps.get_mut(reason) {
                Some(counted) => *counted += count,
                None => drop(self.gaps.insert(reason.into(), count)),
            }
        }
    }

    /// What was counted. Looks at every cohort: for somebody who asks now and then.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (behind, furthest) = self.fleet.behind(self.store.order);
        Stats {
            behind,
            furthest,
            connections: self.fleet.len() as u64,
            subscriptions: self.fleet.subscriptions() as u64,
            topics: self.store.topic_count() as u64,
            audiences: self.fleet.audience_count() as u64,
            cohorts: self.fleet.cohort_count() as u64,
            bytes: self.store.bytes as u64,
            window_ms: self.fleet.agendas.iter().map(|agenda| agenda.governor.window_ms()).max().unwrap_or(0),
            ..self.stats
        }
    }
}
