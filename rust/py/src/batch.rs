//! `PlainBatch`: a batch that asks for nothing special, from its body to its answer.
//!
//! Strategy: one pass over the body decides about every operation and writes all frames one behind the other. What comes back
//! is kept by its place until nothing is missing; then the whole answer is written. No object of Python's is made for an
//! operation, unless the batch turns out to be unusual: then `commands` makes the plain commands that the general way takes.
//!
//! Rules:
//! - nothing is charged before all of it can leave (`pay`). Where a limit refuses an operation then, those before it are paid for,
//!   and the general way, which begins anew, knows how many (`paid`);
//! - as soon as one operation has ended otherwise than with a plain result, a group has the batch (`hand_over`).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flx_core::command::answer::{Carried, batch};
use flx_core::command::frame::{Frame, join};
use flx_core::command::request::{Plain, plain_batch};
use flx_core::metrics::{RESPOND, UPSTREAM};
use http::Response;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::admitted::Admitted;
use crate::command::{Leg, PlainCommand, PlainCommands, ascii};
use crate::request::Now;

/// So many may be outstanding of one batch: as `GROUPED` of `flx_api.upstream.channel`. What is larger leaves in parts.
const MOST: usize = 128;

/// One operation, ready to travel.
struct Item {
    leg: Leg,
    /// What it passes before it leaves.
    class: Option<usize>,
    /// Its frame among all.
    frame: Range<usize>,
}

/// A result that waits for the others: where it is among all.
struct Kept {
    result: Range<usize>,
    replayed: bool,
    duration_us: u64,
}

struct Inside {
    text: Vec<u8>,
    results: Vec<Option<Kept>>,
    missing: usize,
    group: Option<Py<PyAny>>,
}

/// What became of a result.
pub(crate) enum Taken {
    /// Others are missing.
    Kept,
    /// It was the last one.
    Whole,
    /// Somebody else waits for it.
    Of(Py<PyAny>),
}

/// A batch that asks for nothing special; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct PlainBatch {
    admitted: Py<Admitted>,
    body: Bytes,
    items: Vec<Item>,
    frames: Vec<u8>,
    /// How many operations are paid for, and whether that was asked for.
    paid: AtomicUsize,
    is_asked: AtomicBool,
    /// The number of the first one; 0 before they have left.
    first: AtomicU64,
    mark_ns: AtomicU64,
    is_long: AtomicBool,
    inside: Mutex<Inside>,
    commands: PyOnceLock<Vec<Py<PlainCommand>>>,
}

impl PlainCommands {
    /// Reads the body of a batch, decides about its operations and makes their frames; None, and nothing done, when it is to
    /// go the general way. `since_ns`: when the phase before began to count.
    pub(crate) fn batch(
        &self,
        py: Python<'_>,
        admitted: &Bound<'_, Admitted>,
        body: Bytes,
        since_ns: u64,
    ) -> PyResult<Option<PlainBatch>> {
        let it = admitted.get();
        let Some(operations) = plain_batch(&body).filter(|all| all.len() <= MOST) else { return Ok(None) };
        let Some(known) = it.known.as_deref().filter(|_| it.idempotency_key.is_none()) else { return Ok(None) };
        let Ok(traceparent) = ascii(it.traceparent.as_ref().map(|it| it.bytes(py))) else { return Ok(None) };
        let mut entries = Vec::with_capacity(operations.len());
        for operation in &operations {
            let Some(entry) = self.permitted(operation.command, known) else { return Ok(None) };
            entries.push(entry);
        }
        let now = Now::of(None, None)?;
        let request_id = it.request_id.text(py, self.gateway().id_prefix());
        let client_address = it.client.text(py)?;
        let request = Frame {
            principal: Some(&known.principal),
            request_id: &request_id,
            traceparent: traceparent.unwrap_or_default(),
            client_address,
            ..Frame::default()
        };
        let mut shared = Vec::with_capacity(256);
        request.put_request(&mut shared);
        let mut frames = Vec::with_capacity(body.len() + operations.len() * (shared.len() + 64));
        let mut items = Vec::with_capacity(operations.len());
        for (operation, entry) in operations.iter().zip(entries) {
            let leg = self.leg(py, entry, operation)?;
            let start = frames.len();
            leg.frame(operation, now).put_operation(&mut frames);
            frames.extend_from_slice(&shared);
            items.push(Item { leg, class: entry.extra.class, frame: start..frames.len() });
        }
        let missing = items.len();
        let results = std::iter::repeat_with(|| None).take(missing).collect();
        Ok(Some(PlainBatch {
            admitted: admitted.clone().unbind(),
            body,
            items,
            frames,
            paid: AtomicUsize::new(0),
            is_asked: AtomicBool::new(false),
            first: AtomicU64::new(0),
            mark_ns: AtomicU64::new(since_ns),
            is_long: AtomicBool::new(false),
            inside: Mutex::new(Inside { text: Vec::new(), results, missing, group: None }),
            commands: PyOnceLock::new(),
        }))
    }
}

#[pymethods]
impl PlainBatch {
    /// How many operations there are.
    pub(crate) fn __len__(&self) -> usize {
        self.items.len()
    }

    /// Charges what limits its commands, in their order, up to the first that is refused; whether none is.
    fn pay(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_asked.store(true, Ordering::Relaxed);
        if self.items.iter().any(|item| item.class.is_some()) {
            let (now, it) = (Now::of(None, None)?, self.admitted.get());
            for item in &self.items {
                if !it.by.get().passes(py, it, item.class, now)? {
                    return Ok(false);
                }
                self.paid.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.paid.store(self.items.len(), Ordering::Relaxed);
        Ok(true)
    }

    /// How many of the first ones are paid for; None before that was asked for.
    #[getter]
    fn paid(&self) -> Option<usize> {
        self.is_asked.load(Ordering::Relaxed).then(|| self.paid.load(Ordering::Relaxed))
    }

    /// As it came.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.body)
    }

    /// The number of the first operation; 0 before they have left.
    #[getter]
    pub(crate) fn first(&self) -> u64 {
        self.first.load(Ordering::Relaxed)
    }

    /// How long the most urgent of its operations may take, in seconds.
    #[getter]
    fn deadline_s(&self) -> f64 {
        self.items.iter().map(|item| item.leg.deadline_s()).fold(f64::INFINITY, f64::min)
    }

    /// When its last phase ended, in monotonic nanoseconds.
    #[getter]
    fn mark_ns(&self) -> u64 {
        self.mark_ns.load(Ordering::Relaxed)
    }

    /// Who waits for it in its place.
    #[getter]
    fn group(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.inside().group.as_ref().map(|group| group.clone_ref(py))
    }

    /// Its operations as plain commands, each with its place; numbered, if they have left.
    #[pyo3(name = "commands")]
    fn listed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.all(py)?.iter().map(|command| command.clone_ref(py)).enumerate())
    }

    /// From now on a group waits for what is missing: the results until now (place, result, whether it is an earlier one's), and
    /// how many are missing.
    fn hand_over<'py>(&self, py: Python<'py>, group: Py<PyAny>) -> (Vec<(usize, Bound<'py, PyBytes>, bool)>, usize) {
        let (results, text, missing) = {
            let mut inside = self.inside();
            inside.group = Some(group);
            (std::mem::take(&mut inside.results), std::mem::take(&mut inside.text), inside.missing)
        };
        let told = |(place, kept): (usize, Option<Kept>)| {
            let Kept { result, replayed, .. } = kept?;
            Some((place, PyBytes::new(py, text.get(result).unwrap_or_default()), replayed))
        };
        (results.into_iter().enumerate().filter_map(told).collect(), missing)
    }

    /// Counts the request as over.
    pub(crate) fn over(&self, status: u16) {
        let it = self.admitted.get();
        it.over_at(status, it.passed(RESPOND, &self.mark_ns));
    }
}

impl PlainBatch {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self, py: Python<'_>) -> PyResult<&Vec<Py<PlainCommand>>> {
        self.commands.get_or_try_init(py, || {
            // Read once more: what is hardly ever needed is not kept.
            let operations = plain_batch(&self.body).unwrap_or_default();
            let first = self.first();
            let made = operations.iter().zip(&self.items).enumerate().map(|(place, (operation, item))| {
                let command = self.command_of(py, operation, item);
                if first != 0 {
                    command.set_seq(first + place as u64);
                }
                Py::new(py, command)
            });
            made.collect()
        })
    }

    fn command_of(&self, py: Python<'_>, operation: &Plain<'_>, item: &Item) -> PlainCommand {
        let frame = self.frames.get(item.frame.clone()).unwrap_or_default().to_vec();
        PlainCommand::new(self.admitted.clone_ref(py), item.leg.again(py), frame, operation)
    }

    /// One operation as a plain command.
    pub(crate) fn command(&self, py: Python<'_>, place: usize) -> PyResult<Py<PlainCommand>> {
        let command = self.all(py)?.get(place).map(|command| command.clone_ref(py));
        command.ok_or_else(|| PyIndexError::new_err("no such operation"))
    }

    /// The name of an operation's command.
    pub(crate) fn name(&self, place: usize) -> PyResult<&Py<PyString>> {
        let item = self.items.get(place).ok_or_else(|| PyIndexError::new_err("no such operation"))?;
        Ok(&item.leg.command)
    }

    /// They leave, numbered from here on; how long each may take, in seconds.
    pub(crate) fn leaves(&self, first: u64) -> impl Iterator<Item = f64> {
        self.first.store(first, Ordering::Relaxed);
        self.items.iter().map(|item| item.leg.deadline_s())
    }

    /// Appends all frames.
    pub(crate) fn join(&self, batch: &mut Vec<u8>) {
        batch.reserve(self.frames.len() + 16 * self.items.len());
        for (seq, item) in (self.first()..).zip(&self.items) {
            join(batch, seq, self.frames.get(item.frame.clone()).unwrap_or_default());
        }
    }

    /// A result has come.
    pub(crate) fn take(&self, py: Python<'_>, place: usize, result: &[u8], replayed: bool, now_ns: u64) -> Taken {
        let duration_us = now_ns.saturating_sub(self.admitted.get().started_ns) / 1_000;
        let mut guard = self.inside();
        let inside = &mut *guard;
        if let Some(group) = &inside.group {
            return Taken::Of(group.clone_ref(py));
        }
        inside.missing = inside.missing.saturating_sub(1);
        if let Some(kept) = inside.results.get_mut(place) {
            let start = inside.text.len();
            inside.text.extend_from_slice(result);
            *kept = Some(Kept { result: start..inside.text.len(), replayed, duration_us });
        }
        if inside.missing == 0 { Taken::Whole } else { Taken::Kept }
    }

    /// Whether it is told now for the first time that it takes long.
    pub(crate) fn is_long_now(&self) -> bool {
        !self.is_long.swap(true, Ordering::Relaxed)
    }

    /// Whether it was told that.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long.load(Ordering::Relaxed)
    }

    /// How many results there are of each command.
    pub(crate) fn counted(&self, py: Python<'_>) -> Vec<(Py<PyString>, usize)> {
        let mut counted: Vec<(Py<PyString>, usize)> = Vec::new();
        for item in &self.items {
            // There is one object for each name.
            match counted.iter_mut().find(|(name, _)| name.is(&item.leg.command)) {
                Some((_, count)) => *count += 1,
                None => counted.push((item.leg.command.clone_ref(py), 1)),
            }
        }
        counted
    }

    /// The whole answer, as `PlainCommand.answer` makes one.
    pub(crate) fn answer<'py>(&self, py: Python<'py>, own: Vec<Bound<'py, PyTuple>>) -> PyResult<Bound<'py, PyTuple>> {
        let body = self.answered(py)?;
        self.admitted.get().json_answer(py, &body, true, own)
    }

    /// The whole answer for the lane.
    pub(crate) fn native_answer(&self, py: Python<'_>) -> PyResult<Response<Bytes>> {
        let body = self.answered(py)?;
        self.admitted.get().native_json_answer(py, body, true)
    }

    fn answered(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let it = self.admitted.get();
        let now = it.passed(UPSTREAM, &self.mark_ns);
        let request_id = it.request_id.text(py, it.by.get().id_prefix());
        let names = self.items.iter().map(|item| item.leg.command.to_str(py)).collect::<PyResult<Vec<_>>>()?;
        let inside = self.inside();
        let carried = inside.results.iter().zip(names).filter_map(|(kept, command)| {
            let Kept { result, replayed, duration_us } = kept.as_ref()?;
            let result = inside.text.get(result.clone())?;
            Some(Carried { command, result, duration_us: *duration_us, replayed: *replayed })
        });
        Ok(batch(&carried.collect::<Vec<_>>(), &request_id, now.saturating_sub(it.started_ns) / 1_000))
    }
}
