//! `SlidingWindow`, and where the seeds of all windows come from.

use flx_core::limit::{self, Heap, Lone, Rate};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::errors::unusable;
use crate::request::Nanoseconds;
use crate::shared::{Region, SharedMemory};

/// At most `limit` units in any window of `window_ms`.
#[pyclass(module = "flx_api._core")]
pub(crate) struct SlidingWindow(Window);

/// Of this process alone, or of all that map the same memory.
enum Window {
    Own(limit::SlidingWindow<Heap<Lone>>),
    Shared(limit::SlidingWindow<Region>),
}

#[pymethods]
impl SlidingWindow {
    #[new]
    #[pyo3(signature = (limit, window_ms, *, max_bytes=67_108_864, memory=None))]
    fn new(limit: u32, window_ms: u64, max_bytes: usize, memory: Option<&SharedMemory>) -> PyResult<Self> {
        let rate = Rate { limit, window_ms, max_cost: limit };
        Ok(Self(match memory {
            None => Window::Own(limit::SlidingWindow::on_heap(rate, max_bytes, seed()?).map_err(unusable)?),
            Some(memory) => {
                let words = rate.words(max_bytes.min(memory.bytes())).map_err(unusable)?;
                let region = memory.region(0, words).ok_or_else(|| PyValueError::new_err("memory is too small"))?;
                Window::Shared(limit::SlidingWindow::new(rate, region, memory.seed()).map_err(unusable)?)
            }
        }))
    }

    /// Checks and, when admitted, counts: (admitted, remaining, `reset_ns`). Exclusive, since an own window is for one caller at
    /// a time.
    #[pyo3(signature = (key, now_ns, cost=1))]
    fn hit(&mut self, key: &[u8], now_ns: Nanoseconds, cost: u32) -> PyResult<(bool, u32, u64)> {
        if cost == 0 {
            return Err(PyValueError::new_err("cost is at least 1"));
        }
        let answer = match &self.0 {
            Window::Own(window) => window.hit(key, now_ns.0, cost),
            Window::Shared(window) => window.hit(key, now_ns.0, cost),
        };
        Ok(match answer {
            Ok(charge) => (true, charge.remaining, charge.reset_ns),
            Err(check) => (false, check.remaining, check.reset_ns),
        })
    }
}

/// Secret and different in every process.
pub(crate) fn seed() -> PyResult<(u64, u64)> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PyOSError::new_err("no random bytes"))?;
    let seed = u128::from_ne_bytes(bytes);
    Ok((seed as u64, (seed >> 64) as u64))
}
