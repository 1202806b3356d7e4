//! Who is served next, and with what.
//!
//! Strategy: [`Hub::take`] serves cohorts that are due, the one that waits longest first, each with one turn, and takes for
//! granted that all of it is sent; the shell says where it was not. A turn is everything of the audience's topics after the
//! cohort's cursor, in the order it came, up to a bound of bytes; what was cut before the cohort had it is told before. The
//! events are found by looking into the audience's topics when these are few, along the ring otherwise, so the cost goes with
//! the events or the topics, whichever are fewer.
//!
//! Rule: the same events of a topic make the same frame for everyone; within one `take` it is built once for all audiences.

use std::slice;
use std::sync::Arc;

use hashbrown::HashMap;

use super::audience::{Audience, Standing, State};
use super::frame::{self, Bench, Frame, Gap, Run, Turn};
use super::lag::Ages;
use super::latest::SUPERSEDED;
use super::log::{Kind, TopicLog};
use super::reader::Joins;
use super::{COHORT, ConnKey, Dialect, Hub, Shard};

/// Topics that are looked into one by one in any case.
const FEW: usize = 8;

/// Why what was cut is not told.
pub(super) const EVICTED: &str = "evicted";

/// A connection and what it gets.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Who gets it.
    pub conn: ConnKey,
    /// All its frames, in order.
    pub turn: Arc<Turn>,
}

/// Events of a topic between two orders, in a dialect.
type Stretch = (u32, u64, u64, Dialect);

/// What was built in this `take`.
#[derive(Default)]
struct Built {
    /// Frames, each with the order of its first event: by the orders of the first and the last.
    frames: HashMap<Stretch, Arc<[(Frame, u64)]>>,
    last: Option<Last>,
    bench: Bench,
}

/// The last turn of one run and nothing else: by where it begins and ends.
struct Last {
    stretch: Stretch,
    turn: Arc<Turn>,
    ages: Ages,
}

/// An event that is to be told: its order, topic, and index there.
pub(super) type Pick = (u64, u32, usize);

impl Hub {
    /// Adds what is due in a shard to `out`, for at most `room` connections. Who serves it asks `wakes_at` before it sleeps.
    pub fn take(&mut self, shard: Shard, now_ms: u64, room: usize, out: &mut Vec<Delivery>) {
        self.awake(shard);
        if let Some(agenda) = self.fleet.agendas.get_mut(shard.index()) {
            agenda.given_from = u64::MAX;
        }
        let due = self.fleet.due(shard, now_ms).take(room.min(COHORT)).filter_map(|id| self.fleet.cohort(id));
        let audiences = due.filter_map(|cohort| self.fleet.audience(cohort.audience));
        self.store.glance(audiences.map(|audience| audience.fresh.topic));
        let mut built = Built::default();
        let full = out.len() + room;
        // Once each: what a connection did with one turn is said before it gets another.
        let mut again = Vec::new();
        while out.len() < full
            && let Some(cohort) = self.fleet.next(shard, now_ms)
        {
            if self.serve(cohort, now_ms, full - out.len(), &mut built, out) {
                again.push(cohort);
            }
        }
        for cohort in again {
            self.fleet.queue(cohort, now_ms, 0);
        }
    }

    /// Whoever serves a shard is at work, and asks `wakes_at` before it sleeps: it need not be called until then.
    pub fn awake(&mut self, shard: Shard) {
        self.fleet.awake(shard);
    }

    /// When `take` has something next for a shard, by the clock of the caller; None when it waits for events. What comes to be
    /// due before that is told by `called`.
    #[must_use]
    pub fn wakes_at(&mut self, shard: Shard) -> Option<u64> {
        self.fleet.wakes_at(shard)
    }

    /// Shards that have something due before the time that `wakes_at` said: whoever serves them sleeps, and is to be woken.
    pub fn called(&mut self) -> Vec<Shard> {
        std::mem::take(&mut self.fleet.called)
    }

    /// A connection took only the first `taken` frames of a turn: it goes on after them when it is `writable`.
    pub fn put_back(&mut self, conn: ConnKey, turn: &Turn, taken: usize) {
        if self.fleet.get(conn).is_none() {
            return;
        }
        self.fleet.set_busy(conn.index, true);
        if taken >= turn.frames.len() {
            return;
        }
        let present = self.fleet.standing(conn.index, self.store.order);
        if present.reset {
            // The turn is of a history that has ended since: the gap that is still to be told covers the rest of it, and
            // where its subscriptions began means nothing in the new one.
            return;
        }
        let standing = Standing {
            cursor: if taken == 0 { turn.start } else { turn.frames[taken - 1].end },
            idle: false,
            served_ms: present.served_ms,
            joins: turn.joins.clone(),
            reset: turn.reset && taken == 0,
            behind_ms: turn.behind_ms.or(Some(present.served_ms)),
        };
        self.fleet.part(conn.index, standing);
    }

    /// A connection took all, and has no room for more until it is `writable`.
    pub fn busy(&mut self, conn: ConnKey) {
        if self.fleet.get(conn).is_some() {
            self.fleet.set_busy(conn.index, true);
        }
    }

    /// A connection has room again.
    pub fn writable(&mut self, conn: ConnKey, now_ms: u64) {
        if self.fleet.get(conn).is_some() {
            self.fleet.set_busy(conn.index, false);
            self.fleet.wake(conn.index, now_ms);
        }
    }

    /// Serves a cohort; whether it has more to get.
    fn serve(&mut self, id: u32, now_ms: u64, room: usize, built: &mut Built, out: &mut Vec<Delivery>) -> bool {
        if !self.part_busy(id, now_ms) {
            return false;
        }
        if let Some(rest) = self.fleet.split(id, room) {
            self.fleet.queue(rest, now_ms, 0);
        }
        let top = self.store.order;
        let audience = self.fleet.cohort(id).and_then(|cohort| self.fleet.audience(cohort.audience));
        if let Some(audience) = audience {
            self.store.remember_position(&audience.tenant);
        }
        let Some(turn) = self.build(id, now_ms, built) else {
            if let Some(cohort) = self.fleet.cohort_mut(id) {
                cohort.cursor = top;
            }
            self.settle_cohort(id, now_ms);
            return false;
        };
        let (end, before) = (turn.frames.last().map_or(top, |frame| frame.end), out.len());
        if let Some(cohort) = self.fleet.cohort_mut(id) {
            (cohort.cursor, cohort.served_ms, cohort.reset) = (end, now_ms, false);
        }
        if let Some(cohort) = self.fleet.cohort(id) {
            let members = cohort.members.iter();
            out.extend(members.map(|index| Delivery { conn: self.fleet.key(*index), turn: Arc::clone(&turn) }));
        }
        let served = (out.len() - before) as u64;
        self.turned(id, served, 0, turn.start);
        self.stats.frames += served * turn.frames.len() as u64;
        self.stats.delivered += served * turn.frames.iter().map(|frame| u64::from(frame.events)).sum::<u64>();
        self.stats.sent_bytes += served * turn.frames.iter().map(|frame| frame.payload.len() as u64).sum::<u64>();
        if end >= top {
            self.settle_cohort(id, now_ms);
        }
        end < top
    }

    /// A cohort has come to the present.
    fn settle_cohort(&mut self, id: u32, now_ms: u64) {
        let top = self.store.order;
        if let Some(cohort) = self.fleet.cohort_mut(id)
            && cohort.joins.as_ref().is_some_and(|joins| joins.are_past(top, &self.store, now_ms))
        {
            cohort.joins = None;
        }
        self.fleet.settle(id);
    }

    /// Members that have no room go on alone, later; whether anybody is left.
    fn part_busy(&mut self, id: u32, now_ms: u64) -> bool {
        let Some(cohort) = self.fleet.cohort_mut(id) else { return false };
        if cohort.busy == 0 {
            return true;
        }
        let late = u64::from(cohort.busy);
        if cohort.members.len() == 1 {
            cohort.state = State::Held;
            cohort.behind_ms.get_or_insert(now_ms);
            self.turned(id, 0, late, u64::MAX);
            return false;
        }
        let (mut standing, members) = (cohort.standing(), cohort.members.clone());
        standing.behind_ms.get_or_insert(now_ms);
        self.turned(id, 0, late, u64::MAX);
        for &index in members.iter() {
            if self.fleet.conn(index).is_some_and(|conn| conn.busy) {
                self.fleet.part(index, standing.clone());
            }
        }
        self.fleet.cohort(id).is_some()
    }

    /// So many members of a cohort got a turn that begins at an order; so many were still writing.
    fn turned(&mut self, cohort: u32, served: u64, late: u64, start: u64) {
        let audience = self.fleet.cohort(cohort).and_then(|cohort| self.fleet.audience(cohort.audience));
        if let Some(shard) = audience.map(|audience| audience.shard) {
            let agenda = &mut self.fleet.agendas[shard.index()];
            agenda.governor.turned(served, late);
            agenda.given_from = agenda.given_from.min(start);
        }
    }

    // --- what a cohort gets ------------------------------------------------------------------------------------------

    fn build(&mut self, id: u32, now_ms: u64, built: &mut Built) -> Option<Arc<Turn>> {
        let cohort = self.fleet.cohort(id)?;
        let audience = self.fleet.audience(cohort.audience)?;
        let (dialect, start, reset, joins) = (audience.dialect, cohort.cursor, cohort.reset, cohort.joins.clone());
        let (count, behind_ms) = (cohort.members.len() as u64, cohort.behind_ms);
        let lags = joins.is_none() && behind_ms.is_some_and(|since_ms| now_ms >= since_ms + self.limits.lag_ms);
        let (runs, end) = self.runs_after(audience, start, joins.as_deref(), lags);
        let is_plain = joins.is_none() && !reset && behind_ms.is_none() && self.store.cut_order <= start;
        let stretch = runs.only().filter(|_| is_plain).map(|run| (run.topic, start, end, dialect));
        if let Some(last) = built.last.as_ref().filter(|last| Some(last.stretch) == stretch) {
            self.lag.given(&last.ages, count);
            return Some(Arc::clone(&last.turn));
        }
        let mut frames = Vec::with_capacity(runs.rest.len() + 1);
        if reset {
            frames.push(self.restart_frame(&audience.tenant, dialect, start));
        }
        let told = frames.len();
        let lost = self.tell_cuts(audience, start, joins.as_deref(), &mut frames);
        let evicted = (frames.len() - told) as u64 - lost;
        let superseded = self.tell_left_out(runs.left_out, dialect, &mut frames);
        for frame in &mut frames {
            frame.end = start;
        }
        let (alone, mut is_shared, mut ages) = (audience.cohorts == 1, false, Ages::default());
        for run in runs.first.into_iter().chain(runs.rest) {
            let Some(topic) = self.store.topic(run.topic) else { continue };
            if alone && topic.audiences.len() == 1 {
                self.frames_of(run, dialect, &mut built.bench, |frame, first| {
                    frames.push(frame);
                    ages.note(self.lag.age_ms(first, now_ms));
                });
                continue;
            }
            is_shared = true;
            let key = (run.topic, topic.entries[run.from].order, topic.entries[run.to - 1].order, dialect);
            let Built { frames: ready, bench, .. } = &mut *built;
            let ready = ready.entry(key).or_insert_with(|| {
                let mut made = Vec::new();
                self.frames_of(run, dialect, bench, |frame, first| made.push((frame, first)));
                made.into()
            });
            for (frame, first) in ready.iter() {
                frames.push(frame.clone());
                ages.note(self.lag.age_ms(*first, now_ms));
            }
        }
        frames.last_mut()?.end = end;
        if joins.is_none() {
            self.lag.given(&ages, count);
        }
        self.count_gaps(EVICTED, evicted * count);
        self.count_gaps(SUPERSEDED, superseded * count);
        if lost > 0 {
            self.count_gaps(&self.store.lost_by.clone(), lost * count);
        }
        if reset {
            self.count_gaps(&self.restarted_by.clone(), count);
        }
        let turn = Arc::new(Turn { number: self.stats.turns, dialect, frames, start, joins, reset, behind_ms });
        self.stats.turns += 1;
        if is_shared {
            built.last = stretch.map(|stretch| Last { stretch, turn: Arc::clone(&turn), ages });
        }
        Some(turn)
    }

    fn frames_of(&self, run: Run, dialect: Dialect, bench: &mut Bench, each: impl FnMut(Frame, u64)) {
        frame::frames_of(&self.store, run, dialect, self.limits.frame_bytes, bench, each);
    }

    /// The history ended; what follows is new from `order` on.
    pub(super) fn restart_frame(&self, tenant: &str, dialect: Dialect, order: u64) -> Frame {
        let pos = self.store.encode_position(order, tenant);
        let (epoch, reason) = (&*self.store.epoch, &*self.restarted_by);
        let gap = Gap { topic: None, between: None, epoch, reason, pos: Some(&pos), log_of: None };
        frame::gap(&gap, dialect)
    }

    /// Gaps of topics of which something was cut that a reader at this order has not had; how many of these tell that ephemeral
    /// events were lost on their way.
    pub(super) fn tell_cuts(
        &self,
        audience: &Audience,
        start: u64,
        joins: Option<&Joins>,
        frames: &mut Vec<Frame>,
    ) -> u64 {
        let mut lost = 0;
        if self.store.cut_order <= start {
            return lost;
        }
        for topic in audience.topics.iter().filter_map(|id| self.store.topic(*id)) {
            if topic.floor_order > start && joins.is_none_or(|joins| joins.have_lost(topic)) {
                let after = topic.seq_at(start);
                frames.push(self.cut_frame(topic, after, EVICTED, audience.dialect));
                lost += u64::from(topic.kind == Kind::Loss);
            }
        }
        lost
    }

    /// Nothing after this number, up to what is here, can be told any more.
    pub(super) fn cut_frame(&self, topic: &TopicLog, after: u64, reason: &str, dialect: Dialect) -> Frame {
        let epoch = self.store.epoch_of(topic);
        let log_of = if let Kind::Log(execution) = &topic.kind { Some(&**execution) } else { None };
        let is_loss = topic.kind == Kind::Loss;
        let between = (!is_loss).then_some((after, topic.floor_seq + 1));
        let reason = if is_loss { &*self.store.lost_by } else { reason };
        frame::gap(&Gap { topic: Some(&topic.name), between, epoch, reason, pos: None, log_of }, dialect)
    }

    /// What comes after an order for an audience, in order, and the order after all of it; for who lags, without what newer
    /// events make worthless.
    fn runs_after(&self, audience: &Audience, start: u64, joins: Option<&Joins>, lags: bool) -> (Runs, u64) {
        let top = self.store.order;
        if joins.is_none()
            && !lags
            && let Some(found) = self.only_run(audience, start)
        {
            return found;
        }
        let (mut picks, mut end, mut left_out) = (Vec::new(), start, Vec::new());
        // A turn's worth of events of which none is for this reader is not the end of what there is.
        while picks.is_empty() && end < top {
            (picks, end) = self.picks_after(audience, end);
            if let Some(joins) = joins {
                picks.retain(|pick| {
                    self.store.topic(pick.1).is_some_and(|topic| joins.pass(topic, &topic.entries[pick.2]))
                });
            }
            if lags {
                self.leave_out(&mut picks, &mut left_out);
            }
        }
        let mut bytes = 0;
        for (count, (_, id, index)) in picks.iter().enumerate() {
            bytes += self.store.topic(*id).map_or(0, |topic| topic.len_of(*index, *index + 1));
            if bytes > self.limits.turn_bytes && count > 0 {
                end = picks[count - 1].0;
                picks.truncate(count);
                break;
            }
        }
        left_out.retain(|pick: &Pick| pick.0 <= end);
        (Runs { left_out, ..runs_of(&picks) }, end)
    }

    /// What an audience hears after an order, about a turn's worth, and the order after it.
    fn picks_after(&self, audience: &Audience, start: u64) -> (Vec<Pick>, u64) {
        let topics = audience.topics.len();
        let narrow = topics <= FEW || topics as u64 <= self.store.order.saturating_sub(start) / 4;
        let ring = if narrow { None } else { self.store.ring_after(start) };
        match ring {
            Some(ring) => self.picks_along(ring, audience),
            None => self.picks_within(&audience.topics, start),
        }
    }

    /// The run after an order, and the order after it, where only one topic has anything, which is known or one of a few; None
    /// otherwise.
    fn only_run(&self, audience: &Audience, start: u64) -> Option<(Runs, u64)> {
        let (mut run, mut end) = (None, self.store.order);
        let is_fresh = start >= audience.fresh.after;
        let topics = if is_fresh { slice::from_ref(&audience.fresh.topic) } else { &audience.topics };
        if topics.len() > FEW {
            return None;
        }
        for id in topics {
            let Some(topic) = self.store.topic(*id) else { continue };
            let (from, all) = (topic.after_order(start), topic.entries.len());
            if from == all {
                continue;
            }
            if run.is_some() {
                return None;
            }
            let to = topic.within(from, all, self.limits.turn_bytes);
            if to < all {
                end = topic.entries[to - 1].order;
            }
            run = Some(Run { topic: *id, from, to });
        }
        Some((Runs { first: run, ..Runs::default() }, end))
    }

    /// Events after an order by looking into each topic.
    fn picks_within(&self, topics: &[u32], start: u64) -> (Vec<Pick>, u64) {
        let (mut picks, mut end) = (Vec::new(), self.store.order);
        for id in topics {
            let Some(topic) = self.store.topic(*id) else { continue };
            let (from, all) = (topic.after_order(start), topic.entries.len());
            let to = topic.within(from, all, self.limits.turn_bytes);
            if to < all {
                end = end.min(topic.entries[to - 1].order);
            }
            picks.extend((from..to).map(|index| (topic.entries[index].order, *id, index)));
        }
        picks.sort_unstable();
        picks.truncate(picks.partition_point(|pick| pick.0 <= end));
        (picks, end)
    }

    /// Events along the ring that an audience hears.
    fn picks_along(&self, ring: impl Iterator<Item = (u64, u32)>, audience: &Audience) -> (Vec<Pick>, u64) {
        let (mut picks, mut bytes): (Vec<Pick>, usize) = (Vec::new(), 0);
        let heard: hashbrown::HashSet<u32> = audience.topics.iter().copied().collect();
        for (order, id) in ring.filter(|(_, id)| heard.contains(id)) {
            let Some(topic) = self.store.topic(id) else { continue };
            let index = topic.after_order(order - 1);
            // Cut, when it is not there.
            if topic.entries.get(index).is_some_and(|entry| entry.order == order) {
                bytes += topic.len_of(index, index + 1);
                if bytes > self.limits.turn_bytes && !picks.is_empty() {
                    let end = picks.last().map_or(order, |pick| pick.0);
                    return (picks, end);
                }
                picks.push((order, id, index));
            }
        }
        (picks, self.store.order)
    }
}

/// What a turn is made of; mostly it is one run.
#[derive(Default)]
struct Runs {
    first: Option<Run>,
    rest: Vec<Run>,
    /// What its reader is told to be left out.
    left_out: Vec<Pick>,
}

impl Runs {
    /// Its run, where there is nothing else.
    fn only(&self) -> Option<Run> {
        self.first.filter(|_| self.rest.is_empty() && self.left_out.is_empty())
    }
}

/// Picks that follow one another in their topic and for their reader.
fn runs_of(picks: &[Pick]) -> Runs {
    let mut runs = Runs::default();
    for (_, topic, index) in picks {
        let last = runs.rest.last_mut().or(runs.first.as_mut());
        match last {
            Some(run) if run.topic == *topic && run.to == *index => run.to += 1,
            last => {
                let run = Run { topic: *topic, from: *index, to: *index + 1 };
                if last.is_none() {
                    runs.first = Some(run);
                } else {
                    runs.rest.push(run);
                }
            }
        }
    }
    runs
}
