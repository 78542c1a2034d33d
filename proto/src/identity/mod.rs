//! Who somebody is: SPIFFE identities, keys, certificates, join tokens and the directory that keeps them.
//! What an identity may call lives in `authorization`, how it is proven on a connection in `tls`.

mod certificate;
mod directory;
mod keys;
mod spiffe;
#[cfg(test)]
#[allow(missing_docs, clippy::unwrap_used)]
pub(crate) mod testing;
mod token;
mod verification;

pub use certificate::{
    AuthorityFacts, CertificateFacts, Identity, SharedIdentity, authority_facts, certificate_facts, fingerprint,
    from_certificate, host_names, public_key_digest,
};
pub use directory::{Connection, IdentityDirectory, pem, replace};
pub use keys::PrivateKey;
pub use spiffe::{HostName, NAMESPACE, Role, SpiffeId};
pub use token::{JoinToken, SECRET_LEN};
pub use verification::{renewal_message, requested_public_key, verify_chain, verify_signature};

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Why an identity, a certificate, a token or a directory of them is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A name of a role that does not exist.
    #[error("`{0}` is no role: use coordinator, node, operator or client")]
    Role(String),
    /// A SPIFFE id that breaks the form.
    #[error("`{text}` is not an identity: {why}; expected spiffe://<trust-domain>/default/<role>/<id>")]
    SpiffeId {
        /// What was given, shortened.
        text: String,
        /// Which part is wrong.
        why: &'static str,
    },
    /// A host name that can't stand in a certificate.
    #[error("`{0}` is neither a DNS name nor an IP address: give names such as coordinator.example.org or 192.0.2.7")]
    HostName(String),
    /// A certificate that can't be read or lacks what an identity needs.
    #[error("the certificate is not usable: {0}")]
    Certificate(String),
    /// A private key that can't be read, made or used.
    #[error("the private key is not usable: {0}")]
    Key(String),
    /// Key and certificate do not belong together.
    #[error("the private key does not belong to the certificate of {0}")]
    KeyMismatch(SpiffeId),
    /// A join token that can't be a token.
    #[error("the join token is malformed: {0}; copy it again as `fedge coordinator token` printed it")]
    Token(&'static str),
    /// A file that can't be read or written.
    #[error("{action} {}: {why}", path.display())]
    File {
        /// What was attempted, e.g. "cannot read".
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The operating system's reason and what to do.
        why: String,
    },
    /// A file whose content is wrong.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A directory that already holds an identity.
    #[error("{} already holds the identity of {id}: keep it, or replace it with --force", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
        /// Whose identity it is.
        id: SpiffeId,
    },
}

/// A time as people read it: `2026-11-23 14:05:09 UTC`.
pub fn display_time(at: SystemTime) -> String {
    match utc(at) {
        Some(at) => {
            let (year, month, day) = at.to_calendar_date();
            let (hour, minute, second) = at.to_hms();
            let month = u8::from(month);
            format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
        }
        None => "a time before 1970 or far in the future".to_owned(),
    }
}

fn utc(at: SystemTime) -> Option<OffsetDateTime> {
    let seconds = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
