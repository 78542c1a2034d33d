//! Dialling servers: channels that reconnect with the identity of the moment, and say why when they can't.
//! What makes a server acceptable lives in `verify`, the sentences in `trouble`.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::stream::Dialled;
use super::trouble::explain;
use super::{CLIENT_WINDOW_BYTES, ConnectError, MAX_FRAME_BYTES, TlsError, Trust, client_config};
use crate::identity::{Role, SharedIdentity};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects over mutual TLS to `host:port`, where a server of the role `expected` must be. The channel reconnects by itself,
/// then with the identity that `identity` holds at that time.
///
/// # Errors
/// Every way in which the first connection can fail, as a sentence that says what to do.
pub async fn connect(address: &str, identity: &SharedIdentity, expected: Role) -> Result<Channel, ConnectError> {
    open(Dialler::new(address, Credentials::Own { identity: identity.clone(), expected })?).await
}

/// As [`connect`], but dials at the first request: failures then come as `UNAVAILABLE` with the same sentence.
///
/// # Errors
/// An address that is not `host:port`.
pub fn connect_lazy(address: &str, identity: &SharedIdentity, expected: Role) -> Result<Channel, ConnectError> {
    let dialler = Dialler::new(address, Credentials::Own { identity: identity.clone(), expected })?;
    let endpoint = dialler.endpoint()?;
    let connector = tower::service_fn(move |_| dialler.clone().dial_tls());
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Connects over server TLS to `host:port` without showing a certificate: for enrolment and renewal.
///
/// # Errors
/// As [`connect`].
pub async fn connect_without_certificate(address: &str, trust: Trust, expected: Role) -> Result<Channel, ConnectError> {
    open(Dialler::new(address, Credentials::None { trust, expected })?).await
}

/// Is this a `host:port` that could be dialled? Asks nobody.
///
/// # Errors
/// [`ConnectError::Address`] with the part that is wrong.
pub fn check_address(address: &str) -> Result<(), ConnectError> {
    Dialler::new(address, Credentials::Plaintext)?.endpoint().map(drop)
}

/// Connects without TLS to `host:port`, which must be on loopback.
///
/// # Errors
/// An address that is not on loopback, or where nobody answers.
pub async fn connect_plaintext(address: &str) -> Result<Channel, ConnectError> {
    open(Dialler::new(address, Credentials::Plaintext)?).await
}

async fn open(dialler: Dialler) -> Result<Channel, ConnectError> {
    let endpoint = dialler.endpoint()?;
    let address = dialler.address.clone();
    let plaintext = matches!(*dialler.credentials, Credentials::Plaintext);
    let outcome = if plaintext {
        endpoint.connect_with_connector(tower::service_fn(move |_| dialler.clone().dial_plain())).await
    } else {
        endpoint.connect_with_connector(tower::service_fn(move |_| dialler.clone().dial_tls())).await
    };
    outcome
        .map_err(|error| own_error(&error).unwrap_or_else(|| ConnectError::Handshake { address, why: chain(&error) }))
}

/// Finds our own error among the causes of tonic's.
fn own_error(error: &(dyn Error + 'static)) -> Option<ConnectError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(own) = error.downcast_ref::<ConnectError>() {
            return Some(own.clone());
        }
        cause = error.source();
    }
    None
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

enum Credentials {
    Own { identity: SharedIdentity, expected: Role },
    None { trust: Trust, expected: Role },
    Plaintext,
}

#[derive(Clone)]
struct Dialler {
    address: String,
    host: String,
    port: u16,
    credentials: Arc<Credentials>,
    /// For the handshake and the server's first bytes.
    patience: Duration,
}

impl Dialler {
    fn new(address: &str, credentials: Credentials) -> Result<Dialler, ConnectError> {
        let refuse = |why: &str| ConnectError::Address {
            address: address.chars().take(120).flat_map(char::escape_debug).collect(),
            why: why.to_owned(),
        };
        let authority: Authority = address.parse().map_err(|_| refuse("it has characters that no address has"))?;
        if address.contains('@') {
            return Err(refuse("it must not have a user name"));
        }
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(|| refuse("it has no port"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refuse("it has no host"));
        }
        let credentials = Arc::new(credentials);
        Ok(Dialler { address: address.to_owned(), host, port, credentials, patience: CONNECT_TIMEOUT })
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let invalid = |why: String| ConnectError::Address { address: self.address.clone(), why };
        let scheme = if matches!(*self.credentials, Credentials::Plaintext) { "http" } else { "https" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.address)).map_err(|e| invalid(chain(&e)))?;
        Ok(endpoint
            .initial_stream_window_size(CLIENT_WINDOW_BYTES)
            .initial_connection_window_size(CLIENT_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }

    async fn dial_tls(self) -> Result<TokioIo<Dialled<TlsStream<TcpStream>>>, ConnectError> {
        let (own, trust, expected) = match &*self.credentials {
            Credentials::Own { identity, expected } => {
                let own = identity.current();
                let trust = Trust::of(&own);
                (Some(own), trust, *expected)
            }
            Credentials::None { trust, expected } => (None, trust.clone(), *expected),
            Credentials::Plaintext => {
                let why = "it was to be plaintext".to_owned();
                return Err(ConnectError::Handshake { address: self.address.clone(), why });
            }
        };
        let config = client_config(own.as_deref(), trust, expected)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ConnectError::Address {
            address: self.address.clone(),
            why: "its host is neither a DNS name nor an IP address".to_owned(),
        })?;
        let stream = self.reach().await?;
        let handshake = async {
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            Dialled::confirm(stream).await
        };
        match timeout(self.patience, handshake).await {
            Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
            Ok(Err(error)) => Err(explain(&self.address, &error, own.as_deref())),
            Err(_) => Err(ConnectError::Silent { address: self.address.clone() }),
        }
    }

    async fn dial_plain(self) -> Result<TokioIo<Dialled<TcpStream>>, ConnectError> {
        let found = self.resolve().await?;
        if let Some(open) = found.iter().find(|address| !address.ip().is_loopback()) {
            return Err(TlsError::NotLoopback(open.to_string()).into());
        }
        // A server that waits for a TLS handshake says nothing, where a plaintext one sends its settings at once.
        match timeout(self.patience, Dialled::confirm(self.reach().await?)).await {
            Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
            Ok(Err(error)) => Err(explain(&self.address, &error, None)),
            Err(_) => Err(ConnectError::Silent { address: self.address.clone() }),
        }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        match lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => Ok(found.collect()),
            Err(error) => Err(ConnectError::Unreachable { address: self.address.clone(), why: error.to_string() }),
        }
    }

    async fn reach(&self) -> Result<TcpStream, ConnectError> {
        let unreachable = |why: String| ConnectError::Unreachable { address: self.address.clone(), why };
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
                Ok(stream)
            }
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("no answer within 10 s".to_owned())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::identity::testing::TestAuthority;

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up_with_or_without_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = SharedIdentity::new(TestAuthority::new("a").identity(Role::Client, "camera"));
        for credentials in [Credentials::Own { identity, expected: Role::Node }, Credentials::Plaintext] {
            let mut dialler = Dialler::new(&address, credentials).unwrap();
            dialler.patience = Duration::from_millis(20);
            let error = open(dialler).await.unwrap_err().to_string();
            assert!(error.contains(&address) && error.contains("said nothing"), "{error}");
        }
    }
}
