//! A running task in the coordinator's memory, and what the host knows of the scenario.
//! Everything of a task can be built again from the database and the disk.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::Scales;
use fedge_coordinator::rounds::state::{AssignmentId, Phase, TaskState, WorkStatus};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_coordinator::store::models::ModelRow;
use fedge_models::{Digest, Manifest, Preprocessing};

use super::Coordinator;
use crate::faults::arithmetic::{Lineage, file_of};
use crate::faults::disk::{Folder, Name};
use crate::faults::message::Host;

/// What the host knows of the scenario.
#[derive(Debug)]
pub struct Setup {
    /// The lineages.
    pub lineages: Vec<Arc<Lineage>>,
    /// The nodes' names; node n is host n + 1.
    pub nodes: Vec<String>,
    /// The scenario's task files, with their lineages.
    pub tasks: Vec<(u8, String)>,
    /// Updates up to this size are rows.
    pub row_bytes: u64,
    /// Quota of the spool.
    pub spool_bytes: u64,
    /// A moment of the real clock, which nothing is decided by.
    pub began: std::time::Instant,
}

impl Setup {
    /// A node's name.
    pub fn name(&self, node: Host) -> &str {
        usize::from(node).checked_sub(1).and_then(|index| self.nodes.get(index)).map_or("", String::as_str)
    }

    /// A lineage by name.
    pub fn lineage(&self, name: &str) -> Option<(u8, &Arc<Lineage>)> {
        let found = self.lineages.iter().position(|lineage| lineage.name == name)?;
        self.lineages.get(found).map(|lineage| (found as u8, lineage))
    }
}

/// A version in the coordinator's memory.
#[derive(Debug, Clone)]
pub(in crate::faults) struct Base {
    pub(super) number: u64,
    pub(super) digest: Digest,
    pub(super) values: Arc<Vec<f32>>,
    pub(super) scales: Arc<Scales>,
}

/// A running task.
#[derive(Debug)]
pub(in crate::faults) struct Running {
    pub(super) spec: Arc<TaskSpec>,
    /// Which of the scenario's tasks it is.
    pub(super) index: u8,
    pub(super) state: TaskState,
    pub(super) base: Base,
    /// The round's sum.
    pub(super) sum: Option<u64>,
    /// The round whose version is being made.
    pub(super) making: Option<u64>,
}

impl Running {
    /// Accepted updates of the round that is under way.
    pub(super) fn trained(&self) -> Vec<AssignmentId> {
        let cohort = self.state.cohort().into_iter().flatten();
        cohort.filter(|(_, work)| matches!(work.status, WorkStatus::Trained(_))).map(|(id, _)| *id).collect()
    }
}

/// An index of `coverage::PHASES`.
pub(super) fn phase_index(state: &TaskState) -> usize {
    match state.phase {
        Phase::Waiting { .. } => 0,
        Phase::Training { .. } => 1,
        Phase::Aggregating { .. } => 2,
        Phase::Evaluating { .. } => 3,
        Phase::Ended { .. } => 4,
    }
}

/// The phase in a word.
pub(super) fn phase_of(state: &TaskState) -> &'static str {
    crate::faults::coverage::PHASES.get(phase_index(state)).copied().unwrap_or("ended")
}

/// The row of a version of a lineage.
pub(super) fn row(lineage: &Lineage, number: u64, digest: Digest, parent: Option<Digest>, created_ms: i64) -> ModelRow {
    let manifest = Manifest {
        schema: 1,
        name: lineage.name.clone(),
        number,
        digest,
        layout: lineage.layout.digest(),
        labels: Vec::new(),
        preprocessing: Preprocessing::default(),
        parent,
        task: None,
        round: None,
    };
    let manifest_json = serde_json::to_string(&manifest).unwrap_or_default();
    ModelRow { manifest, manifest_json, size_bytes: lineage.len() as u64 * 4, created_ms }
}

impl Coordinator {
    /// Version 1 of each lineage is there.
    pub(super) fn publish(&mut self) {
        for (index, lineage) in self.setup.lineages.clone().iter().enumerate() {
            let (name, file) = (Name::Version(index as u8, 1), file_of(&lineage.first()));
            self.disk.create(name);
            let _ = self.disk.append(name, &file) && self.disk.sync(name);
            self.disk.sync_folder(Folder::Versions);
            let row = row(lineage, 1, Digest::of(&file), None, 0);
            self.database.versions.insert((lineage.name.clone(), 1), row);
        }
    }
}
