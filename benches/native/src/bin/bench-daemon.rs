//! A daemon of the benchmarks: `flx.v1.Daemon` on a Unix socket, answering every command with its own arguments.
//!
//! The real daemon is Python and costs more for a command than the gateway does, so that a gateway measured before it
//! would be measured waiting. This one is compiled, speaks the same contract on one thread, and decides nothing.
//!
//!     bench-daemon SOCKET [HTTP_PORT [WORKERS SERVICE_US]]
//!
//! With HTTP_PORT it also answers plain HTTP/1.1 there with the body it was sent: the floor under every gateway. With
//! WORKERS and SERVICE_US it does so many commands at once and takes so long for each: a daemon that can be overloaded.
//! What is then past its deadline when its turn comes is refused, as the real one does.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Semaphore, mpsc},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

mod flx {
    tonic::include_proto!("flx.v1");
}
use flx::{
    BatchFrame, CommandBatch, CommandFrame, EventBatch, LogBatch, LogRequest, ReplyBatch, ReplyFrame, RevocationBatch,
    RevocationsRequest, TellReply, TellRequest, WatchRequest,
    daemon_server::{Daemon, DaemonServer},
};

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How much it can do.
#[derive(Clone)]
struct Capacity {
    workers: Arc<Semaphore>,
    service: Duration,
}

struct Echo {
    capacity: Option<Capacity>,
}

fn answer(frame: CommandFrame) -> ReplyFrame {
    let result = if frame.args.is_empty() { b"{}".to_vec() } else { frame.args };
    ReplyFrame { seq: frame.seq, result, ..ReplyFrame::default() }
}

fn late(frame: &CommandFrame) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    frame.deadline_unix_ms != 0 && frame.deadline_unix_ms <= i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

impl Capacity {
    async fn serve(&self, frame: CommandFrame) -> ReplyFrame {
        let Ok(_turn) = self.workers.acquire().await else { return ReplyFrame::default() };
        if late(&frame) {
            let problem = br#"{"code":"deadline_exceeded","detail":"The deadline passed"}"#.to_vec();
            return ReplyFrame { seq: frame.seq, code: "deadline_exceeded".into(), problem, ..ReplyFrame::default() };
        }
        tokio::time::sleep(self.service).await;
        answer(frame)
    }
}

#[tonic::async_trait]
impl Daemon for Echo {
    async fn execute(&self, request: Request<CommandFrame>) -> Result<Response<ReplyFrame>, Status> {
        let frame = request.into_inner();
        Ok(Response::new(match &self.capacity {
            None => answer(frame),
            // A stock client puts its deadline into the call; whoever is late there is gone by itself.
            Some(capacity) => capacity.serve(frame).await,
        }))
    }

    type ExecuteBatchStream = Out<ReplyFrame>;

    async fn execute_batch(&self, _request: Request<BatchFrame>) -> Result<Response<Out<ReplyFrame>>, Status> {
        Err(Status::unimplemented("no gateway calls it"))
    }

    type ChannelStream = Out<ReplyBatch>;

    async fn channel(&self, request: Request<Streaming<CommandBatch>>) -> Result<Response<Out<ReplyBatch>>, Status> {
        let mut batches = request.into_inner();
        let Some(capacity) = self.capacity.clone() else {
            let replies = batches
                .map(|batch| batch.map(|batch| ReplyBatch { frames: batch.frames.into_iter().map(answer).collect() }));
            return Ok(Response::new(Box::pin(replies)));
        };
        let (out, replies) = mpsc::channel(1024);
        tokio::spawn(async move {
            while let Some(Ok(batch)) = batches.next().await {
                for frame in batch.frames {
                    let (capacity, out) = (capacity.clone(), out.clone());
                    tokio::spawn(async move {
                        // Probes ask whether it lives, not whether it has time.
                        let asks = frame.principal.as_ref().is_some_and(|known| known.subject == "gateway");
                        let reply = if asks { answer(frame) } else { capacity.serve(frame).await };
                        let _ = out.send(Ok(ReplyBatch { frames: vec![reply] })).await;
                    });
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    type WatchStream = Out<EventBatch>;

    async fn watch(&self, _request: Request<WatchRequest>) -> Result<Response<Out<EventBatch>>, Status> {
        let first = EventBatch { epoch: "bench".into(), ..EventBatch::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(tokio_stream::pending()))))
    }

    async fn tell(&self, _request: Request<TellRequest>) -> Result<Response<TellReply>, Status> {
        Err(Status::unimplemented("nothing ephemeral is told here"))
    }

    type LogsStream = Out<LogBatch>;

    async fn logs(&self, _request: Request<LogRequest>) -> Result<Response<Out<LogBatch>>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    type RevocationsStream = Out<RevocationBatch>;

    async fn revocations(
        &self,
        _request: Request<RevocationsRequest>,
    ) -> Result<Response<Out<RevocationBatch>>, Status> {
        let all = RevocationBatch { epoch: "bench".into(), ..RevocationBatch::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(all)))))
    }
}

/// Answer HTTP/1.1 requests of known length with their bodies, as long as the client likes.
async fn plain(mut peer: TcpStream) -> std::io::Result<()> {
    peer.set_nodelay(true)?;
    let mut held: Vec<u8> = Vec::with_capacity(8192);
    loop {
        let whole = held.windows(4).position(|four| four == b"\r\n\r\n").and_then(|end| {
            let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let size = end + 4 + length.unwrap_or(0_usize);
            (held.len() >= size).then_some((end + 4, size))
        });
        if let Some((start, size)) = whole {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
            let mut reply = format!("{head}{}\r\n\r\n", size - start).into_bytes();
            reply.extend_from_slice(&held[start..size]);
            peer.write_all(&reply).await?;
            held.drain(..size);
        } else if peer.read_buf(&mut held).await? == 0 {
            return Ok(());
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let socket = PathBuf::from(words.first().ok_or("bench-daemon SOCKET [HTTP_PORT [WORKERS SERVICE_US]]")?);
    if let Some(port) = words.get(1) {
        let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                tokio::spawn(plain(peer));
            }
        });
    }
    let capacity = match (words.get(2), words.get(3)) {
        (Some(workers), Some(us)) => Some(Capacity {
            workers: Arc::new(Semaphore::new(workers.parse()?)),
            service: Duration::from_micros(us.parse()?),
        }),
        _ => None,
    };
    let listener = UnixListener::bind(&socket)?;
    let mut server = tonic::transport::Server::builder();
    server
        .add_service(DaemonServer::new(Echo { capacity }))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}
