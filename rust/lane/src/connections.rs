//! One connection: which protocol it speaks, and its requests from head to answer.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::body::{Cut, Reply, Windowed, whole};
use crate::call::{Call, Courier, Tell};
use crate::server::Limits;
use crate::service::{Peer, Service, Verdict};
use crate::socket::Handshake;
use crate::wire::{Beginning, Beside, Carrier, UnderWay, Wire};

/// hyper reads no less ahead.
const LEAST_AHEAD: usize = 8_192;

/// Whether the server goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    No,
    /// What is under way may end; nothing else begins.
    Gently,
}

/// What all connections have in common.
pub(crate) struct Lane<S> {
    service: Arc<S>,
    limits: Limits,
    courier: Courier,
    tell: Tell,
    laid: Arc<Notify>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    next: AtomicU64,
}

impl<S: Service> Lane<S> {
    pub(crate) fn new(service: Arc<S>, limits: Limits, courier: Courier, laid: Arc<Notify>) -> Self {
        let head_size = limits.header_list as usize;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(head_size.max(LEAST_AHEAD))
            .max_header_size(head_size);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_list)
            .max_send_buf_size(limits.stream_window as usize)
            .keep_alive_interval(limits.keep_alive)
            .keep_alive_timeout(limits.keep_alive);
        let (teller, after) = (Arc::clone(&service), Arc::clone(&laid));
        let tell: Tell = Arc::new(move |number, what| {
            teller.told(number, what);
            after.notify_one();
        });
        Self { service, limits, courier, tell, laid, http1, http2, next: AtomicU64::new(1) }
    }

    fn call(&self) -> (Call, crate::call::Waiting) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Call::new(number, Arc::clone(&self.tell), self.courier.clone())
    }

    /// A request from its head to its answer. What is answered at once needs no more room than its answer.
    fn answer(self: &Arc<Self>, mut request: Request<Incoming>, peer: Peer, beside: &Arc<Beside>) -> Answering {
        beside.ask();
        if is_handshake(&request) {
            let upgrade = hyper::upgrade::on(&mut request);
            return self.upgrade(request.into_parts().0, upgrade, peer, Arc::clone(beside));
        }
        let (head, body) = request.into_parts();
        match self.service.head(&head, peer) {
            Verdict::Answer(response) => {
                if !body.is_end_stream() {
                    beside.leave_unread();
                }
                Answering::Ready(Some(response.map(Reply::whole)))
            }
            Verdict::Go { seen, limit } => {
                let (lane, beside) = (Arc::clone(self), Arc::clone(beside));
                // Nothing but the end of the connection says where a stream ends.
                let is_old = head.version == Version::HTTP_10;
                Answering::Later(Box::pin(async move {
                    let is_left = limit.is_none() && !body.is_end_stream();
                    let body = match limit {
                        Some(limit) => whole(body, limit, lane.limits.body).await,
                        None => Ok(Bytes::new()),
                    };
                    if is_left || body.is_err() {
                        beside.leave_unread();
                    }
                    let beside = is_old.then_some(beside);
                    let (call, waiting) = lane.call();
                    lane.service.request(seen, head, peer, body, call);
                    lane.laid.notify_one();
                    drop(lane);
                    let response = waiting.await?;
                    Ok(match beside {
                        Some(beside) => response.map(|reply| reply.ending_with(beside)),
                        None => response,
                    })
                }))
            }
        }
    }

    fn upgrade(&self, head: Parts, upgrade: OnUpgrade, peer: Peer, beside: Arc<Beside>) -> Answering {
        let (call, waiting) = self.call();
        if let Some(handshake) = Handshake::new(call, upgrade, &head, beside) {
            self.service.handshake(head, peer, handshake);
            self.laid.notify_one();
        }
        Answering::Later(Box::pin(waiting))
    }
}

/// An answer, there or to come.
enum Answering {
    Ready(Option<Response<Reply>>),
    Later(Pin<Box<dyn Future<Output = Result<Response<Reply>, Cut>> + Send>>),
}

impl Future for Answering {
    type Output = Result<Response<Reply>, Cut>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(response) => Poll::Ready(response.take().ok_or(Cut)),
            Self::Later(later) => later.as_mut().poll(context),
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn connection<S: Service>(
    lane: Arc<Lane<S>>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    mut ended: watch::Receiver<Ended>,
    _place: OwnedSemaphorePermit,
) {
    let Some(tls) = tls else {
        return requests(lane, stream, Peer { address, is_secure: false }, ended).await;
    };
    let secure = async move {
        let accepted = tokio::select! {
            accepted = timeout(lane.limits.head, tls.accept(stream)) => accepted,
            _ = ended.wait_for(|ended| *ended == Ended::Gently) => return,
        };
        if let Ok(Ok(stream)) = accepted {
            requests(lane, stream, Peer { address, is_secure: true }, ended).await;
        }
    };
    // It is large, and a connection without TLS has no need of the room.
    Box::pin(secure).await;
}

async fn requests<S, I>(lane: Arc<Lane<S>>, mut stream: I, peer: Peer, mut ended: watch::Receiver<Ended>)
where
    S: Service,
    I: Carrier + Send + 'static,
{
    // hyper waits for a head, but not for what says which kind of head it is.
    let beginning = tokio::select! {
        beginning = timeout(lane.limits.head, Beginning::of(&mut stream)) => beginning,
        _ = ended.wait_for(|ended| *ended == Ended::Gently) => return,
    };
    let Ok(Ok(beginning)) = beginning else { return };
    let (is_http2, beside) = (beginning.is_http2, Arc::new(Beside::default()));
    let wire = TokioIo::new(Wire::new(stream, beginning, lane.limits.write, Arc::clone(&beside)));
    let (shared, beside_shared) = (Arc::clone(&lane), Arc::clone(&beside));
    let service = move |request| shared.answer(request, peer, &beside_shared);
    // Each is pinned where it is made: a future that is handed on lies in its task twice.
    if is_http2 {
        let watched = Arc::clone(&beside);
        let service = service_fn(move |request| {
            let (under_way, answering) = (UnderWay::of(&watched), service(request));
            async move { Ok::<_, Cut>(answering.await?.map(|body| Windowed::new(body, under_way))) }
        });
        let connection = pin!(lane.http2.serve_connection(wire, service));
        // hyper ends an idle connection of HTTP/1 only, and waits for a window as long as the client likes.
        let (idle, stuck) = (beside.is_idle(lane.limits.idle), beside.is_stuck(lane.limits.write));
        return to_its_end(connection, http2::Connection::graceful_shutdown, idle, stuck, &mut ended).await;
    }
    {
        let connection = pin!(lane.http1.serve_connection(wire, service_fn(service)).with_upgrades());
        let gently = http1::UpgradeableConnection::graceful_shutdown;
        to_its_end(connection, gently, pending(), pending(), &mut ended).await;
    }
    drop(lane);
    if let Some(open) = beside.opened() {
        open.serve(&beside, &mut ended).await;
    }
}

/// Serves until one of the two ends it; what went wrong between them is nobody's business but theirs.
async fn to_its_end<C: Future>(
    mut connection: Pin<&mut C>,
    gently: fn(Pin<&mut C>),
    idle: impl Future<Output = ()>,
    stuck: impl Future<Output = ()>,
    ended: &mut watch::Receiver<Ended>,
) {
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        _ = ended.wait_for(|ended| *ended == Ended::Gently) => {}
        () = idle => {}
    }
    gently(connection.as_mut());
    tokio::select! {
        _ = connection => {}
        () = stuck => {}
    }
}

/// Whether this is a handshake for a WebSocket that is sound as far as RFC 6455, section 4.2.1, goes.
fn is_handshake(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && has_token(headers, &header::UPGRADE, "websocket")
        && has_token(headers, &header::CONNECTION, "upgrade")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
        && headers.get(header::SEC_WEBSOCKET_KEY).is_some_and(|key| is_key(key.as_bytes()))
        // What came with it would be taken for frames.
        && request.body().is_end_stream()
}

/// Whether this is sixteen bytes in base64.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22].iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}
