//! What goes when the sample store is full: the oldest sample of the most frequent class.
//! Pending inputs have their own bounds, in `pending`.

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
                 (SELECT sequence FROM samples WHERE model = ? AND label = ? ORDER BY sequence LIMIT ?)",
        )
        .bind(class.try_get::<String, _>(0)?)
        .bind(class.try_get::<i64, _>(1)?)
        .bind(count)
        .execute(write.connection())
        .await?;
    }
}
