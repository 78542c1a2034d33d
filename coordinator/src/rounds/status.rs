//! What a task waits for and for whom, in words.
//! Operators read it in `task show` and `task watch`; nothing is decided by it.

use std::collections::BTreeMap;

use super::state::{CheckStatus, Phase, TaskOutcome, TaskState, WorkStatus};
use super::task::{RoundStart, TaskSpec};

/// Names that a sentence lists before it only counts.
const NAMES: usize = 5;

/// One sentence about where the task is.
pub fn describe(spec: &TaskSpec, state: &TaskState, now_ms: u64) -> String {
    let round = format!("round {} of {}", state.round, spec.rounds.count);
    match &state.phase {
        _ if state.paused && matches!(state.phase, Phase::Waiting { .. }) => {
            format!("paused after {round}: `fedge task resume {}` goes on", state.task_id)
        }
        Phase::Waiting { .. } if spec.rounds.start == RoundStart::Drift && state.rounds_asked == 0 => format!(
            "round {} of {} waits for drift: it begins when {} of the nodes report that what version {} is asked has changed, and {} are available",
            state.round + 1,
            spec.rounds.count,
            spec.rounds.drift_nodes,
            state.base.number,
            spec.rounds.min_nodes
        ),
        Phase::Waiting { .. } => format!(
            "round {} of {} waits for nodes with training samples for {:?}: it takes {}",
            state.round + 1,
            spec.rounds.count,
            spec.model,
            spec.rounds.min_nodes
        ),
        Phase::Training { deadline_ms, work, .. } => {
            let nodes = |filter: fn(&WorkStatus) -> bool| {
                let mut nodes: Vec<&str> =
                    work.values().filter(|w| filter(&w.status)).map(|w| w.node.as_str()).collect();
                nodes.sort_unstable();
                nodes
            };
            let arrived = nodes(|s| matches!(s, WorkStatus::Trained(_))).len();
            let buffer = spec.strategy.client().asynchronous;
            let wanted = match (buffer, spec.rounds.cohort) {
                (Some(buffer), _) => buffer.size,
                (None, 0) => work.len(),
                (None, cohort) => cohort.min(work.len()),
            };
            let mut text = format!("{round}: {arrived} of {wanted} updates arrived");
            text.push_str(&listed("; waits for", &nodes(|s| matches!(s, WorkStatus::Assigned))));
            text.push_str(&listed("; lost:", &nodes(|s| matches!(s, WorkStatus::Lost))));
            if buffer.is_none() {
                text.push_str(&left(*deadline_ms, now_ms));
            }
            text
        }
        Phase::Aggregating { .. } => format!("{round}: aggregating"),
        Phase::Evaluating { deadline_ms, checks, .. } => {
            let waiting = pending(checks, |(_, status)| matches!(status, CheckStatus::Assigned));
            let mut text = format!("{round}: version {} is evaluated", state.base.number);
            text.push_str(&listed("; waits for", &waiting));
            text.push_str(&left(*deadline_ms, now_ms));
            text
        }
        Phase::Ended { outcome: TaskOutcome::Finished } => {
            format!("all rounds are over; the newest version is {}", state.base.number)
        }
        Phase::Ended { outcome: TaskOutcome::Cancelled } => format!("the newest version is {}", state.base.number),
    }
}

fn pending<V>(map: &BTreeMap<String, V>, filter: impl Fn(&V) -> bool) -> Vec<&str> {
    map.iter().filter(|(_, v)| filter(v)).map(|(name, _)| name.as_str()).collect()
}

fn listed(prefix: &str, names: &[&str]) -> String {
    let rest = names.len().saturating_sub(NAMES);
    let shown = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match (names.is_empty(), rest) {
        (true, _) => String::new(),
        (false, 0) => format!("{prefix} {shown}"),
        (false, rest) => format!("{prefix} {shown} and {rest} more"),
    }
}

fn left(deadline_ms: u64, now_ms: u64) -> String {
    format!(" ({} s left)", deadline_ms.saturating_sub(now_ms) / 1000)
}
