//! Join tokens: minted once, redeemed once, stored as a hash. Each fixes the role, id and host names of its bearer.
//! The text form lives in `fedge_proto::identity`, the RPC that redeems them in `enrolment`.

use std::hint::black_box;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedge_proto::identity::{HostName, JoinToken, SpiffeId, display_time};
use sha2::{Digest, Sha256};
use sqlx::SqlitePool;

use super::authority::{Authority, AuthorityError, Subject};

/// The longest life of a token.
pub const LONGEST_LIFE: Duration = Duration::from_secs(3600);

/// Host names in a token, at most.
pub const HOST_NAMES_MAX: usize = 16;

/// Used and expired tokens are remembered this long, for the sake of clear errors.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a token was not minted or not redeemed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A life of zero or above the limit.
    #[error("a token lives at least a second and at most an hour, not {} s", .0.as_secs())]
    Life(Duration),
    /// More host names than a token takes.
    #[error("a token takes at most {HOST_NAMES_MAX} DNS names, not {0}")]
    HostNames(usize),
    /// A subject that can't be named.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No such token, or a wrong secret: which of the two is not told.
    #[error(
        "unknown token {0}: it was not minted by this coordinator, or was copied wrongly; mint one with `fedge coordinator token`"
    )]
    Unknown(String),
    /// Its hour is over.
    #[error("token {id} expired at {}: mint a new one with `fedge coordinator token`", display_time(*at))]
    Expired {
        /// Public part of the token.
        id: String,
        /// When it expired.
        at: SystemTime,
    },
    /// Somebody with another key was first.
    #[error(
        "token {0} was already used, with another key: mint a new one with `fedge coordinator token`; if nobody of yours used it, revoke that identity"
    )]
    Used(String),
    /// What is stored can't be read back.
    #[error("the stored token {id} is damaged: {why}")]
    Damaged {
        /// Public part of the token.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// The database.
    #[error("the database of tokens: {0}")]
    Database(#[from] sqlx::Error),
}

/// Mints a token that gives its first bearer the subject's certificate, and stores its hash.
///
/// # Errors
/// A life outside (0, 1 h], a subject that can't be named, a database that can't be written.
pub async fn mint(
    pool: &SqlitePool,
    authority: &Authority,
    subject: &Subject,
    life: Duration,
    now: SystemTime,
) -> Result<JoinToken, TokenError> {
    if life < Duration::from_secs(1) || life > LONGEST_LIFE {
        return Err(TokenError::Life(life));
    }
    if subject.host_names.len() > HOST_NAMES_MAX {
        return Err(TokenError::HostNames(subject.host_names.len()));
    }
    let spiffe_id = authority.spiffe_id(subject)?;
    let token = JoinToken::new(rand::random(), rand::random(), *authority.public_key_sha256());
    let names: Vec<String> = subject.host_names.iter().map(ToString::to_string).collect();
    let forgotten = seconds(now).saturating_sub_unsigned(REMEMBERED.as_secs());
    sqlx::query("DELETE FROM tokens WHERE expires_at < ?").bind(forgotten).execute(pool).await?;
    sqlx::query("INSERT INTO tokens (id, secret_sha256, spiffe_id, host_names, expires_at) VALUES (?, ?, ?, ?, ?)")
        .bind(token.id())
        .bind(hash(token.secret()).to_vec())
        .bind(spiffe_id.to_string())
        .bind(names.join("\n"))
        .bind(seconds(now + life))
        .execute(pool)
        .await?;
    Ok(token)
}

/// Redeems a token for a public key (SubjectPublicKeyInfo, DER). Within the token's life the same key may redeem it again,
/// because the reply may have been lost; another key is refused.
///
/// # Errors
/// A token that is unknown, expired or used; a database that can't be read or written.
pub async fn redeem(
    pool: &SqlitePool,
    token: &JoinToken,
    public_key: &[u8],
    now: SystemTime,
) -> Result<Subject, TokenError> {
    let id = || token.id().to_owned();
    let row: Option<(Vec<u8>, String, String, i64)> =
        sqlx::query_as("SELECT secret_sha256, spiffe_id, host_names, expires_at FROM tokens WHERE id = ?")
            .bind(token.id())
            .fetch_optional(pool)
            .await?;
    let (secret_sha256, spiffe_id, host_names, expires_at) = row.ok_or_else(|| TokenError::Unknown(id()))?;
    if !equal(&secret_sha256, &hash(token.secret())) {
        return Err(TokenError::Unknown(id()));
    }
    if seconds(now) >= expires_at {
        let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(expires_at).unwrap_or(0));
        return Err(TokenError::Expired { id: id(), at });
    }
    // One statement decides, so that of two bearers at the same time one is first.
    let key = hash(public_key).to_vec();
    let claimed = sqlx::query(
        "UPDATE tokens SET redeemed_by = ?1 WHERE id = ?2 AND expires_at = ?3 AND (redeemed_by IS NULL OR redeemed_by = ?1)",
    )
    .bind(key)
    .bind(token.id())
    .bind(expires_at)
    .execute(pool)
    .await?;
    if claimed.rows_affected() == 0 {
        return Err(TokenError::Used(id()));
    }
    subject(&spiffe_id, &host_names).map_err(|why| TokenError::Damaged { id: id(), why })
}

/// Ends the life of every token of an identity, used or not.
///
/// # Errors
/// A database that can't be written.
pub async fn expire(pool: &SqlitePool, id: &SpiffeId, now: SystemTime) -> Result<u64, sqlx::Error> {
    let done = sqlx::query("UPDATE tokens SET expires_at = ?1 WHERE spiffe_id = ?2 AND expires_at > ?1")
        .bind(seconds(now))
        .bind(id.to_string())
        .execute(pool)
        .await?;
    Ok(done.rows_affected())
}

/// Wall clock as the database holds it.
pub(super) fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

fn subject(spiffe_id: &str, host_names: &str) -> Result<Subject, String> {
    let id: SpiffeId = spiffe_id.parse().map_err(|e| format!("{e}"))?;
    let host_names =
        host_names.lines().map(str::parse::<HostName>).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok(Subject { role: id.role(), id: id.id().to_owned(), host_names })
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Takes the same time wherever the difference is.
fn equal(a: &[u8], b: &[u8; 32]) -> bool {
    a.len() == b.len() && black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::registry::enrolment::testing::{authority, pool};
    use fedge_proto::identity::Role;

    fn subject() -> Subject {
        let host_names = vec!["edge-1.example".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        Subject { role: Role::Node, id: "edge-1".to_owned(), host_names }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_token_gives_the_subject_that_it_was_minted_for_and_again_to_the_same_key() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        assert_eq!(redeem(&pool, &token, b"key", now).await.unwrap(), subject());
        assert_eq!(redeem(&pool, &token, b"key", now + HOUR / 2).await.unwrap(), subject());
    }

    #[tokio::test]
    async fn a_used_token_is_refused_to_another_key() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        redeem(&pool, &token, b"key", now).await.unwrap();
        let error = redeem(&pool, &token, b"other", now).await.unwrap_err();
        assert!(matches!(error, TokenError::Used(_)), "{error}");
    }

    #[tokio::test]
    async fn of_many_bearers_at_the_same_time_exactly_one_is_first() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        let mut bearers = tokio::task::JoinSet::new();
        for key in 0..16_u8 {
            let (pool, token) = (pool.clone(), token.clone());
            bearers.spawn(async move { redeem(&pool, &token, &[key], now).await.is_ok() });
        }
        assert_eq!(bearers.join_all().await.into_iter().filter(|first| *first).count(), 1);
    }

    #[tokio::test]
    async fn an_expired_token_is_refused_with_its_end() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        let error = redeem(&pool, &token, b"key", now + HOUR).await.unwrap_err();
        assert!(matches!(error, TokenError::Expired { .. }), "{error}");
        assert!(error.to_string().contains("UTC"), "{error}");
    }

    #[tokio::test]
    async fn a_wrong_secret_and_an_unknown_id_are_refused_alike() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        let id: [u8; 8] = hex::decode(token.id()).unwrap().try_into().unwrap();
        let guessed = JoinToken::new(id, [0; 32], *token.authority());
        let unknown = JoinToken::new([0; 8], *token.secret(), *token.authority());
        for forged in [guessed, unknown] {
            let error = redeem(&pool, &forged, b"key", now).await.unwrap_err();
            assert!(matches!(error, TokenError::Unknown(_)), "{error}");
        }
        redeem(&pool, &token, b"key", now).await.unwrap();
    }

    #[tokio::test]
    async fn a_secret_is_not_stored() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        let token = mint(&pool, &authority, &subject(), HOUR, now).await.unwrap();
        let (stored,): (Vec<u8>,) = sqlx::query_as("SELECT secret_sha256 FROM tokens").fetch_one(&pool).await.unwrap();
        assert_ne!(stored, token.secret());
    }

    #[tokio::test]
    async fn a_life_above_an_hour_is_refused() {
        let (pool, now) = (pool().await, SystemTime::now());
        let (authority, _directory) = authority(now);
        for life in [Duration::ZERO, HOUR + Duration::from_secs(1)] {
            let error = mint(&pool, &authority, &subject(), life, now).await.unwrap_err();
            assert!(matches!(error, TokenError::Life(_)), "{error}");
        }
    }
}
