//! What a window remembers about one key: a fixed number of words that any number of workers use without a lock.
//!
//! `head` is the one word that decides: it counts every unit ever admitted (`count`, modulo [`Shape::modulus`]), and a
//! charge is one compare-and-swap of `head` from the count it was judged by to that count plus its cost. Whatever else is
//! written is written **before** that swap and is true whether or not the swap happens, so a worker that stops or dies
//! between any two operations leaves nothing half done. The count never goes down, not even when the entry changes hands.
//!
//! Two shapes, chosen by the limit once:
//! - **Log** (limit <= 64): `log[i]` is when unit `i` was admitted. Exact. A charge raises the times of its units, then
//!   swaps `head`. A loser's marks stand on units above the count, where the next charge raises them; there are places
//!   for the limit, for what may be given back and for one charge more, so they never stand on a unit that still counts.
//! - **Ring** (larger): per 1/64 of the window a **snapshot**, the count when that tick began. What a window holds is
//!   the count less the oldest snapshot in it. The tick that the window's edge cuts through is counted in full: any
//!   weighting would let nearly twice the limit through under a burst at the tick's end. So a key is never given more than
//!   the limit in a true window, and a refusal means that the limit was used within the last 65/64 of one.
//!
//! Why the ring never counts too little. A charge at tick `t`, in this order: reads `head`, then `floor` (the newest tick
//! published; its own `t` is at least that), publishes `t`, makes sure that `t` has a snapshot (the first one stays), reads
//! `floor` again if it has to write one, swaps `head`. Let charge `n` have tick `q`, within the window that a reader at tick
//! `T >= q` looks at, and be part of the count it read. Snapshot `q` stood before `n`'s swap, with a count below `n`, and
//! stands still: a newer tick takes its place only after `floor` passed `T`, which the reader rules out by reading `floor`
//! last. So the oldest snapshot `f` in the window has `f <= q`. Were `n` not above its count, its writer had read `head`
//! after `n`'s swap, hence `floor >= q`, hence `f = q`; but a snapshot `q` stood by then, and the first one stays. The same
//! holds for a reader's swap later on: it succeeds only if the count is still the one it read.
//! A snapshot written late by a slow worker holds an older, smaller count: units then seem younger, never older.
//!
//! A reader that had to look far for `f` notes it (`oldest`, with its own `T`), and later ones begin there. It does so only
//! while `head` is still the one it read. So a charge `n` whose snapshot `q < f` it has missed swaps `head` after `f` was
//! seen to stand; `f`'s count was read before that, hence is below `n`, and `n` is counted. Whoever is at an earlier tick
//! than the note looks for himself: he has more ticks to see to than were looked at.
//!
//! Times never run backwards: what an entry has seen last counts as now. `floor` carries that over when an entry changes
//! hands. `returned` holds units given back (a later window refused the same request): a credit that lapses no later than
//! the charge it belongs to. Two credits become one that lapses with the older, and there is a most that is remembered.

use super::memory::{LINE, Word};

/// Limits up to this are remembered unit by unit.
pub(super) const LOG_LIMIT: u32 = 64;
/// Ticks per window.
const TICKS: u64 = 64;
/// The ticks of a window and the one being cut by its edge.
const RING: u64 = TICKS + 1;

/// The words of an entry.
pub(super) const HEAD: usize = 0;
const FLOOR: usize = 1;
const RETURNED: usize = 2;
const REST: usize = 3;
/// Ring: where the oldest snapshot was found, and by whom; the snapshots follow.
const OLDEST: usize = REST;
const SNAPSHOTS: usize = OLDEST + 1;

/// `head`: how often the entry changed hands, whether that is under way, and the count.
const COUNT_BITS: u32 = 30;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const CLAIMING: u64 = 1 << COUNT_BITS;
const GENERATION: u64 = CLAIMING << 1;
/// The part of the generation that stands in an identity word too.
pub(super) const SHORT_GENERATION: u64 = 0xffff;

/// A snapshot: the tick modulo a number that has no factor in common with the ring, plus one (0: none yet); the count.
/// The same place and tag come back after 65 * 2^34 ticks, six months of one-millisecond windows.
const TAGS: u64 = (1 << (u64::BITS - COUNT_BITS)) - 1;

/// `oldest`: the tick of whoever looked, and how many ticks before it the snapshot lies.
const BEHIND_BITS: u32 = 7;
const BEHIND: u64 = (1 << BEHIND_BITS) - 1;
/// Fewer ticks are looked through anew rather than noted.
const FAR: u64 = 4;

/// `returned`: the tick of the oldest charge given back, and how many units.
const CREDIT_BITS: u32 = 20;
const CREDIT: u64 = (1 << CREDIT_BITS) - 1;
const CREDIT_TICK: u64 = (1 << (u64::BITS - CREDIT_BITS)) - 1;
/// Units given back that a log remembers at least, if it takes that many charges.
const LOG_CREDIT: u32 = 4;

/// The generation, as far as an identity word has it.
pub(super) const fn short_generation(head: u64) -> u64 {
    (head / GENERATION) & SHORT_GENERATION
}

/// Whether somebody is about to make the entry his key's.
pub(super) const fn is_claiming(head: u64) -> bool {
    head & CLAIMING != 0
}

/// The entry in new hands, not yet open.
pub(super) const fn claimed(head: u64) -> u64 {
    (head & !CLAIMING).wrapping_add(GENERATION) | CLAIMING
}

/// A claim carried through.
pub(super) const fn opened(head: u64) -> u64 {
    head & !CLAIMING
}

/// A claim ended: the entry belongs to nobody.
pub(super) const fn voided(head: u64) -> u64 {
    opened(head).wrapping_add(GENERATION)
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// `reach`: units that count at most, given back or not.
    Log {
        reach: u64,
        places: u64,
    },
    Ring,
}

/// How one key's history lies in its words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    form: Form,
    window_ns: u64,
    tick_ns: u64,
    /// 2^64 - 1 over `tick_ns`, rounded down.
    reciprocal: u64,
    modulus: u64,
    max_credit: u64,
}

/// What an entry says at one count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Units that count, less those given back.
    pub(super) used: u64,
    /// Units that count, given back or not.
    pub(super) raw: u64,
    /// Now, as this entry has it.
    pub(super) now_ns: u64,
    /// Ring: the tick of now. Log: now.
    pub(super) stamp: u64,
    /// Ring: the oldest snapshot in the window (tick and count) and the newest tick there can be one of.
    oldest: u64,
    base: u64,
    newest: u64,
}

/// What is mostly found in a ring, by who is at the newest tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usual {
    /// Units that count, less those given back.
    pub(super) used: u64,
    /// Units that count, given back or not.
    pub(super) raw: u64,
    /// The tick of now.
    pub(super) stamp: u64,
    /// The oldest snapshot in the window (tick and count) and the newest tick there can be one of.
    oldest: u64,
    base: u64,
    newest: u64,
}

impl Usual {
    /// [`Shape::charge`] to what was found.
    #[expect(clippy::inline_always, reason = "what it is given is large, and the hot path has one caller of it")]
    #[inline(always)]
    pub(super) fn charge<W: Word>(&self, entry: &[W], head: u64, cost: u64) -> bool {
        let &Self { stamp, newest, .. } = self;
        let count = head & COUNT;
        (has_begun(entry, newest, stamp) || begin(entry, stamp, count))
            && entry[HEAD].swap_if(head, head - count + ((count + cost) & COUNT))
    }
}

impl Shape {
    pub(super) fn new(limit: u32, window_ns: u64, max_cost: u32) -> Self {
        // Whole milliseconds divide by 64 without a remainder (10^6 = 2^6 * 15625).
        let tick_ns = window_ns / TICKS;
        let reciprocal = u64::MAX / tick_ns;
        if limit <= LOG_LIMIT {
            let max_credit = u64::from(max_cost.max(LOG_CREDIT));
            let reach = u64::from(limit) + max_credit;
            let places = reach + u64::from(max_cost);
            // Whole rounds, so that unit numbers may wrap.
            let modulus = (COUNT + 1) / places * places;
            Self { form: Form::Log { reach, places }, window_ns, tick_ns, reciprocal, modulus, max_credit }
        } else {
            Self { form: Form::Ring, window_ns, tick_ns, reciprocal, modulus: COUNT + 1, max_credit: CREDIT }
        }
    }

    pub(super) const fn words(&self) -> usize {
        match self.form {
            Form::Log { places, .. } => REST + places as usize,
            // Whole cache lines, so that what every look reads lies in one of them.
            Form::Ring => (SNAPSHOTS + RING as usize).next_multiple_of(LINE),
        }
    }

    /// The entry at `head`, at `now_ns` or later.
    #[inline]
    pub(super) fn read<W: Word>(&self, entry: &[W], head: u64, now_ns: u64) -> Reading {
        match self.form {
            Form::Log { reach, places } => self.read_log(entry, head, now_ns, reach, places),
            Form::Ring => self.read_ring(entry, head, now_ns),
        }
    }

    #[inline(never)]
    fn read_log<W: Word>(&self, entry: &[W], head: u64, now_ns: u64, reach: u64, places: u64) -> Reading {
        let log = &entry[REST..];
        let last = before(head & COUNT, places);
        // The `nth` newest unit, from 1.
        let time =
            |nth: u64| log[(if nth <= last + 1 { last + 1 - nth } else { last + 1 + places - nth }) as usize].load();
        let newest = time(1);
        let now_ns = now_ns.max(newest.saturating_sub(1)).max(entry[FLOOR].load());
        // A time is stored plus one: 0 is never. Alive: now - (stored - 1) < window.
        let alive = |stored: u64| stored != 0 && (now_ns + 1).saturating_sub(stored) < self.window_ns;
        let mut used = 0;
        if alive(newest) {
            let mut beyond = reach + 1;
            used = 1;
            while beyond - used > 1 {
                let middle = used.midpoint(beyond);
                if alive(time(middle)) {
                    used = middle;
                } else {
                    beyond = middle;
                }
            }
        }
        let credit = self.credit(entry, self.tick(now_ns));
        let net = used.saturating_sub(credit);
        Reading { used: net, raw: used, now_ns, stamp: now_ns, oldest: 0, base: 0, newest: 0 }
    }

    /// What nearly every look at a ring finds: time has not gone on without this worker, and something was counted within the
    /// window. None: [`read`](Self::read) it. It decides by branches where a maximum would do, so that the snapshots are on
    /// their way before the head's line has come.
    #[expect(clippy::inline_always, reason = "what it returns is large, and the hot path has one caller of it")]
    #[inline(always)]
    pub(super) fn usual<W: Word>(&self, entry: &[W], head: u64, now_ns: u64) -> Option<Usual> {
        let Form::Ring = self.form else { return None };
        // One check of the length in place of one for each word.
        let entry = &entry[..SNAPSHOTS + RING as usize];
        let tick = self.tick(now_ns);
        let newest = entry[FLOOR].load();
        let first = tick.saturating_sub(TICKS);
        // Ticks so large that their tags need a division are read anew.
        if newest > tick || newest < first || tick >= TAGS {
            return None;
        }
        let (oldest, base) = if let Some(count) = snapshot(&entry[SNAPSHOTS..], first) {
            // The first of all there can be, whatever the note says.
            (first, count)
        } else {
            let start = begin_at(entry[OLDEST].load(), tick);
            match snapshot(&entry[SNAPSHOTS..], start) {
                Some(count) if start <= newest => (start, count),
                _ => look_further(entry, head, tick, newest),
            }
        };
        if oldest > newest || entry[FLOOR].load() > tick {
            return None;
        }
        let raw = (head & COUNT).wrapping_sub(base) & COUNT;
        let used = raw.saturating_sub(self.credit(entry, tick));
        Some(Usual { used, raw, stamp: tick, oldest, base, newest })
    }

    /// Nanoseconds until any of what was found has left.
    #[expect(clippy::inline_always, reason = "what it is given is large, and the hot path has one caller of it")]
    #[inline(always)]
    pub(super) fn usual_wait<W: Word>(&self, entry: &[W], now_ns: u64, found: &Usual) -> u64 {
        let &Usual { raw, oldest, base, newest, .. } = found;
        let ring = &entry[SNAPSHOTS..SNAPSHOTS + RING as usize];
        let holder = match snapshot(ring, oldest + 1) {
            _ if raw == 0 => found.stamp,
            _ if oldest == newest => oldest,
            // Of a key that is asked for all the time it is the one after the oldest.
            Some(count) if oldest < newest && (count.wrapping_sub(base) & COUNT).wrapping_sub(1) < raw => oldest,
            _ => holder(ring, (oldest, base), newest, (1, raw)),
        };
        (holder + RING) * self.tick_ns - now_ns
    }

    #[inline(never)]
    fn read_ring<W: Word>(&self, entry: &[W], head: u64, now_ns: u64) -> Reading {
        let tick = self.tick(now_ns);
        loop {
            let newest = entry[FLOOR].load();
            let stamp = tick.max(newest);
            let now_ns = now_ns.max(stamp * self.tick_ns);
            let nothing = Reading { used: 0, raw: 0, now_ns, stamp, oldest: stamp, base: 0, newest };
            let first = stamp.saturating_sub(TICKS);
            if newest < first {
                return nothing;
            }
            let note = entry[OLDEST].load();
            let start = begin_at(note, stamp);
            let found = snapshots(&entry[SNAPSHOTS..], start, newest).next();
            if entry[FLOOR].load() > stamp {
                continue;
            }
            let Some((oldest, base)) = found else { return nothing };
            take_note(entry, head, note, (stamp, oldest), start);
            let raw = (head & COUNT).wrapping_sub(base) & COUNT;
            let used = raw.saturating_sub(self.credit(entry, stamp));
            return Reading { used, raw, now_ns, stamp, oldest, base, newest };
        }
    }

    /// Nanoseconds until `units` (at least one, at most the raw ones) of what was read have left.
    #[inline]
    pub(super) fn wait<W: Word>(&self, entry: &[W], head: u64, reading: &Reading, units: u64) -> u64 {
        match self.form {
            Form::Log { places, .. } => {
                let place = (before(head & COUNT, places) + places - (reading.raw - units)) % places;
                let stored = entry[REST + place as usize].load();
                (stored + self.window_ns).saturating_sub(1 + reading.now_ns)
            }
            Form::Ring => {
                let ring = &entry[SNAPSHOTS..SNAPSHOTS + RING as usize];
                let leaves = |count: u64| {
                    let left = count.wrapping_sub(reading.base) & COUNT;
                    left >= units && left <= reading.raw
                };
                // Of a key that is asked for all the time it is the one after the oldest.
                let next = reading.oldest + 1;
                let holder = match snapshot(ring, next) {
                    Some(count) if next <= reading.newest && leaves(count) => reading.oldest,
                    _ => holder(ring, (reading.oldest, reading.base), reading.newest, (units, reading.raw)),
                };
                (holder + RING) * self.tick_ns - reading.now_ns
            }
        }
    }

    /// How long a unit used at what was read as now will count.
    pub(super) const fn lifetime(&self, reading: &Reading) -> u64 {
        match self.form {
            Form::Log { .. } => self.window_ns,
            Form::Ring => (reading.stamp + RING) * self.tick_ns - reading.now_ns,
        }
    }

    /// Adds `cost` units at `stamp` to an entry whose head is still `head`; false when it is not, or time went on.
    #[inline]
    pub(super) fn charge<W: Word>(&self, entry: &[W], head: u64, stamp: u64, cost: u64) -> bool {
        let count = head & COUNT;
        match self.form {
            Form::Log { places, .. } => {
                let mut last = before(count, places);
                for _ in 0..cost {
                    last = if last + 1 == places { 0 } else { last + 1 };
                    entry[REST + last as usize].raise(stamp + 1);
                }
            }
            Form::Ring => {
                if !(has_begun(entry, entry[FLOOR].load(), stamp) || begin(entry, stamp, count)) {
                    return false;
                }
            }
        }
        let sum = count + cost;
        let sum = if sum >= self.modulus { sum - self.modulus } else { sum };
        entry[HEAD].swap_if(head, head - count + sum)
    }

    /// Gives back units charged at `stamp`.
    pub(super) fn refund<W: Word>(&self, entry: &[W], stamp: u64, cost: u64) {
        let tick = self.tick_of(stamp) & CREDIT_TICK;
        loop {
            let seen = entry[RETURNED].load();
            let (units, age) = (seen & CREDIT, tick.wrapping_sub(seen >> CREDIT_BITS) & CREDIT_TICK);
            // An age of more than half the range is a credit younger than this one.
            let (units, oldest) = match age {
                _ if units == 0 => (cost, tick),
                // Only what still counts: in one that has lapsed, this one would lapse at once.
                _ if age <= self.credit_life() => (units + cost, seen >> CREDIT_BITS),
                _ if age > CREDIT_TICK / 2 => (units + cost, tick),
                _ => (cost, tick),
            };
            if entry[RETURNED].swap_if(seen, oldest << CREDIT_BITS | units.min(self.max_credit)) {
                return;
            }
        }
    }

    /// For how many ticks units given back count. A log's charge may lie anywhere in its tick.
    const fn credit_life(&self) -> u64 {
        match self.form {
            Form::Log { .. } => TICKS - 1,
            Form::Ring => TICKS,
        }
    }

    /// Units given back that count at this tick.
    #[inline]
    fn credit<W: Word>(&self, entry: &[W], tick: u64) -> u64 {
        let returned = entry[RETURNED].load();
        let age = tick.wrapping_sub(returned >> CREDIT_BITS) & CREDIT_TICK;
        if age <= self.credit_life() { returned & CREDIT } else { 0 }
    }

    /// Makes time on this entry at least `now_ns`.
    pub(super) fn raise_floor<W: Word>(&self, entry: &[W], now_ns: u64) {
        entry[FLOOR].raise(match self.form {
            Form::Log { .. } => now_ns,
            Form::Ring => self.tick(now_ns),
        });
    }

    /// The tick of a time: a division, by the way that costs least.
    #[inline]
    const fn tick(&self, now_ns: u64) -> u64 {
        let tick = ((now_ns as u128 * self.reciprocal as u128) >> 64) as u64;
        // Too small by one at most: the factor is less than 1 below 2^64 over the tick's length or exactly that, and of so
        // little a time, which is less than 2^64, makes less than one tick.
        tick + (now_ns - tick * self.tick_ns >= self.tick_ns) as u64
    }

    const fn tick_of(&self, stamp: u64) -> u64 {
        match self.form {
            Form::Log { .. } => self.tick(stamp),
            Form::Ring => stamp,
        }
    }
}

/// The place of the unit before this one: the count wraps after whole rounds.
const fn before(count: u64, places: u64) -> u64 {
    let place = count % places;
    if place == 0 { places - 1 } else { place - 1 }
}

/// Where the search for the oldest snapshot in the window at a tick begins: where a note has it that somebody at that tick or
/// before has made, or at the first there can be.
#[inline]
fn begin_at(note: u64, tick: u64) -> u64 {
    let (first, looked) = (tick.saturating_sub(TICKS), note >> BEHIND_BITS);
    if looked <= tick { looked.saturating_sub(note & BEHIND).max(first) } else { first }
}

/// Without a division for as long as there is no need of one.
const fn tag(tick: u64) -> u64 {
    if tick < TAGS { tick + 1 } else { tick % TAGS + 1 }
}

/// The count of a tick's snapshot, where it has one.
#[inline]
fn snapshot<W: Word>(ring: &[W], tick: u64) -> Option<u64> {
    let snapshot = ring[(tick % RING) as usize].load();
    (snapshot >> COUNT_BITS == tag(tick)).then_some(snapshot & COUNT)
}

/// The oldest snapshot in the window at a tick, by the note where that is of use: (tick, count), a tick beyond the newest when
/// there is none, or when time went on.
#[inline(never)]
fn look_further<W: Word>(entry: &[W], head: u64, stamp: u64, newest: u64) -> (u64, u64) {
    let note = entry[OLDEST].load();
    let start = begin_at(note, stamp);
    match snapshots(&entry[SNAPSHOTS..], start, newest).next() {
        Some((oldest, base)) if entry[FLOOR].load() <= stamp => {
            take_note(entry, head, note, (stamp, oldest), start);
            (oldest, base)
        }
        _ => (u64::MAX, 0),
    }
}

/// Notes where the oldest snapshot was found at a tick, if that was far from where the search began.
#[inline]
fn take_note<W: Word>(entry: &[W], head: u64, note: u64, (stamp, oldest): (u64, u64), start: u64) {
    if oldest - start > FAR && entry[HEAD].load() == head {
        entry[OLDEST].swap_if(note, stamp << BEHIND_BITS | (stamp - oldest));
    }
}

/// The last tick after the oldest one before whose snapshot so many of the raw units leave.
#[inline(never)]
fn holder<W: Word>(ring: &[W], (oldest, base): (u64, u64), newest: u64, (units, raw): (u64, u64)) -> u64 {
    let mut holder = oldest;
    for (tick, count) in snapshots(ring, oldest + 1, newest) {
        let left = count.wrapping_sub(base) & COUNT;
        if left >= units && left <= raw {
            break;
        }
        holder = tick;
    }
    holder
}

/// The snapshots of these ticks, in order: (tick, count).
#[inline]
fn snapshots<W: Word>(ring: &[W], first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    let (mut place, mut expected) = (first % RING, tag(first));
    (first..=last).filter_map(move |tick| {
        let snapshot = ring[place as usize].load();
        let found = snapshot >> COUNT_BITS == expected;
        place = if place == TICKS { 0 } else { place + 1 };
        expected = if expected == TAGS { 1 } else { expected + 1 };
        found.then_some((tick, snapshot & COUNT))
    })
}

/// Whether the newest tick is this one and has its snapshot: nothing is left to do before a charge.
#[inline]
fn has_begun<W: Word>(entry: &[W], newest: u64, tick: u64) -> bool {
    newest == tick && snapshot(&entry[SNAPSHOTS..SNAPSHOTS + RING as usize], tick).is_some()
}

/// Publishes a tick and sees to its snapshot; false when a later tick was published meanwhile.
#[inline(never)]
fn begin<W: Word>(entry: &[W], tick: u64, count: u64) -> bool {
    if entry[FLOOR].load() < tick {
        entry[FLOOR].raise(tick);
    }
    let slot = &entry[SNAPSHOTS + (tick % RING) as usize];
    loop {
        let seen = slot.load();
        if seen >> COUNT_BITS == tag(tick) {
            return true;
        }
        // As nothing newer was published after `seen` was read, `seen` is older.
        if entry[FLOOR].load() > tick {
            return false;
        }
        if slot.swap_if(seen, tag(tick) << COUNT_BITS | count) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ticks_are_divided_exactly(window_ms in 1_u64..=366 * 24 * 3_600_000, now_ns: u64, whole: u32, beside in 0_u64..3) {
            let shape = Shape::new(100, window_ms * 1_000_000, 1);
            let boundary = u64::from(whole).saturating_mul(shape.tick_ns).saturating_add(1).saturating_sub(beside);
            for now_ns in [now_ns, boundary, u64::MAX] {
                prop_assert_eq!(now_ns / shape.tick_ns, shape.tick(now_ns));
            }
        }
    }
}
