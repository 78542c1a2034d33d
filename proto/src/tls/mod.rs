//! TLS 1.3 with hybrid post-quantum key exchange: who is at the other end of a connection.
//! What the other end may call lives in `authorization`; keys and certificates live in `identity`.

mod connect;
mod incoming;
mod server;
mod stream;
mod trouble;
mod verify;

pub use connect::{check_address, connect, connect_lazy, connect_plaintext, connect_without_certificate};
pub use incoming::{Incoming, Limits, Peer, incoming, plaintext_incoming};
pub use server::{ClientAuth, ReloadableServerConfig, server_config};
pub use stream::Connection;
pub use trouble::{ConnectError, ServerProblem, TlsError};
pub use verify::{Trust, client_config};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};

/// The protocol that both ends agree on: gRPC runs over HTTP/2 alone.
const ALPN: &[u8] = b"h2";

/// The cryptography of every connection: X25519MLKEM768 before X25519 and P-256.
/// Passed explicitly, because rustls panics on its default when a dependency brings a second provider.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
