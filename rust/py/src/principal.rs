//! `Principal`, and what is kept beside one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flx_core::admission as core;
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

/// Who a verified token speaks for.
#[pyclass(frozen, eq, hash, module = "flx_api._core")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Principal {
    /// `sub`
    #[pyo3(get)]
    subject: String,
    /// `tenant`
    #[pyo3(get)]
    tenant: Option<String>,
    roles: Vec<String>,
    /// `jti`
    #[pyo3(get)]
    token_id: Option<String>,
    /// `sid`
    #[pyo3(get)]
    session: Option<String>,
    /// `exp` in whole seconds since 1970
    #[pyo3(get)]
    expires_at: i64,
}

#[pymethods]
impl Principal {
    #[new]
    #[pyo3(
        signature = (*, subject, tenant=None, roles=vec![], token_id=None, session=None, expires_at=0),
        text_signature = "(*, subject, tenant=None, roles=(), token_id=None, session=None, expires_at=0)"
    )]
    fn new(
        subject: String,
        tenant: Option<String>,
        roles: Vec<String>,
        token_id: Option<String>,
        session: Option<String>,
        expires_at: i64,
    ) -> Self {
        Self { subject, tenant, roles, token_id, session, expires_at }
    }

    /// `roles`
    #[getter]
    fn roles<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.roles)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let subject = PyString::new(py, &self.subject).repr()?;
        let tenant = self.tenant.as_ref().into_bound_py_any(py)?.repr()?;
        let roles = self.roles(py)?.repr()?;
        Ok(format!("Principal(subject={subject}, tenant={tenant}, roles={roles})"))
    }
}

/// A whole answer that depends on nothing but the principal.
pub(crate) struct Page {
    pub(crate) route: usize,
    pub(crate) status: u16,
    /// Its own headers.
    pub(crate) headers: Vec<Py<PyTuple>>,
    /// Content-Length.
    pub(crate) length: Py<PyTuple>,
    pub(crate) body: Py<PyBytes>,
    /// ASGI: the message with the body.
    pub(crate) end: Option<Py<PyDict>>,
}

/// What is kept of a principal for as long as its token is remembered.
pub(crate) struct Shell {
    object: PyOnceLock<Py<Principal>>,
    page: Mutex<Option<Arc<Page>>>,
    /// The route of that page: a look without the lock for those who have none.
    paged: AtomicUsize,
}

impl Default for Shell {
    fn default() -> Self {
        Self { object: PyOnceLock::new(), page: Mutex::new(None), paged: AtomicUsize::new(usize::MAX) }
    }
}

impl Shell {
    /// The one Python object of this principal.
    pub(crate) fn object(&self, py: Python<'_>, principal: &core::Principal) -> PyResult<Py<Principal>> {
        let made = self.object.get_or_try_init(py, || {
            let core::Principal { subject, tenant, roles, token_id, session, expires_at, .. } = principal.clone();
            Py::new(py, Principal { subject, tenant, roles, token_id, session, expires_at })
        });
        made.map(|object| object.clone_ref(py))
    }

    /// Remembers a page; one at a time is enough.
    pub(crate) fn keep(&self, page: Page) {
        let route = page.route;
        let before = self.page.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::new(page));
        self.paged.store(route, Ordering::Release);
        drop(before);
    }

    /// The page of a route, if there is one. It is used without the lock: what Python makes of it may run Python, and that
    /// another thread, which waits for the lock.
    pub(crate) fn page(&self, route: usize) -> Option<Arc<Page>> {
        if self.paged.load(Ordering::Acquire) != route {
            return None;
        }
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.as_ref().filter(|page| page.route == route).map(Arc::clone)
    }
}
