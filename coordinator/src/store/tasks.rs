//! Tasks, their persisted state, accepted updates, finished rounds, and the clock they count in.
//! One transaction a step: what a step changed is on disk together, or not at all.

use std::collections::BTreeMap;

use prost::bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::migrate;
use super::models::{self, ModelRow};
use super::{Store, StoreError, damaged, wall_clock_ms};
use crate::rounds::state::{AssignmentId, Phase, RoundRecord, TaskState, TrainedUpdate, WorkStatus};

/// A task as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// The task file as the operator sent it.
    pub specification: String,
    /// Where the task is.
    pub state: TaskState,
    /// Wall clock.
    pub created_ms: i64,
}

/// A finished round as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundRow {
    /// What happened.
    pub record: RoundRecord,
    /// Update payloads that came in.
    pub bytes_up: u64,
    /// Model files that went out for the version that the round minted.
    pub bytes_down: u64,
    /// Wall clock.
    pub ended_ms: i64,
}

/// An accepted update as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateRow {
    /// Digest of the payload.
    pub sha256: [u8; 32],
}

/// Everything that one step changes.
#[derive(Debug)]
pub struct StepChange<'a> {
    /// The state after the step.
    pub state: &'a TaskState,
    /// Persisted elapsed time.
    pub elapsed_ms: u64,
    /// Updates that the step accepted.
    pub updates: &'a [Accepted],
    /// A version that the step minted; its files are written already.
    pub minted: Option<&'a ModelRow>,
    /// Rounds that the step ended.
    pub rounds: &'a [RoundRow],
}

/// An accepted update on its way into the database.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What it answers.
    pub assignment: AssignmentId,
    /// Whose it is.
    pub node: String,
    /// What is known of it.
    pub update: TrainedUpdate,
    /// A small update's payload; that of others is a file of the spool already.
    pub payload: Option<Bytes>,
}

impl Store {
    /// Adds a task.
    ///
    /// # Errors
    /// [`StoreError::Database`]; a unique-key violation if a task already runs on the lineage.
    pub async fn insert_task(&self, specification: &str, model: &str, state: &TaskState) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO tasks (id, specification, model, state, ended, created_ms) VALUES (?, ?, ?, ?, 0, ?)")
            .bind(&state.task_id)
            .bind(specification)
            .bind(model)
            .bind(encode(state)?)
            .bind(wall_clock_ms())
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(self.database("recording a task"))
    }

    /// Persists a step: state, clock, and what came with it, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::Database`]; nothing of the step is stored then.
    pub async fn save_step(&self, change: &StepChange<'_>) -> Result<(), StoreError> {
        let state = encode(change.state)?;
        let records: Result<Vec<String>, _> =
            change.rounds.iter().map(|row| serde_json::to_string(&row.record)).collect();
        let records = records.map_err(|e| damaged("round record", e))?;
        let write = async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("UPDATE tasks SET state = ?, ended = ? WHERE id = ?")
                .bind(&state)
                .bind(i64::from(matches!(change.state.phase, Phase::Ended { .. })))
                .bind(&change.state.task_id)
                .execute(&mut *tx)
                .await?;
            sqlx::query("UPDATE clock SET elapsed_ms = MAX(elapsed_ms, ?)")
                .bind(change.elapsed_ms as i64)
                .execute(&mut *tx)
                .await?;
            for accepted in change.updates {
                insert_update(&mut tx, change.state, accepted).await?;
            }
            if let Some(row) = change.minted {
                models::insert(&mut *tx, row).await?;
            }
            for (row, record) in change.rounds.iter().zip(&records) {
                insert_round(&mut tx, change.state, row, record).await?;
                drop_payloads(&mut tx, &row.record).await?;
            }
            if matches!(change.state.phase, Phase::Ended { .. }) {
                sqlx::query("UPDATE updates SET payload = NULL WHERE task_id = ? AND payload IS NOT NULL")
                    .bind(&change.state.task_id)
                    .execute(&mut *tx)
                    .await?;
            }
            fail::fail_point!("step_before_commit");
            tx.commit().await
        };
        write.await.map_err(self.database("recording a step of a task"))
    }

    /// All tasks, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tasks(&self) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query("SELECT specification, state, created_ms FROM tasks ORDER BY created_ms, id")
            .fetch_all(&self.pool)
            .await
            .map_err(self.database("listing tasks"))?;
        rows.iter().map(read_task).collect()
    }

    /// One task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn task(&self, id: &str) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query("SELECT specification, state, created_ms FROM tasks WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(self.database("finding a task"))?;
        row.as_ref().map(read_task).transpose()
    }

    /// A task's finished rounds after this one, in order; 0: all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rounds(&self, task_id: &str, after: u64) -> Result<Vec<RoundRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT record, bytes_up, bytes_down, ended_ms FROM rounds WHERE task_id = ? AND round > ? ORDER BY round",
        )
        .bind(task_id)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(self.database("listing rounds"))?;
        rows.iter().map(read_round).collect()
    }

    /// The accepted update of an assignment, also after its round.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn update(&self, assignment: AssignmentId) -> Result<Option<UpdateRow>, StoreError> {
        let row: Option<Vec<u8>> = sqlx::query_scalar("SELECT sha256 FROM updates WHERE assignment = ?")
            .bind(assignment.0.to_vec())
            .fetch_optional(&self.pool)
            .await
            .map_err(self.database("finding an update"))?;
        row.map(|bytes| {
            let sha256 = bytes.try_into().map_err(|_| damaged("update", "its digest is not 32 bytes"))?;
            Ok(UpdateRow { sha256 })
        })
        .transpose()
    }

    /// The payload of a small update whose round is not over.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not there.
    pub async fn payload(&self, assignment: AssignmentId) -> Result<Bytes, StoreError> {
        let row: Option<Option<Vec<u8>>> = sqlx::query_scalar("SELECT payload FROM updates WHERE assignment = ?")
            .bind(assignment.0.to_vec())
            .fetch_optional(&self.pool)
            .await
            .map_err(self.database("reading an update"))?;
        let payload = row.flatten().ok_or_else(|| damaged(format!("update {assignment}"), "its payload is gone"))?;
        Ok(payload.into())
    }

    /// Counts a refused update.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn count_refusal(&self, task_id: &str, reason: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO refusals (task_id, reason, count) VALUES (?, ?, 1) \
             ON CONFLICT (task_id, reason) DO UPDATE SET count = count + 1",
        )
        .bind(task_id)
        .bind(reason)
        .execute(&self.pool)
        .await
        .map(|_| ())
        .map_err(self.database("counting a refused update"))
    }

    /// Refused updates of a task, by reason.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn refusals(&self, task_id: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT reason, count FROM refusals WHERE task_id = ?")
            .bind(task_id)
            .fetch_all(&self.pool)
            .await
            .map_err(self.database("listing refused updates"))?;
        Ok(rows.into_iter().map(|(reason, count)| (reason, count as u64)).collect())
    }

    /// Persists the elapsed time between steps.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn save_elapsed(&self, elapsed_ms: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE clock SET elapsed_ms = MAX(elapsed_ms, ?)")
            .bind(elapsed_ms as i64)
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(self.database("recording the clock"))
    }

    /// The elapsed milliseconds that were persisted last.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn elapsed_ms(&self) -> Result<u64, StoreError> {
        let elapsed: i64 = sqlx::query_scalar("SELECT elapsed_ms FROM clock")
            .fetch_one(&self.pool)
            .await
            .map_err(self.database("reading the clock"))?;
        Ok(elapsed as u64)
    }
}

async fn insert_update(
    tx: &mut sqlx::SqliteConnection,
    state: &TaskState,
    accepted: &Accepted,
) -> Result<(), sqlx::Error> {
    let Accepted { assignment, node, update, payload } = accepted;
    sqlx::query(
        "INSERT INTO updates (assignment, task_id, round, node, sha256, bytes, examples, committed_ms, payload) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(assignment.0.to_vec())
    .bind(&state.task_id)
    .bind(state.round as i64)
    .bind(node)
    .bind(update.sha256.to_vec())
    .bind(update.bytes as i64)
    .bind(update.examples as i64)
    .bind(wall_clock_ms())
    .bind(payload.as_deref())
    .execute(tx)
    .await
    .map(|_| ())
}

/// The payloads of a round that is over are not needed any more; its receipts stay.
async fn drop_payloads(tx: &mut sqlx::SqliteConnection, record: &RoundRecord) -> Result<(), sqlx::Error> {
    for (id, work) in &record.work {
        if matches!(work.status, WorkStatus::Trained(_)) {
            sqlx::query("UPDATE updates SET payload = NULL WHERE assignment = ? AND payload IS NOT NULL")
                .bind(id.0.to_vec())
                .execute(&mut *tx)
                .await?;
        }
    }
    Ok(())
}

async fn insert_round(
    tx: &mut sqlx::SqliteConnection,
    state: &TaskState,
    row: &RoundRow,
    record: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO rounds (task_id, round, record, bytes_up, bytes_down, ended_ms) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(&state.task_id)
        .bind(row.record.round as i64)
        .bind(record)
        .bind(row.bytes_up as i64)
        .bind(row.bytes_down as i64)
        .bind(row.ended_ms)
        .execute(tx)
        .await
        .map(|_| ())
}

fn encode(state: &TaskState) -> Result<String, StoreError> {
    serde_json::to_string(state).map_err(|e| damaged("task state", e))
}

fn read_task(row: &SqliteRow) -> Result<TaskRow, StoreError> {
    let read = || -> Result<(String, String, i64), sqlx::Error> {
        Ok((row.try_get("specification")?, row.try_get("state")?, row.try_get("created_ms")?))
    };
    let (specification, state, created_ms) = read().map_err(|e| damaged("task row", e))?;
    let state: serde_json::Value = serde_json::from_str(&state).map_err(|e| damaged("task state", e))?;
    let state = migrate::task_state(state).map_err(|e| damaged("task state", e))?;
    let state: TaskState = serde_json::from_value(state).map_err(|e| damaged("task state", e))?;
    Ok(TaskRow { specification, state, created_ms })
}

fn read_round(row: &SqliteRow) -> Result<RoundRow, StoreError> {
    let read = || -> Result<(String, i64, i64, i64), sqlx::Error> {
        Ok((row.try_get("record")?, row.try_get("bytes_up")?, row.try_get("bytes_down")?, row.try_get("ended_ms")?))
    };
    let (record, bytes_up, bytes_down, ended_ms) = read().map_err(|e| damaged("round row", e))?;
    let record: serde_json::Value = serde_json::from_str(&record).map_err(|e| damaged("round record", e))?;
    let record = migrate::round_record(record).map_err(|e| damaged("round record", e))?;
    let record = serde_json::from_value(record).map_err(|e| damaged("round record", e))?;
    Ok(RoundRow { record, bytes_up: bytes_up as u64, bytes_down: bytes_down as u64, ended_ms })
}
