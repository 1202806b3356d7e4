//! INTERIM
use std::sync::atomic::AtomicU64;
use pyo3::prelude::*;
use flx_core::error::Unusable;

/// INTERIM
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct SharedMemory;
impl SharedMemory {
    pub(crate) fn seed(&self) -> (u64, u64) {
        (1, 2)
    }
}
/// INTERIM
#[derive(Debug)]
pub(crate) struct Memory(Box<[AtomicU64]>);
impl flx_core::limit::Memory for Memory {
    type Word = AtomicU64;
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}
impl Memory {
    pub(crate) fn of(_shared: Option<&SharedMemory>, words: usize) -> PyResult<Self> {
        Ok(Self((0..words).map(|_| AtomicU64::new(0)).collect()))
    }
    pub(crate) fn window(_s: Option<&SharedMemory>, _l: u32, _w: u64, _c: u32, _b: usize) -> Result<Self, Unusable> {
        Ok(Self(Box::new([])))
    }
}
