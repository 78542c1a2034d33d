//! Decides for asynchronous tasks (FedBuff): who trains next, which updates are too stale, when the buffer is full.
//! Pure, like `step`, which calls it; what an update weighs is the strategy's.

use std::collections::BTreeSet;

use super::selection;
use super::state::{Phase, TaskState, Work, WorkStatus};
use super::step::{Admission, Effect, PAUSE_AFTER_FAILURE_MS, View, assignment, begin_aggregation};
use super::task::TaskSpec;
use crate::aggregate::fixed_point::MAX_COHORT;
use crate::aggregate::strategies::Buffer;

/// Whether an open assignment's update can be taken into the buffer.
pub(super) fn admit(buffer: Buffer, state: &TaskState, work: &Work) -> Admission {
    let staleness = next_buffers_base(state).saturating_sub(work.base.number);
    if staleness > buffer.max_staleness { Admission::Stale(staleness) } else { Admission::Open }
}

/// Versions between what was trained and the newest.
pub(super) fn staleness(state: &TaskState, work: &Work) -> u64 {
    state.base.number.saturating_sub(work.base.number)
}

/// The version on which an update counts that comes now: while one is made, it waits for the buffer after it.
fn next_buffers_base(state: &TaskState) -> u64 {
    state.base.number + u64::from(matches!(state.phase, Phase::Aggregating { .. }))
}

/// Drops what is overdue or trains too old a version by now, closes a full buffer, and gives every idle node something to train.
pub(super) fn advance(spec: &TaskSpec, buffer: Buffer, state: &mut TaskState, view: View, effects: &mut Vec<Effect>) {
    let base = next_buffers_base(state);
    let given_up = |work: &Work| match work.status.is_open() {
        true if view.now_ms >= work.issued_ms.saturating_add(spec.rounds.deadline_s * 1000) => {
            Some("no update came before its deadline")
        }
        // It would be refused: the node had better begin with a newer version at once.
        true if base.saturating_sub(work.base.number) > buffer.max_staleness => Some("its version is too old by now"),
        _ => None,
    };
    state.outstanding.retain(|_, work| given_up(work).is_none());
    let Phase::Training { work, .. } = &mut state.phase else { return };
    for work in work.values_mut() {
        if let Some(reason) = given_up(work) {
            work.status = WorkStatus::Declined(reason.to_owned());
        }
    }
    if work.values().filter(|w| matches!(w.status, WorkStatus::Trained(_))).count() >= buffer.size {
        // What is still being trained goes on beside the making of the version, into the next buffer.
        let open = work.extract_if(.., |_, w| w.status.is_open()).collect();
        state.outstanding = open;
        begin_aggregation(state, effects);
    } else {
        issue(spec, state, view);
    }
}

/// Gives idle nodes an assignment, as far as the concurrency allows. A node that declined is left alone for a moment.
fn issue(spec: &TaskSpec, state: &mut TaskState, view: View) {
    let Phase::Training { work, .. } = &mut state.phase else { return };
    let limit = if spec.rounds.cohort > 0 { spec.rounds.cohort } else { MAX_COHORT };
    let rests = |w: &Work| {
        let declined = matches!(w.status, WorkStatus::Declined(_));
        declined && view.now_ms < w.issued_ms.saturating_add(PAUSE_AFTER_FAILURE_MS)
    };
    let busy = work.values().filter(|w| w.status.is_open()).count();
    let unable: BTreeSet<&str> =
        work.values().filter(|w| w.status.is_open() || rests(w)).map(|w| w.node.as_str()).collect();
    let ready = view.available.difference(view.resting);
    let mut idle: Vec<&str> = ready.map(String::as_str).filter(|n| !unable.contains(n)).collect();
    // The bound holds for the whole buffer: what it has given out is kept until its record is written.
    let room = limit.saturating_sub(busy).min(MAX_COHORT.saturating_sub(work.len()));
    if idle.len() > room {
        selection::shuffle(spec.rounds.seed, state.issued, &mut idle);
        idle.truncate(room);
    }
    // One refusal a node is enough to remember.
    work.retain(|_, w| !(matches!(w.status, WorkStatus::Declined(_)) && idle.contains(&w.node.as_str())));
    let mut new = Vec::new();
    for node in idle {
        state.issued += 1;
        new.push(assignment(&state.task_id, &state.base, state.issued, node, view.now_ms));
    }
    work.extend(new);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
#[path = "asynchronous_tests.rs"]
mod tests;
