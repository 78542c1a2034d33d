//! Certificates as identities: what a certificate says, and a certificate with its key and trust roots.
//! Verification of a peer's chain lives in `tls`, issuing in the coordinator's authority.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{HostName, IdentityError, PrivateKey, Role, SpiffeId, display_time, spiffe};

/// Certificates in a chain, or in a set of trust roots, at most.
pub(super) const CERTIFICATES_MAX: usize = 8;

/// The identity that a certificate (DER) carries. Says nothing about who signed it.
///
/// # Errors
/// Bytes that are no certificate; none or more than one URI among its names; a URI that is not a [`SpiffeId`].
pub fn from_certificate(der: &[u8]) -> Result<SpiffeId, IdentityError> {
    spiffe_id(&parse(der)?)
}

/// The host names that a certificate (DER) carries, in its order.
///
/// # Errors
/// Bytes that are no certificate.
pub fn host_names(der: &[u8]) -> Result<Vec<HostName>, IdentityError> {
    let certificate = parse(der)?;
    let names = general_names(&certificate)?;
    Ok(names.iter().filter_map(host_name).collect())
}

/// SHA-256 of a certificate (DER).
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER): what a join token pins.
///
/// # Errors
/// Bytes that are no certificate.
pub fn public_key_digest(der: &[u8]) -> Result<[u8; 32], IdentityError> {
    Ok(Sha256::digest(parse(der)?.public_key().raw).into())
}

/// What an identity's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// From its one URI.
    pub id: SpiffeId,
    /// The DNS names and addresses under which its holder may serve.
    pub host_names: Vec<HostName>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Reads an identity's certificate (DER). Says nothing about who signed it.
///
/// # Errors
/// As [`from_certificate`].
pub fn certificate_facts(der: &[u8]) -> Result<CertificateFacts, IdentityError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    Ok(CertificateFacts {
        id: spiffe_id(&certificate)?,
        host_names: general_names(&certificate)?.iter().filter_map(host_name).collect(),
        public_key: certificate.public_key().raw.to_vec(),
        not_before: system_time(validity.not_before.timestamp())?,
        not_after: system_time(validity.not_after.timestamp())?,
    })
}

/// What a CA certificate says about the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// From its one URI, `spiffe://<trust-domain>`.
    pub trust_domain: String,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Reads a CA certificate (DER) that fedge made.
///
/// # Errors
/// Bytes that are no certificate, a certificate that is no CA's or names no trust domain.
pub fn authority_facts(der: &[u8]) -> Result<AuthorityFacts, IdentityError> {
    let certificate = parse(der)?;
    if !certificate.is_ca() {
        return Err(IdentityError::Certificate("it is not a CA certificate".to_owned()));
    }
    let trust_domain = only_uri(&certificate)?.strip_prefix("spiffe://").unwrap_or_default();
    // Checked as the part of an id that it is.
    let checked = SpiffeId::new(trust_domain, Role::Coordinator, "x")?;
    Ok(AuthorityFacts {
        trust_domain: checked.trust_domain().to_owned(),
        public_key: certificate.public_key().raw.to_vec(),
        not_after: system_time(certificate.validity().not_after.timestamp())?,
    })
}

/// A certificate chain with its private key and the roots that its holder trusts. Immutable; `Debug` hides the key.
#[derive(Clone)]
pub struct Identity {
    facts: CertificateFacts,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    roots: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// An identity from a chain (leaf first, 1 to 8 certificates), the leaf's key and 1 to 8 trust roots.
    ///
    /// # Errors
    /// A leaf that is no identity, a key that is not the leaf's, too few or too many certificates.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Identity, IdentityError> {
        let (leaf, count) = (chain.first(), 1..=CERTIFICATES_MAX);
        let (Some(leaf), true, true) = (leaf, count.contains(&chain.len()), count.contains(&roots.len())) else {
            return Err(IdentityError::Certificate(format!(
                "an identity has 1 to {CERTIFICATES_MAX} certificates and as many trust roots, here are {} and {}",
                chain.len(),
                roots.len()
            )));
        };
        let facts = certificate_facts(leaf)?;
        if facts.public_key != key.public_key() {
            return Err(IdentityError::KeyMismatch(facts.id));
        }
        Ok(Identity { facts, chain, key, roots })
    }

    /// Whose identity it is.
    pub fn id(&self) -> &SpiffeId {
        &self.facts.id
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The CAs that its holder trusts.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The DNS names and addresses under which its holder may serve.
    pub fn host_names(&self) -> &[HostName] {
        &self.facts.host_names
    }

    /// From when it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// SHA-256 of the leaf.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.chain.first().map_or([0; 32], |leaf| fingerprint(leaf))
    }

    /// When half of its life is over: the time to renew it.
    pub fn half_life(&self) -> SystemTime {
        let life = self.not_after().duration_since(self.not_before()).unwrap_or(Duration::ZERO);
        self.not_before() + life / 2
    }

    /// Half of its life is over at `now`.
    pub fn needs_renewal(&self, now: SystemTime) -> bool {
        now >= self.half_life()
    }

    /// It is no longer valid at `now`.
    pub fn expired(&self, now: SystemTime) -> bool {
        now > self.not_after()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", self.id())
            .field("not_after", &display_time(self.not_after()))
            .finish_non_exhaustive()
    }
}

/// The identity that a process uses now. Clones share it: a renewed one is used by the next connection.
#[derive(Clone, Debug)]
pub struct SharedIdentity(Arc<ArcSwap<Identity>>);

impl SharedIdentity {
    /// Shares an identity.
    pub fn new(identity: Identity) -> SharedIdentity {
        SharedIdentity(Arc::new(ArcSwap::from_pointee(identity)))
    }

    /// The identity of this moment.
    pub fn current(&self) -> Arc<Identity> {
        self.0.load_full()
    }

    /// Replaces it for every clone.
    pub fn replace(&self, identity: Identity) {
        self.0.store(Arc::new(identity));
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::Certificate("bytes follow its end".to_owned())),
        Err(_) => Err(IdentityError::Certificate("it is not an X.509 certificate in DER".to_owned())),
    }
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, IdentityError> {
    only_uri(certificate)?.parse()
}

fn only_uri<'a>(certificate: &'a X509Certificate<'a>) -> Result<&'a str, IdentityError> {
    let names = general_names(certificate)?;
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(uri),
        (None, _) => Err(IdentityError::Certificate("it carries no SPIFFE URI; exactly one is needed".to_owned())),
        (Some(uri), more) => Err(IdentityError::Certificate(format!(
            "it carries {} URIs, the first `{}`; exactly one is allowed",
            more + 1,
            spiffe::shortened(uri)
        ))),
    }
}

fn general_names<'a>(certificate: &'a X509Certificate<'a>) -> Result<&'a [GeneralName<'a>], IdentityError> {
    match certificate.subject_alternative_name() {
        Ok(Some(extension)) => Ok(&extension.value.general_names),
        Ok(None) => Ok(&[]),
        Err(_) => Err(IdentityError::Certificate("its subject alternative names can't be read".to_owned())),
    }
}

fn host_name(name: &GeneralName<'_>) -> Option<HostName> {
    match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => {
            let address = match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
            };
            Some(HostName::Address(address))
        }
        _ => None,
    }
}

fn system_time(seconds: i64) -> Result<SystemTime, IdentityError> {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or_else(|| IdentityError::Certificate("its validity begins before 1970".to_owned()))
}
