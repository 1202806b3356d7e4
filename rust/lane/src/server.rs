//! The server: one thread, its listening socket, and how it is stopped.

use std::io;
use std::net::{SocketAddr, TcpListener as Listening};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_user_timeout;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::call::Answer;
use crate::connections::{Ended, Lane, connection};
use crate::service::Service;

/// How patient a lane is, and how much it takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections, WebSockets among them; others wait in the queue of the listening socket.
    pub connections: usize,
    /// For the head of a request, which includes the time between two requests of a connection; and for a handshake of TLS.
    pub head: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// For a client that takes nothing of what is written to it.
    pub write: Duration,
    /// HTTP/2: without another request; those under way have their time.
    pub idle: Duration,
    /// HTTP/2: requests of one connection at once.
    pub streams: u32,
    /// HTTP/2: bytes of one request that may be on their way, and of one answer that wait for its client.
    pub stream_window: u32,
    /// HTTP/2: bytes of one connection that may be on their way.
    pub connection_window: u32,
    /// Bytes of one head, and of what is read ahead of an HTTP/1 connection.
    pub header_list: u32,
    /// HTTP/2: how often an idle connection is asked whether it is there, and how long it may take to say so.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            head: Duration::from_secs(10),
            body: Duration::from_secs(25),
            write: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            streams: 100,
            stream_window: 65_536,
            connection_window: 1 << 20,
            header_list: 65_536,
            keep_alive: Duration::from_secs(20),
        }
    }
}

/// How long one is without another try after the system had no descriptor left.
const BREATH: Duration = Duration::from_millis(50);

/// A lane that serves until it is stopped.
pub struct Server {
    stop: watch::Sender<Option<Duration>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Begins to serve on a socket that listens.
    ///
    /// # Errors
    /// There is no thread, or no way to wait for sockets.
    pub fn start<S: Service>(
        service: Arc<S>,
        listening: Listening,
        limits: Limits,
        tls: Option<Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        listening.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(None);
        let thread = std::thread::Builder::new().name("flx-lane".to_owned()).spawn(move || {
            runtime.block_on(async move {
                // It fails only without a runtime.
                if let Ok(listener) = TcpListener::from_std(listening) {
                    serve(service, listener, limits, tls.map(TlsAcceptor::from), stopped).await;
                }
            });
        })?;
        Ok(Self { stop, thread })
    }

    /// Takes no more connections, lets what is under way end within this time, and returns when all is over.
    pub fn stop(self, within: Duration) {
        // Where it has ended already, there is nobody to be told.
        let _ = self.stop.send(Some(within));
        let _ = self.thread.join();
    }
}

async fn serve<S: Service>(
    service: Arc<S>,
    listener: TcpListener,
    limits: Limits,
    tls: Option<TlsAcceptor>,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let (courier, answers) = mpsc::unbounded_channel();
    tokio::spawn(deliver(answers));
    let laid = Arc::new(Notify::new());
    tokio::spawn(tell(Arc::clone(&service), Arc::clone(&laid)));
    let last = Arc::clone(&service);
    let room = Arc::new(Semaphore::new(limits.connections));
    let patience = limits.write;
    let lane = Arc::new(Lane::new(service, limits, courier, laid));
    let (ending, ended) = watch::channel(Ended::No);
    let mut connections = JoinSet::new();
    let within = loop {
        let accepted = tokio::select! {
            // Without a word from it, it was dropped.
            _ = stopped.changed() => break stopped.borrow().unwrap_or_default(),
            accepted = accept(&listener, &room, patience) => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, address, permit) = match accepted {
            Ok(accepted) => accepted,
            // It has left before it was let in.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => {
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let serving = connection(Arc::clone(&lane), stream, address, tls.clone(), ended.clone(), permit);
        connections.spawn(serving);
    };
    drop(listener);
    let _ = ending.send(Ended::Gently);
    let _ = tokio::time::timeout(within, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
    // Nobody else says so any more.
    last.laid();
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    patience: Duration,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    let _ = stream.set_nodelay(true);
    // A client whose machine is gone says nothing, and of what waits for it mostly nothing fills its socket. The kernel gives up
    // who takes nothing for so long, as we do; where it does not, it has a quarter of an hour.
    let _ = set_tcp_user_timeout(&stream, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX));
    Ok((stream, address, permit))
}

/// Hands on what is answered, to those who wait in this thread.
async fn deliver(mut answers: mpsc::UnboundedReceiver<Vec<Answer>>) {
    while let Some(together) = answers.recv().await {
        for (waiting, answer) in together {
            // Who is gone needs none.
            let _ = waiting.send(answer);
        }
    }
}

/// Says that something was laid down, when all requests have been read that could be: whoever takes it is not to come for each.
async fn tell<S: Service>(service: Arc<S>, laid: Arc<Notify>) {
    loop {
        laid.notified().await;
        service.laid();
    }
}
