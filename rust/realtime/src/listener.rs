//! A listener: one address, and some threads that serve it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use flx_core::ws::Bounds;
use mio::net::TcpListener;
use mio::{Interest, Poll, Waker};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustls::ServerConfig;

use crate::service::{ConnId, Service, Upgrade};
use crate::worker::{LISTENER, WAKER, Worker};

/// Bounds of a thread's connections. Times are milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WebSockets of each thread.
    pub connections: usize,
    /// Connections of each thread that are not WebSockets, or not any more; more wait to be accepted.
    pub strangers: usize,
    /// Of inbound messages.
    pub inbound: Bounds,
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
            inbound: Bounds::default(),
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

/// Monotonic milliseconds since a listener's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

/// What a thread is told from outside.
pub(crate) enum Control {
    Answer(ConnId, Upgrade),
    Drain { within_ms: u64 },
    Stop,
}

/// A way to speak to a thread from any other.
#[derive(Clone)]
pub struct Handle {
    controls: Sender<Control>,
    waker: Arc<Waker>,
    is_called: Arc<AtomicBool>,
}

impl Handle {
    /// Answers a handshake that the service has put off.
    pub fn answer(&self, conn: ConnId, upgrade: Upgrade) {
        self.tell(Control::Answer(conn, upgrade));
    }

    /// Makes the service's turn come at once; many calls before it are one.
    pub fn wake(&self) {
        if !self.is_called.swap(true, Ordering::AcqRel) {
            // Only a full counter or a lack of memory fails, and after either the thread is awake anyway.
            let _ = self.waker.wake();
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
        let first = TcpListener::bind(address)?;
        // What is accepted inherits it.
        set_socket_send_buffer_size(&first, limits.send_buffer_bytes)?;
        let mut listener = Self { handles: Vec::new(), threads: Vec::new(), address: first.local_addr()? };
        for thread in 0..threads.max(1) {
            let socket = std::net::TcpListener::from(first.as_fd().try_clone_to_owned()?);
            let mut socket = TcpListener::from_std(socket);
            let poll = Poll::new()?;
            poll.registry().register(&mut socket, LISTENER, Interest::READABLE)?;
            let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
            let (controls, inbox) = mpsc::channel();
            let handle = Handle { controls, waker, is_called: Arc::default() };
            let is_called = Arc::clone(&handle.is_called);
            let service = service(thread, handle.clone());
            let worker = Worker::new(poll, socket, (inbox, is_called), limits, tls.cloned(), clock, service);
            let name = format!("flx-realtime-{thread}");
            listener.threads.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
            listener.handles.push(handle);
        }
        Ok(listener)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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
