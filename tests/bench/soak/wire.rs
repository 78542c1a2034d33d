//! Connections of the soak: gRPC channels, raw streams with or without TLS, and as much HTTP/1.1 as asking needs.
//! What is sent over them is `good`'s and `abuse`'s.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use fedge_proto::identity::{Role, SharedIdentity};
use fedge_proto::tls::{self, Trust, client_config};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

/// Where the node listens, and who calls.
#[derive(Debug)]
pub struct Doors {
    pub grpc: String,
    pub http: String,
    pub metrics: String,
    pub identity: Option<SharedIdentity>,
}

/// A stream of bytes, over TLS or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Doors {
    /// A channel of its own.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(match &self.identity {
            Some(identity) => tls::connect(&self.grpc, identity, Role::Node).await?,
            None => Channel::from_shared(format!("http://{}", self.grpc))?.tcp_nodelay(true).connect().await?,
        })
    }

    /// A connection on which nothing was said yet but TLS's handshake. `protocol` is what ALPN offers.
    pub async fn open(&self, address: &str, protocol: &[u8]) -> anyhow::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let identity = self.identity.as_ref().filter(|_| address != self.metrics);
        let Some(identity) = identity.map(SharedIdentity::current) else { return Ok(Box::new(stream)) };
        let mut config = client_config(Some(&identity), Trust::of(&identity), Role::Node)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = rustls_pki_types::ServerName::try_from("127.0.0.1")?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }

    /// A connection to REST.
    pub async fn rest(&self) -> anyhow::Result<Box<dyn Stream>> {
        self.open(&self.http, b"http/1.1").await
    }
}

/// The bytes of a POST.
pub fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Reads one reply with a Content-Length: its status and body. Fails after 30 s.
pub async fn reply(stream: &mut dyn Stream) -> anyhow::Result<(u16, Vec<u8>)> {
    tokio::time::timeout(Duration::from_secs(30), read_reply(stream)).await.context("no reply within 30 s")?
}

async fn read_reply(stream: &mut dyn Stream) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 16 << 10, "a head of more than 16 KiB");
        head.push(stream.read_u8().await.context("the head of a reply")?);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.context("the body of a reply")?;
    Ok((status, body))
}

/// Asks over a connection that stays open.
pub async fn ask(stream: &mut dyn Stream, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    stream.write_all(request).await?;
    stream.flush().await?;
    reply(stream).await
}
