//! Which certificates were issued, and which were revoked since.
//! Issuing them lives in `authority`; asking at every call lives in `fedge_proto::authorization`.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fedge_proto::authorization::Revoked;
use fedge_proto::identity::{SpiffeId, fingerprint};
use sqlx::SqlitePool;

use super::authority::Issued;
use super::tokens::{self, seconds};

/// For how long after its end a certificate still renews.
pub const RENEWABLE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Records a certificate. `replaces` is the SHA-256 of the certificate that it renews: nothing is recorded, and false comes
/// back, when that one was revoked.
///
/// # Errors
/// A database that can't be written.
pub async fn record(
    pool: &SqlitePool,
    issued: &Issued,
    replaces: Option<&[u8; 32]>,
    now: SystemTime,
) -> Result<bool, sqlx::Error> {
    let forgotten = seconds(now).saturating_sub_unsigned(RENEWABLE.as_secs());
    sqlx::query("DELETE FROM certificates WHERE not_after < ?").bind(forgotten).execute(pool).await?;
    // One statement, so that a revocation comes either before it or finds the new certificate too.
    let done = sqlx::query(
        "INSERT INTO certificates (fingerprint, serial, spiffe_id, not_after) SELECT ?1, ?2, ?3, ?4 \
         WHERE NOT EXISTS (SELECT 1 FROM certificates WHERE fingerprint = ?5 AND revoked_at IS NOT NULL)",
    )
    .bind(fingerprint(&issued.certificate).to_vec())
    .bind(&issued.serial)
    .bind(issued.id.to_string())
    .bind(seconds(issued.not_after))
    .bind(replaces.map(|replaced| replaced.to_vec()))
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Was the certificate with this SHA-256 revoked?
///
/// # Errors
/// A database that can't be read.
pub async fn revoked(pool: &SqlitePool, fingerprint: &[u8; 32]) -> Result<bool, sqlx::Error> {
    let row: Option<(i64,)> =
        sqlx::query_as("SELECT revoked_at FROM certificates WHERE fingerprint = ? AND revoked_at IS NOT NULL")
            .bind(fingerprint.to_vec())
            .fetch_optional(pool)
            .await?;
    Ok(row.is_some())
}

/// Revokes every certificate that an identity has, and ends its tokens. A token minted later lets it join again.
/// Gives the number of certificates. Refresh the [`DenyList`] afterwards.
///
/// # Errors
/// A database that can't be written.
pub async fn revoke(pool: &SqlitePool, id: &SpiffeId, now: SystemTime) -> Result<u64, sqlx::Error> {
    tokens::expire(pool, id, now).await?;
    let done = sqlx::query("UPDATE certificates SET revoked_at = ? WHERE spiffe_id = ? AND revoked_at IS NULL")
        .bind(seconds(now))
        .bind(id.to_string())
        .execute(pool)
        .await?;
    Ok(done.rows_affected())
}

/// The revoked certificates in memory, for every call of an open connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct DenyList(Arc<RwLock<HashSet<[u8; 32]>>>);

impl DenyList {
    /// The revoked certificates of the database.
    ///
    /// # Errors
    /// A database that can't be read.
    pub async fn load(pool: &SqlitePool) -> Result<DenyList, sqlx::Error> {
        let list = DenyList::default();
        list.refresh(pool).await?;
        Ok(list)
    }

    /// Reads them again: after a revocation, or from time to time when another process revokes.
    ///
    /// # Errors
    /// A database that can't be read; the list is then as before.
    pub async fn refresh(&self, pool: &SqlitePool) -> Result<(), sqlx::Error> {
        let rows: Vec<(Vec<u8>,)> =
            sqlx::query_as("SELECT fingerprint FROM certificates WHERE revoked_at IS NOT NULL").fetch_all(pool).await?;
        let fresh = rows.into_iter().filter_map(|(fingerprint,)| fingerprint.try_into().ok()).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Is the certificate with this SHA-256 on the list?
    pub fn contains(&self, fingerprint: &[u8; 32]) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(fingerprint)
    }

    /// The list as the authorization layer asks it.
    pub fn hook(&self) -> Arc<Revoked> {
        let list = self.clone();
        Arc::new(move |_, fingerprint| list.contains(fingerprint))
    }
}
