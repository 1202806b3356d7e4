//! `Principal`, and what is kept beside one.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flx_core::admission as core;
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use crate::sheet::NativeLine;

/// Who a verified token speaks for.
#[pyclass(frozen, eq, hash, module = "flx_api._core")]
#[derive(PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) core: Arc<core::Principal>,
}

// By hand: an `Arc` of something that is no `Hash`.
impl Hash for Principal {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let it = &*self.core;
        (&it.subject, &it.tenant, &it.roles, &it.token_id, &it.session, it.issued_at, it.expires_at).hash(state);
    }
}

#[pymethods]
impl Principal {
    #[new]
    #[pyo3(
        signature = (
            *, subject, tenant=None, roles=vec![], token_id=None, session=None, issued_at=None, expires_at=0, key_id=None
        ),
        text_signature = "(*, subject, tenant=None, roles=(), token_id=None, session=None, issued_at=None, expires_at=0, key_id=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        subject: String,
        tenant: Option<String>,
        roles: Vec<String>,
        token_id: Option<String>,
        session: Option<String>,
        issued_at: Option<i64>,
        expires_at: i64,
        key_id: Option<String>,
    ) -> Self {
        let core = core::Principal { subject, tenant, roles, token_id, session, issued_at, expires_at, key_id };
        Self { core: Arc::new(core) }
    }

    /// `sub`
    #[getter]
    fn subject(&self) -> &str {
        &self.core.subject
    }

    /// `tenant`
    #[getter]
    fn tenant(&self) -> Option<&str> {
        self.core.tenant.as_deref()
    }

    /// `roles`
    #[getter]
    fn roles<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.core.roles)
    }

    /// `jti`
    #[getter]
    fn token_id(&self) -> Option<&str> {
        self.core.token_id.as_deref()
    }

    /// `sid`
    #[getter]
    fn session(&self) -> Option<&str> {
        self.core.session.as_deref()
    }

    /// `iat` in whole seconds since 1970
    #[getter]
    fn issued_at(&self) -> Option<i64> {
        self.core.issued_at
    }

    /// `exp` in whole seconds since 1970
    #[getter]
    fn expires_at(&self) -> i64 {
        self.core.expires_at
    }

    /// `kid` of the key that the token stood with
    #[getter]
    fn key_id(&self) -> Option<&str> {
        self.core.key_id.as_deref()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let subject = PyString::new(py, &self.core.subject).repr()?;
        let tenant = self.core.tenant.as_ref().into_bound_py_any(py)?.repr()?;
        let roles = self.roles(py)?.repr()?;
        Ok(format!("Principal(subject={subject}, tenant={tenant}, roles={roles})"))
    }
}

/// A whole answer that depends on nothing but the principal.
pub(crate) struct Page {
    pub(crate) route: usize,
    pub(crate) status: u16,
    /// Its own headers.
    pub(crate) headers: Box<[Py<PyTuple>]>,
    pub(crate) body: Py<PyBytes>,
    /// ASGI: the message with the body.
    pub(crate) end: Option<Py<PyDict>>,
    /// Headers and body for the lane, where there is one.
    pub(crate) native: Option<(Box<[NativeLine]>, Bytes)>,
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
    pub(crate) fn object(&self, py: Python<'_>, principal: &Arc<core::Principal>) -> PyResult<Py<Principal>> {
        let made = self.object.get_or_try_init(py, || Py::new(py, Principal { core: Arc::clone(principal) }));
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
