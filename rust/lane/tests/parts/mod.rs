//! A client that knows sockets and octets and nothing else, and a service that hands everything to the test.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flx_lane::body::Fault;
use flx_lane::call::{Call, Room};
use flx_lane::server::{Limits, Server};
use flx_lane::service::{Peer, Service, Told, Verdict};
use flx_lane::socket::{Handshake, Message};
use http::Response;
use http::request::Parts;
use rustls::ServerConfig;

/// For what must come: a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// For what must end soon, where otherwise it would not end at all.
pub(crate) const SOON: Duration = Duration::from_millis(200);
/// The most that a body may have, but for `/small`, which may have ten bytes.
pub(crate) const LIMIT: u64 = 1 << 20;
/// More than the sockets between two ends of a connection take.
pub(crate) const MUCH: usize = 64 << 20;
pub(crate) const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What the service was told.
pub(crate) enum Event {
    Request(Box<Parts>, Peer, Result<Bytes, Fault>, Call),
    Handshake(Box<Parts>, Handshake),
    Told(u64, Told),
}

/// Answers `/now` and `/much` by their heads, `/echo` by its body, at once, and leaves everything else to the test, which hears of it when
/// the lane says that there is no more for now.
struct Obedient {
    events: Mutex<(Vec<Event>, Sender<Event>)>,
}

impl Obedient {
    fn say(&self, event: Event) {
        self.events.lock().unwrap().0.push(event);
    }
}

impl Service for Obedient {
    type Seen = String;

    fn head(&self, head: &Parts, _: Peer) -> Verdict<String> {
        let path = head.uri.path().to_owned();
        match &*path {
            "/now" => Verdict::Answer(Response::new(Bytes::from_static(b"now"))),
            "/much" => Verdict::Answer(Response::new(Bytes::from(vec![b'm'; 200_000]))),
            "/small" => Verdict::Go { seen: path, limit: Some(10) },
            "/none" => Verdict::Go { seen: path, limit: None },
            _ => Verdict::Go { seen: path, limit: Some(LIMIT) },
        }
    }

    fn request(&self, seen: String, head: Parts, peer: Peer, body: Result<Bytes, Fault>, call: Call) {
        assert_eq!(seen, head.uri.path());
        match body {
            Ok(body) if seen == "/echo" => drop(call.answer(Response::new(body))),
            Err(fault) if seen != "/held" => drop(call.answer(said(format!("{fault:?}")))),
            body => self.say(Event::Request(Box::new(head), peer, body, call)),
        }
    }

    fn handshake(&self, head: Parts, _: Peer, handshake: Handshake) {
        self.say(Event::Handshake(Box::new(head), handshake));
    }

    fn told(&self, number: u64, what: Told) {
        self.say(Event::Told(number, what));
    }

    fn laid(&self) {
        let mut events = self.events.lock().unwrap();
        for event in std::mem::take(&mut events.0) {
            let _ = events.1.send(event);
        }
    }
}

pub(crate) fn said(what: impl Into<Bytes>) -> Response<Bytes> {
    Response::new(what.into())
}

/// A lane with the service above.
pub(crate) struct Lane {
    server: Option<Server>,
    pub(crate) address: SocketAddr,
    pub(crate) events: Receiver<Event>,
}

pub(crate) fn serve(limits: Limits) -> Lane {
    serve_with(limits, None)
}

pub(crate) fn serve_with(limits: Limits, tls: Option<Arc<ServerConfig>>) -> Lane {
    let (events, hears) = mpsc::channel();
    let listening = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listening.local_addr().unwrap();
    let service = Arc::new(Obedient { events: Mutex::new((Vec::new(), events)) });
    let server = Some(Server::start(service, listening, limits, tls).unwrap());
    Lane { server, address, events: hears }
}

impl Lane {
    pub(crate) fn client(&self) -> Client {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Client(socket)
    }

    /// A connection that is served: it has asked, and was answered.
    pub(crate) fn served(&self) -> Client {
        let mut client = self.client();
        client.send(b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!("now", client.answer().text());
        client
    }

    /// The next event of a kind.
    pub(crate) fn next<T>(&self, pick: impl Fn(Event) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(found) = pick(self.events.recv_timeout(left).unwrap()) {
                return found;
            }
        }
    }

    pub(crate) fn call(&self) -> Call {
        self.request().1.1
    }

    pub(crate) fn request(&self) -> (Box<Parts>, (Result<Bytes, Fault>, Call)) {
        self.next(|event| match event {
            Event::Request(head, _, body, call) => Some((head, (body, call))),
            _ => None,
        })
    }

    pub(crate) fn handshake(&self) -> Handshake {
        self.next(|event| if let Event::Handshake(_, handshake) = event { Some(handshake) } else { None })
    }

    /// What was told next, to whomever.
    pub(crate) fn told(&self) -> (u64, Told) {
        self.next(|event| if let Event::Told(number, what) = event { Some((number, what)) } else { None })
    }

    pub(crate) fn gone(&self, number: u64) {
        self.next(|event| matches!(event, Event::Told(it, Told::Gone) if it == number).then_some(()));
    }

    /// Waits until a socket is told that it has ended with this code.
    pub(crate) fn closed(&self, number: u64, code: u16) {
        self.next(|event| match event {
            Event::Told(it, Told::Message(Message::Close(found))) => ((it, found) == (number, code)).then_some(()),
            _ => None,
        });
    }

    pub(crate) fn room(&self, number: u64) {
        self.next(|event| matches!(event, Event::Told(it, Told::Room) if it == number).then_some(()));
    }

    /// Puts something until it is taken, as somebody does who waits for room.
    pub(crate) fn put(&self, number: u64, put: impl Fn() -> Room) -> Room {
        loop {
            match put() {
                Room::Full => self.room(number),
                other => return other,
            }
        }
    }

    /// Stops; how long that took.
    pub(crate) fn stop(&mut self, within: Duration) -> Duration {
        let begun = Instant::now();
        self.server.take().unwrap().stop(within);
        begun.elapsed()
    }

    /// Stops beside the test.
    pub(crate) fn stopping(&mut self, within: Duration) -> thread::JoinHandle<Duration> {
        let server = self.server.take().unwrap();
        thread::spawn(move || {
            let begun = Instant::now();
            server.stop(within);
            begun.elapsed()
        })
    }
}

/// Waits for what is true soon.
pub(crate) fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it did not become so");
        thread::yield_now();
    }
}

/// An answer as it was read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) is_complete: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A connection, octet by octet.
pub(crate) struct Client<S = TcpStream>(pub(crate) S);

impl Client {
    /// Writes without reading, until no more is taken for a while, or too much was; how much that was.
    pub(crate) fn stuff(&mut self, piece: &[u8]) -> usize {
        self.0.set_write_timeout(Some(SOON)).unwrap();
        let mut written = 0;
        while written < MUCH {
            let at = written % piece.len();
            match self.0.write(&piece[at..]) {
                Ok(count) => written += count,
                Err(_) => break,
            }
        }
        written
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.send(body);
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte).ok().map(|()| byte[0])
    }

    /// A line, or the end of the stream.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.byte()?);
        }
        line.truncate(line.len() - 2);
        Some(String::from_utf8(line).unwrap())
    }

    pub(crate) fn head(&mut self) -> String {
        let mut head = String::new();
        loop {
            let line = self.line().unwrap();
            if line.is_empty() {
                return head;
            }
            head.push_str(&line);
            head.push('\n');
        }
    }

    pub(crate) fn exactly(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        let begun = body.len();
        body.resize(begun + length, 0);
        self.0.read_exact(&mut body[begun..]).is_ok()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.head();
        self.body(head)
    }

    /// The body of an answer whose head was read.
    pub(crate) fn body(&mut self, head: String) -> Answer {
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new(), is_complete: false };
        let mut body = Vec::new();
        answer.is_complete = if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            self.exactly(length, &mut body)
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut body)
        } else {
            status == 101 || status == 100
        };
        answer.body = body;
        answer
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(size) = self.line() else { return false };
            let size = usize::from_str_radix(&size, 16).unwrap();
            if !self.exactly(size, body) || self.line().is_none() {
                return false;
            }
            if size == 0 {
                return true;
            }
        }
    }

    /// Whether nothing more comes but the end of the stream; a reset is none.
    pub(crate) fn is_at_end(&mut self) -> bool {
        self.0.read(&mut [0]).is_ok_and(|count| count == 0)
    }

    /// Whether nothing more comes, however it ends.
    pub(crate) fn is_cut(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    /// The next frame: its first octet and its payload; none at the end of the stream.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        match self.0.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            other => other.unwrap(),
        }
        assert_eq!(0, head[1] & 0x80, "a server does not mask");
        let mut length = usize::from(head[1]);
        if length >= 126 {
            let mut wide = [0; 8];
            let from = if length == 126 { 6 } else { 0 };
            self.0.read_exact(&mut wide[from..]).unwrap();
            length = u64::from_be_bytes(wide) as usize;
        }
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        Some((head[0], payload))
    }

    /// Whether there is another frame, where the stream may end in the middle of one.
    pub(crate) fn frame_or_cut(&mut self) -> bool {
        self.0.read(&mut [0; 4_096]).is_ok_and(|count| count > 0)
    }
}

/// A frame as a client sends it.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0xfe);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0xff);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(KEY);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ KEY[at % 4]));
    out
}

pub(crate) fn close(code: u16) -> Vec<u8> {
    frame(0x88, &code.to_be_bytes())
}

pub(crate) const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
