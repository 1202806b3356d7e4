//! Many keys under one limit.
//!
//! Strategy: a hash table of 32-bit indices into a slab of fixed-size entries, so memory is known beforehand. Rules:
//! - time is an argument and never runs backwards; a smaller `now` counts as the largest seen;
//! - only admitted units are counted: refused requests cannot keep a client out for ever;
//! - a key is its 128-bit `SipHash` under a seed given at construction, so nobody can aim at another's entry;
//! - memory is bounded, and no eviction gives quota back: an entry is reused only when its history is empty. When none is
//!   (a few are examined per newcomer), newcomers share overflow entries by hash, and one that gets an entry of its own
//!   later takes the shared history along. Under such a flood newcomers may be refused for what others did; known keys
//!   never are.

use std::hash::Hasher as _;

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::history::Shape;
use crate::error::Unusable;

/// The longest window: a year.
const MAX_WINDOW_MS: u64 = 366 * 24 * 3600 * 1000;
/// Entries the sweep examines for one newcomer to a full table.
const SWEEP: usize = 16;
/// One entry in this many is shared by newcomers when the table is full.
const OVERFLOW_SHARE: usize = 16;
/// Bytes of the index per entry, growth of the table included.
const INDEX_BYTES: usize = 16;
/// Entries per allocation of the slab, so that growing never copies.
const CHUNK: usize = 256;
/// Words of an entry that hold the key's identity.
const IDENTITY: usize = 2;

/// Fixed-size entries `[identity, identity, history...]`.
#[derive(Debug, Default)]
struct Slab {
    stride: usize,
    len: usize,
    chunks: Vec<Box<[u64]>>,
}

impl Slab {
    fn new(shape: Shape) -> Self {
        Self { stride: IDENTITY + shape.words(), len: 0, chunks: Vec::new() }
    }

    /// Adds an empty entry and says where.
    fn push(&mut self) -> usize {
        if self.len == self.chunks.len() * CHUNK {
            self.chunks.push(vec![0; CHUNK * self.stride].into_boxed_slice());
        }
        self.len += 1;
        self.len - 1
    }

    fn entry(&mut self, index: usize) -> &mut [u64] {
        let start = index % CHUNK * self.stride;
        &mut self.chunks[index / CHUNK][start..start + self.stride]
    }

    fn history(&mut self, index: usize) -> &mut [u64] {
        &mut self.entry(index)[IDENTITY..]
    }

    fn identity(&self, index: usize) -> Identity {
        let start = index % CHUNK * self.stride;
        let chunk = &self.chunks[index / CHUNK];
        Identity { low: chunk[start], high: chunk[start + 1] }
    }
}

/// A key as windows know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    low: u64,
    high: u64,
}

impl Identity {
    /// INTERIM
    #[must_use]
    pub fn of(key: &[u8], seed: (u64, u64)) -> Self {
        let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
        hasher.write(key);
        let hash = hasher.finish128();
        Self { low: hash.h1, high: hash.h2 }
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
    index: Option<usize>,
    cost: u32,
}

/// At most `limit` units per key in any window of `window_ms`.
#[derive(Debug)]
pub struct Old {
    limit: u32,
    window_ns: u64,
    shape: Shape,
    seed: (u64, u64),
    latest: u64,
    index: HashTable<u32>,
    own: Slab,
    capacity: usize,
    /// Where the sweep goes on.
    hand: usize,
    /// Entries shared by newcomers; empty until they are needed.
    shared: Slab,
    shared_capacity: usize,
}

impl Old {
    /// `seed` must be random and secret; `max_bytes` bounds everything the window remembers.
    pub fn new(limit: u32, window_ms: u64, max_bytes: usize, seed: (u64, u64)) -> Result<Self, Unusable> {
        if limit == 0 {
            return Err(Unusable("limit is at least 1"));
        }
        if window_ms == 0 || window_ms > MAX_WINDOW_MS {
            return Err(Unusable("window_ms is between 1 and a year"));
        }
        let window_ns = window_ms * 1_000_000;
        let shape = Shape::new(limit, window_ns);
        let bytes_per_key = (IDENTITY + shape.words()) * size_of::<u64>() + INDEX_BYTES;
        // The table names entries by 32 bits.
        let entries = (max_bytes / bytes_per_key).min(1 << 31);
        let shared_capacity = entries / OVERFLOW_SHARE;
        if shared_capacity == 0 {
            return Err(Unusable("max_bytes is too small for 16 keys"));
        }
        Ok(Self {
            limit,
            window_ns,
            shape,
            seed,
            latest: 0,
            index: HashTable::new(),
            own: Slab::new(shape),
            capacity: entries - shared_capacity,
            hand: 0,
            shared: Slab::new(shape),
            shared_capacity,
        })
    }

    /// The configured limit.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The configured window.
    #[must_use]
    pub fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// Checks and, when admitted, counts.
    pub fn hit(&mut self, key: Identity, now_ns: u64, cost: u32) -> Check {
        let check = self.check(key, now_ns, cost);
        if check.admitted {
            self.charge(&check);
        }
        check
    }

    /// Says whether `cost` units fit, counting nothing.
    pub fn check(&mut self, key: Identity, now_ns: u64, cost: u32) -> Check {
        self.latest = self.latest.max(now_ns);
        let now = self.latest;
        let identity = key;
        let index = self.find(identity);
        let shape = self.shape;
        let limit = u64::from(self.limit);
        let history = match index {
            Some(index) => Some(self.own.history(index)),
            None => self.shared_history(identity),
        };
        let cost_units = u64::from(cost);
        let (used, reset_ns) = match history {
            None => (0, shape.lifetime(now)),
            Some(words) => {
                shape.advance(words, now);
                let used = Shape::used(words);
                let missing = (used + cost_units).saturating_sub(limit);
                // A cost above the limit never fits; it is told to wait for an empty window.
                let leaving = missing.clamp(1, used.max(1));
                (used, if used == 0 { shape.lifetime(now) } else { shape.wait(words, now, leaving) })
            }
        };
        let admitted = used + cost_units <= limit;
        let left = limit.saturating_sub(used) - if admitted { cost_units } else { 0 };
        Check { admitted, remaining: left as u32, reset_ns, identity, index, cost }
    }

    /// Counts what `check` admitted. The check must be this window's latest word on the key.
    pub fn charge(&mut self, check: &Check) {
        let now = self.latest;
        // An entry may have changed hands since, if other keys were charged in between.
        let known = check.index.filter(|&index| self.own.identity(index) == check.identity);
        let known = known.or_else(|| self.find(check.identity)).or_else(|| self.enrol(check.identity));
        let shape = self.shape;
        let words = if let Some(index) = known {
            self.own.history(index)
        } else {
            while self.shared.len < self.shared_capacity {
                self.shared.push();
            }
            let index = self.shared_index(check.identity);
            self.shared.history(index)
        };
        shape.advance(words, now);
        if Shape::used(words) + u64::from(check.cost) <= u64::from(self.limit) {
            shape.add(words, now, check.cost);
        }
    }

    /// Keys that have an entry of their own.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.own.len
    }

    fn identify(&self, key: &[u8]) -> Identity {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(key);
        let hash = hasher.finish128();
        Identity { low: hash.h1, high: hash.h2 }
    }

    fn find(&self, identity: Identity) -> Option<usize> {
        self.index
            .find(identity.low, |&index| self.own.identity(index as usize) == identity)
            .map(|&index| index as usize)
    }

    fn shared_index(&self, identity: Identity) -> usize {
        (identity.high % self.shared_capacity as u64) as usize
    }

    fn shared_history(&mut self, identity: Identity) -> Option<&mut [u64]> {
        if self.shared.len == 0 {
            return None;
        }
        let index = self.shared_index(identity);
        Some(self.shared.history(index))
    }

    /// Gives a newcomer an entry, if there is one whose loss gives nobody quota back.
    fn enrol(&mut self, identity: Identity) -> Option<usize> {
        let index = if self.own.len < self.capacity { self.own.push() } else { self.evict_idle()? };
        let inherited = self.shared_history(identity).map(|words| words.to_vec());
        let entry = self.own.entry(index);
        entry[0] = identity.low;
        entry[1] = identity.high;
        match inherited {
            Some(words) => entry[IDENTITY..].copy_from_slice(&words),
            None => entry[IDENTITY..].fill(0),
        }
        let own = &self.own;
        self.index.insert_unique(identity.low, index as u32, |&index| own.identity(index as usize).low);
        Some(index)
    }

    fn evict_idle(&mut self) -> Option<usize> {
        for _ in 0..SWEEP {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.capacity;
            let (shape, now) = (self.shape, self.latest);
            let words = self.own.history(index);
            shape.advance(words, now);
            if Shape::used(words) == 0 {
                let hash = self.own.identity(index).low;
                if let Ok(entry) = self.index.find_entry(hash, |&other| other as usize == index) {
                    entry.remove();
                }
                return Some(index);
            }
        }
        None
    }
}

/// INTERIM
#[derive(Debug)]
pub struct SlidingWindow<M>(std::sync::Mutex<Old>, #[allow(dead_code)] M, (u64, u64));

impl<M: super::Memory> SlidingWindow<M> {
    /// INTERIM
    pub fn new(limit: u32, window_ms: u64, _max_cost: u32, memory: M, seed: (u64, u64)) -> Result<Self, Unusable> {
        Ok(Self(std::sync::Mutex::new(Old::new(limit, window_ms, 1 << 24, seed)?), memory, seed))
    }
    /// INTERIM
    pub fn identify(&self, key: &[u8]) -> Identity {
        Identity::of(key, self.2)
    }
    /// INTERIM
    pub fn check(&self, id: Identity, now_ns: u64, cost: u32) -> Check {
        self.0.lock().unwrap().check(id, now_ns, cost)
    }
    /// INTERIM
    pub fn charge(&self, check: &Check) -> Result<(), Check> {
        self.0.lock().unwrap().charge(check);
        Ok(())
    }
    /// INTERIM
    pub fn refund(&self, _check: &Check) {}
    /// INTERIM
    pub fn hit(&self, key: &[u8], now_ns: u64, cost: u32) -> Check {
        self.0.lock().unwrap().hit(Identity::of(key, self.2), now_ns, cost)
    }
}
