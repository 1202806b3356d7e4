//! `RealtimeListener`: the native WebSocket listener of a gateway. Its threads serve shards of the process's one hub.
//!
//! Strategy: the listener's threads never enter Python. What they ask for lies on their desk, and a byte in a pipe says so;
//! Python answers when it comes to it. Rules: the interpreter is detached while the hub is held or a thread is waited for.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flx_core::admission::roster::{Face, Guest};
use flx_core::hub::{Backfill, Dialect, Limits as HubLimits, Position, Refused};
use flx_realtime::desk::{Caller, Desk, Newcomer, NotIn, Owner, Question};
use flx_realtime::handshake::SUBPROTOCOL;
use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::request::Fault;
use flx_realtime::seat::{Seat, SharedRoster};
use flx_realtime::service::ConnId;
use flx_realtime::sessions::{Refusals, Sessions};
use flx_realtime::tls;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyTuple};

use crate::hub::{self, Hub, Told, events_of, rights, texts_of};
use crate::principal::Principal;
use crate::roster::Roster;
use crate::window::seed;

/// What stands for the request id in a prepared answer: as long as the ids that are put in its place.
const ID_GAP: &[u8; 16] = b"0000000000000000";
/// A WebSocket begins with it.
const HTTP1: &str = "http/1.1";
/// The faults for which an answer must be prepared.
const FAULTS: [&str; 12] = [
    "malformed",
    "body",
    "too_large",
    "timeout",
    "method",
    "host",
    "no_upgrade",
    "version",
    "key",
    "extensions",
    "full",
    "draining",
];

/// The listener; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct RealtimeListener {
    desk: Arc<Desk>,
    listener: Mutex<Option<Listener>>,
    bell: UnixStream,
    roster: SharedRoster,
    /// Where it listens.
    #[pyo3(get)]
    port: u16,
}

#[pymethods]
impl RealtimeListener {
    #[new]
    #[pyo3(signature = (hub, host, port, *, threads, clock, roster, refusals, connections, per_subject, ping_ms=25_000,
        tls=None, deflate=false, io_uring=true))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        hub: &Hub,
        host: &str,
        port: u16,
        threads: usize,
        clock: &Bound<'_, PyAny>,
        roster: &Roster,
        refusals: HashMap<String, Vec<u8>>,
        connections: usize,
        per_subject: usize,
        ping_ms: u64,
        tls: Option<(Vec<u8>, Vec<u8>)>,
        deflate: bool,
        io_uring: bool,
    ) -> PyResult<Self> {
        let address: IpAddr = host.parse().map_err(|_| PyValueError::new_err("the host is an IP address"))?;
        let config = tls.map(|(chain, key)| tls::server(&chain, &key, &[HTTP1])).transpose();
        let config = config.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let mut refusals = prepared(refusals, threads)?;
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let clock = clock_like(clock)?;
        // A full pipe has rung already.
        let ring = Box::new(move || drop((&ring).write(&[1])));
        let desk = Arc::new(Desk::new(Arc::clone(&hub.shared), per_subject, clock, ring));
        let connections = connections.div_ceil(threads.max(1));
        let mut limits = Limits { connections, backlog_bytes: 1 << 20, ping_ms, deflate, ..Limits::default() };
        if !io_uring {
            limits.together = usize::MAX;
        }
        let shared = Arc::clone(&desk);
        let address = SocketAddr::new(address, port);
        let listener = Listener::start(address, threads, limits, config.as_ref(), clock, |_, thread| {
            let refusals = refusals.pop().unwrap_or_else(|| Box::new(|_| Vec::new()));
            Sessions::new(Arc::clone(&shared), refusals, thread)
        });
        // With its number: that the address is in use is no surprise where several processes try.
        let listener = listener.map_err(|error| PyOSError::new_err((error.raw_os_error(), error.to_string())))?;
        let port = listener.address().port();
        Ok(Self { desk, listener: Mutex::new(Some(listener)), bell, roster: Arc::clone(&roster.shared), port })
    }

    /// The descriptor that is readable when there are questions.
    fn fileno(&self) -> i32 {
        self.bell.as_raw_fd()
    }

    /// What was asked since the last call.
    fn questions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let mut rung = [0; 64];
        loop {
            match (&self.bell).read(&mut rung) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        let tuple = |question| match question {
            Question::Handshake(it) => {
                let headers: Vec<_> =
                    it.headers.iter().map(|(name, value)| (name_of(py, name), PyBytes::new(py, value))).collect();
                let peer = (it.peer.ip().to_string(), it.peer.port());
                ("handshake", number(it.caller), it.method, peer, it.path, it.query, headers).into_pyobject(py)
            }
            Question::History(it) => {
                let (key, since) = (hub::handle(it.key), hub::place(it.since));
                let patterns: Vec<_> = it.patterns.into_iter().map(String::from).collect();
                ("history", number(it.caller), key, patterns, since).into_pyobject(py)
            }
            Question::Room(caller) => ("room", number(caller)).into_pyobject(py),
            Question::Refresh(it) => {
                let token = PyBytes::new(py, it.token.0.as_bytes());
                ("refresh", number(it.caller), hub::handle(it.key), it.seat, token).into_pyobject(py)
            }
        };
        self.desk.questions().into_iter().map(tuple).collect()
    }

    /// Lets a handshake in; why not, when not.
    #[pyo3(signature = (conn, client_id, *, principal, classes, subprotocol, dialect, ends_in_s, since_us))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "they are keywords in Python")]
    fn accept(
        &self,
        conn: u64,
        client_id: &str,
        principal: &Principal,
        classes: Vec<PyBackedStr>,
        subprotocol: Option<&str>,
        dialect: &str,
        ends_in_s: f64,
        since_us: u64,
    ) -> PyResult<Option<&'static str>> {
        let rights = rights(&principal.core.subject, classes.iter().map(|name| &**name))?;
        let subprotocol = match subprotocol {
            None => None,
            Some(PLAIN) => Some(PLAIN),
            Some(SUBPROTOCOL) => Some(SUBPROTOCOL),
            Some(_) => return Err(PyValueError::new_err("no such subprotocol")),
        };
        let dialect = hub::dialect(dialect)?;
        let guest = guest(principal, client_id, conn, since_us);
        let (tenant, subject) = (guest.tenant(), &*principal.core.subject);
        let newcomer = Newcomer {
            client_id: Some(Arc::clone(&guest.client_id)),
            owner: Arc::new(Owner { tenant: tenant.into(), subject: subject.into() }),
            rights,
            dialect,
            ends_ms: self.ends_ms(ends_in_s)?,
            topics: Vec::new(),
            from: None,
            seat: Seat::take(&self.roster, guest),
        };
        Ok(self.desk.accept(caller(conn), newcomer, subprotocol).err().map(word))
    }

    /// Lets in who only listens, to these topics from a position on; why not, when not. `head` is that of the answer.
    #[pyo3(signature = (conn, head, *, principal, classes, topics, from_, ends_in_s, since_us))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "they are keywords in Python")]
    fn accept_stream(
        &self,
        conn: u64,
        head: Vec<u8>,
        principal: &Principal,
        classes: Vec<PyBackedStr>,
        topics: Vec<PyBackedStr>,
        from_: Option<&str>,
        ends_in_s: f64,
        since_us: u64,
    ) -> PyResult<Option<&'static str>> {
        let rights = rights(&principal.core.subject, classes.iter().map(|name| &**name))?;
        let guest = guest(principal, "", conn, since_us);
        let (tenant, subject) = (guest.tenant(), &*principal.core.subject);
        let refused = topics.iter().find_map(|topic| rights.check(topic).err());
        let refused = refused.or((topics.len() > HubLimits::default().max_subscriptions).then_some(Refused::TooMany));
        let is_position = from_.is_none_or(|from| Position::decode(from).is_some());
        if let Some(why) = refused.or((!is_position).then_some(Refused::NotAPosition)) {
            return Ok(Some(hub::word(why)));
        }
        let newcomer = Newcomer {
            client_id: None,
            owner: Arc::new(Owner { tenant: tenant.into(), subject: subject.into() }),
            rights,
            dialect: Dialect::EventStream,
            ends_ms: self.ends_ms(ends_in_s)?,
            topics: topics.iter().map(|topic| (**topic).into()).collect(),
            from: from_.map(Into::into),
            seat: Seat::take(&self.roster, guest),
        };
        Ok(self.desk.accept_stream(caller(conn), newcomer, head).err().map(word))
    }

    /// Sends a handshake away with a whole HTTP answer.
    fn refuse(&self, conn: u64, answer: Vec<u8>) {
        self.desk.refuse(caller(conn), answer);
    }

    /// Gives a connection the rights and the end of another token; the patterns that it has no longer.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn renew(
        &self,
        py: Python<'_>,
        conn: u64,
        key: u64,
        subject: &str,
        classes: Vec<PyBackedStr>,
        ends_in_s: f64,
    ) -> PyResult<Vec<String>> {
        let rights = rights(subject, classes.iter().map(|name| &**name))?;
        let ends_ms = self.desk.now_ms().saturating_add(milliseconds(ends_in_s)?);
        let lost = py.detach(|| self.desk.renew(caller(conn), hub::key(key), rights, ends_ms));
        Ok(lost.into_iter().map(Into::into).collect())
    }

    /// Sends messages to a connection; a complaint counts against it.
    #[pyo3(signature = (conn, messages, *, is_complaint=false))]
    fn say(&self, conn: u64, messages: Vec<String>, is_complaint: bool) {
        self.desk.say(caller(conn), messages, is_complaint);
    }

    /// Closes connections with a code and a reason.
    fn close(&self, conns: Vec<u64>, code: u16, reason: &str) {
        for conn in conns {
            self.desk.close(caller(conn), code, reason);
        }
    }

    /// Whether nobody else holds this client id.
    fn is_free(&self, client_id: &str, tenant: &str, subject: &str) -> bool {
        self.desk.is_free(client_id, &Owner { tenant: tenant.into(), subject: subject.into() })
    }

    /// Gives a connection what the daemon tells: whether that was all; None when the history has ended.
    #[pyo3(signature = (conn, key, epoch, events, journal_seq, *, is_last))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "a batch as the daemon gives it")]
    fn backfill(
        &self,
        py: Python<'_>,
        conn: u64,
        key: u64,
        epoch: &str,
        events: Vec<Told>,
        journal_seq: u64,
        is_last: bool,
    ) -> Option<bool> {
        let texts = texts_of(&events);
        let events = events_of(&events, &texts);
        let batch = Backfill { epoch, events: &events, journal_seq, is_last };
        py.detach(|| self.desk.backfill(caller(conn), hub::key(key), &batch))
    }

    /// Tells a connection that the history it waits for cannot be had.
    fn give_up(&self, py: Python<'_>, conn: u64, key: u64, reason: &str) {
        py.detach(|| self.desk.give_up(caller(conn), hub::key(key), reason));
    }

    /// How many connections there are.
    fn __len__(&self) -> usize {
        self.desk.len()
    }

    /// Connections that have ended, by code.
    fn closed(&self) -> BTreeMap<u16, u64> {
        self.desk.closed()
    }

    /// Frames that were compressed, their bytes times connections that got them so, and the bytes that these were sent.
    fn deflated(&self) -> (u64, u64, u64) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = listener.as_ref().map(Listener::deflated).unwrap_or_default();
        (counts.made, counts.bytes, counts.sent_bytes)
    }

    /// How many threads send by `io_uring`.
    fn rings(&self) -> usize {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Listener::rings)
    }

    /// Whether all its threads are at work.
    fn is_alive(&self) -> bool {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(Listener::is_alive)
    }

    /// Sends everybody away, spread over some time, and refuses who comes.
    fn drain(&self, within_ms: u64) {
        if let Some(listener) = &*self.listener.lock().unwrap_or_else(PoisonError::into_inner) {
            listener.drain(within_ms);
        }
    }

    /// Closes what is open and ends the threads; takes a few seconds at most.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| {
            let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(listener) = listener {
                listener.stop();
            }
        });
    }
}

impl RealtimeListener {
    fn ends_ms(&self, ends_in_s: f64) -> PyResult<u64> {
        Ok(self.desk.now_ms().saturating_add(milliseconds(ends_in_s)?))
    }
}

/// Who takes a place in the roster.
fn guest(principal: &Principal, client_id: &str, handle: u64, since_us: u64) -> Guest {
    let (principal, client_id) = (Arc::clone(&principal.core), client_id.into());
    Guest { principal, client_id, face: Face::Native, handle, key: None, since_us }
}

const fn word(why: NotIn) -> &'static str {
    match why {
        NotIn::Taken => "taken",
        NotIn::TooMany => "full",
        NotIn::Gone => "gone",
    }
}

/// The plain protocol, where somebody asks for it by name.
const PLAIN: &str = "flx.plain";
const INDEX: u32 = (1 << 24) - 1;

/// A clock that shows what one of Python shows, or a moment more: what is due by that one is due by this.
fn clock_like(clock: &Bound<'_, PyAny>) -> PyResult<Clock> {
    let set = Instant::now();
    let now = Duration::try_from_secs_f64(clock.call0()?.extract()?);
    Ok(Clock::reading(set, now.map_err(|error| PyValueError::new_err(error.to_string()))?))
}

/// A connection as a number: eight bits for the thread, 24 for the index, 32 for the generation.
fn number(Caller { thread, conn }: Caller) -> u64 {
    (thread as u64) << 56 | u64::from(conn.index & INDEX) << 32 | u64::from(conn.generation)
}

fn caller(number: u64) -> Caller {
    let conn = ConnId { index: (number >> 32) as u32 & INDEX, generation: number as u32 };
    Caller { thread: (number >> 56) as usize, conn }
}

fn milliseconds(seconds: f64) -> PyResult<u64> {
    Ok((crate::errors::finite(seconds)?.max(0.0) * 1_000.0) as u64)
}

/// A header's name as ASGI has it.
fn name_of<'py>(py: Python<'py>, name: &str) -> Bound<'py, PyBytes> {
    PyBytes::new(py, name.to_ascii_lowercase().as_bytes())
}

/// The prepared answers for so many threads, each with its own request id.
fn prepared(given: HashMap<String, Vec<u8>>, threads: usize) -> PyResult<Vec<Refusals>> {
    if let Some(missing) = FAULTS.iter().find(|name| !given.contains_key(**name)) {
        return Err(PyValueError::new_err(format!("no answer for {missing}")));
    }
    let given = Arc::new(given);
    (0..threads).map(|_| refusals(Arc::clone(&given))).collect()
}

fn refusals(given: Arc<HashMap<String, Vec<u8>>>) -> PyResult<Refusals> {
    let (mut id, _) = seed()?;
    Ok(Box::new(move |fault| {
        let mut answer = given.get(name_of_fault(fault)).cloned().unwrap_or_default();
        if let Some(at) = answer.windows(ID_GAP.len()).position(|window| window == ID_GAP) {
            id = id.wrapping_add(1);
            answer[at..at + ID_GAP.len()].copy_from_slice(format!("{id:016x}").as_bytes());
        }
        answer
    }))
}

fn name_of_fault(fault: Fault) -> &'static str {
    match fault {
        Fault::Malformed => "malformed",
        Fault::Body => "body",
        Fault::TooLarge => "too_large",
        Fault::Timeout => "timeout",
        Fault::Method => "method",
        Fault::Host => "host",
        Fault::NoUpgrade => "no_upgrade",
        Fault::Version => "version",
        Fault::Key => "key",
        Fault::Extensions => "extensions",
        Fault::Full => "full",
        Fault::Draining(_) => "draining",
    }
}
