//! `verify_jws` and `TokenVerifier`.

use flx_core::jwt::claims::Expected;
use flx_core::jwt::json::Json;
use flx_core::jwt::keys::KeySet;
use flx_core::jwt::{self, jws};
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::{finite, token_rejected, unusable};

/// The payload of a compact JWS whose signature, header and key are acceptable.
#[pyfunction]
pub(crate) fn verify_jws<'py>(py: Python<'py>, token: &[u8], jwks: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let keys = KeySet::parse(jwks).map_err(unusable)?;
    let verified = jws::verify(token, &keys).map_err(|reason| token_rejected(py, reason))?;
    Ok(PyBytes::new(py, &verified.payload))
}

/// A key set together with what its tokens must say.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct TokenVerifier(jwt::TokenVerifier);

#[pymethods]
impl TokenVerifier {
    #[new]
    #[pyo3(
        signature = (
            jwks, *, issuer=None, audience=None, leeway_s=0, required=vec!["exp".to_owned(), "sub".to_owned()], typ=None
        ),
        text_signature = "(jwks, *, issuer=None, audience=None, leeway_s=0, required=('exp', 'sub'), typ=None)"
    )]
    fn new(
        jwks: &[u8],
        issuer: Option<String>,
        audience: Option<String>,
        leeway_s: u32,
        required: Vec<String>,
        typ: Option<String>,
    ) -> PyResult<Self> {
        let expected = Expected { issuer, audience, leeway_s, required, typ };
        let keys = KeySet::parse(jwks).map_err(unusable)?;
        jwt::TokenVerifier::new(keys, expected).map(Self).map_err(unusable)
    }

    /// The claims of an acceptable token at `now_s`.
    fn verify<'py>(&self, py: Python<'py>, token: &[u8], now_s: f64) -> PyResult<Bound<'py, PyDict>> {
        let claims = self.0.verify(token, finite(now_s)?).map_err(|reason| token_rejected(py, reason))?;
        object(py, &claims.0)
    }
}

fn object<'py>(py: Python<'py>, members: &[(String, Json)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in members {
        dict.set_item(name, value_of(py, value)?)?;
    }
    Ok(dict)
}

/// The Python value of a JSON value. The depth is bounded by the reader.
fn value_of<'py>(py: Python<'py>, json: &Json) -> PyResult<Bound<'py, PyAny>> {
    match json {
        Json::Null => Ok(py.None().into_bound(py)),
        Json::Bool(value) => value.into_bound_py_any(py),
        Json::Int(value) => value.into_bound_py_any(py),
        Json::Float(value) => value.into_bound_py_any(py),
        Json::Str(value) => value.into_bound_py_any(py),
        Json::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(value_of(py, item)?)?;
            }
            Ok(list.into_any())
        }
        Json::Object(members) => object(py, members).map(Bound::into_any),
    }
}
