//! Where the words of windows and counters lie: in this process, or in the memory that a host's workers share.

use std::sync::atomic::AtomicU64;

use flx_core::limit::{Heap, Memory};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::shared::{Region, SharedMemory};

/// A region of words.
pub(crate) enum Words {
    /// Of this process alone.
    Own(Heap),
    /// Of all that map the same memory.
    Shared(Region),
}

impl Memory for Words {
    type Word = AtomicU64;

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Own(heap) => heap.words(),
            Self::Shared(region) => region.words(),
        }
    }
}

impl Words {
    /// So many zeroed words: the first ones of what is shared, or on the heap.
    pub(crate) fn first(shared: Option<&SharedMemory>, words: usize) -> PyResult<Self> {
        match shared {
            Some(shared) => shared.region(0, words).map(Self::Shared),
            None => Heap::zeroed(words).map(Self::Own),
        }
        .ok_or_else(|| PyValueError::new_err("there is no such memory"))
    }
}

/// The next region of shared memory: regions are given out one after another, and who shares the memory must ask for the
/// same ones in the same order.
pub(crate) fn next(shared: &SharedMemory, start: &mut usize, words: usize) -> Option<Region> {
    let region = shared.region(*start, words)?;
    // Whole cache lines, so that entries are laid out as on the heap.
    *start += words.next_multiple_of(8);
    Some(region)
}
