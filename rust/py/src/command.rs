//! `PlainCommands` and `PlainCommand`: a command that asks for nothing special, from its body to its answer.
//!
//! Rules:
//! - nothing is charged, counted or made before it is certain that the command is plain and permitted: whoever is told that
//!   it is not begins anew, the general way;
//! - its phases are counted here: `authorise` and `dispatch` when it is read, `upstream` when it is answered, `respond` when
//!   it is over.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flx_core::admission::Known;
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
use crate::admitted::Admitted;
use crate::batch::PlainBatch;
use crate::principal::Shell;
use crate::request::{Now, monotonic_ns};
use crate::window::seed;

/// name, what repeating it means, whether its answer may be shared, whether it is vital, the roles that may call it
type GivenCommand = (Py<PyString>, String, bool, bool, Vec<String>);

/// What the shell knows of a command beside the core's entry.
pub(crate) struct Extra {
    name: Py<PyString>,
    shared: bool,
    vital: bool,
    pub(crate) class: Option<usize>,
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
        self.made(py, admitted, &found, Some(since_ns), Now::of(now_s, None)?, false)
    }

    /// The same with the body of a batch.
    #[pyo3(name = "read_batch", signature = (admitted, body, since_ns))]
    fn given_batch(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        body: PyBackedBytes,
        since_ns: u64,
    ) -> PyResult<Option<PlainBatch>> {
        self.batch(py, admitted, Bytes::from_owner(body), since_ns)
    }

    /// Decides about operations of a request from `first` on, at most `count`, up to the first that is not plain: about it
    /// nothing is done. Each with its place. No phase is counted: they are the whole request's.
    /// The first `paid` of all were charged before.
    #[pyo3(signature = (admitted, operations, first, count, paid=0))]
    fn operations<'py>(
        &self,
        py: Python<'py>,
        admitted: &Bound<'py, Admitted>,
        operations: &Bound<'py, PyList>,
        first: usize,
        count: usize,
        paid: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = PyList::empty(py);
        let now = Now::of(None, None)?;
        for (place, operation) in operations.iter().enumerate().skip(first).take(count) {
            let Some(command) = self.operation(py, admitted, &operation, now, place < paid)? else { break };
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
        is_paid: bool,
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
        self.made(py, admitted, &found, None, now, is_paid)
    }

    fn made(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        found: &Plain<'_>,
        since_ns: Option<u64>,
        now: Now,
        is_paid: bool,
    ) -> PyResult<Option<PlainCommand>> {
        let it = admitted.get();
        let Some(known) = it.known.as_deref() else { return Ok(None) };
        let Some(entry) = self.permitted(found.command, known) else { return Ok(None) };
        let Ok(traceparent) = ascii(it.traceparent.as_ref().map(|it| it.bytes(py))) else { return Ok(None) };
        if !is_paid && !self.gateway().passes(py, it, entry.extra.class, now)? {
            return Ok(None);
        }
        let authorised = monotonic_ns();
        let gateway = self.gateway();
        let leg = self.leg(py, entry, found)?;
        let frame = Frame {
            principal: Some(&known.principal),
            request_id: &it.request_id.text(py, gateway.id_prefix()),
            traceparent: traceparent.unwrap_or_default(),
            client_address: it.client.text(py)?,
            ..leg.frame(found, now)
        };
        let frame = frame.encoded();
        let mut mark = authorised;
        if let Some(since) = since_ns {
            let counters = gateway.counters();
            counters.phase(AUTHORISE, authorised.saturating_sub(since));
            mark = monotonic_ns();
            counters.phase(DISPATCH, mark.saturating_sub(authorised));
        }
        let command = PlainCommand::new(admitted.clone().unbind(), leg, frame, found);
        command.mark_ns.store(mark, Ordering::Relaxed);
        Ok(Some(command))
    }

    pub(crate) fn gateway(&self) -> &Admission {
        self.admission.get()
    }

    /// The command of a name, if it may be plain, and this one may call it.
    pub(crate) fn permitted(&self, command: &str, known: &Known<Shell>) -> Option<&Entry<Extra>> {
        self.catalog.permitted(command, &known.principal.roles)
    }

    /// What is known of a command that is to travel, but for what it says.
    pub(crate) fn leg(&self, py: Python<'_>, entry: &Entry<Extra>, found: &Plain<'_>) -> PyResult<Leg> {
        let key = match (found.idempotency_key, entry.repeat) {
            (Some(key), _) => key.to_owned(),
            (None, Repeat::Keyed) => self.new_key()?,
            (None, _) => String::new(),
        };
        Ok(Leg {
            command: entry.extra.name.clone_ref(py),
            key,
            deadline_ms: found.deadline_ms.unwrap_or(self.deadline_ms),
            reads: entry.repeat == Repeat::Read,
            shared: entry.extra.shared,
            vital: entry.extra.vital,
        })
    }

    fn new_key(&self) -> PyResult<String> {
        let (one, other) = seed()?;
        Ok(format!("{}{one:016x}{other:016x}", self.made_key))
    }
}

/// What is known of a command that is to travel, but for what it says.
pub(crate) struct Leg {
    pub(crate) command: Py<PyString>,
    key: String,
    deadline_ms: u32,
    reads: bool,
    shared: bool,
    vital: bool,
}

impl Leg {
    /// Seconds that it may take.
    pub(crate) fn deadline_s(&self) -> f64 {
        f64::from(self.deadline_ms) / 1e3
    }

    /// Its frame, but for what that says of the request.
    pub(crate) fn frame<'a>(&'a self, found: &Plain<'a>, now: Now) -> Frame<'a> {
        Frame {
            command: found.command,
            args: found.args,
            idempotency_key: &self.key,
            deadline_unix_ms: (now.s * 1e3) as u64 + u64::from(self.deadline_ms),
            environment: found.environment.unwrap_or_default(),
            ..Frame::default()
        }
    }

    /// The same once more.
    pub(crate) fn again(&self, py: Python<'_>) -> Self {
        Self { command: self.command.clone_ref(py), key: self.key.clone(), ..*self }
    }
}

/// What cannot be had this way.
pub(crate) struct NotPlain;

pub(crate) fn ascii(value: Option<&[u8]>) -> Result<Option<&str>, NotPlain> {
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
        let body = self.body(py, result, replayed)?;
        self.admitted.get().json_answer(py, &body, false, own)
    }

    /// Counts the request as over.
    pub(crate) fn over(&self, status: u16) {
        let it = self.admitted.get();
        it.over_at(status, it.passed(RESPOND, &self.mark_ns));
    }
}

impl PlainCommand {
    /// One that has not left.
    pub(crate) fn new(admitted: Py<Admitted>, leg: Leg, frame: Vec<u8>, found: &Plain<'_>) -> Self {
        let deadline_s = leg.deadline_s();
        let Leg { command, key, reads, shared, vital, .. } = leg;
        Self {
            admitted,
            command,
            frame,
            key,
            args: found.args.into(),
            environment: found.environment.map(Into::into),
            deadline_s,
            reads,
            shared,
            vital,
            seq: AtomicU64::new(0),
            mark_ns: AtomicU64::new(0),
        }
    }

    /// Whether there is something to be looked at before it leaves with others.
    pub(crate) fn is_marked(&self) -> bool {
        self.shared || self.vital
    }

    /// The whole answer for the lane.
    pub(crate) fn native_answer(&self, py: Python<'_>, result: &[u8], replayed: bool) -> PyResult<Response<Bytes>> {
        let body = self.body(py, result, replayed)?;
        self.admitted.get().native_json_answer(py, body, false)
    }

    /// The body of the answer; with it the phase of the upstream is over.
    fn body(&self, py: Python<'_>, result: &[u8], replayed: bool) -> PyResult<Vec<u8>> {
        let it = self.admitted.get();
        let now = it.passed(UPSTREAM, &self.mark_ns);
        let duration_us = now.saturating_sub(it.started_ns) / 1_000;
        let command = self.command.to_str(py)?;
        let request_id = &it.request_id.text(py, it.by.get().id_prefix());
        Ok(Answer { request_id, command, result, duration_us, replayed }.encoded())
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

/// Frames as a `CommandBatch`: plain commands, those of plain batches, and whatever has a `SerializeToString`. None: there are
/// more than so many.
#[pyfunction]
#[pyo3(signature = (frames, most=usize::MAX))]
pub(crate) fn joined<'py>(
    py: Python<'py>,
    frames: &Bound<'py, PyList>,
    most: usize,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let mut batch = Vec::with_capacity(256 * frames.len());
    let mut count = frames.len();
    for frame in frames.iter() {
        if let Ok(plain) = frame.cast::<PlainCommand>() {
            join(&mut batch, plain.get().seq(), &plain.get().frame);
        } else if let Ok(many) = frame.cast::<PlainBatch>() {
            count += many.get().__len__() - 1;
            many.get().join(&mut batch);
        } else {
            let bytes = frame.call_method0(intern!(py, "SerializeToString"))?.cast_into::<PyBytes>()?;
            join(&mut batch, 0, bytes.as_bytes());
        }
    }
    Ok((count <= most).then(|| PyBytes::new(py, &batch)))
}
