//! Bodies: those of requests, read whole, and those of responses, whole or a stream.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::call::Watch;
use crate::wire::{Beside, UnderWay};

/// What is wrong with the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has more bytes than it may.
    TooLarge,
    /// It did not come in time.
    Late,
    /// It is malformed, or ended too early.
    Broken,
}

/// What a response cannot be ended with: its connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer was given up")
    }
}

impl std::error::Error for Cut {}

/// The whole body of a request.
///
/// # Errors
/// Why there is none.
pub(crate) async fn whole(body: Incoming, limit: u64, within: Duration) -> Result<Bytes, Fault> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // It says so itself: then none of it is asked for.
    if body.size_hint().lower() > limit {
        return Err(Fault::TooLarge);
    }
    match tokio::time::timeout(within, read(body, limit)).await {
        Ok(read) => read,
        Err(_) => Err(Fault::Late),
    }
}

async fn read(mut body: Incoming, limit: u64) -> Result<Bytes, Fault> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        // Trailers say nothing here.
        let Ok(data) = frame.map_err(|_| Fault::Broken)?.into_data() else { continue };
        if (first.len() + rest.len() + data.len()) as u64 > limit {
            return Err(Fault::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// The body of a response.
pub(crate) enum Reply {
    Whole(Option<Bytes>),
    Stream(Parts),
}

/// The parts of a stream, as they leave.
pub(crate) struct Parts {
    receiver: mpsc::Receiver<Bytes>,
    watch: Arc<Watch>,
    /// Where the end of the connection is that of the stream.
    cuts: Option<Arc<Beside>>,
}

impl Parts {
    pub(crate) fn new(receiver: mpsc::Receiver<Bytes>, watch: Arc<Watch>) -> Self {
        Self { receiver, watch, cuts: None }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let part = ready!(self.receiver.poll_recv(context));
        self.watch.took_one();
        Poll::Ready(match part {
            Some(part) => Some(Ok(part)),
            None if self.watch.is_complete() => None,
            None => {
                if let Some(beside) = &self.cuts {
                    beside.cut();
                }
                Some(Err(Cut))
            }
        })
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.receiver.close();
        self.watch.gone();
    }
}

impl Reply {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self::Whole((!body.is_empty()).then_some(body))
    }

    /// It ends where its connection does.
    pub(crate) fn ending_with(mut self, of: Arc<Beside>) -> Self {
        if let Self::Stream(parts) = &mut self {
            parts.cuts = Some(of);
        }
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(parts) => parts.poll_next(context).map(|part| part.map(|part| part.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(..) => SizeHint::default(),
        }
    }
}

/// So much of a body is handed to HTTP/2 at once: what it has it keeps for as long as the client gives no window, and nobody
/// sees any more that it waits.
const PIECE: usize = 16_384;

/// The same over HTTP/2, where a part leaves when the client gives a window for it.
pub(crate) struct Windowed {
    reply: Reply,
    /// Of the part before.
    rest: Bytes,
    under_way: UnderWay,
    waits: bool,
}

impl Windowed {
    pub(crate) fn new(reply: Reply, under_way: UnderWay) -> Self {
        Self { reply, rest: Bytes::new(), under_way, waits: false }
    }

    fn left(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.under_way.beside().leaves();
        }
    }
}

impl Body for Windowed {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        // Who asks for the next one has got rid of the one before.
        self.left();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.reply).poll_frame(context)) {
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                other => return Poll::Ready(other),
            }
        }
        self.waits = true;
        self.under_way.beside().waits();
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It is asked for before anything is taken.
        self.reply.size_hint()
    }
}

impl Drop for Windowed {
    fn drop(&mut self) {
        self.left();
    }
}
