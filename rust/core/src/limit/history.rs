//! What a window remembers about one key, as a fixed number of words in a slab.
//!
//! Two shapes, chosen by the limit once:
//! - **Log** (limit <= 64): the time of every unit. Exact.
//! - **Ring** (larger): 65 counters, one per 1/64 of the window. The slot that the window's edge cuts through is counted in
//!   full: any weighting of it would let nearly twice the limit through under a burst at the slot's end. So a key is never
//!   given more than the limit in a true window, and a refusal means the limit was used within the last 65/64 of one.
//!
//! All-zero words are the empty history. Times never run backwards here; the window sees to that.

/// Limits up to this are remembered unit by unit.
pub(super) const LOG_LIMIT: u32 = 64;
/// Slots per window.
const SLOTS: u64 = 64;
/// The slots of a window and the one being cut by its edge.
const RING: u64 = SLOTS + 1;
/// Words before the units or counters: how much is in use, and where the rest begins.
const HEAD: usize = 2;
const USED: usize = 0;
/// Log: index of the oldest unit. Ring: number of the newest slot.
const PLACE: usize = 1;

#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Log { capacity: u64, window_ns: u64 },
    Ring { slot_ns: u64 },
}

impl Shape {
    pub(super) fn new(limit: u32, window_ns: u64) -> Self {
        if limit <= LOG_LIMIT {
            Self::Log { capacity: u64::from(limit), window_ns }
        } else {
            // Whole milliseconds divide by 64 without a remainder (10^6 = 2^6 * 15625).
            Self::Ring { slot_ns: window_ns / SLOTS }
        }
    }

    pub(super) const fn words(self) -> usize {
        match self {
            Self::Log { capacity, .. } => HEAD + capacity as usize,
            Self::Ring { .. } => HEAD + RING.div_ceil(2) as usize,
        }
    }

    /// Forgets what has left the window.
    pub(super) fn advance(self, words: &mut [u64], now: u64) {
        match self {
            Self::Log { capacity, window_ns } => {
                while words[USED] > 0 && now - words[HEAD + words[PLACE] as usize] >= window_ns {
                    words[USED] -= 1;
                    words[PLACE] = (words[PLACE] + 1) % capacity;
                }
            }
            Self::Ring { slot_ns } => {
                let (newest, slot) = (words[PLACE], now / slot_ns);
                if slot - newest >= RING {
                    words.fill(0);
                } else {
                    for passed in newest + 1..=slot {
                        words[USED] -= take_slot(words, passed % RING);
                    }
                }
                words[PLACE] = slot;
            }
        }
    }

    /// Units in use. Call after [`Self::advance`].
    pub(super) fn used(words: &[u64]) -> u64 {
        words[USED]
    }

    /// Adds `cost` units at `now`. Call after [`Self::advance`] and only if they fit the limit.
    pub(super) fn add(self, words: &mut [u64], now: u64, cost: u32) {
        match self {
            Self::Log { capacity, .. } => {
                for _ in 0..cost {
                    let index = (words[PLACE] + words[USED]) % capacity;
                    words[HEAD + index as usize] = now;
                    words[USED] += 1;
                }
            }
            Self::Ring { .. } => {
                let (word, shift) = position(words[PLACE] % RING);
                words[word] += u64::from(cost) << shift;
                words[USED] += u64::from(cost);
            }
        }
    }

    /// Nanoseconds from `now` until `units` (at least one, at most the used ones) have left.
    pub(super) fn wait(self, words: &[u64], now: u64, units: u64) -> u64 {
        match self {
            Self::Log { capacity, window_ns } => {
                let index = (words[PLACE] + units - 1) % capacity;
                words[HEAD + index as usize].saturating_add(window_ns) - now
            }
            Self::Ring { slot_ns } => {
                let newest = words[PLACE];
                let mut left = 0;
                for slot in newest.saturating_sub(SLOTS)..=newest {
                    left += count(words, slot % RING);
                    if left >= units {
                        return (slot + RING).saturating_mul(slot_ns) - now;
                    }
                }
                RING * slot_ns
            }
        }
    }

    /// How long a unit used at `now` will count.
    pub(super) const fn lifetime(self, now: u64) -> u64 {
        match self {
            Self::Log { window_ns, .. } => window_ns,
            Self::Ring { slot_ns } => RING * slot_ns - now % slot_ns,
        }
    }
}

/// Two 32-bit counters share a word.
const fn position(slot: u64) -> (usize, u32) {
    (HEAD + slot as usize / 2, (slot as u32 % 2) * 32)
}

fn count(words: &[u64], slot: u64) -> u64 {
    let (word, shift) = position(slot);
    words[word] >> shift & 0xffff_ffff
}

/// Empties a slot and says what was in it.
fn take_slot(words: &mut [u64], slot: u64) -> u64 {
    let count = count(words, slot);
    let (word, shift) = position(slot);
    words[word] &= !(0xffff_ffff << shift);
    count
}
