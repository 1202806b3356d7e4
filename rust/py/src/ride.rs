//! `Hall`, `Ride` and `Shortcut`: plain commands from the server's thread to the loop, without a task.
//!
//! Strategy: the thread that admits a request asks for its body and goes on. The body is read, and decided about, in the
//! call that brings it; what has boarded so gathers until the loop takes all of it at once. So the loop is woken once for
//! many commands. The server asks it twice for each request, to begin and when a body is there; what can be done in the
//! thread that asks is done there (`Shortcut`), and the loop is not woken for it at all.
//!
//! Rules:
//! - a ride does not hold its body's future: that keeps its callback, which is the ride, for as long as it lives, and no
//!   collector sees either;
//! - what is told to a ride never raises: whoever tells it has others to tell. The server logs it.

use std::collections::{HashMap, VecDeque};
use std::mem::take;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use bytes::Bytes;
use flx_lane::call::Call;
use flx_lane::service::Peer;
use http::request::Parts;

use crate::admitted::Admitted;
use crate::answer::Face;
use crate::batch::PlainBatch;
use crate::command::{PlainCommand, PlainCommands};
use crate::lane_call::LaneCall;
use crate::request::monotonic_ns;
use crate::sheet::NativeLine;

/// Those whose body has not come yet, and those that wait for the loop.
#[derive(Default)]
struct Inside {
    number: u64,
    boarding: HashMap<u64, Boarding>,
    /// The latest bodies that were asked for, and when.
    asked: VecDeque<(u64, u64)>,
    boarded: Vec<Boarded>,
    /// The loop was asked to take what has boarded, and has not yet.
    is_called: bool,
    /// The loop looks by itself within a millisecond or two.
    is_watched: bool,
    /// Something has boarded since it last looked.
    is_busy: bool,
}

impl Inside {
    /// One more has boarded; whether the loop is to be called for it. It is not while others are about to board, if it looks
    /// by itself soon: what leaves together costs little more than what leaves alone.
    fn calls(&mut self, boarded: Boarded, now_ns: u64) -> bool {
        let is_many = matches!(boarded, Boarded::Many(_));
        self.boarded.push(boarded);
        // A batch has waited for others already, so to say.
        self.is_busy |= !is_many;
        let waits = self.is_watched && !is_many && self.boarded.len() < ENOUGH && self.others_come(now_ns);
        let calls = !self.is_called && !waits;
        self.is_called |= calls;
        calls
    }

    /// Whether a body is on its way that was asked for just now.
    fn others_come(&mut self, now_ns: u64) -> bool {
        while let Some((number, asked_ns)) = self.asked.front()
            && !(self.boarding.contains_key(number) && now_ns.saturating_sub(*asked_ns) < SOON_NS)
        {
            self.asked.pop_front();
        }
        !self.asked.is_empty()
    }
}

/// A body that was asked for so long ago is not waited for.
const SOON_NS: u64 = 1_000_000;
/// So many need nobody beside them.
const ENOUGH: usize = 32;

struct Boarding {
    ride: Py<Ride>,
    body: Py<PyAny>,
    until_ns: u64,
}

/// A request of the lane that may be a plain command: what it is answered by, and what else is needed if it is none.
pub(crate) struct Pending {
    pub(crate) head: Parts,
    pub(crate) peer: Peer,
    pub(crate) body: Bytes,
    pub(crate) call: Call,
    /// Headers of its answer beside those of every response.
    pub(crate) own: Vec<NativeLine>,
    /// When its body was there.
    pub(crate) mark_ns: u64,
}

enum Boarded {
    Plain(Py<Ride>),
    /// It is plain, and yet there is something to be looked at before it leaves.
    Marked(Py<Ride>),
    /// It is a plain batch.
    Many(Py<Ride>),
    /// It is to go the general way, with this body, or with the message of ASGI that is not all of it; None: there is none.
    Other(Py<Ride>, Option<Py<PyAny>>),
}

/// What a body was found to be.
enum Found {
    Command(PlainCommand),
    Batch(PlainBatch),
}

impl Boarded {
    fn with(ride: Py<Ride>, is_marked: bool) -> Self {
        if is_marked { Self::Marked(ride) } else { Self::Plain(ride) }
    }
}

/// Where rides begin.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Hall {
    plain: Py<PlainCommands>,
    context: Py<PyDict>,
    wake: Py<PyAny>,
    timeout_ns: u64,
    /// The index of the route whose bodies are batches.
    many: Option<usize>,
    inside: Mutex<Inside>,
}

impl Hall {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hall {
    /// Reads a body that has come; nothing, and nothing done, where it is to go the general way.
    fn read(
        &self,
        py: Python<'_>,
        admitted: &Py<Admitted>,
        body: impl FnOnce() -> Bytes,
        text: &[u8],
        since_ns: u64,
    ) -> PyResult<Option<Found>> {
        let (plain, admitted) = (self.plain.get(), admitted.bind(py));
        if self.many == Some(admitted.get().route) {
            return Ok(plain.batch(py, admitted, body(), since_ns)?.map(Found::Batch));
        }
        Ok(plain.read(py, admitted, text, since_ns, None)?.map(Found::Command))
    }

    /// Lets a request of the lane board, whose body is there; the loop is awake.
    pub(crate) fn bring(slf: &Bound<'_, Self>, admitted: Py<Admitted>, pending: Box<Pending>) {
        let (py, hall) = (slf.py(), slf.get());
        let read = hall.read(py, &admitted, || pending.body.clone(), &pending.body, pending.mark_ns);
        let boarded = read.and_then(|found| {
            let body = if found.is_none() { Some(PyBytes::new(py, &pending.body).into_any().unbind()) } else { None };
            let ride = Ride { admitted: Some(admitted), pending: Mutex::new(Some(pending)), ..Ride::default() };
            let ride = Bound::new(py, ride)?;
            match found {
                Some(found) => Ride::takes(&ride, found),
                None => Ok(Boarded::Other(ride.unbind(), body)),
            }
        });
        match boarded {
            Ok(boarded) => hall.inside().boarded.push(boarded),
            // Without an answer its connection is cut.
            Err(error) => error.write_unraisable(py, None),
        }
    }
}

#[pymethods]
impl Hall {
    /// `wake` is called when the first one has boarded, `context` is what callbacks run in.
    #[new]
    #[pyo3(signature = (plain, wake, context, timeout_s, many=None))]
    fn new(
        py: Python<'_>,
        plain: Py<PlainCommands>,
        wake: Py<PyAny>,
        context: Py<PyAny>,
        timeout_s: f64,
        many: Option<usize>,
    ) -> PyResult<Self> {
        let kept = PyDict::new(py);
        kept.set_item(intern!(py, "context"), context)?;
        let timeout_ns = (timeout_s * 1e9) as u64;
        Ok(Self { plain, context: kept.unbind(), wake, timeout_ns, many, inside: Mutex::default() })
    }

    /// Asks for the body of an admitted request of ASGI or RSGI; what follows are callbacks.
    fn board(
        slf: &Bound<'_, Self>,
        caller: Py<PyAny>,
        protocol: &Bound<'_, PyAny>,
        admitted: Py<Admitted>,
    ) -> PyResult<()> {
        let (py, hall) = (slf.py(), slf.get());
        let body = match admitted.get().face {
            Face::Asgi => protocol.call_method0(intern!(py, "receive"))?,
            Face::Rsgi => protocol.call0()?,
        };
        let mark_ns = monotonic_ns();
        let number = {
            let mut inside = hall.inside();
            inside.number += 1;
            inside.number
        };
        let ride = Ride {
            hall: Some(slf.clone().unbind()),
            number,
            caller: Some(caller),
            protocol: Some(protocol.clone().unbind()),
            admitted: Some(admitted),
            mark_ns,
            ..Ride::default()
        };
        let ride = Bound::new(py, ride)?;
        let boarding = Boarding {
            ride: ride.clone().unbind(),
            body: body.clone().unbind(),
            until_ns: mark_ns.saturating_add(hall.timeout_ns),
        };
        {
            let mut inside = hall.inside();
            inside.boarding.insert(number, boarding);
            // Nobody may come who looks at those of old: of batches nobody waits for others.
            inside.others_come(mark_ns);
            inside.asked.push_back((number, mark_ns));
        }
        body.call_method(intern!(py, "add_done_callback"), (ride,), Some(hall.context.bind(py)))?;
        Ok(())
    }

    /// Lets a command board whose body was read elsewhere: its ride, and whether it is the first. `done` is a future of
    /// who waits for it: of its result, and whether that is an earlier one's.
    fn join(
        slf: &Bound<'_, Self>,
        command: Py<PlainCommand>,
        admitted: Py<Admitted>,
        done: Py<PyAny>,
    ) -> PyResult<(Py<Ride>, bool)> {
        let is_marked = command.get().is_marked();
        let ride = Ride {
            hall: Some(slf.clone().unbind()),
            done: Some(done),
            admitted: Some(admitted),
            command: OnceLock::from(command),
            ..Ride::default()
        };
        let ride = Py::new(slf.py(), ride)?;
        let boarded = Boarded::with(ride.clone_ref(slf.py()), is_marked);
        let is_first = slf.get().inside().calls(boarded, monotonic_ns());
        Ok((ride, is_first))
    }

    /// All that have boarded and are still there: the plain ones, those to be looked at, batches, and others, each with its body,
    /// or None. `watch`: from now on the loop looks by itself (`look`), if any command has boarded
    /// alone.
    #[expect(clippy::type_complexity, reason = "four lists")]
    fn boarded<'py>(
        &self,
        py: Python<'py>,
        watch: bool,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>, Vec<Py<Ride>>, Vec<(Py<Ride>, Option<Py<PyAny>>)>)> {
        let boarded = {
            let mut inside = self.inside();
            inside.is_called = false;
            take(&mut inside.boarded)
        };
        let (plain, marked, mut many, mut others) = (PyList::empty(py), PyList::empty(py), Vec::new(), Vec::new());
        for one in boarded {
            match one {
                Boarded::Plain(ride) | Boarded::Marked(ride) if ride.get().is_gone.load(Ordering::Relaxed) => {}
                Boarded::Plain(ride) => plain.append(ride)?,
                Boarded::Marked(ride) => marked.append(ride)?,
                Boarded::Many(ride) => many.push(ride),
                Boarded::Other(ride, body) => others.push((ride, body)),
            }
        }
        let watched = watch && plain.len() + marked.len() > 0;
        self.inside().is_watched |= watched;
        Ok((plain, marked, many, others))
    }

    /// Those whose body did not come in time: they board no more.
    #[pyo3(signature = (now_ns=None))]
    fn late(&self, py: Python<'_>, now_ns: Option<u64>) -> Vec<Py<Ride>> {
        let now_ns = now_ns.unwrap_or_else(monotonic_ns);
        let late: Vec<Boarding> = self
            .inside()
            .boarding
            .extract_if(|_, boarding| boarding.until_ns <= now_ns)
            .map(|(_, late)| late)
            .collect();
        let mut rides = Vec::with_capacity(late.len());
        for Boarding { ride, body, .. } in late {
            if let Err(error) = body.call_method0(py, intern!(py, "cancel")) {
                error.write_unraisable(py, None);
            }
            rides.push(ride);
        }
        rides
    }

    /// Looks whether anything has boarded, and nobody was called for it; None when nothing has for a while, and nobody looks any
    /// more.
    fn look(&self) -> Option<bool> {
        let mut inside = self.inside();
        inside.is_watched = take(&mut inside.is_busy) || !inside.boarded.is_empty();
        inside.is_watched.then_some(!inside.is_called && !inside.boarded.is_empty())
    }

    /// How many wait for their body.
    #[getter]
    fn boarding(&self) -> usize {
        self.inside().boarding.len()
    }

    /// How many bodies are remembered as asked for just now.
    #[getter]
    fn asked(&self) -> usize {
        self.inside().asked.len()
    }
}

/// One command without a task; the callback of its body.
#[pyclass(frozen, module = "flx_api._core")]
#[derive(Default)]
pub(crate) struct Ride {
    hall: Option<Py<Hall>>,
    number: u64,
    /// Who is answered by the protocol.
    #[pyo3(get)]
    pub(crate) caller: Option<Py<PyAny>>,
    #[pyo3(get)]
    pub(crate) protocol: Option<Py<PyAny>>,
    #[pyo3(get)]
    pub(crate) done: Option<Py<PyAny>>,
    /// Who waits for it and for others of one request, and its place there.
    #[pyo3(get)]
    group: Option<Py<PyAny>>,
    #[pyo3(get)]
    place: usize,
    #[pyo3(get)]
    admitted: Option<Py<Admitted>>,
    mark_ns: u64,
    pub(crate) command: OnceLock<Py<PlainCommand>>,
    batch: OnceLock<Py<PlainBatch>>,
    /// The ride of the batch that it is an operation of.
    #[pyo3(get)]
    of: Option<Py<Ride>>,
    /// When nobody waits any more, by the loop's clock, as bits.
    until_s: AtomicU64,
    is_gone: AtomicBool,
    /// What it is answered by, on the lane, until it is.
    pending: Mutex<Option<Box<Pending>>>,
}

#[pymethods]
impl Ride {
    /// On the lane: the request, to be answered another way; None when it is not there, or not there any more.
    fn call(&self, py: Python<'_>) -> Option<LaneCall> {
        let admitted = self.admitted.as_ref().map(|admitted| admitted.clone_ref(py));
        self.pending().map(|pending| LaneCall::of(*pending, admitted))
    }

    /// Whether it is one of the lane, not answered yet.
    #[getter]
    fn is_of_lane(&self) -> bool {
        self.number_of_call().is_some()
    }

    /// On the lane: the number of its call; else 0.
    #[getter]
    fn number(&self) -> u64 {
        self.number_of_call().unwrap_or(0)
    }

    /// On the lane: asks to be told when the client is gone; False when it is already.
    fn ask_for_end(&self) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.as_ref().is_some_and(|pending| pending.call.ask_for_end())
    }

    /// Nobody waits for it any more: if it has not left yet, it does not.
    fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// The body has come, or never will.
    fn __call__(slf: &Bound<'_, Self>, body: &Bound<'_, PyAny>) {
        if let Err(error) = Self::arrived(slf, body) {
            slf.get().failed(slf.py(), error);
        }
    }

    /// Its command; None as long as none was read.
    #[getter]
    fn command(&self, py: Python<'_>) -> Option<Py<PlainCommand>> {
        self.command.get().map(|command| command.clone_ref(py))
    }

    /// Its batch; None: it is none, or none was read.
    #[getter(batch)]
    fn get_batch(&self, py: Python<'_>) -> Option<Py<PlainBatch>> {
        self.batch.get().map(|batch| batch.clone_ref(py))
    }

    #[getter(until_s)]
    fn get_until_s(&self) -> f64 {
        f64::from_bits(self.until_s.load(Ordering::Relaxed))
    }
}

impl Ride {
    /// What it is answered by, on the lane; once.
    pub(crate) fn pending(&self) -> Option<Box<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn number_of_call(&self) -> Option<u64> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.as_ref().map(|pending| pending.call.number())
    }

    fn arrived(slf: &Bound<'_, Self>, body: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, ride) = (slf.py(), slf.get());
        let (Some(hall), Some(admitted)) = (&ride.hall, &ride.admitted) else { return Ok(()) };
        let hall = hall.get();
        let boarding = hall.inside().boarding.remove(&ride.number);
        if boarding.is_none() {
            return Ok(());
        }
        let boarded = match body.call_method0(intern!(py, "result")) {
            Err(error) if error.is_instance_of::<PyRuntimeError>(py) => Boarded::Other(slf.clone().unbind(), None),
            Err(error) => return Err(error),
            Ok(content) => match content.cast::<PyBytes>() {
                Ok(content) => Self::read(slf, admitted, content)?,
                Err(_) => match whole(&content, admitted.get().length)? {
                    Some(content) => Self::read(slf, admitted, &content)?,
                    None => Boarded::Other(slf.clone().unbind(), Some(content.unbind())),
                },
            },
        };
        let calls = hall.inside().calls(boarded, monotonic_ns());
        if calls {
            hall.wake.call0(py)?;
        }
        Ok(())
    }

    fn read(slf: &Bound<'_, Self>, admitted: &Py<Admitted>, content: &Bound<'_, PyBytes>) -> PyResult<Boarded> {
        let (py, ride) = (slf.py(), slf.get());
        let Some(hall) = &ride.hall else { return Ok(Boarded::Other(slf.clone().unbind(), None)) };
        let body = || Bytes::from_owner(PyBackedBytes::from(content.clone()));
        match hall.get().read(py, admitted, body, content.as_bytes(), ride.mark_ns)? {
            Some(found) => Self::takes(slf, found),
            None => Ok(Boarded::Other(slf.clone().unbind(), Some(content.clone().into_any().unbind()))),
        }
    }

    /// It has what it is to carry.
    fn takes(slf: &Bound<'_, Self>, found: Found) -> PyResult<Boarded> {
        let (py, ride) = (slf.py(), slf.get());
        let own = slf.clone().unbind();
        Ok(match found {
            Found::Command(command) => {
                let is_marked = command.is_marked();
                let _ = ride.command.set(Py::new(py, command)?);
                Boarded::with(own, is_marked)
            }
            Found::Batch(batch) => {
                let _ = ride.batch.set(Py::new(py, batch)?);
                Boarded::Many(own)
            }
        })
    }

    /// One operation of a batch, to be told of.
    pub(crate) fn operation(py: Python<'_>, of: &Py<Self>, place: usize) -> PyResult<Self> {
        let command = of.get().batch()?.get().command(py, place)?;
        Ok(Self { of: Some(of.clone_ref(py)), place, command: OnceLock::from(command), ..Self::default() })
    }

    /// Its batch.
    pub(crate) fn batch(&self) -> PyResult<&Py<PlainBatch>> {
        self.batch.get().ok_or_else(|| PyValueError::new_err("no batch was read"))
    }

    /// One of many commands of a request, to be told of.
    pub(crate) fn member(group: Py<PyAny>, place: usize, command: Py<PlainCommand>) -> Self {
        Self { group: Some(group), place, command: OnceLock::from(command), ..Self::default() }
    }

    pub(crate) fn leaves(&self, until_s: f64) {
        self.until_s.store(until_s.to_bits(), Ordering::Relaxed);
    }

    /// Lets whoever answers the request know what was raised.
    pub(crate) fn failed(&self, py: Python<'_>, error: PyErr) {
        let told = match (&self.caller, &self.done) {
            (Some(caller), _) => caller.call_method1(py, intern!(py, "err"), (error,)),
            (None, Some(done)) => done.call_method1(py, intern!(py, "set_exception"), (error,)),
            (None, None) => Err(error),
        };
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    }
}

/// The body in a message of ASGI, when it is all of it; that there is more is said of every first part.
fn whole<'py>(message: &Bound<'py, PyAny>, length: Option<u64>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let message = message.cast::<PyDict>()?;
    let Some(body) = message.get_item(intern!(message.py(), "body"))? else { return Ok(None) };
    let body = body.cast_into::<PyBytes>()?;
    Ok(Some(body).filter(|body| Some(body.as_bytes().len() as u64) == length))
}

/// A loop's `call_soon_threadsafe` that does at once, in the thread that calls, what needs no loop: a ride boards where its
/// body came, and `take` may answer a request that Granian would begin as a task. All else goes to the loop.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Shortcut {
    ordinary: Py<PyAny>,
    take: Py<PyAny>,
}

#[pymethods]
impl Shortcut {
    #[new]
    fn new(ordinary: Py<PyAny>, take: Py<PyAny>) -> Self {
        Self { ordinary, take }
    }

    #[pyo3(signature = (*args, context=None))]
    fn __call__<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = args.py();
        match args.as_slice() {
            [callback, body] if let Ok(ride) = callback.cast::<Ride>() => {
                Ride::__call__(ride, body);
                return Ok(py.None().into_bound(py));
            }
            // How a task is made, its coroutine, and what it is about.
            [_, coroutine, watcher] if self.takes(watcher) => {
                if let Err(error) = coroutine.call_method0(intern!(py, "close")) {
                    error.write_unraisable(py, Some(coroutine));
                }
                return Ok(py.None().into_bound(py));
            }
            _ => {}
        }
        let own = PyDict::new(py);
        own.set_item(intern!(py, "context"), context)?;
        self.ordinary.bind(py).call(args, Some(&own))
    }
}

impl Shortcut {
    /// Raises nothing: Granian does not look at what is raised in its thread, and every later call there would fail by it.
    fn takes(&self, watcher: &Bound<'_, PyAny>) -> bool {
        let taken = self.take.bind(watcher.py()).call1((watcher,)).and_then(|taken| taken.is_truthy());
        taken.unwrap_or_else(|error| {
            error.write_unraisable(watcher.py(), Some(watcher));
            false
        })
    }
}
