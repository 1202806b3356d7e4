//! `Meter`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use flx_core::meter;
use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Counts Singer messages fed to it in any chunking.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Meter(Mutex<meter::Meter>);

impl Meter {
    fn inner(&self) -> MutexGuard<'_, meter::Meter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Meter {
    #[new]
    #[pyo3(signature = (*, max_keys=2_000_000))]
    fn new(max_keys: usize) -> Self {
        Self(Mutex::new(meter::Meter::new(max_keys)))
    }

    /// Takes the next bytes.
    fn feed(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            self.inner().feed(bytes.as_bytes());
            return Ok(());
        }
        // Anything else may change under our hands; a copy is cheap and needs no `unsafe`.
        let copy = PyBuffer::<u8>::get(data)?.to_vec(data.py())?;
        self.inner().feed(&copy);
        Ok(())
    }

    /// Says that no more bytes come.
    fn finish(&self) {
        self.inner().finish();
    }

    /// All counts, as values that JSON can carry.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let meter = self.inner();
        let streams = PyDict::new(py);
        for stream in meter.streams() {
            let entry = PyDict::new(py);
            entry.set_item(intern!(py, "records"), stream.records)?;
            entry.set_item(intern!(py, "bytes"), stream.bytes)?;
            entry.set_item(intern!(py, "schema"), stream.schema)?;
            entry.set_item(intern!(py, "key_properties"), &stream.key_properties)?;
            entry.set_item(intern!(py, "distinct_keys"), stream.distinct_keys())?;
            entry.set_item(intern!(py, "records_after_state"), meter.records_after_state(stream))?;
            entry.set_item(intern!(py, "activate_versions"), stream.activate_versions)?;
            streams.set_item(&stream.name, entry)?;
        }
        let snapshot = PyDict::new(py);
        snapshot.set_item(intern!(py, "lines"), meter.lines())?;
        snapshot.set_item(intern!(py, "bytes"), meter.bytes())?;
        snapshot.set_item(intern!(py, "malformed"), meter.malformed())?;
        snapshot.set_item(intern!(py, "other"), meter.other())?;
        snapshot.set_item(intern!(py, "partial_bytes"), meter.partial_bytes())?;
        snapshot.set_item(intern!(py, "states"), meter.states())?;
        snapshot.set_item(intern!(py, "last_state"), meter.last_state())?;
        snapshot.set_item(intern!(py, "streams"), streams)?;
        Ok(snapshot)
    }

    /// The distinct keys that are new since the last call, by stream.
    fn drain_keys<'py>(&self, py: Python<'py>) -> Vec<(String, Bound<'py, PyBytes>)> {
        let drained = self.inner().drain_keys();
        drained.into_iter().map(|(stream, lines)| (stream, PyBytes::new(py, &lines))).collect()
    }
}
