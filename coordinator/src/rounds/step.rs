//! Decides: one task's next state and what has to be done, from an event, the available nodes and the time.
//! Pure: no I/O, no clock, no randomness but the task's seed. `driver` persists the state, then acts on the effects.

use std::collections::{BTreeMap, BTreeSet};

use super::asynchronous;
use super::selection;
use super::state::{
    AssignmentId, Assignments, CheckStatus, Evaluation, Phase, RoundOutcome, RoundRecord, STATE_SCHEMA, ServerState,
    TaskOutcome, TaskState, TrainedUpdate, VersionRef, Work, WorkStatus,
};
use super::task::{RoundStart, TaskSpec};

/// Pause after a failed round, so that what fails at once does not use up all rounds in a moment.
pub(super) const PAUSE_AFTER_FAILURE_MS: u64 = 5_000;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed, or the set of available nodes changed.
    Tick,
    /// An admitted update is verified and committed.
    UpdateCommitted(AssignmentId, TrainedUpdate),
    /// A node said that it can't do its assignment.
    Declined(AssignmentId, String),
    /// The accepted updates became this version, and what the strategy keeps beside it.
    Aggregated(VersionRef, Option<ServerState>),
    /// No version came out of the accepted updates.
    AggregationFailed(String),
    /// A node reported its held-out part's result.
    Evaluated(AssignmentId, Evaluation),
    /// The operator wants no new round (true), or wants rounds again (false).
    Paused(bool),
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
        /// The newest version.
        base: VersionRef,
        /// Accepted updates.
        accepted: Vec<AssignmentId>,
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
    /// Nodes that get no new training: they do not train now, by their own budgets.
    pub resting: &'a BTreeSet<String>,
    /// Of the available ones, those that report drift, and of which version.
    pub drifting: &'a BTreeMap<String, u64>,
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
    /// Its base is older than the strategy takes: by this many versions.
    Stale(u64),
    /// This task does not wait for it (any more).
    Closed,
}

/// Whether an update with payload digest `sha256` for `assignment` can be taken.
pub fn admit(spec: &TaskSpec, state: &TaskState, assignment: AssignmentId, sha256: Option<[u8; 32]>) -> Admission {
    let Some(work) = state.work(assignment) else { return Admission::Closed };
    match &work.status {
        WorkStatus::Trained(update) if sha256.is_none_or(|d| d == update.sha256) => Admission::Duplicate,
        WorkStatus::Trained(_) => Admission::Conflict,
        WorkStatus::Declined(_) => Admission::Closed,
        WorkStatus::Assigned | WorkStatus::Lost => match spec.strategy.client().asynchronous {
            Some(buffer) => asynchronous::admit(buffer, state, work),
            None if matches!(state.phase, Phase::Training { .. }) => Admission::Open,
            None => Admission::Closed,
        },
    }
}

/// The next state and what to do, after `event`.
pub fn step(spec: &TaskSpec, mut state: TaskState, event: &Event, view: View) -> (TaskState, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
        Event::Tick => {}
        Event::UpdateCommitted(id, update) => set_work(&mut state, *id, WorkStatus::Trained(update.clone())),
        Event::Declined(id, reason) => decline(&mut state, *id, reason),
        Event::Aggregated(minted, server) => aggregated(spec, &mut state, minted, server, view, &mut effects),
        Event::AggregationFailed(reason) => fail_round(spec, &mut state, reason, view, &mut effects),
        Event::Evaluated(id, evaluation) => set_check(&mut state, *id, CheckStatus::Done(evaluation.clone())),
        Event::Paused(paused) => state.paused = *paused,
        Event::Cancelled => cancel(&mut state, view, &mut effects),
    }
    advance(spec, &mut state, view, &mut effects);
    (state, effects)
}

/// Moves through every phase that is complete.
fn advance(spec: &TaskSpec, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    mark_lost(state, view.available);
    let buffer = spec.strategy.client().asynchronous;
    if matches!(state.phase, Phase::Evaluating { .. }) {
        close_evaluation(spec, state, view, effects);
    }
    if buffer.is_none() && matches!(state.phase, Phase::Training { .. }) {
        close_training(spec, state, view, effects);
    }
    if matches!(state.phase, Phase::Waiting { .. }) {
        begin_round(spec, state, view);
    }
    if let Some(buffer) = buffer {
        asynchronous::advance(spec, buffer, state, view, effects);
    }
}

fn begin_round(spec: &TaskSpec, state: &mut TaskState, view: View) {
    let Phase::Waiting { not_before_ms } = state.phase else { return };
    let asynchronous = spec.strategy.client().asynchronous.is_some();
    let carried = asynchronous && !state.outstanding.is_empty();
    let ready: BTreeSet<String> = view.available.difference(view.resting).cloned().collect();
    if state.paused || view.now_ms < not_before_ms || (ready.len() < spec.rounds.min_nodes && !carried) {
        return;
    }
    if spec.rounds.start == RoundStart::Drift {
        // What a node reports of an older version may be what the newest has learnt since.
        let drifting = view.drifting.values().filter(|version| **version == state.base.number).count();
        if state.rounds_asked == 0 && drifting < spec.rounds.drift_nodes {
            return;
        }
        let asked = if state.rounds_asked == 0 { spec.rounds.drift_rounds } else { state.rounds_asked };
        state.rounds_asked = asked - 1;
    }
    state.round += 1;
    let work = if asynchronous {
        std::mem::take(&mut state.outstanding)
    } else {
        let nodes = selection::cohort(&spec.rounds, state.round, &ready);
        let new = |node| assignment(&state.task_id, &state.base, state.round, node, view.now_ms);
        nodes.into_iter().map(new).collect()
    };
    let deadline_ms = view.now_ms.saturating_add(spec.rounds.deadline_s.saturating_mul(1000));
    let population = view.available.len();
    state.phase = Phase::Training { started_ms: view.now_ms, deadline_ms, population, work };
}

/// A training assignment on the newest version.
pub(super) fn assignment(task: &str, base: &VersionRef, number: u64, node: &str, now_ms: u64) -> (AssignmentId, Work) {
    let id = AssignmentId::derive("train", task, number, node, &base.digest);
    (id, Work { node: node.to_owned(), base: base.clone(), issued_ms: now_ms, status: WorkStatus::Assigned })
}

fn close_training(spec: &TaskSpec, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    let Phase::Training { deadline_ms, work, .. } = &mut state.phase else { return };
    let accepted = accepted(work);
    let expired = view.now_ms >= *deadline_ms;
    let all_answered = work.values().all(|w| !matches!(w.status, WorkStatus::Assigned));
    let can_still_reach_minimum =
        work.values().filter(|w| !matches!(w.status, WorkStatus::Declined(_))).count() >= spec.rounds.min_nodes;
    let enough = accepted.len() >= spec.rounds.min_nodes;
    // Over-selection: whoever comes after the wanted number is late.
    let complete = spec.rounds.cohort > 0 && accepted.len() >= spec.rounds.cohort;
    if enough && (all_answered || complete || expired) {
        begin_aggregation(state, effects);
    } else if expired || !can_still_reach_minimum {
        let why = format!("{} of at least {} updates arrived", accepted.len(), spec.rounds.min_nodes);
        fail_round(spec, state, &why, view, effects);
    }
}

fn accepted(work: &Assignments) -> Vec<AssignmentId> {
    work.iter().filter(|(_, w)| matches!(w.status, WorkStatus::Trained(_))).map(|(id, _)| *id).collect()
}

/// Closes the round's training: what has arrived becomes the next version.
pub(super) fn begin_aggregation(state: &mut TaskState, effects: &mut Vec<Effect>) {
    let Phase::Training { started_ms, population, work, .. } = &mut state.phase else { return };
    let accepted = accepted(work);
    effects.push(Effect::Aggregate { round: state.round, base: state.base.clone(), accepted });
    let (started_ms, population, work) = (*started_ms, *population, std::mem::take(work));
    state.phase = Phase::Aggregating { started_ms, population, work };
}

fn aggregated(
    spec: &TaskSpec,
    state: &mut TaskState,
    minted: &VersionRef,
    server: &Option<ServerState>,
    view: View,
    effects: &mut Vec<Effect>,
) {
    let Phase::Aggregating { started_ms, work, .. } = &mut state.phase else { return };
    let (started_ms, trained) = (*started_ms, std::mem::take(work));
    state.base = minted.clone();
    state.server.clone_from(server);
    let last = state.round >= spec.rounds.count;
    if last {
        state.outstanding.clear();
    }
    let wanted = spec.rounds.evaluate_every > 0 && (last || state.round.is_multiple_of(spec.rounds.evaluate_every));
    let checks = if wanted { evaluators(state, minted, view) } else { BTreeMap::new() };
    let deadline_ms = view.now_ms.saturating_add(spec.rounds.evaluation_deadline_s.saturating_mul(1000));
    state.phase = Phase::Evaluating { started_ms, deadline_ms, trained, checks };
    close_evaluation(spec, state, view, effects);
}

/// Everyone who is there evaluates, but for nodes that are training for an asynchronous task.
fn evaluators(state: &TaskState, minted: &VersionRef, view: View) -> BTreeMap<String, (AssignmentId, CheckStatus)> {
    let busy: BTreeSet<&str> =
        state.outstanding.values().filter(|w| w.status.is_open()).map(|w| w.node.as_str()).collect();
    let idle = view.available.iter().filter(|node| !busy.contains(node.as_str()));
    idle.map(|node| {
        let id = AssignmentId::derive("evaluate", &state.task_id, state.round, node, &minted.digest);
        (node.clone(), (id, CheckStatus::Assigned))
    })
    .collect()
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
        schema: STATE_SCHEMA,
        round: state.round,
        outcome: RoundOutcome::Aggregated(state.base.clone()),
        duration_ms: view.now_ms.saturating_sub(*started_ms),
        work: std::mem::take(trained),
        checks: std::mem::take(checks),
    }));
}

fn fail_round(spec: &TaskSpec, state: &mut TaskState, reason: &str, view: View, effects: &mut Vec<Effect>) {
    let (Phase::Training { started_ms, work, .. } | Phase::Aggregating { started_ms, work, .. }) = &mut state.phase
    else {
        return;
    };
    effects.push(Effect::RecordRound(RoundRecord {
        schema: STATE_SCHEMA,
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
        state.outstanding.clear();
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
        state.outstanding.clear();
        state.phase = Phase::Ended { outcome: TaskOutcome::Cancelled };
        effects.push(Effect::Ended(TaskOutcome::Cancelled));
    }
}

/// A node that is gone is not waited for; if it comes back before the close, its update still counts.
fn mark_lost(state: &mut TaskState, available: &BTreeSet<String>) {
    let cohort = match &mut state.phase {
        Phase::Training { work, .. } => Some(work),
        _ => None,
    };
    for work in cohort.into_iter().chain([&mut state.outstanding]).flat_map(BTreeMap::values_mut) {
        match work.status {
            WorkStatus::Assigned if !available.contains(&work.node) => work.status = WorkStatus::Lost,
            WorkStatus::Lost if available.contains(&work.node) => work.status = WorkStatus::Assigned,
            _ => {}
        }
    }
    if let Phase::Evaluating { checks, .. } = &mut state.phase {
        for (node, (_, status)) in checks.iter_mut() {
            match status {
                CheckStatus::Assigned if !available.contains(node) => *status = CheckStatus::Lost,
                CheckStatus::Lost if available.contains(node) => *status = CheckStatus::Assigned,
                _ => {}
            }
        }
    }
}

fn decline(state: &mut TaskState, id: AssignmentId, reason: &str) {
    set_work(state, id, WorkStatus::Declined(reason.to_owned()));
    set_check(state, id, CheckStatus::Declined(reason.to_owned()));
}

/// Changes the status of an open training assignment; what is trained or closed stays as it is.
fn set_work(state: &mut TaskState, id: AssignmentId, status: WorkStatus) {
    let cohort = match &mut state.phase {
        Phase::Training { work, .. } => work.get_mut(&id),
        _ => None,
    };
    if let Some(work) = cohort.or_else(|| state.outstanding.get_mut(&id))
        && work.status.is_open()
    {
        work.status = status;
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
