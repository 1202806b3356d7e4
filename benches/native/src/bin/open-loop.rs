//! HTTP/1.1 load in open loop: requests leave when they are due, whether or not earlier ones were answered.
//!
//!     open-loop ADDRESS RATE:SECONDS[,RATE:SECONDS...] CONNECTIONS SEED REQUESTS > RECORDS
//!
//! REQUESTS is a file of whole requests, each after its length (u32, little-endian); they are sent in turn. The gaps
//! between them are drawn from an exponential distribution (a Poisson process of RATE a second, one RATE after the other).
//! A latency counts from the moment a request was due, also when no connection was free then: nothing is left out because of a slow answer.
//! It ends when the kernel took the answer in (`SO_TIMESTAMPNS`): how long this program then waits for its core is no
//! time of the server's. How late it was to see that a request is due, is told: that much of a latency is its own.
//! RECORDS are 16 bytes each: due (u32, microseconds since the start), latency (u32, microseconds), of which its own (u32),
//! status (u16; 0: no answer), and 2 of padding. What has no answer `GRACE` after the last one was due is recorded as such.

use std::{
    collections::VecDeque,
    io::{ErrorKind, IoSliceMut, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns},
        time::TimeSpec,
    },
};
use polling::{Event, Events, Poller};

const GRACE: Duration = Duration::from_secs(5);
const USAGE: &str = "open-loop ADDRESS RATE:SECONDS[,RATE:SECONDS...] CONNECTIONS SEED REQUESTS";

type Failure = Box<dyn std::error::Error>;

struct Connection {
    socket: TcpStream,
    held: Vec<u8>,
    /// What is left to be written of a request that did not leave at once.
    unsent: Vec<u8>,
    asked: Option<Asked>,
}

/// A request that is to be sent or has been.
#[derive(Clone, Copy)]
struct Asked {
    due: Instant,
    /// So long after that it was seen to be due.
    late: Duration,
}

struct Load {
    address: SocketAddr,
    poller: Poller,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    waiting: VecDeque<(Asked, usize)>,
    requests: Vec<Vec<u8>>,
    began: Instant,
    records: Vec<u8>,
    outstanding: usize,
    control: Vec<u8>,
}

fn open(address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    Ok(socket)
}

impl Load {
    fn new(address: SocketAddr, connections: usize, requests: Vec<Vec<u8>>) -> Result<Self, Failure> {
        let mut load = Self {
            address,
            poller: Poller::new()?,
            connections: Vec::with_capacity(connections),
            idle: (0..connections).collect(),
            waiting: VecDeque::new(),
            requests,
            began: Instant::now(),
            records: Vec::new(),
            outstanding: 0,
            control: cmsg_space!(TimeSpec),
        };
        for number in 0..connections {
            let socket = open(address)?;
            // SAFETY: a socket is taken out of the poller before it is closed (`replace`), or lives as long as that.
            unsafe { load.poller.add_with_mode(&socket, Event::readable(number), polling::PollMode::Level)? };
            load.connections.push(Connection { socket, held: Vec::new(), unsent: Vec::new(), asked: None });
        }
        Ok(load)
    }

    /// What became of a request, so long ago.
    fn record(&mut self, asked: Asked, status: u16, ago: Duration) {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX).to_le_bytes();
        self.records.extend_from_slice(&micros(asked.due - self.began));
        self.records.extend_from_slice(&micros(asked.due.elapsed().saturating_sub(ago)));
        self.records.extend_from_slice(&micros(asked.late));
        self.records.extend_from_slice(&status.to_le_bytes());
        self.records.extend_from_slice(&[0, 0]);
        self.outstanding -= 1;
    }

    /// Send what is due on connections that are free.
    fn send(&mut self) -> Result<(), Failure> {
        while !self.waiting.is_empty() {
            let Some(number) = self.idle.pop_front() else { return Ok(()) };
            let Some((asked, request)) = self.waiting.pop_front() else { return Ok(()) };
            let connection = &mut self.connections[number];
            connection.asked = Some(asked);
            connection.unsent.clear();
            connection.unsent.extend_from_slice(&self.requests[request]);
            self.write(number)?;
        }
        Ok(())
    }

    fn write(&mut self, number: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[number];
        while !connection.unsent.is_empty() {
            match connection.socket.write(&connection.unsent) {
                Ok(size) => drop(connection.unsent.drain(..size)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.replace(number),
            }
        }
        let interest = if connection.unsent.is_empty() { Event::readable(number) } else { Event::all(number) };
        if interest.writable {
            self.poller.modify_with_mode(&connection.socket, interest, polling::PollMode::Level)?;
        }
        Ok(())
    }

    fn read(&mut self, number: usize) -> Result<(), Failure> {
        let mut chunk = [0_u8; 16_384];
        loop {
            let (size, ago) = match receive(&self.connections[number].socket, &mut chunk, &mut self.control) {
                Ok((0, _)) => return self.replace(number),
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(_) => return self.replace(number),
            };
            let connection = &mut self.connections[number];
            connection.held.extend_from_slice(&chunk[..size]);
            if let Some((status, whole)) = reply(&connection.held) {
                connection.held.drain(..whole);
                if let Some(asked) = connection.asked.take() {
                    self.idle.push_back(number);
                    self.record(asked, status, ago);
                }
                return Ok(());
            }
        }
    }

    /// A connection that ended takes its request with it; another one takes its place.
    fn replace(&mut self, number: usize) -> Result<(), Failure> {
        let lost = self.connections[number].asked.take();
        if let Some(asked) = lost {
            self.record(asked, 0, Duration::ZERO);
            self.idle.push_back(number);
        }
        self.poller.delete(&self.connections[number].socket)?;
        let socket = open(self.address)?;
        // SAFETY: as in `new`.
        unsafe { self.poller.add_with_mode(&socket, Event::readable(number), polling::PollMode::Level)? };
        self.connections[number] = Connection { socket, held: Vec::new(), unsent: Vec::new(), asked: None };
        Ok(())
    }

    fn run(&mut self, phases: &[(f64, Duration)], seed: u64) -> Result<(), Failure> {
        let mut draws = Draws(seed);
        self.began = Instant::now();
        let end = self.began + phases.iter().map(|(_, length)| *length).sum::<Duration>();
        let mut phases = phases.iter();
        let (mut rate, mut until_rate) = (0.0, self.began);
        let mut next = self.began;
        let mut request = 0;
        let mut events = Events::new();
        loop {
            let now = Instant::now();
            while next <= now && next < end {
                while next >= until_rate {
                    let Some((following, length)) = phases.next() else { break };
                    (rate, until_rate) = (*following, until_rate + *length);
                }
                self.waiting.push_back((Asked { due: next, late: now - next }, request % self.requests.len()));
                self.outstanding += 1;
                request += 1;
                next += Duration::from_secs_f64(-draws.next().ln() / rate);
            }
            self.send()?;
            if next >= end && (self.outstanding == 0 || now >= end + GRACE) {
                break;
            }
            let until = if next < end { next } else { end + GRACE };
            events.clear();
            self.poller.wait(&mut events, Some(until.saturating_duration_since(Instant::now())))?;
            for event in events.iter() {
                if event.writable {
                    self.write(event.key)?;
                    if self.connections[event.key].unsent.is_empty() {
                        let back = Event::readable(event.key);
                        self.poller.modify_with_mode(
                            &self.connections[event.key].socket,
                            back,
                            polling::PollMode::Level,
                        )?;
                    }
                }
                if event.readable {
                    self.read(event.key)?;
                }
            }
        }
        let left: Vec<Asked> = self.connections.iter_mut().filter_map(|connection| connection.asked.take()).collect();
        let never: Vec<Asked> = self.waiting.drain(..).map(|(asked, _)| asked).collect();
        for asked in left.into_iter().chain(never) {
            self.record(asked, 0, Duration::ZERO);
        }
        Ok(())
    }
}

/// Read what has come: how many bytes, and how long ago the kernel took in the last of them.
fn receive(socket: &TcpStream, chunk: &mut [u8], control: &mut Vec<u8>) -> Result<(usize, Duration), Errno> {
    let mut parts = [IoSliceMut::new(chunk)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())?;
    let stamp = message.cmsgs()?.find_map(|one| match one {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    // Without a stamp (the kernel begins with them a moment after it was asked to) it has come just now.
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Ok((message.bytes, stamp.map_or(Duration::ZERO, |stamp| now.saturating_sub(stamp))))
}

/// Status and size of a whole reply of known length at the beginning of what was read.
fn reply(held: &[u8]) -> Option<(u16, usize)> {
    let end = held.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&held[..end]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (held.len() >= end + length).then_some((status, end + length))
}

/// xorshift64*, good enough for gaps: numbers in (0, 1].
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        (bits + 1) as f64 / (1_u64 << 53) as f64
    }
}

fn requests(file: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let bytes = std::fs::read(file)?;
    let (mut found, mut at) = (Vec::new(), 0);
    while at + 4 <= bytes.len() {
        let size = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        found.push(bytes.get(at + 4..at + 4 + size).ok_or("REQUESTS is cut off")?.to_vec());
        at += 4 + size;
    }
    Ok(found)
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, phases, connections, seed, file] = words.as_slice() else { return Err(USAGE.into()) };
    let phases = phases.split(',').map(|phase| {
        let (rate, seconds) = phase.split_once(':').ok_or(USAGE)?;
        Ok((rate.parse()?, Duration::from_secs_f64(seconds.parse()?)))
    });
    let phases = phases.collect::<Result<Vec<(f64, Duration)>, Failure>>()?;
    let mut load = Load::new(address.parse()?, connections.parse()?, requests(file)?)?;
    load.run(&phases, seed.parse::<u64>()? | 1)?;
    std::io::stdout().write_all(&load.records)?;
    Ok(())
}
