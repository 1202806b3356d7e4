//! `Lane`: the HTTP server of our own, with admission in its thread and the rest in Python's loop.
//!
//! Strategy: the lane's thread never enters Python. It decides about each request, answers what it can, and lays the others on
//! a desk; a byte in a pipe says so. The loop takes all that lies there at once: plain commands go to the hall, where they
//! leave together, and what else there is becomes a task.
//!
//! Rules:
//! - what the thread of the lane uses of Python's objects is frozen, and used without the interpreter;
//! - the pipe is rung once for all that the lane's thread lays down in one turn, and not again before that was taken.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flx_core::admission::head::{Field, Head};
use flx_lane::body::Fault;
use flx_lane::call::Call;
use flx_lane::server::{Limits, Server};
use flx_lane::service::{Peer, Service, Told, Verdict};
use flx_lane::socket::{Handshake, Message};
use flx_realtime::tls;
use http::request::Parts;
use http::{HeaderValue, Method, Response, Version, header};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::admission::Admission;
use crate::decided::Decided;
use crate::judge;
use crate::lane_call::{LaneCall, LaneSocket};
use crate::request::{Now, monotonic_ns};
use crate::ride::{Hall, Pending};
use crate::seen::Request;
use crate::sheet::{NativeLine, natives};

/// What a page is told beside what every response says: one that is not on the list; by origin; any other.
type GivenCors<'py> =
    (Vec<Bound<'py, PyTuple>>, HashMap<Vec<u8>, Vec<Bound<'py, PyTuple>>>, Option<Vec<Bound<'py, PyTuple>>>);

/// Of the name of a stream of lines.
const LINES: &[u8] = b"ndjson";

/// Who may ask from a page, as headers.
struct Cors {
    nobody: Vec<NativeLine>,
    by_origin: HashMap<Vec<u8>, Vec<NativeLine>>,
    anybody: Option<Vec<NativeLine>>,
}

impl Cors {
    fn new(given: GivenCors<'_>) -> PyResult<Self> {
        let (nobody, by_origin, anybody) = given;
        let by_origin = by_origin.into_iter().map(|(origin, lines)| Ok((origin, natives(&lines)?)));
        Ok(Self {
            nobody: natives(&nobody)?,
            by_origin: by_origin.collect::<PyResult<_>>()?,
            anybody: anybody.map(|lines| natives(&lines)).transpose()?,
        })
    }

    fn of(&self, head: &Parts) -> &[NativeLine] {
        let Some(origin) = head.headers.get(header::ORIGIN) else { return &self.nobody };
        let known = self.by_origin.get(origin.as_bytes());
        let any = self.anybody.as_ref().filter(|_| origin != "null");
        known.or(any).unwrap_or(&self.nobody)
    }
}

/// What lies on the desk.
enum Laid {
    /// A command that may be plain, with its whole body.
    Ride(Box<Decided>, Box<Pending>),
    /// Any other request; not decided about, where that has to wait for a lease.
    Request(Option<Box<Decided>>, Parts, Peer, Result<Bytes, Fault>, Call),
    Handshake(Parts, Peer, Handshake),
    Told(u64, Told),
}

/// The lane's side of it.
struct Desk {
    admission: Py<Admission>,
    bare: Option<usize>,
    many: Option<usize>,
    never_waits: bool,
    cors: Option<Cors>,
    laid: Mutex<Vec<Laid>>,
    /// Whether it was rung since all was taken.
    is_rung: AtomicBool,
    ring: UnixStream,
}

impl Desk {
    fn lay(&self, one: Laid) {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }

    /// All that lies there.
    fn take(&self) -> Vec<Laid> {
        let mut laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_rung.store(false, Ordering::Relaxed);
        std::mem::take(&mut *laid)
    }

    fn judge(&self, parts: &Parts, peer: Peer) -> PyResult<Verdict<Option<Box<Decided>>>> {
        let admission = self.admission.get();
        let mut head: Head<&[u8]> = Head::default();
        for (name, value) in &parts.headers {
            if let Some(field) = Field::of(name.as_str().as_bytes()) {
                head.take(field, value.as_bytes());
            }
        }
        if let Some(authority) = authority(parts) {
            head.take(Field::Host, authority.as_bytes());
        }
        if let Some(authority) = parts.uri.authority().filter(|_| parts.version < Version::HTTP_2) {
            // A target with a host in it is for a proxy. It names one host, and there is, or is not, another one.
            head.take(Field::Host, authority.as_str().as_bytes());
            head.take(Field::Host, authority.as_str().as_bytes());
        }
        let address = peer.address.ip().to_string();
        let request = Request {
            method: parts.method.as_str(),
            path: parts.uri.path().as_bytes(),
            peer: &address,
            secure: peer.is_secure,
            pages: !admission.revocations.get().refuses(),
            last: self.never_waits,
        };
        let now = Now::of(None, None)?;
        let (seen, verdict) = admission.judge(&request, &head, now, || Ok(parts.version < Version::HTTP_2))?;
        let is_head = seen.is_head;
        let mut response = match verdict {
            judge::Verdict::Wait => return Ok(Verdict::Go { seen: None, limit: Some(admission.body_limit) }),
            judge::Verdict::Go(go) => {
                // What has no body is not waited for: between admission and its answer nothing is to happen.
                let limit = (go.length != Some(0)).then_some(admission.body_limit);
                return Ok(Verdict::Go { seen: Some(Box::new(Decided::new(seen, go, &head))), limit });
            }
            judge::Verdict::Refused { template, retry_after_s, close } => {
                let request_id = seen.request_id.native(admission.id_prefix());
                admission.answers().native_problem(template, &seen.parts(&request_id), retry_after_s, close)?
            }
            judge::Verdict::Page(page) => {
                let request_id = seen.request_id.native(admission.id_prefix());
                admission.answers().native_page(&page, &seen.parts(&request_id))?
            }
        };
        self.allow(parts, &mut response);
        if is_head {
            // hyper leaves the body out in HTTP/1 only.
            let length = std::mem::take(response.body_mut()).len();
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        Ok(Verdict::Answer(response))
    }

    /// Whether a request may be a plain command, or a batch of them.
    fn rides(&self, decided: &Decided, head: &Parts) -> bool {
        let is_many = self.many == Some(decided.route);
        (is_many || self.bare == Some(decided.route))
            && decided.length.is_some_and(|length| length > 0)
            && head.method == Method::POST
            && head.uri.query().is_none_or(str::is_empty)
            && !(is_many && head.headers.get_all(header::ACCEPT).iter().any(names_lines))
    }

    fn allow(&self, parts: &Parts, response: &mut Response<Bytes>) {
        if let Some(cors) = &self.cors {
            response.headers_mut().extend(cors.of(parts).iter().cloned());
        }
    }
}

/// Whether a media type may be that of a stream of lines (`flx_api.gateway.batch`, which decides).
fn names_lines(accept: &HeaderValue) -> bool {
    accept.as_bytes().to_ascii_lowercase().windows(LINES.len()).any(|part| part == LINES)
}

/// The host of a request of HTTP/2 that has no header for it.
pub(crate) fn authority(parts: &Parts) -> Option<&str> {
    let may = parts.version == Version::HTTP_2 && !parts.headers.contains_key(header::HOST);
    let authority = parts.uri.authority().filter(|_| may);
    authority.map(http::uri::Authority::as_str)
}

impl Service for Desk {
    type Seen = Option<Box<Decided>>;

    fn head(&self, head: &Parts, peer: Peer) -> Verdict<Self::Seen> {
        // What cannot be decided here is decided in Python, which can say what is wrong.
        self.judge(head, peer).unwrap_or(Verdict::Go { seen: None, limit: Some(self.admission.get().body_limit) })
    }

    fn request(&self, seen: Self::Seen, head: Parts, peer: Peer, body: Result<Bytes, Fault>, call: Call) {
        let one = match (seen, body) {
            (Some(decided), Ok(body)) if self.rides(&decided, &head) => {
                let own = self.cors.as_ref().map(|cors| cors.of(&head).to_vec()).unwrap_or_default();
                Laid::Ride(decided, Box::new(Pending { head, peer, body, call, own, mark_ns: monotonic_ns() }))
            }
            (seen, body) => Laid::Request(seen, head, peer, body, call),
        };
        self.lay(one);
    }

    fn handshake(&self, head: Parts, peer: Peer, handshake: Handshake) {
        self.lay(Laid::Handshake(head, peer, handshake));
    }

    fn told(&self, number: u64, what: Told) {
        self.lay(Laid::Told(number, what));
    }

    fn laid(&self) {
        let laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        if !laid.is_empty() && !self.is_rung.swap(true, Ordering::Relaxed) {
            drop(laid);
            // A full pipe has rung already.
            let _ = (&self.ring).write(&[1]);
        }
    }
}

/// The server; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Lane {
    desk: Arc<Desk>,
    server: Mutex<Option<Server>>,
    bell: UnixStream,
}

#[pymethods]
impl Lane {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    #[pyo3(signature = (admission, listening, *, bare=None, many=None, never_waits=true, body_timeout_s=25.0, cors=None, tls=None))]
    fn new(
        admission: Py<Admission>,
        listening: i32,
        bare: Option<usize>,
        many: Option<usize>,
        never_waits: bool,
        body_timeout_s: f64,
        cors: Option<GivenCors<'_>>,
        tls: Option<(Vec<u8>, Vec<u8>)>,
    ) -> PyResult<Self> {
        let config = tls.map(|(chain, key)| tls::server(&chain, &key, &["h2", "http/1.1"])).transpose();
        let config = config.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let cors = cors.map(Cors::new).transpose()?;
        admission.get().serve_lane();
        let desk = Arc::new(Desk {
            admission,
            bare,
            many,
            never_waits,
            cors,
            laid: Mutex::default(),
            is_rung: AtomicBool::new(false),
            ring,
        });
        let listening = TcpListener::from(crate::descriptor::copy(listening)?);
        let limits = Limits { body: within(body_timeout_s), ..Limits::default() };
        let server = Server::start(Arc::clone(&desk), listening, limits, config)?;
        Ok(Self { desk, server: Mutex::new(Some(server)), bell })
    }

    /// The descriptor that is readable when something lies on the desk.
    fn fileno(&self) -> i32 {
        self.bell.as_raw_fd()
    }

    /// Takes what lies there: rides board in the hall, unless there is none; calls, sockets, and what they were told.
    #[expect(clippy::type_complexity, reason = "three lists")]
    fn take<'py>(
        &self,
        py: Python<'py>,
        hall: Option<&Bound<'py, Hall>>,
    ) -> PyResult<(Vec<Py<LaneCall>>, Vec<Py<LaneSocket>>, Vec<(u64, Bound<'py, PyAny>)>)> {
        // First the bell, then the desk: what is laid there in between is taken, or rings again.
        let _ = (&self.bell).read(&mut [0; 64]);
        let laid = self.desk.take();
        let (mut calls, mut sockets, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let by = &self.desk.admission;
        for one in laid {
            match one {
                Laid::Ride(decided, pending) => {
                    let admitted = decided.admitted(py, by)?;
                    match hall {
                        Some(hall) => Hall::bring(hall, admitted, pending),
                        None => calls.push(Py::new(py, LaneCall::of(*pending, Some(admitted)))?),
                    }
                }
                Laid::Request(decided, head, peer, body, call) => {
                    let admitted = decided.map(|decided| decided.admitted(py, by)).transpose()?;
                    calls.push(Py::new(py, LaneCall::new(head, peer, body, call, admitted))?);
                }
                Laid::Handshake(head, peer, handshake) => {
                    sockets.push(Py::new(py, LaneSocket::new(head, peer, handshake))?);
                }
                Laid::Told(number, what) => told.push((number, word(py, what)?)),
            }
        }
        Ok((calls, sockets, told))
    }

    /// Takes no more connections, lets what is under way end within this time, and ends.
    fn stop(&self, py: Python<'_>, within_s: f64) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let within = within(within_s);
        py.detach(|| {
            if let Some(server) = server {
                server.stop(within);
            }
        });
    }
}

/// Holds that a certificate chain and its key can be used, in PEM.
#[pyfunction]
pub(crate) fn check_certificate(chain: &[u8], key: &[u8]) -> PyResult<()> {
    tls::server(chain, key, &[]).map(drop).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn within(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// What was told: True, there is room; None, the client is gone; a text, bytes, or the code of a Close frame.
fn word(py: Python<'_>, what: Told) -> PyResult<Bound<'_, PyAny>> {
    Ok(match what {
        Told::Room => true.into_pyobject(py)?.to_owned().into_any(),
        Told::Gone => py.None().into_bound(py),
        // A text was found to be UTF-8.
        Told::Message(Message::Text(text)) => String::from_utf8_lossy(&text).into_pyobject(py)?.into_any(),
        Told::Message(Message::Binary(bytes)) => PyBytes::new(py, &bytes).into_any(),
        Told::Message(Message::Close(code)) => code.into_pyobject(py)?.into_any(),
    })
}
