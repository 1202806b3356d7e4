//! `Express`: what is outstanding of the rides, and who gets which reply.
//!
//! Strategy: what the daemon says in one message is read, matched and answered in one call. What that means for limits,
//! credits and the breaker is told as numbers, once for all of it; what is no plain result is told by itself.
//!
//! Operations of a batch have entries of their own, as all commands do; their results gather in the batch, and the last one
//! has it answered.
//!
//! Rules: a reply counts only on the stream that its command left on; no lock is held while Python is called.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flx_core::command::reply::{Reply, replies};
use flx_lane::call::Together;
use http::Response;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::batch::{PlainBatch, Taken};
use crate::command::PlainCommand;
use crate::request::monotonic_ns;
use crate::ride::Ride;

const OK: u16 = 200;
const CLIENT_GONE: u16 = 499;

/// Ride, stream, when it left, life, whether it was waited for, whether it is one of many.
type Late = (Py<Ride>, u64, f64, u64, bool, bool);

/// Who waits for a reply.
enum Who {
    Ride(Py<Ride>),
    /// One of many commands of a request, by its place.
    Member {
        group: Py<PyAny>,
        place: usize,
        command: Py<PlainCommand>,
    },
    /// One operation of a batch that has no group, by its place.
    Operation(Py<Ride>, usize),
}

impl Who {
    /// The name of its command.
    fn name(&self) -> PyResult<&Py<PyString>> {
        match self {
            Self::Ride(ride) => Ok(&command(ride.get())?.get().command),
            Self::Member { command, .. } => Ok(&command.get().command),
            Self::Operation(ride, place) => ride.get().batch()?.get().name(*place),
        }
    }

    fn is_member(&self) -> bool {
        matches!(self, Self::Member { .. } | Self::Operation(..))
    }
}

struct Entry {
    who: Who,
    grace_s: f64,
    stream: u64,
    life: u64,
    began_s: f64,
    until_s: f64,
    /// Its caller has left, and the daemon was told.
    is_abandoned: bool,
    /// It was told that it takes long.
    is_long: bool,
}

/// What those have in common that leave together.
struct Leaving {
    stream: u64,
    life: u64,
    now_s: f64,
    grace_s: f64,
}

impl Leaving {
    /// One of them, which may take so many seconds.
    fn entry(&self, who: Who, deadline_s: f64) -> Entry {
        let &Self { stream, life, now_s: began_s, grace_s } = self;
        let until_s = began_s + deadline_s + grace_s;
        Entry { who, grace_s, stream, life, began_s, until_s, is_abandoned: false, is_long: false }
    }
}

impl Entry {
    /// Who waits, as something that Python can be told of.
    fn ride(&self, py: Python<'_>) -> PyResult<Py<Ride>> {
        match &self.who {
            Who::Ride(ride) => Ok(ride.clone_ref(py)),
            Who::Member { group, place, command } => {
                let ride = Ride::member(group.clone_ref(py), *place, command.clone_ref(py));
                ride.leaves(self.until_s - self.grace_s);
                Py::new(py, ride)
            }
            Who::Operation(of, place) => {
                let ride = Ride::operation(py, of, *place)?;
                ride.leaves(self.until_s - self.grace_s);
                Py::new(py, ride)
            }
        }
    }
}

/// The results for the commands of one request: place, result, whether it is an earlier one's.
struct Results {
    group: Py<PyAny>,
    results: Py<PyList>,
}

/// Spreads our own numbers, which follow one another: nobody else chooses what is put in.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3); the table looks at both ends.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }
}

type Table = HashMap<u64, Entry, BuildHasherDefault<Spread>>;

/// What is outstanding, by its number.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Express {
    table: Mutex<Table>,
}

/// What came on a stream in one message, in numbers; and what of it is not done with.
#[pyclass(frozen, get_all, module = "flx_api._core")]
pub(crate) struct Settled {
    /// Commands that were waited for.
    answered: usize,
    /// Of these, those of the life that was asked for.
    of_life: usize,
    /// Of these, those that are of many.
    of_many: usize,
    /// Commands that were not waited for any more, and of these those that are of many.
    forgotten: (usize, usize),
    /// Replies on a stream where nobody had asked.
    foreign: usize,
    /// For each command: its name, how many, and how long they took together.
    took: Py<PyList>,
    /// Rides that are over, and about which there is something to be forgotten elsewhere.
    marked: Py<PyList>,
    /// Rides whose reply is no plain result, with the frame.
    others: Py<PyList>,
    /// For each request that has many commands: who waits for it, and a list of place, result and whether that is an
    /// earlier one's.
    results: Py<PyList>,
    /// Of batches that were answered: the name of each command, and how many there were.
    counted: Vec<(Py<PyString>, usize)>,
    /// Frames of what is not here, as a batch; None: there are none.
    rest: Option<Py<PyBytes>>,
}

struct Took {
    name: Py<PyString>,
    count: usize,
    total_s: f64,
}

impl Express {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands leave, numbered from `first` on; they are returned, as they are to be sent.
    fn enter<'py>(
        &self,
        py: Python<'py>,
        all: Vec<(Who, Py<PlainCommand>)>,
        first: u64,
        leaving: &Leaving,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut commands = Vec::with_capacity(all.len());
        let mut entries = Vec::with_capacity(all.len());
        for ((who, command), seq) in all.into_iter().zip(first..) {
            command.get().set_seq(seq);
            let deadline_s = command.get().deadline_s;
            if let Who::Ride(ride) = &who {
                ride.get().leaves(leaving.now_s + deadline_s);
            }
            commands.push(command);
            entries.push((seq, leaving.entry(who, deadline_s)));
        }
        self.table().extend(entries);
        PyList::new(py, commands)
    }
}

#[pymethods]
impl Express {
    #[new]
    fn new() -> Self {
        Self { table: Mutex::default() }
    }

    /// How many are not over, those that nobody waits for included.
    fn __len__(&self) -> usize {
        self.table().len()
    }

    /// How many are waited for.
    #[getter]
    fn waited_for(&self) -> usize {
        self.table().values().filter(|entry| !entry.is_abandoned).count()
    }

    /// Lets rides leave on a stream, numbered from `first` on; their commands.
    #[pyo3(signature = (rides, first, *, stream, life, now_s, grace_s))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn depart<'py>(
        &self,
        py: Python<'py>,
        rides: Vec<Bound<'py, Ride>>,
        first: u64,
        stream: u64,
        life: u64,
        now_s: f64,
        grace_s: f64,
    ) -> PyResult<Bound<'py, PyList>> {
        let leaving = Leaving { stream, life, now_s, grace_s };
        let who = rides.into_iter().map(|ride| {
            let command = command(ride.get())?.clone_ref(py);
            Ok((Who::Ride(ride.unbind()), command))
        });
        self.enter(py, who.collect::<PyResult<Vec<_>>>()?, first, &leaving)
    }

    /// Lets commands of one request leave on a stream, each with its place in it, as `depart` does.
    #[pyo3(signature = (group, members, first, *, stream, life, now_s, grace_s))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn depart_many<'py>(
        &self,
        group: &Bound<'py, PyAny>,
        members: Vec<(usize, Bound<'py, PlainCommand>)>,
        first: u64,
        stream: u64,
        life: u64,
        now_s: f64,
        grace_s: f64,
    ) -> PyResult<Bound<'py, PyList>> {
        let leaving = Leaving { stream, life, now_s, grace_s };
        let who = members.into_iter().map(|(place, command)| {
            let command = command.unbind();
            let own = command.clone_ref(group.py());
            (Who::Member { group: group.clone().unbind(), place, command: own }, command)
        });
        self.enter(group.py(), who.collect(), first, &leaving)
    }

    /// Lets the operations of a batch leave on a stream, as `depart` does; the batch, which is to be sent.
    #[pyo3(signature = (ride, first, *, stream, life, now_s, grace_s))]
    fn depart_batch<'py>(
        &self,
        ride: &Bound<'py, Ride>,
        first: u64,
        stream: u64,
        life: u64,
        now_s: f64,
        grace_s: f64,
    ) -> PyResult<Bound<'py, PyList>> {
        let leaving = Leaving { stream, life, now_s, grace_s };
        let batch = ride.get().batch()?.bind(ride.py());
        let deadlines = batch.get().leaves(first).enumerate();
        let entries = deadlines.zip(first..).map(|((place, deadline_s), seq)| {
            (seq, leaving.entry(Who::Operation(ride.clone().unbind(), place), deadline_s))
        });
        let entries: Vec<_> = entries.collect();
        self.table().extend(entries);
        PyList::new(ride.py(), [batch])
    }

    /// Takes what came on a stream: answers those who wait for it, and tells the rest. `since_s`: who left before is not
    /// counted in `took`; `own`: the headers that an answer to this scope has beside those of every response, where there
    /// are any.
    #[pyo3(signature = (message, *, stream, life, now_s, since_s, own=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn settle(
        &self,
        py: Python<'_>,
        message: &[u8],
        stream: u64,
        life: u64,
        now_s: f64,
        since_s: f64,
        own: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Settled> {
        let found = replies(message).map_err(|_| PyValueError::new_err("not a ReplyBatch"))?;
        let (mut forgotten, mut foreign, mut rest) = ((0, 0), 0, Vec::new());
        let mut over = Vec::with_capacity(found.len());
        {
            let mut table = self.table();
            for reply in found {
                match table.get(&reply.seq) {
                    None => rest.push(reply),
                    Some(entry) if entry.stream != stream => foreign += 1,
                    Some(_) => over.extend(table.remove(&reply.seq).map(|entry| (entry, reply))),
                }
            }
        }
        let mut took: Vec<Took> = Vec::new();
        let mut many: Vec<Results> = Vec::new();
        let mut counted = Vec::new();
        let now_ns = monotonic_ns();
        let (marked, others) = (PyList::empty(py), PyList::empty(py));
        let (mut answered, mut of_many, mut of_life) = (0, 0, 0);
        let mut together = Together::default();
        for (entry, reply) in over {
            let is_member = usize::from(entry.who.is_member());
            if entry.is_abandoned {
                forgotten = (forgotten.0 + 1, forgotten.1 + is_member);
                continue;
            }
            answered += 1;
            of_many += is_member;
            of_life += usize::from(entry.life == life);
            if entry.began_s >= since_s {
                note(py, &mut took, entry.who.name()?, now_s - entry.began_s);
            }
            let is_result = reply.code.is_empty() && reply.accepted_id.is_empty();
            match &entry.who {
                Who::Member { group, place, .. } if is_result => gather(py, &mut many, group, *place, &reply)?,
                Who::Operation(ride, place) if is_result => {
                    let batch = ride.get().batch()?.get();
                    match batch.take(py, *place, reply.result, reply.replayed, now_ns) {
                        Taken::Kept => {}
                        Taken::Of(group) => gather(py, &mut many, &group, *place, &reply)?,
                        Taken::Whole => {
                            if batch.is_long() {
                                marked.append(ride)?;
                            }
                            counted.extend(batch.counted(py));
                            if let Err(error) = answer(py, ride.get(), batch, &mut together, own) {
                                ride.get().failed(py, error);
                            }
                        }
                    }
                }
                Who::Ride(ride) => {
                    let command = command(ride.get())?.get();
                    if command.shared || entry.is_long {
                        marked.append(ride)?;
                    }
                    let result = Outcome { command, reply: &reply };
                    if is_result && let Err(error) = answer(py, ride.get(), &result, &mut together, own) {
                        ride.get().failed(py, error);
                    }
                }
                Who::Member { .. } | Who::Operation(..) => {}
            }
            if !is_result {
                others.append((entry.ride(py)?, PyBytes::new(py, reply.frame)))?;
            }
        }
        let took = took.into_iter().map(|took| (took.name, took.count, took.total_s));
        Ok(Settled {
            answered,
            of_life,
            of_many,
            forgotten,
            foreign,
            took: PyList::new(py, took.collect::<Vec<_>>())?.unbind(),
            marked: marked.unbind(),
            others: others.unbind(),
            results: PyList::new(py, many.into_iter().map(|one| (one.group, one.results)).collect::<Vec<_>>())?
                .unbind(),
            counted,
            rest: (!rest.is_empty()).then(|| PyBytes::new(py, &batch(&rest)).unbind()),
        })
    }

    /// Nobody waits for a reply any more: the stream where it would come; None when nobody did before. It is not over
    /// before there is one.
    fn abandon(&self, seq: u64) -> Option<u64> {
        let mut table = self.table();
        let entry = table.get_mut(&seq).filter(|entry| !entry.is_abandoned)?;
        entry.is_abandoned = true;
        Some(entry.stream)
    }

    /// What has no time left, which is over now: ride, stream, when it left, life, whether it was waited for, whether it is
    /// one of many; and the rides that have left before `long_s` and were not told yet.
    fn sweep(&self, py: Python<'_>, now_s: f64, long_s: f64) -> PyResult<(Vec<Late>, Vec<Py<Ride>>)> {
        let (late, long) = {
            let mut table = self.table();
            let late: Vec<Entry> =
                table.extract_if(|_, entry| entry.until_s <= now_s).map(|(_, entry)| entry).collect();
            let mut long = Vec::new();
            for entry in table.values_mut() {
                if entry.began_s > long_s || entry.is_long || entry.is_abandoned {
                    continue;
                }
                entry.is_long = true;
                match &entry.who {
                    Who::Ride(ride) => long.push(ride.clone_ref(py)),
                    Who::Operation(ride, _) if ride.get().batch()?.get().is_long_now() => long.push(ride.clone_ref(py)),
                    Who::Operation(..) | Who::Member { .. } => {}
                }
            }
            (late, long)
        };
        let told = |entry: Entry| {
            let ride = entry.ride(py)?;
            Ok((ride, entry.stream, entry.began_s, entry.life, !entry.is_abandoned, entry.who.is_member()))
        };
        Ok((late.into_iter().map(told).collect::<PyResult<_>>()?, long))
    }

    /// A stream has ended: the rides on it that were waited for; and of all that were on it, which are over now, how many
    /// were alone and how many of many.
    fn lost(&self, py: Python<'_>, stream: u64) -> PyResult<(Vec<Py<Ride>>, usize, usize)> {
        let lost: Vec<Entry> =
            self.table().extract_if(|_, entry| entry.stream == stream).map(|(_, entry)| entry).collect();
        let of_many = lost.iter().filter(|entry| entry.who.is_member()).count();
        let alone = lost.len() - of_many;
        let waited = lost.into_iter().filter(|entry| !entry.is_abandoned);
        let rides = waited.map(|entry| entry.ride(py)).collect::<PyResult<_>>()?;
        Ok((rides, alone, of_many))
    }
}

/// Keeps a result for whoever waits for many.
fn gather(py: Python<'_>, many: &mut Vec<Results>, group: &Py<PyAny>, place: usize, reply: &Reply<'_>) -> PyResult<()> {
    let result = (place, PyBytes::new(py, reply.result), reply.replayed);
    // Replies of one request come together.
    if let Some(known) = many.iter().rev().find(|known| known.group.is(group)) {
        return known.results.bind(py).append(result);
    }
    let results = PyList::new(py, [result])?.unbind();
    many.push(Results { group: group.clone_ref(py), results });
    Ok(())
}

fn command(ride: &Ride) -> PyResult<&Py<PlainCommand>> {
    ride.command.get().ok_or_else(|| PyValueError::new_err("no command was read"))
}

fn note(py: Python<'_>, took: &mut Vec<Took>, name: &Py<PyString>, seconds: f64) {
    // There is one object for each name, and few of them in one message.
    if let Some(known) = took.iter_mut().find(|known| known.name.is(name)) {
        known.count += 1;
        known.total_s += seconds;
    } else {
        took.push(Took { name: name.clone_ref(py), count: 1, total_s: seconds });
    }
}

/// What a request is answered with.
trait Answered {
    fn native(&self, py: Python<'_>) -> PyResult<Response<Bytes>>;
    fn parts<'py>(&self, py: Python<'py>, own: Vec<Bound<'py, PyTuple>>) -> PyResult<Bound<'py, PyTuple>>;
    fn over(&self, status: u16);
    /// For who waits for it with a future; nothing where nobody does.
    fn told<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, bool)>;
}

/// A result.
struct Outcome<'a> {
    command: &'a PlainCommand,
    reply: &'a Reply<'a>,
}

impl Answered for Outcome<'_> {
    fn native(&self, py: Python<'_>) -> PyResult<Response<Bytes>> {
        self.command.native_answer(py, self.reply.result, self.reply.replayed)
    }

    fn parts<'py>(&self, py: Python<'py>, own: Vec<Bound<'py, PyTuple>>) -> PyResult<Bound<'py, PyTuple>> {
        self.command.answer(py, self.reply.result, self.reply.replayed, own)
    }

    fn over(&self, status: u16) {
        self.command.over(status);
    }

    fn told<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, bool)> {
        Some((PyBytes::new(py, self.reply.result), self.reply.replayed))
    }
}

impl Answered for PlainBatch {
    fn native(&self, py: Python<'_>) -> PyResult<Response<Bytes>> {
        self.native_answer(py)
    }

    fn parts<'py>(&self, py: Python<'py>, own: Vec<Bound<'py, PyTuple>>) -> PyResult<Bound<'py, PyTuple>> {
        self.answer(py, own)
    }

    fn over(&self, status: u16) {
        Self::over(self, status);
    }

    fn told<'py>(&self, _py: Python<'py>) -> Option<(Bound<'py, PyBytes>, bool)> {
        None
    }
}

fn answer(
    py: Python<'_>,
    ride: &Ride,
    with: &impl Answered,
    together: &mut Together,
    own: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    if let Some(pending) = ride.pending() {
        let mut response = with.native(py)?;
        response.headers_mut().extend(pending.own);
        with.over(if together.answer(pending.call, response) { OK } else { CLIENT_GONE });
        return Ok(());
    }
    if let Some(protocol) = &ride.protocol {
        let own: Vec<Bound<'_, PyTuple>> = match (own, &ride.caller) {
            (Some(own), Some(caller)) => own.call1((caller.getattr(py, intern!(py, "scope"))?,))?.extract()?,
            _ => Vec::new(),
        };
        let parts = with.parts(py, own)?;
        with.over(if send(protocol.bind(py), &parts)? { OK } else { CLIENT_GONE });
        return Ok(());
    }
    let (Some(done), Some(told)) = (&ride.done, with.told(py)) else { return Ok(()) };
    let done = done.bind(py);
    // Who waited may be just leaving.
    if done.call_method0(intern!(py, "done"))?.is_truthy()? {
        return Ok(());
    }
    done.call_method1(intern!(py, "set_result"), (told,))?;
    Ok(())
}

/// Sends a whole answer by a server's protocol; false when the server says by raising that there is nobody to take it. (Granian
/// says so of streams only.)
fn send(protocol: &Bound<'_, PyAny>, parts: &Bound<'_, PyTuple>) -> PyResult<bool> {
    let py = protocol.py();
    let sent = match parts.as_slice() {
        [start, end] => {
            // Neither waits for anything: a body that is whole is handed over in the call.
            let start = protocol.call_method1(intern!(py, "send"), (start,));
            start.and_then(|_| protocol.call_method1(intern!(py, "send"), (end,)))
        }
        _ => protocol.call_method1(intern!(py, "response_bytes"), parts),
    };
    match sent {
        Ok(_) => Ok(true),
        Err(error) if error.is_instance_of::<PyRuntimeError>(py) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Frames as a `ReplyBatch`.
fn batch(replies: &[Reply<'_>]) -> Vec<u8> {
    let mut batch = Vec::new();
    for reply in replies {
        flx_core::command::frame::join(&mut batch, 0, reply.frame);
    }
    batch
}
