//! `LeaseBook`: a node's leases, for the tests and tools that drive it without HTTP, and what its sync task calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flx_core::limit::lease::{self, Mode, Policy, Verdict};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::unusable;

/// All leases of one node; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct LeaseBook(Arc<Mutex<lease::LeaseBook>>);

impl LeaseBook {
    fn book(&self) -> MutexGuard<'_, lease::LeaseBook> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The book itself, for the admission core of this process.
    pub(crate) fn shared(&self) -> Arc<Mutex<lease::LeaseBook>> {
        Arc::clone(&self.0)
    }
}

#[pymethods]
impl LeaseBook {
    #[new]
    #[pyo3(signature = (policies, *, max_bytes=67_108_864, grace_ms=1_000, node=None, seed=None))]
    fn new(
        policies: Vec<(String, u32, u64, String)>,
        max_bytes: usize,
        grace_ms: u32,
        node: Option<u64>,
        seed: Option<(u64, u64)>,
    ) -> PyResult<Self> {
        let policies = policies.into_iter().map(policy).collect::<PyResult<Vec<_>>>()?;
        let node = match node {
            Some(node) => node,
            None => crate::window::seed()?.0,
        };
        let seed = match seed {
            Some(seed) => seed,
            None => crate::window::seed()?,
        };
        let book = lease::LeaseBook::new(policies, max_bytes, node, seed, grace_ms).map_err(unusable)?;
        Ok(Self(Arc::new(Mutex::new(book))))
    }

    /// Checks and, when admitted, counts: (verdict, remaining, `reset_ns`).
    #[pyo3(signature = (policy, key, now_ns, cost=1))]
    fn hit(&self, policy: usize, key: &[u8], now_ns: u64, cost: u32) -> PyResult<(u8, u32, u64)> {
        if cost == 0 {
            return Err(PyValueError::new_err("cost is at least 1"));
        }
        let check = self.book().hit(policy, key, now_ns, cost);
        let verdict = match check.verdict {
            Verdict::Admitted => 0,
            Verdict::Refused => 1,
            Verdict::Unknown => 2,
            Verdict::Unavailable => 3,
        };
        Ok((verdict, check.remaining, check.reset_ns))
    }

    /// Nanoseconds until a call is worthwhile.
    fn due_in(&self, now_ns: u64) -> Option<u64> {
        self.book().due_in(now_ns)
    }

    /// A call for the script of this SHA.
    fn collect<'py>(&self, py: Python<'py>, now_ns: u64, most: usize, sha: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let command = self.book().collect(now_ns, most, sha);
        command.map(|command| PyBytes::new(py, &command))
    }

    /// Takes the answer to the call under way.
    fn apply(&self, answer: &[u8], now_ns: u64) -> PyResult<()> {
        self.book().apply(answer, now_ns).map_err(unusable)
    }

    /// No answer came.
    fn lost(&self, now_ns: u64, away: bool) {
        self.book().lost(now_ns, away);
    }

    /// Return everything with the next calls.
    fn close(&self) -> bool {
        self.book().close()
    }

    /// Whether grants can be had.
    fn ready(&self, now_ns: u64) -> bool {
        self.book().ready(now_ns)
    }

    /// Whether the node goes on without Redis.
    #[getter]
    fn away(&self) -> bool {
        self.book().away()
    }

    /// Nodes of the fleet.
    #[getter]
    fn nodes(&self) -> u32 {
        self.book().nodes()
    }

    /// Keys remembered.
    #[getter]
    fn keys(&self) -> usize {
        self.book().keys()
    }

    /// (calls, granted, owed, alone, unknown)
    #[getter]
    fn counts(&self) -> (u64, u64, u64, u64, u64) {
        let [calls, granted, owed, alone, unknown] = self.book().counts().list();
        (calls, granted, owed, alone, unknown)
    }
}

fn policy(given: (String, u32, u64, String)) -> PyResult<Policy> {
    let (name, limit, window_ms, mode) = given;
    let mode = match mode.as_str() {
        "fast" => Mode::Fast,
        "strict" => Mode::Strict,
        _ => return Err(PyValueError::new_err("a mode is fast or strict")),
    };
    Ok(Policy { name, limit, window_ms, mode })
}
