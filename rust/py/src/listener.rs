//! `RealtimeListener`: the native WebSocket listener of a gateway, its threads and its hub.
//!
//! Strategy: the listener's thread never enters Python. What it asks for lies on its desk, and a byte in a pipe says so; Python
//! answers when it comes to it. Rules: the interpreter is detached while the hub is held or a thread is waited for.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use flx_core::hub::{Backfill, Dialect, Event, Hub, Limits as HubLimits, Profile, Rights};
use flx_realtime::desk::{Desk, Newcomer, NotIn, Owner, Question};
use flx_realtime::handshake::SUBPROTOCOL;
use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::request::Fault;
use flx_realtime::service::ConnId;
use flx_realtime::sessions::{Refusals, Sessions};
use flx_realtime::tls;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyTuple};

use crate::hub::{self, class};
use crate::window::seed;

/// What stands for the request id in a prepared answer: as long as the ids that are put in its place.
const ID_GAP: &[u8; 16] = b"0000000000000000";
/// The faults for which an answer must be prepared.
const FAULTS: [&str; 11] =
    ["malformed", "body", "too_large", "timeout", "method", "host", "no_upgrade", "version", "key", "full", "draining"];
/// Tenant, topic, number, number before it, microseconds since 1970, JSON.
type GivenEvent = (PyBackedStr, PyBackedStr, u64, u64, u64, PyBackedBytes);

/// The listener; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct RealtimeListener {
    desk: Arc<Desk>,
    listener: Mutex<Option<Listener>>,
    bell: UnixStream,
    /// Where it listens.
    #[pyo3(get)]
    port: u16,
}

#[pymethods]
impl RealtimeListener {
    #[new]
    #[pyo3(signature = (host, port, *, refusals, connections, per_subject, tls=None))]
    fn new(
        host: &str,
        port: u16,
        refusals: HashMap<String, Vec<u8>>,
        connections: usize,
        per_subject: usize,
        tls: Option<(Vec<u8>, Vec<u8>)>,
    ) -> PyResult<Self> {
        let address: IpAddr = host.parse().map_err(|_| PyValueError::new_err("the host is an IP address"))?;
        let config = tls.map(|(chain, key)| tls::server(&chain, &key)).transpose();
        let config = config.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let mut refusals = Some(prepared(refusals)?);
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let clock = Clock::default();
        let (hub_seed, epoch) = seed()?;
        let limits = HubLimits { max_connections: connections, ..HubLimits::default() };
        let hub = Hub::new(limits, hub_seed, &format!("local-{epoch:016x}"));
        // A full pipe has rung already.
        let ring = Box::new(move || drop((&ring).write(&[1])));
        let desk = Arc::new(Desk::new(hub, per_subject, clock, ring));
        let limits = Limits { connections, backlog_bytes: 1 << 20, ..Limits::default() };
        let shared = Arc::clone(&desk);
        // One thread: the hub says in one call who gets what next, and only one may write it.
        let listener =
            Listener::start(SocketAddr::new(address, port), 1, limits, config.as_ref(), clock, |_, thread| {
                let refusals = refusals.take().unwrap_or_else(|| Box::new(|_| Vec::new()));
                Sessions::new(Arc::clone(&shared), refusals, thread)
            });
        // With its number: that the address is in use is no surprise where several processes try.
        let listener = listener.map_err(|error| PyOSError::new_err((error.raw_os_error(), error.to_string())))?;
        let port = listener.address().port();
        Ok(Self { desk, listener: Mutex::new(Some(listener)), bell, port })
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
                ("handshake", number(it.conn), peer, it.path, it.query, headers).into_pyobject(py)
            }
            Question::History(it) => {
                let logs: HashMap<_, _> =
                    it.since.logs.into_iter().map(|(name, line)| (name.into_string(), line)).collect();
                let since = (it.since.epoch.into_string(), it.since.seq, logs);
                let key = hub::handle(it.key);
                ("history", number(it.conn), key, it.pattern.into_string(), since).into_pyobject(py)
            }
            Question::Room(conn) => ("room", number(conn)).into_pyobject(py),
        };
        self.desk.questions().into_iter().map(tuple).collect()
    }

    /// Lets a handshake in; why not, when not.
    #[pyo3(signature = (conn, client_id, *, tenant, subject, classes, subprotocol, ends_in_s))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "they are keywords in Python")]
    fn accept(
        &self,
        conn: u64,
        client_id: &str,
        tenant: &str,
        subject: &str,
        classes: Vec<PyBackedStr>,
        subprotocol: Option<&str>,
        ends_in_s: f64,
    ) -> PyResult<Option<&'static str>> {
        let classes = classes.iter().map(|name| class(name)).collect::<PyResult<Vec<_>>>()?;
        let (subprotocol, dialect) = match subprotocol {
            None => (None, Dialect::Plain),
            Some(PLAIN) => (Some(PLAIN), Dialect::Plain),
            Some(SUBPROTOCOL) => (Some(SUBPROTOCOL), Dialect::Batched),
            Some(_) => return Err(PyValueError::new_err("no such subprotocol")),
        };
        let ends_in_ms = (crate::errors::finite(ends_in_s)?.max(0.0) * 1_000.0) as u64;
        let newcomer = Newcomer {
            client_id: client_id.into(),
            owner: Arc::new(Owner { tenant: tenant.into(), subject: subject.into() }),
            profile: Profile { tenant: tenant.into(), rights: Rights::new(subject, classes), dialect },
            ends_ms: self.desk.now_ms().saturating_add(ends_in_ms),
        };
        Ok(self.desk.accept(conn_of(conn), newcomer, subprotocol).err().map(|why| match why {
            NotIn::Taken => "taken",
            NotIn::TooMany => "too_many",
            NotIn::Gone => "gone",
        }))
    }

    /// Sends a handshake away with a whole HTTP answer.
    fn refuse(&self, conn: u64, answer: Vec<u8>) {
        self.desk.refuse(conn_of(conn), answer);
    }

    /// Whether nobody else holds this client id.
    fn is_free(&self, client_id: &str, tenant: &str, subject: &str) -> bool {
        self.desk.is_free(client_id, &Owner { tenant: tenant.into(), subject: subject.into() })
    }

    /// Begins anew in an epoch, after this number of its journal.
    fn restart(&self, py: Python<'_>, epoch: &str, seq: u64, reason: &str) {
        py.detach(|| self.desk.hub().restart(epoch, seq, reason, self.desk.now_ms()));
        self.desk.wake();
    }

    /// Takes in events in their order.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn append(&self, py: Python<'_>, events: Vec<GivenEvent>) -> PyResult<()> {
        let events = checked(&events)?;
        py.detach(|| {
            let now_ms = self.desk.now_ms();
            let mut hub = self.desk.hub();
            for event in &events {
                hub.append(event, now_ms);
            }
        });
        self.desk.wake();
        Ok(())
    }

    /// The journal was heard up to here.
    fn advance(&self, py: Python<'_>, seq: u64) {
        py.detach(|| self.desk.hub().advance(seq));
    }

    /// An execution is over.
    fn over(&self, py: Python<'_>, tenant: &str, execution: &str) {
        py.detach(|| self.desk.hub().over(tenant, execution));
    }

    /// Publishes to a topic of this gateway alone.
    fn publish(&self, py: Python<'_>, tenant: &str, topic: &str, ts_us: u64, data: &[u8]) -> PyResult<()> {
        let data = text(data)?;
        py.detach(|| self.desk.hub().publish(tenant, topic, ts_us, data, self.desk.now_ms()));
        self.desk.wake();
        Ok(())
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
        events: Vec<GivenEvent>,
        journal_seq: u64,
        is_last: bool,
    ) -> PyResult<Option<bool>> {
        let events = checked(&events)?;
        let batch = Backfill { epoch, events: &events, journal_seq, is_last };
        Ok(py.detach(|| self.desk.backfill(conn_of(conn), hub::key(key), &batch)))
    }

    /// Tells a connection that the history it waits for cannot be had.
    fn give_up(&self, py: Python<'_>, conn: u64, key: u64, reason: &str) {
        py.detach(|| self.desk.give_up(conn_of(conn), hub::key(key), reason));
    }

    /// How many connections there are.
    fn __len__(&self) -> usize {
        self.desk.hub().stats().connections as usize
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

/// The plain protocol, where somebody asks for it by name.
const PLAIN: &str = "flx.plain";

fn number(conn: ConnId) -> u64 {
    u64::from(conn.index) << 32 | u64::from(conn.generation)
}

fn conn_of(number: u64) -> ConnId {
    ConnId { index: (number >> 32) as u32, generation: number as u32 }
}

/// A header's name as ASGI has it.
fn name_of<'py>(py: Python<'py>, name: &str) -> Bound<'py, PyBytes> {
    PyBytes::new(py, name.to_ascii_lowercase().as_bytes())
}

fn text(data: &[u8]) -> PyResult<&str> {
    str::from_utf8(data).map_err(|_| PyValueError::new_err("an event's data is JSON in UTF-8"))
}

fn checked(events: &[GivenEvent]) -> PyResult<Vec<Event<'_>>> {
    events.iter().map(event).collect()
}

fn event((tenant, topic, seq, prev, ts_us, data): &GivenEvent) -> PyResult<Event<'_>> {
    Ok(Event { tenant, topic, seq: *seq, prev: *prev, ts_us: *ts_us, data: text(data)? })
}

/// The prepared answers, each with its own request id.
fn prepared(given: HashMap<String, Vec<u8>>) -> PyResult<Refusals> {
    if let Some(missing) = FAULTS.iter().find(|name| !given.contains_key(**name)) {
        return Err(PyValueError::new_err(format!("no answer for {missing}")));
    }
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
        Fault::Full => "full",
        Fault::Draining(_) => "draining",
    }
}
