//! A listener: one address, and some threads that serve it.
//!
//! Strategy: one thread accepts, and gives each connection to the thread that has the fewest, itself included; so they are
//! spread evenly, whoever comes and goes. The kernel would spread them by chance (`SO_REUSEPORT`), and would let another
//! process listen on the same port unseen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SendError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flx_core::ws::Bounds;
use mio::net::{TcpListener, TcpStream};
use mio::{Poll, Waker};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustls::ServerConfig;

use crate::deflate::Deflated;
use crate::service::{ConnId, Service, Upgrade};
use crate::worker::{WAKER, Worker};

/// Bounds of a thread's connections. Times are milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WebSockets of each thread.
    pub connections: usize,
    /// Connections of each thread that are not WebSockets, or not any more; more wait to be accepted.
    pub strangers: usize,
    /// Handshakes of each thread that the service is deciding about; those behind them are not read yet.
    pub deciding: usize,
    /// Of inbound messages.
    pub inbound: Bounds,
    /// Whether messages are compressed for clients that offer it (RFC 7692).
    pub deflate: bool,
    /// So many frames of one turn, to as many clients, leave by one system call, where the kernel has `io_uring` and permits
    /// it; fewer by one each. `usize::MAX` does without.
    pub together: usize,
    /// Bytes of messages that wait for room in a socket.
    pub backlog_bytes: usize,
    /// Bytes that the kernel keeps of what a client does not read: it bounds the memory of a stalled client, and how far it
    /// is behind before it is seen to be.
    pub send_buffer_bytes: usize,
    /// For a whole handshake, that of TLS included, and for the service's answer to it.
    pub handshake_ms: u64,
    /// Between two Pings.
    pub ping_ms: u64,
    /// From a Ping to the sign of life that it asks for.
    pub life_ms: u64,
    /// For a full socket to take something.
    pub write_ms: u64,
    /// For a client to answer a Close, or to end its half.
    pub close_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            strangers: 1_024,
            deciding: 64,
            inbound: Bounds::default(),
            deflate: false,
            together: 4,
            backlog_bytes: 64 * 1024,
            send_buffer_bytes: 128 * 1024,
            handshake_ms: 10_000,
            ping_ms: 25_000,
            life_ms: 20_000,
            write_ms: 10_000,
            close_ms: 2_000,
        }
    }
}

/// Monotonic milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    set: Instant,
    to: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self::reading(Instant::now(), Duration::ZERO)
    }
}

impl Clock {
    /// One that showed `to` when it was `set`.
    #[must_use]
    pub const fn reading(set: Instant, to: Duration) -> Self {
        Self { set, to }
    }

    /// Now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.to + self.set.elapsed()).as_millis() as u64
    }
}

/// What a thread is told from outside.
pub(crate) enum Control {
    Welcome(TcpStream, SocketAddr),
    Answer(ConnId, Upgrade),
    Close(ConnId, u16, Box<str>),
    Drain { within_ms: u64 },
    Stop,
}

/// A way to speak to a thread from any other.
#[derive(Clone)]
pub struct Handle {
    controls: Sender<Control>,
    waker: Arc<Waker>,
    pub(crate) is_called: Arc<AtomicBool>,
    pub(crate) load: Arc<Load>,
}

/// How much a thread has to do, as the one that accepts sees it.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Its connections, and those among them that are WebSockets.
    all: AtomicUsize,
    open: AtomicUsize,
    /// Connections that it was given and has not looked at yet.
    coming: AtomicUsize,
    deflated: [AtomicU64; 3],
    has_ring: AtomicBool,
}

impl Load {
    /// So many there are now, with those that have come since the last call.
    pub(crate) fn is(&self, all: usize, open: usize, came: usize) {
        self.open.store(open, Ordering::Relaxed);
        // Counted twice for a moment rather than not at all.
        self.all.store(all, Ordering::Release);
        self.coming.fetch_sub(came, Ordering::Release);
    }

    /// So much more was compressed.
    pub(crate) fn has_deflated(&self, more: Deflated) {
        for (count, more) in self.deflated.iter().zip([more.made, more.bytes, more.sent_bytes]) {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Whether it has an `io_uring`.
    pub(crate) fn has_ring(&self, has: bool) {
        self.has_ring.store(has, Ordering::Relaxed);
    }

    fn deflated(&self) -> Deflated {
        let [made, bytes, sent_bytes] = self.deflated.each_ref().map(|count| count.load(Ordering::Relaxed));
        Deflated { made, bytes, sent_bytes }
    }

    /// Connections, and those among them that are no WebSockets.
    pub(crate) fn count(&self) -> (usize, usize) {
        let all = self.coming.load(Ordering::Acquire) + self.all.load(Ordering::Acquire);
        (all, all.saturating_sub(self.open.load(Ordering::Relaxed)))
    }
}

impl Handle {
    /// Answers a handshake that the service has put off.
    pub fn answer(&self, conn: ConnId, upgrade: Upgrade) {
        self.tell(Control::Answer(conn, upgrade));
    }

    /// Closes a WebSocket.
    pub fn close(&self, conn: ConnId, code: u16, reason: &str) {
        self.tell(Control::Close(conn, code, reason.into()));
    }

    /// Makes the service's turn come at once; many calls before it are one.
    pub fn wake(&self) {
        if !self.is_called.swap(true, Ordering::AcqRel) {
            // Only a full counter or a lack of memory fails, and after either the thread is awake anyway.
            let _ = self.waker.wake();
        }
    }

    /// Gives a connection to the thread; back, when that has ended.
    pub(crate) fn welcome(&self, socket: TcpStream, peer: SocketAddr) -> Result<(), TcpStream> {
        self.load.coming.fetch_add(1, Ordering::Relaxed);
        match self.controls.send(Control::Welcome(socket, peer)) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(SendError(Control::Welcome(socket, _))) => Err(socket),
            // Nothing else was sent.
            Err(_) => Ok(()),
        }
    }

    fn tell(&self, control: Control) {
        // A thread that has ended needs no telling.
        if self.controls.send(control).is_ok() {
            self.wake();
        }
    }
}

/// A listener's threads. Dropped without [`Self::stop`], it stops as well, but does not wait.
pub struct Listener {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` and serves it with as many threads as there are `limits` for; `service` makes each thread's.
    pub fn start<S: Service>(
        address: SocketAddr,
        threads: usize,
        limits: Limits,
        tls: Option<&Arc<ServerConfig>>,
        clock: Clock,
        mut service: impl FnMut(usize, Handle) -> S,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        // What is accepted inherits it.
        set_socket_send_buffer_size(&socket, limits.send_buffer_bytes)?;
        let mut listener = Self { handles: Vec::new(), threads: Vec::new(), address: socket.local_addr()? };
        let mut workers = Vec::new();
        for thread in 0..threads.max(1) {
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
            let (controls, inbox) = mpsc::channel();
            let handle = Handle { controls, waker, is_called: Arc::default(), load: Arc::default() };
            let service = service(thread, handle.clone());
            workers.push(Worker::new(poll, inbox, &handle, limits, tls.cloned(), clock, service));
            listener.handles.push(handle);
        }
        if let Some(first) = workers.first_mut() {
            first.listen(socket, listener.handles[1..].to_vec())?;
        }
        for (thread, worker) in workers.into_iter().enumerate() {
            let name = format!("flx-realtime-{thread}");
            listener.threads.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
        }
        Ok(listener)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections each thread has.
    #[must_use]
    pub fn connections(&self) -> Vec<usize> {
        self.handles.iter().map(|handle| handle.load.count().0).collect()
    }

    /// What was compressed since it began.
    #[must_use]
    pub fn deflated(&self) -> Deflated {
        self.handles.iter().map(|handle| handle.load.deflated()).fold(Deflated::default(), Deflated::and)
    }

    /// How many threads send by `io_uring`; those whom the kernel refused it send one by one.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.handles.iter().filter(|handle| handle.load.has_ring.load(Ordering::Relaxed)).count()
    }

    /// Whether all threads are at work; one ends early only by a bug.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Sends everybody away, spread over `within_ms`, and refuses who comes.
    pub fn drain(&self, within_ms: u64) {
        self.handles.iter().for_each(|handle| handle.tell(Control::Drain { within_ms }));
    }

    /// Closes what is open and waits until all is over: a few seconds at most.
    pub fn stop(mut self) {
        self.call_off();
        for thread in self.threads.drain(..) {
            // A panic was told by its own hook.
            let _ = thread.join();
        }
    }

    fn call_off(&self) {
        self.handles.iter().for_each(|handle| handle.tell(Control::Stop));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.call_off();
    }
}
