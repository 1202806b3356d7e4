//! Subscriptions: from now on, from a position in memory, or from one that only the daemon can tell about.
//!
//! Strategy: a subscription from a position moves the cursor back to where the memory joins on, and each pattern remembers
//! where it begins. Where the memory does not reach back, the connection is held, the shell feeds what the daemon tells
//! (`backfill`), and as soon as the memory joins on the connection goes on from there. History and live events come by one
//! cursor in one order: that is why there is neither hole nor duplicate.
//!
//! Rules: the position in `subscribed` is honest: it covers nothing that the connection has still to get. What cannot be given
//! is told as a gap.

use std::sync::Arc;

use super::audience::Standing;
use super::frame::{self, Frame, Gap, Told};
use super::log::{Kind, TopicLog};
use super::position::{MAX_CHARS, Position, execution_of_log};
use super::reader::{Join, Joins, Since};
use super::rights::Refused;
use super::store::begun_by;
use super::topic::{is_local, matches};
use super::turn::EVICTED;
use super::{ConnKey, Dialect, Event, Hub, Profile};

/// Of so many topics the gaps are told one by one; of more, one for each pattern.
const MOST_GAPS: usize = 64;

/// What a subscription came to.
#[derive(Debug)]
pub struct Subscribed {
    /// To be sent at once, in this order, before anything that `take` brings later.
    pub frames: Vec<Frame>,
    /// Memory does not reach back to here: ask the daemon for these patterns from here on, and feed it to `backfill`. The
    /// connection gets nothing until then.
    pub history: Option<Position>,
}

/// A batch of the daemon's Watch stream for the patterns of a subscription.
#[derive(Debug)]
pub struct Backfill<'a> {
    /// The epoch it is of.
    pub epoch: &'a str,
    /// The events, in their order.
    pub events: &'a [Event<'a>],
    /// Everything of the journal up to here was considered.
    pub journal_seq: u64,
    /// Whether this is all that the daemon had at that moment.
    pub is_last: bool,
}

/// The history that a connection is catching up with has ended: tell it so with `give_up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone;

/// A connection that the shell feeds from the daemon.
#[derive(Debug)]
pub(super) struct Catching {
    pub(super) patterns: Vec<Box<str>>,
    position: Position,
    born_from: u64,
    /// Whether there are other subscriptions: they have still to get what came after they were held.
    others: bool,
    /// The position for clients: where it began, when there are others; else the last that was not too long to be handed back.
    told: String,
    /// The epoch has ended.
    pub(super) over: bool,
}

impl Hub {
    /// Lets a connection hear a topic or a pattern, from now on or from a position on.
    pub fn subscribe(
        &mut self,
        conn: ConnKey,
        pattern: &str,
        from: Option<&str>,
        now_ms: u64,
    ) -> Result<Subscribed, Refused> {
        self.subscribe_all(conn, &[pattern], from, now_ms)
    }

    /// Lets a connection hear several topics or patterns, all of them or none. From a position on they catch up together, so
    /// that each position on the way covers all of them.
    pub fn subscribe_all(
        &mut self,
        conn: ConnKey,
        patterns: &[&str],
        from: Option<&str>,
        now_ms: u64,
    ) -> Result<Subscribed, Refused> {
        let has = self.subscriptions(conn);
        let mut news: Vec<&str> = Vec::new();
        for pattern in patterns {
            if !news.contains(pattern) && !has.iter().any(|other| **other == **pattern) {
                news.push(pattern);
            }
        }
        let subscribed = self.join(conn, patterns, &news, from, now_ms)?;
        for pattern in news {
            self.note_presence(conn, pattern, true);
        }
        Ok(subscribed)
    }

    /// Lets a connection hear patterns, of which these are new to it.
    fn join(
        &mut self,
        conn: ConnKey,
        patterns: &[&str],
        news: &[&str],
        from: Option<&str>,
        now_ms: u64,
    ) -> Result<Subscribed, Refused> {
        let found = self.fleet.get(conn).ok_or(Refused::Unknown)?;
        let (profile, is_catching) = (Arc::clone(&found.profile), found.catching.is_some());
        for pattern in patterns {
            profile.rights.check(pattern)?;
        }
        if !news.is_empty() && self.fleet.patterns(conn.index).len() + news.len() > self.limits.max_subscriptions {
            return Err(Refused::TooMany);
        }
        if is_catching {
            return Err(Refused::Busy);
        }
        let position = from.map(|from| Position::decode(from).ok_or(Refused::NotAPosition)).transpose()?;
        let dialect = profile.dialect;
        let Some(position) = position.filter(|position| position.epoch == self.store.epoch) else {
            let (mut frames, here) = self.here(conn, &profile.tenant);
            self.count_gaps(EVICTED, frames.len() as u64);
            frames.extend(patterns.iter().map(|pattern| frame::subscribed(pattern, &here, dialect)));
            if from.is_some() {
                self.count_gaps("epoch", patterns.len() as u64);
                frames.extend(patterns.iter().map(|pattern| self.pattern_gap(pattern, "epoch", &here, dialect)));
            }
            self.add_from_now(conn, news, now_ms);
            return Ok(Subscribed { frames, history: None });
        };
        let begins = from.unwrap_or_default();
        let mut frames: Vec<_> = patterns.iter().map(|pattern| frame::subscribed(pattern, begins, dialect)).collect();
        frames.extend(self.local_gaps(&profile, patterns, dialect));
        self.count_gaps("ephemeral", (frames.len() - patterns.len()) as u64);
        self.stats.resumes += 1;
        let born_from = position.seq;
        // A position ahead of this process comes from a gateway that has heard more, or from a history that a restored
        // database has lost: the daemon knows.
        let ahead = position.seq > self.store.seq;
        let patterns: Vec<Box<str>> = patterns.iter().map(|pattern| (*pattern).into()).collect();
        let is_local = patterns.iter().all(|pattern| is_local(pattern));
        if !is_local && (ahead || self.misses(&profile, &patterns, &position, born_from, false)) {
            self.stats.asked += 1;
            self.hold(conn, patterns, position.clone(), born_from);
            return Ok(Subscribed { frames, history: Some(position) });
        }
        self.resume(conn, &patterns, &position, born_from, now_ms);
        Ok(Subscribed { frames, history: None })
    }

    /// Lets a connection no longer hear a topic or a pattern; whether it did.
    pub fn unsubscribe(&mut self, conn: ConnKey, pattern: &str, now_ms: u64) -> bool {
        let did = self.part(conn, pattern, now_ms);
        if did {
            self.note_presence(conn, pattern, false);
        }
        did
    }

    fn part(&mut self, conn: ConnKey, pattern: &str, now_ms: u64) -> bool {
        let caught_up = !self.catch_up_less(conn, |other| other != pattern).is_empty();
        let has = self.subscriptions(conn);
        if !has.iter().any(|other| **other == *pattern) {
            self.fleet.wake(conn.index, now_ms);
            return caught_up;
        }
        let kept = has.iter().filter(|other| ***other != *pattern).cloned().collect();
        let standing = self.fleet.standing(conn.index, self.store.order);
        self.settle_in(conn.index, kept, standing, now_ms);
        true
    }

    /// A connection catches up only with patterns that stay; those that do not are returned. With none left it is no longer
    /// catching up, and has still to be woken.
    pub(super) fn catch_up_less(&mut self, conn: ConnKey, stays: impl Fn(&str) -> bool) -> Vec<Box<str>> {
        let Some(found) = self.fleet.get_mut(conn) else { return Vec::new() };
        let Some(catching) = &mut found.catching else { return Vec::new() };
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut catching.patterns).into_iter().partition(|pattern| stays(pattern));
        if kept.is_empty() {
            found.catching = None;
        } else {
            catching.patterns = kept;
        }
        gone
    }

    /// Gives a connection what the daemon tells of the pattern it is catching up with.
    ///
    /// Returns: frames to be sent, and whether that was all: then it goes on from memory.
    pub fn backfill(&mut self, conn: ConnKey, batch: &Backfill<'_>, now_ms: u64) -> Result<(Vec<Frame>, bool), Gone> {
        let found = self.fleet.get_mut(conn).ok_or(Gone)?;
        let profile = Arc::clone(&found.profile);
        let mut catching = found.catching.take().ok_or(Gone)?;
        let is_over = catching.over || batch.epoch != &*catching.position.epoch;
        let frames = if is_over { Vec::new() } else { catching.tell(batch, &profile, self.limits.frame_bytes) };
        let done = !is_over
            && !self.misses(&profile, &catching.patterns, &catching.position, catching.born_from, batch.is_last);
        if done {
            let Catching { patterns, position, born_from, .. } = *catching;
            self.resume(conn, &patterns, &position, born_from, now_ms);
        } else if let Some(found) = self.fleet.get_mut(conn) {
            found.catching = Some(catching);
        }
        self.stats.frames += frames.len() as u64;
        self.stats.sent_bytes += frames.iter().map(|frame| frame.payload.len() as u64).sum::<u64>();
        self.stats.delivered += frames.iter().map(|frame| u64::from(frame.events)).sum::<u64>();
        if is_over { Err(Gone) } else { Ok((frames, done)) }
    }

    /// The history that a connection is catching up with cannot be had: it hears everything from now on, and is told that
    /// something is missing, and why: for this reason, unless the whole history has ended. None when it is not catching up.
    pub fn give_up(&mut self, conn: ConnKey, reason: &str, now_ms: u64) -> Option<Frame> {
        let found = self.fleet.get_mut(conn)?;
        let (catching, profile) = (found.catching.take()?, Arc::clone(&found.profile));
        let mut patterns = self.fleet.patterns(conn.index).to_vec();
        let reason = if catching.over { &*self.restarted_by.clone() } else { reason };
        patterns.extend(catching.patterns);
        let standing = self.fleet.standing(conn.index, self.store.order);
        let (cursor, served_ms) = (self.store.order, standing.served_ms);
        let standing = Standing { cursor, idle: true, served_ms, joins: None, reset: false, behind_ms: None };
        self.settle_in(conn.index, patterns, standing, now_ms);
        self.count_gaps(reason, 1);
        let pos = self.store.encode_position(self.store.order, &profile.tenant);
        let gap = Gap { topic: None, between: None, epoch: &self.store.epoch, reason, pos: Some(&pos), log_of: None };
        Some(frame::gap(&gap, profile.dialect))
    }

    // --- moving ------------------------------------------------------------------------------------------------------

    /// Gives a connection these patterns at a standing, and sees to it that it is served.
    pub(super) fn settle_in(&mut self, index: u32, patterns: Vec<Box<str>>, mut standing: Standing, now_ms: u64) {
        if let Some(joins) = &mut standing.joins {
            Arc::make_mut(joins).keep(&patterns);
        }
        self.fleet.place(&mut self.store, index, patterns, standing);
        self.fleet.wake(index, now_ms);
    }

    /// All at once: where a connection gets another audience, that one is looked for among all topics.
    fn add_from_now(&mut self, conn: ConnKey, news: &[&str], now_ms: u64) {
        if news.is_empty() {
            return;
        }
        let top = self.store.order;
        let mut standing = self.fleet.standing(conn.index, top);
        let mut patterns = self.fleet.patterns(conn.index).to_vec();
        if !standing.idle || standing.joins.is_some() {
            let mut joins = joins_of(&standing, &patterns);
            for pattern in news {
                joins.set(Join { pattern: (*pattern).into(), after: top, since: None });
            }
            standing.joins = Some(Arc::new(joins));
        }
        patterns.extend(news.iter().map(|pattern| Box::from(*pattern)));
        self.settle_in(conn.index, patterns, standing, now_ms);
    }

    /// Patterns begin at a position that the memory joins on to.
    fn resume(&mut self, conn: ConnKey, new: &[Box<str>], position: &Position, born_from: u64, now_ms: u64) {
        let top = self.store.order;
        let mut standing = self.fleet.standing(conn.index, top);
        let mut patterns = self.fleet.patterns(conn.index).to_vec();
        let mut joins = joins_of(&standing, &patterns);
        joins.not_before(standing.cursor);
        let Some(profile) = self.fleet.get(conn).map(|found| Arc::clone(&found.profile)) else { return };
        let start = self.store.order_of(position, born_from, |topic| wants(&profile, new, topic));
        let since = Arc::new(Since { position: position.clone(), born_from, joined: top, joined_ms: now_ms });
        for pattern in new {
            joins.set(Join { pattern: pattern.clone(), after: 0, since: Some(Arc::clone(&since)) });
            if !patterns.contains(pattern) {
                patterns.push(pattern.clone());
            }
        }
        standing.cursor = standing.cursor.min(start);
        (standing.idle, standing.joins) = (false, Some(Arc::new(joins)));
        self.settle_in(conn.index, patterns, standing, now_ms);
    }

    /// A connection waits until the daemon has told what the memory has not.
    fn hold(&mut self, conn: ConnKey, patterns: Vec<Box<str>>, position: Position, born_from: u64) {
        let standing = self.fleet.standing(conn.index, self.store.order);
        let others = !self.fleet.patterns(conn.index).is_empty();
        self.fleet.part(conn.index, standing);
        if let Some(found) = self.fleet.get_mut(conn) {
            let told = position.encode();
            found.catching = Some(Box::new(Catching { patterns, position, born_from, others, told, over: false }));
        }
    }

    /// The position that covers nothing which a connection has still to get, and gaps to be told before, where it is behind
    /// everything that is remembered.
    fn here(&self, conn: ConnKey, tenant: &str) -> (Vec<Frame>, String) {
        let standing = self.fleet.standing(conn.index, self.store.order);
        let mut frames = Vec::new();
        if standing.cursor < self.store.first_order()
            && let Some(audience) = self.fleet.audience_of(conn.index)
        {
            self.tell_cuts(audience, standing.cursor, standing.joins.as_deref(), &mut frames);
        }
        (frames, self.store.encode_position(standing.cursor, tenant).into_owned())
    }

    fn misses(
        &self,
        profile: &Profile,
        patterns: &[Box<str>],
        position: &Position,
        born_from: u64,
        settled: bool,
    ) -> bool {
        let wants_log = |execution: &str| {
            let topic = format!("execution.{execution}.log");
            match_any(patterns, &topic) && profile.rights.may_hear(&topic)
        };
        self.store.misses(position, born_from, settled, |topic| wants(profile, patterns, topic), wants_log)
    }

    // --- gaps --------------------------------------------------------------------------------------------------------

    fn pattern_gap(&self, pattern: &str, reason: &str, pos: &str, dialect: Dialect) -> Frame {
        let (epoch, topic) = (&*self.store.epoch, Some(pattern));
        frame::gap(&Gap { topic, between: None, epoch, reason, pos: Some(pos), log_of: None }, dialect)
    }

    /// Topics of this process alone are in no position: whoever resumes is told that they begin now.
    fn local_gaps(&self, profile: &Profile, patterns: &[&str], dialect: Dialect) -> Vec<Frame> {
        let wanted = || self.store.locals().filter(|topic| wants(profile, patterns, topic));
        let told = |topic, between, epoch| {
            frame::gap(&Gap { topic, between, epoch, reason: "ephemeral", pos: None, log_of: None }, dialect)
        };
        if wanted().nth(MOST_GAPS).is_some() {
            let all: Vec<_> = wanted().collect();
            let of_patterns = patterns.iter().filter_map(|pattern| {
                let mut its = all.iter().filter(|topic| matches(pattern, &topic.name)).peekable();
                let first = its.peek().copied()?;
                // Where it includes topics of both kinds, that of the ephemeral ones.
                let topic = its.find(|topic| topic.kind == Kind::Ephemeral).unwrap_or(first);
                Some(told(Some(pattern), None, self.store.epoch_of(topic)))
            });
            return of_patterns.collect();
        }
        wanted()
            .map(|topic| told(Some(&topic.name), Some((0, topic.last_seq + 1)), self.store.epoch_of(topic)))
            .collect()
    }
}

impl Catching {
    /// Frames of what is new in a batch; moves the position to its end.
    fn tell(&mut self, batch: &Backfill<'_>, profile: &Profile, frame_bytes: usize) -> Vec<Frame> {
        let (mut frames, mut run): (Vec<Frame>, Vec<Told<'_>>) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for event in batch.events {
            let is_its = *event.tenant == *profile.tenant && profile.rights.may_hear(event.topic);
            if !self.is_new(event) || !is_its || !match_any(&self.patterns, event.topic) {
                continue;
            }
            let told =
                Told { topic: event.topic, seq: event.seq, prev: event.prev, ts_us: event.ts_us, json: event.json() };
            bytes += told.json.len();
            let joins_on = run.last().is_some_and(|last| last.topic == told.topic) && bytes <= frame_bytes;
            if !run.is_empty() && (!joins_on || profile.dialect != Dialect::Batched) {
                frames.extend(frame::frame_of_told(&run, profile.dialect, batch.epoch, self.pos()));
                run.clear();
                bytes = told.json.len();
            }
            self.pass(event);
            run.push(told);
        }
        if batch.journal_seq > self.position.seq {
            self.position.seq = batch.journal_seq;
        }
        frames.extend(frame::frame_of_told(&run, profile.dialect, batch.epoch, self.pos()));
        frames
    }

    /// The position for clients. On the way through a long history it has ever more logs whose lines are still to come, until
    /// it would be one that is not taken back: from then on it stays where it was.
    fn pos(&mut self) -> &str {
        if !self.others {
            let text = self.position.encode();
            if text.len() <= MAX_CHARS {
                self.told = text;
            }
        }
        &self.told
    }

    fn is_new(&self, event: &Event<'_>) -> bool {
        match execution_of_log(event.topic) {
            Some(execution) => event.seq > self.position.logs.get(execution).copied().unwrap_or(0),
            None => event.seq > self.position.seq,
        }
    }

    fn pass(&mut self, event: &Event<'_>) {
        if let Some(execution) = execution_of_log(event.topic) {
            self.position.logs.insert(execution.into(), event.seq);
            return;
        }
        self.position.seq = event.seq;
        if let Some(execution) = begun_by(event) {
            self.position.logs.entry(execution.into()).or_insert(0);
        }
    }
}

fn wants<P: AsRef<str>>(profile: &Profile, patterns: &[P], topic: &TopicLog) -> bool {
    *topic.tenant == *profile.tenant && match_any(patterns, &topic.name) && profile.rights.may_hear(&topic.name)
}

fn match_any<P: AsRef<str>>(patterns: &[P], topic: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern.as_ref(), topic))
}

/// Where the subscriptions of a connection begin.
fn joins_of(standing: &Standing, patterns: &[Box<str>]) -> Joins {
    standing.joins.as_deref().cloned().unwrap_or_else(|| Joins::all_after(patterns, 0))
}
