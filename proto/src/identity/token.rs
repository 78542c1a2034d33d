//! Join tokens `id.secret.sha256(CA public key)`: their text form, as k3s and kubeadm have it.
//! Minting and redeeming live in the coordinator's registry.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::IdentityError;

/// Bytes of the secret: 256 random bits.
pub const SECRET_LEN: usize = 32;

const ID_LEN: usize = 16;
const LONGEST: usize = 256;

/// A one-time token. Whoever holds it can join in its name, so `Debug` hides the secret; `Display` is the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: [u8; SECRET_LEN],
    authority: [u8; 32],
}

impl JoinToken {
    /// A token from its parts. `id` are 8 random bytes, `authority` is SHA-256 of the CA's SubjectPublicKeyInfo (DER).
    pub fn new(id: [u8; ID_LEN / 2], secret: [u8; SECRET_LEN], authority: [u8; 32]) -> JoinToken {
        JoinToken { id: hex::encode(id), secret, authority }
    }

    /// 16 lower-case hex digits: public, names the token in logs and in the store.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What proves that the token was minted.
    pub fn secret(&self) -> &[u8; SECRET_LEN] {
        &self.secret
    }

    /// SHA-256 of the SubjectPublicKeyInfo (DER) of the CA that the bearer may trust.
    pub fn authority(&self) -> &[u8; 32] {
        &self.authority
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret), hex::encode(self.authority))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}..)", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<JoinToken, IdentityError> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(IdentityError::Token("it is too long"));
        }
        let mut parts = text.split('.');
        let (Some(id), Some(secret), Some(authority), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Token("it does not have three parts with a dot between them"));
        };
        if id.len() != ID_LEN || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(IdentityError::Token("its first part is not 16 hex digits"));
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|bytes| bytes.try_into().ok());
        let authority = hex::decode(authority).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(JoinToken {
            id: id.to_owned(),
            secret: secret.ok_or(IdentityError::Token("its second part is not 43 characters of base64url"))?,
            authority: authority.ok_or(IdentityError::Token("its third part is not 64 hex digits"))?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_text_and_back_and_hides_its_secret_in_debug() {
        let token = JoinToken::new([1; 8], [2; 32], [3; 32]);
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("{token:?}"), "JoinToken(0101010101010101..)");
    }

    #[test]
    fn a_malformed_token_is_refused_with_the_part_that_is_wrong() {
        let good = JoinToken::new([1; 8], [2; 32], [3; 32]).to_string();
        let cut = &good[..good.len() - 1];
        for (text, why) in [
            ("", "three parts"),
            ("a.b", "three parts"),
            ("a.b.c.d", "three parts"),
            ("xyz.b.c", "first part"),
            ("0101010101010101.b.c", "second part"),
            (cut, "third part"),
            (&"a".repeat(300), "too long"),
        ] {
            let error = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
