//! Private keys: ECDSA on P-256, made and used here, never printed.
//! Where they are kept lives in `directory`, what is issued for them in the coordinator's authority.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::IdentityError;

/// A private key. Cheap to clone.
#[derive(Clone)]
pub struct PrivateKey(Arc<KeyPair>);

impl PrivateKey {
    /// A fresh key from the operating system's randomness.
    ///
    /// # Errors
    /// Only when the system has no randomness to give.
    pub fn generate() -> Result<PrivateKey, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(|pair| PrivateKey(Arc::new(pair)))
            .map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// Reads a PKCS#8 or SEC 1 key.
    ///
    /// # Errors
    /// Bytes that are no such key, or a key of another kind than ECDSA on P-256.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<PrivateKey, IdentityError> {
        KeyPair::from_der_and_sign_algo(der, &PKCS_ECDSA_P256_SHA256)
            .map(|pair| PrivateKey(Arc::new(pair)))
            .map_err(|_| IdentityError::Key("it is not an ECDSA key on the curve P-256".to_owned()))
    }

    /// The key as rustls takes it, PKCS#8.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// A PKCS#10 request, DER, that names nothing: the issuer decides on every name.
    ///
    /// # Errors
    /// Only when signing fails.
    pub fn certificate_signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(self.0.as_ref())
            .map(|request| request.der().to_vec())
            .map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// ECDSA over SHA-256 of the message, ASN.1 DER.
    ///
    /// # Errors
    /// Only when signing fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.0.sign(message).map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// The key as rcgen takes it, for the one that issues certificates with it.
    pub fn signing_key(&self) -> &KeyPair {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_encoding_and_is_never_printed() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_der(&key.to_der()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(other.serialize_der()));
        assert!(PrivateKey::from_der(&der).unwrap_err().to_string().contains("P-256"));
    }
}
