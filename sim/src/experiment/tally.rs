//! Adds up a round's figures from the coordinator's own record and what the simulation saw beside it.
//! What counts was decided in `rounds::step`.

use fedge_coordinator::rounds::state::{CheckStatus, RoundOutcome, RoundRecord, WorkStatus};

use super::report::{Round, Score};

/// What is noted while a round runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Bytes that nodes fetched.
    pub(super) bytes_down: u64,
    /// Updates that are due, and those that came.
    pub(super) due: usize,
    pub(super) came: usize,
}

/// The figures of a round that is over.
pub(super) fn figures(record: &RoundRecord, tally: &Tally, version: u64, now_ms: u64) -> Round {
    let mut round = Round {
        round: record.round,
        failure: match &record.outcome {
            RoundOutcome::Aggregated(_) => None,
            RoundOutcome::Failed(reason) => Some(reason.clone()),
        },
        version,
        time_ms: now_ms,
        duration_ms: record.duration_ms,
        selected: record.work.len(),
        bytes_down: tally.bytes_down,
        ..Round::start(None)
    };
    let mut loss = 0.0;
    for work in record.work.values() {
        match &work.status {
            WorkStatus::Trained(update) => {
                round.trained += 1;
                round.partial += usize::from(update.partial);
                round.examples += update.examples;
                round.bytes_up += update.bytes;
                loss += f64::from(update.loss_last) * update.examples as f64;
            }
            WorkStatus::Declined(reason) => {
                round.declined.get_or_insert_with(|| reason.clone());
            }
            WorkStatus::Assigned | WorkStatus::Lost => {}
        }
    }
    round.dropped = round.selected - round.trained;
    round.train_loss = (round.examples > 0).then(|| loss / round.examples as f64);
    round.held_out = Score::sum(record.checks.values().filter_map(|(_, status)| match status {
        CheckStatus::Done(done) => {
            let loss = f64::from(done.loss);
            Some(Score { examples: done.examples, correct: done.correct_float, loss })
        }
        _ => None,
    }));
    round
}

impl Round {
    /// The model before the first round.
    pub(super) fn start(test: Option<Score>) -> Round {
        Round {
            round: 0,
            failure: None,
            version: 1,
            time_ms: 0,
            duration_ms: 0,
            selected: 0,
            trained: 0,
            partial: 0,
            dropped: 0,
            declined: None,
            examples: 0,
            train_loss: None,
            test,
            held_out: None,
            bytes_up: 0,
            bytes_down: 0,
        }
    }
}
