//! The server's TLS configuration: how it shows itself, whom it lets in, and how it changes while running.
//! The listening loop lives in `incoming`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::verify::root_store;
use super::{ALPN, TlsError, provider};
use crate::identity::{Identity, IdentityError, from_certificate};

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Mutual TLS: a certificate of the server's own CA and trust domain.
    Required,
    /// Server TLS alone, for enrolment: the server also sends its CA certificate, so that a join token can pin it.
    None,
}

/// TLS 1.3 as a server. No tickets and no session storage: every connection verifies its client anew.
///
/// # Errors
/// An identity or CA certificates that rustls can't use.
pub fn server_config(identity: &Identity, auth: ClientAuth) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let unusable = |why: String| TlsError::Identity { id: identity.id().to_string(), why };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(e.to_string()))?;
    let mut chain = identity.chain().to_vec();
    let builder = match auth {
        ClientAuth::Required => builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(identity, provider)?)),
        ClientAuth::None => {
            chain.extend(identity.roots().iter().cloned());
            builder.with_no_client_auth()
        }
    };
    let mut config = builder.with_single_cert(chain, identity.key().to_der()).map_err(|e| unusable(e.to_string()))?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// A server configuration that can be replaced while the server runs: each new connection uses the newest.
#[derive(Clone, Debug)]
pub struct ReloadableServerConfig(Arc<ArcSwap<ServerConfig>>);

impl ReloadableServerConfig {
    /// Begins with this one.
    pub fn new(config: ServerConfig) -> ReloadableServerConfig {
        ReloadableServerConfig(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// The newest.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }

    /// Uses another from the next connection on. Open connections stay as they are.
    pub fn replace(&self, config: ServerConfig) {
        self.0.store(Arc::new(config));
    }
}

/// Chain verification by webpki, then: exactly one SPIFFE URI, of our trust domain.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    fn new(identity: &Identity, provider: Arc<CryptoProvider>) -> Result<ClientVerifier, TlsError> {
        let roots = root_store(identity.roots())?;
        let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|e| TlsError::Roots(e.to_string()))?;
        Ok(ClientVerifier { chain, trust_domain: identity.id().trust_domain().to_owned(), provider })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // With hints, clients whose CA is another one would keep their certificate to themselves, and the refusal
        // would say "certificate required" where "unknown CA" is what happened.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now).map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
            other => other,
        })?;
        let refuse =
            |why: IdentityError| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))));
        let id = from_certificate(end_entity).map_err(refuse)?;
        if id.trust_domain() != self.trust_domain {
            let why = format!("{id} is not of the trust domain {}", self.trust_domain);
            return Err(refuse(IdentityError::Certificate(why)));
        }
        Ok(verified)
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
