//! When which cohort is served.
//!
//! Strategy: an event queues the idle cohorts of its topic's audiences; those that are queued already get it with the rest. Each
//! shard has an agenda, by due time, and by arrival among equals. An entry that no longer counts is told by its stamp.
//!
//! Rule: who serves a shard says until when it sleeps (`wakes_at`); it is called when something comes to be due before that,
//! and once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hashbrown::HashSet;

use super::Shard;
use super::audience::{Cohort, Fleet, NONE, State};
use super::governor::Governor;

/// When it is due, its stamp, and the cohort.
type Entry = (u64, u64, u32);

/// What is due in one shard.
#[derive(Debug)]
pub(super) struct Agenda {
    /// Entries that came in their order, as nearly all do: those of a fleet that waits equally long.
    line: VecDeque<Entry>,
    /// The others.
    queue: BinaryHeap<Reverse<Entry>>,
    pub(super) governor: Governor,
    /// The number of the governor's period.
    period: u64,
    /// Until when its server sleeps; 0 while that is at work and will ask again.
    sleeps_ms: u64,
    /// Where those began who were given turns that may still be put back: the least of their orders.
    pub(super) given_from: u64,
}

impl Agenda {
    pub(super) const fn new(max_window_ms: u64) -> Self {
        Self {
            line: VecDeque::new(),
            queue: BinaryHeap::new(),
            governor: Governor::new(max_window_ms),
            period: 0,
            sleeps_ms: u64::MAX,
            given_from: u64::MAX,
        }
    }

    /// Adds an entry; whether its server has to be called.
    fn push(&mut self, due_ms: u64, stamp: u64, cohort: u32) -> bool {
        if self.line.back().is_none_or(|last| last.0 <= due_ms) {
            self.line.push_back((due_ms, stamp, cohort));
        } else {
            self.queue.push(Reverse((due_ms, stamp, cohort)));
        }
        let is_called = due_ms < self.sleeps_ms;
        if is_called {
            self.sleeps_ms = 0;
        }
        is_called
    }

    /// The next entry, and whether it is in the line.
    fn first(&self) -> Option<(Entry, bool)> {
        let (line, queue) = (self.line.front().copied(), self.queue.peek().map(|Reverse(entry)| *entry));
        match (line, queue) {
            (Some(line), Some(queue)) if queue < line => Some((queue, false)),
            (Some(line), _) => Some((line, true)),
            (None, queue) => Some((queue?, false)),
        }
    }
}

/// What an audience has heard lately: all its events after an order are of this topic, if there are any.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) after: u64,
    pub(super) topic: u32,
}

impl Fresh {
    /// An event of a topic; before it the order was this.
    const fn note(&mut self, topic: u32, before: u64) {
        if self.topic != topic {
            (self.topic, self.after) = (topic, before);
        }
    }

    /// Topics are gone, and others will have their ids: what it says of one of them would be said of another.
    pub(super) fn forget(&mut self, gone: &HashSet<u32>) {
        if gone.contains(&self.topic) {
            (self.topic, self.after) = (NONE, u64::MAX);
        }
    }
}

impl Fleet {
    /// An event came for these audiences, of this topic, or something to tell that is no event. Until then the order was `before`.
    pub(super) fn mark(&mut self, audiences: &[u32], topic: Option<u32>, before: u64, now_ms: u64) {
        for id in audiences {
            let Some(audience) = &mut self.audiences[*id as usize] else { continue };
            if let Some(topic) = topic {
                audience.fresh.note(topic, before);
            }
            let Some(agenda) = self.agendas.get_mut(audience.shard.index()) else { continue };
            agenda.period += u64::from(agenda.governor.turn(now_ms));
            let newly = std::mem::replace(&mut audience.period, agenda.period) != agenda.period;
            let members = audience.members as u64;
            let window_ms = agenda.governor.window_of(audience.dialect);
            agenda.governor.heard(members, if newly { members } else { 0 });
            if !audience.idle.is_empty() {
                let mut idle = std::mem::take(&mut audience.idle);
                for id in idle.iter() {
                    if let Some(cohort) = self.cohort_mut(*id) {
                        // It has had everything up to there.
                        cohort.cursor = cohort.cursor.max(before);
                    }
                    self.queue(*id, now_ms, window_ms);
                }
                idle.clear();
                // Its room is used again.
                if let Some(audience) = &mut self.audiences[*id as usize] {
                    audience.idle = idle;
                }
            }
        }
    }

    /// A cohort is to be served when its window is over.
    pub(super) fn queue(&mut self, id: u32, now_ms: u64, window_ms: u64) {
        let Some(cohort) = self.cohorts.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let Some(audience) = &self.audiences[cohort.audience as usize] else { return };
        let shard = audience.shard;
        self.stamp += 1;
        (cohort.state, cohort.stamp) = (State::Queued, self.stamp);
        let due_ms = if cohort.served_ms == 0 { now_ms } else { now_ms.max(cohort.served_ms + window_ms) };
        if self.agendas[shard.index()].push(due_ms, self.stamp, id) {
            self.called.push(shard);
        }
    }

    /// The next cohort of a shard that is due.
    pub(super) fn next(&mut self, shard: Shard, now_ms: u64) -> Option<u32> {
        while let Some(((due_ms, stamp, id), is_in_line)) = self.agendas.get(shard.index())?.first() {
            let is_meant = |cohort: &Cohort| cohort.state == State::Queued && cohort.stamp == stamp;
            let counts = self.cohort(id).is_some_and(is_meant);
            if counts && due_ms > now_ms {
                return None;
            }
            let agenda = &mut self.agendas[shard.index()];
            if is_in_line {
                agenda.line.pop_front();
            } else {
                agenda.queue.pop();
            }
            if counts {
                return Some(id);
            }
        }
        None
    }

    /// Cohorts that `next` will most likely give one after the other.
    pub(super) fn due(&self, shard: Shard, now_ms: u64) -> impl Iterator<Item = u32> {
        let line = self.agendas.get(shard.index()).into_iter().flat_map(|agenda| &agenda.line);
        line.take_while(move |(due_ms, ..)| *due_ms <= now_ms).map(|(_, _, id)| *id)
    }

    /// The server of a shard is at work: it need not be called.
    pub(super) fn awake(&mut self, shard: Shard) {
        if let Some(agenda) = self.agendas.get_mut(shard.index()) {
            agenda.sleeps_ms = 0;
        }
    }

    /// When the next cohort of a shard is due; until then its server sleeps.
    pub(super) fn wakes_at(&mut self, shard: Shard) -> Option<u64> {
        let agenda = self.agendas.get_mut(shard.index())?;
        let next_ms = agenda.first().map(|((due_ms, _, _), _)| due_ms);
        (agenda.sleeps_ms, agenda.given_from) = (next_ms.unwrap_or(u64::MAX), u64::MAX);
        next_ms
    }

    /// Everything before `top` is gone: all who have subscribed are told.
    pub(super) fn reset(&mut self, top: u64, now_ms: u64) {
        for conn in self.conns.iter_mut().flatten() {
            if let Some(catching) = &mut conn.catching {
                catching.over = true;
            }
        }
        for audience in self.audiences.iter_mut().flatten() {
            audience.idle.clear();
        }
        for id in 0..self.cohorts.len() as u32 {
            let Some(cohort) = self.cohort_mut(id) else { continue };
            (cohort.cursor, cohort.joins, cohort.reset) = (top, None, true);
            if cohort.state != State::Held {
                self.queue(id, now_ms, 0);
            }
        }
    }
}
