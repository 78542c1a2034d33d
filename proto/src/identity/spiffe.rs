//! SPIFFE ids (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>) and the host names beside them.
//! How they get into certificates, and out of them, lives in `certificate`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::DnsName;
use serde::{Deserialize, Serialize};

use super::IdentityError;

/// The only namespace so far.
pub const NAMESPACE: &str = "default";

const SCHEME: &str = "spiffe://";
const TRUST_DOMAIN_MAX: usize = 255;
const ID_MAX: usize = 64;

/// What an identity is for. It decides which RPCs it may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks and aggregates updates.
    Coordinator,
    /// Serves, collects samples and trains.
    Node,
    /// Publishes models and creates tasks.
    Operator,
    /// Asks nodes for inference.
    Client,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Coordinator, Role::Node, Role::Operator, Role::Client];

    /// The role as it stands in SPIFFE ids, flags and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Node => "node",
            Role::Operator => "operator",
            Role::Client => "client",
        }
    }

    /// The role with its article, for sentences: "a node", "an operator".
    pub fn with_article(self) -> &'static str {
        match self {
            Role::Coordinator => "a coordinator",
            Role::Node => "a node",
            Role::Operator => "an operator",
            Role::Client => "a client",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Role, IdentityError> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| IdentityError::Role(shortened(text)))
    }
}

/// `spiffe://<trust-domain>/default/<role>/<id>`: trust domain `[a-z0-9._-]{1,255}`, id `[a-z0-9._-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: String,
    role: Role,
    id: String,
}

impl SpiffeId {
    /// An id from its parts.
    ///
    /// # Errors
    /// A trust domain or id that is empty, too long or has other characters than `[a-z0-9._-]`.
    pub fn new(trust_domain: &str, role: Role, id: &str) -> Result<SpiffeId, IdentityError> {
        let refuse = |why| IdentityError::SpiffeId {
            text: shortened(&format!("{SCHEME}{trust_domain}/{NAMESPACE}/{role}/{id}")),
            why,
        };
        if !is_plain(trust_domain, TRUST_DOMAIN_MAX) {
            return Err(refuse("the trust domain must be 1 to 255 characters of a-z 0-9 . _ -"));
        }
        if !is_plain(id, ID_MAX) || id == "." || id == ".." {
            return Err(refuse("the id must be 1 to 64 characters of a-z 0-9 . _ -"));
        }
        Ok(SpiffeId { trust_domain: trust_domain.to_owned(), role, id: id.to_owned() })
    }

    /// The federation that the identity belongs to.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name within the role.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{NAMESPACE}/{}/{}", self.trust_domain, self.role, self.id)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<SpiffeId, IdentityError> {
        let refuse = |why| IdentityError::SpiffeId { text: shortened(text), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refuse("it does not begin with spiffe://"))?;
        let mut parts = rest.split('/');
        let (Some(trust_domain), Some(namespace), Some(role), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refuse("it does not have exactly four parts"));
        };
        if namespace != NAMESPACE {
            return Err(refuse("the namespace is not `default`"));
        }
        let role = role.parse().map_err(|_| refuse("the role is not coordinator, node, operator or client"))?;
        SpiffeId::new(trust_domain, role, id)
    }
}

/// A name under which a server is reached, as it stands in its certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostName {
    /// A DNS name, lower case, without a wildcard.
    Dns(String),
    /// An IP address.
    Address(IpAddr),
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostName::Dns(name) => f.write_str(name),
            HostName::Address(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for HostName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<HostName, IdentityError> {
        if let Ok(address) = text.parse() {
            return Ok(HostName::Address(address));
        }
        let name = text.to_ascii_lowercase();
        // Digits and dots alone are a mistyped address, not a name.
        let is_numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match DnsName::try_from(name.as_str()) {
            Ok(_) if !is_numeric => Ok(HostName::Dns(name)),
            _ => Err(IdentityError::HostName(shortened(text))),
        }
    }
}

fn is_plain(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

/// Hostile text is quoted in errors only in part, and without control characters.
pub(super) fn shortened(text: &str) -> String {
    let mut kept: String = text.chars().take(120).flat_map(char::escape_debug).collect();
    if text.chars().nth(120).is_some() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_back() {
        for role in Role::ALL {
            let id = SpiffeId::new("fedge.example", role, "edge-01.a_b").unwrap();
            assert_eq!(id.to_string(), format!("spiffe://fedge.example/default/{role}/edge-01.a_b"));
            assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }
    }

    #[test]
    fn anything_but_the_exact_form_is_refused() {
        let long = format!("spiffe://d/default/node/{}", "a".repeat(65));
        for text in [
            "",
            "https://d/default/node/a",
            "SPIFFE://d/default/node/a",
            "spiffe:///default/node/a",
            "spiffe://D/default/node/a",
            "spiffe://d/other/node/a",
            "spiffe://d/default/nodes/a",
            "spiffe://d/default/Node/a",
            "spiffe://d/default/node/",
            "spiffe://d/default/node/..",
            "spiffe://d/default/node/a/",
            "spiffe://d/default/node/a/b",
            "spiffe://d/default/node",
            "spiffe://d/default/node/a?x",
            "spiffe://d:1/default/node/a",
            "spiffe://u@d/default/node/a",
            " spiffe://d/default/node/a",
            "spiffe://d/default/node/a\n",
            &long,
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn host_names_are_dns_names_or_addresses() {
        assert_eq!("Edge.Example".parse::<HostName>().unwrap(), HostName::Dns("edge.example".to_owned()));
        assert_eq!("::1".parse::<HostName>().unwrap().to_string(), "::1");
        assert_eq!("127.0.0.1".parse::<HostName>().unwrap(), HostName::Address(IpAddr::from([127, 0, 0, 1])));
        for text in ["", "*.example", "a b", "300.1.1.1", "http://x", "x:1"] {
            assert!(text.parse::<HostName>().is_err(), "{text:?} was accepted");
        }
    }
}
