//! Closes a round by parameter range: sums become means, means and the base become the next values.
//! Which ranges, in which order and on how many threads, is the caller's; so is where the values go.

use std::sync::Arc;

use super::fixed_point::{Sums, all_within};
use super::strategies::{MAX_ARRAYS, Step, StrategySpec};
use super::{AggregationError, UpdateFacts};

/// A round whose updates are all in the sums. Pieces are independent: on any thread, in any order, the bits are the same.
#[derive(Debug)]
pub struct Close {
    strategy: StrategySpec,
    sums: Arc<Sums>,
    factors: Vec<f64>,
    /// The factor of statistics: 1 / Σ examples.
    statistic: f64,
    participation: f64,
}

impl Close {
    /// `facts`: of the updates that were folded, always in the same order (by node), so that sums of floats can be
    /// replayed. `population`: the nodes that there are, SCAFFOLD's N; not fewer than the updates.
    ///
    /// # Errors
    /// [`AggregationError::Unfinished`] where other updates were folded than these, [`AggregationError::Empty`] without
    /// any, [`AggregationError::Facts`] where the strategy can't make a mean of them.
    pub fn new(
        strategy: &StrategySpec,
        sums: Arc<Sums>,
        facts: &[UpdateFacts],
        population: usize,
    ) -> Result<Close, AggregationError> {
        let (begun, folded) = sums.updates();
        if begun != folded || folded != facts.len() {
            return Err(AggregationError::Unfinished { begun, folded, expected: facts.len() });
        }
        let factors = strategy.factors(facts)?;
        let examples: u64 = facts.iter().map(|facts| facts.examples).sum();
        let participation = facts.len() as f64 / population.max(facts.len()) as f64;
        Ok(Close { strategy: strategy.clone(), sums, factors, statistic: 1.0 / examples as f64, participation })
    }

    /// The next values of the flat range that begins at `start` and has `base`'s length, which are the base's values
    /// there. `state`: the same range of each of the strategy's arrays, changed in place but at statistics. Memory: some 20
    /// bytes a value of the piece; 2^16 to 2^18 values are a good size.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for a range outside the layout or other numbers of arrays or values,
    /// [`AggregationError::Diverged`] where a next value is not finite. The state is unusable then.
    pub fn piece(&self, start: usize, base: &[f32], state: &mut [Vec<f32>]) -> Result<Vec<f32>, AggregationError> {
        let range = start..start.saturating_add(base.len());
        self.check_state(base.len(), state)?;
        let mut means = Vec::with_capacity(MAX_ARRAYS);
        for sum in 0..self.factors.len() {
            let mut values = Vec::with_capacity(base.len());
            self.sums.read(sum, range.clone(), &mut values)?;
            means.push(values);
        }
        let mut out = vec![0.0f32; base.len()];
        for (tensor, run) in self.sums.scales().runs(range) {
            let run = run.start - start..run.end - start;
            let (Some(base), Some(out)) = (base.get(run.clone()), out.get_mut(run.clone())) else { continue };
            for (values, factor) in means.iter_mut().zip(&self.factors) {
                let factor = if tensor.is_statistic { self.statistic } else { *factor };
                for value in values.get_mut(run.clone()).unwrap_or_default() {
                    *value *= factor;
                }
            }
            let means: [&[f64]; MAX_ARRAYS] =
                std::array::from_fn(|sum| means.get(sum).and_then(|m| m.get(run.clone())).unwrap_or_default());
            if tensor.is_statistic {
                let [mean, _] = means;
                for ((out, base), mean) in out.iter_mut().zip(base).zip(mean) {
                    *out = (f64::from(*base) + mean) as f32;
                }
            } else {
                let mut arrays = state.iter_mut().map(|array| array.get_mut(run.clone()).unwrap_or_default());
                let state = std::array::from_fn(|_| arrays.next().unwrap_or_default());
                let step = Step { participation: self.participation, base, means, state };
                self.strategy.strategy().next(step, out);
            }
            let finite = |values: &[f32]| all_within(values, f32::INFINITY);
            let state_is_finite = state.iter().all(|array| finite(array.get(run.clone()).unwrap_or_default()));
            if !finite(out) || !(tensor.is_statistic || state_is_finite) {
                return Err(AggregationError::Diverged { parameter: tensor.name.clone() });
            }
        }
        Ok(out)
    }

    fn check_state(&self, len: usize, state: &[Vec<f32>]) -> Result<(), AggregationError> {
        let expected = self.strategy.strategy().state().len();
        if state.len() != expected {
            return Err(AggregationError::Length { what: "the list of state arrays", got: state.len(), expected });
        }
        match state.iter().find(|array| array.len() != len) {
            Some(array) => {
                Err(AggregationError::Length { what: "a piece of a state array", got: array.len(), expected: len })
            }
            None => Ok(()),
        }
    }
}
