//! Checks of certificates outside a handshake: chains at a given time, proofs of a key, signing requests.
//! Checks within a handshake live in `tls`.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::IdentityError;

/// Signing requests, at most: a few hundred bytes are usual.
const REQUEST_MAX: usize = 16 * 1024;

/// SubjectPublicKeyInfo of an uncompressed point on P-256 (RFC 5480): these bytes, then x and y.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_LEN: usize = 91;

/// Does a chain (leaf first) end at one of the roots, and was it valid at that time?
///
/// # Errors
/// A chain that is empty, malformed, of another CA, or not valid at that time.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    at: SystemTime,
) -> Result<(), IdentityError> {
    let refuse = |why: String| IdentityError::Certificate(why);
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| refuse("the chain is empty".to_owned()))?;
    let since_1970 = at.duration_since(UNIX_EPOCH).map_err(|_| refuse("the time lies before 1970".to_owned()))?;
    let anchors = roots
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| refuse(format!("the CA certificate is malformed: {e}")))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|e| refuse(format!("the leaf is malformed: {e}")))?;
    leaf.verify_for_usage(
        &[ECDSA_P256_SHA256],
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(since_1970),
        KeyUsage::client_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(|error| match error {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            refuse("another CA issued it".to_owned())
        }
        other => refuse(other.to_string()),
    })
}

/// Was the message signed by the key of a certificate (ECDSA on P-256 with SHA-256, ASN.1 DER)?
///
/// # Errors
/// A malformed certificate, or a signature that is not its key's over this message.
pub fn verify_signature(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> Result<(), IdentityError> {
    let leaf =
        EndEntityCert::try_from(leaf).map_err(|e| IdentityError::Certificate(format!("the leaf is malformed: {e}")))?;
    leaf.verify_signature(ECDSA_P256_SHA256, message, signature)
        .map_err(|_| IdentityError::Certificate("the proof was not signed by the certificate's key".to_owned()))
}

/// The public key of a PKCS#10 request (DER) as SubjectPublicKeyInfo, after checking the request's own signature: the sender
/// holds the private key. Names in the request are ignored.
///
/// # Errors
/// Bytes that are no request, a bad signature, or a key that is not ECDSA on P-256.
pub fn requested_public_key(request: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let refuse = |why: &str| IdentityError::Certificate(format!("the signing request is refused: {why}"));
    if request.len() > REQUEST_MAX {
        return Err(refuse("it is larger than 16 KiB"));
    }
    let Ok(([], parsed)) = X509CertificationRequest::from_der(request) else {
        return Err(refuse("it is not PKCS#10 in DER"));
    };
    let key = parsed.certification_request_info.subject_pki.raw;
    if key.len() != P256_LEN || !key.starts_with(P256_PREFIX) {
        return Err(refuse("its key is not ECDSA on the curve P-256"));
    }
    parsed.verify_signature().map_err(|_| refuse("it is not signed by its own key"))?;
    Ok(key.to_vec())
}

/// What the old key signs to renew: `fedge renewal v1` followed by SHA-256 of the signing request.
pub fn renewal_message(request: &[u8]) -> Vec<u8> {
    let mut message = b"fedge renewal v1".to_vec();
    message.extend_from_slice(&Sha256::digest(request));
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn a_request_proves_its_key_and_a_changed_one_does_not() {
        let key = PrivateKey::generate().unwrap();
        let request = key.certificate_signing_request().unwrap();
        assert_eq!(requested_public_key(&request).unwrap(), key.public_key());

        let mut changed = request.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        assert!(requested_public_key(&changed).is_err());
        for cut in 0..request.len() {
            assert!(requested_public_key(&request[..cut]).is_err(), "{cut} bytes were accepted");
        }
        let mut longer = request;
        longer.push(0);
        assert!(requested_public_key(&longer).is_err());
    }

    #[test]
    fn a_request_for_another_kind_of_key_is_refused() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
            let error = requested_public_key(request.der()).unwrap_err().to_string();
            assert!(error.contains("P-256"), "{error}");
        }
    }
}
