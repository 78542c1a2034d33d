//! The enrolment service: a certificate for a join token, and a new certificate for an old one.
//! What a token is worth lives in `tokens`, what a certificate says in `authority`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedge_proto::enrolment::enrolment_server::{Enrolment, EnrolmentServer};
use fedge_proto::enrolment::{Addresses, EnrolReply, EnrolRequest, RenewRequest};
use fedge_proto::identity::{
    self, IdentityError, JoinToken, SpiffeId, display_time, renewal_message, requested_public_key, verify_chain,
    verify_signature,
};
use rustls_pki_types::CertificateDer;
use sqlx::SqlitePool;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::authority::{Authority, Issued, LEAF_LIFETIME, Subject};
use super::certificates::{self, RENEWABLE};
use super::tokens::{self, TokenError};

/// A request is a token or a short chain, and a signing request: a few kilobytes.
const MESSAGE_MAX: usize = 64 * 1024;
const CHAIN_MAX: usize = 8;
const CONCURRENT_CALLS: usize = 32;
/// Slows down who tries many tokens.
const FAILURE_DELAY: Duration = Duration::from_millis(200);

/// Wall clock, passed in so that tests can live years in a second.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The service behind `fedge.enrolment.v1.Enrolment`.
pub struct EnrolmentService {
    authority: Arc<Authority>,
    pool: SqlitePool,
    addresses: Addresses,
    clock: Clock,
    calls: Semaphore,
}

impl EnrolmentService {
    /// The service as tonic takes it. `addresses` is what those who enrol are told: `host:port` as seen by them.
    pub fn server(
        authority: Arc<Authority>,
        pool: SqlitePool,
        addresses: Addresses,
    ) -> EnrolmentServer<EnrolmentService> {
        EnrolmentService::server_with_clock(authority, pool, addresses, Arc::new(SystemTime::now))
    }

    /// As [`EnrolmentService::server`], with another clock.
    pub fn server_with_clock(
        authority: Arc<Authority>,
        pool: SqlitePool,
        addresses: Addresses,
        clock: Clock,
    ) -> EnrolmentServer<EnrolmentService> {
        let calls = Semaphore::new(CONCURRENT_CALLS);
        EnrolmentServer::new(EnrolmentService { authority, pool, addresses, clock, calls })
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    async fn enrol_now(&self, request: EnrolRequest, now: SystemTime) -> Result<Issued, Status> {
        let token: JoinToken = request.token.parse().map_err(invalid)?;
        if token.authority() != self.authority.public_key_sha256() {
            return Err(Status::permission_denied(
                "the token is another coordinator's: mint one here with `fedge coordinator token`",
            ));
        }
        let public_key = requested_public_key(&request.certificate_signing_request).map_err(invalid)?;
        let subject = tokens::redeem(&self.pool, &token, &public_key, now).await.map_err(|error| refusal(&error))?;
        let issued = self.issue(&request.certificate_signing_request, &subject, now)?;
        self.record(&issued, None, now).await?;
        // A revocation since then found no certificate to revoke, but it ended the token.
        tokens::redeem(&self.pool, &token, &public_key, now).await.map_err(|error| refusal(&error))?;
        info!(id = %issued.id, token = token.id(), serial = issued.serial, "enrolled");
        Ok(issued)
    }

    async fn renew_now(&self, request: RenewRequest, now: SystemTime) -> Result<Issued, Status> {
        if request.certificate_chain.len() > CHAIN_MAX {
            return Err(Status::invalid_argument(format!("a chain has at most {CHAIN_MAX} certificates")));
        }
        let chain: Vec<CertificateDer<'_>> =
            request.certificate_chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let leaf = chain.first().ok_or_else(|| Status::invalid_argument("the certificate to renew is missing"))?;
        let old = identity::certificate_facts(leaf).map_err(invalid)?;
        // An expired certificate is judged by the last moment of its life.
        let roots = std::slice::from_ref(self.authority.certificate());
        verify_chain(&chain, roots, now.min(old.not_after)).map_err(|error| {
            Status::permission_denied(format!("the certificate of {} can't be renewed here: {error}", old.id))
        })?;
        if old.not_after.checked_add(RENEWABLE).is_none_or(|end| now > end) {
            return Err(Status::failed_precondition(format!(
                "the certificate of {} expired at {}, more than 30 days ago: join again with a new token",
                old.id,
                display_time(old.not_after)
            )));
        }
        let message = renewal_message(&request.certificate_signing_request);
        verify_signature(leaf, &message, &request.proof)
            .map_err(|error| Status::permission_denied(format!("renewal of {} refused: {error}", old.id)))?;
        let subject = Subject { role: old.id.role(), id: old.id.id().to_owned(), host_names: old.host_names };
        let issued = self.issue(&request.certificate_signing_request, &subject, now)?;
        if issued.id != old.id {
            return Err(foreign(&old.id, self.authority.trust_domain()));
        }
        self.record(&issued, Some(&identity::fingerprint(leaf)), now).await?;
        info!(id = %issued.id, serial = issued.serial, "renewed");
        Ok(issued)
    }

    fn issue(&self, request: &[u8], subject: &Subject, now: SystemTime) -> Result<Issued, Status> {
        self.authority.issue(request, subject, LEAF_LIFETIME, now).map_err(|error| match error {
            super::authority::AuthorityError::Identity(error) => invalid(error),
            error => {
                warn!(%error, "a certificate could not be issued");
                Status::internal(error.to_string())
            }
        })
    }

    async fn record(&self, issued: &Issued, replaces: Option<&[u8; 32]>, now: SystemTime) -> Result<(), Status> {
        match certificates::record(&self.pool, issued, replaces, now).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Status::permission_denied(format!(
                "the certificate of {} was revoked: join again with a new token",
                issued.id
            ))),
            Err(error) => Err(database(&error)),
        }
    }

    fn reply(&self, issued: Issued) -> EnrolReply {
        EnrolReply {
            certificate_chain: vec![issued.certificate.to_vec()],
            ca_certificate: self.authority.certificate().to_vec(),
            addresses: Some(self.addresses.clone()),
        }
    }

    async fn answer(&self, outcome: Result<Issued, Status>) -> Result<Response<EnrolReply>, Status> {
        match outcome {
            Ok(issued) => Ok(Response::new(self.reply(issued))),
            Err(status) => {
                warn!(code = ?status.code(), reason = status.message(), "refused");
                sleep(FAILURE_DELAY).await;
                Err(status)
            }
        }
    }

    fn busy() -> Status {
        Status::resource_exhausted("too many enrolments at a time: try again in a few seconds")
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let _permit = self.calls.try_acquire().map_err(|_| Self::busy())?;
        let outcome = self.enrol_now(request.into_inner(), (self.clock)()).await;
        self.answer(outcome).await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrolReply>, Status> {
        let _permit = self.calls.try_acquire().map_err(|_| Self::busy())?;
        let outcome = self.renew_now(request.into_inner(), (self.clock)()).await;
        self.answer(outcome).await
    }
}

fn invalid(error: IdentityError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn refusal(error: &TokenError) -> Status {
    match error {
        TokenError::Unknown(_) => Status::permission_denied(error.to_string()),
        TokenError::Expired { .. } | TokenError::Used(_) => Status::failed_precondition(error.to_string()),
        TokenError::Database(error) => database(error),
        TokenError::Life(_) | TokenError::HostNames(_) | TokenError::Authority(_) | TokenError::Damaged { .. } => {
            Status::internal(error.to_string())
        }
    }
}

fn database(error: &sqlx::Error) -> Status {
    warn!(%error, "the database of the registry");
    Status::unavailable("the coordinator's database did not answer: try again; its log names the reason")
}

fn foreign(id: &SpiffeId, trust_domain: &str) -> Status {
    Status::permission_denied(format!(
        "{id} is not of the trust domain {trust_domain}: join again with a token of this coordinator"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(super) mod testing {
    use super::*;

    /// An authority in a temporary directory.
    pub fn authority(now: SystemTime) -> (Authority, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (Authority::create(&directory.path().join("ca"), "fedge.test", now).unwrap(), directory)
    }

    /// A database in memory, of one connection: each would have its own.
    pub async fn pool() -> SqlitePool {
        let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
        let pool = options.connect("sqlite::memory:").await.unwrap();
        sqlx::migrate!().run(&pool).await.unwrap();
        pool
    }
}
