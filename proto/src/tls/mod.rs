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

/// Largest frame of HTTP/2 that our servers and clients accept. With 64 KiB instead of the usual 16, a transfer costs 5 to
/// 10 % less CPU and leaves smaller buffers behind; with 256 KiB the receiver pays again what the sender saves.
pub const MAX_FRAME_BYTES: u32 = 64 << 10;
/// Bytes that a server lets be under way to it, a stream and a connection: the most that a connection of unread uploads
/// holds. Nothing is allocated before it is used. With 64 KiB a transfer costs a fifth more CPU and stalls more often.
pub const SERVER_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a client, whose downloads may come from far away: 160 Mbit/s at 100 ms.
const CLIENT_WINDOW_BYTES: u32 = 2 << 20;

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
