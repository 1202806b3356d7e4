//! A request as ASGI tells it: the clocks, the scope and one walk over its headers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flx_core::admission::credentials;
use flx_core::admission::head::{Field, Head};
use flx_core::error::Reason;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use rustix::time::{ClockId, clock_gettime};

use crate::admitted::RequestId;
use crate::errors::finite;

/// Two clocks, read or given.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) s: f64,
    pub(crate) ns: u64,
}

/// A value of a header, alive for as long as it is needed.
#[derive(Clone)]
pub(crate) enum Value<'py> {
    Bytes(Bound<'py, PyBytes>),
    Text(Bound<'py, PyString>),
}

impl AsRef<[u8]> for Value<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Bytes(value) => value.as_bytes(),
            // What is no UTF-8 has no acceptable value.
            Self::Text(value) => value.to_str().map_or(b"\xff", str::as_bytes),
        }
    }
}

/// A value of a header that came as an object of Python, or as bytes of the lane's server.
pub(crate) trait Carried: AsRef<[u8]> {
    /// It as the id of a request, which it was found fit for.
    fn id(&self) -> RequestId;
}

impl Carried for Value<'_> {
    fn id(&self) -> RequestId {
        match self {
            Self::Bytes(given) => RequestId::Given(given.clone().unbind()),
            Self::Text(given) => RequestId::Told(given.to_string()),
        }
    }
}

impl Carried for &[u8] {
    fn id(&self) -> RequestId {
        RequestId::Told(String::from_utf8_lossy(self).into_owned())
    }
}

/// A time in nanoseconds, as Python gives it. Python reads a number of this size into a signed word in a fifth of the steps
/// that it takes into an unsigned one.
#[derive(Clone, Copy)]
pub(crate) struct Nanoseconds(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for Nanoseconds {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.extract::<i64>().ok().and_then(|ns| u64::try_from(ns).ok()) {
            Some(ns) => Ok(Self(ns)),
            None => given.extract().map(Self),
        }
    }
}

impl Now {
    pub(crate) fn of(s: Option<f64>, given: Option<u64>) -> PyResult<Self> {
        let ns = given.unwrap_or_else(monotonic_ns);
        let s = match (s, given) {
            (Some(s), _) => finite(s)?,
            (None, Some(_)) => read(ClockId::Realtime) as f64 / 1e9,
            (None, None) => wall_s(ns),
        };
        Ok(Self { s, ns })
    }

    /// Nanoseconds since then; nothing where the time was given.
    pub(crate) fn elapsed(then: Self) -> u64 {
        monotonic_ns().saturating_sub(then.ns)
    }
}

pub(crate) fn monotonic_ns() -> u64 {
    read(ClockId::Monotonic)
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// For how long the distance of the two clocks is believed: a step of the wall clock is noticed within this.
const CLOCKS_AGREE_NS: u64 = 50_000_000;
/// What the wall clock is ahead of the monotonic one, and when, by the latter, that was found.
static AHEAD_NS: AtomicU64 = AtomicU64::new(0);
static FOUND_NS: AtomicU64 = AtomicU64::new(0);

/// Seconds since 1970 at a monotonic time of this moment, without reading a second clock each time.
fn wall_s(ns: u64) -> f64 {
    if ns.wrapping_sub(FOUND_NS.load(Relaxed)) >= CLOCKS_AGREE_NS {
        AHEAD_NS.store(read(ClockId::Realtime).wrapping_sub(ns), Relaxed);
        FOUND_NS.store(ns, Relaxed);
    }
    ns.wrapping_add(AHEAD_NS.load(Relaxed)) as f64 / 1e9
}

pub(crate) fn text<'py>(scope: &Bound<'py, PyDict>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyString>> {
    let value = scope.get_item(name)?.ok_or_else(|| PyTypeError::new_err("a scope without what every scope has"))?;
    Ok(value.cast_into::<PyString>()?)
}

/// The path as it came; decoded only where the server kept nothing else.
pub(crate) fn raw_path<'py>(scope: &Bound<'py, PyDict>) -> PyResult<Value<'py>> {
    let py = scope.py();
    if let Some(raw) = scope.get_item(intern!(py, "raw_path"))?
        && let Ok(raw) = raw.cast_into::<PyBytes>()
        && !raw.as_bytes().is_empty()
    {
        return Ok(Value::Bytes(raw));
    }
    text(scope, intern!(py, "path")).map(Value::Text)
}

pub(crate) fn peer<'py>(scope: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyString>>> {
    let client = scope.get_item(intern!(scope.py(), "client"))?.filter(|client| !client.is_none());
    let first = |client: Bound<'py, PyAny>| match client.cast::<PyTuple>() {
        Ok(pair) => pair.get_item(0),
        Err(_) => client.get_item(0),
    };
    client.map(|client| Ok(first(client)?.cast_into::<PyString>()?)).transpose()
}

/// Whether this is HTTP/1: looked up for those few requests of which it decides something.
#[derive(Clone, Copy)]
pub(crate) enum Version<'a, 'py> {
    /// In a scope of ASGI.
    In(&'a Bound<'py, PyDict>),
    /// Of a scope of RSGI.
    Of(&'a Bound<'py, PyAny>),
}

impl Version<'_, '_> {
    pub(crate) fn is_http1(self) -> PyResult<bool> {
        let version = match self {
            Self::In(scope) => scope.get_item(intern!(scope.py(), "http_version"))?,
            Self::Of(scope) => Some(scope.getattr(intern!(scope.py(), "http_version"))?),
        };
        version.map_or(Ok(true), |version| Ok(version.cast::<PyString>()?.to_str()?.starts_with('1')))
    }
}

/// Whether the scheme is this one, the one over TLS.
pub(crate) fn is_secure(scope: &Bound<'_, PyDict>, secure: &str) -> PyResult<bool> {
    let py = scope.py();
    let scheme = scope.get_item(intern!(py, "scheme"))?;
    // Servers use one object for it, mostly this one.
    Ok(scheme.is_some_and(|scheme| {
        !scheme.is(intern!(py, "http")) && scheme.cast::<PyString>().is_ok_and(|scheme| scheme == secure)
    }))
}

/// `1.2.3.4:5` and `[::1]:5` without the port.
pub(crate) fn without_port(peer: &str) -> &str {
    let bare = peer.rsplit_once(':').map_or(peer, |(address, _)| address);
    bare.strip_prefix('[').and_then(|bare| bare.strip_suffix(']')).unwrap_or(if bare.contains(':') {
        peer
    } else {
        bare
    })
}

/// One walk over a header list.
pub(crate) fn walk<'py>(head: &mut Head<Value<'py>>, scope: &Bound<'py, PyDict>) -> PyResult<()> {
    let Some(headers) = scope.get_item(intern!(scope.py(), "headers"))? else { return Ok(()) };
    let list = headers.cast_into::<PyList>().or_else(|other| listed(&other.into_inner()))?;
    for header in list.iter() {
        let header = header.cast::<PyTuple>().map_err(|_| wrong())?;
        let [name, value, ..] = header.as_slice() else { return Err(wrong()) };
        // The value is only looked at when it matters.
        if let Ok(name) = name.cast::<PyBytes>() {
            if let Some(field) = Field::of(name.as_bytes()) {
                head.take(field, Value::Bytes(value.cast::<PyBytes>().map_err(|_| wrong())?.to_owned()));
            }
        } else {
            let name = name.cast::<PyString>().map_err(|_| wrong())?;
            if let Some(field) = Field::of(name.to_str().unwrap_or_default().as_bytes()) {
                head.take(field, Value::Text(value.cast::<PyString>().map_err(|_| wrong())?.to_owned()));
            }
        }
    }
    Ok(())
}

#[cold]
fn listed<'py>(headers: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    PyList::new(headers.py(), headers.try_iter()?.collect::<PyResult<Vec<_>>>()?)
}

#[cold]
fn wrong() -> PyErr {
    PyTypeError::new_err("headers are tuples of two bytes or str objects")
}

/// What `Authorization` says.
pub(crate) fn bearer<V: AsRef<[u8]>>(head: &Head<V>) -> Result<&[u8], Reason> {
    head.authorization.only().and_then(|value| credentials::bearer(value.as_ref()))
}

/// A header that is needed later: the server's own object, which costs less than a copy.
pub(crate) enum Kept {
    Bytes(Py<PyBytes>),
    Text(Py<PyString>),
    /// A copy, where there is no such object.
    Own(Box<[u8]>),
}

impl Kept {
    pub(crate) fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match self {
            Self::Bytes(value) => value.as_bytes(py),
            // As `Value` has it.
            Self::Text(value) => value.to_str(py).map_or(b"\xff", str::as_bytes),
            Self::Own(value) => value,
        }
    }
}

pub(crate) fn kept(value: Option<&Value<'_>>) -> Option<Kept> {
    value.map(|value| match value {
        Value::Bytes(value) => Kept::Bytes(value.clone().unbind()),
        Value::Text(value) => Kept::Text(value.clone().unbind()),
    })
}
