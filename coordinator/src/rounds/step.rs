//! Decides: one task's next state and what has to be done, from an event, the available nodes and the time.
//! Pure: no I/O, no clock, no randomness but the task's seed. `driver` persists the state, then acts on the effects.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::state::{
    AssignmentId, CheckStatus, Evaluation, Phase, RoundOutcome, RoundRecord, TaskOutcome, TaskState, TrainedUpdate,
    VersionRef, Work, WorkStatus,
};
use super::task::TaskSpec;

/// Pause after a failed round, so that what fails at once does not use up all rounds in a moment.
const PAUSE_AFTER_FAILURE_MS: u64 = 5_000;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed, or the set of available nodes changed.
    Tick,
    /// An admitted update is verified and committed.
    UpdateCommitted(AssignmentId, TrainedUpdate),
    /// A node said that it can't do its assignment.
    Declined(AssignmentId, String),
    /// The mean of the accepted updates became this version.
    Aggregated(VersionRef),
    /// No version came out of the accepted updates.
    AggregationFailed(String),
    /// A node reported its held-out part's result.
    Evaluated(AssignmentId, Evaluation),
    /// The operator ends the task.
    Cancelled,
}

/// What the driver has to do once the state is persisted.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Fold the accepted updates of this round into a new version, then report `Aggregated` or `AggregationFailed`.
    Aggregate {
        /// The round.
        round: u64,
        /// The version that was trained.
        base: VersionRef,
        /// Accepted updates: assignment and weight.
        accepted: Vec<(AssignmentId, u64)>,
    },
    /// The round is over: keep its record and tell watchers. Spools of the round may go.
    RecordRound(RoundRecord),
    /// The task is over.
    Ended(TaskOutcome),
}

/// What a decision may look at besides state and event.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Persisted elapsed time in milliseconds; never runs backward.
    pub now_ms: u64,
    /// Nodes that are alive, can do the task and have training samples for its model.
    pub available: &'a BTreeSet<String>,
}

/// Whether an update for an assignment can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is awaited.
    Open,
    /// The very same update was accepted before: give the same receipt.
    Duplicate,
    /// Another update was accepted for this assignment.
    Conflict,
    /// This task does not wait for it (any more).
    Closed,
}

/// Whether an update with payload digest `sha256` for `assignment` can be taken.
pub fn admit(state: &TaskState, assignment: AssignmentId, sha256: Option<[u8; 32]>) -> Admission {
    let work = match &state.phase {
        Phase::Training { work, .. } | Phase::Aggregating { work, .. } => work,
        Phase::Evaluating { trained, .. } => trained,
        Phase::Waiting { .. } | Phase::Ended { .. } => return Admission::Closed,
    };
    let open = matches!(state.phase, Phase::Training { .. });
    match work.values().find(|w| w.assignment == assignment).map(|w| &w.status) {
        Some(WorkStatus::Trained(update)) if sha256.is_none_or(|d| d == update.sha256) => Admission::Duplicate,
        Some(WorkStatus::Trained(_)) => Admission::Conflict,
        Some(WorkStatus::Assigned | WorkStatus::Lost) if open => Admission::Open,
        _ => Admission::Closed,
    }
}

/// The next state and what to do, after `event`.
pub fn step(spec: &TaskSpec, mut state: TaskState, event: &Event, view: View) -> (TaskState, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
        Event::Tick => {}
        Event::UpdateCommitted(id, update) => set_work(&mut state, *id, WorkStatus::Trained(update.clone())),
        Event::Declined(id, reason) => decline(&mut state, *id, reason),
        Event::Aggregated(minted) => begin_evaluation(spec, &mut state, minted.clone(), view),
        Event::AggregationFailed(reason) => fail_round(spec, &mut state, reason, view, &mut effects),
        Event::Evaluated(id, evaluation) => set_check(&mut state, *id, CheckStatus::Done(evaluation.clone())),
        Event::Cancelled => cancel(&mut state, view, &mut effects),
    }
    advance(spec, &mut state, view, &mut effects);
    (state, effects)
}

/// Moves through every phase that is complete.
fn advance(spec: &TaskSpec, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    mark_lost(state, view.available);
    if matches!(state.phase, Phase::Evaluating { .. }) {
        close_evaluation(spec, state, view, effects);
    }
    if matches!(state.phase, Phase::Training { .. }) {
        close_training(spec, state, view, effects);
    }
    if matches!(state.phase, Phase::Waiting { .. }) {
        begin_round(spec, state, view);
    }
}

fn begin_round(spec: &TaskSpec, state: &mut TaskState, view: View) {
    let Phase::Waiting { not_before_ms } = state.phase else { return };
    if view.available.len() < spec.rounds.min_nodes || view.now_ms < not_before_ms {
        return;
    }
    let round = state.round + 1;
    let mut nodes: Vec<&String> = view.available.iter().collect();
    if spec.rounds.cohort > 0 && spec.rounds.cohort < nodes.len() {
        // The seed and the round alone decide, so that a replay selects the same cohort.
        let mut rng = ChaCha8Rng::seed_from_u64(spec.rounds.seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        nodes.shuffle(&mut rng);
        nodes.truncate(spec.rounds.cohort);
    }
    nodes.truncate(crate::aggregate::fixed_point::MAX_COHORT);
    let work = nodes
        .into_iter()
        .map(|node| {
            let assignment = AssignmentId::derive("train", &state.task_id, round, node, &state.base.digest);
            (node.clone(), Work { assignment, status: WorkStatus::Assigned })
        })
        .collect();
    state.round = round;
    let deadline_ms = view.now_ms.saturating_add(spec.rounds.deadline_s.saturating_mul(1000));
    state.phase = Phase::Training { started_ms: view.now_ms, deadline_ms, work };
}

fn close_training(spec: &TaskSpec, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    let Phase::Training { started_ms, deadline_ms, work } = &mut state.phase else { return };
    let accepted: Vec<_> = work
        .values()
        .filter_map(|w| match &w.status {
            WorkStatus::Trained(update) => Some((w.assignment, update.examples)),
            _ => None,
        })
        .collect();
    let expired = view.now_ms >= *deadline_ms;
    let all_answered = work.values().all(|w| !matches!(w.status, WorkStatus::Assigned));
    let can_still_reach_minimum =
        work.values().filter(|w| !matches!(w.status, WorkStatus::Declined(_))).count() >= spec.rounds.min_nodes;
    let enough = accepted.len() >= spec.rounds.min_nodes;
    if enough && (all_answered || expired) {
        effects.push(Effect::Aggregate { round: state.round, base: state.base.clone(), accepted });
        state.phase = Phase::Aggregating { started_ms: *started_ms, work: std::mem::take(work) };
    } else if expired || !can_still_reach_minimum {
        let why = format!("{} of at least {} updates arrived", accepted.len(), spec.rounds.min_nodes);
        fail_round(spec, state, &why, view, effects);
    }
}

fn begin_evaluation(spec: &TaskSpec, state: &mut TaskState, minted: VersionRef, view: View) {
    let Phase::Aggregating { started_ms, work } = &mut state.phase else { return };
    let checks = view
        .available
        .iter()
        .map(|node| {
            let id = AssignmentId::derive("evaluate", &state.task_id, state.round, node, &minted.digest);
            (node.clone(), (id, CheckStatus::Assigned))
        })
        .collect();
    let deadline_ms = view.now_ms.saturating_add(spec.rounds.evaluation_deadline_s.saturating_mul(1000));
    let (started_ms, trained) = (*started_ms, std::mem::take(work));
    state.base = minted;
    state.phase = Phase::Evaluating { started_ms, deadline_ms, trained, checks };
}

fn close_evaluation(spec: &TaskSpec, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    let Phase::Evaluating { deadline_ms, checks, .. } = &state.phase else { return };
    let waiting = checks.values().any(|(_, s)| matches!(s, CheckStatus::Assigned));
    if waiting && view.now_ms < *deadline_ms {
        return;
    }
    record_evaluated(state, view, effects);
    finish_round(spec, state, 0, effects);
}

/// Records the round whose version is being evaluated, with the evaluations that came.
fn record_evaluated(state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    let Phase::Evaluating { started_ms, trained, checks, .. } = &mut state.phase else { return };
    effects.push(Effect::RecordRound(RoundRecord {
        round: state.round,
        outcome: RoundOutcome::Aggregated(state.base.clone()),
        duration_ms: view.now_ms.saturating_sub(*started_ms),
        work: std::mem::take(trained),
        checks: std::mem::take(checks),
    }));
}

fn fail_round(spec: &TaskSpec, state: &mut TaskState, reason: &str, view: View, effects: &mut Vec<Effect>) {
    let (Phase::Training { started_ms, work, .. } | Phase::Aggregating { started_ms, work }) = &mut state.phase else {
        return;
    };
    effects.push(Effect::RecordRound(RoundRecord {
        round: state.round,
        outcome: RoundOutcome::Failed(reason.to_owned()),
        duration_ms: view.now_ms.saturating_sub(*started_ms),
        work: std::mem::take(work),
        checks: BTreeMap::new(),
    }));
    finish_round(spec, state, view.now_ms.saturating_add(PAUSE_AFTER_FAILURE_MS), effects);
}

fn finish_round(spec: &TaskSpec, state: &mut TaskState, not_before_ms: u64, effects: &mut Vec<Effect>) {
    if state.round >= spec.rounds.count {
        state.phase = Phase::Ended { outcome: TaskOutcome::Finished };
        effects.push(Effect::Ended(TaskOutcome::Finished));
    } else {
        state.phase = Phase::Waiting { not_before_ms };
    }
}

/// Ends the task. A version that was minted already keeps its round's record.
fn cancel(state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    record_evaluated(state, view, effects);
    if !matches!(state.phase, Phase::Ended { .. }) {
        state.phase = Phase::Ended { outcome: TaskOutcome::Cancelled };
        effects.push(Effect::Ended(TaskOutcome::Cancelled));
    }
}

/// A node that is gone is not waited for; if it comes back before the close, its update still counts.
fn mark_lost(state: &mut TaskState, available: &BTreeSet<String>) {
    match &mut state.phase {
        Phase::Training { work, .. } => {
            for (node, w) in work.iter_mut() {
                match w.status {
                    WorkStatus::Assigned if !available.contains(node) => w.status = WorkStatus::Lost,
                    WorkStatus::Lost if available.contains(node) => w.status = WorkStatus::Assigned,
                    _ => {}
                }
            }
        }
        Phase::Evaluating { checks, .. } => {
            for (node, (_, status)) in checks.iter_mut() {
                match status {
                    CheckStatus::Assigned if !available.contains(node) => *status = CheckStatus::Lost,
                    CheckStatus::Lost if available.contains(node) => *status = CheckStatus::Assigned,
                    _ => {}
                }
            }
        }
        Phase::Waiting { .. } | Phase::Aggregating { .. } | Phase::Ended { .. } => {}
    }
}

fn decline(state: &mut TaskState, id: AssignmentId, reason: &str) {
    set_work(state, id, WorkStatus::Declined(reason.to_owned()));
    set_check(state, id, CheckStatus::Declined(reason.to_owned()));
}

/// Changes the status of an open training assignment; what is trained or closed stays as it is.
fn set_work(state: &mut TaskState, id: AssignmentId, status: WorkStatus) {
    if let Phase::Training { work, .. } = &mut state.phase
        && let Some(w) = work.values_mut().find(|w| w.assignment == id)
        && matches!(w.status, WorkStatus::Assigned | WorkStatus::Lost)
    {
        w.status = status;
    }
}

fn set_check(state: &mut TaskState, id: AssignmentId, status: CheckStatus) {
    if let Phase::Evaluating { checks, .. } = &mut state.phase
        && let Some((_, current)) = checks.values_mut().find(|(i, _)| *i == id)
        && matches!(current, CheckStatus::Assigned | CheckStatus::Lost)
    {
        *current = status;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
#[path = "step_tests.rs"]
mod tests;
