//! `Admitted`: a request that may go on, with everything admission has learned about it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flx_core::admission::Known;
use flx_core::metrics::RESPOND;
use http::Response;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::admission::Admission;
use crate::answer::{Face, Parts, Told, last, line, whole};
use crate::counters::method_of;
use crate::principal::{Page, Principal, Shell};
use crate::request::{Kept, Nanoseconds, monotonic_ns};
use crate::sheet::{Listed, natives};

/// The id of a request, written out when somebody asks for it.
pub(crate) enum RequestId {
    /// The client's own.
    Given(Py<PyBytes>),
    /// The same, where it did not come as bytes.
    Told(String),
    /// A new one, by its number.
    New(u64),
}

impl RequestId {
    pub(crate) fn text<'a>(&'a self, py: Python<'a>, prefix: &str) -> Cow<'a, str> {
        match self {
            // It was found to be plain ASCII.
            Self::Given(bytes) => Cow::Borrowed(str::from_utf8(bytes.as_bytes(py)).unwrap_or_default()),
            other => other.native(prefix),
        }
    }

    /// The same without Python: for ids that did not come as an object of it.
    pub(crate) fn native(&self, prefix: &str) -> Cow<'_, str> {
        match self {
            Self::Given(_) => Cow::Borrowed(""),
            Self::Told(text) => Cow::Borrowed(text),
            Self::New(number) => {
                let mut text = String::with_capacity(prefix.len() + 17);
                text.push_str(prefix);
                text.push('-');
                let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
                for digit in (0..digits).rev() {
                    text.push(char::from(b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize]));
                }
                Cow::Owned(text)
            }
        }
    }
}

/// The client's address.
pub(crate) enum Client {
    /// The peer's, as the server has it.
    Peer(Py<PyString>),
    /// What a proxy or another face says.
    Told(String),
}

impl Client {
    pub(crate) fn text<'a>(&'a self, py: Python<'a>) -> PyResult<&'a str> {
        match self {
            Self::Peer(text) => text.to_str(py),
            Self::Told(text) => Ok(text),
        }
    }
}

/// A request that may go on.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Admitted {
    pub(crate) by: Py<Admission>,
    pub(crate) known: Option<Arc<Known<Shell>>>,
    /// Index of its route.
    #[pyo3(get)]
    pub(crate) route: usize,
    /// The values in its path, decoded.
    #[pyo3(get)]
    pub(crate) values: Py<PyTuple>,
    pub(crate) request_id: RequestId,
    pub(crate) client: Client,
    /// Its `X-API-Key`, for what is decided about it later.
    pub(crate) api_key: Option<Kept>,
    /// Its `Idempotency-Key` and `traceparent`, for the frame of a command.
    pub(crate) idempotency_key: Option<Kept>,
    pub(crate) traceparent: Option<Kept>,
    /// Bytes of its body: 0 when there is none, None when it ends when it ends.
    #[pyo3(get)]
    pub(crate) length: Option<u64>,
    /// When it was received, in monotonic nanoseconds.
    #[pyo3(get)]
    pub(crate) started_ns: u64,
    pub(crate) method: usize,
    pub(crate) secure: bool,
    pub(crate) told: Option<Told>,
    pub(crate) face: Face,
}

#[pymethods]
impl Admitted {
    /// Its id: the client's own, or a new one.
    #[getter]
    fn request_id<'a>(&'a self, py: Python<'a>) -> Cow<'a, str> {
        self.request_id.text(py, self.by.get().id_prefix())
    }

    /// The client's address.
    #[getter]
    fn client<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        match &self.client {
            Client::Peer(text) => text.bind(py).clone(),
            Client::Told(text) => PyString::new(py, text),
        }
    }

    /// Who asks; None when nobody had to say.
    #[getter]
    fn principal(&self, py: Python<'_>) -> PyResult<Option<Py<Principal>>> {
        let known = self.known.as_deref();
        known.map(|known| known.shell.object(py, &known.principal)).transpose()
    }

    /// The headers of a response: its own, those that every response carries, and its length unless that is None or the
    /// server says it.
    #[pyo3(signature = (own, length))]
    fn headers<'py>(
        &self,
        py: Python<'py>,
        own: Vec<Bound<'py, PyTuple>>,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut own_security = false;
        for tuple in &own {
            own_security |= tuple.get_borrowed_item(0)?.cast::<PyBytes>()?.as_bytes() == b"content-security-policy";
        }
        let answers = self.by.get().answers();
        let mut sheet = Listed::new(py, self.face, own.len());
        for tuple in own {
            sheet.lines.push(answers.line(self.face, &tuple)?);
        }
        let request_id = self.request_id(py);
        answers.finish(&mut sheet, &self.parts(&request_id), own_security)?;
        if let Some(length) = length
            && needs_length(self.face, self.method == method_of("HEAD"))
        {
            sheet.lines.push(answers.length(py, self.face, length)?);
        }
        PyList::new(py, sheet.lines)
    }

    /// Remembers a whole answer that depends on nothing but the principal: the next such request gets it at once.
    fn keep(
        &self,
        py: Python<'_>,
        status: u16,
        headers: Vec<Bound<'_, PyTuple>>,
        body: Bound<'_, PyBytes>,
    ) -> PyResult<()> {
        if let Some(known) = self.known.as_deref() {
            let answers = self.by.get().answers();
            let is_on_lane = self.by.get().is_on_lane();
            let native = || Ok::<_, PyErr>((natives(&headers)?.into(), Bytes::copy_from_slice(body.as_bytes())));
            let native = is_on_lane.then(native).transpose()?;
            let headers = headers.into_iter().map(|it| Ok(answers.line(self.face, &it)?.unbind()));
            let headers = headers.collect::<PyResult<Box<[_]>>>()?;
            let end = (self.face == Face::Asgi && !is_on_lane).then(|| last(py, &body)).transpose()?.map(Bound::unbind);
            known.shell.keep(Page { route: self.route, status, headers, body: body.unbind(), end, native });
        }
        Ok(())
    }

    /// Counts the request as over; and the phase `respond`, where it is told when that began.
    #[pyo3(signature = (status, responded_since_ns=None))]
    fn over(&self, status: u16, responded_since_ns: Option<Nanoseconds>) {
        let now_ns = monotonic_ns();
        if let Some(Nanoseconds(since_ns)) = responded_since_ns {
            self.by.get().counters().phase(RESPOND, now_ns.saturating_sub(since_ns));
        }
        self.over_at(status, now_ns);
    }
}

impl Admitted {
    /// A whole answer with a body of JSON: the two messages of ASGI, or the three arguments of RSGI. `own`: headers beside those of
    /// every response; `varies`: it is another one to who accepts another type.
    pub(crate) fn json_answer<'py>(
        &self,
        py: Python<'py>,
        body: &[u8],
        varies: bool,
        own: Vec<Bound<'py, PyTuple>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let gateway = self.by.get();
        let answers = gateway.answers();
        let request_id = self.request_id.text(py, gateway.id_prefix());
        let mut sheet = Listed::new(py, self.face, own.len() + 1);
        answers.of_json(&mut sheet, varies);
        for header in own {
            sheet.lines.push(line(self.face, &header)?);
        }
        answers.finish(&mut sheet, &self.parts(&request_id), false)?;
        if needs_length(self.face, false) {
            sheet.lines.push(answers.length(py, self.face, body.len() as u64)?);
        }
        let list = PyList::new(py, sheet.lines)?;
        whole(py, self.face, 200, &list, &PyBytes::new(py, body), None)
    }

    /// The same for the lane.
    pub(crate) fn native_json_answer(&self, py: Python<'_>, body: Vec<u8>, varies: bool) -> PyResult<Response<Bytes>> {
        let gateway = self.by.get();
        let request_id = self.request_id.text(py, gateway.id_prefix());
        gateway.answers().native_result(body, varies, &self.parts(&request_id))
    }

    fn parts<'a>(&self, request_id: &'a str) -> Parts<'a> {
        Parts { request_id, secure: self.secure, told: self.told }
    }

    /// A phase is over; the time since `mark_ns`, where the one before ended, is its. Tells the moment, which is marked.
    pub(crate) fn passed(&self, phase: usize, mark_ns: &AtomicU64) -> u64 {
        let now_ns = monotonic_ns();
        let before = mark_ns.swap(now_ns, Ordering::Relaxed);
        self.by.get().counters().phase(phase, now_ns.saturating_sub(before));
        now_ns
    }

    pub(crate) fn over_at(&self, status: u16, now_ns: u64) {
        let nanoseconds = now_ns.saturating_sub(self.started_ns);
        self.by.get().counters().request(self.route, self.method, status, nanoseconds);
    }
}

/// The values in a path as Python has them.
pub(crate) fn values_of(py: Python<'_>, values: &[Cow<'_, str>]) -> PyResult<Py<PyTuple>> {
    Ok(match values {
        [] => PyTuple::empty(py).unbind(),
        values => PyTuple::new(py, values.iter().map(AsRef::<str>::as_ref))?.unbind(),
    })
}

/// Whether a response says how long it is. On RSGI the server does, and for less; but of a body that is not there it only
/// knows that it is empty.
pub(crate) fn needs_length(face: Face, is_head: bool) -> bool {
    face == Face::Asgi || is_head
}
