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

/// Gives out regions one after another; who shares the memory must ask for the same ones in the same order.
pub(crate) struct Regions<'a> {
    shared: Option<&'a SharedMemory>,
    next: usize,
}

impl<'a> Regions<'a> {
    /// Regions from the word `start` on; on the heap when nothing is shared.
    pub(crate) fn new(shared: Option<&'a SharedMemory>, start: usize) -> Self {
        Self { shared, next: start }
    }

    /// So many zeroed words.
    pub(crate) fn take(&mut self, words: usize) -> PyResult<Words> {
        let Some(shared) = self.shared else {
            let heap = Heap::zeroed(words).ok_or_else(|| PyValueError::new_err("there is no such memory"))?;
            return Ok(Words::Own(heap));
        };
        let region = shared.region(self.next, words);
        let region = region.ok_or_else(|| PyValueError::new_err("the shared memory is too small"))?;
        // Whole cache lines, so that entries are laid out as on the heap.
        self.next += words.next_multiple_of(8);
        Ok(Words::Shared(region))
    }
}
