//! The byte streams under gRPC: what a server accepted, what a client dialled.
//! Handshakes live in `incoming` and `connect`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::Peer;

/// A connection that a server accepted, with who is at its other end. Counts against the limit until it is dropped.
#[derive(Debug)]
pub struct Connection {
    pub(super) io: ServerIo,
    pub(super) peer: Peer,
    pub(super) opening: Option<Opening>,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The time before the first bytes: who connects and says nothing holds a place that others need. HTTP/2's preface has so many
/// bytes, and a server that tells it from HTTP/1 waits for them without a bound of its own; so has any request of HTTP/1.1.
#[derive(Debug)]
pub(super) struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Opening {
    pub(super) fn within(time: Duration) -> Opening {
        Opening { missing: 24, deadline: Box::pin(tokio::time::sleep(time)) }
    }

    /// Whether the time is over.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().poll(cx).is_ready()
    }
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

#[derive(Debug)]
pub(super) enum ServerIo {
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Plain(TcpStream),
}

/// A dialled connection, after the server's first bytes have arrived: a refusal of our certificate comes there,
/// because in TLS 1.3 the client's handshake is over before the server has seen its certificate.
pub(super) struct Dialled<S> {
    early: Vec<u8>,
    read: usize,
    stream: S,
}

/// Room for the server's HTTP/2 settings, or an alert.
const EARLY_MAX: usize = 1024;

impl<S: AsyncRead + Unpin> Dialled<S> {
    /// Waits for the first bytes. A fedge server speaks first: it sends its HTTP/2 settings at once.
    pub(super) async fn confirm(mut stream: S) -> io::Result<Dialled<S>> {
        let mut early = vec![0; EARLY_MAX];
        let count = stream.read(&mut early).await?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended"));
        }
        early.truncate(count);
        Ok(Dialled { early, read: 0, stream })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Dialled<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let rest = this.early.get(this.read..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        this.read += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Dialled<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let filled = buf.filled().len();
        let read = match &mut this.io {
            ServerIo::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            ServerIo::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Some(opening) = &mut this.opening {
            match &read {
                Poll::Pending if opening.is_over(cx) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")));
                }
                Poll::Pending => {}
                Poll::Ready(_) => {
                    opening.missing = opening.missing.saturating_sub(buf.filled().len() - filled);
                    if opening.missing == 0 {
                        this.opening = None;
                    }
                }
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            ServerIo::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            ServerIo::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            ServerIo::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            ServerIo::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            ServerIo::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            ServerIo::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            ServerIo::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            ServerIo::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            ServerIo::Tls(stream) => stream.is_write_vectored(),
            ServerIo::Plain(stream) => stream.is_write_vectored(),
        }
    }
}
