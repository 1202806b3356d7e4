//! The least that a server of WebSockets can do: the ceiling that ours is compared with.
//!
//!     bare-sender PORT
//!
//! It accepts, upgrades and confirms whatever is subscribed to, and sends events of its own making in the words of
//! `flx.v1`. There is no token, no topic, no memory and no protocol beyond that: what is left is the kernel's work, a
//! frame built once for all who are at the same place, and the spreading of the sends over the window.
//! Commands come as lines on standard input; each is answered with a line of JSON when it is done:
//!
//!     shared PER_S SECONDS BYTES WINDOW_MS SLICES    all hear one topic
//!     unshared PER_S SECONDS BYTES TOPICS            each its own, so many events a second in all
//!     lone COUNT EVERY_MS BYTES                      one event to all, again and again
//!     write SECONDS BYTES                            the bare `write` loop: a frame to one after the other, no pause
//!
//! Rules:
//! - A connection that does not take what it is sent is left out until it does; it then gets all that it has missed.

use std::{
    error::Error,
    fs::File,
    io::{ErrorKind, Read, Write, stdin},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant, SystemTime},
};

use flx_bench::websocket::{self, CLOSE, TEXT};
use polling::{Event, Events, PollMode, Poller};
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

const LISTENER: usize = usize::MAX - 1;
const COMMANDS: usize = usize::MAX - 2;
const TURN: Duration = Duration::from_millis(1);

struct Peer {
    socket: TcpStream,
    held: Vec<u8>,
    upgraded: bool,
    subscribed: bool,
    /// Events of the shared topic that it has got.
    cursor: usize,
    unsent: Vec<u8>,
}

struct Sender {
    poller: Poller,
    listener: TcpListener,
    peers: Vec<Option<Peer>>,
    frames: u64,
    blocked: u64,
    /// Events published before, in all: they have numbers that go on.
    published: u64,
    /// Events of its own topic that each connection was sent before.
    own: Vec<u64>,
}

fn now_us() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// An event of about so many bytes.
fn event(at_us: u64, number: u64, bytes: usize, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(format!(r#"{{"at":{at_us},"n":{number},"data":""#).as_bytes());
    let pad = bytes.saturating_sub(out.len() - begin + 2);
    out.resize(out.len() + pad, b'x');
    out.extend_from_slice(b"\"}");
}

/// The frame of events that stand comma-joined in `events`; `first` and `last` are the server's numbers, from 1.
fn frame(topic: &str, first: u64, last: u64, events: &[u8], out: &mut Vec<u8>) {
    let numbers = if first == last { format!("{first}") } else { format!("{first},{last}") };
    let prev = first - 1;
    let head = format!(r#"{{"t":"{topic}","e":"bare","s":[{numbers}],"prev":{prev},"pos":"{last}","ts":0,"d":["#);
    websocket::server_head(TEXT, head.len() + events.len() + 2, out);
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(events);
    out.extend_from_slice(b"]}");
}

/// The shared topic: events comma-joined, and where each begins.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Log {
    fn append(&mut self, at_us: u64, number: u64, bytes: usize) {
        if !self.bytes.is_empty() {
            self.bytes.push(b',');
        }
        self.starts.push(self.bytes.len());
        event(at_us, number, bytes, &mut self.bytes);
    }

    /// The frame of all events after the first `cursor`, whose numbers begin after `base`.
    fn frame(&self, base: u64, cursor: usize, out: &mut Vec<u8>) {
        let numbers = (base + cursor as u64 + 1, base + self.starts.len() as u64);
        frame("bench.bare", numbers.0, numbers.1, &self.bytes[self.starts[cursor]..], out);
    }
}

impl Sender {
    fn new(port: u16) -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let poller = Poller::new()?;
        // SAFETY: the listener lives as long as the poller.
        unsafe { poller.add_with_mode(&listener, Event::readable(LISTENER), PollMode::Level)? };
        Ok(Self { poller, listener, peers: Vec::new(), frames: 0, blocked: 0, published: 0, own: Vec::new() })
    }

    fn run(&mut self) -> Result<(), Failure> {
        let mut commands = File::from(stdin().as_fd().try_clone_to_owned()?);
        // SAFETY: as in `new`.
        unsafe { self.poller.add_with_mode(&commands, Event::readable(COMMANDS), PollMode::Level)? };
        let mut lines = Vec::new();
        loop {
            if self.serve(Duration::from_secs(1))? {
                let mut chunk = [0; 4096];
                match commands.read(&mut chunk)? {
                    0 => return Ok(()),
                    size => lines.extend_from_slice(&chunk[..size]),
                }
            }
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let told = self.command(&String::from_utf8_lossy(&line))?;
                let mut out = std::io::stdout().lock();
                writeln!(out, "{told}")?;
                out.flush()?;
            }
        }
    }

    /// Take what the clients say for so long; true when a command came.
    fn serve(&mut self, patience: Duration) -> Result<bool, Failure> {
        let mut events = Events::new();
        self.poller.wait(&mut events, Some(patience))?;
        let mut commanded = false;
        for event in events.iter() {
            match event.key {
                COMMANDS => commanded = true,
                LISTENER => self.accept()?,
                number => {
                    if event.readable && !self.read(number)? {
                        self.forget(number)?;
                    } else if event.writable {
                        self.flush(number)?;
                    }
                }
            }
        }
        Ok(commanded)
    }

    fn accept(&mut self) -> Result<(), Failure> {
        for _ in 0..256 {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            // SAFETY: a socket is taken out of the poller before it is closed (`forget`).
            unsafe { self.poller.add_with_mode(&socket, Event::readable(self.peers.len()), PollMode::Level)? };
            self.peers.push(Some(Peer {
                socket,
                held: Vec::new(),
                upgraded: false,
                subscribed: false,
                cursor: 0,
                unsent: Vec::new(),
            }));
            self.own.push(0);
        }
        Ok(())
    }

    fn forget(&mut self, number: usize) -> Result<(), Failure> {
        if let Some(peer) = self.peers[number].take() {
            self.poller.delete(&peer.socket)?;
        }
        Ok(())
    }

    /// Take what one client says; false when it is gone.
    fn read(&mut self, number: usize) -> Result<bool, Failure> {
        let Some(peer) = &mut self.peers[number] else { return Ok(true) };
        let mut chunk = [0; 16_384];
        match peer.socket.read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(size) => peer.held.extend_from_slice(&chunk[..size]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(_) => return Ok(false),
        }
        if !peer.upgraded {
            let Some(end) = websocket::end_of_head(&peer.held) else { return Ok(true) };
            let head = String::from_utf8_lossy(&peer.held[..end]).into_owned();
            let Some(key) = websocket::header(&head, "sec-websocket-key") else { return Ok(false) };
            peer.held.drain(..end);
            peer.upgraded = true;
            let accept = websocket::accept_of(key);
            let reply = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: flx.v1\r\n\r\n"
            );
            peer.unsent.extend_from_slice(reply.as_bytes());
            answer(&mut peer.unsent, r#"{"type":"connected","message":"connected","client_id":"bare"}"#);
        }
        while let Some(head) = websocket::head(&peer.held).map_err(|error| error.0)? {
            if head.end > peer.held.len() {
                break;
            }
            match head.opcode {
                CLOSE => return Ok(false),
                TEXT => {
                    peer.subscribed = true;
                    answer(&mut peer.unsent, r#"{"type":"subscribed","event":"bench.bare","pos":"0"}"#);
                }
                _ => {}
            }
            peer.held.drain(..head.end);
        }
        self.flush(number)?;
        Ok(true)
    }

    /// Send what is left for a client; true when nothing is.
    fn flush(&mut self, number: usize) -> Result<bool, Failure> {
        let Some(peer) = &mut self.peers[number] else { return Ok(true) };
        let waited = !peer.unsent.is_empty();
        while !peer.unsent.is_empty() {
            match peer.socket.write(&peer.unsent) {
                Ok(size) => drop(peer.unsent.drain(..size)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.poller.modify_with_mode(&peer.socket, Event::all(number), PollMode::Level)?;
                    return Ok(false);
                }
                Err(_) => {
                    self.forget(number)?;
                    return Ok(false);
                }
            }
        }
        if waited {
            self.poller.modify_with_mode(&peer.socket, Event::readable(number), PollMode::Level)?;
        }
        Ok(true)
    }

    /// Send a frame; what does not leave at once is kept.
    fn send(&mut self, number: usize, frame: &[u8]) -> Result<(), Failure> {
        let Some(peer) = &mut self.peers[number] else { return Ok(()) };
        self.frames += 1;
        if !peer.unsent.is_empty() {
            peer.unsent.extend_from_slice(frame);
            return Ok(());
        }
        let sent = match peer.socket.write(frame) {
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return self.forget(number),
        };
        if sent < frame.len() {
            self.blocked += 1;
            peer.unsent.extend_from_slice(&frame[sent..]);
            self.poller.modify_with_mode(&peer.socket, Event::all(number), PollMode::Level)?;
        }
        Ok(())
    }

    fn listening(&self) -> Vec<usize> {
        let subscribed = |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.subscribed);
        (0..self.peers.len()).filter(|number| subscribed(&self.peers[*number])).collect()
    }

    fn command(&mut self, line: &str) -> Result<Value, Failure> {
        (self.frames, self.blocked) = (0, 0);
        let began = Instant::now();
        let words: Vec<&str> = line.split_whitespace().collect();
        let published = match words[..] {
            ["shared", per_s, seconds, bytes, window_ms, slices] => {
                let window = Duration::from_millis(window_ms.parse()?);
                self.shared(per_s.parse()?, seconds.parse()?, bytes.parse()?, window, slices.parse()?)?
            }
            ["unshared", per_s, seconds, bytes, _topics] => {
                self.unshared(per_s.parse()?, seconds.parse()?, bytes.parse()?)?
            }
            ["lone", count, every_ms, bytes] => {
                self.lone(count.parse()?, Duration::from_millis(every_ms.parse()?), bytes.parse()?)?
            }
            ["write", seconds, bytes] => self.flood(seconds.parse()?, bytes.parse()?)?,
            _ => return Err(format!("unknown command {line}").into()),
        };
        Ok(json!({
            "published": published,
            "frames": self.frames,
            "blocked": self.blocked,
            "seconds": began.elapsed().as_secs_f64(),
        }))
    }

    fn shared(
        &mut self,
        per_s: f64,
        seconds: f64,
        bytes: usize,
        window: Duration,
        slices: u32,
    ) -> Result<u64, Failure> {
        let (listening, base) = (self.listening(), self.published);
        let (began, began_us) = (Instant::now(), now_us());
        let mut log = Log::default();
        let all = count(per_s * seconds);
        for peer in self.peers.iter_mut().flatten() {
            peer.cursor = 0;
        }
        let step = window / slices.max(1);
        let (mut slice, mut whole) = (0_u32, Vec::new());
        loop {
            let due = began + step * slice;
            while let patience @ 1.. = due.saturating_duration_since(Instant::now()).as_micros() {
                self.serve(Duration::from_micros(u64::try_from(patience)?))?;
            }
            let so_far = count(began.elapsed().as_secs_f64() * per_s).min(all);
            while (log.starts.len() as u64) < so_far {
                let number = log.starts.len() as u64;
                log.append(began_us + micros(number, per_s), base + number, bytes);
            }
            whole.clear();
            let mut built_for = None;
            for number in listening.iter().skip((slice % slices) as usize).step_by(slices as usize) {
                let Some(peer) = &mut self.peers[*number] else { continue };
                if peer.cursor == log.starts.len() || !peer.unsent.is_empty() {
                    continue;
                }
                if built_for != Some(peer.cursor) {
                    whole.clear();
                    log.frame(base, peer.cursor, &mut whole);
                    built_for = Some(peer.cursor);
                }
                peer.cursor = log.starts.len();
                self.send(*number, &whole)?;
            }
            slice += 1;
            let left = |number: &usize| {
                self.peers[*number].as_ref().is_some_and(|peer| (peer.cursor as u64) < all || !peer.unsent.is_empty())
            };
            if so_far == all && !listening.iter().any(left) {
                self.published += all;
                return Ok(all);
            }
        }
    }

    fn unshared(&mut self, per_s: f64, seconds: f64, bytes: usize) -> Result<u64, Failure> {
        let listening = self.listening();
        let (began, began_us) = (Instant::now(), now_us());
        let (mut sent, all) = (0_u64, count(per_s * seconds));
        let (mut data, mut whole) = (Vec::new(), Vec::new());
        while sent < all && !listening.is_empty() {
            let so_far = count(began.elapsed().as_secs_f64() * per_s).min(all);
            while sent < so_far {
                let to = listening[usize::try_from(sent)? % listening.len()];
                let number = self.own[to];
                self.own[to] += 1;
                data.clear();
                whole.clear();
                event(began_us + micros(sent, per_s), number, bytes, &mut data);
                frame("bench.own", number + 1, number + 1, &data, &mut whole);
                self.send(to, &whole)?;
                sent += 1;
            }
            self.serve(TURN)?;
        }
        Ok(all)
    }

    fn lone(&mut self, count: u64, every: Duration, bytes: usize) -> Result<u64, Failure> {
        let listening = self.listening();
        let (mut data, mut whole) = (Vec::new(), Vec::new());
        let began = Instant::now();
        for number in 0..count {
            let due = began + every * u32::try_from(number)?;
            while let patience @ 1.. = due.saturating_duration_since(Instant::now()).as_micros() {
                self.serve(Duration::from_micros(u64::try_from(patience)?))?;
            }
            data.clear();
            whole.clear();
            event(now_us(), self.published, bytes, &mut data);
            frame("bench.bare", self.published + 1, self.published + 1, &data, &mut whole);
            self.published += 1;
            for to in &listening {
                self.send(*to, &whole)?;
            }
        }
        Ok(count)
    }

    fn flood(&mut self, seconds: f64, bytes: usize) -> Result<u64, Failure> {
        let listening = self.listening();
        let (mut data, mut whole) = (Vec::new(), Vec::new());
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let before = self.published;
        while Instant::now() < end && !listening.is_empty() {
            data.clear();
            whole.clear();
            event(now_us(), self.published, bytes, &mut data);
            frame("bench.bare", self.published + 1, self.published + 1, &data, &mut whole);
            self.published += 1;
            for to in &listening {
                // The kernel's buffer is full: what is measured is sending, so this turn waits for the reader.
                while !self.flush(*to)? && self.peers[*to].is_some() {
                    self.serve(TURN)?;
                }
                self.send(*to, &whole)?;
            }
        }
        while listening.iter().any(|to| self.peers[*to].as_ref().is_some_and(|peer| !peer.unsent.is_empty())) {
            self.serve(TURN)?;
        }
        Ok(self.published - before)
    }
}

fn answer(out: &mut Vec<u8>, text: &str) {
    websocket::server_head(TEXT, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn count(exact: f64) -> u64 {
    exact as u64
}

/// When the event of this number is due, in microseconds after the first.
#[allow(clippy::cast_precision_loss)]
fn micros(number: u64, per_s: f64) -> u64 {
    count(number as f64 / per_s * 1e6)
}

fn main() -> Result<(), Failure> {
    let port = std::env::args().nth(1).ok_or("bare-sender PORT")?.parse()?;
    Sender::new(port)?.run()
}
