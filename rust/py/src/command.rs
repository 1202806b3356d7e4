//! `PlainCommands` and `PlainCommand`: a command that asks for nothing special, from its body to its answer.
//!
//! Rules:
//! - nothing is charged, counted or made before it is certain that the command is plain and permitted: whoever is told that
//!   it is not begins anew, the general way;
//! - its phases are counted here: `authorise` and `dispatch` when it is read, `upstream` when it is answered, `respond` when
//!   it is over.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flx_core::command::answer::{Answer, Item};
use flx_core::command::catalog::{Catalog, Entry, Repeat};
use flx_core::command::frame::{Frame, join, whole};
use flx_core::command::request::{Plain, is_key, plain};
use flx_core::metrics::{AUTHORISE, DISPATCH, RESPOND, UPSTREAM};
use http::Response;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::admission::Admission;
use crate::admitted::{Admitted, needs_length};
use crate::answer::{Parts, line};
use crate::request::{Now, monotonic_ns};
use crate::sheet::Listed;
use crate::window::seed;

/// name, what repeating it means, whether its answer may be shared, whether it is vital, the roles that may call it
type GivenCommand = (Py<PyString>, String, bool, bool, Vec<String>);

const OK: u16 = 200;

/// What the shell knows of a command beside the core's entry.
struct Extra {
    name: Py<PyString>,
    shared: bool,
    vital: bool,
    class: Option<usize>,
}

/// The commands that may be plain, with the limits of one gateway.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct PlainCommands {
    admission: Py<Admission>,
    catalog: Catalog<Extra>,
    deadline_ms: u32,
    made_key: String,
}

#[pymethods]
impl PlainCommands {
    #[new]
    #[pyo3(signature = (admission, commands, *, deadline_ms, made_key))]
    fn new(
        py: Python<'_>,
        admission: Py<Admission>,
        commands: Vec<GivenCommand>,
        deadline_ms: u32,
        made_key: String,
    ) -> PyResult<Self> {
        let mut entries = Vec::with_capacity(commands.len());
        for (name, repeat, shared, vital, roles) in commands {
            let text = name.to_str(py)?.to_owned();
            let repeat = Repeat::named(&repeat)
                .ok_or_else(|| PyValueError::new_err("a command is read, idempotent, key or none"))?;
            let class = admission.get().class_in_body(&text);
            entries.push((text, Entry { repeat, roles, extra: Extra { name, shared, vital, class } }));
        }
        Ok(Self { admission, catalog: Catalog::new(entries), deadline_ms, made_key })
    }

    /// Reads the body of a request, decides about its command and makes its frame; None, and nothing done, when it is to go
    /// the general way.
    #[pyo3(signature = (admitted, body, since_ns, *, now_s=None))]
    pub(crate) fn read(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        body: &[u8],
        since_ns: u64,
        now_s: Option<f64>,
    ) -> PyResult<Option<PlainCommand>> {
        let it = admitted.get();
        let Some(mut found) = plain(body) else { return Ok(None) };
        let Ok(header) = key(py, it) else { return Ok(None) };
        match (header, found.idempotency_key) {
            (Some(header), Some(key)) if header != key => return Ok(None),
            (header, key) => found.idempotency_key = header.or(key),
        }
        self.made(py, admitted, &found, Some(since_ns), Now::of(now_s, None)?)
    }

    /// Decides about operations of a request from `first` on, at most `count`, up to the first that is not plain: about it
    /// nothing is done. Each with its place. No phase is counted: they are the whole request's.
    fn operations<'py>(
        &self,
        py: Python<'py>,
        admitted: &Bound<'py, Admitted>,
        operations: &Bound<'py, PyList>,
        first: usize,
        count: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = PyList::empty(py);
        let now = Now::of(None, None)?;
        for (place, operation) in operations.iter().enumerate().skip(first).take(count) {
            let Some(command) = self.operation(py, admitted, &operation, now)? else { break };
            found.append((place, command))?;
        }
        Ok(found)
    }
}

impl PlainCommands {
    fn operation(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        operation: &Bound<'_, PyAny>,
        now: Now,
    ) -> PyResult<Option<PlainCommand>> {
        let wait_ms = operation.getattr(intern!(py, "wait_ms"))?;
        if operation.getattr(intern!(py, "dry_run"))?.is_truthy()? || wait_ms.is_truthy()? {
            return Ok(None);
        }
        let text = |name: &Bound<'_, PyString>| operation.getattr(name)?.extract::<Option<PyBackedStr>>();
        let Some(command) = text(intern!(py, "command"))? else { return Ok(None) };
        let (key, environment) = (text(intern!(py, "idempotency_key"))?, text(intern!(py, "environment"))?);
        let args = PyBuffer::<u8>::get(&operation.getattr(intern!(py, "args"))?)?.to_vec(py)?;
        let Ok(args) = str::from_utf8(&args) else { return Ok(None) };
        let found = Plain {
            command: &command,
            args,
            idempotency_key: key.as_deref(),
            environment: environment.as_deref(),
            deadline_ms: operation.getattr(intern!(py, "deadline_ms"))?.extract()?,
        };
        self.made(py, admitted, &found, None, now)
    }

    fn made(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        found: &Plain<'_>,
        since_ns: Option<u64>,
        now: Now,
    ) -> PyResult<Option<PlainCommand>> {
        let it = admitted.get();
        let Some(known) = it.known.as_deref() else { return Ok(None) };
        let Some(entry) = self.catalog.permitted(found.command, &known.principal.roles) else { return Ok(None) };
        let Ok(traceparent) = ascii(it.traceparent.as_ref().map(|it| it.bytes(py))) else { return Ok(None) };
        let gateway = self.admission.get();
        if let Some(class) = entry.extra.class {
            let decision = gateway.later(py, it, class, now)?;
            if decision.refusal.is_some() {
                // A refusal charges nothing: it is found again, and told, the general way.
                return Ok(None);
            }
            gateway.count_shadows(&decision);
        }
        let authorised = monotonic_ns();
        let key = match (found.idempotency_key, entry.repeat) {
            (Some(key), _) => key.to_owned(),
            (None, Repeat::Keyed) => self.new_key()?,
            (None, _) => String::new(),
        };
        let deadline_ms = found.deadline_ms.unwrap_or(self.deadline_ms);
        let frame = Frame {
            command: found.command,
            args: found.args,
            principal: Some(&known.principal),
            idempotency_key: &key,
            deadline_unix_ms: (now.s * 1e3) as u64 + u64::from(deadline_ms),
            request_id: &it.request_id.text(py, gateway.id_prefix()),
            traceparent: traceparent.unwrap_or_default(),
            environment: found.environment.unwrap_or_default(),
            client_address: it.client.text(py)?,
        };
        let frame = frame.encoded();
        let mut mark = authorised;
        if let Some(since) = since_ns {
            let counters = gateway.counters();
            counters.phase(AUTHORISE, authorised.saturating_sub(since));
            mark = monotonic_ns();
            counters.phase(DISPATCH, mark.saturating_sub(authorised));
        }
        Ok(Some(PlainCommand {
            admitted: admitted.clone().unbind(),
            command: entry.extra.name.clone_ref(py),
            frame,
            key,
            args: found.args.into(),
            environment: found.environment.map(Into::into),
            deadline_s: f64::from(deadline_ms) / 1e3,
            reads: entry.repeat == Repeat::Read,
            shared: entry.extra.shared,
            vital: entry.extra.vital,
            seq: AtomicU64::new(0),
            mark_ns: AtomicU64::new(mark),
        }))
    }

    fn new_key(&self) -> PyResult<String> {
        let (one, other) = seed()?;
        Ok(format!("{}{one:016x}{other:016x}", self.made_key))
    }
}

/// What cannot be had this way.
struct NotPlain;

fn ascii(value: Option<&[u8]>) -> Result<Option<&str>, NotPlain> {
    let text = value.map(str::from_utf8).transpose().map_err(|_| NotPlain)?;
    if text.is_none_or(str::is_ascii) { Ok(text) } else { Err(NotPlain) }
}

/// The key of the header.
fn key<'a>(py: Python<'a>, admitted: &'a Admitted) -> Result<Option<&'a str>, NotPlain> {
    let key = ascii(admitted.idempotency_key.as_ref().map(|key| key.bytes(py)))?;
    if key.is_none_or(is_key) { Ok(key) } else { Err(NotPlain) }
}

/// One command, ready to travel. Its names are those of a `CommandFrame`.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct PlainCommand {
    admitted: Py<Admitted>,
    #[pyo3(get)]
    pub(crate) command: Py<PyString>,
    frame: Vec<u8>,
    key: String,
    args: Box<str>,
    environment: Option<Box<str>>,
    #[pyo3(get)]
    pub(crate) deadline_s: f64,
    /// It changes nothing.
    #[pyo3(get)]
    reads: bool,
    /// Its answer may be another one's as well.
    #[pyo3(get)]
    pub(crate) shared: bool,
    /// It passes when others are refused.
    #[pyo3(get)]
    pub(crate) vital: bool,
    seq: AtomicU64,
    mark_ns: AtomicU64,
}

#[pymethods]
impl PlainCommand {
    #[getter]
    fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    #[setter]
    pub(crate) fn set_seq(&self, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
    }

    #[getter]
    fn idempotency_key(&self) -> &str {
        &self.key
    }

    /// It waits for nothing by nature.
    #[getter]
    #[expect(clippy::unused_self, reason = "it is a property in Python")]
    fn wait_ms(&self) -> u64 {
        0
    }

    #[getter]
    fn args<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.args.as_bytes())
    }

    #[getter]
    fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// When its last phase ended, in monotonic nanoseconds.
    #[getter]
    fn mark_ns(&self) -> u64 {
        self.mark_ns.load(Ordering::Relaxed)
    }

    /// As a `CommandFrame`.
    #[pyo3(name = "SerializeToString")]
    fn serialize<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &whole(self.seq(), &self.frame))
    }

    /// The whole answer: the two messages of ASGI, or the three arguments of RSGI. `own`: headers beside those of every
    /// response.
    pub(crate) fn answer<'py>(
        &self,
        py: Python<'py>,
        result: &[u8],
        replayed: bool,
        own: Vec<Bound<'py, PyTuple>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let it = self.admitted.get();
        let gateway = it.by.get();
        let request_id = it.request_id.text(py, gateway.id_prefix());
        let body = PyBytes::new(py, &self.body(py, &request_id, result, replayed)?);
        let answers = gateway.answers();
        let mut sheet = Listed::new(py, it.face, own.len());
        sheet.lines.push(answers.json(it.face).bind(py).clone());
        for header in own {
            sheet.lines.push(line(it.face, &header)?);
        }
        let parts = Parts { request_id: &request_id, secure: it.secure, told: it.told };
        answers.finish(&mut sheet, &parts, false)?;
        if needs_length(it.face, false) {
            sheet.lines.push(answers.length(py, it.face, body.as_bytes().len() as u64)?);
        }
        let list = PyList::new(py, sheet.lines)?;
        crate::answer::whole(py, it.face, OK, &list, &body, None)
    }

    /// Counts the request as over.
    pub(crate) fn over(&self, status: u16) {
        let now = self.passed(RESPOND);
        self.admitted.get().over_at(status, now);
    }
}

impl PlainCommand {
    /// Whether there is something to be looked at before it leaves with others.
    pub(crate) fn is_marked(&self) -> bool {
        self.shared || self.vital
    }

    /// The whole answer for the lane.
    pub(crate) fn native_answer(&self, py: Python<'_>, result: &[u8], replayed: bool) -> PyResult<Response<Bytes>> {
        let it = self.admitted.get();
        let gateway = it.by.get();
        let request_id = it.request_id.text(py, gateway.id_prefix());
        let body = self.body(py, &request_id, result, replayed)?;
        let parts = Parts { request_id: &request_id, secure: it.secure, told: it.told };
        gateway.answers().native_result(body, &parts)
    }

    /// The body of the answer; with it the phase of the upstream is over.
    fn body(&self, py: Python<'_>, request_id: &str, result: &[u8], replayed: bool) -> PyResult<Vec<u8>> {
        let now = self.passed(UPSTREAM);
        let duration_us = now.saturating_sub(self.admitted.get().started_ns) / 1_000;
        let command = self.command.to_str(py)?;
        Ok(Answer { request_id, command, result, duration_us, replayed }.encoded())
    }

    /// A phase is over; the time since the one before is its. Tells the moment.
    fn passed(&self, phase: usize) -> u64 {
        let now = monotonic_ns();
        let before = self.mark_ns.swap(now, Ordering::Relaxed);
        self.admitted.get().by.get().counters().phase(phase, now.saturating_sub(before));
        now
    }
}

/// The results of operations as JSON, each with its place; and how many there were of each command. `results`: the place of
/// each, its result, and whether that is an earlier one's; `meta`: what is said beside one of now.
#[pyfunction]
#[expect(clippy::type_complexity, reason = "two lists")]
pub(crate) fn batch_results<'py>(
    py: Python<'py>,
    results: &Bound<'py, PyList>,
    operations: &Bound<'py, PyList>,
    request_id: &str,
    meta: &[u8],
    replayed_meta: &[u8],
) -> PyResult<(Bound<'py, PyList>, Vec<(Bound<'py, PyString>, usize)>)> {
    let encoded = PyList::empty(py);
    let mut counted: Vec<(Bound<'py, PyString>, usize)> = Vec::new();
    for found in results.iter() {
        let (index, result, replayed) = found.extract::<(usize, PyBackedBytes, bool)>()?;
        let command = operations.get_item(index)?.getattr(intern!(py, "command"))?.cast_into::<PyString>()?;
        let text = command.to_str()?;
        let meta = if replayed { replayed_meta } else { meta };
        let item = Item { index, request_id, command: text, result: &result, meta };
        encoded.append((index, PyBytes::new(py, &item.encoded())))?;
        match counted.iter_mut().find(|(known, _)| known.is(&command) || known.to_str().is_ok_and(|it| it == text)) {
            Some((_, count)) => *count += 1,
            None => counted.push((command.clone(), 1)),
        }
    }
    Ok((encoded, counted))
}

/// Frames as a `CommandBatch`: plain commands, and whatever has a `SerializeToString`.
#[pyfunction]
pub(crate) fn joined<'py>(py: Python<'py>, frames: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyBytes>> {
    let mut batch = Vec::with_capacity(256 * frames.len());
    for frame in frames.iter() {
        if let Ok(plain) = frame.cast::<PlainCommand>() {
            join(&mut batch, plain.get().seq(), &plain.get().frame);
        } else {
            let bytes = frame.call_method0(intern!(py, "SerializeToString"))?.cast_into::<PyBytes>()?;
            join(&mut batch, 0, bytes.as_bytes());
        }
    }
    Ok(PyBytes::new(py, &batch))
}
