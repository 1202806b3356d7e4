//! Which entry is whose: an index of fixed size in which entries are taken and given up without a lock.
//!
//! A region is `[header][identities][own entries][overflow cells]`. A key may have an own entry in one of three buckets of
//! 16; the identity words of a bucket lie side by side. An identity word is 48 bits of the key's hash and 16 of a generation;
//! it means something only while the entry's head has that generation and is not being claimed.
//!
//! Invariants:
//! 1. **At most one open entry per key.** A claim takes the head (generation + 1, CLAIMING), publishes the identity, looks at
//!    all other entries of the three buckets, and opens. It ends other claims of the key by a swap of their head and
//!    withdraws before an open one. Of two claims of one key, at least one sees the other's identity (each publishes before
//!    it looks), so at least one of the two swaps to "open" fails. A claimer that stops or dies holds nobody up: its claim is
//!    ended by the next claim of the key, and its entry is taken by anyone who finds no other.
//! 2. **An entry changes hands only while it is empty of counted units**, by a swap of the head it was judged by, so no
//!    charge slips in between, and one under way on the old head fails. Nobody gets quota back by eviction.
//! 3. **A key counts in one place.** A key without an own entry uses its overflow cell (fixed, by hash, shared) when that
//!    counts units or no entry is to be had; it claims an own entry only while its cell is empty. The claimer looks at the
//!    cell after it published the identity; who charged a cell looks for an own entry of the key afterwards. One of the two
//!    sees the other: the claimer withdraws, or the charge ends the claim or moves over to the open entry. So leaving the cell
//!    gives nobody quota back either.
//! 4. **Time does not run back for a key whose history is gone.** Whoever takes a used entry publishes his now first, and a
//!    key without an own entry counts from there. So a worker that was stopped with an old now in its hand is no exception.
//!
//! Under a flood of keys newcomers share cells and may be refused for what others did; keys with an entry never are.

use siphasher::sip::SipHasher13;

use super::history::{self, HEAD, Shape};
use super::memory::{Memory, Word};

/// Entries per bucket.
const WAYS: usize = 16;
/// Words before the identities: what the region is for, the latest eviction, and padding to a cache line.
const HEADER: usize = 8;
const PURPOSE: usize = 0;
const EVICTED: usize = 1;
/// The first of a key's buckets is in this part of the table, so that a few thousand keys lie close together: keys strewn
/// over all of it cost a page walk each, four times the rest of a hit.
const NEAR: usize = 8;
/// The table names entries by 31 bits.
const MAX_BUCKETS: usize = (1 << 31) / (WAYS + 1);
const TAG_SHIFT: u32 = 16;
/// Odd, and without a pattern: the golden ratio's digits.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;

/// A key as windows know it: its hash under a random seed, so that nobody can aim at another's entry. The same seed gives the
/// same identity in every window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// 48 bits, never 0.
    tag: u64,
    buckets: u64,
}

impl Identity {
    /// The identity of a key under a seed.
    #[must_use]
    #[inline]
    pub fn new(seed: (u64, u64), key: &[u8]) -> Self {
        // In one call, which keeps nothing between writes; and of 64 bits, since the other half of 128 costs as much as a
        // key of 24 bytes and only says where to look: a product says that as well.
        let hash = SipHasher13::new_with_keys(seed.0, seed.1).hash(key);
        let product = u128::from(hash) * SPREAD;
        Self { tag: (hash >> TAG_SHIFT).max(1), buckets: (product >> 64) as u64 ^ product as u64 }
    }

    const fn word(self, head: u64) -> u64 {
        self.tag << TAG_SHIFT | history::short_generation(head)
    }
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Done by this worker or another, or in vain: look again.
    LookAgain,
    /// Every entry counts units.
    Full,
}

#[derive(Debug)]
pub(super) struct Table<M> {
    memory: M,
    shape: Shape,
    buckets: usize,
    /// Buckets in which a key's first one may be.
    near: usize,
    /// Where the entries begin, and how far apart they are.
    entries: usize,
    stride: usize,
}

/// A key's own entry, open when its head was read.
#[derive(Debug)]
pub(super) struct Open<'a, W> {
    pub(super) index: usize,
    pub(super) head: u64,
    pub(super) entry: &'a [W],
}

/// Words of a region of this many buckets.
const fn region(shape: Shape, buckets: usize) -> usize {
    HEADER + buckets * (WAYS + (WAYS + 1) * shape.words())
}

/// The largest region of at most `words`; 0 when there is not even one bucket.
pub(super) const fn words_within(shape: Shape, words: usize) -> usize {
    match buckets_within(shape, words) {
        0 => 0,
        buckets => region(shape, buckets),
    }
}

const fn buckets_within(shape: Shape, words: usize) -> usize {
    let buckets = words.saturating_sub(HEADER) / (WAYS + (WAYS + 1) * shape.words());
    if buckets > MAX_BUCKETS { MAX_BUCKETS } else { buckets }
}

/// One of `buckets` out of the low 32 bits of a hash.
const fn scale(hash: u64, buckets: usize) -> usize {
    (((hash & 0xffff_ffff) * buckets as u64) >> 32) as usize
}

impl<M: Memory> Table<M> {
    /// None when the region is too small, or another kind of window lives in it. `purpose` is not 0.
    pub(super) fn new(memory: M, shape: Shape, purpose: u64) -> Option<Self> {
        let buckets = buckets_within(shape, memory.words().len());
        let owner = memory.words().get(PURPOSE)?;
        let ours = owner.swap_if(0, purpose) || owner.load() == purpose;
        let (near, entries, stride) = ((buckets / NEAR).max(1), HEADER + buckets * WAYS, shape.words());
        (buckets > 0 && ours).then_some(Self { memory, shape, buckets, near, entries, stride })
    }

    #[inline]
    fn identity(&self, index: usize) -> &M::Word {
        &self.memory.words()[HEADER + index]
    }

    /// Own entries come first, cells after them.
    #[inline]
    pub(super) fn entry(&self, index: usize) -> &[M::Word] {
        self.entry_of(self.memory.words(), index)
    }

    /// The same for who has the words at hand: finding them costs as much as a look at one.
    #[inline]
    fn entry_of<'a>(&self, words: &'a [M::Word], index: usize) -> &'a [M::Word] {
        let start = self.entries + index * self.stride;
        &words[start..start + self.stride]
    }

    #[inline]
    pub(super) fn is_cell(&self, index: usize) -> bool {
        index >= self.buckets * WAYS
    }

    /// The overflow cell of a key.
    pub(super) fn cell(&self, identity: Identity) -> usize {
        self.buckets * WAYS + scale(identity.tag, self.buckets)
    }

    /// The first of the candidates.
    #[inline]
    fn preferred(&self, identity: Identity) -> usize {
        scale(identity.buckets.rotate_left(16), self.near) * WAYS + identity.tag as usize % WAYS
    }

    /// The entries that may be the key's, beginning where it prefers to be.
    #[inline]
    fn candidates(&self, identity: Identity) -> impl Iterator<Item = usize> {
        let first = identity.tag as usize % WAYS;
        self.starts(identity).into_iter().flat_map(move |start| (0..WAYS).map(move |way| start + (first + way) % WAYS))
    }

    /// Where the key's three buckets begin.
    #[inline]
    fn starts(&self, identity: Identity) -> [usize; 3] {
        let (near, hash) = (self.near, identity.buckets);
        // The other two are beyond that part, or they would be full whenever it is.
        let far = |hash| if near < self.buckets { near + scale(hash, self.buckets - near) } else { 0 };
        [scale(hash.rotate_left(16), near), far(hash), far(hash >> 32)].map(|bucket| bucket * WAYS)
    }

    /// The key's own entry, when it has an open one.
    #[expect(clippy::inline_always, reason = "the hot path has one caller of it")]
    #[inline(always)]
    pub(super) fn find(&self, identity: Identity) -> Option<Open<'_, M::Word>> {
        let words = self.memory.words();
        // Nearly every key is where it prefers to be.
        self.open(words, identity, self.preferred(identity)).or_else(|| self.find_elsewhere(words, identity))
    }

    #[inline(never)]
    fn find_elsewhere<'a>(&self, words: &'a [M::Word], identity: Identity) -> Option<Open<'a, M::Word>> {
        // In any order, since at most one of them is the key's and open; who had to give way is mostly beside where it
        // prefers to be.
        let first = identity.tag as usize % WAYS;
        for start in self.starts(identity) {
            let bucket = &words[HEADER + start..HEADER + start + WAYS];
            for way in (1..=WAYS).map(|offset| (first + offset) % WAYS) {
                if bucket[way].load() >> TAG_SHIFT == identity.tag
                    && let Some(open) = self.open(words, identity, start + way)
                {
                    return Some(open);
                }
            }
        }
        None
    }

    /// An entry when it is the key's and open.
    #[inline]
    fn open<'a>(&self, words: &'a [M::Word], identity: Identity, index: usize) -> Option<Open<'a, M::Word>> {
        let word = words[HEADER + index].load();
        if word >> TAG_SHIFT != identity.tag {
            return None;
        }
        let entry = self.entry_of(words, index);
        let head = entry[HEAD].load();
        (identity.word(head) == word && !history::is_claiming(head)).then_some(Open { index, head, entry })
    }

    /// The head of an entry that is the key's, or is being made the key's.
    #[inline]
    fn head_of(&self, identity: Identity, index: usize) -> Option<u64> {
        let word = self.identity(index).load();
        if word >> TAG_SHIFT != identity.tag {
            return None;
        }
        let head = self.entry(index)[HEAD].load();
        (identity.word(head) == word).then_some(head)
    }

    /// Now for a key that has no entry: not before the latest eviction.
    pub(super) fn now_without_entry(&self, now_ns: u64) -> u64 {
        now_ns.max(self.memory.words()[EVICTED].load())
    }

    /// Whether the key has an open entry, `but` this one. Claims of the key that are under way elsewhere are ended.
    pub(super) fn is_elsewhere(&self, identity: Identity, but: usize) -> bool {
        self.candidates(identity).filter(|&index| index != but).any(|index| {
            while let Some(head) = self.head_of(identity, index) {
                if !history::is_claiming(head) {
                    return true;
                }
                if self.entry(index)[HEAD].swap_if(head, history::voided(head)) {
                    break;
                }
            }
            false
        })
    }

    /// Tries to make an entry the key's.
    pub(super) fn claim(&self, identity: Identity, now_ns: u64) -> Claim {
        let Some((index, head)) = self.pick(identity, now_ns) else { return Claim::Full };
        let (entry, owner) = (self.entry(index), self.identity(index));
        if owner.load() != 0 {
            self.memory.words()[EVICTED].raise(now_ns);
        }
        let claimed = history::claimed(head);
        if !entry[HEAD].swap_if(head, claimed) {
            return Claim::LookAgain;
        }
        self.shape.raise_floor(entry, now_ns);
        loop {
            // In this order: while the claim holds, what was read before is not a later claimer's, and must not become it.
            let seen = owner.load();
            if entry[HEAD].load() != claimed {
                return Claim::LookAgain;
            }
            if owner.swap_if(seen, identity.word(claimed)) {
                break;
            }
        }
        let elsewhere = self.is_elsewhere(identity, index);
        let cell = self.entry(self.cell(identity));
        let shared = elsewhere || self.shape.read(cell, cell[HEAD].load(), now_ns).raw > 0;
        // Either may fail: then somebody else has ended the claim.
        entry[HEAD].swap_if(claimed, if shared { history::voided(claimed) } else { history::opened(claimed) });
        Claim::LookAgain
    }

    /// An entry whose loss gives nobody quota back, and its head.
    fn pick(&self, identity: Identity, now_ns: u64) -> Option<(usize, u64)> {
        let unused = self.candidates(identity).take(WAYS).find(|&index| self.identity(index).load() == 0);
        let mut abandoned = None;
        for index in unused.into_iter().chain(self.candidates(identity)) {
            let entry = self.entry(index);
            let head = entry[HEAD].load();
            if history::is_claiming(head) {
                abandoned = abandoned.or(Some((index, head)));
            } else if self.shape.read(entry, head, now_ns).raw == 0 {
                return Some((index, head));
            }
        }
        abandoned
    }
}
