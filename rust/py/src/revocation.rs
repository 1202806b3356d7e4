//! `Revocations`: the set that a gateway or a daemon asks about its tokens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flx_core::admission::{InForce, Principal};
use flx_core::jwt::revocation::{self as core, Kind, Revocation};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::window::seed;

/// (kind, value, tenant, `issued_before_s`, `expires_at_s`)
pub(crate) type Entry = (String, String, String, Option<i64>, Option<i64>);

/// All revocations in force.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Revocations {
    core: Mutex<core::Revocations>,
    /// Its epoch, for those who only want to know whether anything has changed.
    epoch: AtomicU64,
    /// Whether no token may be believed now.
    refuses: AtomicBool,
}

#[pymethods]
impl Revocations {
    #[new]
    pub(crate) fn new() -> PyResult<Self> {
        Ok(Self {
            core: Mutex::new(core::Revocations::new(seed()?)),
            epoch: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
        })
    }

    /// Says whether no token may be believed now, because too little is known of what is revoked.
    fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
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
        self.change(|core| core.apply(Revocation { kind, value, tenant, issued_before_s, expires_at_s }));
        Ok(())
    }

    /// Takes a revocation back; whether there was one.
    fn remove(&self, kind: &str, value: &str, tenant: &str) -> PyResult<bool> {
        let kind = kind_of(kind)?;
        Ok(self.change(|core| core.remove(kind, value, tenant)))
    }

    /// Puts exactly these in force.
    fn replace_all(&self, entries: Vec<Entry>) -> PyResult<()> {
        let entries = entries.into_iter().map(revocation).collect::<PyResult<Vec<_>>>()?;
        self.change(|core| core.replace_all(entries));
        Ok(())
    }

    /// Forgets those that can hit nothing any more.
    fn forget_expired(&self, now_s: i64) -> usize {
        self.change(|core| core.forget_expired(now_s))
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
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the set; when this returns, everybody who asks sees the new epoch, and so asks for a verdict.
    fn change<T>(&self, change: impl FnOnce(&mut core::Revocations) -> T) -> T {
        let mut core = self.core();
        let outcome = change(&mut core);
        self.epoch.store(core.epoch(), Ordering::Release);
        outcome
    }
}

impl Revocations {
    /// Whether no token may be believed now.
    pub(crate) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }
}

impl InForce for Revocations {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn revokes(&self, who: &Principal) -> bool {
        InForce::revokes(&*self.core(), who)
    }
}

pub(crate) fn revocation(entry: Entry) -> PyResult<Revocation> {
    let (kind, value, tenant, issued_before_s, expires_at_s) = entry;
    Ok(Revocation { kind: kind_of(&kind)?, value, tenant, issued_before_s, expires_at_s })
}

pub(crate) fn kind_of(word: &str) -> PyResult<Kind> {
    Kind::named(word).ok_or_else(|| PyValueError::new_err("a revocation names a jti, a session, a subject or a key"))
}
