//! What can go wrong with a connection, as sentences that say what to do: errors, problems of certificates, alerts.
//! Finding out that it went wrong lives in `connect` and `verify`.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::{AlertDescription, CertificateError, OtherError};

use crate::identity::{HostName, Identity, IdentityError, Role, SpiffeId, display_time};

/// A TLS configuration that can't be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The identity's certificates or key do not make a configuration.
    #[error("the identity of {id} can't be used for TLS: {why}")]
    Identity {
        /// Whose identity.
        id: String,
        /// What rustls says.
        why: String,
    },
    /// The trust roots are not usable.
    #[error("the CA certificates can't be used: {0}")]
    Roots(String),
    /// Plaintext was asked for on an address that others can reach.
    #[error("plaintext is allowed on loopback only, and {0} is not: use 127.0.0.1 or [::1], or serve with TLS")]
    NotLoopback(String),
    /// The operating system refused.
    #[error("the listening socket has no address: {0}")]
    Listener(String),
}

/// Why a connection to a server was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `host:port`.
    #[error("`{address}` is not an address: {why}; give host:port, for example coordinator.example.org:7443")]
    Address {
        /// What was given.
        address: String,
        /// Which part is wrong.
        why: String,
    },
    /// Nobody answers there.
    #[error("cannot reach {address}: {why}; is it running, and is this the right host and port?")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// The operating system's reason.
        why: String,
    },
    /// The server answered, but not in time.
    #[error(
        "{address} accepted the connection and then said nothing for 10 s: is it a fedge server, is it overloaded, \
         and do both ends use TLS (or neither)?"
    )]
    Silent {
        /// `host:port`.
        address: String,
    },
    /// The server's certificate was refused by us.
    #[error("the server at {address} {problem}")]
    Server {
        /// `host:port`.
        address: String,
        /// What is wrong with it.
        problem: ServerProblem,
    },
    /// The server refused us.
    #[error("the server at {address} refused the connection: {why}")]
    Refused {
        /// `host:port`.
        address: String,
        /// What it said, and what to do.
        why: String,
    },
    /// Anything else before the first request.
    #[error("no connection with {address}: {why}")]
    Handshake {
        /// `host:port`.
        address: String,
        /// What rustls says.
        why: String,
    },
    /// Our own side is not fit.
    #[error(transparent)]
    Configuration(#[from] TlsError),
}

/// What is wrong with a server's certificate. Reads on from "the server at host:port".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerProblem {
    /// A certificate of the right CA but of another role.
    #[error("presented the certificate of {} ({presented}), expected {}: is it the right port?", presented.role().with_article(), expected.with_article())]
    Role {
        /// Who it is.
        presented: SpiffeId,
        /// Who it should be.
        expected: Role,
    },
    /// A certificate of another federation.
    #[error("presented the certificate of {presented}, expected one of the trust domain {expected}")]
    TrustDomain {
        /// Who it is.
        presented: SpiffeId,
        /// The trust domain that it should be of.
        expected: String,
    },
    /// A certificate without the name under which the server was reached.
    #[error("presented a certificate that is not valid for name {name}: certificate names are [{}]: {}", list(presented), mint_with_name(*role, name))]
    Name {
        /// The name that was dialled.
        name: String,
        /// The names in the certificate.
        presented: Vec<HostName>,
        /// Whose certificate it is.
        role: Role,
    },
    /// A certificate that is over.
    #[error("presented a certificate that expired at {}: it must renew its identity (or this machine's clock is wrong)", display_time(*since))]
    Expired {
        /// The end of its validity.
        since: SystemTime,
    },
    /// A certificate that has not begun.
    #[error("presented a certificate that is valid only from {}: one of the two clocks is wrong", display_time(*from))]
    NotYetValid {
        /// The begin of its validity.
        from: SystemTime,
    },
    /// A chain that ends at a CA that we do not trust.
    #[error(
        "presented a certificate issued by another CA than the one in ca.pem: it belongs to another federation, or its CA was made anew; join again with its token if it is the right server"
    )]
    Authority,
    /// No CA certificate with the key that the token names.
    #[error(
        "presented another CA than the one in the join token: the connection may be intercepted, or the token is another coordinator's; nothing was sent"
    )]
    Pin,
    /// A certificate that is no identity.
    #[error("presented an unusable certificate: {0}")]
    Identity(#[from] IdentityError),
    /// Anything else.
    #[error("presented a certificate that was refused: {0}")]
    Other(String),
}

impl ServerProblem {
    /// The problem as rustls carries it through a handshake.
    pub(super) fn into_rustls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }

    fn from_rustls(error: &rustls::Error) -> Option<ServerProblem> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<ServerProblem>().cloned()
            }
            _ => None,
        }
    }
}

/// Turns what a handshake (or the first read after it) ended with into a sentence.
pub(super) fn explain(address: &str, error: &std::io::Error, own: Option<&Identity>) -> ConnectError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => {
            ConnectError::Refused { address, why: explain_alert(*alert, own, SystemTime::now()) }
        }
        Some(other) => match ServerProblem::from_rustls(other) {
            Some(problem) => ConnectError::Server { address, problem },
            None if matches!(other, rustls::Error::InvalidMessage(_)) => {
                let why =
                    format!("it does not speak TLS ({other}): is it the right port, or one that serves plaintext?");
                ConnectError::Handshake { address, why }
            }
            None => ConnectError::Handshake { address, why: other.to_string() },
        },
        None => ConnectError::Handshake {
            address,
            why: format!(
                "{error}: it closed the connection; is it a fedge server, and do both ends use TLS (or neither)?"
            ),
        },
    }
}

fn explain_alert(alert: AlertDescription, own: Option<&Identity>, now: SystemTime) -> String {
    let whose = own.map_or_else(|| "our certificate".to_owned(), |own| format!("the certificate of {}", own.id()));
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "certificate required: it asks for a client certificate and got none; use the directory of an identity that \
             joined with a token"
                .to_owned()
        }
        AlertDescription::UnknownCA => {
            format!("unknown CA: {whose} was issued by another CA than the server's; join again with a token of this coordinator")
        }
        AlertDescription::CertificateExpired => match own {
            Some(own) if own.expired(now) => format!(
                "certificate expired: {whose} ended at {}; renew it within 30 days of that (a running node does so itself), \
                 afterwards join again with a new token",
                display_time(own.not_after())
            ),
            _ => format!("certificate expired: {whose} is over (or not yet valid) by the server's clock; compare both clocks"),
        },
        AlertDescription::CertificateRevoked => {
            format!("certificate revoked: {whose} was revoked; join again with a new token")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => {
            format!("certificate refused: {whose} is not an identity of the server's federation; its log names the reason")
        }
        AlertDescription::ProtocolVersion => "protocol version: both ends must speak TLS 1.3".to_owned(),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "handshake failure: it shares no key exchange or cipher with us".to_owned()
        }
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/2, so it is no gRPC server".to_owned(),
        other => format!("TLS alert {other:?}; its log names the reason"),
    }
}

fn list(names: &[HostName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn mint_with_name(role: Role, name: &str) -> String {
    match role {
        Role::Coordinator => format!("dial one of them, or give the coordinator this name with --dns-name {name}"),
        _ => format!("mint the token with --dns-name {name}, or dial one of them"),
    }
}
