//! Many keys under one limit, for any number of workers at once.
//!
//! Strategy: [`table`](super::table) says which entry is a key's, [`history`](super::history) what it holds; this file asks
//! and charges. A check counts nothing. A charge is one compare-and-swap of the word that the check judged by; when somebody was
//! faster, the key is judged anew. Rules:
//! - time is an argument, the same clock for all workers of a table; on one entry it never runs backwards;
//! - only admitted units are counted: refused requests cannot keep a client out for ever;
//! - memory is bounded and known beforehand, and crowding gives nobody quota back.

use zerocopy::FromZeros;

use super::history::{HEAD, Reading, Shape};
use super::memory::{Heap, Memory, Word};
use super::table::{self, Claim, Identity, Open, Table};
use crate::error::Unusable;

/// The longest window: a year.
const MAX_WINDOW_MS: u64 = 366 * 24 * 3600 * 1000;
/// The largest limit.
pub const MAX_LIMIT: u32 = 1_000_000_000;
/// Times beyond a century and a half count as that.
const MAX_NOW: u64 = 1 << 62;
/// More than is ever left.
const TELL: u64 = u64::MAX;
/// How often a charge tries to get an own entry before it makes do with the shared one.
const CLAIMS: u32 = 8;

/// At most `limit` units in any window of `window_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per window; 1 to [`MAX_LIMIT`].
    pub limit: u32,
    /// Length of the window; at most a year.
    pub window_ms: u64,
    /// The most units one request may cost; 1 to `limit`. Small limits take a word of memory per key for each.
    pub max_cost: u32,
}

impl Rate {
    fn shape(self) -> Result<Shape, Unusable> {
        if self.limit == 0 || self.limit > MAX_LIMIT {
            return Err(Unusable("limit is between 1 and 1000000000"));
        }
        if self.window_ms == 0 || self.window_ms > MAX_WINDOW_MS {
            return Err(Unusable("window_ms is between 1 and a year"));
        }
        if self.max_cost == 0 || self.max_cost > self.limit {
            return Err(Unusable("max_cost is between 1 and limit"));
        }
        Ok(Shape::new(self.limit, self.window_ms * 1_000_000, self.max_cost))
    }

    /// Words of the largest region of at most `max_bytes`.
    pub fn words(self, max_bytes: usize) -> Result<usize, Unusable> {
        match table::words_within(self.shape()?, max_bytes / size_of::<u64>()) {
            0 => Err(Unusable("max_bytes is too small for 16 keys")),
            words => Ok(words),
        }
    }

    /// Tells windows of different rates apart that were given the same region; never 0.
    const fn purpose(self) -> u64 {
        let rate = (self.limit as u64) << 32 | self.max_cost as u64;
        (rate ^ self.window_ms.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1 << 63
    }
}

/// What a window says about a request before it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Whether the cost fits.
    pub admitted: bool,
    /// Units left: after this request when admitted, now when refused.
    pub remaining: u32,
    /// Admitted: nanoseconds until the oldest counted unit leaves and quota grows. Refused: nanoseconds until the same cost
    /// fits, if nothing else is admitted before.
    pub reset_ns: u64,
    identity: Identity,
    now_ns: u64,
    cost: u32,
    place: Place,
}

/// Where a check looked, and what it is valid for.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// An own entry or a cell, its head, and the entry's now.
    Entry { index: usize, head: u64, stamp: u64 },
    /// The key has no history.
    None,
}

/// Units that were counted, so that they can be given back. That is for the rare request that a later window refuses after
/// all: a window remembers a million such units, a limit up to 64 the greater of 4 and `max_cost`.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Units left.
    pub remaining: u32,
    /// Nanoseconds until quota grows.
    pub reset_ns: u64,
    /// When it counts as admitted: the given time, or what the entry had seen before.
    pub now_ns: u64,
    index: usize,
    stamp: u64,
    cost: u32,
}

/// What one entry says at one head.
struct Found {
    admitted: bool,
    left: u32,
    reset_ns: u64,
    now_ns: u64,
    stamp: u64,
    /// Whether the entry counts any unit, given back or not.
    is_used: bool,
}

impl Found {
    #[inline]
    fn check<W>(&self, identity: Identity, cost: u32, open: &Open<'_, W>) -> Check {
        let &Self { admitted, left, reset_ns, now_ns, stamp, .. } = self;
        let place = Place::Entry { index: open.index, head: open.head, stamp };
        Check { admitted, remaining: left, reset_ns, identity, now_ns, cost, place }
    }
}

/// The same, and whether it stands.
struct Judgement {
    check: Check,
    /// Whether the entry counts any unit, given back or not.
    is_used: bool,
    /// Whether it still has the head that was judged, as far as that matters.
    is_current: bool,
}

/// At most `limit` units per key in any window of `window_ms`.
#[derive(Debug)]
pub struct SlidingWindow<M = Heap> {
    rate: Rate,
    seed: (u64, u64),
    shape: Shape,
    table: Table<M>,
}

impl<W: Word + FromZeros> SlidingWindow<Heap<W>> {
    /// A window of this process alone, in at most `max_bytes`. `seed` must be random and secret.
    pub fn on_heap(rate: Rate, max_bytes: usize, seed: (u64, u64)) -> Result<Self, Unusable> {
        let memory = Heap::zeroed(rate.words(max_bytes)?).ok_or(Unusable("max_bytes is more than there is"))?;
        Self::new(rate, memory, seed)
    }
}

impl<M: Memory> SlidingWindow<M> {
    /// A window over a region of [`Rate::words`] words, zeroed before its first use. All that share the region must have the
    /// same rate, seed and clock.
    pub fn new(rate: Rate, memory: M, seed: (u64, u64)) -> Result<Self, Unusable> {
        let shape = rate.shape()?;
        let table = Table::new(memory, shape, rate.purpose());
        let table = table.ok_or(Unusable("the region is too small, or a window of another rate lives in it"))?;
        Ok(Self { rate, seed, shape, table })
    }

    /// What it holds requests to.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The identity of a key: worth keeping where one key is checked often.
    #[must_use]
    #[inline]
    pub fn identify(&self, key: &[u8]) -> Identity {
        Identity::new(self.seed, key)
    }

    /// Checks and, when admitted, counts.
    #[inline]
    pub fn hit(&self, key: &[u8], now_ns: u64, cost: u32) -> Result<Charge, Check> {
        let identity = self.identify(key);
        let (now_ns, units, limit) = (now_ns.min(MAX_NOW), u64::from(cost), u64::from(self.rate.limit));
        let Some(open) = self.table.find(identity) else { return self.hit_anew(identity, now_ns, cost) };
        // The usual case in one go: an entry of its own, room in it, and nobody faster. Any other is decided from the start.
        let Open { index, head, entry } = open;
        if let Some(found) = self.shape.usual(entry, head, now_ns)
            && let Some(left) = limit.checked_sub(found.used + units)
            && cost <= self.rate.max_cost
        {
            let reset_ns = self.shape.usual_wait(entry, now_ns, &found);
            if found.charge(entry, head, units) {
                return Ok(Charge { remaining: left as u32, reset_ns, now_ns, index, stamp: found.stamp, cost });
            }
        }
        self.hit_open(identity, now_ns, cost, &Open { index, head, entry })
    }

    #[inline(never)]
    fn hit_open(&self, identity: Identity, now_ns: u64, cost: u32, open: &Open<'_, M::Word>) -> Result<Charge, Check> {
        let Found { admitted, left, reset_ns, now_ns: at_ns, stamp, .. } = self.weigh_anew(now_ns, cost, open, TELL);
        if admitted && self.shape.charge(open.entry, open.head, stamp, u64::from(cost)) {
            return Ok(Charge { remaining: left, reset_ns, now_ns: at_ns, index: open.index, stamp, cost });
        }
        self.hit_anew(identity, now_ns, cost)
    }

    #[inline(never)]
    fn hit_anew(&self, identity: Identity, now_ns: u64, cost: u32) -> Result<Charge, Check> {
        self.charge(&self.check(identity, now_ns, cost))
    }

    /// Says whether `cost` units fit, counting nothing.
    #[inline]
    pub fn check(&self, identity: Identity, now_ns: u64, cost: u32) -> Check {
        self.look(identity, now_ns, cost, TELL, |check| check)
    }

    /// The same; when quota grows after an admission is worked out (else 0) only if less than `tell_below` is left: most who
    /// ask several windows tell of the tightest. `used` gets the answer where it is made: it is large, and a copy costs as
    /// much as the rest.
    #[expect(clippy::inline_always, reason = "what it hands over is large, and the hot path has one caller of it")]
    #[inline(always)]
    pub(crate) fn look<T>(
        &self,
        identity: Identity,
        now_ns: u64,
        cost: u32,
        tell_below: u64,
        used: impl FnOnce(Check) -> T,
    ) -> T {
        let now_ns = now_ns.min(MAX_NOW);
        if let Some(open) = self.table.find(identity) {
            let found = self.weigh(now_ns, cost, &open, tell_below);
            if Self::stands(&found, &open) {
                return used(found.check(identity, cost, &open));
            }
        }
        used(self.look_anew(identity, now_ns, cost, tell_below))
    }

    /// The key has no entry, or what it said is out of date.
    #[inline(never)]
    fn look_anew(&self, identity: Identity, now_ns: u64, cost: u32, tell_below: u64) -> Check {
        loop {
            let Judgement { check, is_current, .. } = match self.table.find(identity) {
                Some(open) => self.judge(identity, now_ns, cost, &open, tell_below),
                None => self.judge_without_entry(identity, now_ns, cost),
            };
            if is_current {
                return check;
            }
        }
    }

    /// Counts what was admitted. The error is what stands against it by now.
    #[inline]
    pub fn charge(&self, check: &Check) -> Result<Charge, Check> {
        let mut check = *check;
        if !self.take(&mut check) {
            return Err(check);
        }
        let Check { remaining, reset_ns, now_ns, place, cost, .. } = check;
        match place {
            Place::Entry { index, stamp, .. } => Ok(Charge { remaining, reset_ns, now_ns, index, stamp, cost }),
            Place::None => Err(check),
        }
    }

    /// Counts what was admitted; then `check` says where. When it does not fit any more, it says what stands against it.
    #[inline]
    pub(crate) fn take(&self, check: &mut Check) -> bool {
        check.admitted && (self.take_at(check) || self.take_anew(check))
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, check: &Check) {
        if let Place::Entry { index, stamp, .. } = check.place {
            self.shape.refund(self.table.entry(index), stamp, u64::from(check.cost));
        }
    }

    /// Gives back what was counted for a request that is refused after all.
    pub fn refund(&self, charge: &Charge) {
        self.shape.refund(self.table.entry(charge.index), charge.stamp, u64::from(charge.cost));
    }

    /// The key has no entry, or somebody was faster.
    #[cold]
    fn take_anew(&self, check: &mut Check) -> bool {
        let Check { identity, now_ns, cost, .. } = *check;
        let mut claims = 0;
        loop {
            if let Place::None = check.place {
                let now_ns = self.table.now_without_entry(now_ns);
                claims += 1;
                if claims > CLAIMS || self.table.claim(identity, now_ns) == Claim::Full {
                    *check = self.judge_cell(identity, now_ns, cost).check;
                } else {
                    *check = self.check(identity, now_ns, cost);
                }
            } else {
                *check = self.check(identity, now_ns, cost);
            }
            if !check.admitted {
                return false;
            }
            if self.take_at(check) {
                return true;
            }
        }
    }

    /// Counts it where it was judged; false when that has changed meanwhile.
    #[inline]
    fn take_at(&self, check: &Check) -> bool {
        let Place::Entry { index, head, stamp } = check.place else { return false };
        if !self.shape.charge(self.table.entry(index), head, stamp, u64::from(check.cost)) {
            return false;
        }
        if self.table.is_cell(index) && self.table.is_elsewhere(check.identity, index) {
            self.give_back(check);
            return false;
        }
        true
    }

    #[inline(never)]
    fn judge_without_entry(&self, identity: Identity, now_ns: u64, cost: u32) -> Judgement {
        let now_ns = self.table.now_without_entry(now_ns);
        let mut judgement = self.judge_cell(identity, now_ns, cost);
        if !judgement.is_used {
            judgement.check.place = Place::None;
        }
        judgement
    }

    #[inline(never)]
    fn judge_cell(&self, identity: Identity, now_ns: u64, cost: u32) -> Judgement {
        let index = self.table.cell(identity);
        let entry = self.table.entry(index);
        self.judge(identity, now_ns, cost, &Open { index, head: entry[HEAD].load(), entry }, TELL)
    }

    /// What an entry says at this head, and whether it still has it.
    fn judge(
        &self,
        identity: Identity,
        now_ns: u64,
        cost: u32,
        open: &Open<'_, M::Word>,
        tell_below: u64,
    ) -> Judgement {
        let found = self.weigh_anew(now_ns, cost, open, tell_below);
        let is_current = Self::stands(&found, open);
        Judgement { check: found.check(identity, cost, open), is_used: found.is_used, is_current }
    }

    /// Whether what was found can be believed: a refusal must be true, of an admission the charge finds out.
    #[inline]
    fn stands(found: &Found, open: &Open<'_, M::Word>) -> bool {
        found.admitted || open.entry[HEAD].load() == open.head
    }

    /// What an entry says at this head.
    #[expect(clippy::inline_always, reason = "what it returns is large, and the hot path has one caller of it")]
    #[inline(always)]
    fn weigh(&self, now_ns: u64, cost: u32, open: &Open<'_, M::Word>, tell_below: u64) -> Found {
        if let Some(found) = self.shape.usual(open.entry, open.head, now_ns)
            && let Some(left) = u64::from(self.rate.limit).checked_sub(found.used + u64::from(cost))
            && cost <= self.rate.max_cost
        {
            let reset_ns = if left < tell_below { self.shape.usual_wait(open.entry, now_ns, &found) } else { 0 };
            let is_used = found.raw > 0;
            return Found { admitted: true, left: left as u32, reset_ns, now_ns, stamp: found.stamp, is_used };
        }
        // Taken apart, or all of it would go through memory in the usual case too.
        let Found { admitted, left, reset_ns, now_ns, stamp, is_used } =
            self.weigh_anew(now_ns, cost, open, tell_below);
        Found { admitted, left, reset_ns, now_ns, stamp, is_used }
    }

    #[inline(never)]
    fn weigh_anew(&self, now_ns: u64, cost: u32, open: &Open<'_, M::Word>, tell_below: u64) -> Found {
        let &Open { head, entry, .. } = open;
        let reading = self.shape.read(entry, head, now_ns);
        let limit = u64::from(self.rate.limit);
        let missing = (reading.used + u64::from(cost)).saturating_sub(limit);
        let admitted = missing == 0 && cost <= self.rate.max_cost;
        let left = limit.saturating_sub(reading.used) - if admitted { u64::from(cost) } else { 0 };
        let reset_ns = if !admitted || left < tell_below { self.reset(entry, head, &reading, missing) } else { 0 };
        let Reading { now_ns, stamp, raw, .. } = reading;
        Found { admitted, left: left as u32, reset_ns, now_ns, stamp, is_used: raw > 0 }
    }

    #[inline]
    fn reset(&self, entry: &[M::Word], head: u64, reading: &Reading, missing: u64) -> u64 {
        if reading.raw == 0 {
            return self.shape.lifetime(reading);
        }
        // A cost above the limit never fits; it is told to wait for an empty window.
        self.shape.wait(entry, head, reading, missing.clamp(1, reading.raw))
    }
}
