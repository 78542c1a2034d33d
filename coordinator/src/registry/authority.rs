//! The certificate authority: its key, and the certificates that it issues. It decides every name itself.
//! Who gets one lives in `tokens` and `enrolment`, which were issued and revoked in `certificates`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedge_proto::identity::{
    self, HostName, Identity, IdentityError, PrivateKey, Role, SpiffeId, display_time, public_key_digest,
    requested_public_key,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

/// How long a leaf is valid.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Certificates begin this much before they are issued, for clocks that lag.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

const ROOT_LIFETIME: Duration = Duration::from_secs(3653 * 24 * 3600);
const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";
const FILE_MAX: u64 = 64 * 1024;

/// Why the authority can't be made, loaded, or can't issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One is already there.
    #[error("{} already holds a certificate authority: a second one would lock out everybody who joined the first", .0.display())]
    Exists(PathBuf),
    /// A file can't be read.
    #[error("cannot read {}: {why}; `fedge coordinator init` makes it, a backup restores it", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        why: String,
    },
    /// A file is not what it should be.
    #[error("{}: {why}; restore it from a backup", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The CA certificate itself is over.
    #[error("the CA certificate expired at {}: make a new authority with `fedge coordinator init` and let everybody join again", display_time(*.0))]
    Expired(SystemTime),
    /// A name, key or request that can't be certified, or a file that can't be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rcgen's own failure.
    #[error("the certificate could not be made: {0}")]
    Issue(String),
}

/// Whom a certificate is for: what the token or the operator fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// What it is for.
    pub role: Role,
    /// `[a-z0-9._-]{1,64}`.
    pub id: String,
    /// The names under which its holder may serve; empty for those who only dial.
    pub host_names: Vec<HostName>,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// Whose it is.
    pub id: SpiffeId,
    /// 32 lower-case hex digits.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// The authority of one trust domain. `Debug` hides its key.
pub struct Authority {
    trust_domain: String,
    certificate: CertificateDer<'static>,
    public_key_sha256: [u8; 32],
    not_after: SystemTime,
    key: PrivateKey,
}

impl Authority {
    /// Makes a new authority, valid for ten years, and writes `ca.pem` and `ca-key.pem` (mode 0600) into the directory.
    ///
    /// # Errors
    /// A directory that already holds one or can't be written; a trust domain that is none.
    pub fn create(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Authority, AuthorityError> {
        let (certificate_path, key_path) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        if certificate_path.exists() || key_path.exists() {
            return Err(AuthorityError::Exists(directory.to_owned()));
        }
        // A trust domain is checked as the part of an id that it will become.
        SpiffeId::new(trust_domain, Role::Coordinator, "x")?;
        let key = PrivateKey::generate()?;
        let certificate = root(&key, trust_domain, now)?;
        identity::IdentityDirectory::new(directory).prepare()?;
        // The certificate last: where it is, its key is.
        let pem = identity::pem("PRIVATE KEY", key.to_der().secret_der());
        identity::replace(&key_path, pem.as_bytes(), 0o600)?;
        identity::replace(&certificate_path, identity::pem("CERTIFICATE", &certificate).as_bytes(), 0o644)?;
        Authority::from_parts(&certificate_path, certificate, key)
    }

    /// Loads the authority that the directory holds.
    ///
    /// # Errors
    /// Files that are missing, unreadable, malformed or do not belong together.
    pub fn load(directory: &Path) -> Result<Authority, AuthorityError> {
        let (certificate_path, key_path) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        let certificate = CertificateDer::from_pem_slice(&read(&certificate_path)?)
            .map_err(|_| content(&certificate_path, "it holds no certificate in PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|_| content(&key_path, "it holds no private key in PEM"))?;
        let key = PrivateKey::from_der(&key).map_err(|e| content(&key_path, &e.to_string()))?;
        Authority::from_parts(&certificate_path, certificate, key)
    }

    fn from_parts(
        path: &Path,
        certificate: CertificateDer<'static>,
        key: PrivateKey,
    ) -> Result<Authority, AuthorityError> {
        let facts = identity::authority_facts(&certificate).map_err(|e| content(path, &e.to_string()))?;
        if facts.public_key != key.public_key() {
            return Err(content(path, "its public key is not that of ca-key.pem"));
        }
        let public_key_sha256 = public_key_digest(&certificate)?;
        Ok(Authority {
            trust_domain: facts.trust_domain,
            not_after: facts.not_after,
            certificate,
            public_key_sha256,
            key,
        })
    }

    /// The federation whose identities it issues.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The CA certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: the third part of every token.
    pub fn public_key_sha256(&self) -> &[u8; 32] {
        &self.public_key_sha256
    }

    /// The identity of a subject, without a certificate.
    ///
    /// # Errors
    /// An id with characters that it must not have.
    pub fn spiffe_id(&self, subject: &Subject) -> Result<SpiffeId, AuthorityError> {
        Ok(SpiffeId::new(&self.trust_domain, subject.role, &subject.id)?)
    }

    /// Issues a leaf for the key of a PKCS#10 request (DER), whose names are ignored. It ends `lifetime` after `now`, and never
    /// after the CA.
    ///
    /// # Errors
    /// A request that does not prove its key, a subject that can't be named, an authority that is over.
    pub fn issue(
        &self,
        request: &[u8],
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        self.issue_for(&requested_public_key(request)?, subject, lifetime, now)
    }

    /// Makes a key and a certificate for it: for the coordinator's own server, and for the operator of `init`.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_identity(
        &self,
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(Identity, Issued), AuthorityError> {
        let key = PrivateKey::generate()?;
        let issued = self.issue_for(&key.public_key(), subject, lifetime, now)?;
        let identity = Identity::new(vec![issued.certificate.clone()], key, vec![self.certificate.clone()])?;
        Ok((identity, issued))
    }

    fn issue_for(
        &self,
        public_key: &[u8],
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        if now >= self.not_after {
            return Err(AuthorityError::Expired(self.not_after));
        }
        let id = self.spiffe_id(subject)?;
        let not_after = now.checked_add(lifetime).unwrap_or(self.not_after).min(self.not_after);
        let serial: [u8; 16] = rand::random();
        let mut params = CertificateParams::default();
        params.not_before = date(now.checked_sub(BACKDATED).unwrap_or(now))?;
        params.not_after = date(not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.id.clone());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(failed)?)];
        for name in &subject.host_names {
            params.subject_alt_names.push(match name {
                HostName::Dns(name) => SanType::DnsName(name.clone().try_into().map_err(failed)?),
                HostName::Address(address) => SanType::IpAddress(*address),
            });
        }
        let public_key = SubjectPublicKeyInfo::from_der(public_key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key.signing_key()).map_err(failed)?;
        let certificate = params.signed_by(&public_key, &issuer).map_err(failed)?;
        Ok(Issued { certificate: certificate.der().clone(), id, serial: hex::encode(serial), not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// The self-signed root. Its URI names the trust domain, as the SPIFFE standard wants of signing certificates.
fn root(key: &PrivateKey, trust_domain: &str, now: SystemTime) -> Result<CertificateDer<'static>, AuthorityError> {
    let serial: [u8; 16] = rand::random();
    let mut params = CertificateParams::default();
    params.not_before = date(now.checked_sub(BACKDATED).unwrap_or(now))?;
    params.not_after = date(now + ROOT_LIFETIME)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    // With the serial in it, two authorities of one trust domain have different names, and verification says
    // "another CA" where it would say "bad signature".
    params.distinguished_name.push(DnType::CommonName, format!("fedge CA {}", hex::encode(serial)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().map_err(failed)?)];
    Ok(params.self_signed(key.signing_key()).map_err(failed)?.der().clone())
}

/// Whole seconds: certificates hold no more, and what we remember must equal what they say.
fn date(at: SystemTime) -> Result<OffsetDateTime, AuthorityError> {
    at.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| {
            AuthorityError::Issue("this machine's clock is outside the years that certificates know".to_owned())
        })
}

fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes))
        .map_err(|e| AuthorityError::Read { path: path.to_owned(), why: e.to_string() })?;
    Ok(bytes)
}

fn content(path: &Path, why: &str) -> AuthorityError {
    AuthorityError::Content { path: path.to_owned(), why: why.to_owned() }
}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Issue(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
