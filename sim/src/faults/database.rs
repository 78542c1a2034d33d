//! The coordinator's database as the hosts use it: transactions that are whole and lasting, or nothing. Unique keys are
//! refused. When a transaction is struck is decided in `env`.

use std::collections::BTreeMap;

use fedge_coordinator::rounds::state::{AssignmentId, Phase, RoundRecord, TaskState, TrainedUpdate, WorkStatus};
use fedge_coordinator::store::models::ModelRow;

use super::message::{Host, Sha};

/// A task as stored.
#[derive(Debug, Clone)]
pub struct TaskRow {
    /// The task file.
    pub text: String,
    /// Which of the scenario's tasks it is.
    pub index: u8,
    /// Where it is.
    pub state: TaskState,
    /// Wall clock, which may have jumped.
    pub created_ms: i64,
}

/// An accepted update as stored.
#[derive(Debug, Clone)]
pub struct UpdateRow {
    /// Whose it is.
    pub node: Host,
    /// Digest of the payload.
    pub sha256: Sha,
    /// A small one's payload, until its round is over.
    pub payload: Option<Vec<u8>>,
}

/// An accepted update on its way into the database.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What it answers.
    pub id: AssignmentId,
    /// Whose it is.
    pub node: Host,
    /// What is known of it.
    pub update: TrainedUpdate,
    /// A small one's payload.
    pub payload: Option<Vec<u8>>,
}

/// Everything that a step changes.
#[derive(Debug)]
pub struct Change<'a> {
    /// The state after it.
    pub state: &'a TaskState,
    /// Persisted elapsed time.
    pub elapsed_ms: u64,
    /// Updates that it accepted.
    pub updates: &'a [Accepted],
    /// The version that it brought.
    pub minted: Option<&'a ModelRow>,
    /// Rounds that it ended.
    pub rounds: &'a [RoundRecord],
}

/// The database.
#[derive(Debug, Default)]
pub struct Database {
    /// Tasks by id.
    pub tasks: BTreeMap<String, TaskRow>,
    /// Versions by lineage and number.
    pub versions: BTreeMap<(String, u64), ModelRow>,
    /// Accepted updates.
    pub updates: BTreeMap<AssignmentId, UpdateRow>,
    /// Ended rounds by task and number.
    pub rounds: BTreeMap<(String, u64), RoundRecord>,
    /// Persisted elapsed time.
    pub elapsed_ms: u64,
}

impl Database {
    /// Records a step.
    ///
    /// # Errors
    /// A key that is there already: nothing is recorded.
    pub fn save_step(&mut self, change: &Change<'_>) -> Result<(), String> {
        let task = &change.state.task_id;
        if let Some(row) = change.minted {
            let key = (row.manifest.name.clone(), row.manifest.number);
            if self.versions.contains_key(&key) {
                return Err(format!("version {} of {} is there already", key.1, key.0));
            }
        }
        if let Some(twice) = change.updates.iter().find(|accepted| self.updates.contains_key(&accepted.id)) {
            return Err(format!("an update for {} is there already", twice.id));
        }
        if let Some(twice) = change.rounds.iter().find(|r| self.rounds.contains_key(&(task.clone(), r.round))) {
            return Err(format!("round {} of {task} is there already", twice.round));
        }
        self.save_state(change.state);
        self.elapsed_ms = self.elapsed_ms.max(change.elapsed_ms);
        for Accepted { id, node, update, payload } in change.updates {
            let row = UpdateRow { node: *node, sha256: update.sha256, payload: payload.clone() };
            self.updates.insert(*id, row);
        }
        if let Some(row) = change.minted {
            self.versions.insert((row.manifest.name.clone(), row.manifest.number), row.clone());
        }
        for record in change.rounds {
            self.drop_payloads(record);
            self.rounds.insert((task.clone(), record.round), record.clone());
        }
        Ok(())
    }

    /// Records a state alone.
    pub fn save_state(&mut self, state: &TaskState) {
        if let Some(row) = self.tasks.get_mut(&state.task_id) {
            row.state.clone_from(state);
        }
    }

    /// The newest version of a lineage.
    pub fn newest(&self, lineage: &str) -> Option<&ModelRow> {
        self.versions.range((lineage.to_owned(), 0)..=(lineage.to_owned(), u64::MAX)).next_back().map(|(_, row)| row)
    }

    /// Tasks that have not ended, oldest first by the wall clock.
    pub fn running(&self) -> Vec<TaskRow> {
        let rows = self.tasks.values().filter(|row| !matches!(row.state.phase, Phase::Ended { .. }));
        let mut rows: Vec<TaskRow> = rows.cloned().collect();
        rows.sort_by(|a, b| (a.created_ms, &a.state.task_id).cmp(&(b.created_ms, &b.state.task_id)));
        rows
    }

    fn drop_payloads(&mut self, record: &RoundRecord) {
        for (id, work) in &record.work {
            if let (WorkStatus::Trained(_), Some(row)) = (&work.status, self.updates.get_mut(id)) {
                row.payload = None;
            }
        }
    }
}
