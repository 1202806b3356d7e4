//! WebSockets of the lane: a handshake that somebody decides about, and messages in both directions.
//!
//! Rules:
//! - what a client says waits until the one before it was taken, beyond a few: then the socket is not read;
//! - what it is sent waits in a queue that can be full; whoever finds it so is told of room;
//! - Pings are answered, and bad frames ended with their code, without anybody being asked;
//! - a client is heard while it takes nothing, and written to while it is not heard; but who has sent a Ping takes its Pong
//!   before anything else is heard, so that what waits for a client is bounded;
//! - a socket is served by the task of its connection: it holds that one's place, and ends with the server.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite as _;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Error, Utf8Bytes};

use crate::body::Reply;
use crate::call::{Call, Room, Watch};
use crate::connections::Ended as Server;
use crate::service::Told;
use crate::wire::Beside;

/// So many messages of a client are with the application, not taken yet.
const INBOUND: usize = 16;
/// So many messages wait for the client at most.
const OUTBOUND: usize = 16;
/// The largest message that is read. What may be said is smaller; this is for saying so.
const LARGEST: usize = 1 << 20;
/// What is read at once, and held for as long as a socket is open.
const READ: usize = 4_096;
/// The most bytes that a Close frame has room for, beside its code.
const REASON: usize = 123;
/// No Close frame came.
const NO_STATUS: u16 = 1005;
const LOST: u16 = 1006;
/// So long a client may take to answer a Close frame, and to take what is left when nobody holds its socket.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(Bytes),
    /// Bytes.
    Binary(Bytes),
    /// It is over: its Close frame had this code, or there was none (1005), or no end at all (1006).
    Close(u16),
}

/// A handshake that is to be decided about.
pub struct Handshake {
    call: Call,
    upgrade: OnUpgrade,
    accept: HeaderValue,
    beside: Arc<Beside>,
}

impl Handshake {
    pub(crate) fn new(call: Call, upgrade: OnUpgrade, head: &Parts, beside: Arc<Beside>) -> Option<Self> {
        let key = head.headers.get(header::SEC_WEBSOCKET_KEY)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()?;
        Some(Self { call, upgrade, accept, beside })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.call.number()
    }

    /// Asks to be told when the client is gone; false when it is already.
    #[must_use]
    pub fn ask_for_end(&self) -> bool {
        self.call.ask_for_end()
    }

    /// Refuses; false when nobody waits any more.
    pub fn refuse(self, response: Response<Bytes>) -> bool {
        self.call.answer(response)
    }

    /// Accepts, with these headers beside those of every handshake.
    #[must_use]
    pub fn accept(self, headers: Vec<(HeaderName, HeaderValue)>) -> Socket {
        let (queue, outbound) = mpsc::channel(OUTBOUND);
        let (held, is_held) = oneshot::channel();
        let taken = Arc::new(Semaphore::new(INBOUND));
        let mut response = Response::new(Reply::Whole(None));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let lines: &mut HeaderMap = response.headers_mut();
        lines.extend(headers);
        lines.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        lines.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        lines.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        let watch = self.call.watch();
        let farewell = Farewell { watch: Arc::clone(&watch), code: LOST, is_told: false };
        let carrying = Carrying { outbound, is_held, taken: Arc::clone(&taken), farewell };
        // First this, then the answer, by which the connection comes to ask for it.
        self.beside.open(Open { upgrade: self.upgrade, carrying });
        self.call.respond(response);
        Socket { queue, taken, watch, _held: held }
    }
}

/// What is to be sent.
enum Out {
    Message(tungstenite::Message),
    Close(u16, String),
}

/// Tells the application how it ended, however that comes about, once.
struct Farewell {
    watch: Arc<Watch>,
    code: u16,
    is_told: bool,
}

impl Farewell {
    fn tell(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.watch.tell(Told::Message(Message::Close(self.code)));
            self.watch.gone();
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.tell();
    }
}

/// The lane's end of a WebSocket. The queue is closed before the application is told.
struct Carrying {
    outbound: mpsc::Receiver<Out>,
    is_held: oneshot::Receiver<()>,
    taken: Arc<Semaphore>,
    farewell: Farewell,
}

/// A WebSocket that was accepted, before hyper has let go of its connection.
pub(crate) struct Open {
    upgrade: OnUpgrade,
    carrying: Carrying,
}

/// The application's end of an open WebSocket. Dropped, it is closed with 1011.
pub struct Socket {
    queue: mpsc::Sender<Out>,
    taken: Arc<Semaphore>,
    watch: Arc<Watch>,
    /// Dropped with the socket.
    _held: oneshot::Sender<()>,
}

impl Socket {
    /// A message of the client was taken; the next one may come.
    pub fn took(&self) {
        self.taken.add_permits(1);
    }

    /// Sends text.
    #[must_use]
    pub fn text(&self, text: &str) -> Room {
        self.watch.put(&self.queue, || Out::Message(tungstenite::Message::Text(Utf8Bytes::from(text))))
    }

    /// Sends bytes.
    #[must_use]
    pub fn binary(&self, bytes: &Bytes) -> Room {
        self.watch.put(&self.queue, || Out::Message(tungstenite::Message::Binary(bytes.clone())))
    }

    /// Ends it with this code.
    #[must_use]
    pub fn close(&self, code: u16, reason: &str) -> Room {
        self.watch.put(&self.queue, || Out::Close(code, reason.to_owned()))
    }
}

impl Open {
    /// Carries messages until it is over.
    pub(crate) async fn serve(self, beside: &Beside, server: &mut watch::Receiver<Server>) {
        let mut carrying = self.carrying;
        if let Ok(upgraded) = self.upgrade.await {
            carrying.farewell.code = carrying.serve(upgraded, beside, server).await;
        }
    }
}

type Wire = WebSocketStream<TokioIo<Upgraded>>;

/// What comes next.
enum Turn {
    Say(Option<Out>),
    /// A message may be heard.
    MayHear,
    Heard(Result<Option<Message>, Ended>),
    /// What was to be said has left.
    Said,
    /// It has not, and will not.
    Lost,
    /// The server ends.
    Leave,
}

/// How it ended from the other side.
enum Ended {
    /// With this code, of the client's.
    By(u16),
    /// By what no client may send; it is told so with this code.
    Faulty(CloseCode),
    /// Without a word.
    Lost,
}

impl Carrying {
    /// Carries messages; the code that the client ended it with.
    async fn serve(&mut self, upgraded: Upgraded, beside: &Beside, server: &mut watch::Receiver<Server>) -> u16 {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_message_size(Some(LARGEST))
            .max_frame_size(Some(LARGEST));
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        let is_held = &mut self.is_held;
        let mut given_up = pin!(async {
            let _ = is_held.await;
            sleep(FAREWELL).await;
        });
        let mut leaving = pin!(async {
            let _ = server.wait_for(|server| *server == Server::Gently).await;
        });
        let (mut is_saying, mut may_hear, mut owes_pong, mut is_leaving) = (false, false, false, false);
        loop {
            let turn = tokio::select! {
                said = self.outbound.recv(), if !is_saying && !owes_pong => Turn::Say(said),
                permit = self.taken.acquire(), if !may_hear => {
                    // It is never closed. Whoever takes the message gives it back.
                    permit.map_or(Turn::Lost, |permit| { permit.forget(); Turn::MayHear })
                }
                turn = carried(&mut socket, is_saying || owes_pong, may_hear && !owes_pong), if is_saying || may_hear => turn,
                // Who has given the socket up does not wait for a client that takes nothing.
                () = &mut given_up => Turn::Lost,
                () = &mut leaving, if !is_leaving => Turn::Leave,
            };
            match turn {
                Turn::Say(Some(Out::Message(message))) => {
                    self.farewell.watch.took_one();
                    if socket.feed(message).await.is_err() {
                        return LOST;
                    }
                    is_saying = true;
                }
                Turn::Say(Some(Out::Close(code, reason))) => return farewell(&mut socket, code.into(), reason).await,
                Turn::Say(None) => {
                    let code = if is_leaving { CloseCode::Away } else { CloseCode::Error };
                    return farewell(&mut socket, code, String::new()).await;
                }
                Turn::Said => (is_saying, owes_pong) = (false, false),
                Turn::Lost | Turn::Heard(Err(Ended::Lost)) => return LOST,
                Turn::MayHear => may_hear = true,
                Turn::Heard(Ok(Some(message))) => {
                    may_hear = false;
                    self.farewell.watch.tell(Told::Message(message));
                }
                // A Ping or a Pong: the library has an answer ready.
                Turn::Heard(Ok(None)) => owes_pong = true,
                Turn::Heard(Err(Ended::By(code))) => {
                    // Its Close frame is answered by the library too, as soon as that may write.
                    let _ = timeout(FAREWELL, answered(&mut socket)).await;
                    return code;
                }
                Turn::Heard(Err(Ended::Faulty(code))) => {
                    beside.leave_unread();
                    // The rest is between the client and the lane.
                    self.outbound.close();
                    self.farewell.tell();
                    farewell(&mut socket, code, String::new()).await;
                    return LOST;
                }
                Turn::Leave => {
                    is_leaving = true;
                    // What waits there is still said, and nothing else.
                    self.outbound.close();
                }
            }
        }
    }
}

/// Moves bytes until something was said, or heard.
async fn carried(socket: &mut Wire, is_saying: bool, may_hear: bool) -> Turn {
    std::future::poll_fn(|context| {
        if is_saying && let Poll::Ready(said) = socket.poll_flush_unpin(context) {
            return Poll::Ready(if said.is_ok() { Turn::Said } else { Turn::Lost });
        }
        if may_hear && let Poll::Ready(heard) = socket.poll_next_unpin(context) {
            return Poll::Ready(Turn::Heard(understood(heard)));
        }
        Poll::Pending
    })
    .await
}

fn understood(heard: Option<Result<tungstenite::Message, Error>>) -> Result<Option<Message>, Ended> {
    match heard {
        Some(Ok(tungstenite::Message::Text(text))) => Ok(Some(Message::Text(text.into()))),
        Some(Ok(tungstenite::Message::Binary(bytes))) => Ok(Some(Message::Binary(bytes))),
        Some(Ok(tungstenite::Message::Close(frame))) => Err(Ended::By(told(frame))),
        Some(Ok(_)) => Ok(None),
        Some(Err(Error::Capacity(_))) => Err(Ended::Faulty(CloseCode::Size)),
        Some(Err(Error::Utf8(_))) => Err(Ended::Faulty(CloseCode::Invalid)),
        Some(Err(Error::Protocol(_))) => Err(Ended::Faulty(CloseCode::Protocol)),
        Some(Err(_)) | None => Err(Ended::Lost),
    }
}

/// The code of a Close frame.
fn told(frame: Option<CloseFrame>) -> u16 {
    frame.map_or(NO_STATUS, |frame| frame.code.into())
}

/// Says goodbye, and waits a moment for the client to do so too; the code that it says.
async fn farewell(socket: &mut Wire, code: CloseCode, mut reason: String) -> u16 {
    while reason.len() > REASON {
        reason.pop();
    }
    let goodbye = async {
        if socket.close(Some(CloseFrame { code, reason: reason.into() })).await.is_err() {
            return LOST;
        }
        let answer = loop {
            match socket.next().await {
                Some(Ok(tungstenite::Message::Close(frame))) => break told(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break LOST,
            }
        };
        end(socket).await;
        answer
    };
    timeout(FAREWELL, goodbye).await.unwrap_or(LOST)
}

/// Lets what the library has to say leave, and ends our side.
async fn answered(socket: &mut Wire) {
    if socket.flush().await.is_ok() {
        end(socket).await;
    }
}

/// Ends our side of the connection, so that the client sees that nothing is missing.
async fn end(socket: &mut Wire) {
    let _ = std::future::poll_fn(|context| Pin::new(socket.get_mut()).poll_shutdown(context)).await;
}
