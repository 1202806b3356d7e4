//! One connection: which protocol it speaks, and its requests from head to answer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use crate::body::{Cut, Reply, whole};
use crate::call::{Call, Courier, Tell};
use crate::server::Limits;
use crate::service::{Peer, Service, Verdict};
use crate::socket::Handshake;

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
    builder: auto::Builder<TokioExecutor>,
    next: AtomicU64,
}

impl<S: Service> Lane<S> {
    pub(crate) fn new(service: Arc<S>, limits: Limits, courier: Courier, laid: Arc<Notify>) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_list)
            .keep_alive_interval(limits.keep_alive);
        let (teller, after) = (Arc::clone(&service), Arc::clone(&laid));
        let tell: Tell = Arc::new(move |number, what| {
            teller.told(number, what);
            after.notify_one();
        });
        Self { service, limits, courier, tell, laid, builder, next: AtomicU64::new(1) }
    }

    fn call(&self) -> (Call, crate::call::Waiting) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Call::new(number, Arc::clone(&self.tell), self.courier.clone())
    }

    /// A request from its head to its answer. What is answered at once needs no more room than its answer.
    fn answer(self: &Arc<Self>, mut request: Request<Incoming>, peer: Peer) -> Answering {
        if is_handshake(&request) {
            let upgrade = hyper::upgrade::on(&mut request);
            return self.upgrade(request.into_parts().0, upgrade, peer);
        }
        let (head, body) = request.into_parts();
        match self.service.head(&head, peer) {
            Verdict::Answer(response) => Answering::Ready(Some(response.map(Reply::whole))),
            Verdict::Go { seen, limit } => {
                let lane = Arc::clone(self);
                Answering::Later(Box::pin(async move {
                    let body = whole(body, limit, lane.limits.body).await;
                    let (call, waiting) = lane.call();
                    lane.service.request(seen, head, peer, body, call);
                    lane.laid.notify_one();
                    drop(lane);
                    waiting.await
                }))
            }
        }
    }

    fn upgrade(&self, head: Parts, upgrade: OnUpgrade, peer: Peer) -> Answering {
        let key = head.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes().to_vec());
        let (call, waiting) = self.call();
        if let Some(handshake) = Handshake::new(call, upgrade, &key.unwrap_or_default(), Handle::current()) {
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
    ended: watch::Receiver<Ended>,
) {
    let Some(tls) = tls else {
        return requests(lane, stream, Peer { address, is_secure: false }, ended).await;
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(lane.limits.head, tls.accept(stream)).await {
        requests(lane, stream, Peer { address, is_secure: true }, ended).await;
    }
}

async fn requests<S, I>(lane: Arc<Lane<S>>, stream: I, peer: Peer, mut ended: watch::Receiver<Ended>)
where
    S: Service,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&lane);
    let service = service_fn(move |request| shared.answer(request, peer));
    let mut serving = std::pin::pin!(lane.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        // What went wrong between the two is nobody's business but theirs.
        _ = serving.as_mut() => return,
        _ = ended.wait_for(|ended| *ended == Ended::Gently) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = serving.await;
}

/// Whether this is a handshake for a WebSocket that is sound as far as RFC 6455, section 4.2.1, goes.
fn is_handshake(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && has_token(headers, &header::UPGRADE, "websocket")
        && has_token(headers, &header::CONNECTION, "upgrade")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
        && headers.contains_key(header::SEC_WEBSOCKET_KEY)
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}
