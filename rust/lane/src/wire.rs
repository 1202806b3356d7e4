//! The bytes of one connection: which protocol it begins with, and what hyper has no patience or no word for.
//!
//! Rules:
//! - who does not take what is written for a while is given up;
//! - an answer of HTTP/1.0 that is as long as its connection, and is given up, ends it with a reset: an end would be its own;
//! - a connection that ends while the client still writes is read on for a moment: closed at once, the system would reset it,
//!   and the client lose the answer that says why.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::socket::Open;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So long a client is read on, whose connection has ended.
const LINGER: Duration = Duration::from_secs(2);

/// What stands beside a connection while its requests are served.
#[derive(Default)]
pub(crate) struct Beside {
    open: Mutex<Option<Open>>,
    is_unread: AtomicBool,
    is_cut: AtomicBool,
    asked: AtomicU64,
    /// Requests that are not answered to their end.
    under_way: AtomicU64,
    /// Frames of answers that wait for a window of HTTP/2.
    waiting: AtomicU64,
    /// Those that no longer do.
    left: AtomicU64,
}

impl Beside {
    /// A WebSocket was accepted: it goes on when hyper has answered.
    pub(crate) fn open(&self, open: Open) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
    }

    /// The WebSocket that was accepted, once.
    pub(crate) fn opened(&self) -> Option<Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A request has come: what came before it was read, then.
    pub(crate) fn ask(&self) {
        self.is_unread.store(false, Ordering::Relaxed);
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until no request has come for so long.
    pub(crate) async fn is_idle(&self, within: Duration) {
        let mut before = None;
        loop {
            let asked = self.asked.load(Ordering::Relaxed);
            if before == Some(asked) {
                return;
            }
            before = Some(asked);
            sleep(within).await;
        }
    }

    /// A frame of an answer waits for its window from now on.
    pub(crate) fn waits(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// It has left, or will not.
    pub(crate) fn leaves(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until frames have waited for so long, and none has left; or until nothing is under way for so long, and the
    /// connection has not ended: then the last of it waits, where nobody sees it any more.
    pub(crate) async fn is_stuck(&self, within: Duration) {
        let mut before = None;
        loop {
            let waits = self.waiting.load(Ordering::Relaxed) > 0 || self.under_way.load(Ordering::Relaxed) == 0;
            let now = waits.then(|| self.left.load(Ordering::Relaxed));
            if now.is_some() && now == before {
                return;
            }
            before = now;
            sleep(within).await;
        }
    }

    /// An answer is given up that its connection's end would make a whole one.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Not everything is read that the client sends.
    pub(crate) fn leave_unread(&self) {
        self.is_unread.store(true, Ordering::Relaxed);
    }
}

/// A request of a connection, until the last of its answer is handed over.
pub(crate) struct UnderWay(Arc<Beside>);

impl UnderWay {
    pub(crate) fn of(beside: &Arc<Beside>) -> Self {
        beside.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(beside))
    }

    /// What stands beside its connection.
    pub(crate) fn beside(&self) -> &Beside {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a connection begins: whether as one of HTTP/2, and what was read to know.
pub(crate) struct Beginning {
    pub(crate) is_http2: bool,
    bytes: [u8; PREFACE.len()],
    length: usize,
}

impl Beginning {
    /// Reads as much as it takes to know.
    pub(crate) async fn of<I: AsyncRead + Unpin>(stream: &mut I) -> io::Result<Self> {
        let (mut bytes, mut length) = ([0; PREFACE.len()], 0);
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            buffer.set_filled(length);
            std::future::poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut buffer)).await?;
            let found = buffer.filled().len();
            let is_http2 = found > length && bytes[..found] == PREFACE[..found];
            length = found;
            if !is_http2 || length == PREFACE.len() {
                return Ok(Self { is_http2, bytes, length });
            }
        }
    }
}

/// What carries a connection.
pub(crate) trait Carrier: AsyncRead + AsyncWrite + Unpin {
    /// Lets it end as one that has failed.
    fn fail(&self);
}

impl Carrier for TcpStream {
    fn fail(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Carrier for TlsStream<TcpStream> {
    fn fail(&self) {
        self.get_ref().0.fail();
    }
}

/// The bytes of a connection.
pub(crate) struct Wire<I: Carrier> {
    stream: I,
    beside: Arc<Beside>,
    beginning: Beginning,
    /// So much of the beginning was read again.
    again: usize,
    patience: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs since our side has ended.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<I: Carrier> Wire<I> {
    pub(crate) fn new(stream: I, beginning: Beginning, patience: Duration, beside: Arc<Beside>) -> Self {
        Self { stream, beside, beginning, again: 0, patience, stalled: None, lingering: None }
    }

    /// What became of something that waits for the client to take more.
    fn patiently<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            if self.stalled.is_some() {
                self.stalled = None;
            }
            return done;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: Carrier> AsyncRead for Wire<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.again < this.beginning.length {
            let left = &this.beginning.bytes[this.again..this.beginning.length];
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(&left[..count]);
            this.again += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<I: Carrier> Drop for Wire<I> {
    fn drop(&mut self) {
        if self.beside.is_cut.load(Ordering::Relaxed) {
            self.stream.fail();
        }
    }
}

impl<I: Carrier> AsyncWrite for Wire<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patiently(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.patiently(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        // TCP keeps nothing back: this is TLS with bytes that wait.
        if flushed.is_pending() { self.patiently(context, flushed) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            let ended = Pin::new(&mut this.stream).poll_shutdown(context);
            ready!(this.patiently(context, ended))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 4_096];
        while lingering.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => this.beside.leave_unread(),
                Poll::Pending if this.beside.is_unread.load(Ordering::Relaxed) => return Poll::Pending,
                // The client has ended its side too, or there is nothing that it would lose.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
