//! INTERIM
use flx_core::limit;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use crate::errors::unusable;
use crate::shared::Memory;
/// At most `limit` units per key in any window of `window_ms`.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct SlidingWindow(limit::SlidingWindow<Memory>);
#[pymethods]
impl SlidingWindow {
    #[new]
    #[pyo3(signature = (limit, window_ms, *, max_bytes=67_108_864))]
    fn new(limit: u32, window_ms: u64, max_bytes: usize) -> PyResult<Self> {
        let m = Memory::window(None, limit, window_ms, 1, max_bytes).map_err(unusable)?;
        limit::SlidingWindow::new(limit, window_ms, 1, m, seed()?).map(Self).map_err(unusable)
    }
    /// Checks and, when admitted, counts: (admitted, remaining, `reset_ns`).
    #[pyo3(signature = (key, now_ns, cost=1))]
    fn hit(&self, key: &[u8], now_ns: u64, cost: u32) -> PyResult<(bool, u32, u64)> {
        if cost == 0 {
            return Err(PyValueError::new_err("cost is at least 1"));
        }
        let check = self.0.hit(key, now_ns, cost);
        Ok((check.admitted, check.remaining, check.reset_ns))
    }
}
/// Secret and different in every process.
pub(crate) fn seed() -> PyResult<(u64, u64)> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PyOSError::new_err("no random bytes"))?;
    let seed = u128::from_ne_bytes(bytes);
    Ok((seed as u64, (seed >> 64) as u64))
}
