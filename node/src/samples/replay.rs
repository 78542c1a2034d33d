//! What of the store a training sees: the new samples, mixed with some that earlier trainings saw ("experience replay",
//! against forgetting). What the store keeps at all is decided in `retention`.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sqlx::Row;

use super::store::decode;
use super::{Sample, SampleError, SampleStore};

/// How much of what earlier trainings saw is replayed to a training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Replay {
    /// All that the store holds.
    #[default]
    All,
    /// So many samples for each new one, the same number of each class as far as there are; 0: new samples alone.
    /// Source: Rolnick et al., "Experience Replay for Continual Learning", 2019; Chaudhry et al., "On Tiny Episodic
    /// Memories in Continual Learning", 2019, which takes 1.
    Ratio(f64),
}

/// What one training sees.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingDraw {
    /// New samples, then replayed ones.
    pub samples: Vec<Sample>,
    /// How many are new.
    pub new: usize,
    /// Where the store stands; for [`SampleStore::mark_trained`].
    pub through: i64,
}

impl SampleStore {
    /// What a training sees now. Samples are new until a training that saw them is marked; where none is new, all are
    /// seen again. The same store, ratio and seed give the same samples. Never holds a held-out sample.
    ///
    /// # Errors
    /// [`SampleError`] where the store can't be read.
    pub async fn draw_for_training(&self, model: &str, replay: Replay, seed: u64) -> Result<TrainingDraw, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let trained: i64 = sqlx::query_scalar("SELECT coalesce(max(through), 0) FROM trained WHERE model = ?")
            .bind(model)
            .fetch_one(&self.inner.pool)
            .await
            .map_err(read)?;
        let rows =
            sqlx::query("SELECT sequence, label FROM samples WHERE model = ? AND held_out = 0 ORDER BY sequence")
                .bind(model)
                .fetch_all(&self.inner.pool)
                .await
                .map_err(read)?;
        let rows: Vec<(i64, u32)> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(read)?;
        let through = rows.last().map_or(trained, |last| last.0.max(trained));
        let (old, new): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(sequence, _)| *sequence <= trained);
        let replayed = match replay {
            Replay::Ratio(ratio) if !new.is_empty() => {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
                let count = (new.len() as f64 * ratio).round() as usize;
                balanced(old, count, &mut ChaCha8Rng::seed_from_u64(seed))
            }
            Replay::All | Replay::Ratio(_) => old.into_iter().map(|(sequence, _)| sequence).collect(),
        };
        let count = new.len();
        let sequences: Vec<i64> = new.into_iter().map(|(sequence, _)| sequence).chain(replayed).collect();
        Ok(TrainingDraw { samples: self.samples_at(model, &sequences).await?, new: count, through })
    }

    /// A training has seen the samples of a draw: they are not new any more.
    ///
    /// # Errors
    /// [`SampleError`] where the store can't be written.
    pub async fn mark_trained(&self, model: &str, through: i64) -> Result<(), SampleError> {
        let failed = |error| self.inner.failed("write", error);
        let mut write = self.inner.begin().await?;
        sqlx::query(
            "INSERT INTO trained (model, through) VALUES (?, ?)
             ON CONFLICT (model) DO UPDATE SET through = max(through, excluded.through)",
        )
        .bind(model)
        .bind(through)
        .execute(write.connection())
        .await
        .map_err(failed)?;
        self.inner.commit(write).await
    }

    /// The samples with these sequences, in this order; those that went meanwhile are left out.
    async fn samples_at(&self, model: &str, sequences: &[i64]) -> Result<Vec<Sample>, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let list = serde_json::to_string(sequences).unwrap_or_default();
        let rows = sqlx::query(
            "SELECT input, label FROM json_each(?) AS wanted JOIN samples ON samples.sequence = wanted.value
             WHERE samples.model = ? ORDER BY wanted.key",
        )
        .bind(list)
        .bind(model)
        .fetch_all(&self.inner.pool)
        .await
        .map_err(read)?;
        let sample = |row: &sqlx::sqlite::SqliteRow| Ok((decode(row.try_get(0)?), row.try_get(1)?));
        let samples = rows.iter().map(sample).collect::<Result<Vec<_>, sqlx::Error>>().map_err(read)?;
        Ok(samples.into_iter().map(|(input, label)| Sample { input, label }).collect())
    }
}

/// `count` of the rows (sequence and class), drawn without replacement, as evenly over the classes as they allow.
fn balanced(rows: Vec<(i64, u32)>, count: usize, random: &mut impl Rng) -> Vec<i64> {
    let mut classes: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    rows.into_iter().for_each(|(sequence, label)| classes.entry(label).or_default().push(sequence));
    let mut classes: Vec<Vec<i64>> = classes.into_values().collect();
    classes.iter_mut().for_each(|class| class.shuffle(random));
    // Which classes get one more is by chance too.
    classes.shuffle(random);
    let deepest = classes.iter().map(Vec::len).max().unwrap_or_default();
    (0..deepest)
        .flat_map(|place| classes.iter().filter_map(move |class| class.get(place)))
        .take(count)
        .copied()
        .collect()
}

#[cfg(test)]
#[path = "replay_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
