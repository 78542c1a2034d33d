//! Keeping an identity alive: a new certificate at half of its life, and up to 30 days after its end.
//! The first certificate comes from `enrol`.

use std::time::{Duration, Instant, SystemTime};

use fedge_proto::enrolment::RenewRequest;
use fedge_proto::enrolment::enrolment_client::EnrolmentClient;
use fedge_proto::identity::{
    Connection, Identity, IdentityDirectory, IdentityError, PrivateKey, Role, SharedIdentity, display_time,
    renewal_message,
};
use fedge_proto::tls::{ConnectError, Trust, connect_without_certificate};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, error, info, warn};

use super::enrol::{REPLY_MAX, accept, call, is_transient};

/// The directory is read again at least this often: the clock may have jumped.
const LONGEST_SLEEP: Duration = Duration::from_secs(15 * 60);
/// How soon files that somebody else wrote there are seen.
const LOOK: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_secs(15);
/// A fleet that was switched on together shall not renew together: up to this part of a life later.
const JITTER_DIVISOR: u32 = 10;

/// Why an identity was not renewed. The old one is untouched.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The directory or the received identity is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No connection that can be trusted.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator refused, or did not answer.
    #[error("renewal at {address} failed: {}", status.message())]
    Status {
        /// `host:port`.
        address: String,
        /// Its answer.
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
}

impl RenewalError {
    /// May the same attempt succeed later, without anybody's help?
    pub fn is_transient(&self) -> bool {
        match self {
            RenewalError::Connect(_) => true,
            RenewalError::Status { status, .. } => is_transient(status),
            RenewalError::Identity(_) | RenewalError::Reply { .. } => false,
        }
    }
}

/// What [`renew_if_due`] found.
#[derive(Debug, Clone)]
pub enum Renewal {
    /// The identity of the directory is in the first half of its life.
    NotDue(Box<Identity>),
    /// The directory holds this new identity.
    Renewed(Box<Identity>),
}

impl Renewal {
    /// The identity that the directory holds now.
    pub fn identity(&self) -> &Identity {
        match self {
            Renewal::NotDue(identity) | Renewal::Renewed(identity) => identity,
        }
    }
}

/// Renews the directory's identity if half of its life is over at `now`.
///
/// # Errors
/// A directory that can't be read or written, a coordinator that can't be reached or refuses: revoked, or more than 30 days
/// after its end.
pub async fn renew_if_due(directory: &IdentityDirectory, now: SystemTime) -> Result<Renewal, RenewalError> {
    let identity = directory.load()?;
    if !identity.needs_renewal(now) {
        return Ok(Renewal::NotDue(Box::new(identity)));
    }
    renew(directory, now).await.map(|identity| Renewal::Renewed(Box::new(identity)))
}

/// Renews the directory's identity at once, with a new key, by proof of the old one.
///
/// # Errors
/// As [`renew_if_due`].
pub async fn renew(directory: &IdentityDirectory, now: SystemTime) -> Result<Identity, RenewalError> {
    let (old, connection) = (directory.load()?, directory.connection()?);
    let (new, connection_now) = ask(&old, &connection, now).await?;
    if new.id() != old.id() {
        let why = format!("the identity of {}, not of {}", new.id(), old.id());
        return Err(RenewalError::Reply { address: connection.enrolment, why });
    }
    if connection_now != connection {
        directory.store_connection(&connection_now)?;
    }
    directory.replace_identity(&new)?;
    Ok(new)
}

/// Renews the directory's identity whenever it is due, until `stop`. Each new identity (also one that somebody else wrote
/// there) goes to `shared`, then to `renewed`.
pub async fn keep_renewed(
    directory: IdentityDirectory,
    shared: SharedIdentity,
    mut renewed: impl FnMut(&Identity) + Send,
    stop: CancellationToken,
) {
    let jitter: f64 = rand::random();
    let mut retry = FIRST_RETRY;
    loop {
        let (now, mut stamp) = (SystemTime::now(), directory.stamp());
        let pause = match attempt(&directory, now, jitter).await {
            Ok(identity) => {
                retry = FIRST_RETRY;
                let next = due(&identity, jitter).duration_since(now).unwrap_or(FIRST_RETRY);
                let held = shared.current();
                if identity.fingerprint() != held.fingerprint() || identity.roots() != held.roots() {
                    // What was written is known; else a clock that runs ahead would renew without a pause.
                    stamp = directory.stamp();
                    info!(id = %identity.id(), until = display_time(identity.not_after()), "using a new certificate");
                    shared.replace(identity.clone());
                    renewed(&identity);
                }
                next.min(LONGEST_SLEEP)
            }
            Err(failure) => {
                let pause = retry.mul_f64(0.5 + jitter / 2.0);
                retry = (retry * 2).min(LONGEST_SLEEP);
                if failure.is_transient() {
                    warn!(%failure, retry_s = pause.as_secs(), "the certificate was not renewed");
                } else {
                    error!(%failure, retry_s = pause.as_secs(), "the certificate can't be renewed");
                }
                pause
            }
        };
        debug!(pause_s = pause.as_secs(), "next look at the certificate");
        tokio::select! {
            () = stop.cancelled() => return,
            () = rest(&directory, stamp, pause) => {}
        }
    }
}

/// Ready after `pause`, or soon after the directory's files were replaced.
async fn rest(directory: &IdentityDirectory, stamp: [Option<(SystemTime, u64)>; 2], pause: Duration) {
    let end = Instant::now() + pause;
    while directory.stamp() == stamp {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

async fn attempt(directory: &IdentityDirectory, now: SystemTime, jitter: f64) -> Result<Identity, RenewalError> {
    let held = directory.load()?;
    if now < due(&held, jitter) {
        return Ok(held);
    }
    renew(directory, now).await
}

fn due(identity: &Identity, jitter: f64) -> SystemTime {
    let life = identity.not_after().duration_since(identity.not_before()).unwrap_or(Duration::ZERO);
    identity.half_life() + (life / JITTER_DIVISOR).mul_f64(jitter.clamp(0.0, 1.0))
}

async fn ask(old: &Identity, connection: &Connection, now: SystemTime) -> Result<(Identity, Connection), RenewalError> {
    let address = &connection.enrolment;
    let key = PrivateKey::generate()?;
    let certificate_signing_request = key.certificate_signing_request()?;
    let proof = old.key().sign(&renewal_message(&certificate_signing_request))?;
    let channel = connect_without_certificate(address, Trust::of(old), Role::Coordinator).await?;
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(REPLY_MAX);
    let certificate_chain = old.chain().iter().map(|der| der.to_vec()).collect();
    let request = RenewRequest { certificate_chain, certificate_signing_request, proof };
    let reply = call(client.renew(request))
        .await
        .map_err(|status| RenewalError::Status { address: address.clone(), status: Box::new(status) })?;
    // Roots that we already trust, not those of the reply: a renewal never widens trust.
    accept(reply, key, old.roots().to_vec(), now).map_err(|why| RenewalError::Reply { address: address.clone(), why })
}
