//! `SharedMemory`: one mapping for all gateway workers of a host, lent out in regions of atomic words.
//!
//! A region is `&[AtomicU64]`; whoever borrows one (windows, counters) keeps it consistent with single atomic operations, so
//! a worker that stops or dies leaves nothing locked. The first line of the mapping says what it is; its maker writes it, the
//! magic word last. This file alone has `unsafe`: Rust has no safe call for memory that other processes write to.
#![expect(unsafe_code, reason = "a mapping of memory that other processes write to")]

use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use flx_core::limit::Memory;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::window::seed;

/// "flx-shm" and the version of what lies where.
const MAGIC: u64 = u64::from_be_bytes(*b"flx-shm\x01");
/// Words of the first line.
const HEADER: usize = 8;
const KIND: usize = 0;
const LAYOUT: usize = 1;
const SEED: [usize; 2] = [2, 3];

/// Memory that all workers of one host share.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct SharedMemory(Arc<Mapping>);

#[pymethods]
impl SharedMemory {
    #[new]
    #[pyo3(signature = (fd, *, layout=0, create=false))]
    fn new(fd: i32, layout: u64, create: bool) -> PyResult<Self> {
        let mapping = Mapping::of(fd)?;
        let header = &mapping.words[..HEADER];
        if create {
            if header.iter().any(|word| word.load(SeqCst) != 0) {
                return Err(PyValueError::new_err("the memory is in use already"));
            }
            let seed = seed()?;
            header[SEED[0]].store(seed.0, SeqCst);
            header[SEED[1]].store(seed.1, SeqCst);
            header[LAYOUT].store(layout, SeqCst);
            header[KIND].store(MAGIC, SeqCst);
        } else if header[KIND].load(SeqCst) != MAGIC || header[LAYOUT].load(SeqCst) != layout {
            return Err(PyValueError::new_err("the memory is not laid out as expected"));
        }
        Ok(Self(Arc::new(mapping)))
    }

    /// Bytes that can be lent out.
    #[getter]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.0.words[HEADER..])
    }
}

impl SharedMemory {
    /// Words from `start` on, for as long as the region lives; none when the mapping is shorter.
    pub(crate) fn region(&self, start: usize, len: usize) -> Option<Region> {
        let start = HEADER.checked_add(start)?;
        self.0.words.get(start..start.checked_add(len)?)?;
        Some(Region { mapping: Arc::clone(&self.0), start, len })
    }

    /// The seed of all hashes in here, the same for every process; never shown to Python.
    pub(crate) fn seed(&self) -> (u64, u64) {
        let [low, high] = SEED.map(|index| self.0.words[index].load(SeqCst));
        (low, high)
    }
}

/// A part of a mapping; it keeps the mapping alive.
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Memory for Region {
    type Word = AtomicU64;

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        &self.mapping.words[self.start..self.start + self.len]
    }
}

/// The mapping itself. The slice is `'static` in name only: it is lent out no longer than this lives.
struct Mapping {
    words: &'static [AtomicU64],
}

impl Mapping {
    fn of(fd: i32) -> PyResult<Self> {
        if fd < 0 {
            return Err(PyValueError::new_err("fd is a file descriptor"));
        }
        // SAFETY: not -1, and only used within this call, during which the caller keeps it open; if it is no open file, the
        // system calls say so.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        let size = rustix::fs::fstat(file).map_err(std::io::Error::from)?.st_size;
        let len = usize::try_from(size).unwrap_or(0) / size_of::<u64>();
        if len <= HEADER {
            return Err(PyValueError::new_err("the memory is too small"));
        }
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the system chooses a free range of addresses.
        let start = unsafe { mmap(ptr::null_mut(), len * size_of::<u64>(), access, flags, file, 0) };
        let start = start.map_err(std::io::Error::from)?;
        // SAFETY: `start` is page-aligned and `len` words long; any bits are a valid `AtomicU64`, every process that maps this
        // file uses it by atomic operations alone, and nobody unmaps it before `drop`. A memory file is sealed against
        // shrinking by its maker, any other has no name under which it could be cut short.
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), len) };
        Ok(Self { words })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = (self.words.as_ptr().cast_mut().cast(), size_of_val(self.words));
        // SAFETY: the range that `of` mapped, and the last that knows of it. Should it fail, the range just stays mapped.
        let _ = unsafe { munmap(start, len) };
    }
}
