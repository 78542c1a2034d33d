//! HTTP connections: accepted, bounded, ended in peace at shutdown; of callers that are known, and of anybody for metrics.
//! What a path answers is the router's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Extension, Router};
use fedge_proto::tls::Peer;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::server::CONNECTION_AGE;

/// For the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Connections to the port of metrics at a time.
const METRICS_CONNECTIONS: usize = 64;
/// More connections than any listener lets in.
const COUNTED: usize = 1 << 20;
/// For connections that are asked to end.
const DRAIN: Duration = Duration::from_secs(4);

/// Serves a router on accepted connections until `stop`; each request's extensions say who is calling.
pub(crate) async fn serve<S, C>(incoming: S, router: Router, peer: fn(&C) -> Option<Peer>, stop: CancellationToken)
where
    S: Stream<Item = io::Result<C>>,
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Nothing but a count: connections are bounded where they are accepted.
    let open = Arc::new(Semaphore::new(COUNTED));
    tokio::pin!(incoming);
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => break,
            next = incoming.next() => match next {
                Some(Ok(connection)) => connection,
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                None => break,
            },
        };
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { break };
        let (peer, router, stop) = (peer(&connection), router.clone(), stop.clone());
        tokio::spawn(async move {
            one(connection, router, peer, stop).await;
            drop(permit);
        });
    }
    // All permits are back once all connections have ended.
    let _ = tokio::time::timeout(DRAIN, open.acquire_many(COUNTED as u32)).await;
}

async fn one<C>(connection: C, router: Router, peer: Option<Peer>, stop: CancellationToken)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let is_open = peer.is_none();
    let router = match peer {
        Some(peer) => router.layer(Extension(peer)),
        None => router,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if is_open {
        // Waiting for HTTP/2's first bytes has no bound of its own; the head of HTTP/1 has.
        builder = builder.http1_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .keep_alive_interval(Some(Duration::from_secs(20)));
    let serving = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        // An open connection outlives its certificate otherwise.
        () = tokio::time::sleep(CONNECTION_AGE) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error, "a connection ended early");
    }
}

/// A connection that counts against the limit until it is dropped.
#[derive(Debug)]
struct Bounded {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves a router in plaintext to anybody; nobody is known here.
pub(crate) async fn serve_open(listener: TcpListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let incoming = incoming.filter_map(move |accepted| match accepted {
        // More than there are places for are closed at once.
        Ok(stream) => {
            Arc::clone(&places).try_acquire_owned().ok().map(|permit| Ok(Bounded { stream, _permit: permit }))
        }
        Err(error) => Some(Err(error)),
    });
    serve(incoming, router, |_| None, stop).await;
}
