//! What must hold of the coordinator's records: receipts, rounds, versions. Fed with every transaction that takes effect.
//! The names of the invariants are in `invariants`; the versions are made again here, undisturbed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::Scales;
use fedge_coordinator::rounds::state::{
    AssignmentId, Phase, RoundOutcome, RoundRecord, TaskOutcome, TaskState, TrainedUpdate, WorkStatus,
};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_coordinator::store::models::ModelRow;
use fedge_models::Digest;

use super::arithmetic::{self, Lineage, file_of, kept_of, payload};
use super::database::{Accepted, Change};
use super::invariants::{Checks, Counted, Invariant};
use super::message::{Host, Sha, task_number};

/// An update that was recorded, and may be acknowledged.
#[derive(Debug)]
pub struct Receipt {
    /// Whose it is.
    pub node: Host,
    /// The task's id.
    pub task: String,
    /// Digest of the payload.
    pub sha256: Sha,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a recorded update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will count.
    Open,
    /// It is in this version.
    In(u64),
    /// Its round, or its task, ended without it.
    Without,
}

/// A recorded version.
#[derive(Debug)]
pub struct VersionFacts {
    /// Digest of its file.
    pub digest: Digest,
    /// Its values.
    pub values: Vec<f32>,
    /// Its round's scales.
    pub scales: Option<Arc<Scales>>,
    /// What its task's strategy keeps beside it.
    pub kept: Option<Vec<u8>>,
}

impl VersionFacts {
    /// A lineage's version 1.
    pub fn first(lineage: &Lineage) -> VersionFacts {
        let values = lineage.first();
        let scales = lineage.scales(&values).ok();
        VersionFacts { digest: Digest::of(&file_of(&values)), values, scales, kept: None }
    }
}

impl Checks {
    /// A step takes effect. `before`: the recorded state that it replaces; `folded`: the updates in the version that it
    /// brings, as they were added to its sums.
    pub fn recorded(&mut self, spec: &TaskSpec, before: &TaskState, change: &Change<'_>, folded: &[AssignmentId]) {
        self.clock_recorded(change.elapsed_ms);
        for accepted in change.updates {
            self.accepted(&change.state.task_id, accepted);
        }
        if let Some(row) = change.minted {
            self.minted(spec, before, change.state, row, folded);
        }
        for record in change.rounds {
            self.closed(&change.state.task_id, record);
        }
        self.open_receipts(spec, change.state);
        self.assignments(change.state);
    }

    /// A receipt is given. `lasts`: its payload is on disk.
    pub fn acknowledged(&mut self, id: AssignmentId, sha256: &Sha, lasts: bool) {
        let receipt = self.receipts.get(&id);
        let recorded = receipt.is_some_and(|receipt| receipt.sha256 == *sha256);
        let needed = receipt.is_some_and(|receipt| receipt.fate == Fate::Open);
        self.require(recorded, Invariant::SavedBeforeSpoken, || format!("{id} is acknowledged and not recorded"));
        self.require(lasts || !needed, Invariant::SavedBeforeSpoken, || {
            format!("{id} is acknowledged, and a crash could take its payload away")
        });
    }

    /// The run is over: nothing is open any more.
    pub fn all_settled(&mut self) {
        let open = self.receipts.iter().find(|(_, receipt)| receipt.fate == Fate::Open).map(|(id, _)| *id);
        if let Some(id) = open {
            self.fail(Invariant::ReceiptsCountOnce, format!("all tasks ended, and nothing became of update {id}"));
        }
    }

    fn accepted(&mut self, task: &str, accepted: &Accepted) {
        let Accepted { id, node, update, .. } = accepted;
        let receipt = Receipt { node: *node, task: task.to_owned(), sha256: update.sha256, fate: Fate::Open };
        if self.receipts.insert(*id, receipt).is_some() {
            self.fail(Invariant::ReceiptsCountOnce, format!("{id} was recorded twice"));
        }
        self.touched.push(*node);
        let Some(learned) = self.trained.get(&(id.0, update.sha256)) else {
            self.fail(Invariant::OneAnswer, format!("{id} was recorded with a payload that no node made"));
            return;
        };
        let Counted { learned: all, sent } = self.counted.entry((*node, task_number(task))).or_default();
        all.resize(learned.delta.len(), 0);
        sent.resize(learned.delta.len(), 0);
        all.iter_mut().zip(&learned.delta).for_each(|(sum, whole)| *sum += i64::from(*whole));
        sent.iter_mut().zip(&learned.sent).for_each(|(sum, whole)| *sum += i64::from(*whole));
    }

    fn minted(
        &mut self,
        spec: &TaskSpec,
        before: &TaskState,
        state: &TaskState,
        row: &ModelRow,
        folded: &[AssignmentId],
    ) {
        let (task, number, name) = (&before.task_id, row.manifest.number, &row.manifest.name);
        if !self.minted.insert((task.clone(), before.round)) {
            self.fail(Invariant::RoundsCloseOnce, format!("round {} of {task} brings a second version", before.round));
        }
        let expected: BTreeSet<AssignmentId> =
            before.cohort().into_iter().flatten().filter(trained).map(|(id, _)| *id).collect();
        let found: BTreeSet<AssignmentId> = folded.iter().copied().collect();
        self.require(found == expected && folded.len() == expected.len(), Invariant::ReceiptsCountOnce, || {
            format!("version {number} of {name} was made of {folded:?}, accepted were {expected:?}")
        });
        for id in folded {
            match self.receipts.get_mut(id).filter(|receipt| receipt.fate == Fate::Open) {
                Some(receipt) => receipt.fate = Fate::In(number),
                None => self.fail(Invariant::ReceiptsCountOnce, format!("{id} counts again, in version {number}")),
            }
        }
        let newest = self.versions.get(name).map_or(0, |all| all.len() as u64);
        let next = number == newest + 1 && state.base.number == number && before.base.number == newest;
        self.require(next, Invariant::VersionsGrowByOne, || format!("version {number} of {name} after {newest}"));
        match self.again(spec, before, name) {
            Err(problem) => self.fail(Invariant::SameUpdatesSameBits, problem),
            Ok(facts) => {
                let kept = facts.kept.as_ref().map(|file| Digest::of(file));
                let same = facts.digest == row.manifest.digest && kept == state.server.as_ref().map(|s| s.digest);
                self.require(same, Invariant::SameUpdatesSameBits, || {
                    format!("version {number} of {name} is not what its updates make")
                });
                self.versions.entry(name.clone()).or_default().push(facts);
            }
        }
    }

    /// The version that the accepted updates of a round make, undisturbed.
    fn again(&self, spec: &TaskSpec, before: &TaskState, name: &str) -> Result<VersionFacts, String> {
        let Phase::Aggregating { population, .. } = before.phase else {
            return Err(format!("a version came while {:?}", before.phase));
        };
        let number = before.base.number as usize;
        let base = self.versions.get(name).and_then(|all| all.get(number.checked_sub(1)?));
        let lineage = self.lineages.iter().find(|lineage| lineage.name == name);
        let (Some(base), Some(lineage)) = (base, lineage) else {
            return Err(format!("{name} has no version {number}"));
        };
        let scales = base.scales.clone().ok_or("its base has no scales")?;
        // Another task of the lineage begins with nothing kept.
        let file = before.server.as_ref().and(base.kept.as_deref());
        let kept = kept_of(&spec.strategy, file, lineage.len());
        let sent = |id: AssignmentId, update: &TrainedUpdate| {
            self.trained.get(&(id.0, update.sha256)).map(|learned| payload(&learned.sent))
        };
        let made = arithmetic::undisturbed(spec, before, population, scales, &base.values, kept, sent);
        let made = made.map_err(|e| format!("the accepted updates of round {} make nothing: {e}", before.round))?;
        let kept = (!made.kept.is_empty()).then(|| made.kept_file());
        let scales = lineage.scales(&made.values).ok();
        Ok(VersionFacts { digest: made.digest(), values: made.values, scales, kept })
    }

    fn closed(&mut self, task: &str, record: &RoundRecord) {
        let last = self.closed.iter().filter(|(t, _)| t == task).map(|(_, round)| *round).max().unwrap_or(0);
        self.require(record.round == last + 1, Invariant::RoundsCloseOnce, || {
            format!("round {} of {task} is recorded after round {last}", record.round)
        });
        self.closed.insert((task.to_owned(), record.round));
        for (id, _) in record.work.iter().filter(trained) {
            let Some(receipt) = self.receipts.get_mut(id) else {
                self.fail(
                    Invariant::ReceiptsCountOnce,
                    format!("the record of round {} has {id}, unknown", record.round),
                );
                continue;
            };
            let holds = match (&record.outcome, receipt.fate) {
                (RoundOutcome::Aggregated(version), fate) => fate == Fate::In(version.number),
                (RoundOutcome::Failed(_), Fate::Open) => {
                    receipt.fate = Fate::Without;
                    true
                }
                (RoundOutcome::Failed(_), _) => false,
            };
            let fate = receipt.fate;
            self.require(holds, Invariant::ReceiptsCountOnce, || {
                format!("round {} of {task}: {}, but {id} is {fate:?}", record.round, record.outcome)
            });
        }
    }

    /// What was recorded and has not counted yet is in the state, or its task is over.
    fn open_receipts(&mut self, spec: &TaskSpec, state: &TaskState) {
        // An asynchronous task does not wait for what comes beside its last version.
        let is_last =
            state.round >= spec.rounds.count && matches!(state.phase, Phase::Evaluating { .. } | Phase::Ended { .. });
        let ends_without = spec.strategy.client().asynchronous.is_some() && is_last;
        let mut lost = None;
        let open = self.receipts.iter_mut().filter(|(_, r)| r.fate == Fate::Open && r.task == state.task_id);
        for (id, receipt) in open {
            match state.phase {
                Phase::Ended { outcome: TaskOutcome::Cancelled } => receipt.fate = Fate::Without,
                _ if ends_without => receipt.fate = Fate::Without,
                _ => {
                    let work = state.work(*id).map(|work| &work.status);
                    if !matches!(work, Some(WorkStatus::Trained(update)) if update.sha256 == receipt.sha256) {
                        lost = Some(*id);
                    }
                }
            }
        }
        if let Some(id) = lost {
            self.fail(Invariant::ReceiptsCountOnce, format!("update {id} was recorded, and its task forgot it"));
        }
    }

    /// A node has one open assignment of a task at most.
    fn assignments(&mut self, state: &TaskState) {
        let mut open: BTreeMap<&str, usize> = BTreeMap::new();
        let cohort = matches!(state.phase, Phase::Training { .. }).then(|| state.cohort()).flatten();
        for work in cohort.into_iter().flatten().chain(&state.outstanding).map(|(_, work)| work) {
            if work.status.is_open() {
                *open.entry(work.node.as_str()).or_default() += 1;
            }
        }
        let most = open.into_values().max().unwrap_or(0);
        self.bound("open assignments of one node", most, 1);
    }
}

fn trained(entry: &(&AssignmentId, &fedge_coordinator::rounds::state::Work)) -> bool {
    matches!(entry.1.status, WorkStatus::Trained(_))
}
