//! The client's view of a server: chain, name and role are all checked before a byte is sent.
//! Dialling lives in `connect`, the server's view of a client in `server`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{ALPN, ServerProblem, TlsError, provider};
use crate::identity::{Identity, Role, from_certificate, host_names, public_key_digest};

/// Intermediate certificates that a pinned server may send, at most.
const INTERMEDIATES_MAX: usize = 8;

/// Which server certificates a client trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Those that one of these CAs issued, in this trust domain.
    Roots {
        /// DER, 1 to 8.
        certificates: Vec<CertificateDer<'static>>,
        /// As in SPIFFE ids.
        trust_domain: String,
    },
    /// Those whose chain ends at a CA with this key: what a join token knows.
    PinnedAuthority {
        /// SHA-256 of the CA's SubjectPublicKeyInfo, DER.
        public_key_sha256: [u8; 32],
    },
}

impl Trust {
    /// The trust that an identity's directory holds.
    pub fn of(identity: &Identity) -> Trust {
        Trust::Roots { certificates: identity.roots().to_vec(), trust_domain: identity.id().trust_domain().to_owned() }
    }
}

/// TLS 1.3 as a client: shows `identity` if the server asks, and accepts only a server of the role `expected`.
///
/// # Errors
/// An identity or CA certificates that rustls can't use.
pub fn client_config(identity: Option<&Identity>, trust: Trust, expected: Role) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let authority = match trust {
        Trust::Roots { certificates, trust_domain } => {
            Authority::Roots { verifier: chain_verifier(&certificates, &provider)?, trust_domain }
        }
        Trust::PinnedAuthority { public_key_sha256 } => Authority::Pinned(public_key_sha256),
    };
    let verifier = Arc::new(ServerVerifier { authority, expected, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Roots(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(own) => builder
            .with_client_auth_cert(own.chain().to_vec(), own.key().to_der())
            .map_err(|e| TlsError::Identity { id: own.id().to_string(), why: e.to_string() })?,
        None => builder.with_no_client_auth(),
    };
    // A resumed session is not verified again, so there are none.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Roots as rustls keeps them.
pub(super) fn root_store(certificates: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|e| TlsError::Roots(e.to_string()))?;
    }
    Ok(Arc::new(roots))
}

fn chain_verifier(
    certificates: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(root_store(certificates)?, Arc::clone(provider))
        .build()
        .map_err(|e| TlsError::Roots(e.to_string()))
}

#[derive(Debug)]
enum Authority {
    Roots { verifier: Arc<WebPkiServerVerifier>, trust_domain: String },
    Pinned([u8; 32]),
}

#[derive(Debug)]
struct ServerVerifier {
    authority: Authority,
    expected: Role,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), ServerProblem> {
        let chain = match &self.authority {
            Authority::Roots { verifier, .. } => Arc::clone(verifier),
            Authority::Pinned(digest) => {
                let pinned = intermediates
                    .iter()
                    .take(INTERMEDIATES_MAX)
                    .find(|der| public_key_digest(der).is_ok_and(|found| found == *digest))
                    .ok_or(ServerProblem::Pin)?;
                chain_verifier(&[pinned.clone().into_owned()], &self.provider)
                    .map_err(|e| ServerProblem::Other(e.to_string()))?
            }
        };
        let outcome = chain.verify_server_cert(leaf, intermediates, name, &[], now);
        let refused = match outcome {
            Ok(_) => None,
            // The role says more than the name when the wrong server was dialled, so it is checked first.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Some(ServerProblem::Name {
                name: name.to_str().into_owned(),
                presented: host_names(leaf)?,
                role: self.expected,
            }),
            Err(error) => return Err(chain_problem(error, matches!(self.authority, Authority::Pinned(_)))),
        };
        let presented = from_certificate(leaf)?;
        if let Authority::Roots { trust_domain, .. } = &self.authority
            && presented.trust_domain() != trust_domain
        {
            return Err(ServerProblem::TrustDomain { presented, expected: trust_domain.clone() });
        }
        if presented.role() != self.expected {
            return Err(ServerProblem::Role { presented, expected: self.expected });
        }
        refused.map_or(Ok(()), Err)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, server_name, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(ServerProblem::into_rustls)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn chain_problem(error: rustls::Error, pinned: bool) -> ServerProblem {
    let rustls::Error::InvalidCertificate(problem) = error else {
        return ServerProblem::Other(error.to_string());
    };
    match problem {
        CertificateError::ExpiredContext { not_after, .. } => ServerProblem::Expired { since: system_time(not_after) },
        CertificateError::NotValidYetContext { not_before, .. } => {
            ServerProblem::NotYetValid { from: system_time(not_before) }
        }
        // Two CAs of one name differ in their key alone, which shows as a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature if pinned => ServerProblem::Pin,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => ServerProblem::Authority,
        other => ServerProblem::Other(other.to_string()),
    }
}

fn system_time(at: UnixTime) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(at.as_secs())).unwrap_or(UNIX_EPOCH)
}
