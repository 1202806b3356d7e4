//! `Meter`.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flx_core::meter;
use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Counts Singer messages fed to it in any chunking.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Meter(Mutex<meter::Meter>);

/// One stream's counts, copied out.
struct Counts {
    name: String,
    records: u64,
    bytes: u64,
    schema: bool,
    key_properties: Vec<String>,
    distinct_keys: Option<usize>,
    records_after_state: u64,
    activate_versions: u64,
}

type Totals = [(&'static str, u64); 6];

impl Meter {
    /// Everything counted, copied while the lock is held. Making Python objects under it could deadlock: an allocation may
    /// collect garbage, a finaliser may let another thread run, and that one may want this meter.
    fn counts(&self) -> (Totals, Option<String>, Vec<Counts>) {
        let meter = self.inner();
        let totals = [
            ("lines", meter.lines()),
            ("bytes", meter.bytes()),
            ("malformed", meter.malformed()),
            ("other", meter.other()),
            ("partial_bytes", meter.partial_bytes()),
            ("states", meter.states()),
        ];
        let streams = meter.streams().iter().map(|stream| Counts {
            name: stream.name.clone(),
            records: stream.records,
            bytes: stream.bytes,
            schema: stream.schema,
            key_properties: stream.key_properties.clone(),
            distinct_keys: stream.distinct_keys(),
            records_after_state: meter.records_after_state(stream),
            activate_versions: stream.activate_versions,
        });
        (totals, meter.last_state().map(Cow::into_owned), streams.collect())
    }

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
        let (totals, last_state, streams) = self.counts();
        let by_name = PyDict::new(py);
        for stream in streams {
            let entry = PyDict::new(py);
            entry.set_item(intern!(py, "records"), stream.records)?;
            entry.set_item(intern!(py, "bytes"), stream.bytes)?;
            entry.set_item(intern!(py, "schema"), stream.schema)?;
            entry.set_item(intern!(py, "key_properties"), stream.key_properties)?;
            entry.set_item(intern!(py, "distinct_keys"), stream.distinct_keys)?;
            entry.set_item(intern!(py, "records_after_state"), stream.records_after_state)?;
            entry.set_item(intern!(py, "activate_versions"), stream.activate_versions)?;
            by_name.set_item(stream.name, entry)?;
        }
        let snapshot = PyDict::new(py);
        for (name, count) in totals {
            snapshot.set_item(name, count)?;
        }
        snapshot.set_item(intern!(py, "last_state"), last_state)?;
        snapshot.set_item(intern!(py, "streams"), by_name)?;
        Ok(snapshot)
    }

    /// The distinct keys that are new since the last call, by stream.
    fn drain_keys<'py>(&self, py: Python<'py>) -> Vec<(String, Bound<'py, PyBytes>)> {
        let drained = self.inner().drain_keys();
        drained.into_iter().map(|(stream, lines)| (stream, PyBytes::new(py, &lines))).collect()
    }
}
