//! An authority for this crate's tests, which also issues what a real one never would.
//! The real one lives in the coordinator.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;

use super::{HostName, Identity, PrivateKey, Role};

/// Hours, signed: from when until when, seen from now.
pub type Hours = std::ops::Range<i64>;

/// Valid at this moment.
pub const NOW: Hours = -1..23;

pub struct TestAuthority {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
}

impl TestAuthority {
    pub fn new(name: &str) -> TestAuthority {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(key.signing_key()).unwrap().der().clone();
        TestAuthority { key, certificate }
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A leaf for the key with these URIs and host names, valid in these hours.
    pub fn leaf(&self, key: &PrivateKey, uris: &[&str], names: &[&str], hours: Hours) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = at(hours.start).into();
        params.not_after = at(hours.end).into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        for name in names {
            params.subject_alt_names.push(match name.parse().unwrap() {
                HostName::Dns(name) => SanType::DnsName(name.try_into().unwrap()),
                HostName::Address(address) => SanType::IpAddress(address),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key.signing_key()).unwrap();
        params.signed_by(key.signing_key(), &issuer).unwrap().der().clone()
    }

    /// An identity of the trust domain `fedge.test` that may serve on 127.0.0.1 and localhost.
    pub fn identity(&self, role: Role, id: &str) -> Identity {
        self.identity_with(&format!("spiffe://fedge.test/default/{role}/{id}"), &["127.0.0.1", "localhost"], NOW)
    }

    pub fn identity_with(&self, uri: &str, names: &[&str], hours: Hours) -> Identity {
        let key = PrivateKey::generate().unwrap();
        let leaf = self.leaf(&key, &[uri], names, hours);
        Identity::new(vec![leaf], key, vec![self.certificate.clone()]).unwrap()
    }
}

fn at(hours: i64) -> SystemTime {
    let distance = Duration::from_secs(hours.unsigned_abs() * 3600);
    if hours < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}
