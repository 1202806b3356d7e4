//! A call: a request that somebody answers, in any thread, at any time, once.
//!
//! Strategy: an answer travels with the sender of its own channel through one queue for all calls. The queue's reader, in the
//! lane's thread, is woken once for all that are given together, and hands each on without a wake-up across threads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::body::{Cut, Parts, Reply};
use crate::service::Told;

/// So many parts of a stream wait for the client at most.
const PARTS: usize = 16;

/// An answer on its way.
pub(crate) type Answer = (oneshot::Sender<Response<Reply>>, Response<Reply>);

/// Where answers go.
pub(crate) type Courier = mpsc::UnboundedSender<Vec<Answer>>;

/// Whom a call tells what happens to it.
pub(crate) type Tell = Arc<dyn Fn(u64, Told) + Send + Sync>;

/// What the two ends of a call know of each other.
pub(crate) struct Watch {
    number: u64,
    tell: Tell,
    wants_room: AtomicBool,
    wants_end: AtomicBool,
    is_gone: AtomicBool,
    is_complete: AtomicBool,
}

impl Watch {
    pub(crate) fn new(number: u64, tell: Tell) -> Arc<Self> {
        let [wants_room, wants_end, is_gone, is_complete] = [false; 4].map(AtomicBool::new);
        Arc::new(Self { number, tell, wants_room, wants_end, is_gone, is_complete })
    }

    /// One of the parts that waited has left.
    pub(crate) fn took_one(&self) {
        // Between what was taken and the look here, as in `put`: one of the two sees what the other did.
        fence(Ordering::SeqCst);
        if self.wants_room.swap(false, Ordering::SeqCst) {
            (self.tell)(self.number, Told::Room);
        }
    }

    /// The client is gone.
    pub(crate) fn gone(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        if self.wants_end.swap(false, Ordering::SeqCst) {
            (self.tell)(self.number, Told::Gone);
        }
        self.took_one();
    }

    /// Whether the last part was the end, and nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::SeqCst)
    }

    /// Puts something into a queue; where there is no room, whoever made the call is told as soon as there is.
    pub(crate) fn put<T>(&self, queue: &mpsc::Sender<T>, make: impl Fn() -> T) -> Room {
        for is_last in [false, true] {
            match queue.try_send(make()) {
                Ok(()) => return Room::Taken,
                Err(TrySendError::Closed(_)) => return Room::Gone,
                // It may have become free meanwhile: asked first, tried again after.
                Err(TrySendError::Full(_)) if !is_last => {
                    self.wants_room.store(true, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                }
                Err(TrySendError::Full(_)) => {}
            }
        }
        Room::Full
    }

    pub(crate) fn tell(&self, what: Told) {
        (self.tell)(self.number, what);
    }

    /// Asks to be told when the client is gone; false when it is already.
    pub(crate) fn ask_for_end(&self) -> bool {
        self.wants_end.store(true, Ordering::SeqCst);
        !(self.is_gone.load(Ordering::SeqCst) && self.wants_end.swap(false, Ordering::SeqCst))
    }
}

/// A request that is to be answered. Dropped without an answer it ends its connection.
pub struct Call {
    sender: oneshot::Sender<Response<Reply>>,
    courier: Courier,
    watch: Arc<Watch>,
}

impl Call {
    pub(crate) fn new(number: u64, tell: Tell, courier: Courier) -> (Self, Waiting) {
        let (sender, receiver) = oneshot::channel();
        let watch = Watch::new(number, tell);
        let waiting = Waiting { receiver, watch: Arc::clone(&watch), is_over: false };
        (Self { sender, courier, watch }, waiting)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.watch.number
    }

    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks to be told when the client is gone; false when it is already.
    #[must_use]
    pub fn ask_for_end(&self) -> bool {
        self.watch.ask_for_end()
    }

    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// Answers with a body of any kind; false when nobody waits any more.
    pub(crate) fn respond(self, response: Response<Reply>) -> bool {
        !self.sender.is_closed() && self.courier.send(vec![(self.sender, response)]).is_ok()
    }

    /// Answers; false when nobody waits any more.
    pub fn answer(self, response: Response<Bytes>) -> bool {
        self.respond(response.map(Reply::whole))
    }

    /// Begins an answer whose body comes in parts.
    #[must_use]
    pub fn stream(self, head: Response<()>) -> Stream {
        let (parts, receiver) = mpsc::channel(PARTS);
        let watch = Arc::clone(&self.watch);
        let response = head.map(|()| Reply::Stream(Parts::new(receiver, Arc::clone(&self.watch))));
        // Where nobody is left, the first part finds that out.
        let _ = self.respond(response);
        Stream { parts, watch }
    }
}

/// Answers that are given together: the lane is woken once, when all are there, and not in between.
#[derive(Default)]
pub struct Together {
    courier: Option<Courier>,
    answers: Vec<Answer>,
}

impl Together {
    /// Answers, as soon as this is dropped; false when nobody waits any more.
    pub fn answer(&mut self, call: Call, response: Response<Bytes>) -> bool {
        let is_there = !call.sender.is_closed();
        if is_there {
            self.answers.push((call.sender, response.map(Reply::whole)));
            self.courier.get_or_insert(call.courier);
        }
        is_there
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        if let Some(courier) = self.courier.take() {
            // A lane that has ended has nobody left.
            let _ = courier.send(std::mem::take(&mut self.answers));
        }
    }
}

/// Whether there was room for a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It is on its way.
    Taken,
    /// There is none; whoever waits for it is told.
    Full,
    /// The client is gone.
    Gone,
}

/// A body that comes in parts. Dropped before its end it cuts the connection.
pub struct Stream {
    parts: mpsc::Sender<Bytes>,
    watch: Arc<Watch>,
}

impl Stream {
    /// Sends a part.
    #[must_use]
    pub fn part(&self, bytes: &Bytes) -> Room {
        self.watch.put(&self.parts, || bytes.clone())
    }

    /// Asks to be told when the client is gone; false when it is already.
    #[must_use]
    pub fn ask_for_end(&self) -> bool {
        self.watch.ask_for_end()
    }

    /// That was all.
    pub fn end(self) {
        self.watch.is_complete.store(true, Ordering::SeqCst);
    }
}

/// The lane's end of a call.
pub(crate) struct Waiting {
    receiver: oneshot::Receiver<Response<Reply>>,
    watch: Arc<Watch>,
    is_over: bool,
}

impl Future for Waiting {
    type Output = Result<Response<Reply>, Cut>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.receiver).poll(context));
        self.is_over = true;
        Poll::Ready(answer.map_err(|_| Cut))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_over {
            // Whoever is told finds it so.
            self.receiver.close();
            self.watch.gone();
        }
    }
}
