//! A client that knows sockets and octets and nothing else, and a service that does what it is told.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use flx_realtime::listener::{Clock, Handle, Limits, Listener};
use flx_realtime::outbox::{Outbox, Taken};
use flx_realtime::request::{Fault, Request};
use flx_realtime::service::{Closed, ConnId, Message, Service, Upgrade};
use flx_realtime::wire::{Bundle, Wire};

/// For what must come: a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What the service was told.
pub(crate) enum Told {
    /// Its thread is at work.
    Began,
    /// A handshake for `/later`.
    Asked(Handle, ConnId),
    Opened(ConnId),
    Writable(ConnId),
    Full(u64),
    Closed(ConnId, Closed),
}

/// Sends back what it gets, but for some words that it obeys.
pub(crate) struct Obedient {
    told: Sender<Told>,
    handle: Handle,
    has_begun: bool,
    open: Vec<ConnId>,
    large: Bundle,
}

impl Service for Obedient {
    fn upgrade(&mut self, conn: ConnId, request: &Request<'_>, _: SocketAddr, _: u64) -> Upgrade {
        match request.path {
            "/no" => Upgrade::Refuse(answer(403, "no")),
            "/later" => {
                let _ = self.told.send(Told::Asked(self.handle.clone(), conn));
                Upgrade::Later
            }
            "/spoken" => Upgrade::Accept(Some("flx.v1")),
            _ => Upgrade::Accept(None),
        }
    }

    fn refusal(&mut self, fault: Fault, _: u64) -> Vec<u8> {
        answer(400, &format!("{fault:?}"))
    }

    fn opened(&mut self, conn: ConnId, _: u64, _: &mut Outbox<'_>) {
        self.open.push(conn);
        let _ = self.told.send(Told::Opened(conn));
    }

    fn message(&mut self, conn: ConnId, message: Message<'_>, _: u64, out: &mut Outbox<'_>) {
        match message {
            Message::Binary(bytes) => out.message(conn, Wire::binary(bytes)),
            Message::Text("close") => out.close(conn, 4401, "as you wish"),
            Message::Text("fill") => self.fill(conn, out),
            Message::Text(text) => match text.strip_prefix("all ") {
                Some(text) => {
                    let bundle = Bundle::One(Wire::text(text.as_bytes()));
                    let sends: Vec<_> = self.open.iter().map(|conn| (*conn, &bundle)).collect();
                    let mut said = out.bundles(&sends).into_iter();
                    self.open.retain(|_| said.next().is_some_and(|(_, taken)| taken != Taken::Gone));
                }
                None => out.message(conn, Wire::text(text.as_bytes())),
            },
        }
    }

    fn writable(&mut self, conn: ConnId, _: u64, _: &mut Outbox<'_>) {
        let _ = self.told.send(Told::Writable(conn));
    }

    fn pinged(&mut self, _: ConnId, _: u64, _: &mut Outbox<'_>) {}

    fn draining(&mut self, conn: ConnId, in_ms: u64, _: u64, out: &mut Outbox<'_>) {
        out.message(conn, Wire::text(format!("reconnect {in_ms}").into_bytes()));
    }

    fn closed(&mut self, conn: ConnId, why: Closed, _: u64) {
        self.open.retain(|&it| it != conn);
        let _ = self.told.send(Told::Closed(conn, why));
    }

    fn turn(&mut self, _: u64, _: &mut Outbox<'_>) -> Option<u64> {
        if !std::mem::replace(&mut self.has_begun, true) {
            let _ = self.told.send(Told::Began);
        }
        None
    }
}

impl Obedient {
    /// Sends frames until no more are taken.
    fn fill(&mut self, conn: ConnId, out: &mut Outbox<'_>) {
        let mut bytes = 0;
        loop {
            match out.bundles(&[(conn, &self.large)])[0].1 {
                Taken::Sent => bytes += LARGE as u64,
                Taken::Last => {
                    bytes += LARGE as u64;
                    break;
                }
                Taken::Full | Taken::Gone => break,
            }
        }
        let _ = self.told.send(Told::Full(bytes));
    }
}

/// Bytes of the messages that fill a socket.
pub(crate) const LARGE: usize = 30_000;

fn answer(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a test of a listener begins with: whatever is sent goes by `io_uring`, or one by one in the binary of that name.
pub(crate) fn limits() -> Limits {
    let together = if env!("CARGO_CRATE_NAME") == "by_send" { usize::MAX } else { 1 };
    Limits { together, ..Limits::default() }
}

/// A listener with the service above, and what that is told.
pub(crate) fn listen(limits: Limits) -> (Listener, Receiver<Told>) {
    let (told, hears) = mpsc::channel();
    let listener =
        Listener::start(([127, 0, 0, 1], 0).into(), 1, limits, None, Clock::default(), service(&told)).unwrap();
    (listener, hears)
}

pub(crate) fn service(told: &Sender<Told>) -> impl FnMut(usize, Handle) -> Obedient {
    let told = told.clone();
    let large = Bundle::One(Wire::binary(vec![7; LARGE]));
    move |_, handle| Obedient { told: told.clone(), handle, has_begun: false, open: Vec::new(), large: large.clone() }
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

pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason].concat())
}

pub(crate) fn head(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A connection, octet by octet.
pub(crate) struct Client<S = TcpStream>(pub(crate) S);

impl Client {
    /// A TCP connection.
    pub(crate) fn tcp(listener: &Listener) -> Self {
        let socket = TcpStream::connect(listener.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self(socket)
    }

    /// A WebSocket.
    pub(crate) fn open(listener: &Listener) -> Self {
        let mut client = Self::tcp(listener);
        client.send(head("/").as_bytes());
        assert!(client.http().starts_with("HTTP/1.1 101 "));
        client
    }

    pub(crate) fn half_close(&self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The head of an HTTP answer.
    pub(crate) fn http(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// The next frame: its first octet and its payload; none at the end of the stream.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        match self.0.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            other => other.unwrap(),
        }
        assert_eq!(0, head[1] & 0x80, "a server does not mask");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length) as usize
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        Some((head[0], payload))
    }

    /// All frames to the end of the stream.
    pub(crate) fn frames(&mut self) -> Vec<(u8, Vec<u8>)> {
        std::iter::from_fn(|| self.frame()).collect()
    }

    /// Everything to the end of the stream.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }

    pub(crate) fn echo(&mut self, text: &str) {
        self.send(&frame(0x81, text.as_bytes()));
        assert_eq!(Some((0x81, text.as_bytes().to_vec())), self.frame());
    }
}

/// The next thing of a kind that the service is told.
pub(crate) fn next<T>(told: &Receiver<Told>, pick: impl Fn(Told) -> Option<T>) -> T {
    loop {
        if let Some(found) = pick(told.recv_timeout(PATIENCE).unwrap()) {
            return found;
        }
    }
}

pub(crate) fn closed(told: &Receiver<Told>) -> Closed {
    next(told, |told| if let Told::Closed(_, why) = told { Some(why) } else { None })
}
