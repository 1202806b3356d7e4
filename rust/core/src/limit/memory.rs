//! Where a window keeps its words: anything that lends a zeroed slice of atomic 64-bit words.
//!
//! The heap is here; a mapping shared by several processes is made by the shell, which alone may. Rules:
//! - all-zero memory is an empty table, so a fresh mapping needs no set-up and no first process;
//! - every operation on a shared word is sequentially consistent: the arguments in [`super::table`] speak of one order of
//!   all operations, and the costly ones are read-modify-writes, which are no cheaper with less;
//! - who has the words to himself needs no such order, and pays for none: [`Lone`];
//! - a word is a trait so that a test can stop the world between any two operations.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use zerocopy::FromZeros;

/// One 64-bit word that several workers use at once.
pub trait Word {
    /// Its value.
    fn load(&self) -> u64;
    /// Replaces `seen` by `new`; false when it was not `seen` any more.
    fn swap_if(&self, seen: u64, new: u64) -> bool;
    /// Makes it at least `value`.
    fn raise(&self, value: u64);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        self.load(SeqCst)
    }

    #[inline]
    fn swap_if(&self, seen: u64, new: u64) -> bool {
        self.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
    }

    #[inline]
    fn raise(&self, value: u64) {
        self.fetch_max(value, SeqCst);
    }
}

/// A word that one caller uses at a time, whose turns are ordered by something else (a lock, a `&mut`). Where callers do
/// come at once, nothing breaks but the count: an update may be lost. A hit costs about a twentieth less than with shared
/// words.
#[derive(Debug, FromZeros)]
#[repr(transparent)]
pub struct Lone(AtomicU64);

impl Word for Lone {
    #[inline]
    fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    #[inline]
    fn swap_if(&self, seen: u64, new: u64) -> bool {
        let same = self.0.load(Relaxed) == seen;
        if same {
            self.0.store(new, Relaxed);
        }
        same
    }

    #[inline]
    fn raise(&self, value: u64) {
        if self.0.load(Relaxed) < value {
            self.0.store(value, Relaxed);
        }
    }
}

/// A region of words, zeroed before its first use.
pub trait Memory {
    /// What a word is; an atomic integer but in tests.
    type Word: Word;
    /// The region: the same words at every call.
    fn words(&self) -> &[Self::Word];
}

/// Words of this process alone. The system hands its pages out as they are touched.
#[derive(Debug)]
pub struct Heap<W = AtomicU64> {
    words: Box<[W]>,
    start: usize,
    len: usize,
}

/// Words per cache line.
pub(super) const LINE: usize = 8;

impl<W: FromZeros> Heap<W> {
    /// None when there is no such memory.
    #[must_use]
    pub fn zeroed(len: usize) -> Option<Self> {
        let words = <[W]>::new_box_zeroed_with_elems(len.checked_add(LINE)?).ok()?;
        // Allocators put a header before a large block; entries are laid out to touch few cache lines.
        let start = words.as_ptr().align_offset(LINE * size_of::<u64>()).min(LINE);
        Some(Self { words, start, len })
    }
}

impl<W: Word> Memory for Heap<W> {
    type Word = W;

    #[inline]
    fn words(&self) -> &[W] {
        &self.words[self.start..self.start + self.len]
    }
}
