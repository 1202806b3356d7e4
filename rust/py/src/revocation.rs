//! `Revocations`: the set that a gateway or a daemon asks about its tokens.

use std::sync::{Mutex, MutexGuard, PoisonError};

use flx_core::jwt::revocation::{self as core, Kind, Revocation};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::window::seed;

/// (kind, value, tenant, `issued_before_s`, `expires_at_s`)
pub(crate) type Entry = (String, String, String, Option<i64>, Option<i64>);

/// All revocations in force.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Revocations(Mutex<core::Revocations>);

#[pymethods]
impl Revocations {
    #[new]
    pub(crate) fn new() -> PyResult<Self> {
        Ok(Self(Mutex::new(core::Revocations::new(seed()?))))
    }

    /// Puts a revocation in force.
    #[pyo3(signature = (kind, value, tenant, issued_before_s=None, expires_at_s=None))]
    fn apply(
        &self,
        kind: &str,
        value: String,
        tenant: String,
        issued_before_s: Option<i64>,
        expires_at_s: Option<i64>,
    ) -> PyResult<()> {
        let kind = kind_of(kind)?;
        self.core().apply(Revocation { kind, value, tenant, issued_before_s, expires_at_s });
        Ok(())
    }

    /// Takes a revocation back; whether there was one.
    fn remove(&self, kind: &str, value: &str, tenant: &str) -> PyResult<bool> {
        let kind = kind_of(kind)?;
        Ok(self.core().remove(kind, value, tenant))
    }

    /// Puts exactly these in force.
    fn replace_all(&self, entries: Vec<Entry>) -> PyResult<()> {
        let entries = entries.into_iter().map(revocation).collect::<PyResult<Vec<_>>>()?;
        self.core().replace_all(entries);
        Ok(())
    }

    /// Forgets those that can hit nothing any more.
    fn forget_expired(&self, now_s: i64) -> usize {
        self.core().forget_expired(now_s)
    }

    /// Whether a token that says this is revoked.
    #[pyo3(signature = (*, subject, tenant=None, token_id=None, session=None, key_id=None, issued_at=None))]
    fn revokes(
        &self,
        subject: &str,
        tenant: Option<&str>,
        token_id: Option<&str>,
        session: Option<&str>,
        key_id: Option<&str>,
        issued_at: Option<i64>,
    ) -> bool {
        self.core().revokes(subject, tenant, token_id, session, key_id, issued_at)
    }

    /// Moves with every change.
    #[getter]
    fn epoch(&self) -> u64 {
        self.core().epoch()
    }

    fn __len__(&self) -> usize {
        self.core().len()
    }
}

impl Revocations {
    pub(crate) fn core(&self) -> MutexGuard<'_, core::Revocations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn revocation(entry: Entry) -> PyResult<Revocation> {
    let (kind, value, tenant, issued_before_s, expires_at_s) = entry;
    Ok(Revocation { kind: kind_of(&kind)?, value, tenant, issued_before_s, expires_at_s })
}

pub(crate) fn kind_of(word: &str) -> PyResult<Kind> {
    Kind::named(word).ok_or_else(|| PyValueError::new_err("a revocation names a jti, a session, a subject or a key"))
}
