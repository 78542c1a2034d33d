//! What goes when the sample store is full: the store is a class-balanced reservoir.
//! What of it a training sees is `replay`'s matter; pending inputs have their own bounds, in `pending`.
//!
//! The class with the most samples gives one up (class-balancing reservoir sampling, Chrysakis and Moens, "Online
//! Continual Learning from Imbalanced Data", ICML 2020, algorithm 1), and within the class what stays is a uniform sample
//! of all that ever came, as Vitter's algorithm R keeps ("Random Sampling with a Reservoir", 1985). Instead of drawing a
//! place at each arrival, every input has a fixed random key, a part of its SHA-256, and those with the smallest keys
//! stay (the random-tag form of the same sample; "bottom-k" in Cohen and Kaplan, PODC 2007). So what is kept depends on
//! neither order nor repetition nor a restart, and a sample that was given up does not come back by being sent again.

use sqlx::Row;

use super::Limits;
use super::store::Write;

/// Deletes samples until the limits hold. Classes of all models compete, so that no model starves another.
pub(crate) async fn evict(write: &mut Write<'_>, limits: &Limits) -> Result<(), sqlx::Error> {
    let max_samples = i64::try_from(limits.max_samples).unwrap_or(i64::MAX);
    let max_bytes = i64::try_from(limits.max_bytes).unwrap_or(i64::MAX);
    loop {
        let totals = sqlx::query("SELECT coalesce(sum(samples), 0), coalesce(sum(bytes), 0) FROM classes")
            .fetch_one(write.connection())
            .await?;
        let over_samples = totals.try_get::<i64, _>(0)?.saturating_sub(max_samples);
        let over_bytes = totals.try_get::<i64, _>(1)?.saturating_sub(max_bytes);
        if over_samples <= 0 && over_bytes <= 0 {
            return Ok(());
        }
        let largest = sqlx::query(
            "SELECT model, label, sum(samples) AS samples, sum(bytes) AS bytes FROM classes
             GROUP BY model, label HAVING sum(samples) > 0 ORDER BY samples DESC, model, label LIMIT 2",
        )
        .fetch_all(write.connection())
        .await?;
        let Some(class) = largest.first() else { return Ok(()) };
        let samples: i64 = class.try_get(2)?;
        let bytes: i64 = class.try_get(3)?;
        let second: i64 = largest.get(1).map_or(Ok(0), |class| class.try_get(2))?;
        let excess = over_samples.max(over_bytes.saturating_mul(samples) / bytes.max(1));
        // Down to the second largest class at once: one by one would give the same, slower.
        let count = excess.clamp(1, (samples - second).max(1));
        sqlx::query(
            "DELETE FROM samples WHERE sequence IN
                 (SELECT sequence FROM samples WHERE model = ? AND label = ? ORDER BY substr(digest, 3) DESC LIMIT ?)",
        )
        .bind(class.try_get::<String, _>(0)?)
        .bind(class.try_get::<i64, _>(1)?)
        .bind(count)
        .execute(write.connection())
        .await?;
    }
}
