//! What a simulation tells while it runs: each round's figures, and how far the round is.
//! Printing and drawing are the caller's matter.

use serde::Serialize;

/// How well a version answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Samples that were asked.
    pub examples: u64,
    /// Right answers.
    pub correct: u64,
    /// Mean cross-entropy, nats.
    pub loss: f64,
}

impl Score {
    /// Share of right answers, `0.0..=1.0`.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.examples.max(1) as f64
    }

    /// The score over all these parts; the same whatever their order of arrival, since the caller's order is kept.
    pub(super) fn sum(parts: impl IntoIterator<Item = Score>) -> Option<Score> {
        let (mut examples, mut correct, mut loss) = (0, 0, 0.0);
        for part in parts {
            examples += part.examples;
            correct += part.correct;
            loss += part.loss * part.examples as f64;
        }
        (examples > 0).then(|| Score { examples, correct, loss: loss / examples as f64 })
    }
}

/// One round's figures. Round 0 is the model before the first round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    /// Counted from 1.
    pub round: u64,
    /// Why the round made no version; `None` where it made one.
    pub failure: Option<String>,
    /// The newest version after it.
    pub version: u64,
    /// Virtual time at its end, milliseconds.
    pub time_ms: u64,
    /// Virtual time from selection to its end, milliseconds.
    pub duration_ms: u64,
    /// Nodes that were selected.
    pub selected: usize,
    /// Updates that count.
    pub trained: usize,
    /// Those among them that hold fewer epochs than the plan asks for.
    pub partial: usize,
    /// Nodes that were late, vanished or could not.
    pub dropped: usize,
    /// Why nodes could not: the first reason.
    pub declined: Option<String>,
    /// Samples behind the updates that count.
    pub examples: u64,
    /// Mean loss of the nodes' last epochs, weighted by examples, nats.
    pub train_loss: Option<f64>,
    /// On the test set.
    pub test: Option<Score>,
    /// On the nodes' held-out samples, by the nodes.
    pub held_out: Option<Score>,
    /// Bytes of the updates that count.
    pub bytes_up: u64,
    /// Bytes of the versions that nodes fetched.
    pub bytes_down: u64,
}

/// What an observer is told.
#[derive(Debug)]
pub enum News<'a> {
    /// A round is over.
    Round(&'a Round),
    /// Within a round: updates that came, of those that will.
    Progress {
        /// The round.
        round: u64,
        /// Came.
        done: usize,
        /// Will come in all.
        of: usize,
    },
}
