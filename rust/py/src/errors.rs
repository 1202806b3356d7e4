//! The one place where a core's refusal becomes a Python exception.

use flx_core::error::{Reason, Unusable};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// `flx_api.errors.TokenRejected(reason)`.
pub(crate) fn token_rejected(py: Python<'_>, reason: Reason) -> PyErr {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match TYPE.import(py, "flx_api.errors", "TokenRejected") {
        Ok(exception) => PyErr::from_type(exception.clone(), (reason.word(),)),
        Err(error) => error,
    }
}

/// `ValueError` with the rule that was broken.
pub(crate) fn unusable(error: Unusable) -> PyErr {
    PyValueError::new_err(error.0)
}

/// A clock reading that is a number.
pub(crate) fn finite(now_s: f64) -> PyResult<f64> {
    if now_s.is_finite() { Ok(now_s) } else { Err(PyValueError::new_err("now_s is a finite number of seconds")) }
}
