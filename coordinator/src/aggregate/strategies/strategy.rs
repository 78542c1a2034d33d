//! What a strategy is: how an update counts, what the server remembers, and one step from means to the next weights.
//! Each strategy is in its own file. Integers and sums are `fixed_point`'s, parameter ranges `close`'s.

use std::fmt::{Debug, Display};

use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::Share;

/// Most sums and most arrays of the server that a strategy can have.
pub const MAX_ARRAYS: usize = 2;

/// How updates become the next global model. Statistics (running means and variances) are no strategy's matter: always
/// means weighted by examples.
///
/// What isn't overridden is federated averaging: one sum, weighted by examples, nothing remembered.
pub trait Strategy: Debug + Send + Sync {
    /// Checks the options' ranges.
    ///
    /// # Errors
    /// A sentence that names the key, its value and the range.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// What nodes do differently, and what they tell besides the update.
    fn client(&self) -> ClientTerms {
        ClientTerms::default()
    }

    /// Number of integer sums of each trainable value, 1..=[`MAX_ARRAYS`].
    fn sums(&self) -> usize {
        1
    }

    /// What the server remembers between rounds: f32 arrays of one value an exchanged value, at most [`MAX_ARRAYS`].
    fn state(&self) -> Vec<StateArray> {
        Vec::new()
    }

    /// How much an update counts, one share a sum.
    ///
    /// # Errors
    /// What of the facts it can't use, and what to do.
    fn shares(&self, facts: &UpdateFacts) -> Result<Vec<Share>, String> {
        Ok(vec![Share::weighted(facts.examples)])
    }

    /// The factor of each sum that makes it what [`Strategy::next`] calls its mean. `facts`: of all updates that count,
    /// at least one, always in the same order, so that a replay gives the same bits.
    ///
    /// # Errors
    /// Why these updates make no mean, and what to do.
    fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, String> {
        let examples: u64 = facts.iter().map(|facts| facts.examples).sum();
        Ok(vec![1.0 / examples as f64])
    }

    /// The server's step on some trainable values, each independent of all others. Fills `out`, changes the state.
    fn next(&self, step: Step<'_>, out: &mut [f32]);
}

/// What nodes do differently for a strategy, and what they tell besides the update.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ClientTerms {
    /// FedProx's mu; overrides the training plan's.
    pub proximal_mu: Option<f32>,
    /// A node that runs out of time sends what it has.
    pub accept_partial: bool,
    /// Nodes keep a control variate of their own and receive the server's: the first state array.
    pub control_variates: bool,
    /// Nodes tell the mean loss of the base version on their samples.
    pub loss_base: bool,
    /// Local training is SGD with neither momentum nor a proximal term; the plan must say so.
    pub plain_sgd: bool,
    /// The strategy computes with how far SGD's steps reach: no other optimizer, a constant rate, no clipping.
    pub fixed_sgd: bool,
    /// No rounds: a version whenever so many updates are in.
    pub asynchronous: Option<Buffer>,
}

/// The buffer of an asynchronous strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Updates that make a version, 1..=4096.
    pub size: usize,
    /// Versions that an update's base may be behind.
    pub max_staleness: u64,
}

/// An array that the server keeps between rounds, one f32 an exchanged value; those at statistics are not used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StateArray {
    /// Its name, unique within the strategy.
    pub name: &'static str,
    /// What every value is before the first round.
    pub initial: f32,
}

/// A stretch of trainable values on their way to the next version. All slices have one length, but for sums and arrays
/// that the strategy does not have, which are empty.
#[derive(Debug)]
pub struct Step<'a> {
    /// Updates that count ÷ nodes that there are, above 0, at most 1.
    pub participation: f64,
    /// The base's values.
    pub base: &'a [f32],
    /// Sum · factor, of each sum.
    pub means: [&'a [f64]; MAX_ARRAYS],
    /// The server's arrays.
    pub state: [&'a mut [f32]; MAX_ARRAYS],
}

impl Step<'_> {
    /// out = base + rate · the first mean.
    pub(super) fn by_mean(&self, rate: f64, out: &mut [f32]) {
        let [mean, _] = self.means;
        for ((out, base), mean) in out.iter_mut().zip(self.base).zip(mean) {
            *out = (f64::from(*base) + rate * mean) as f32;
        }
    }
}

/// A range check: the error names the key as the task file has it.
pub(super) fn require(key: &str, value: impl Display, holds: bool, range: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("strategy.{key} = {value} is out of range: {range}")) }
}

/// The check of every strategy that has one.
pub(super) fn require_rate(rate: f64) -> Result<(), String> {
    require("server_learning_rate", rate, rate > 0.0 && rate <= 1000.0, "above 0, at most 1000")
}
