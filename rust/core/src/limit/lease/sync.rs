//! The node's side of a sync: which keys are due, what is told about each, and what the answer changes.
//!
//! Rules:
//! - one call is under way at a time, so an answer always belongs to the latest reports;
//! - what a report returns is gone here before the call leaves; what an answer grants is good from when the call left;
//! - a clock that moved further between two answers than this node's own did is not believed: the grants are left unused
//!   and the next call says by how much it is off. A fleet that begins anew is told all that its nodes remember.

use std::cmp::Reverse;

use super::wire::{self, Grant, Head, Sender, Status};
use super::{Anchor, Counts, LeaseBook, MS, Mode, Policy, Report};
use crate::error::Unusable;

/// How long a request that was refused for want of a lease may wait before a call is made for it alone.
pub(super) const TICK_NS: u64 = 25 * MS;
/// Keys that are due within this go along with a call that is made anyway; where quota has to grow first, hardly earlier.
const COALESCE_NS: u64 = 250 * MS;
const COALESCE_BLOCKED_NS: u64 = 8 * MS;
/// A node without news says as often that it is there.
const BEAT_NS: u64 = 500 * MS;
/// More units are asked for when those held last less than this.
pub(super) const LEAD_S: f32 = 0.05;
/// Demand is averaged over about this long.
const MEMORY_S: f32 = 1.0;
/// What two clocks may differ by between two answers.
const SLACK_US: u64 = 250_000;
/// Askers of the same units spread over this.
const JITTER_NS: u64 = 8 * MS;

impl Policy {
    /// How far ahead a node asks for what it will surely spend.
    pub(super) fn horizon_ns(&self) -> u64 {
        (self.slot_us() * 1_000).clamp(50 * MS, 500 * MS)
    }
}

impl LeaseBook {
    /// Nanoseconds until a call is worthwhile; none while one is under way.
    pub fn due_in(&mut self, now_ns: u64) -> Option<u64> {
        if self.flying {
            return None;
        }
        if self.epoch == 0 || self.step_us != 0 || self.judged || self.away {
            return Some(0);
        }
        while let Some(&Reverse((when, index))) = self.queue.peek() {
            if self.entries.get(index as usize).is_some_and(|entry| entry.due == when && !entry.flying) {
                break;
            }
            self.queue.pop();
        }
        let beat = self.sent_ns + BEAT_NS;
        let when = self.queue.peek().map_or(beat, |&Reverse((when, _))| when.min(beat));
        Some(when.saturating_sub(now_ns))
    }

    /// From now on everything is returned: the next calls leave nothing behind. True when nothing is left.
    pub fn close(&mut self) -> bool {
        self.closing = true;
        let now = self.latest;
        let mut left = false;
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.held > 0 || entry.acked != entry.spent || entry.flying {
                left = true;
                self.ask(index, now);
            }
        }
        !left
    }

    /// A call with up to `max` reports, as a RESP command for the script of this SHA; none when nothing is due.
    pub fn collect(&mut self, now_ns: u64, max: usize, sha: &[u8]) -> Option<Vec<u8>> {
        if self.due_in(now_ns)? > 0 && !self.closing {
            return None;
        }
        self.latest = self.latest.max(now_ns);
        let now = self.latest;
        let (mut reports, mut early) = (Vec::new(), Vec::new());
        // A stranger to the fleet only says hello; what it has to tell waits for the fleet's seed.
        while self.epoch != 0 && self.step_us == 0 && reports.len() < max {
            let Some(&Reverse((when, index))) = self.queue.peek() else { break };
            if when > now + COALESCE_NS {
                break;
            }
            self.queue.pop();
            let entry = &self.entries[index as usize];
            if entry.due != when || entry.flying {
                continue;
            }
            if when > now + COALESCE_BLOCKED_NS && entry.blocked_until > now {
                early.push(Reverse((when, index)));
            } else {
                reports.push(self.report(index, now));
            }
        }
        self.queue.extend(early);
        self.call += 1;
        self.sent_ns = now;
        self.flying = true;
        let sender = Sender {
            node: self.node,
            call: self.call,
            epoch: self.epoch,
            clock: self.clock,
            step_us: self.step_us,
            fresh: self.fresh,
            bye: self.closing,
            judged: self.judged,
            seed: self.seed,
            grace_us: self.grace_us,
        };
        Some(wire::command(sha, &sender, &self.policies, &reports))
    }

    fn report(&mut self, index: u32, now: u64) -> Report {
        let policy = self.entries[index as usize].policy as usize;
        let slot = self.slot(policy, now);
        let rules = &self.policies[policy];
        let entry = &mut self.entries[index as usize];
        let passed = now.saturating_sub(entry.measured) as f32 / 1e9;
        entry.rate = (entry.rate * MEMORY_S + entry.demand as f32) / (MEMORY_S + passed);
        entry.measured = now;
        let idle = entry.demand == 0;
        if entry.least != u32::MAX {
            entry.unit = std::mem::replace(&mut entry.least, u32::MAX);
        }
        let unit = entry.unit;
        let ahead = entry.rate * (rules.horizon_ns() as f32 / 1e9);
        let active = now.saturating_sub(entry.touched) < rules.window_ns() && !self.closing;
        let contested = entry.free < (2 * self.nodes).max(unit);
        let most = ((ahead * 8.0).ceil() as u32).saturating_add(1).max(unit);
        let keep = if !active || (idle && contested) { 0 } else { entry.held_at(now).min(most) };
        let keep = keep - keep % unit;
        let (mut need, mut extra) = (0, 0);
        if active {
            let sure = if ahead >= 1.0 { ahead as u32 } else { 0 };
            let sure = sure.min(rules.limit) / unit * unit;
            need = whole(entry.pending.saturating_add(sure).saturating_sub(keep), unit);
            let spare = ((ahead * 4.0).ceil() as u32).saturating_add(1).min(rules.limit);
            extra = if idle && contested { 0 } else { whole(spare, unit).saturating_sub(keep.saturating_add(need)) };
        }
        entry.debt = entry.owed_at(now, rules.window_ns());
        entry.debt_sent = entry.debt;
        entry.held = keep;
        entry.sent = entry.spent;
        entry.flying = true;
        entry.due = u64::MAX;
        entry.demand = 0;
        entry.pending = 0;
        entry.ring.advance(slot);
        let untold = u32::try_from(entry.spent - entry.acked).unwrap_or(u32::MAX);
        let report = Report {
            identity: entry.identity,
            policy,
            spent: entry.spent,
            keep,
            need,
            extra,
            unit,
            newest: entry.ring.newest(),
            pairs: entry.ring.latest(untold).collect(),
        };
        self.flight.push((index, entry.spent));
        report
    }

    /// Takes the answer to the call under way.
    pub fn apply(&mut self, answer: &[u8], now_ns: u64) -> Result<(), Unusable> {
        self.latest = self.latest.max(now_ns);
        let now = self.latest;
        let parsed = wire::answer(answer).map(|(head, grants)| (head, grants.collect::<Vec<_>>()));
        let fits = |head: &Head, grants: &[Grant]| head.status != Status::Done || grants.len() == self.flight.len();
        let Some((head, grants)) = parsed.filter(|(head, grants)| fits(head, grants)) else {
            self.lost(now, false);
            return Err(Unusable("the answer of the lease script is not one"));
        };
        if head.status == Status::Stale {
            self.lost(now, false);
            return Ok(());
        }
        let back = std::mem::replace(&mut self.away, false);
        self.counts.calls += 1;
        self.flying = false;
        self.nodes = head.nodes.max(1);
        self.grace_until = if head.grace_us > 0 { now + u64::from(head.grace_us) * 1_000 } else { 0 };
        let moved = self.moved_us(&head, now);
        let same = matches!(head.status, Status::Done | Status::Doubt) && head.clock == self.clock;
        let jumped = same && moved != 0;
        self.step_us = if jumped { moved } else { 0 };
        self.clock = head.clock;
        self.judged = head.status == Status::Doubt && !jumped;
        if !jumped {
            let moved = if self.anchor.is_none() { self.first_us(&head) } else { moved };
            if moved != 0 {
                self.rebase(moved);
            }
            self.anchor = Some(Anchor { server_us: head.now_us, sent_ns: self.sent_ns, received_ns: now });
        }
        if head.status == Status::Doubt {
            self.land(now);
            self.away = back;
            return Ok(());
        }
        if head.status == Status::NewEpoch {
            self.begin_anew(&head, now);
            return Ok(());
        }
        self.fresh = false;
        let flight = std::mem::take(&mut self.flight);
        for (&(index, told), grant) in flight.iter().zip(grants) {
            let entry = &mut self.entries[index as usize];
            entry.acked = told;
            entry.flying = false;
            if jumped || head.grace_us > 0 {
                entry.due = u64::MAX;
                self.ask(index as usize, now.max(self.grace_until));
            } else {
                self.take(index as usize, grant, now);
            }
        }
        self.flight = flight;
        self.flight.clear();
        if back {
            self.tell_all(now);
        }
        Ok(())
    }

    fn take(&mut self, index: usize, grant: Grant, now: u64) {
        self.counts.granted += u64::from(grant.units);
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let jitter = self.jitter % JITTER_NS;
        let entry = &mut self.entries[index];
        let rules = &self.policies[entry.policy as usize];
        if grant.units > 0 || grant.free > 0 {
            // What was owed is counted and fitted: it is as good as leased. The same goes for all that was told before.
            entry.debt = entry.debt.saturating_sub(entry.debt_sent);
        }
        entry.debt_sent = 0;
        entry.held = entry.held.saturating_add(grant.units);
        entry.expiry = self.sent_ns + rules.lease_ns();
        entry.free = grant.free;
        let retry = grant.retry_us.saturating_mul(1_000).max(MS);
        entry.next_at = now.saturating_add(retry);
        // Less than a request takes is left for smaller ones, if there come any.
        entry.blocked_until = if grant.free < entry.unit { now.saturating_add(retry) } else { 0 };
        let horizon = rules.horizon_ns();
        let when = if entry.held > 0 {
            now + if grant.free < 2 * self.nodes { 2 * horizon } else { rules.lease_ns() / 2 }
        } else if entry.blocked_until > 0 && entry.rate * (horizon as f32 / 1e9) > 0.25 {
            entry.blocked_until + jitter
        } else if entry.pending > 0 {
            now + if rules.mode == Mode::Strict { 0 } else { TICK_NS }
        } else if entry.spent != entry.acked {
            now + rules.lease_ns() / 2
        } else {
            u64::MAX
        };
        entry.due = u64::MAX;
        if when != u64::MAX {
            self.ask(index, when);
        }
    }

    /// No answer came, or none that can be used. `away`: from now on the node goes on without Redis, until an answer comes.
    pub fn lost(&mut self, now_ns: u64, away: bool) {
        self.latest = self.latest.max(now_ns);
        self.flying = false;
        self.away |= away;
        self.land(self.latest + TICK_NS);
    }

    /// The call under way changed nothing: its keys are due again.
    fn land(&mut self, when: u64) {
        for (index, _) in std::mem::take(&mut self.flight) {
            let entry = &mut self.entries[index as usize];
            entry.flying = false;
            entry.due = u64::MAX;
            self.ask(index as usize, when);
        }
    }

    /// Microseconds by which the fleet's clock is off what this node expects of it; 0 when it may be right.
    fn moved_us(&self, head: &Head, now: u64) -> i64 {
        let Some(anchor) = self.anchor else { return 0 };
        let least = anchor.server_us + self.sent_ns.saturating_sub(anchor.received_ns) / 1_000;
        let most = anchor.server_us + (now - anchor.sent_ns) / 1_000;
        if head.now_us > most + SLACK_US || head.now_us + SLACK_US < least {
            // The largest difference that is possible: units then count too long rather than too short.
            head.now_us.cast_signed() - least.cast_signed()
        } else {
            0
        }
    }

    /// From this node's own clock, by which its slots went until the first answer, to the fleet's.
    fn first_us(&self, head: &Head) -> i64 {
        head.now_us.cast_signed() + 1 - (self.sent_ns / 1_000).cast_signed()
    }

    /// The fleet's clock is another one: everything remembered is moved along.
    fn rebase(&mut self, moved_us: i64) {
        for entry in &mut self.entries {
            let slot_us = self.policies[entry.policy as usize].slot_us().cast_signed();
            entry.ring.shift(-((-moved_us).div_euclid(slot_us)));
        }
    }

    /// The fleet has forgotten, or never knew this node: hold nothing, and tell all that is remembered.
    fn begin_anew(&mut self, head: &Head, now: u64) {
        self.epoch = head.epoch;
        self.flight.clear();
        if head.seed != self.seed {
            // The keys have other names now. What was spent under the old ones cannot be told.
            self.seed = head.seed;
            if !self.entries.is_empty() {
                let longest = self.policies.iter().map(Policy::window_ns).max().unwrap_or(0);
                self.crowded_until = now + longest;
            }
            self.entries.clear();
            self.index.clear();
            self.queue.clear();
            self.hand = 0;
        }
        for index in 0..self.entries.len() {
            let slot = self.slot(self.entries[index].policy as usize, now);
            let entry = &mut self.entries[index];
            entry.ring.advance(slot);
            entry.acked = entry.spent - u64::from(entry.ring.total()).min(entry.spent);
            entry.sent = entry.acked;
            entry.held = 0;
            entry.flying = false;
            entry.blocked_until = 0;
            entry.due = u64::MAX;
        }
        self.tell_all(now);
    }

    fn tell_all(&mut self, now: u64) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.spent != entry.acked || entry.pending > 0 {
                self.ask(index, now);
            }
        }
    }
}

impl Counts {
    /// The figures in the order of the binding.
    #[must_use]
    pub fn list(&self) -> [u64; 5] {
        [self.calls, self.granted, self.owed, self.alone, self.unknown]
    }
}

/// As many units as that, and as many more as make it whole requests.
fn whole(units: u32, unit: u32) -> u32 {
    units.div_ceil(unit).saturating_mul(unit)
}
