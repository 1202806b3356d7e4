//! `verify_jws` and `TokenVerifier`.

use std::sync::{Arc, Mutex};

use flx_core::json::{Json, Members};
use flx_core::jwt::cache::{Lookup, TokenCache};
use flx_core::jwt::claims::Expected;
use flx_core::jwt::jws::{self, Scratch};
use flx_core::jwt::keys::{Algorithm, KeySet, Terms};
use flx_core::jwt::{self, Accepted};
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMappingProxy, PyString, PyTuple};

use crate::errors::{finite, token_rejected, unusable};
use crate::window::seed;

/// The payload of a compact JWS whose signature, header and key are acceptable.
#[pyfunction]
#[pyo3(signature = (token, jwks, *, mixed=false))]
pub(crate) fn verify_jws<'py>(
    py: Python<'py>,
    token: &[u8],
    jwks: &[u8],
    mixed: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let keys = jwk_set(jwks, None, mixed)?;
    let mut scratch = Scratch::default();
    let verified = jws::verify(token, &keys, &mut scratch).map_err(|reason| token_rejected(py, reason))?;
    Ok(PyBytes::new(py, verified.payload))
}

/// Keys together with what the tokens they sign must say, and where tokens are decoded to.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct TokenVerifier {
    pub(crate) core: Arc<jwt::TokenVerifier>,
    scratch: Mutex<Scratch>,
    /// What was verified before, for who wants that.
    remembered: Option<Mutex<TokenCache<Py<PyTuple>>>>,
}

/// Whether what is made of JSON may be changed by whoever gets it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Dicts and lists.
    Plain,
    /// Read-only mappings and tuples, which many may hold at once.
    Frozen,
}

/// Bytes of a remembered token beside its text, roughly: its claims as objects.
const CLAIMS_BYTES: usize = 2_048;
/// Keys never change here, and revocation is the caller's to ask about.
const EPOCH: u64 = 0;

/// Of a realm: keys, issuer, audience, leeway, typ, algorithms, whether secrets are accepted.
type Realm = (Vec<u8>, Option<String>, Option<String>, u32, Option<String>, Option<Vec<String>>, bool);

#[pymethods]
impl TokenVerifier {
    #[new]
    #[pyo3(
        signature = (
            jwks, *, issuer=None, audience=None, leeway_s=0, required=vec!["exp".to_owned(), "sub".to_owned()], typ=None,
            algorithms=None, mixed=false
        ),
        text_signature = "(jwks, *, issuer=None, audience=None, leeway_s=0, required=('exp', 'sub'), typ=None, \
                          algorithms=None, mixed=False)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        jwks: &[u8],
        issuer: Option<String>,
        audience: Option<String>,
        leeway_s: u32,
        required: Vec<String>,
        typ: Option<String>,
        algorithms: Option<Vec<String>>,
        mixed: bool,
    ) -> PyResult<Self> {
        let expected = Expected { issuer, audience, leeway_s, required, typ };
        let verifier = jwt::TokenVerifier::new(jwk_set(jwks, algorithms, mixed)?, expected).map_err(unusable)?;
        Ok(Self::with(Arc::new(verifier), None))
    }

    /// A verifier of several realms; `exp` and `sub` are required in each.
    #[staticmethod]
    fn of(realms: Vec<Realm>) -> PyResult<Self> {
        let mut made = Vec::with_capacity(realms.len());
        for (keys, issuer, audience, leeway_s, typ, algorithms, secrets) in realms {
            let keys = KeySet::read(&keys, &Terms { secrets, ..terms(algorithms)? }).map_err(unusable)?;
            let required = vec!["exp".to_owned(), "sub".to_owned()];
            made.push((keys, Expected { issuer, audience, leeway_s, required, typ }));
        }
        Ok(Self::with(Arc::new(jwt::TokenVerifier::of(made).map_err(unusable)?), None))
    }

    /// How many keys are usable.
    #[getter]
    fn key_count(&self) -> usize {
        self.core.key_count()
    }

    /// The same, which remembers tokens that it has verified until they end.
    fn remembering(&self, max_bytes: usize) -> PyResult<Self> {
        let cache = TokenCache::new(max_bytes, 0, seed()?).map_err(unusable)?;
        Ok(Self::with(Arc::clone(&self.core), Some(Mutex::new(cache))))
    }

    /// The claims of an acceptable token at `now_s`.
    fn verify<'py>(&self, py: Python<'py>, token: &[u8], now_s: f64) -> PyResult<Bound<'py, PyAny>> {
        self.accepted(py, token, finite(now_s)?, |accepted| object(py, &accepted.claims.0, Made::Plain))
    }

    /// The same, frozen, and the `kid` of the key it was verified with; from memory, where there is one. Whoever finds that
    /// in use does without: nobody waits here for a thread that may itself wait for the interpreter.
    fn verify_full(&self, py: Python<'_>, token: &[u8], now_s: f64) -> PyResult<Py<PyTuple>> {
        let now_s = finite(now_s)?;
        let memory = || self.remembered.as_ref().and_then(|memory| memory.try_lock().ok());
        if let Some(mut memory) = memory()
            && let Lookup::Hit { value, .. } = memory.get(token, now_s, EPOCH)
        {
            return Ok(value.clone_ref(py));
        }
        let (full, ends_at_s) = self.accepted(py, token, now_s, |accepted| {
            let claims = object(py, &accepted.claims.0, Made::Frozen)?;
            Ok(((claims, accepted.kid).into_pyobject(py)?.unbind(), accepted.ends_at_s))
        })?;
        if let (Some(mut memory), Some(ends_at_s)) = (memory(), ends_at_s) {
            memory.insert(token, full.clone_ref(py), ends_at_s, EPOCH, EPOCH, CLAIMS_BYTES);
        }
        Ok(full)
    }
}

impl TokenVerifier {
    fn with(core: Arc<jwt::TokenVerifier>, remembered: Option<Mutex<TokenCache<Py<PyTuple>>>>) -> Self {
        Self { core, scratch: Mutex::default(), remembered }
    }

    /// `used` makes Python objects, and so may let another thread in here: that one has a scratch of its own.
    fn accepted<'k, T>(
        &'k self,
        py: Python<'_>,
        token: &[u8],
        now_s: f64,
        used: impl FnOnce(&Accepted<'k, '_>) -> PyResult<T>,
    ) -> PyResult<T> {
        let (mut kept, mut fresh) = (self.scratch.try_lock(), Scratch::default());
        let scratch = kept.as_deref_mut().unwrap_or(&mut fresh);
        let accepted = self.core.verify_full(token, now_s, scratch);
        used(&accepted.map_err(|reason| token_rejected(py, reason))?)
    }
}

/// A JWK set only: what is given by that name is not taken for PEM or DER.
fn jwk_set(jwks: &[u8], algorithms: Option<Vec<String>>, mixed: bool) -> PyResult<KeySet> {
    KeySet::parse_on(jwks, &Terms { mixed, ..terms(algorithms)? }).map_err(unusable)
}

fn terms(algorithms: Option<Vec<String>>) -> PyResult<Terms> {
    let Some(names) = algorithms else {
        return Ok(Terms::default());
    };
    let mut algorithms = Vec::with_capacity(names.len());
    for name in names {
        match Algorithm::named(&name) {
            Some(algorithm) if !algorithms.contains(&algorithm) => algorithms.push(algorithm),
            _ => return Err(PyValueError::new_err("algorithms: a name that is unknown or occurs twice")),
        }
    }
    Ok(Terms { algorithms, ..Terms::default() })
}

fn object<'py>(py: Python<'py>, members: &Members<'_>, made: Made) -> PyResult<Bound<'py, PyAny>> {
    let dict = PyDict::new(py);
    for (name, value) in members {
        let value = value_of(py, value, made)?;
        match registered(py, name) {
            Some(name) => dict.set_item(name, value)?,
            None => dict.set_item(&**name, value)?,
        }
    }
    match made {
        Made::Plain => Ok(dict.into_any()),
        Made::Frozen => Ok(PyMappingProxy::new(py, dict.as_mapping()).into_any()),
    }
}

/// The names that nearly every token has are made and hashed once.
fn registered<'py>(py: Python<'py>, name: &str) -> Option<&'py Bound<'py, PyString>> {
    Some(match name {
        "iss" => intern!(py, "iss"),
        "aud" => intern!(py, "aud"),
        "exp" => intern!(py, "exp"),
        "nbf" => intern!(py, "nbf"),
        "iat" => intern!(py, "iat"),
        "sub" => intern!(py, "sub"),
        "jti" => intern!(py, "jti"),
        "sid" => intern!(py, "sid"),
        "roles" => intern!(py, "roles"),
        "tenant" => intern!(py, "tenant"),
        _ => return None,
    })
}

/// The Python value of a JSON value. The depth is bounded by the reader.
fn value_of<'py>(py: Python<'py>, json: &Json<'_>, made: Made) -> PyResult<Bound<'py, PyAny>> {
    match json {
        Json::Null => Ok(py.None().into_bound(py)),
        Json::Bool(value) => value.into_bound_py_any(py),
        Json::Int(value) => value.into_bound_py_any(py),
        Json::Float(value) => value.into_bound_py_any(py),
        Json::Str(value) => Ok(PyString::new(py, value).into_any()),
        Json::Array(items) => {
            let items = items.iter().map(|item| value_of(py, item, made)).collect::<PyResult<Vec<_>>>()?;
            match made {
                Made::Plain => Ok(PyList::new(py, items)?.into_any()),
                Made::Frozen => Ok(PyTuple::new(py, items)?.into_any()),
            }
        }
        Json::Object(members) => object(py, members, made),
    }
}
