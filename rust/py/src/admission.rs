//! `Admission`, `Decision` and `Principal`: one call per request, no callback into Python.

use std::sync::{Mutex, PoisonError};

use flx_core::admission::credentials::{self, Presented};
use flx_core::admission::{self as core, By, Policy, Token};
use flx_core::error::Reason;
use flx_core::jwt::TokenVerifier;
use flx_core::jwt::claims::Expected;
use flx_core::jwt::keys::KeySet;
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::errors::{finite, unusable};
use crate::revocation::Revocations;
use crate::window::seed;

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
    /// `exp` in whole seconds since 1970
    #[pyo3(get)]
    expires_at: i64,
    /// `sid`
    #[pyo3(get)]
    session: Option<String>,
}

#[pymethods]
impl Principal {
    #[new]
    #[pyo3(
        signature = (*, subject, tenant=None, roles=vec![], token_id=None, expires_at=0, session=None),
        text_signature = "(*, subject, tenant=None, roles=(), token_id=None, expires_at=0, session=None)"
    )]
    fn new(
        subject: String,
        tenant: Option<String>,
        roles: Vec<String>,
        token_id: Option<String>,
        expires_at: i64,
        session: Option<String>,
    ) -> Self {
        Self { subject, tenant, roles, token_id, expires_at, session }
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

impl From<core::Principal> for Principal {
    fn from(it: core::Principal) -> Self {
        let core::Principal { subject, tenant, roles, token_id, expires_at, session, .. } = it;
        Self { subject, tenant, roles, token_id, expires_at, session }
    }
}

/// The answer to one request.
#[pyclass(frozen, get_all, module = "flx_api._core")]
pub(crate) struct Decision {
    /// 200 for "go on", else 400, 401 or 429.
    status: u16,
    /// Why it was refused.
    reason: Option<&'static str>,
    /// Who asks.
    principal: Option<Py<Principal>>,
    /// The policy that the numbers speak of.
    policy: Option<Py<PyString>>,
    /// Its limit.
    limit: u32,
    /// Units left.
    remaining: u32,
    /// Its window in seconds.
    window_s: u64,
    /// Seconds until quota grows.
    reset_s: u64,
    /// Seconds a refused client should wait.
    retry_after_s: u64,
    /// Shadow policies that would have refused.
    shadow: Py<PyTuple>,
}

/// Key set, expectations and windows of one gateway.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Admission {
    core: Mutex<core::Admission>,
    /// Names of the policies, made once.
    names: Vec<Py<PyString>>,
    /// What it asks about every acceptable token.
    #[pyo3(get)]
    revocations: Py<Revocations>,
}

#[pymethods]
impl Admission {
    #[new]
    #[pyo3(signature = (jwks, *, issuer, audience, leeway_s=0, typ=None, policies, max_bytes=67_108_864))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        jwks: &[u8],
        issuer: Option<String>,
        audience: Option<String>,
        leeway_s: u32,
        typ: Option<String>,
        policies: Vec<(String, String, u32, u64, u32, bool)>,
        max_bytes: usize,
    ) -> PyResult<Self> {
        let required = vec!["exp".to_owned(), "sub".to_owned()];
        let expected = Expected { issuer, audience, leeway_s, required, typ };
        let keys = KeySet::parse(jwks).map_err(unusable)?;
        let verifier = TokenVerifier::new(keys, expected).map_err(unusable)?;
        let policies = policies.into_iter().map(policy).collect::<PyResult<Vec<_>>>()?;
        let names = policies.iter().map(|policy| PyString::new(py, &policy.name).unbind()).collect();
        let core = core::Admission::new(verifier, policies, max_bytes, seed()?).map_err(unusable)?;
        Ok(Self { core: Mutex::new(core), names, revocations: Py::new(py, Revocations::new()?)? })
    }

    /// Decides about a request by its header list.
    fn admit(
        &self,
        py: Python<'_>,
        headers: &Bound<'_, PyAny>,
        client_ip: &str,
        needs_token: bool,
        now_s: f64,
        now_ns: u64,
    ) -> PyResult<Decision> {
        if !needs_token {
            return self.decide(py, Token::NotNeeded, client_ip, now_s, now_ns);
        }
        let mut presented = Presented::Nothing;
        if let Ok(list) = headers.cast::<PyList>() {
            for header in list.iter() {
                see(&mut presented, &header)?;
            }
        } else {
            for header in headers.try_iter()? {
                see(&mut presented, &header?)?;
            }
        }
        let token = presented.only().and_then(|value| credentials::bearer(value.as_bytes()));
        self.decide(py, Token::Presented(token), client_ip, now_s, now_ns)
    }

    /// Decides about a request whose token came another way.
    fn admit_token(
        &self,
        py: Python<'_>,
        token: Option<&[u8]>,
        client_ip: &str,
        now_s: f64,
        now_ns: u64,
    ) -> PyResult<Decision> {
        self.decide(py, Token::Presented(token.ok_or(Reason::MissingToken)), client_ip, now_s, now_ns)
    }
}

impl Admission {
    fn decide(&self, py: Python<'_>, token: Token<'_>, client_ip: &str, now_s: f64, now_ns: u64) -> PyResult<Decision> {
        let now_s = finite(now_s)?;
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let revocations = self.revocations.get().core();
        let decision = core.admit_unless(token, client_ip, now_s, now_ns, |it| {
            // The verifier does not say which key it was: that comes with key sets of several keys.
            revocations.revokes(
                &it.subject,
                it.tenant.as_deref(),
                it.token_id.as_deref(),
                it.session.as_deref(),
                None,
                it.issued_at,
            )
        });
        drop(revocations);
        let status = decision.status();
        let (mut policy, mut limit, mut remaining, mut window_s, mut reset_s) = (None, 0, 0, 0, 0);
        if let Some(quota) = decision.quota {
            let configured = core.policy(quota.policy);
            policy = self.names.get(quota.policy).map(|name| name.clone_ref(py));
            (limit, remaining) = (configured.limit, quota.remaining);
            window_s = configured.window_ms.div_ceil(1_000);
            reset_s = quota.reset_ns.div_ceil(1_000_000_000);
        }
        drop(core);
        let names = decision.shadow.iter().filter_map(|&index| self.names.get(index));
        let shadow =
            if decision.shadow.is_empty() { PyTuple::empty(py) } else { PyTuple::new(py, names.collect::<Vec<_>>())? };
        Ok(Decision {
            status,
            reason: decision.refusal.map(Reason::word),
            principal: decision.principal.map(|principal| Py::new(py, Principal::from(principal))).transpose()?,
            policy,
            limit,
            remaining,
            window_s,
            reset_s,
            retry_after_s: if status == 429 { reset_s.max(1) } else { 0 },
            shadow: shadow.unbind(),
        })
    }
}

fn policy(given: (String, String, u32, u64, u32, bool)) -> PyResult<Policy> {
    let (name, by, limit, window_ms, cost, shadow) = given;
    let by = match by.as_str() {
        "ip" => By::Ip,
        "subject" => By::Subject,
        _ => return Err(PyValueError::new_err("a policy counts by ip or by subject")),
    };
    Ok(Policy { name, by, limit, window_ms, cost, shadow })
}

/// Looks at one `(name, value)` of the header list.
fn see<'py>(presented: &mut Presented<Bound<'py, PyBytes>>, header: &Bound<'py, PyAny>) -> PyResult<()> {
    let wrong = || PyTypeError::new_err("headers are tuples of two bytes objects");
    let header = header.cast::<PyTuple>().map_err(|_| wrong())?;
    let name = header.get_borrowed_item(0)?;
    let value = header.get_borrowed_item(1)?;
    let name = name.cast::<PyBytes>().map_err(|_| wrong())?;
    let value = value.cast::<PyBytes>().map_err(|_| wrong())?;
    presented.see(name.as_bytes(), || value.to_owned());
    Ok(())
}
