//! Joining a federation: a token in, an identity directory out. For every role: nodes, operators, clients.
//! Renewal of what was joined lives in `renewal`, the server's side in the coordinator's registry.

use std::time::{Duration, SystemTime};

use fedge_proto::enrolment::enrolment_client::EnrolmentClient;
use fedge_proto::enrolment::{EnrolReply, EnrolRequest};
use fedge_proto::identity::{
    Connection, Identity, IdentityDirectory, IdentityError, JoinToken, PrivateKey, Role, public_key_digest,
    verify_chain,
};
use fedge_proto::tls::{ConnectError, Trust, check_address, connect_without_certificate};
use tonic::{Code, Status};

/// Attempts at one call: a lost reply is asked for again with the same key.
const ATTEMPTS: u32 = 3;
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const REPLY_MAX: usize = 64 * 1024;
const CHAIN_MAX: usize = 8;

/// Why joining failed. Nothing was written, except the key that the next attempt uses again.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token's text, the directory or the received identity is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No connection that can be trusted.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator refused.
    #[error("the coordinator at {address} refused: {}", status.message())]
    Refused {
        /// `host:port`.
        address: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// No answer came, also not to repeated calls.
    #[error("the coordinator at {address} did not answer: {}; the token can be tried again", status.message())]
    NoAnswer {
        /// `host:port`.
        address: String,
        /// The last failure.
        status: Box<Status>,
    },
    /// The answer does not fit what was asked.
    #[error("the coordinator at {address} answered with {why}")]
    Reply {
        /// `host:port`.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token is for another role.
    #[error("the token is for {}, not for {}: mint one with --role {expected}", given.with_article(), expected.with_article())]
    Role {
        /// The role of the token.
        given: Role,
        /// The role that was to join.
        expected: Role,
    },
}

/// How joining ended well.
#[derive(Debug, Clone)]
pub enum Enrolled {
    /// The directory holds a new identity.
    Joined(Box<Identity>),
    /// It already held a valid one of the same coordinator, which was kept; the token was not used.
    Kept(Box<Identity>),
}

impl Enrolled {
    /// The identity that the directory holds now.
    pub fn identity(&self) -> &Identity {
        match self {
            Enrolled::Joined(identity) | Enrolled::Kept(identity) => identity,
        }
    }
}

/// Redeems a join token at the enrolment port `address` (`host:port`) and writes the identity directory. `expected` refuses
/// tokens of other roles. A valid identity of the same coordinator is kept unless `force`.
///
/// # Errors
/// A malformed, used or expired token, a coordinator that can't be reached or is not the token's, a directory that can't be
/// written or holds the identity of another federation.
pub async fn enrol(
    token: &str,
    address: &str,
    directory: &IdentityDirectory,
    expected: Option<Role>,
    force: bool,
    now: SystemTime,
) -> Result<Enrolled, EnrolError> {
    let token: JoinToken = token.parse()?;
    if !force && let Some(kept) = held(directory, &token, expected, now)? {
        return Ok(Enrolled::Kept(Box::new(kept)));
    }
    // Before the token is used up, not after.
    directory.prepare()?;
    let key = directory.pending_key()?;
    let trust = Trust::PinnedAuthority { public_key_sha256: *token.authority() };
    let channel = connect_without_certificate(address, trust, Role::Coordinator).await?;
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(REPLY_MAX);
    let request =
        EnrolRequest { token: token.to_string(), certificate_signing_request: key.certificate_signing_request()? };
    let mut attempt = 0;
    let reply = loop {
        attempt += 1;
        match call(client.enrol(request.clone())).await {
            Ok(reply) => break reply,
            Err(status) if !is_transient(&status) => {
                return Err(EnrolError::Refused { address: address.to_owned(), status: Box::new(status) });
            }
            Err(status) if attempt == ATTEMPTS => {
                return Err(EnrolError::NoAnswer { address: address.to_owned(), status: Box::new(status) });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(500) * attempt).await,
        }
    };
    let refuse = |why: String| EnrolError::Reply { address: address.to_owned(), why };
    if public_key_digest(&reply.ca_certificate).ok() != Some(*token.authority()) {
        return Err(refuse("a CA certificate that is not the token's".to_owned()));
    }
    let roots = vec![reply.ca_certificate.clone().into()];
    let (identity, connection) = accept(reply, key, roots, now).map_err(refuse)?;
    if let Some(expected) = expected
        && identity.id().role() != expected
    {
        return Err(EnrolError::Role { given: identity.id().role(), expected });
    }
    directory.store(&identity, &connection)?;
    Ok(Enrolled::Joined(Box::new(identity)))
}

/// Checks a reply of the enrolment service against our key and CA.
pub(super) fn accept(
    reply: EnrolReply,
    key: PrivateKey,
    roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    now: SystemTime,
) -> Result<(Identity, Connection), String> {
    if reply.certificate_chain.is_empty() || reply.certificate_chain.len() > CHAIN_MAX {
        return Err(format!("{} certificates", reply.certificate_chain.len()));
    }
    let chain = reply.certificate_chain.into_iter().map(Into::into).collect();
    let identity = Identity::new(chain, key, roots).map_err(|e| format!("an unusable identity: {e}"))?;
    verify_chain(identity.chain(), identity.roots(), now)
        .map_err(|e| format!("a certificate that can't be verified (compare both clocks): {e}"))?;
    let addresses = reply.addresses.ok_or("no addresses")?;
    let connection = Connection {
        trust_domain: identity.id().trust_domain().to_owned(),
        federation: addresses.federation,
        enrolment: addresses.enrolment,
        operators: addresses.operators,
    };
    for address in [&connection.federation, &connection.enrolment, &connection.operators] {
        check_address(address).map_err(|e| format!("an unusable address: {e}"))?;
    }
    Ok((identity, connection))
}

/// One call with its timeout.
pub(super) async fn call(
    reply: impl Future<Output = Result<tonic::Response<EnrolReply>, Status>>,
) -> Result<EnrolReply, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, reply).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer within 15 s")),
    }
}

/// May the same call succeed later?
pub(super) fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
    )
}

/// The identity that makes joining needless.
fn held(
    directory: &IdentityDirectory,
    token: &JoinToken,
    expected: Option<Role>,
    now: SystemTime,
) -> Result<Option<Identity>, EnrolError> {
    if !directory.exists() {
        return Ok(None);
    }
    let identity = directory.load()?;
    let same_authority = identity.roots().iter().any(|root| public_key_digest(root).ok() == Some(*token.authority()));
    let same_role = expected.is_none_or(|role| role == identity.id().role());
    if !same_authority || !same_role {
        return Err(IdentityError::Exists { path: directory.path().to_owned(), id: identity.id().clone() }.into());
    }
    let complete = directory.connection().is_ok();
    Ok((complete && !identity.expired(now)).then_some(identity))
}
