//! What must hold whatever goes wrong, by name. Here: what nodes owe, time, bounds, announced versions; what the
//! coordinator records is checked in `ledger`. The checks see everything and tell the hosts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use fedge_coordinator::rounds::state::AssignmentId;
use fedge_models::Digest;

use super::arithmetic::{Lineage, rest_of};
use super::clock::Ms;
use super::disk::Id;
use super::ledger::{Receipt, VersionFacts};
use super::message::{Host, Sha};
use super::trace::Short;

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// An update that was acknowledged is on disk, with its payload as long as its round is not over.
    SavedBeforeSpoken,
    /// Each acknowledged update is in one version, once; or its round, or its task, was recorded as ended without it.
    ReceiptsCountOnce,
    /// A round is recorded once, and brings one version at most.
    RoundsCloseOnce,
    /// Versions count up by one, and what was announced under a number stays what it is.
    VersionsGrowByOne,
    /// The accepted updates give the same bits, whatever happened on the way.
    SameUpdatesSameBits,
    /// Updates that were accepted can be added up and make a version; only a disk can be in the way.
    AcceptedUpdatesFit,
    /// What a node sent and was counted, and what its memory holds, are together what it learned for those updates.
    ResidualsAreConserved,
    /// One assignment is answered with one payload.
    OneAnswer,
    /// Persisted time never runs backward, and nothing is decided at a time before it.
    TimeRunsForward,
    /// Queues, uploads, sums, files and assignments stay within their bounds.
    EverythingIsBounded,
    /// What was recorded can be read back, and nothing is recorded that contradicts it.
    RecordsAreSound,
    /// Without further faults every task ends, and every node comes to rest.
    EveryTaskEnds,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

/// What the checks remember of a run.
#[derive(Debug, Default)]
pub struct Checks {
    pub(super) violation: Option<Violation>,
    pub(super) lineages: Vec<Arc<Lineage>>,
    pub(super) receipts: BTreeMap<AssignmentId, Receipt>,
    pub(super) closed: BTreeSet<(String, u64)>,
    pub(super) minted: BTreeSet<(String, u64)>,
    pub(super) versions: BTreeMap<String, Vec<VersionFacts>>,
    pub(super) trained: BTreeMap<(Id, Sha), Learned>,
    /// Nodes of which updates were recorded since their memories were looked at.
    pub(super) touched: Vec<Host>,
    pub(super) counted: BTreeMap<(Host, u8), Counted>,
    pub(super) elapsed_ms: u64,
    begun: BTreeMap<Id, Sha>,
}

/// What a node learned from one training.
#[derive(Debug)]
pub(super) struct Learned {
    pub(super) delta: Vec<i32>,
    pub(super) sent: Vec<i32>,
}

/// Of a node's counted updates of one task, added up.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) learned: Vec<i64>,
    pub(super) sent: Vec<i64>,
}

impl Checks {
    /// Before anything happens: each lineage has its version 1.
    pub fn new(lineages: &[Arc<Lineage>]) -> Checks {
        let first = |lineage: &Arc<Lineage>| (lineage.name.clone(), vec![VersionFacts::first(lineage)]);
        Checks { lineages: lineages.to_vec(), versions: lineages.iter().map(first).collect(), ..Checks::default() }
    }

    /// The first violation that was found.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Something does not hold; the first one is kept.
    pub fn fail(&mut self, invariant: Invariant, what: String) {
        self.violation.get_or_insert(Violation { invariant, what });
    }

    /// Fails unless it holds.
    pub fn require(&mut self, holds: bool, invariant: Invariant, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(invariant, what());
        }
    }

    /// A count within its bound.
    pub fn bound(&mut self, what: &str, count: usize, most: usize) {
        self.require(count <= most, Invariant::EverythingIsBounded, || format!("{count} {what}, at most {most}"));
    }

    /// Something is decided at this time.
    pub fn decided_at(&mut self, now_ms: Ms) {
        let recorded = self.elapsed_ms;
        self.require(now_ms >= recorded, Invariant::TimeRunsForward, || {
            format!("a decision at {now_ms} ms, when {recorded} ms had been recorded")
        });
    }

    /// Elapsed time is recorded.
    pub fn clock_recorded(&mut self, elapsed_ms: Ms) {
        let before = self.elapsed_ms;
        self.require(elapsed_ms >= before, Invariant::TimeRunsForward, || {
            format!("{elapsed_ms} ms was recorded after {before} ms")
        });
        self.elapsed_ms = elapsed_ms;
    }

    /// A node is told of a version, or gets it.
    pub fn announced(&mut self, lineage: &str, number: u64, digest: &Digest) {
        let known = self.versions.get(lineage).and_then(|all| all.get((number as usize).checked_sub(1)?));
        let holds = known.is_some_and(|version| version.digest == *digest);
        self.require(holds, Invariant::VersionsGrowByOne, || {
            format!("version {number} of {lineage} was announced with a digest that was not recorded for it")
        });
    }

    /// A node finished a training.
    pub fn learned(&mut self, id: Id, sha256: Sha, delta: Vec<i32>, sent: Vec<i32>) {
        self.trained.insert((id, sha256), Learned { delta, sent });
    }

    /// A node begins to send a payload.
    pub fn sends(&mut self, node: Host, id: Id, sha256: Sha) {
        let first = *self.begun.entry(id).or_insert(sha256);
        self.require(first == sha256, Invariant::OneAnswer, || {
            format!("node {node} sends {} for {}, after {}", Short(&sha256), Short(&id), Short(&first))
        });
    }

    /// A node's memory of a task: what is valid on its disk, and what its unanswered updates would leave behind.
    pub fn remembers(&mut self, node: Host, task: u8, valid: Option<&[u8]>, tentative: &[(Id, &[u8])]) {
        let counted = |id: &Id| self.receipts.get(&AssignmentId(*id)).is_some_and(|receipt| receipt.node == node);
        let kept: Vec<&[u8]> = tentative.iter().filter(|(id, _)| counted(id)).map(|(_, rest)| *rest).collect();
        if kept.len() > 1 {
            let what = format!("node {node} has {} counted updates whose rests are not kept", kept.len());
            self.fail(Invariant::ResidualsAreConserved, what);
            return;
        }
        let rest = kept.first().copied().or(valid).map(rest_of).unwrap_or_default();
        let Some(Counted { learned, sent }) = self.counted.get(&(node, task)) else {
            let nothing = rest.iter().all(|whole| *whole == 0);
            self.require(nothing, Invariant::ResidualsAreConserved, || {
                format!("node {node} remembers {rest:?} of task {task}, of which nothing was counted")
            });
            return;
        };
        let at = |index: usize| rest.get(index).copied().map_or(0, i64::from);
        let lost = learned.iter().zip(sent).enumerate().find(|(index, (l, s))| **l != **s + at(*index));
        if let Some((index, (learned, sent))) = lost {
            let what = format!(
                "node {node} learned {learned} at value {index} of task {task}; {sent} was counted and {} is remembered",
                at(index)
            );
            self.fail(Invariant::ResidualsAreConserved, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_violation_is_kept_with_its_name() {
        let mut checks = Checks::new(&[]);
        checks.bound("uploads", 3, 3);
        assert!(checks.violation().is_none());
        checks.bound("uploads", 4, 3);
        checks.clock_recorded(5);
        checks.clock_recorded(4);
        let violation = checks.violation().cloned();
        assert_eq!(violation.map(|v| v.to_string()).as_deref(), Some("EverythingIsBounded: 4 uploads, at most 3"));
    }

    #[test]
    fn two_payloads_for_one_assignment_are_two_answers() {
        let mut checks = Checks::new(&[]);
        checks.sends(1, [1; 16], [1; 32]);
        checks.sends(1, [1; 16], [1; 32]);
        assert!(checks.violation().is_none());
        checks.sends(1, [1; 16], [2; 32]);
        assert_eq!(checks.violation().map(|v| v.invariant), Some(Invariant::OneAnswer));
    }
}
