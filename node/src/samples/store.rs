//! The durable store of labelled samples: one SQLite file, bounded, with a fixed held-out part.
//! Which samples go when it is full is in `retention`; inputs that wait for a label are in `pending`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use tokio::sync::Mutex;

use super::pending::Writer;
use super::{SampleError, held_out, retention};

/// How much the store keeps at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Labelled samples of all models together.
    pub max_samples: u64,
    /// Bytes of their inputs together. Inputs that wait for a label may take a quarter of this on top.
    pub max_bytes: u64,
    /// Answered requests whose inputs wait for a label.
    pub max_pending: u64,
    /// How long such an input waits before it is dropped; time while the node is down does not count.
    pub pending_ttl: Duration,
}

impl Default for Limits {
    /// 100,000 samples, 512 MiB, 1,000 pending inputs, 24 hours.
    fn default() -> Limits {
        Limits {
            max_samples: 100_000,
            max_bytes: 512 << 20,
            max_pending: 1_000,
            pending_ttl: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// One labelled sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Raw (unpreprocessed) values, row-major, without the batch dimension; all finite.
    pub input: Vec<f32>,
    /// Class index.
    pub label: u32,
}

/// What adding one sample did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The store did not hold this input before.
    New,
    /// The store held this very input with this very label.
    Duplicate,
    /// The store held this very input with another label; the new label replaced it.
    Relabelled,
}

/// What adding many samples did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddedMany {
    /// Inputs that the store did not hold before.
    pub new: u64,
    /// Inputs that it held with the same label.
    pub duplicates: u64,
    /// Inputs that it held with another label, which the new one replaced.
    pub relabelled: u64,
}

/// How many samples of one model the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Labelled samples to train on.
    pub training: u64,
    /// Labelled samples that are kept for evaluation alone.
    pub held_out: u64,
    /// Inputs of answered requests that wait for a label.
    pub pending: u64,
}

/// The store. Clones share one database; it is safe to use from many tasks.
#[derive(Clone, Debug)]
pub struct SampleStore {
    pub(crate) inner: Arc<Inner>,
    pub(crate) writer: Writer,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) pool: SqlitePool,
    pub(crate) path: PathBuf,
    pub(crate) limits: Limits,
    /// SQLite has one writer at a time; waiting here is fair and cheap, waiting there is a busy loop.
    writing: Mutex<()>,
    opened: Instant,
    /// The clock's reading when the store was opened: the largest time in it.
    opened_at_ms: i64,
}

impl SampleStore {
    /// Opens the store at `path`, or creates it; its directory must exist. Call within a tokio runtime.
    ///
    /// A file that is no sample store, or a damaged one, is an error ([`SampleError::Corrupt`]) and is left as it is.
    pub async fn open(path: &Path, limits: Limits) -> Result<SampleStore, SampleError> {
        // FULL: a label that was acknowledged is on disk, whatever happens to the power.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await
            .map_err(|error| SampleError::from_sqlx(path, "open", error))?;
        sqlx::migrate!("./migrations").run(&pool).await.map_err(|error| SampleError::from_migration(path, error))?;
        let opened_at_ms = sqlx::query_scalar("SELECT coalesce(max(received_ms), 0) FROM pending")
            .fetch_one(&pool)
            .await
            .map_err(|error| SampleError::from_sqlx(path, "read", error))?;
        let inner = Arc::new(Inner {
            pool,
            path: path.to_owned(),
            limits,
            writing: Mutex::new(()),
            opened: Instant::now(),
            opened_at_ms,
        });
        let writer = Writer::start(Arc::clone(&inner));
        Ok(SampleStore { inner, writer })
    }

    /// Adds one labelled sample of `model`; it is on disk when this returns. The same input counts once, with the
    /// latest label. When the store is full, the most frequent class gives a sample up, which may be this one (`retention`).
    pub async fn add(&self, model: &str, input: &[f32], label: u32) -> Result<Added, SampleError> {
        self.inner.check(input)?;
        let mut write = self.inner.begin().await?;
        let added = self.inner.insert(&mut write, model, input, label).await?;
        retention::evict(&mut write, &self.inner.limits).await.map_err(|error| self.inner.failed("write", error))?;
        self.inner.commit(write).await?;
        Ok(added)
    }

    /// Adds many labelled samples of `model` in one transaction: all of them, or, on an error, none.
    pub async fn add_many(&self, model: &str, samples: Vec<(Vec<f32>, u32)>) -> Result<AddedMany, SampleError> {
        for (input, _) in &samples {
            self.inner.check(input)?;
        }
        let mut counts = AddedMany::default();
        let mut write = self.inner.begin().await?;
        for (input, label) in &samples {
            match self.inner.insert(&mut write, model, input, *label).await? {
                Added::New => counts.new += 1,
                Added::Duplicate => counts.duplicates += 1,
                Added::Relabelled => counts.relabelled += 1,
            }
        }
        retention::evict(&mut write, &self.inner.limits).await.map_err(|error| self.inner.failed("write", error))?;
        self.inner.commit(write).await?;
        Ok(counts)
    }

    /// How many samples of `model` there are.
    pub async fn counts(&self, model: &str) -> Result<Counts, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let row = sqlx::query(
            "SELECT coalesce(sum(samples) FILTER (WHERE held_out = 0), 0), \
                    coalesce(sum(samples) FILTER (WHERE held_out = 1), 0) FROM classes WHERE model = ?",
        )
        .bind(model)
        .fetch_one(&self.inner.pool)
        .await
        .map_err(read)?;
        let pending: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pending WHERE model = ? AND state = 0 AND received_ms >= ?")
                .bind(model)
                .bind(self.inner.oldest_waiting_ms())
                .fetch_one(&self.inner.pool)
                .await
                .map_err(read)?;
        Ok(Counts {
            training: row.try_get::<i64, _>(0).map_err(read)?.unsigned_abs(),
            held_out: row.try_get::<i64, _>(1).map_err(read)?.unsigned_abs(),
            pending: pending.unsigned_abs(),
        })
    }

    /// Samples to train on, in order of arrival. Never holds a held-out sample.
    pub async fn training_set(&self, model: &str) -> Result<Vec<Sample>, SampleError> {
        self.part(model, false).await
    }

    /// Samples kept for evaluation, in order of arrival: one in ten, chosen by the hash of the input for ever.
    pub async fn held_out_set(&self, model: &str) -> Result<Vec<Sample>, SampleError> {
        self.part(model, true).await
    }

    /// Up to `limit` raw inputs to calibrate a quantizer on: spread evenly over the classes of the training part, then
    /// inputs of answered requests that wait for a label. The same store gives the same inputs. None is held out.
    pub async fn calibration_set(&self, model: &str, limit: usize) -> Result<Vec<Vec<f32>>, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let mut inputs: Vec<Vec<f32>> =
            self.spread(model, false, limit).await?.into_iter().map(|sample| sample.input).collect();
        let missing = i64::try_from(limit.saturating_sub(inputs.len())).unwrap_or(i64::MAX);
        let waiting = sqlx::query(
            "SELECT input FROM pending WHERE model = ? AND state = 0 AND held_out = 0 ORDER BY sequence DESC LIMIT ?",
        )
        .bind(model)
        .bind(missing)
        .fetch_all(&self.inner.pool)
        .await
        .map_err(read)?;
        for row in &waiting {
            inputs.push(decode(row.try_get(0).map_err(read)?));
        }
        Ok(inputs)
    }

    /// Up to `limit` held-out samples, spread evenly over the classes. The same store gives the same ones.
    pub async fn held_out_spread(&self, model: &str, limit: usize) -> Result<Vec<Sample>, SampleError> {
        self.spread(model, true, limit).await
    }

    /// Writes what waits and closes the database. Other clones get errors from now on.
    pub async fn close(&self) {
        self.writer.flush().await;
        self.inner.pool.close().await;
    }

    async fn spread(&self, model: &str, held_out: bool, limit: usize) -> Result<Vec<Sample>, SampleError> {
        let read = |error| self.inner.failed("read", error);
        // Two steps, so that ranking does not carry the blobs.
        let rows = sqlx::query(
            "SELECT input, label FROM samples WHERE sequence IN (
                 SELECT sequence FROM (
                     SELECT sequence, label, row_number() OVER (PARTITION BY label ORDER BY digest) AS place
                     FROM samples WHERE model = ? AND held_out = ?)
                 ORDER BY place, label LIMIT ?) ORDER BY digest",
        )
        .bind(model)
        .bind(held_out)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.inner.pool)
        .await
        .map_err(read)?;
        self.samples_of(&rows)
    }

    async fn part(&self, model: &str, held_out: bool) -> Result<Vec<Sample>, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let rows = sqlx::query("SELECT input, label FROM samples WHERE model = ? AND held_out = ? ORDER BY sequence")
            .bind(model)
            .bind(held_out)
            .fetch_all(&self.inner.pool)
            .await
            .map_err(read)?;
        self.samples_of(&rows)
    }

    /// Samples of rows that begin with input and label.
    fn samples_of(&self, rows: &[SqliteRow]) -> Result<Vec<Sample>, SampleError> {
        let read = |error| self.inner.failed("read", error);
        let sample = |row: &SqliteRow| {
            Ok(Sample { input: decode(row.try_get(0).map_err(read)?), label: row.try_get(1).map_err(read)? })
        };
        rows.iter().map(sample).collect()
    }
}

impl Inner {
    /// Refuses an input that must not be kept.
    pub(crate) fn check(&self, input: &[f32]) -> Result<(), SampleError> {
        if input.is_empty() {
            return Err(SampleError::Empty);
        }
        if let Some((index, &value)) = input.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(SampleError::NotFinite { index, value });
        }
        let bytes = size_of_val(input) as u64;
        if bytes > self.limits.max_bytes {
            return Err(SampleError::TooLarge { bytes, limit: self.limits.max_bytes });
        }
        Ok(())
    }

    /// Begins a write; dropping it without a commit undoes it.
    pub(crate) async fn begin(&self) -> Result<Write<'_>, SampleError> {
        let turn = self.writing.lock().await;
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| self.failed("write", error))?;
        Ok(Write { transaction, _turn: turn })
    }

    /// Puts a write on disk.
    pub(crate) async fn commit(&self, write: Write<'_>) -> Result<(), SampleError> {
        let Write { transaction, _turn } = write;
        transaction.commit().await.map_err(|error| self.failed("write", error))
    }

    /// Inserts one checked sample.
    pub(crate) async fn insert(
        &self,
        write: &mut Write<'_>,
        model: &str,
        input: &[f32],
        label: u32,
    ) -> Result<Added, SampleError> {
        let failed = |error| self.failed("write", error);
        let content = Content::of(input);
        let known: Option<u32> = sqlx::query_scalar("SELECT label FROM samples WHERE model = ? AND digest = ?")
            .bind(model)
            .bind(&content.digest[..])
            .fetch_optional(write.connection())
            .await
            .map_err(failed)?;
        let (query, added) = match known {
            Some(known) if known == label => return Ok(Added::Duplicate),
            Some(_) => (
                sqlx::query("UPDATE samples SET label = ? WHERE model = ? AND digest = ?")
                    .bind(label)
                    .bind(model)
                    .bind(&content.digest[..]),
                Added::Relabelled,
            ),
            None => (
                sqlx::query("INSERT INTO samples (label, model, digest, input, held_out) VALUES (?, ?, ?, ?, ?)")
                    .bind(label)
                    .bind(model)
                    .bind(&content.digest[..])
                    .bind(&content.bytes[..])
                    .bind(content.held_out),
                Added::New,
            ),
        };
        query.execute(write.connection()).await.map_err(failed)?;
        Ok(added)
    }

    /// Milliseconds on the store's clock, which counts while it is open and never runs backward.
    pub(crate) fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.opened.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.opened_at_ms.saturating_add(elapsed)
    }

    /// Pending inputs that came before this have expired.
    pub(crate) fn oldest_waiting_ms(&self) -> i64 {
        let ttl = i64::try_from(self.limits.pending_ttl.as_millis()).unwrap_or(i64::MAX);
        self.now_ms().saturating_sub(ttl)
    }

    pub(crate) fn failed(&self, action: &'static str, source: sqlx::Error) -> SampleError {
        SampleError::from_sqlx(&self.path, action, source)
    }
}

/// A transaction and the turn to write.
pub(crate) struct Write<'a> {
    // Declared first, so dropped first: the rollback is queued before the next writer's turn.
    transaction: Transaction<'static, Sqlite>,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Write<'_> {
    pub(crate) fn connection(&mut self) -> &mut sqlx::SqliteConnection {
        &mut self.transaction
    }
}

/// An input as it is stored.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: [u8; 32],
    pub(crate) held_out: bool,
}

impl Content {
    pub(crate) fn of(input: &[f32]) -> Content {
        let bytes = held_out::bytes(input);
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let held_out = held_out::falls_below(&digest, held_out::SHARE);
        Content { bytes, digest, held_out }
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
