//! Inputs of answered requests that wait for a label, and the one task that writes them without holding up a reply.
//! Labelled samples are in `store`; the RPC that brings labels is in `feedback`.

use std::sync::Arc;

use sqlx::Row;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::store::{Content, Inner, decode};
use super::{Added, SampleError, SampleId, SampleStore, retention};

/// Inputs that wait to be written, at most.
const QUEUE: usize = 256;
/// Their bytes together at most, in KiB.
const QUEUE_KIB: u32 = 64 << 10;

/// What labelling a pending input did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The model that had answered.
    pub model: String,
    /// What became of the sample.
    pub added: Added,
}

const WAITING: i64 = 0;
const LABELLED: i64 = 1;
const DROPPED: i64 = 2;

impl SampleStore {
    /// Keeps the input of an answered request of `model` until a label comes; it is on disk when this returns.
    /// At most `Limits::max_pending` wait, each at most `Limits::pending_ttl`; the oldest goes first.
    pub async fn keep_pending(&self, model: &str, input: &[f32]) -> Result<SampleId, SampleError> {
        self.inner.check(input)?;
        let id = SampleId::mint();
        let kept = Kept { id, model: model.to_owned(), input: input.to_vec() };
        self.inner.write_pending(std::slice::from_ref(&kept)).await?;
        Ok(id)
    }

    /// Like [`SampleStore::keep_pending`], but only queues the input for the writer and never waits. `None` when the
    /// queue is full or the input must not be kept: serving comes first. A label that comes at once finds the input,
    /// a crash within the next milliseconds loses it.
    pub fn try_keep_pending(&self, model: &str, input: Vec<f32>) -> Option<SampleId> {
        self.inner.check(&input).ok()?;
        self.writer.queue(model, input)
    }

    /// The model and the number of input values of a pending id; errors as [`SampleStore::label_pending`].
    pub async fn pending(&self, id: &SampleId) -> Result<(String, usize), SampleError> {
        match self.inner.find_pending(id).await {
            // It may still be on its way to the disk.
            Err(SampleError::UnknownId { .. }) => {
                self.writer.flush().await;
                self.inner.find_pending(id).await
            }
            found => found,
        }
    }

    /// Turns a pending input into a labelled sample; it is on disk when this returns. The label's range is the
    /// caller's to check, with [`SampleStore::pending`]. Errors: `UnknownId`, `Expired`, `AlreadyLabelled`.
    pub async fn label_pending(&self, id: &SampleId, label: u32) -> Result<Labelled, SampleError> {
        self.pending(id).await?;
        let inner = &self.inner;
        let failed = |error| inner.failed("write", error);
        let mut write = inner.begin().await?;
        // The state is part of the condition, because another label may have come since it was looked at.
        let row = sqlx::query("SELECT model, input FROM pending WHERE id = ? AND state = ?")
            .bind(&id.as_bytes()[..])
            .bind(WAITING)
            .fetch_optional(write.connection())
            .await
            .map_err(failed)?;
        let Some(row) = row else {
            drop(write);
            return Err(match inner.find_pending(id).await {
                Err(error) => error,
                Ok(_) => SampleError::UnknownId { id: *id },
            });
        };
        let model: String = row.try_get(0).map_err(failed)?;
        let input = decode(row.try_get(1).map_err(failed)?);
        let added = inner.insert(&mut write, &model, &input, label).await?;
        sqlx::query("UPDATE pending SET state = ?, input = x'' WHERE id = ?")
            .bind(LABELLED)
            .bind(&id.as_bytes()[..])
            .execute(write.connection())
            .await
            .map_err(failed)?;
        retention::evict(&mut write, &inner.limits).await.map_err(failed)?;
        inner.commit(write).await?;
        Ok(Labelled { model, added })
    }
}

impl Inner {
    async fn find_pending(&self, id: &SampleId) -> Result<(String, usize), SampleError> {
        let failed = |error| self.failed("read", error);
        let row = sqlx::query("SELECT model, bytes, state, received_ms FROM pending WHERE id = ?")
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?
            .ok_or(SampleError::UnknownId { id: *id })?;
        let bytes: i64 = row.try_get(1).map_err(failed)?;
        let state: i64 = row.try_get(2).map_err(failed)?;
        let received_ms: i64 = row.try_get(3).map_err(failed)?;
        match state {
            LABELLED => Err(SampleError::AlreadyLabelled { id: *id }),
            WAITING if received_ms >= self.oldest_waiting_ms() => {
                let len = usize::try_from(bytes).unwrap_or(0) / size_of::<f32>();
                Ok((row.try_get(0).map_err(failed)?, len))
            }
            _ => Err(SampleError::Expired { id: *id }),
        }
    }

    /// Writes a batch in one transaction and drops what is too much or too old.
    async fn write_pending(&self, batch: &[Kept]) -> Result<(), SampleError> {
        let failed = |error| self.failed("write", error);
        let mut write = self.begin().await?;
        for kept in batch {
            let content = Content::of(&kept.input);
            sqlx::query(
                "INSERT INTO pending (id, model, input, bytes, held_out, state, received_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(&kept.id.as_bytes()[..])
            .bind(&kept.model)
            .bind(&content.bytes[..])
            .bind(i64::try_from(content.bytes.len()).unwrap_or(i64::MAX))
            .bind(content.held_out)
            .bind(WAITING)
            .bind(self.now_ms())
            .execute(write.connection())
            .await
            .map_err(failed)?;
        }
        self.drop_surplus(&mut write).await.map_err(failed)?;
        self.commit(write).await
    }

    async fn drop_surplus(&self, write: &mut super::store::Write<'_>) -> Result<(), sqlx::Error> {
        let max_pending = i64::try_from(self.limits.max_pending).unwrap_or(i64::MAX);
        let max_bytes = i64::try_from(self.limits.max_bytes / 4).unwrap_or(i64::MAX);
        sqlx::query(
            "UPDATE pending SET state = ?, input = x'' WHERE state = ? AND (received_ms < ? OR sequence IN (
                 SELECT sequence FROM (
                     SELECT sequence, row_number() OVER newest AS place, sum(bytes) OVER newest AS total
                     FROM pending WHERE state = ? WINDOW newest AS (ORDER BY sequence DESC))
                 WHERE place > ? OR total > ?))",
        )
        .bind(DROPPED)
        .bind(WAITING)
        .bind(self.oldest_waiting_ms())
        .bind(WAITING)
        .bind(max_pending)
        .bind(max_bytes)
        .execute(write.connection())
        .await?;
        // Rows without input only serve a clear answer; ten times the bound of them is enough.
        sqlx::query(
            "DELETE FROM pending WHERE state <> ? AND sequence <= (SELECT max(sequence) FROM pending) - ? * 10",
        )
        .bind(WAITING)
        .bind(max_pending.min(i64::MAX / 10))
        .execute(write.connection())
        .await?;
        Ok(())
    }
}

/// An input on its way to the disk.
#[derive(Debug)]
struct Kept {
    id: SampleId,
    model: String,
    input: Vec<f32>,
}

enum Message {
    Keep(Kept, #[allow(dead_code, reason = "held until it is written")] OwnedSemaphorePermit),
    /// Answered when all that was queued before is written.
    Flush(oneshot::Sender<()>),
}

/// The queue to the task that writes pending inputs; the task ends when the last clone of the store is gone.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Message>,
    kib: Arc<Semaphore>,
}

impl Writer {
    pub(crate) fn start(inner: Arc<Inner>) -> Writer {
        let (queue, messages) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(inner, messages));
        Writer { queue, kib: Arc::new(Semaphore::new(QUEUE_KIB as usize)) }
    }

    fn queue(&self, model: &str, input: Vec<f32>) -> Option<SampleId> {
        let kib = u32::try_from(size_of_val(&input[..]).div_ceil(1024)).ok()?;
        let permit = Arc::clone(&self.kib).try_acquire_many_owned(kib).ok()?;
        let id = SampleId::mint();
        self.queue.try_send(Message::Keep(Kept { id, model: model.to_owned(), input }, permit)).ok()?;
        Some(id)
    }

    /// Waits until all that was queued before is written.
    pub(crate) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            // An error means that the task is gone, and with it what could be waited for.
            let _ = written.await;
        }
    }
}

async fn write_all(inner: Arc<Inner>, mut messages: mpsc::Receiver<Message>) {
    let mut batch = Vec::with_capacity(QUEUE);
    while messages.recv_many(&mut batch, QUEUE).await > 0 {
        let (mut kept, mut permits, mut flushes) = (Vec::new(), Vec::new(), Vec::new());
        for message in batch.drain(..) {
            match message {
                Message::Keep(one, permit) => {
                    kept.push(one);
                    permits.push(permit);
                }
                Message::Flush(done) => flushes.push(done),
            }
        }
        if !kept.is_empty()
            && let Err(error) = inner.write_pending(&kept).await
        {
            tracing::warn!(%error, lost = kept.len(), "inputs of answered requests could not be kept for labels");
        }
        for done in flushes {
            // The asker may have gone.
            let _ = done.send(());
        }
    }
}
