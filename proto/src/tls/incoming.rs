//! Accepting connections: concurrent, bounded handshakes, of which no failure ends the stream.
//! What the configuration demands of clients lives in `server`, what they may call in `authorization`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::{CertificateError, OtherError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tracing::{debug, warn};

use super::stream::{Connection, Opening, ServerIo};
use super::{ReloadableServerConfig, TlsError};
use crate::identity::{SpiffeId, fingerprint, from_certificate};

/// Who is at the other end of a connection: computed once, in the extensions of each of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The verified identity; none without a client certificate.
    pub identity: Option<SpiffeId>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// SHA-256 of its certificate; zeros without one.
    pub fingerprint: [u8; 32],
}

/// Bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handshakes at a time.
    pub handshakes: usize,
    /// For one handshake.
    pub handshake_timeout: Duration,
    /// For the first 24 bytes, the handshake's time included.
    pub first_bytes_timeout: Duration,
    /// Open connections at a time; more wait in the kernel's backlog.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            first_bytes_timeout: Duration::from_secs(10),
            connections: 4096,
        }
    }
}

/// Accepted connections, for tonic's `serve_with_incoming`. Never ends and never yields an error; dropping it closes the
/// listener.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Connection>);

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// Accepts TLS connections with the newest configuration. Call it within a tokio runtime.
pub fn incoming(listener: TcpListener, config: ReloadableServerConfig, limits: Limits) -> Incoming {
    start(listener, Some(config), limits)
}

/// Accepts plaintext connections, on loopback only. Call it within a tokio runtime.
///
/// # Errors
/// [`TlsError::NotLoopback`] when others could reach the listener.
pub fn plaintext_incoming(listener: TcpListener, limits: Limits) -> Result<Incoming, TlsError> {
    let address = listener.local_addr().map_err(|e| TlsError::Listener(e.to_string()))?;
    if !address.ip().is_loopback() {
        return Err(TlsError::NotLoopback(address.to_string()));
    }
    Ok(start(listener, None, limits))
}

fn start(listener: TcpListener, config: Option<ReloadableServerConfig>, limits: Limits) -> Incoming {
    // One waiting connection is enough: the handshakes behind it are bounded, and so is what they hold.
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = accepted.closed() => {}
            () = accept(&listener, config, limits, &accepted) => {}
        }
    });
    Incoming(connections)
}

async fn accept(
    listener: &TcpListener,
    config: Option<ReloadableServerConfig>,
    limits: Limits,
    accepted: &mpsc::Sender<Connection>,
) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let mut pause = SHORTEST_PAUSE;
    loop {
        if connections.available_permits() == 0 {
            warn!(limit = limits.connections, "all connections are in use: new ones wait");
        }
        let permits = (Arc::clone(&connections).acquire_owned().await, Arc::clone(&handshakes).acquire_owned().await);
        let (Ok(connection), Ok(handshake)) = permits else { return };
        let (stream, address) = match listener.accept().await {
            Ok(found) => found,
            Err(error) => {
                // Out of file descriptors, mostly: others must close some first.
                warn!(%error, pause_ms = pause.as_millis(), "cannot accept connections");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = SHORTEST_PAUSE;
        let (config, accepted) = (config.clone(), accepted.clone());
        tokio::spawn(async move {
            let opening = Some(Opening::within(limits.first_bytes_timeout));
            let opened = open(stream, address, config);
            let outcome = timeout(limits.handshake_timeout, opened).await;
            drop(handshake);
            match outcome {
                Ok(Some((io, peer))) => {
                    drop(accepted.send(Connection { io, peer, opening, _permit: connection }).await);
                }
                Ok(None) => {}
                Err(_) => debug!(%address, "handshake not done in time"),
            }
        });
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

async fn open(
    stream: TcpStream,
    address: SocketAddr,
    config: Option<ReloadableServerConfig>,
) -> Option<(ServerIo, Peer)> {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "connection lost at once");
        return None;
    }
    let Some(config) = config else {
        let peer = Peer { identity: None, address, fingerprint: [0; 32] };
        return Some((ServerIo::Plain(stream), peer));
    };
    match TlsAcceptor::from(config.current()).accept(stream).into_fallible().await {
        Ok(stream) => {
            let peer = peer(&stream, address)?;
            Some((ServerIo::Tls(Box::new(stream)), peer))
        }
        Err((error, stream)) => {
            refuse(address, &error, stream).await;
            None
        }
    }
}

fn peer(stream: &tokio_rustls::server::TlsStream<TcpStream>, address: SocketAddr) -> Option<Peer> {
    let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Some(Peer { identity: None, address, fingerprint: [0; 32] });
    };
    match from_certificate(leaf) {
        Ok(identity) => Some(Peer { identity: Some(identity), address, fingerprint: fingerprint(leaf) }),
        Err(error) => {
            warn!(%address, %error, "connection refused");
            None
        }
    }
}

async fn refuse(address: SocketAddr, error: &io::Error, mut stream: TcpStream) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            warn!(%address, %reason, "connection refused");
        }
        Some(reason) => warn!(%address, %reason, "connection refused"),
        None => debug!(%address, %error, "connection lost in its handshake"),
    }
    // Closing with unread bytes resets the connection, and a reset can overtake the alert that says why.
    let drain = async {
        stream.shutdown().await.ok()?;
        let mut scratch = [0; 1024];
        for _ in 0..DRAIN_READS {
            if stream.read(&mut scratch).await.ok()? == 0 {
                break;
            }
        }
        Some(())
    };
    drop(timeout(DRAIN_TIME, drain).await);
}

const DRAIN_READS: usize = 16;
const DRAIN_TIME: Duration = Duration::from_secs(1);
