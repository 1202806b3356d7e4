//! One limit for many hosts: a node's share of it, leased from Redis ahead of the requests that spend it.
//!
//! Strategy: a node (one gateway process) answers from units that it holds; a task beside the requests reports what was
//! spent and asks for more, all keys in one call (`sync.lua`). docs/decisions/0005 says why the bounds hold. Rules:
//! - a leased unit is spent before the lease's expiry, counted from *before* the call that brought it was sent; Redis
//!   counts the lease until expiry + one window, so it outlives everything spent from it;
//! - spent units are told as one number that only grows, so a call that is lost or repeated counts nothing twice;
//! - `fast` never waits: without a lease a node may owe up to [`Policy::debt`] units per key, until an answer says that they
//!   fitted, and none while the fleet is known to have none left; with Redis away it goes on within its share of the
//!   limit, less what it spent in the window;
//! - units are leased, kept and given back in such numbers that a request can spend them: a lease that is smaller than any
//!   request is one that others miss;
//! - `strict` spends nothing but leases: [`Verdict::Unknown`] asks the caller to wait for the next sync;
//! - memory is bounded. An entry whose units are all reported may make room, since Redis remembers them; until one window
//!   later newcomers then get neither debt nor share, so that crowding gives nobody quota back.
//!
//! How it is used, from the admission core and from the task:
//!
//! ```text
//! let check = book.check(policy, key, now_ns, cost);      // changes nothing that a refusal elsewhere would have to undo
//! match check.verdict { Admitted => book.charge(&check), Refused => …, Unknown => wait for a sync, Unavailable => 503 }
//! book.refund(&check);                                    // best effort: only what was not reported yet comes back
//!
//! book.due_in(now_ns) -> Option<u64>                      // nanoseconds until a call is worthwhile
//! book.collect(now_ns, max, sha) -> Option<Vec<u8>>       // one RESP command with up to `max` reports
//! book.apply(answer, now_ns) -> Result<(), Unusable>      // its answer; or
//! book.lost(now_ns, away)                                 // no answer; `away`: from now on without Redis
//! ```

mod entry;
mod ring;
mod sync;
mod wire;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hasher as _;

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::error::Unusable;
use entry::Entry;

const MS: u64 = 1_000_000;
/// The longest window: a year.
const MAX_WINDOW_MS: u64 = 366 * 24 * 3600 * 1000;
/// Entries examined for one newcomer to a full book.
const SWEEP: usize = 16;
/// Bytes per key beside its entry: index, queue and the growth of both.
const INDEX_BYTES: usize = 80;

/// What a policy does without a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Owes a little; never waits.
    Fast,
    /// Waits for the next sync; never over-admits.
    Strict,
}

/// A limit that all nodes share.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name: keys of different names or windows never meet.
    pub name: String,
    /// Units per window.
    pub limit: u32,
    /// Length of the window.
    pub window_ms: u64,
    /// What happens without a lease.
    pub mode: Mode,
}

impl Policy {
    /// Units that a node may owe per key without knowing whether they fitted (0 when strict).
    #[must_use]
    pub fn debt(&self) -> u32 {
        if self.mode == Mode::Fast { self.limit.div_ceil(64) } else { 0 }
    }

    /// Units per window that a node may admit while Redis is away (0 when strict).
    #[must_use]
    pub fn share(&self, nodes: u32) -> u32 {
        if self.mode == Mode::Fast { (self.limit / nodes.max(1)).max(1) } else { 0 }
    }

    /// How long units are leased.
    #[must_use]
    pub fn lease_ns(&self) -> u64 {
        (self.window_ms / 4).clamp(200, 30_000) * MS
    }

    pub(crate) fn window_ns(&self) -> u64 {
        self.window_ms * MS
    }

    pub(crate) fn slot_us(&self) -> u64 {
        (self.window_ms * 1_000).div_ceil(64)
    }
}

/// The answer about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits: charge it.
    Admitted,
    /// It does not.
    Refused,
    /// Strict and no lease: ask again after the next sync.
    Unknown,
    /// Strict, no lease, and Redis is away.
    Unavailable,
}

/// Where the units of an admitted request come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Lease,
    Debt,
    Share,
}

/// What the book says about a request before it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The answer.
    pub verdict: Verdict,
    /// Units left for this node to know of: after this request when admitted.
    pub remaining: u32,
    /// Admitted: nanoseconds until quota grows, as far as known. Refused: until it is worth asking again.
    pub reset_ns: u64,
    identity: Identity,
    policy: usize,
    index: usize,
    cost: u32,
    source: Source,
}

type Identity = (u64, u64);

/// What a node tells about one key.
#[derive(Debug)]
struct Report {
    identity: Identity,
    policy: usize,
    spent: u64,
    keep: u32,
    need: u32,
    extra: u32,
    unit: u32,
    newest: u64,
    /// (slots before the newest, units), newest first
    pairs: Vec<(u8, u32)>,
}

/// Figures for metrics, counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Calls answered.
    pub calls: u64,
    /// Units leased.
    pub granted: u64,
    /// Units spent before a lease.
    pub owed: u64,
    /// Units spent while Redis was away.
    pub alone: u64,
    /// Checks that had to wait.
    pub unknown: u64,
}

/// Where the fleet's clock stood in a call.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    server_us: u64,
    sent_ns: u64,
    received_ns: u64,
}

/// All leases of one node.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and any may meet any other")]
pub struct LeaseBook {
    policies: Vec<Policy>,
    entries: Vec<Entry>,
    capacity: usize,
    index: HashTable<u32>,
    hand: usize,
    /// (when, entry): valid while the entry says the same.
    queue: BinaryHeap<Reverse<(u64, u32)>>,
    latest: u64,
    /// No debt and no share for entries made before this.
    crowded_until: u64,
    /// Units spent, ever: where the growing number of a new entry begins, past that of any entry before it.
    spent_ever: u64,
    node: u64,
    call: u64,
    seed: Identity,
    fresh: bool,
    epoch: u64,
    clock: u32,
    step_us: i64,
    /// The next call says that the fleet's clock was found right.
    judged: bool,
    anchor: Option<Anchor>,
    nodes: u32,
    away: bool,
    grace_until: u64,
    grace_us: u32,
    flight: Vec<(u32, u64)>,
    sent_ns: u64,
    flying: bool,
    closing: bool,
    counts: Counts,
    jitter: u64,
}

impl LeaseBook {
    /// `node` and `seed` must be random; `max_bytes` bounds everything the book remembers. `grace_ms`: how long a fleet
    /// that begins anew grants nothing, so that every node can tell first what it spent.
    pub fn new(
        policies: Vec<Policy>,
        max_bytes: usize,
        node: u64,
        seed: (u64, u64),
        grace_ms: u32,
    ) -> Result<Self, Unusable> {
        for policy in &policies {
            if policy.limit == 0 || policy.limit > 1 << 30 {
                return Err(Unusable("limit is between 1 and 2^30"));
            }
            if policy.window_ms == 0 || policy.window_ms > MAX_WINDOW_MS {
                return Err(Unusable("window_ms is between 1 and a year"));
            }
        }
        let capacity = (max_bytes / (size_of::<Entry>() + INDEX_BYTES)).min(1 << 31);
        if capacity < 16 {
            return Err(Unusable("max_bytes is too small for 16 keys"));
        }
        Ok(Self {
            policies,
            entries: Vec::new(),
            capacity,
            index: HashTable::new(),
            hand: 0,
            queue: BinaryHeap::new(),
            latest: 0,
            crowded_until: 0,
            spent_ever: 0,
            node,
            call: 0,
            seed,
            fresh: true,
            epoch: 0,
            clock: 0,
            step_us: 0,
            judged: false,
            anchor: None,
            nodes: 1,
            away: false,
            grace_until: 0,
            grace_us: grace_ms.saturating_mul(1_000),
            flight: Vec::new(),
            sent_ns: 0,
            flying: false,
            closing: false,
            counts: Counts::default(),
            jitter: node | 1,
        })
    }

    /// The policy of an index.
    #[must_use]
    pub fn policy(&self, policy: usize) -> Option<&Policy> {
        self.policies.get(policy)
    }

    /// Nodes of the fleet as last told, this one included.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Whether the node goes on without Redis.
    #[must_use]
    pub fn away(&self) -> bool {
        self.away
    }

    /// Whether grants can be had: the fleet is known and past its grace.
    #[must_use]
    pub fn ready(&self, now_ns: u64) -> bool {
        self.epoch != 0 && !self.away && now_ns >= self.grace_until
    }

    /// Figures since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Keys remembered.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.entries.len()
    }

    /// Checks and, when admitted, counts.
    pub fn hit(&mut self, policy: usize, key: &[u8], now_ns: u64, cost: u32) -> Check {
        let check = self.check(policy, key, now_ns, cost);
        if check.verdict == Verdict::Admitted {
            self.charge(&check);
        }
        check
    }

    /// Says whether `cost` units fit. `policy` is an index into the policies; an unknown one is refused.
    pub fn check(&mut self, policy: usize, key: &[u8], now_ns: u64, cost: u32) -> Check {
        self.latest = self.latest.max(now_ns);
        let now = self.latest;
        let identity = self.identify(policy, key);
        let refused = Check {
            verdict: Verdict::Refused,
            remaining: 0,
            reset_ns: 1_000 * MS,
            identity,
            policy,
            index: usize::MAX,
            cost,
            source: Source::Lease,
        };
        if policy >= self.policies.len() || cost > self.policies[policy].limit {
            return refused;
        }
        let Some(index) = self.find(identity).or_else(|| self.enrol(identity, policy)) else { return refused };
        let without = self.away || self.epoch == 0 || now < self.grace_until;
        let slot = self.slot(policy, now);
        let rules = &self.policies[policy];
        let entry = &mut self.entries[index];
        entry.touched = now;
        entry.least = entry.least.min(cost.max(1));
        let held = entry.held_at(now);
        let mut check = Check { index, reset_ns: rules.window_ns(), ..refused };
        if entry.next_at > now {
            check.reset_ns = entry.next_at - now;
        }
        if held >= cost {
            check.remaining = (held - cost).saturating_add(entry.free).min(rules.limit);
            check.verdict = Verdict::Admitted;
            return check;
        }
        entry.demand = entry.demand.saturating_add(cost);
        let urgent = match rules.mode {
            _ if without => {
                entry.ring.advance(slot);
                let spent = entry.ring.total();
                // Before the first contact there is no number of nodes to share by: only debt.
                let share = match (self.epoch == 0, entry.crowded_until > now) {
                    (_, true) => 0,
                    (true, false) => rules.debt(),
                    (false, false) => rules.share(self.nodes),
                };
                if rules.mode == Mode::Strict {
                    check.verdict = if self.away { Verdict::Unavailable } else { Verdict::Unknown };
                    check.reset_ns = self.grace_until.saturating_sub(now).max(1_000 * MS);
                } else if spent + cost <= share {
                    check.verdict = Verdict::Admitted;
                    check.source = if self.epoch == 0 { Source::Debt } else { Source::Share };
                    check.remaining = share - spent - cost;
                } else {
                    check.reset_ns = entry.ring.leaves_in().unwrap_or(64) * rules.slot_us() * 1_000;
                }
                return check;
            }
            _ if entry.blocked_until > now && entry.free < cost => {
                check.reset_ns = entry.blocked_until - now;
                return check;
            }
            Mode::Strict => {
                check.verdict = Verdict::Unknown;
                self.counts.unknown += 1;
                true
            }
            Mode::Fast => {
                let debt = if entry.crowded_until > now { 0 } else { rules.debt() };
                let owed = entry.owed_at(now, rules.window_ns());
                if owed + cost <= debt && entry.free >= owed + cost {
                    check.verdict = Verdict::Admitted;
                    check.source = Source::Debt;
                    check.remaining = entry.free - owed - cost;
                } else {
                    check.reset_ns = sync::TICK_NS;
                }
                false
            }
        };
        if check.verdict != Verdict::Admitted {
            entry.pending = entry.pending.saturating_add(cost).min(rules.limit);
        }
        let when = if urgent { now } else { now + entry.calm_ns(rules.horizon_ns()).max(sync::TICK_NS) };
        self.ask(index, when);
        check
    }

    /// Counts what `check` admitted. The check must be the book's latest word on the key.
    pub fn charge(&mut self, check: &Check) {
        let now = self.latest;
        let Some(index) = self.known(check) else { return };
        let slot = self.slot(check.policy, now);
        let rules = &self.policies[check.policy];
        let entry = &mut self.entries[index];
        let cost = check.cost;
        match check.source {
            Source::Lease => {
                entry.held = entry.held.saturating_sub(cost);
                entry.demand = entry.demand.saturating_add(cost);
            }
            Source::Debt => {
                let owed = entry.owed_at(now, rules.window_ns());
                entry.debt_sent = entry.debt_sent.min(owed);
                entry.debt = owed + cost;
                entry.debt_at = now;
                self.counts.owed += u64::from(cost);
            }
            Source::Share => self.counts.alone += u64::from(cost),
        }
        entry.spent += u64::from(cost);
        self.spent_ever += u64::from(cost);
        entry.ring.advance(slot);
        entry.ring.add(cost);
        let low = entry.rate * sync::LEAD_S;
        if (entry.held as f32) < low && !self.away {
            let when = (now + entry.calm_ns(rules.horizon_ns())).max(entry.blocked_until);
            self.ask(index, when);
        } else if entry.due == u64::MAX {
            // Spent units may stay unreported for as long as their lease counts anyway.
            let when = now + rules.lease_ns() / 2;
            self.ask(index, when);
        }
    }

    /// Takes an admitted and charged request back, if it was not reported yet.
    pub fn refund(&mut self, check: &Check) {
        let Some(index) = self.known(check) else { return };
        let now = self.latest;
        let entry = &mut self.entries[index];
        let cost = u64::from(check.cost);
        if entry.spent - cost.min(entry.spent) < entry.acked.max(entry.sent) || u64::from(entry.ring.total()) < cost {
            return;
        }
        entry.spent -= cost;
        entry.ring.remove(check.cost);
        match check.source {
            Source::Lease if entry.expiry > now => entry.held += check.cost,
            Source::Debt => entry.debt = entry.debt.saturating_sub(check.cost),
            _ => {}
        }
    }

    fn known(&self, check: &Check) -> Option<usize> {
        self.entries
            .get(check.index)
            .filter(|entry| entry.identity == check.identity)
            .map(|_| check.index)
            .or_else(|| self.find(check.identity))
    }

    fn identify(&self, policy: usize, key: &[u8]) -> Identity {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        if let Some(policy) = self.policies.get(policy) {
            hasher.write(&(policy.name.len() as u64).to_le_bytes());
            hasher.write(policy.name.as_bytes());
            hasher.write(&policy.window_ms.to_le_bytes());
        }
        hasher.write(key);
        let hash = hasher.finish128();
        (hash.h1, hash.h2)
    }

    fn find(&self, identity: Identity) -> Option<usize> {
        self.index
            .find(identity.0, |&index| self.entries[index as usize].identity == identity)
            .map(|&index| index as usize)
    }

    /// Gives a newcomer an entry, if there is one whose loss Redis makes good.
    fn enrol(&mut self, identity: Identity, policy: usize) -> Option<usize> {
        let mut entry = Entry::new(identity, policy, self.policies[policy].limit, self.spent_ever);
        if self.latest < self.crowded_until {
            entry.crowded_until = self.latest + self.policies[policy].window_ns();
        }
        let index = if self.entries.len() < self.capacity {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let index = self.evict()?;
            if self.latest < self.crowded_until {
                entry.crowded_until = self.latest + self.policies[policy].window_ns();
            }
            self.entries[index] = entry;
            index
        };
        let entries = &self.entries;
        self.index.insert_unique(identity.0, index as u32, |&index| entries[index as usize].identity.0);
        Some(index)
    }

    fn evict(&mut self) -> Option<usize> {
        for _ in 0..SWEEP {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.capacity;
            let (policy, now) = (self.entries[index].policy as usize, self.latest);
            let slot = self.slot(policy, now);
            let window = self.policies[policy].window_ns();
            let entry = &mut self.entries[index];
            // One that was looked at just now may belong to the request that this room is for, and has its charge to come.
            if entry.acked != entry.spent || entry.held > 0 || entry.flying || entry.touched == now {
                continue;
            }
            entry.ring.advance(slot);
            if entry.ring.total() > 0 || entry.owed_at(now, window) > 0 {
                self.crowded_until = self.crowded_until.max(now + window);
            }
            let hash = self.entries[index].identity.0;
            if let Ok(found) = self.index.find_entry(hash, |&other| other as usize == index) {
                found.remove();
            }
            return Some(index);
        }
        None
    }

    /// Where the fleet's clock stands at the latest, in slots of the policy.
    fn slot(&self, policy: usize, now: u64) -> u64 {
        let server_us = match self.anchor {
            Some(anchor) => anchor.server_us + now.saturating_sub(anchor.sent_ns) / 1_000 + 1,
            None => now / 1_000,
        };
        server_us / self.policies[policy].slot_us()
    }

    /// Makes a call about an entry worthwhile at `when`, unless it is earlier already.
    fn ask(&mut self, index: usize, when: u64) {
        let entry = &mut self.entries[index];
        if when < entry.due {
            entry.due = when;
            if !entry.flying {
                self.queue.push(Reverse((when, index as u32)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
