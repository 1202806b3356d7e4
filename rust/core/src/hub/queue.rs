//! When which cohort is served.
//!
//! Strategy: an event queues the idle cohorts of its topic's audiences; those that are queued already get it with the rest. The
//! queue is a heap by due time, and by arrival among equals. An entry that no longer counts is told by its stamp.

use std::cmp::Reverse;

use super::audience::{Cohort, Fleet, State};
use super::governor::Governor;

impl Fleet {
    /// An event came for these audiences.
    pub(super) fn mark(&mut self, audiences: &[u32], governor: &mut Governor, now_ms: u64) {
        if governor.turn(now_ms) {
            self.period += 1;
        }
        for id in audiences {
            let Some(audience) = &mut self.audiences[*id as usize] else { continue };
            let newly = std::mem::replace(&mut audience.period, self.period) != self.period;
            let members = audience.members as u64;
            let window_ms = governor.window_of(audience.key.dialect);
            governor.heard(members, if newly { members } else { 0 });
            if !audience.idle.is_empty() {
                let mut idle = std::mem::take(&mut audience.idle);
                for cohort in idle.drain(..) {
                    self.queue(cohort, now_ms, window_ms);
                }
                // Its room is used again.
                if let Some(audience) = &mut self.audiences[*id as usize] {
                    audience.idle = idle;
                }
            }
        }
    }

    /// A cohort is to be served when its window is over.
    pub(super) fn queue(&mut self, id: u32, now_ms: u64, window_ms: u64) {
        self.stamp += 1;
        let stamp = self.stamp;
        if let Some(cohort) = self.cohort_mut(id) {
            (cohort.state, cohort.stamp) = (State::Queued, stamp);
            let due_ms = if cohort.served_ms == 0 { now_ms } else { now_ms.max(cohort.served_ms + window_ms) };
            self.queue.push(Reverse((due_ms, stamp, id)));
        }
    }

    /// The next cohort that is due.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<u32> {
        while let Some(Reverse((due_ms, stamp, id))) = self.queue.peek().copied() {
            let is_meant = |cohort: &Cohort| cohort.state == State::Queued && cohort.stamp == stamp;
            if !self.cohort(id).is_some_and(is_meant) {
                self.queue.pop();
            } else if due_ms > now_ms {
                return None;
            } else {
                self.queue.pop();
                return Some(id);
            }
        }
        None
    }

    /// When the next cohort is due.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse((due_ms, _, _))| *due_ms)
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
