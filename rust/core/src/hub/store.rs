//! Everything this process heard lately: the topics' logs, and the one order in which their events came.
//!
//! Strategy: each event gets the next number of the order, and a ring says by that number whose event it was. So a reader is
//! one number, whatever it hears; the state at a number (the journal's sequence number, the last line of each log) is its
//! position. Marks say where the journal was.
//!
//! Rules: memory is bounded by topic and in all, the oldest goes first; an order number is used for a tear in a topic too, so
//! that everyone who has not come so far is told of it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::hint;
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use hashbrown::{HashSet, HashTable};

use super::log::{Kind, TopicLog};
use super::position::{self, Position, execution_of_log, execution_of_status};
use super::reader::seen_of;
use super::topic::is_local;
use super::topic_rules::TopicRules;
use super::{Event, Limits};

/// Logs of executions that are over stay in positions until this many others are over, since late lines may follow.
const ENDED_KEPT: usize = 32;
/// Slots of the ring: no topic may hold an event that is older than so many others.
const RING: usize = 1 << 20;
const NOBODY: u32 = u32::MAX;

/// An event was remembered; the log that was made since it begins with it.
pub(super) struct Heard(pub(super) Option<u32>);

#[derive(Debug)]
pub(super) struct Store {
    limits: Limits,
    seed: (u64, SharedSeed),
    pub(super) epoch: Box<str>,
    pub(super) local_epoch: Box<str>,
    /// The epoch of ephemeral events, how many there were, and why the one before ended.
    pub(super) ephemeral_epoch: Box<str>,
    losses: u64,
    pub(super) lost_by: Box<str>,
    /// How far the journal has come, and where this process began to hear it.
    pub(super) seq: u64,
    start_seq: u64,
    topics: Vec<Option<TopicLog>>,
    free: Vec<u32>,
    table: HashTable<u32>,
    /// One copy of each name.
    pub(super) tenants: HashSet<Arc<str>>,
    pub(super) rules: TopicRules,
    /// The number of the latest event, and the topics from `base` on.
    pub(super) order: u64,
    pub(super) base: u64,
    pub(super) ring: VecDeque<u32>,
    /// (order, sequence number): from that order on the journal was there.
    pub(super) marks: VecDeque<(u64, u64)>,
    /// All log topics, and all local ones, that have events.
    logs: Vec<u32>,
    locals: Vec<u32>,
    ended: VecDeque<u32>,
    pub(super) bytes: usize,
    /// No journal topic was cut above this number, no topic of any kind above this order.
    cut_seq: u64,
    pub(super) cut_order: u64,
    /// What is no longer known at all lies at or below this number of the journal.
    forgotten_seq: u64,
    /// The same of the numbers that this process gives: within their epoch none of them is given twice.
    own_forgotten: u64,
    /// From this order on the position of every tenant is the same: only events that are in none have come since.
    settled: u64,
    /// The position since then of the tenant that was asked for last.
    latest: Option<(Box<str>, String)>,
}

impl Store {
    pub(super) fn new(limits: Limits, seed: u64, local_epoch: &str) -> Self {
        Self {
            limits,
            seed: (seed, SharedSeed::from_u64(seed)),
            epoch: "".into(),
            local_epoch: local_epoch.into(),
            ephemeral_epoch: format!("{local_epoch}.0").into(),
            losses: 0,
            lost_by: "".into(),
            seq: 0,
            start_seq: 0,
            topics: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            tenants: HashSet::new(),
            rules: TopicRules::default(),
            order: 0,
            base: 1,
            ring: VecDeque::new(),
            marks: [(0, 0)].into(),
            logs: Vec::new(),
            locals: Vec::new(),
            ended: VecDeque::new(),
            bytes: 0,
            cut_seq: 0,
            cut_order: 0,
            forgotten_seq: 0,
            own_forgotten: 0,
            settled: 0,
            latest: None,
        }
    }

    // --- topics ------------------------------------------------------------------------------------------------------

    pub(super) fn topic(&self, id: u32) -> Option<&TopicLog> {
        self.topics.get(id as usize)?.as_ref()
    }

    pub(super) fn topic_mut(&mut self, id: u32) -> Option<&mut TopicLog> {
        self.topics.get_mut(id as usize)?.as_mut()
    }

    /// Looks at topics that are about to be needed one after the other. The processor waits for memory that was not used lately,
    /// but here for that of several at once, since none depends on another.
    pub(super) fn glance(&self, ids: impl Iterator<Item = u32>) {
        hint::black_box(ids.filter_map(|id| self.topic(id)).fold(0, |seen, topic| seen ^ topic.glance()));
    }

    pub(super) fn topics(&self) -> impl Iterator<Item = (u32, &TopicLog)> {
        self.topics.iter().enumerate().filter_map(|(id, topic)| Some((id as u32, topic.as_ref()?)))
    }

    /// Above the ids of all topics.
    pub(super) fn ids_end(&self) -> u32 {
        self.topics.len() as u32
    }

    pub(super) fn topic_count(&self) -> usize {
        self.table.len()
    }

    /// The one copy of a tenant's name.
    pub(super) fn tenant(&mut self, name: &str) -> Arc<str> {
        Arc::clone(self.tenants.get_or_insert_with(name, |name| name.into()))
    }

    fn hash(&self, tenant: &str, name: &str, ephemeral: bool) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed.0, &self.seed.1);
        hasher.write(tenant.as_bytes());
        hasher.write_u8(if ephemeral { 0xfe } else { 0xff });
        hasher.write(name.as_bytes());
        hasher.finish()
    }

    /// The topic of this name: that of the journal, or the ephemeral one beside it.
    pub(super) fn find(&self, tenant: &str, name: &str, ephemeral: bool) -> Option<u32> {
        let is_it = |id: &u32| {
            self.topic(*id).is_some_and(|topic| {
                &*topic.name == name
                    && &*topic.tenant == tenant
                    && matches!(topic.kind, Kind::Ephemeral | Kind::Loss) == ephemeral
            })
        };
        self.table.find(self.hash(tenant, name, ephemeral), is_it).copied()
    }

    /// The same, made when there is none; and whether it was made.
    pub(super) fn open(&mut self, tenant: &str, name: &str, ephemeral: bool) -> (u32, bool) {
        if let Some(id) = self.find(tenant, name, ephemeral) {
            return (id, false);
        }
        let kind = match execution_of_log(name) {
            _ if ephemeral && name.ends_with(".*") => Kind::Loss,
            _ if ephemeral => Kind::Ephemeral,
            Some(execution) => Kind::Log(execution.into()),
            None if is_local(name) => Kind::Local,
            None => Kind::Journal,
        };
        let hash = self.hash(tenant, name, ephemeral);
        let latest = if kind == Kind::Loss { None } else { self.rules.latest_of(name) };
        let tenant = self.tenant(tenant);
        let mut topic = TopicLog::new(tenant, name, kind, hash, self.rules.bound_of(name, &self.limits));
        topic.latest = latest;
        if topic.kind.is_own() {
            topic.last_seq = self.own_forgotten;
        }
        let topic = Some(topic);
        let id = if let Some(id) = self.free.pop() {
            self.topics[id as usize] = topic;
            id
        } else {
            self.topics.push(topic);
            self.topics.len() as u32 - 1
        };
        let topics = &self.topics;
        self.table.insert_unique(hash, id, |id| topics[*id as usize].as_ref().map_or(0, |topic| topic.hash));
        (id, true)
    }

    /// Gives up a topic that has nothing; one that was heard of is in lists still (`unlist`).
    pub(super) fn forget(&mut self, id: u32) {
        let Some(topic) = self.topics[id as usize].take() else { return };
        if let Ok(place) = self.table.find_entry(topic.hash, |other| *other == id) {
            place.remove();
        }
        self.free.push(id);
        if topic.kind.is_own() {
            self.own_forgotten = self.own_forgotten.max(topic.last_seq);
        } else if topic.heard {
            // A log is wanted by who has it in its position, which is looked at apart, or was not there when it began.
            let last = if topic.kind == Kind::Journal { topic.last_seq } else { topic.born_seq + 1 };
            self.forgotten_seq = self.forgotten_seq.max(last.min(self.seq));
        }
    }

    /// Takes topics out of the lists that were given up since, before their ids are used again.
    pub(super) fn unlist(&mut self) {
        let topics = &self.topics;
        let is_there = |id: &u32| topics[*id as usize].is_some();
        self.logs.retain(is_there);
        self.locals.retain(is_there);
        self.ended.retain(is_there);
    }

    // --- hearing -----------------------------------------------------------------------------------------------------

    /// Remembers an event of a topic, unless it was heard before.
    pub(super) fn append(&mut self, id: u32, event: &Event<'_>, now_ms: u64) -> Option<Heard> {
        let (seq, begun) = (self.seq, self.start_seq.max(self.forgotten_seq));
        let topic = self.topics[id as usize].as_mut()?;
        let was_heard = match topic.kind {
            Kind::Journal => event.seq <= seq,
            Kind::Log(_) => event.seq <= topic.last_seq,
            _ => false,
        };
        if was_heard {
            // A topic that was made for it would be one that nobody was told of.
            self.release(id);
            return None;
        }
        let before = topic.bytes;
        let (number, prev) = match topic.kind {
            Kind::Journal => (event.seq, event.prev),
            Kind::Log(_) => (event.seq, event.seq - 1),
            Kind::Local | Kind::Ephemeral | Kind::Loss => (topic.last_seq + 1, topic.last_seq),
        };
        let mut order = self.order;
        let is_log = matches!(topic.kind, Kind::Log(_));
        if topic.heard {
            if prev > topic.last_seq {
                order += 1;
                topic.tear(order, prev);
            }
        } else {
            (topic.heard, topic.floor_seq, topic.born_seq, topic.born_order) = (true, prev, seq, order + 1);
            match topic.kind {
                Kind::Journal if prev > begun => {
                    order += 1;
                    topic.tear(order, prev);
                }
                Kind::Journal => {}
                Kind::Log(_) => self.logs.push(id),
                Kind::Local | Kind::Ephemeral | Kind::Loss => self.locals.push(id),
            }
        }
        let relisted = is_log && !topic.listed && !std::mem::replace(&mut topic.listed, true) && topic.last_seq > 0;
        if relisted {
            topic.again.push((seq, prev));
        }
        if order > self.order {
            self.ring.push_back(NOBODY);
            (self.cut_order, self.cut_seq) = (order, self.cut_seq.max(if is_log { 0 } else { prev }));
        }
        order += 1;
        topic.push(order, number, event.ts_us, event.json().as_bytes(), now_ms);
        self.bytes = self.bytes + topic.bytes - before;
        let (bound, too_many) = (topic.bound, topic.entries.len() > topic.bound.events);
        let too_much = topic.bytes > bound.bytes;
        let (is_positioned, is_own) = (matches!(topic.kind, Kind::Journal | Kind::Log(_)), topic.kind.is_own());
        if topic.kind == Kind::Journal {
            self.seq = number;
            self.marks.push_back((order, number));
        }
        self.ring.push_back(id);
        self.order = order;
        if relisted {
            self.note_end(id);
        }
        if too_many {
            self.cut(id, TopicLog::cut_one);
        }
        if too_much {
            self.cut_until(id, bound.bytes / 4 * 3);
        }
        if self.bytes > self.limits.total_bytes || self.ring.len() > RING {
            self.cut_oldest();
        }
        let log = if is_own { None } else { self.begin_log(event) };
        if is_positioned {
            self.unsettle();
        }
        Some(Heard(log))
    }

    /// With the first status of an execution its log begins: from then on it is in positions, the same in every process.
    fn begin_log(&mut self, event: &Event<'_>) -> Option<u32> {
        let Some(execution) = begun_by(event) else {
            self.go_on(event);
            return None;
        };
        let (id, made) = self.open(event.tenant, &format!("execution.{execution}.log"), false);
        let order = self.order;
        let topic = self.topic_mut(id).filter(|topic| topic.kind != Kind::Journal)?;
        topic.born_seq = event.seq;
        if !std::mem::replace(&mut topic.heard, true) {
            (topic.listed, topic.born_order) = (true, order);
            self.logs.push(id);
        }
        made.then_some(id)
    }

    /// A status of an execution that was over long ago: it is tried again, and its log is in positions again.
    fn go_on(&mut self, event: &Event<'_>) {
        let Some(execution) = execution_of_status(event.topic) else { return };
        let Some(id) = self.find(event.tenant, &format!("execution.{execution}.log"), false) else { return };
        if let Some(topic) = self.topic_mut(id).filter(|topic| topic.heard && !topic.listed) {
            topic.listed = true;
            topic.again.push((event.seq, topic.last_seq));
            self.ended.retain(|other| *other != id);
        }
    }

    /// Everything up to here was considered.
    pub(super) fn advance(&mut self, seq: u64) {
        if seq > self.seq {
            self.seq = seq;
            match self.marks.back_mut() {
                Some(mark) if mark.0 == self.order => mark.1 = seq,
                _ => self.marks.push_back((self.order, seq)),
            }
            self.unsettle();
        }
    }

    /// An execution is over: its log stays in positions for a while only.
    pub(super) fn over(&mut self, tenant: &str, execution: &str) {
        let is_it = |topic: &TopicLog| {
            topic.listed && &*topic.tenant == tenant && matches!(&topic.kind, Kind::Log(whose) if &**whose == execution)
        };
        let found = self.logs.iter().copied().find(|id| self.topic(*id).is_some_and(is_it));
        if let Some(id) = found {
            self.note_end(id);
        }
    }

    fn note_end(&mut self, id: u32) {
        if !self.ended.contains(&id) {
            self.ended.push_back(id);
        }
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
            && let Some(topic) = self.topic_mut(oldest)
        {
            topic.listed = false;
            self.unsettle();
        }
    }

    /// Begins anew: nothing of the journal and the logs is known any more.
    pub(super) fn restart(&mut self, epoch: &str, seq: u64) {
        (self.epoch, self.seq, self.start_seq, self.forgotten_seq, self.cut_seq) = (epoch.into(), seq, seq, 0, 0);
        self.marks = [(self.order, seq)].into();
        self.unsettle();
        (self.logs, self.ended) = (Vec::new(), VecDeque::new());
        for id in 0..self.topics.len() as u32 {
            let Some(topic) = self.topic_mut(id).filter(|topic| !topic.kind.is_own()) else { continue };
            self.bytes -= topic.begin_anew();
        }
        self.trim();
    }

    /// Ephemeral events were lost: those that come are of another epoch. Who hears of it.
    pub(super) fn lose(&mut self, reason: &str) -> Vec<u32> {
        self.losses += 1;
        self.lost_by = reason.into();
        self.ephemeral_epoch = format!("{}.{}", self.local_epoch, self.losses).into();
        self.order += 1;
        self.ring.push_back(NOBODY);
        self.cut_order = self.order;
        let (order, mut told, mut lost) = (self.order, Vec::new(), 0);
        for topic in self.topics.iter_mut().flatten() {
            match topic.kind {
                Kind::Ephemeral => lost += topic.begin_anew(),
                Kind::Loss => {
                    topic.tear(order, 0);
                    told.extend(topic.audiences.iter());
                }
                _ => {}
            }
        }
        self.bytes -= lost;
        let topics = &self.topics;
        self.locals.retain(|id| topics[*id as usize].as_ref().is_some_and(|topic| topic.kind != Kind::Ephemeral));
        self.trim();
        told.sort_unstable();
        told.dedup();
        told
    }

    // --- bounds ------------------------------------------------------------------------------------------------------

    pub(super) fn cut(&mut self, id: u32, way: impl Fn(&mut TopicLog)) {
        let Some(topic) = self.topics[id as usize].as_mut() else { return };
        let before = topic.bytes;
        way(topic);
        self.cut_order = self.cut_order.max(topic.floor_order);
        if topic.kind == Kind::Journal {
            self.cut_seq = self.cut_seq.max(topic.floor_seq);
        }
        self.bytes -= before - topic.bytes;
    }

    fn cut_until(&mut self, id: u32, bytes: usize) {
        while self.topic(id).is_some_and(|topic| topic.bytes > bytes && topic.slab_count() > 1) {
            self.cut(id, TopicLog::cut);
        }
        self.trim();
    }

    fn cut_oldest(&mut self) {
        self.trim();
        while self.bytes > self.limits.total_bytes || self.ring.len() > RING {
            let Some(id) = self.ring.front().copied() else { return };
            self.cut(id, TopicLog::give_way);
            self.trim();
        }
    }

    /// Forgets a topic that was there for its subscribers alone; it is in no list.
    pub(super) fn release(&mut self, id: u32) {
        if self.topic(id).is_some_and(|topic| !topic.heard && topic.audiences.is_empty()) {
            self.forget(id);
        }
    }

    // --- positions ---------------------------------------------------------------------------------------------------

    /// The journal's number at an order that is not behind the ring.
    fn seq_at(&self, order: u64) -> u64 {
        let index = self.marks.partition_point(|mark| mark.0 <= order);
        self.marks.get(index.saturating_sub(1)).map_or(self.start_seq, |mark| mark.1)
    }

    fn lines_at(&self, order: u64, tenant: &str) -> impl Iterator<Item = (&str, u64)> {
        self.logs.iter().filter_map(move |id| {
            let topic = self.topic(*id)?;
            let Kind::Log(execution) = &topic.kind else { return None };
            // Who is there has its last lines still to get, however long it has been over since.
            let is_open = topic.listed || topic.entries.back().is_some_and(|last| last.order > order);
            let counts = is_open && topic.born_order <= order && &*topic.tenant == tenant;
            counts.then(|| (&**execution, topic.seq_at(order)))
        })
    }

    /// Nothing that came before is here.
    pub(super) const fn first_order(&self) -> u64 {
        self.base
    }

    /// The position of who has had everything up to an order, as clients see it; who is behind everything that is here has to
    /// be told so first.
    pub(super) fn encode_position(&self, order: u64, tenant: &str) -> Cow<'_, str> {
        match &self.latest {
            Some((whose, latest)) if order >= self.settled && **whose == *tenant => {
                debug_assert_eq!(*latest, self.encode_anew(order, tenant));
                Cow::Borrowed(latest)
            }
            _ => Cow::Owned(self.encode_anew(order, tenant)),
        }
    }

    fn encode_anew(&self, order: u64, tenant: &str) -> String {
        let order = order.max(self.base - 1).min(self.order);
        position::encode(&self.epoch, self.seq_at(order), self.lines_at(order, tenant))
    }

    /// Keeps the latest position of a tenant at hand.
    pub(super) fn remember_position(&mut self, tenant: &str) {
        if self.latest.as_ref().is_none_or(|(whose, _)| **whose != *tenant) {
            self.latest = Some((tenant.into(), self.encode_anew(self.order, tenant)));
        }
    }

    /// Positions change with the present order.
    fn unsettle(&mut self) {
        (self.settled, self.latest) = (self.order, None);
    }

    /// How far this process has come.
    pub(super) fn position(&self, tenant: &str) -> Position {
        let logs = self.lines_at(self.order, tenant).map(|(execution, line)| (execution.into(), line)).collect();
        Position { epoch: self.epoch.clone(), seq: self.seq, logs }
    }

    /// The same with the topics of all tenants.
    pub(super) fn position_of_all(&self) -> Position {
        let listed = self.logs.iter().filter_map(|id| self.topic(*id)).filter(|topic| topic.listed);
        let logs = listed.filter_map(|topic| match &topic.kind {
            Kind::Log(execution) => Some((execution.clone(), topic.last_seq)),
            _ => None,
        });
        Position { epoch: self.epoch.clone(), seq: self.seq, logs: logs.collect() }
    }

    /// The order before the first event after a position, of the topics that are wanted; local ones do not count.
    pub(super) fn order_of(&self, position: &Position, born_from: u64, wanted: impl Fn(&TopicLog) -> bool) -> u64 {
        let index = self.marks.partition_point(|mark| mark.1 <= position.seq);
        let mut order = self.marks.get(index).map_or(self.order, |mark| mark.0.saturating_sub(1));
        for topic in self.logs.iter().filter_map(|id| self.topic(*id)).filter(|topic| wanted(topic)) {
            let first = seen_of(position, born_from, topic).and_then(|seen| topic.entries.get(topic.after_seq(seen)));
            order = first.map_or(order, |entry| order.min(entry.order - 1));
        }
        order
    }

    /// Whether something since a position is not here, so that only the daemon can tell it.
    ///
    /// A log of the position that was never heard of here may have lines that are older than this process; `settled` says that
    /// the daemon has told them.
    pub(super) fn misses(
        &self,
        position: &Position,
        born_from: u64,
        settled: bool,
        wanted: impl Fn(&TopicLog) -> bool,
        wants_log: impl Fn(&str) -> bool,
    ) -> bool {
        if position.seq < self.start_seq.max(self.forgotten_seq) {
            return true;
        }
        let is_cut = |topic: &TopicLog| topic.kind == Kind::Journal && topic.heard && topic.floor_seq > position.seq;
        if self.cut_seq > position.seq && self.topics().any(|(_, topic)| is_cut(topic) && wanted(topic)) {
            return true;
        }
        let mut logs = self.logs.iter().filter_map(|id| self.topic(*id)).filter(|topic| wanted(topic));
        if logs.any(|topic| seen_of(position, born_from, topic).is_some_and(|seen| seen < topic.floor_seq)) {
            return true;
        }
        let is_known = |execution: &str| {
            let mut logs = self.logs.iter().filter_map(|id| self.topic(*id));
            logs.any(|topic| matches!(&topic.kind, Kind::Log(whose) if &**whose == execution))
        };
        !settled && position.logs.keys().any(|execution| wants_log(execution) && !is_known(execution))
    }

    /// Whether this process has heard everything that a position covers.
    pub(super) fn covers(&self, position: &Position) -> bool {
        let behind = |topic: &TopicLog| match &topic.kind {
            Kind::Log(execution) => position.logs.get(execution).is_some_and(|line| *line > topic.last_seq),
            _ => false,
        };
        position.seq <= self.seq && !self.logs.iter().filter_map(|id| self.topic(*id)).any(behind)
    }

    /// Whether a log was heard of here.
    pub(super) fn knows_log(&self, execution: &str) -> bool {
        self.logs.iter().filter_map(|id| self.topic(*id)).any(|topic| topic.kind == Kind::Log(execution.into()))
    }

    /// The epoch of a topic's numbers.
    pub(super) fn epoch_of(&self, topic: &TopicLog) -> &str {
        match topic.kind {
            Kind::Journal | Kind::Log(_) => &self.epoch,
            Kind::Local => &self.local_epoch,
            Kind::Ephemeral | Kind::Loss => &self.ephemeral_epoch,
        }
    }

    /// Topics of this process alone with events.
    pub(super) fn locals(&self) -> impl Iterator<Item = &TopicLog> {
        self.locals.iter().filter_map(|id| self.topic(*id))
    }

    /// Whose events came after an order, with their orders; None where the ring does not reach back.
    pub(super) fn ring_after(&self, order: u64) -> Option<impl Iterator<Item = (u64, u32)>> {
        let skip = (order + 1).checked_sub(self.base)? as usize;
        let ids = self.ring.range(skip.min(self.ring.len())..);
        Some(ids.enumerate().map(move |(index, id)| (order + 1 + index as u64, *id)).filter(|(_, id)| *id != NOBODY))
    }
}

/// The execution that an event is the first of.
pub(super) fn begun_by<'a>(event: &Event<'a>) -> Option<&'a str> {
    if event.prev > 0 { None } else { execution_of_status(event.topic) }
}
