//! WebSockets of the lane: a handshake that somebody decides about, and messages in both directions.
//!
//! Rules:
//! - what a client says waits until the one before it was taken, beyond a few: then the socket is not read;
//! - what it is sent waits in a queue that can be full; whoever finds it so is told of room;
//! - Pings are answered, and bad frames ended with their code, without anybody being asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Error, Utf8Bytes};

use crate::body::Reply;
use crate::call::{Call, Room, Watch};
use crate::service::Told;

/// So many messages of a client are with the application, not taken yet.
const INBOUND: usize = 16;
/// So many messages wait for the client at most.
const OUTBOUND: usize = 16;
/// The largest message that is read. What may be said is smaller; this is for saying so.
const LARGEST: usize = 1 << 20;
/// No Close frame came.
const NO_STATUS: u16 = 1005;
const LOST: u16 = 1006;
/// So long a client may take to answer a Close frame.
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
    runtime: Handle,
}

impl Handshake {
    /// Of a request that `key` stands in.
    pub(crate) fn new(call: Call, upgrade: OnUpgrade, key: &[u8], runtime: Handle) -> Option<Self> {
        let accept = HeaderValue::from_str(&derive_accept_key(key)).ok()?;
        Some(Self { call, upgrade, accept, runtime })
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
        let (queue, receiver) = mpsc::channel(OUTBOUND);
        let (held, is_held) = oneshot::channel();
        let outbound = Outbound { queue: receiver, is_held };
        let taken = Arc::new(Semaphore::new(INBOUND));
        let mut response = Response::new(Reply::Whole(None));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let lines: &mut HeaderMap = response.headers_mut();
        lines.extend(headers);
        lines.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        lines.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        lines.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        let watch = self.call.watch();
        let (upgrade, shared, permits) = (self.upgrade, Arc::clone(&watch), Arc::clone(&taken));
        self.runtime.spawn(async move {
            let ended = match upgrade.await {
                Ok(upgraded) => serve(upgraded, outbound, &shared, &permits).await,
                Err(_) => LOST,
            };
            shared.tell(Told::Message(Message::Close(ended)));
            shared.gone();
        });
        self.call.respond(response);
        Socket { queue, taken, watch, _held: held }
    }
}

/// What is to be sent.
enum Out {
    Message(tungstenite::Message),
    Close(u16, String),
}

/// The lane's end of it.
struct Outbound {
    queue: mpsc::Receiver<Out>,
    is_held: oneshot::Receiver<()>,
}

impl Outbound {
    /// Waits until nobody holds the socket any more, and a moment.
    async fn given_up(&mut self) {
        let _ = (&mut self.is_held).await;
        tokio::time::sleep(FAREWELL).await;
    }
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

/// Carries messages until it is over; the code that the client ended it with.
async fn serve(upgraded: Upgraded, mut outbound: Outbound, watch: &Watch, taken: &Semaphore) -> u16 {
    let config = WebSocketConfig::default().max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    loop {
        let turn = tokio::select! {
            out = outbound.queue.recv() => Turn::Say(out),
            heard = heard(&mut socket, taken) => Turn::Heard(heard),
        };
        match turn {
            Turn::Say(Some(Out::Message(message))) => {
                watch.took_one();
                // Who has given the socket up does not wait for a client that takes nothing.
                let sent = tokio::select! {
                    sent = socket.send(message) => sent.is_ok(),
                    () = outbound.given_up() => false,
                };
                if !sent {
                    return LOST;
                }
            }
            Turn::Say(Some(Out::Close(code, reason))) => return farewell(&mut socket, code.into(), reason).await,
            Turn::Say(None) => return farewell(&mut socket, CloseCode::Error, String::new()).await,
            Turn::Heard(Ok(Some(message))) => watch.tell(Told::Message(message)),
            // A Ping or a Pong: the library has answered what is to be answered.
            Turn::Heard(Ok(None)) => taken.add_permits(1),
            Turn::Heard(Err(Ended::By(code))) => return code,
            Turn::Heard(Err(Ended::Faulty(code))) => {
                farewell(&mut socket, code, String::new()).await;
                return LOST;
            }
        }
    }
}

enum Turn {
    Say(Option<Out>),
    Heard(Result<Option<Message>, Ended>),
}

/// How it ended from the other side.
enum Ended {
    /// With this code, of the client's.
    By(u16),
    /// By what no client may send; it is told so with this code.
    Faulty(CloseCode),
}

/// The next message of the client, when the one before it was taken.
async fn heard<S>(socket: &mut WebSocketStream<S>, taken: &Semaphore) -> Result<Option<Message>, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let permit = taken.acquire().await.map_err(|_| Ended::By(LOST))?;
    let heard = socket.next().await;
    permit.forget();
    match heard {
        Some(Ok(tungstenite::Message::Text(text))) => Ok(Some(Message::Text(text.into()))),
        Some(Ok(tungstenite::Message::Binary(bytes))) => Ok(Some(Message::Binary(bytes))),
        Some(Ok(tungstenite::Message::Close(frame))) => {
            Err(Ended::By(frame.map_or(NO_STATUS, |frame| frame.code.into())))
        }
        Some(Ok(_)) => Ok(None),
        Some(Err(Error::Capacity(_))) => Err(Ended::Faulty(CloseCode::Size)),
        Some(Err(Error::Utf8(_))) => Err(Ended::Faulty(CloseCode::Invalid)),
        Some(Err(Error::Protocol(_))) => Err(Ended::Faulty(CloseCode::Protocol)),
        Some(Err(_)) | None => Err(Ended::By(LOST)),
    }
}

/// Says goodbye, and waits a moment for the client to do so too; the code that it says.
async fn farewell<S>(socket: &mut WebSocketStream<S>, code: CloseCode, reason: String) -> u16
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        if socket.close(Some(CloseFrame { code, reason: reason.into() })).await.is_err() {
            return LOST;
        }
        loop {
            match socket.next().await {
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    return frame.map_or(NO_STATUS, |frame| frame.code.into());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return LOST,
            }
        }
    };
    tokio::time::timeout(FAREWELL, goodbye).await.unwrap_or(LOST)
}
