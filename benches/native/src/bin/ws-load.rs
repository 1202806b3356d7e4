//! A fleet of WebSocket clients on one thread: it connects, subscribes, counts, and judges every connection.
//!
//!     ws-load PLAN
//!
//! PLAN is a file of JSON (`client::Plan`). Commands come as lines on standard input, answers as lines of JSON:
//!
//!     {"event":"ready",...}       when all have subscribed, or were refused
//!     begin [lone]                clear the figures; `lone`: keep the last arrival of each event
//!     report                      the figures
//!     await EVENTS MS             the figures, as soon as so many events have come, or after so long
//!     stall, release              those that can be stalled stop reading, and go on; one that was closed comes back
//!     lose                        from here on who is closed comes back and resumes; tells when all are there again
//!
//! Rules:
//! - The end of standard input is the end of the program.
//! - One process holds as many sockets as its limit of descriptors allows; where that is too few it says so and ends.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    fs::File,
    io::{ErrorKind, Read, Write, stdin},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};

use flx_bench::{
    client::{Client, Figures, Phase, Plan},
    dialect::Reader,
    returning::Return,
    stream::{self, Stream},
};
use polling::{Event, Events, PollMode, Poller};
use rustls::ClientConfig;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

type Failure = Box<dyn Error>;

/// Connections from one source address, which has some 28,000 ports; those of connections that have ended are not free at
/// once, so whoever comes again, and the next fleet, come from other ones.
const PER_SOURCE: usize = 10_000;
/// So small that a client which does not read holds its server up soon.
const STALLABLE_BYTES: usize = 4096;
const BUFFER: usize = 512 * 1024;
const AGAIN: Duration = Duration::from_millis(2);
const COMMANDS: usize = usize::MAX - 1;
/// A connection that was lost without a close frame (RFC 6455, 7.1.5).
const LOST: u16 = 1006;

struct Slot {
    client: Client,
    socket: Option<Stream>,
    connected: bool,
    live: bool,
    stalled: bool,
    /// It comes back when it is closed.
    returns: bool,
    resumed: u64,
}

struct Awaited {
    events: u64,
    until: Instant,
}

struct Fleet {
    plan: Plan,
    poller: Poller,
    slots: Vec<Slot>,
    tls: Option<Arc<ClientConfig>>,
    reader: Reader,
    figures: Figures,
    waiting: VecDeque<usize>,
    under_way: usize,
    live: usize,
    ready: bool,
    began: Instant,
    not_before: Instant,
    closed: BTreeMap<u16, u64>,
    returning: Option<Return>,
    awaited: Option<Awaited>,
    buffer: Vec<u8>,
}

impl Fleet {
    fn new(plan: Plan) -> Result<Self, Failure> {
        let now = Instant::now();
        let slots = (0..plan.connections).map(|number| Slot {
            client: Client::new(number, &plan),
            socket: None,
            connected: false,
            live: false,
            stalled: false,
            returns: false,
            resumed: 0,
        });
        Ok(Self {
            poller: Poller::new()?,
            slots: slots.collect(),
            tls: plan.ca.as_deref().map(stream::trusting).transpose()?,
            reader: Reader::marked(plan.dialect, &plan.mark),
            figures: Figures::default(),
            waiting: (0..plan.connections).collect(),
            under_way: 0,
            live: 0,
            ready: false,
            began: now,
            not_before: now,
            closed: BTreeMap::new(),
            returning: None,
            awaited: None,
            buffer: vec![0; BUFFER],
            plan,
        })
    }

    fn run(&mut self) -> Result<(), Failure> {
        let mut commands = File::from(stdin().as_fd().try_clone_to_owned()?);
        // SAFETY: `commands` lives as long as the poller is asked.
        unsafe { self.poller.add_with_mode(&commands, Event::readable(COMMANDS), PollMode::Level)? };
        let mut events = Events::with_capacity(std::num::NonZeroUsize::new(4096).ok_or("no events")?);
        let mut lines = Vec::new();
        loop {
            self.connect_some()?;
            self.look()?;
            events.clear();
            self.poller.wait(&mut events, Some(self.patience()))?;
            for event in events.iter() {
                if event.key != COMMANDS {
                    self.turn(event)?;
                    continue;
                }
                let mut chunk = [0; 4096];
                match commands.read(&mut chunk)? {
                    0 => return Ok(()),
                    size => lines.extend_from_slice(&chunk[..size]),
                }
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    self.command(&String::from_utf8_lossy(&line))?;
                }
            }
        }
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let mut until = now + Duration::from_millis(100);
        if !self.waiting.is_empty() && self.under_way < self.most_under_way() {
            until = until.min(self.not_before.max(now));
        }
        if let Some(awaited) = &self.awaited {
            until = until.min(awaited.until);
        }
        until.saturating_duration_since(now)
    }

    /// While the server is away one client looks for it.
    fn most_under_way(&self) -> usize {
        match &self.returning {
            Some(returning) if returning.is_away() => 1,
            _ => self.plan.concurrency,
        }
    }

    fn connect_some(&mut self) -> Result<(), Failure> {
        while self.under_way < self.most_under_way() && Instant::now() >= self.not_before {
            let Some(number) = self.waiting.pop_front() else { return Ok(()) };
            self.under_way += 1;
            let socket = match open(&self.plan, number) {
                Ok(socket) => socket,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.over(number, LOST)?;
                    continue;
                }
                Err(error) => return Err(format!("connection {number}: {error}").into()),
            };
            // SAFETY: a socket is taken out of the poller before it is closed (`over`), or lives as long as that.
            unsafe { self.poller.add_with_mode(&socket, Event::all(number), PollMode::Level)? };
            let stream = Stream::new(socket, self.tls.as_ref(), self.plan.address)?;
            let slot = &mut self.slots[number];
            (slot.socket, slot.connected) = (Some(stream), false);
        }
        Ok(())
    }

    /// Tell what has become true.
    fn look(&mut self) -> Result<(), Failure> {
        if !self.ready && self.waiting.is_empty() && self.under_way == 0 {
            self.ready = true;
            let mut told = self.told("ready");
            told["took_ms"] = json!(self.began.elapsed().as_millis());
            say(&told)?;
        }
        let returning = self.returning.as_ref();
        if let Some((took, away)) = returning.and_then(|it| it.over(self.slots.len(), self.live, Instant::now())) {
            let told = json!({
                "event": "returned",
                "took_ms": took.as_secs_f64() * 1e3,
                "away_ms": away.as_secs_f64() * 1e3,
            });
            self.returning = None;
            say(&told)?;
        }
        if let Some(awaited) = &self.awaited
            && (self.figures.events >= awaited.events || Instant::now() >= awaited.until)
        {
            self.awaited = None;
            say(&self.report())?;
        }
        Ok(())
    }

    fn turn(&mut self, event: Event) -> Result<(), Failure> {
        let number = event.key;
        let slot = &mut self.slots[number];
        let Some(stream) = &mut slot.socket else { return Ok(()) };
        if !slot.connected {
            let socket = stream.socket();
            if socket.take_error()?.is_some() || socket.peer_addr().is_err() {
                return self.over(number, LOST);
            }
            slot.connected = true;
            if let Some(returning) = &mut self.returning {
                returning.reached(number, Instant::now());
            }
        }
        if event.readable {
            let size = match stream.read(&mut self.buffer) {
                Ok(0) => return self.over(number, LOST),
                Ok(size) => size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return self.over(number, LOST),
            };
            let now_us = SystemTime::UNIX_EPOCH.elapsed()?.as_micros().try_into()?;
            slot.client.feed(&self.buffer[..size], &self.plan, &mut self.reader, &mut self.figures, now_us);
            match slot.client.phase {
                Phase::Ended(code) => return self.over(number, code),
                Phase::Live if !slot.live => {
                    slot.live = true;
                    self.live += 1;
                    self.under_way -= 1;
                    if let Some(returning) = &mut self.returning {
                        returning.let_in(number);
                    }
                }
                _ => {}
            }
        }
        if !self.slots[number].client.out.is_empty() || event.writable {
            return self.write(number);
        }
        Ok(())
    }

    fn write(&mut self, number: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[number];
        let Some(stream) = &mut slot.socket else { return Ok(()) };
        let out = &mut slot.client.out;
        match stream.write(out) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.over(number, LOST),
        }
        let is_done = out.is_empty() && !stream.wants_write();
        let interest = if is_done || stream.is_shaking_hands() { Event::readable(number) } else { Event::all(number) };
        self.poller.modify_with_mode(stream.socket(), interest, PollMode::Level)?;
        Ok(())
    }

    /// A connection is closed, or was not let in.
    fn over(&mut self, number: usize, code: u16) -> Result<(), Failure> {
        let slot = &mut self.slots[number];
        if let Some(stream) = slot.socket.take() {
            if !slot.stalled {
                self.poller.delete(stream.socket())?;
            }
            // Reset, so that no port waits for two minutes.
            let _ = SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO));
        }
        if std::mem::take(&mut slot.live) {
            self.live -= 1;
            if let Some(returning) = &mut self.returning {
                returning.lost(Instant::now());
            }
        } else {
            if let Some(returning) = &mut self.returning {
                returning.turned_away(number);
            }
            self.under_way -= 1;
            self.not_before = Instant::now() + AGAIN;
        }
        slot.connected = false;
        if self.returning.is_some() || slot.returns {
            slot.resumed += 1;
            slot.client.come_back(&self.plan);
            self.waiting.push_back(number);
        } else {
            *self.closed.entry(code).or_default() += 1;
        }
        Ok(())
    }

    fn command(&mut self, line: &str) -> Result<(), Failure> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["begin"] => self.begin(false),
            ["begin", "lone"] => self.begin(true),
            ["report"] => say(&self.report()),
            ["await", events, ms] => {
                let until = Instant::now() + Duration::from_millis(ms.parse()?);
                self.awaited = Some(Awaited { events: events.parse()?, until });
                Ok(())
            }
            ["stall"] => self.stall(),
            ["release"] => self.release(),
            ["lose"] => {
                self.returning = Some(Return::default());
                say(&self.told("losing"))
            }
            _ => Err(format!("unknown command {line}").into()),
        }
    }

    fn begin(&mut self, lone: bool) -> Result<(), Failure> {
        self.figures = Figures { lasts: lone.then(BTreeMap::new), ..Figures::default() };
        self.began = Instant::now();
        self.closed.clear();
        for slot in &mut self.slots {
            (slot.client.events, slot.client.gaps, slot.resumed) = (0, 0, 0);
            slot.client.heard.clear();
        }
        say(&self.told("begun"))
    }

    fn stall(&mut self) -> Result<(), Failure> {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if self.plan.stallable(number)
                && !slot.stalled
                && slot.live
                && let Some(stream) = &slot.socket
            {
                // Not only without interest: a closed socket would be told over and over.
                self.poller.delete(stream.socket())?;
                slot.stalled = true;
            }
        }
        say(&self.told("stalled"))
    }

    fn release(&mut self) -> Result<(), Failure> {
        for (number, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.stalled) {
            slot.stalled = false;
            slot.returns = true;
            if let Some(stream) = &slot.socket {
                // SAFETY: as in `connect_some`.
                unsafe { self.poller.add_with_mode(stream.socket(), Event::readable(number), PollMode::Level)? };
            }
        }
        say(&self.told("released"))
    }

    fn told(&self, event: &str) -> Value {
        json!({
            "event": event,
            "live": self.live,
            "stalled": self.slots.iter().filter(|slot| slot.stalled).count(),
            "flx_v1": self.slots.iter().filter(|slot| slot.client.flx_v1).count(),
            "closed": self.closed,
            "complaint": self.figures.complaint,
        })
    }

    fn report(&self) -> Value {
        let figures = &self.figures;
        let healthy = self.slots.iter().enumerate().filter(|(number, _)| !self.plan.stallable(*number));
        let heard: Vec<u64> = healthy.map(|(_, slot)| slot.client.events).collect();
        let stallable = || self.slots.iter().enumerate().filter(|(number, _)| self.plan.stallable(*number));
        let ages = |ages: &flx_bench::ages::Ages| {
            json!({
                "count": ages.count(),
                "p50_us": ages.percentile(0.5),
                "p99_us": ages.percentile(0.99),
                "max_us": ages.max(),
            })
        };
        let mut told = self.told("report");
        let more = json!({
            "seconds": self.began.elapsed().as_secs_f64(),
            "events": figures.events,
            "frames": figures.frames,
            "bytes": figures.bytes,
            "least_events": heard.iter().min(),
            "most_events": heard.iter().max(),
            "holes": figures.faults.holes,
            "duplicates": figures.faults.duplicates,
            "disorder": figures.faults.disorder,
            "unreadable": figures.unreadable,
            "gaps": figures.gaps,
            "gap_reasons": figures.gap_reasons,
            "ages": ages(&figures.ages),
            "ages_stallable": ages(&figures.ages_stallable),
            "stallable_told": stallable().filter(|(_, slot)| slot.client.gaps > 0).count(),
            "stallable_resumed": stallable().filter(|(_, slot)| slot.resumed > 0).count(),
            "lasts_us": figures.lasts.as_ref().map(|lasts| {
                lasts.values().map(|(age, count)| json!([age, count])).collect::<Vec<_>>()
            }),
            "marked": figures.written.count,
            "marked_us": figures.written.came_us.map_or(0, |(first, last)| last - first),
            "firsts_us": figures.written.firsts.values().map(|(age, count)| json!([age, count])).collect::<Vec<_>>(),
        });
        if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
            told.extend(more);
        }
        told
    }
}

/// How many sockets were opened.
static OPENED: AtomicUsize = AtomicUsize::new(0);

fn open(plan: &Plan, number: usize) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if plan.stallable(number) {
        socket.set_recv_buffer_size(STALLABLE_BYTES)?;
    }
    if plan.address.ip().is_loopback() {
        let place = OPENED.fetch_add(1, Ordering::Relaxed) / PER_SOURCE;
        let source = Ipv4Addr::new(127, 0, 1 + (std::process::id() % 254) as u8, 1 + (place % 254) as u8);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&plan.address.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Linux's number for a connection that is on its way (errno(3)); `ErrorKind` has no stable name for it.
const EINPROGRESS: i32 = 115;

fn say(told: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{told}")?;
    out.flush()?;
    Ok(())
}

/// How many descriptors this process may have.
fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn main() -> Result<(), Failure> {
    let file = std::env::args().nth(1).ok_or("ws-load PLAN")?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(file)?)?;
    if let Some(most) = descriptors()
        && plan.connections + 16 > most
    {
        let wanted = plan.connections;
        return say(&json!({"event": "failed", "reason":
            format!("{wanted} connections need more than the {most} descriptors that a process may have here")}));
    }
    Fleet::new(plan)?.run()
}
