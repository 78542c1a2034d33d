//! The state of a task: what is persisted before anything is said or done, and what a finished round leaves behind.
//! How it changes is decided in `step`.

use std::collections::BTreeMap;
use std::fmt;

use fedge_models::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Identity of one piece of work: (kind, task, round, node, base version). An update answers one, once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentId(pub [u8; 16]);

impl AssignmentId {
    /// The id follows from what it stands for, so that a replay issues the same one.
    pub fn derive(kind: &str, task: &str, round: u64, node: &str, version: &Digest) -> AssignmentId {
        let mut hash = Sha256::new();
        for field in [kind.as_bytes(), task.as_bytes(), &round.to_be_bytes(), node.as_bytes(), version.as_bytes()] {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        AssignmentId(id)
    }
}

impl fmt::Display for AssignmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AssignmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AssignmentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AssignmentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut id = [0; 16];
        hex::decode_to_slice(&text, &mut id).map_err(serde::de::Error::custom)?;
        Ok(AssignmentId(id))
    }
}

/// A version of the task's lineage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRef {
    /// Counts up from 1.
    pub number: u64,
    /// SHA-256 of the ONNX file.
    pub digest: Digest,
}

/// The arrays that the strategy keeps between rounds (momentum, control variate), one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its size.
    pub size_bytes: u64,
}

/// A cohort's assignments of one round.
pub type Assignments = BTreeMap<AssignmentId, Work>;

/// Everything that a restart needs to go on with a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskState {
    /// Version of this format.
    pub schema: u32,
    /// The task.
    pub task_id: String,
    /// The newest global model.
    pub base: VersionRef,
    /// What the strategy keeps beside it; none before the first round.
    pub server: Option<ServerState>,
    /// The round that runs or ran last; 0 before the first. Of an asynchronous task: the buffer.
    pub round: u64,
    /// Assignments that an asynchronous task has given out so far: each gets a number of its own.
    pub issued: u64,
    /// Assignments of an asynchronous task that go on while a version is made and evaluated.
    pub outstanding: Assignments,
    /// The operator wants no new round.
    pub paused: bool,
    /// Rounds that may still begin before drift is waited for again; 0 where rounds don't wait for it.
    #[serde(default)]
    pub rounds_asked: u64,
    /// Where the task is.
    pub phase: Phase,
}

/// Version of the format of [`TaskState`] and [`RoundRecord`].
pub const STATE_SCHEMA: u32 = 2;

impl TaskState {
    /// A task before its first round.
    pub fn new(task_id: String, base: VersionRef) -> TaskState {
        TaskState {
            schema: STATE_SCHEMA,
            task_id,
            base,
            server: None,
            round: 0,
            issued: 0,
            outstanding: BTreeMap::new(),
            paused: false,
            rounds_asked: 0,
            phase: Phase::Waiting { not_before_ms: 0 },
        }
    }

    /// The training assignments of the round that is under way, those that go on beside it not included.
    pub fn cohort(&self) -> Option<&Assignments> {
        match &self.phase {
            Phase::Training { work, .. } | Phase::Aggregating { work, .. } => Some(work),
            Phase::Evaluating { trained, .. } => Some(trained),
            Phase::Waiting { .. } | Phase::Ended { .. } => None,
        }
    }

    /// Every training assignment that may still matter.
    pub fn assignments(&self) -> impl Iterator<Item = AssignmentId> {
        self.cohort().into_iter().flatten().chain(&self.outstanding).map(|(id, _)| *id)
    }

    /// A training assignment of the round that is under way, or one that goes on beside it.
    pub fn work(&self, id: AssignmentId) -> Option<&Work> {
        self.cohort().and_then(|work| work.get(&id)).or_else(|| self.outstanding.get(&id))
    }

    /// What a node should train now.
    pub fn training_of(&self, node: &str) -> Option<(AssignmentId, &Work)> {
        let cohort = matches!(self.phase, Phase::Training { .. }).then(|| self.cohort()).flatten();
        let all = cohort.into_iter().flatten().chain(&self.outstanding);
        all.map(|(id, work)| (*id, work)).find(|(_, work)| work.node == node && work.status.is_open())
    }

    /// The node whose evaluation this is.
    pub fn evaluator(&self, id: AssignmentId) -> Option<&str> {
        let Phase::Evaluating { checks, .. } = &self.phase else { return None };
        checks.iter().find(|(_, (check, _))| *check == id).map(|(node, _)| node.as_str())
    }

    /// What a node should evaluate now.
    pub fn evaluation_of(&self, node: &str) -> Option<AssignmentId> {
        let Phase::Evaluating { checks, .. } = &self.phase else { return None };
        let (id, status) = checks.get(node)?;
        matches!(status, CheckStatus::Assigned | CheckStatus::Lost).then_some(*id)
    }
}

/// The phases of a task. Times are persisted elapsed milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// For enough available nodes.
    Waiting {
        /// After a failed round, the next one does not start before this.
        not_before_ms: u64,
    },
    /// The cohort trains and uploads.
    Training {
        /// When the cohort was selected.
        started_ms: u64,
        /// When the round closes with what it has. An asynchronous one doesn't: each assignment has a deadline there.
        deadline_ms: u64,
        /// Nodes that were available when the cohort was selected.
        population: usize,
        /// The cohort.
        work: Assignments,
    },
    /// The updates are in; the next version is being made.
    Aggregating {
        /// When the cohort was selected.
        started_ms: u64,
        /// Nodes that were available when the cohort was selected.
        population: usize,
        /// The cohort.
        work: Assignments,
    },
    /// Nodes evaluate the new version on their held-out parts.
    Evaluating {
        /// When the cohort was selected.
        started_ms: u64,
        /// When evaluation closes with what it has.
        deadline_ms: u64,
        /// The cohort's work, for the record.
        trained: Assignments,
        /// Who evaluates.
        checks: BTreeMap<String, (AssignmentId, CheckStatus)>,
    },
    /// Nothing more will happen.
    Ended {
        /// How it ended.
        outcome: TaskOutcome,
    },
}

impl Phase {
    /// When the round began that is under way, if one is.
    pub fn started_ms(&self) -> Option<u64> {
        match self {
            Phase::Training { started_ms, .. }
            | Phase::Aggregating { started_ms, .. }
            | Phase::Evaluating { started_ms, .. } => Some(*started_ms),
            Phase::Waiting { .. } | Phase::Ended { .. } => None,
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutcome {
    /// All rounds ran.
    Finished,
    /// The operator ended it.
    Cancelled,
}

/// One node's training assignment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Whose it is.
    pub node: String,
    /// The version to train.
    pub base: VersionRef,
    /// When it was given out.
    pub issued_ms: u64,
    /// How far it is.
    pub status: WorkStatus,
}

/// How far a training assignment is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkStatus {
    /// Waited for.
    Assigned,
    /// The node is gone; not waited for unless it comes back.
    Lost,
    /// The node can't, and why.
    Declined(String),
    /// Its update is committed.
    Trained(TrainedUpdate),
}

impl WorkStatus {
    /// An update may still come.
    pub fn is_open(&self) -> bool {
        matches!(self, WorkStatus::Assigned | WorkStatus::Lost)
    }
}

/// A committed update, without its payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainedUpdate {
    /// Weight in the average, 1..=2^20.
    pub examples: u64,
    /// Digest of the payload.
    pub sha256: [u8; 32],
    /// Payload size.
    pub bytes: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the first local epoch.
    pub loss_first: f32,
    /// Mean loss of the last local epoch.
    pub loss_last: f32,
    /// Wall time of the training on the node.
    pub duration_ms: u64,
    /// Mean loss of the base version on the node's training samples, where the strategy asks for it.
    pub loss_base: Option<f32>,
    /// Training stopped at the deadline, before its last epoch ended.
    pub partial: bool,
    /// Squared L2 norm of the trainable values.
    #[serde(with = "exact")]
    pub squared_norm: f64,
}

/// How far a node's evaluation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Waited for.
    Assigned,
    /// The node is gone.
    Lost,
    /// The node can't, and why.
    Declined(String),
    /// Its result.
    Done(Evaluation),
}

/// Result on one node's held-out part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Held-out samples.
    pub examples: u64,
    /// Right answers of the float model.
    pub correct_float: u64,
    /// Right answers of what the node serves.
    pub correct_served: u64,
    /// Mean loss of the float model.
    pub loss: f32,
    /// "int8" or "float".
    pub precision: String,
}

/// What a finished round leaves behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Version of this format, [`STATE_SCHEMA`].
    pub schema: u32,
    /// The round.
    pub round: u64,
    /// What came of it.
    pub outcome: RoundOutcome,
    /// From selection to the end of evaluation.
    pub duration_ms: u64,
    /// The cohort's work.
    pub work: Assignments,
    /// The nodes' evaluations.
    pub checks: BTreeMap<String, (AssignmentId, CheckStatus)>,
}

/// What came of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundOutcome {
    /// It minted this version.
    Aggregated(VersionRef),
    /// It minted none, and why.
    Failed(String),
}

impl fmt::Display for RoundOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoundOutcome::Aggregated(version) => write!(f, "version {}", version.number),
            RoundOutcome::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// A number that a restart has to find bit for bit, as text: `serde_json` may read a JSON number's last bit wrongly, and a
/// version would depend on whether the coordinator was restarted.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Number(f64),
    }

    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        match Stored::deserialize(from)? {
            Stored::Text(text) => text.parse().map_err(D::Error::custom),
            Stored::Number(value) => Ok(value),
        }
    }
}
