//! Whole answers and the headers that every response carries, built without a call into Python.
//!
//! Rules:
//! - the words of an answer come from the gateway's one place for them (`flx_api.gateway.responses`), as templates with a
//!   gap where the request id goes; here only numbers are patched in;
//! - a header that never changes is one tuple, made once for each face: ASGI takes bytes, RSGI takes text, the lane's server
//!   has types of its own;
//! - one that is the same in most refusals in a row is made anew when it is not: a flood must cost less than what it keeps
//!   from being answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flx_core::decimal::Decimal;
use http::{HeaderName, Response, StatusCode};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::admitted::needs_length;
use crate::principal::Page;
use crate::sheet::{Listed, NativeLine, Sheet, native};

/// The interface that an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// Two messages, headers of bytes.
    Asgi,
    /// The arguments of one call, headers of text.
    Rsgi,
}

/// A header that never changes, for each face and for the lane.
pub(crate) struct Line {
    asgi: Py<PyTuple>,
    rsgi: Py<PyTuple>,
    pub(crate) native: NativeLine,
}

impl Line {
    fn new(asgi: &Bound<'_, PyTuple>) -> PyResult<Self> {
        Ok(Self { rsgi: line(Face::Rsgi, asgi)?.unbind(), native: native(asgi)?, asgi: asgi.clone().unbind() })
    }

    pub(crate) fn of(&self, face: Face) -> &Py<PyTuple> {
        match face {
            Face::Asgi => &self.asgi,
            Face::Rsgi => &self.rsgi,
        }
    }
}

fn lines(given: &[Bound<'_, PyTuple>]) -> PyResult<Vec<Line>> {
    given.iter().map(Line::new).collect()
}

/// A header of ours, which is of bytes, as a face takes it.
pub(crate) fn line<'py>(face: Face, header: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    if face == Face::Asgi {
        return Ok(header.clone());
    }
    let text = |at: usize| {
        let bytes = header.get_borrowed_item(at)?;
        PyString::from_bytes(header.py(), bytes.cast::<PyBytes>()?.as_bytes())
    };
    PyTuple::new(header.py(), [text(0)?, text(1)?])
}

/// The headers of an answer, on their way into a list.
pub(crate) type Lines<'py> = Vec<Bound<'py, PyTuple>>;

/// So many an answer has at most, but for what CORS adds.
pub(crate) const LINES: usize = 16;

/// The name of a header whose value is another each time.
pub(crate) struct Name {
    asgi: Py<PyBytes>,
    rsgi: Py<PyString>,
    pub(crate) native: HeaderName,
}

impl Name {
    fn new(py: Python<'_>, name: &'static str) -> Self {
        let asgi = PyBytes::new(py, name.as_bytes()).unbind();
        Self { asgi, rsgi: PyString::new(py, name).unbind(), native: HeaderName::from_static(name) }
    }

    pub(crate) fn with<'py>(&self, py: Python<'py>, face: Face, value: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
        match face {
            Face::Asgi => PyTuple::new(py, [self.asgi.bind(py).clone(), PyBytes::new(py, value)]),
            Face::Rsgi => PyTuple::new(py, [self.rsgi.bind(py).clone(), PyString::from_bytes(py, value)?]),
        }
    }
}

/// Lengths of bodies that are told by tuples made once: those of nearly all answers.
const SHORT: usize = 1_024;

/// Whether two headers of ours say the same.
fn same(one: &Bound<'_, PyTuple>, other: &Bound<'_, PyTuple>) -> PyResult<bool> {
    for at in 0..2 {
        let (one, other) = (one.get_borrowed_item(at)?, other.get_borrowed_item(at)?);
        if !one.is(other) && one.cast::<PyBytes>()?.as_bytes() != other.cast::<PyBytes>()?.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A header that says the same as the last time more often than not.
#[derive(Default)]
pub(crate) struct Memo {
    last: Mutex<Option<(u64, Face, Py<PyTuple>)>>,
}

impl Memo {
    /// The header of this number.
    pub(crate) fn header<'py>(
        &self,
        py: Python<'py>,
        face: Face,
        number: u64,
        make: impl FnOnce() -> PyResult<Bound<'py, PyTuple>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        if let Some((known, its_face, header)) = &*self.lock()
            && (*known, *its_face) == (number, face)
        {
            return Ok(header.bind(py).clone());
        }
        // Without the lock: what Python makes may run Python, and that another thread, which waits for the lock.
        let made = make()?;
        let before = self.lock().replace((number, face, made.clone().unbind()));
        drop(before);
        Ok(made)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, Face, Py<PyTuple>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// (status, headers, body before the request id, body after it)
pub(crate) type Given<'py> = (u16, Vec<Bound<'py, PyTuple>>, Vec<u8>, Vec<u8>);

/// A problem document but for its request id.
pub(crate) struct Template {
    status: u16,
    headers: Vec<Line>,
    before: Vec<u8>,
    after: Vec<u8>,
    retry_after: Memo,
}

impl Template {
    pub(crate) fn of(given: Given<'_>) -> PyResult<Self> {
        let (status, headers, before, after) = given;
        Ok(Self { status, headers: lines(&headers)?, before, after, retry_after: Memo::default() })
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Its headers, but for those that every response carries and its length.
    fn head<S: Sheet>(
        &self,
        sheet: &mut S,
        answers: &Answers,
        retry_after_s: Option<u64>,
        close: bool,
    ) -> PyResult<()> {
        for line in &self.headers {
            sheet.ready(line);
        }
        if let Some(seconds) = retry_after_s {
            sheet.seldom_new(&self.retry_after, seconds, &answers.retry_after, || {
                Decimal::of(seconds).as_bytes().to_vec()
            })?;
        }
        if close {
            sheet.ready(&answers.close);
        }
        Ok(())
    }

    fn body(&self, request_id: &str) -> Vec<u8> {
        [&self.before, request_id.as_bytes(), &self.after].concat()
    }
}

/// What a rate-limit policy puts into headers.
pub(crate) struct WindowLines {
    /// `RateLimit-Policy`, whole.
    policy: Line,
    /// `"name";r=`
    prefix: Vec<u8>,
    /// What it says when nothing remains.
    used_up: Memo,
    /// The refusal of this policy.
    pub(crate) refusal: Template,
}

impl WindowLines {
    pub(crate) fn new(py: Python<'_>, name: &str, limit: u32, window_ms: u64, refusal: Template) -> PyResult<Self> {
        let window_s = window_ms.div_ceil(1_000);
        let policy = format!("\"{name}\";q={limit};w={window_s}");
        let policy = PyTuple::new(py, [PyBytes::new(py, b"ratelimit-policy"), PyBytes::new(py, policy.as_bytes())])?;
        let prefix = format!("\"{name}\";r=").into_bytes();
        Ok(Self { policy: Line::new(&policy)?, prefix, used_up: Memo::default(), refusal })
    }
}

/// What one window said, in whole seconds.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    pub(crate) policy: usize,
    pub(crate) remaining: u32,
    pub(crate) reset_s: u64,
}

/// Headers and templates of one gateway.
pub(crate) struct Answers {
    common: Vec<Line>,
    /// Unless a response brings its own.
    content_security: Line,
    /// Over TLS only.
    transport_security: Line,
    close: Line,
    json: Line,
    vary: Line,
    request_id: Name,
    ratelimit: Name,
    retry_after: Name,
    content_length: Name,
    /// Content-Length for ASGI, by length.
    lengths: Box<[PyOnceLock<Py<PyTuple>>]>,
    pub(crate) windows: Vec<WindowLines>,
}

/// What a response is put together from.
pub(crate) struct Parts<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) secure: bool,
    pub(crate) told: Option<Told>,
}

impl Answers {
    pub(crate) fn new(
        py: Python<'_>,
        common: &[Bound<'_, PyTuple>],
        content_security: &Bound<'_, PyTuple>,
        transport_security: &Bound<'_, PyTuple>,
        windows: Vec<WindowLines>,
    ) -> PyResult<Self> {
        let pair = |name, value| PyTuple::new(py, [PyBytes::new(py, name), PyBytes::new(py, value)]);
        Ok(Self {
            common: lines(common)?,
            content_security: Line::new(content_security)?,
            transport_security: Line::new(transport_security)?,
            close: Line::new(&pair(b"connection", b"close")?)?,
            json: Line::new(&pair(b"content-type", b"application/json")?)?,
            vary: Line::new(&pair(b"vary", b"Accept")?)?,
            request_id: Name::new(py, "x-request-id"),
            ratelimit: Name::new(py, "ratelimit"),
            retry_after: Name::new(py, "retry-after"),
            content_length: Name::new(py, "content-length"),
            lengths: std::iter::repeat_with(PyOnceLock::new).take(SHORT).collect(),
            windows,
        })
    }

    /// The media type of an answer; and that it depends on what is accepted.
    pub(crate) fn of_json<S: Sheet>(&self, sheet: &mut S, varies: bool) {
        sheet.ready(&self.json);
        if varies {
            sheet.ready(&self.vary);
        }
    }

    /// Content-Length.
    pub(crate) fn length<'py>(&self, py: Python<'py>, face: Face, length: u64) -> PyResult<Bound<'py, PyTuple>> {
        let make = || self.content_length.with(py, face, Decimal::of(length).as_bytes());
        let kept = usize::try_from(length).ok().and_then(|at| self.lengths.get(at)).filter(|_| face == Face::Asgi);
        match kept {
            Some(kept) => Ok(kept.get_or_try_init(py, || Ok::<_, PyErr>(make()?.unbind()))?.bind(py).clone()),
            None => make(),
        }
    }

    /// A header of ours as a face takes it; what nearly all answers have is one object for all of them.
    pub(crate) fn line<'py>(&self, face: Face, header: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, json) = (header.py(), self.json.asgi.bind(header.py()));
        if same(header, json)? { Ok(self.json.of(face).bind(py).clone()) } else { line(face, header) }
    }

    /// The headers that every response carries; `sheet` holds its own already.
    pub(crate) fn finish<S: Sheet>(&self, sheet: &mut S, parts: &Parts<'_>, own_security: bool) -> PyResult<()> {
        for line in &self.common {
            sheet.ready(line);
        }
        sheet.value(&self.request_id, parts.request_id.as_bytes())?;
        if !own_security {
            sheet.ready(&self.content_security);
        }
        if parts.secure {
            sheet.ready(&self.transport_security);
        }
        let Some(told) = parts.told else { return Ok(()) };
        let window = &self.windows[told.policy];
        sheet.ready(&window.policy);
        let make = || {
            let mut value = Vec::with_capacity(window.prefix.len() + 24);
            value.extend_from_slice(&window.prefix);
            value.extend_from_slice(Decimal::of(u64::from(told.remaining)).as_bytes());
            value.extend_from_slice(b";t=");
            value.extend_from_slice(Decimal::of(told.reset_s).as_bytes());
            value
        };
        if told.remaining == 0 {
            sheet.seldom_new(&window.used_up, told.reset_s, &self.ratelimit, make)
        } else {
            sheet.value(&self.ratelimit, &make())
        }
    }

    /// A page as a whole answer.
    pub(crate) fn page<'py>(
        &self,
        py: Python<'py>,
        face: Face,
        page: &Page,
        parts: &Parts<'_>,
        head: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let mut sheet = Listed::new(py, face, 0);
        sheet.lines.extend(page.headers.iter().map(|line| line.bind(py).clone()));
        if needs_length(face, head) {
            sheet.lines.push(self.length(py, face, page.body.as_bytes(py).len() as u64)?);
        }
        self.finish(&mut sheet, parts, false)?;
        let list = PyList::new(py, sheet.lines)?;
        if head {
            return whole(py, face, page.status, &list, &PyBytes::new(py, b""), None);
        }
        whole(py, face, page.status, &list, page.body.bind(py), page.end.as_ref())
    }

    /// The same for the lane.
    pub(crate) fn native_page(&self, page: &Page, parts: &Parts<'_>) -> PyResult<Response<Bytes>> {
        let missing = || PyValueError::new_err("a page that was not kept for the lane");
        let (headers, body) = page.native.as_ref().ok_or_else(missing)?;
        let mut response = empty(page.status)?;
        response.headers_mut().extend(headers.iter().cloned());
        self.finish(response.headers_mut(), parts, false)?;
        *response.body_mut() = body.clone();
        Ok(response)
    }

    /// A template as a whole answer.
    #[expect(clippy::too_many_arguments, reason = "what the template leaves open")]
    pub(crate) fn problem<'py>(
        &self,
        py: Python<'py>,
        face: Face,
        template: &Template,
        parts: &Parts<'_>,
        retry_after_s: Option<u64>,
        close: bool,
        head: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let mut sheet = Listed::new(py, face, 0);
        template.head(&mut sheet, self, retry_after_s, close)?;
        self.finish(&mut sheet, parts, false)?;
        let body = template.body(parts.request_id);
        if needs_length(face, head) {
            sheet.lines.push(self.length(py, face, body.len() as u64)?);
        }
        let list = PyList::new(py, sheet.lines)?;
        let body = PyBytes::new(py, if head { b"" } else { &body });
        whole(py, face, template.status, &list, &body, None)
    }

    /// The same for the lane.
    pub(crate) fn native_problem(
        &self,
        template: &Template,
        parts: &Parts<'_>,
        retry_after_s: Option<u64>,
        close: bool,
    ) -> PyResult<Response<Bytes>> {
        let mut response = empty(template.status)?;
        template.head(response.headers_mut(), self, retry_after_s, close)?;
        self.finish(response.headers_mut(), parts, false)?;
        *response.body_mut() = template.body(parts.request_id).into();
        Ok(response)
    }

    /// A result for the lane.
    pub(crate) fn native_result(&self, body: Vec<u8>, varies: bool, parts: &Parts<'_>) -> PyResult<Response<Bytes>> {
        let mut response = empty(200)?;
        self.of_json(response.headers_mut(), varies);
        self.finish(response.headers_mut(), parts, false)?;
        *response.body_mut() = body.into();
        Ok(response)
    }
}

/// A response for the lane that says nothing yet.
fn empty(status: u16) -> PyResult<Response<Bytes>> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| PyValueError::new_err("no such status"))?;
    response.headers_mut().reserve(LINES);
    Ok(response)
}

/// A whole response: the two messages of ASGI, the second of which may be there already, or the three arguments of RSGI.
pub(crate) fn whole<'py>(
    py: Python<'py>,
    face: Face,
    status: u16,
    headers: &Bound<'py, PyList>,
    body: &Bound<'py, PyBytes>,
    end: Option<&Py<PyDict>>,
) -> PyResult<Bound<'py, PyTuple>> {
    if face == Face::Rsgi {
        return (status, headers, body).into_pyobject(py);
    }
    let start = PyDict::new(py);
    start.set_item(intern!(py, "type"), intern!(py, "http.response.start"))?;
    start.set_item(intern!(py, "status"), status)?;
    start.set_item(intern!(py, "headers"), headers)?;
    let end = end.map_or_else(|| last(py, body), |end| Ok(end.bind(py).clone()))?;
    PyTuple::new(py, [start, end])
}

/// The message of ASGI with a whole body.
pub(crate) fn last<'py>(py: Python<'py>, body: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyDict>> {
    let end = PyDict::new(py);
    end.set_item(intern!(py, "type"), intern!(py, "http.response.body"))?;
    end.set_item(intern!(py, "body"), body)?;
    Ok(end)
}
