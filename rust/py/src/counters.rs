//! `Counters`: the numbers of all workers of a host.

use std::sync::Arc;

use flx_core::metrics::{self as core, METHOD_NAMES, PHASE_NAMES};
use pyo3::prelude::*;

use crate::errors::unusable;
use crate::memory::Words;
use crate::shared::SharedMemory;

/// One histogram: cumulative counts by bound in seconds (the last is all of them), and the sum in seconds.
type Histogram = (Vec<u64>, f64);

/// Requests, durations, phases and refusals, counted without locks.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Counters {
    core: Arc<core::Counters<Words>>,
    routes: usize,
    words: usize,
}

#[pymethods]
impl Counters {
    #[new]
    #[pyo3(signature = (*, routes, refusals, policies, shared=None))]
    fn new(routes: usize, refusals: usize, policies: usize, shared: Option<&SharedMemory>) -> PyResult<Self> {
        let words = core::words_for(routes, refusals, policies);
        let memory = Words::first(shared, words)?;
        let core = core::Counters::new(memory, routes, refusals, policies).map_err(unusable)?;
        Ok(Self { core: Arc::new(core), routes, words })
    }

    /// A request is over.
    fn request(&self, route: usize, method: &str, status: u16, nanoseconds: u64) {
        self.core.request(route, method_of(method), status, nanoseconds);
    }

    /// A phase is over.
    fn phase(&self, phase: usize, nanoseconds: u64) {
        self.core.phase(phase, nanoseconds);
    }

    /// Something was refused.
    fn refusal(&self, kind: usize) {
        self.core.refusal(kind);
    }

    /// Requests by (route, method, class of the status).
    fn requests(&self) -> Vec<(usize, &'static str, usize, u64)> {
        self.core
            .requests()
            .map(|(route, method, class, count)| (route, METHOD_NAMES[method], class + 1, count))
            .collect()
    }

    /// The durations of each route.
    fn durations(&self) -> Vec<Histogram> {
        (0..self.routes).map(|route| told(&self.core.durations(route))).collect()
    }

    /// The durations of each phase.
    fn phases(&self) -> Vec<Histogram> {
        (0..PHASE_NAMES.len()).map(|phase| told(&self.core.phases(phase))).collect()
    }

    /// Refusals by kind.
    fn refusals(&self) -> Vec<u64> {
        self.core.refusals().collect()
    }

    /// What shadow policies would have refused.
    fn shadows(&self) -> Vec<u64> {
        self.core.shadows().collect()
    }

    /// Upper bounds in seconds: of durations and of phases.
    #[staticmethod]
    fn bounds() -> (Vec<f64>, Vec<f64>) {
        let seconds = |bounds: &[u64]| bounds.iter().map(|&bound| bound as f64 / 1e9).collect();
        (seconds(&core::REQUEST_BOUNDS), seconds(&core::PHASE_BOUNDS))
    }
}

impl Counters {
    /// How much of the shared memory they take.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    pub(crate) fn core(&self) -> &Arc<core::Counters<Words>> {
        &self.core
    }
}

/// The place of a method.
pub(crate) fn method_of(method: &str) -> usize {
    METHOD_NAMES.iter().position(|&name| name == method).unwrap_or(METHOD_NAMES.len() - 1)
}

fn told(histogram: &core::Histogram) -> Histogram {
    let mut sum = 0;
    let cumulative = histogram.counts.iter().map(|count| {
        sum += count;
        sum
    });
    (cumulative.collect(), histogram.sum_ns as f64 / 1e9)
}
