//! `LaneCall` and `LaneSocket`: a request of the lane, and a WebSocket of it, as Python has them.
//!
//! Rule: what is dropped without an answer, or before its end, ends its connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flx_lane::body::Fault;
use flx_lane::call::{Call, Room, Stream};
use flx_lane::service::Peer;
use flx_lane::socket::{Handshake, Socket};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode, Version};
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::admitted::Admitted;
use crate::lane::authority;
use crate::ride::Pending;
use crate::sheet::native;

/// How far an answer is.
enum Answering {
    Not(Call),
    Begun(Stream),
    Over,
}

/// A request that is to be answered; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct LaneCall {
    head: Parts,
    peer: Peer,
    body: Result<Bytes, Fault>,
    answering: Mutex<Answering>,
    #[pyo3(get)]
    admitted: Option<Py<Admitted>>,
    #[pyo3(get)]
    number: u64,
}

impl LaneCall {
    pub(crate) fn new(
        head: Parts,
        peer: Peer,
        body: Result<Bytes, Fault>,
        call: Call,
        admitted: Option<Py<Admitted>>,
    ) -> Self {
        let number = call.number();
        Self { head, peer, body, answering: Mutex::new(Answering::Not(call)), admitted, number }
    }

    /// A command that is to go the general way.
    pub(crate) fn of(pending: Pending, admitted: Option<Py<Admitted>>) -> Self {
        Self::new(pending.head, pending.peer, Ok(pending.body), pending.call, admitted)
    }

    fn answering(&self) -> MutexGuard<'_, Answering> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> PyResult<Call> {
        match std::mem::replace(&mut *self.answering(), Answering::Over) {
            Answering::Not(call) => Ok(call),
            Answering::Begun(_) | Answering::Over => Err(PyRuntimeError::new_err("it has been answered")),
        }
    }
}

#[pymethods]
impl LaneCall {
    /// As ASGI has it.
    fn scope<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        scope(py, &self.head, self.peer, "http", if self.peer.is_secure { "https" } else { "http" })
    }

    /// The whole body, or what is wrong with it: `too_large`, `late` or `broken`.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.body {
            Ok(body) => Ok(PyBytes::new(py, body).into_any()),
            Err(Fault::TooLarge) => "too_large".into_bound_py_any(py),
            Err(Fault::Late) => "late".into_bound_py_any(py),
            Err(Fault::Broken) => "broken".into_bound_py_any(py),
        }
    }

    /// Answers with a whole body; False when nobody waits any more.
    fn answer(&self, status: u16, headers: Vec<Bound<'_, PyTuple>>, body: &[u8]) -> PyResult<bool> {
        let response = with_headers(Response::new(Bytes::copy_from_slice(body)), status, headers)?;
        Ok(self.begin()?.answer(response))
    }

    /// Begins an answer whose body comes in parts.
    fn stream(&self, status: u16, headers: Vec<Bound<'_, PyTuple>>) -> PyResult<()> {
        let head = with_headers(Response::new(()), status, headers)?;
        let stream = self.begin()?.stream(head);
        *self.answering() = Answering::Begun(stream);
        Ok(())
    }

    /// Sends a part: True when it is on its way, False when there is no room yet, None when the client is gone.
    fn part(&self, body: &[u8]) -> Option<bool> {
        match &*self.answering() {
            Answering::Begun(stream) => word(stream.part(&Bytes::copy_from_slice(body))),
            Answering::Not(_) | Answering::Over => None,
        }
    }

    /// That was the last part.
    fn end(&self) {
        if let Answering::Begun(stream) = std::mem::replace(&mut *self.answering(), Answering::Over) {
            stream.end();
        }
    }

    /// Gives the answer up: a connection with half of one is cut.
    fn cut(&self) {
        *self.answering() = Answering::Over;
    }

    /// Asks to be told when the client is gone; False when it is already.
    fn ask_for_end(&self) -> bool {
        match &*self.answering() {
            Answering::Not(call) => call.ask_for_end(),
            Answering::Begun(stream) => stream.ask_for_end(),
            Answering::Over => false,
        }
    }
}

/// How far a WebSocket is.
enum State {
    Asked(Handshake),
    Open(Socket),
    Over,
}

/// A WebSocket; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct LaneSocket {
    head: Parts,
    peer: Peer,
    state: Mutex<State>,
    #[pyo3(get)]
    number: u64,
}

impl LaneSocket {
    pub(crate) fn new(head: Parts, peer: Peer, handshake: Handshake) -> Self {
        let number = handshake.number();
        Self { head, peer, state: Mutex::new(State::Asked(handshake)), number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> PyResult<Handshake> {
        match std::mem::replace(&mut *self.state(), State::Over) {
            State::Asked(handshake) => Ok(handshake),
            State::Open(_) | State::Over => Err(PyRuntimeError::new_err("it has been decided about")),
        }
    }

    fn send(&self, send: impl FnOnce(&Socket) -> Room) -> Option<bool> {
        match &*self.state() {
            State::Open(socket) => word(send(socket)),
            State::Asked(_) | State::Over => None,
        }
    }
}

#[pymethods]
impl LaneSocket {
    /// As ASGI has it.
    fn scope<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let scope = scope(py, &self.head, self.peer, "websocket", if self.peer.is_secure { "wss" } else { "ws" })?;
        let refusals = PyDict::new(py);
        refusals.set_item("websocket.http.response", PyDict::new(py))?;
        scope.set_item(intern!(py, "extensions"), refusals)?;
        let offered = self.head.headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter();
        let offered = offered.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
        scope.set_item(intern!(py, "subprotocols"), PyList::new(py, offered.map(str::trim).collect::<Vec<_>>())?)?;
        Ok(scope)
    }

    /// Lets it in, with these headers beside those of every handshake.
    fn accept(&self, headers: Vec<Bound<'_, PyTuple>>) -> PyResult<()> {
        let headers = headers.into_iter().map(|it| native(&it)).collect::<PyResult<_>>()?;
        let socket = self.asked()?.accept(headers);
        *self.state() = State::Open(socket);
        Ok(())
    }

    /// Sends it away.
    fn refuse(&self, status: u16, headers: Vec<Bound<'_, PyTuple>>, body: &[u8]) -> PyResult<()> {
        let response = with_headers(Response::new(Bytes::copy_from_slice(body)), status, headers)?;
        self.asked()?.refuse(response);
        Ok(())
    }

    /// Sends text: as `LaneCall.part`.
    fn text(&self, text: &str) -> Option<bool> {
        self.send(|socket| socket.text(text))
    }

    /// Sends bytes: as `LaneCall.part`.
    fn binary(&self, body: &[u8]) -> Option<bool> {
        self.send(|socket| socket.binary(&Bytes::copy_from_slice(body)))
    }

    /// Ends it: as `LaneCall.part`.
    fn close(&self, code: u16, reason: &str) -> Option<bool> {
        self.send(|socket| socket.close(code, reason))
    }

    /// A message of the client was taken; the next one may come.
    fn took(&self) {
        if let State::Open(socket) = &*self.state() {
            socket.took();
        }
    }

    /// Nobody serves it any more.
    fn drop(&self) {
        *self.state() = State::Over;
    }
}

fn word(room: Room) -> Option<bool> {
    match room {
        Room::Taken => Some(true),
        Room::Full => Some(false),
        Room::Gone => None,
    }
}

fn with_headers<T>(mut response: Response<T>, status: u16, headers: Vec<Bound<'_, PyTuple>>) -> PyResult<Response<T>> {
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| PyValueError::new_err("no such status"))?;
    let lines: &mut HeaderMap = response.headers_mut();
    lines.reserve(headers.len());
    for header in headers {
        let (name, value) = native(&header)?;
        lines.append(name, value);
    }
    Ok(response)
}

/// A request or a handshake as ASGI has it.
fn scope<'py>(py: Python<'py>, head: &Parts, peer: Peer, kind: &str, scheme: &str) -> PyResult<Bound<'py, PyDict>> {
    let headers = PyList::empty(py);
    if let Some(authority) = authority(head) {
        headers.append((PyBytes::new(py, b"host"), PyBytes::new(py, authority.as_bytes())))?;
    }
    for (name, value) in &head.headers {
        headers.append((PyBytes::new(py, name.as_str().as_bytes()), PyBytes::new(py, value.as_bytes())))?;
    }
    let version = match head.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    let asgi = PyDict::new(py);
    asgi.set_item("version", "3.0")?;
    asgi.set_item("spec_version", "2.3")?;
    let path = head.uri.path();
    let scope = PyDict::new(py);
    scope.set_item(intern!(py, "type"), kind)?;
    scope.set_item(intern!(py, "asgi"), asgi)?;
    scope.set_item(intern!(py, "http_version"), version)?;
    scope.set_item(intern!(py, "method"), head.method.as_str())?;
    scope.set_item(intern!(py, "scheme"), scheme)?;
    scope.set_item(intern!(py, "path"), percent_decoded(path))?;
    scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, path.as_bytes()))?;
    scope.set_item(intern!(py, "query_string"), PyBytes::new(py, head.uri.query().unwrap_or_default().as_bytes()))?;
    scope.set_item(intern!(py, "root_path"), "")?;
    scope.set_item(intern!(py, "headers"), headers)?;
    scope.set_item(intern!(py, "client"), (peer.address.ip().to_string(), peer.address.port()))?;
    Ok(scope)
}

/// What stands escaped in a path, plain; nobody decides by it, the raw path is there too.
fn percent_decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            plain.push((high << 4 | low) as u8);
            at += 3;
        } else {
            plain.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}
