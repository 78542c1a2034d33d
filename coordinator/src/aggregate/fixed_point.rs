//! Checked integer sums of updates: the result does not depend on arrival order, worker count or a replay.
//! An update's f32 deltas become |q| < 2^31 at a power-of-two scale per tensor; weights are at most 2^20, cohorts 2^12.

use std::ops::Range;

use fedge_models::{Layout, ParameterClass, Weights};

/// Most updates in one sum: with weights up to 2^20 and |q| < 2^31 an `i64` cannot overflow.
pub const MAX_COHORT: usize = 1 << 12;
/// Largest weight (number of examples) of one update.
pub const MAX_EXAMPLES: u64 = 1 << 20;
/// Largest |q|.
const LIMIT: f64 = ((1i64 << 31) - 1) as f64;

/// Why updates could not be aggregated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AggregationError {
    /// NaN or infinity.
    #[error("parameter {parameter:?} has a value that is not finite")]
    NotFinite {
        /// Its name.
        parameter: String,
    },
    /// A delta beyond what the round's scale can hold.
    #[error(
        "parameter {parameter:?} moved by {delta:.3e}, more than the {bound:.1} that this round accepts: \
         training diverged there; lower the learning rate"
    )]
    OutOfRange {
        /// Its name.
        parameter: String,
        /// The delta.
        delta: f32,
        /// The bound.
        bound: f64,
    },
    /// Wrong number of values.
    #[error("an update has {got} values where the layout has {expected}")]
    Length {
        /// Values that came.
        got: usize,
        /// Values of the layout.
        expected: usize,
    },
    /// A weight of 0 or above 2^20.
    #[error("{0} examples: an update's weight is 1 to 1048576")]
    Weight(u64),
    /// More updates than the sum can hold.
    #[error("more than 4096 updates in one round")]
    Cohort,
    /// Nothing to average.
    #[error("no update to average")]
    Empty,
    /// The result does not fit the layout.
    #[error("{0}")]
    Weights(String),
}

/// The scales of a round: one power of two per exchanged tensor, from the base weights alone, so that the coordinator
/// and a replay of it agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    tensors: Vec<(String, Range<usize>, f64)>,
    len: usize,
}

impl Scales {
    /// A trainable tensor may move by 8 × max(1, its largest |weight|) in a round; a statistic (running mean or
    /// variance, which follows the data's range) by 4096 ×. The bound is rounded up to a power of two and divided by
    /// 2^31: steps of 3.7e-9 for a usual layer, below f32's own resolution at its weights.
    pub fn for_base(base: &Weights) -> Scales {
        let layout: &Layout = base.layout();
        let tensors = layout
            .exchanged()
            .map(|(parameter, range)| {
                let values = base.values().get(range.clone()).unwrap_or_default();
                let largest = values.iter().fold(1.0f64, |m, v| m.max(f64::from(v.abs())));
                let factor = if parameter.class == ParameterClass::Statistic { 12 } else { 3 };
                let bound = 2f64.powi(largest.log2().ceil() as i32 + factor);
                (parameter.name.clone(), range, bound / 2f64.powi(31))
            })
            .collect();
        Scales { tensors, len: layout.exchanged_len() }
    }
}

/// The running sum of a round's updates. Memory: 8 bytes a parameter, whatever the cohort.
#[derive(Debug)]
pub struct Accumulator {
    scales: Scales,
    sums: Vec<i64>,
    examples: u64,
    updates: usize,
}

impl Accumulator {
    /// Empty sums.
    pub fn new(scales: Scales) -> Accumulator {
        let sums = vec![0; scales.len];
        Accumulator { scales, sums, examples: 0, updates: 0 }
    }

    /// Checks an update against the scales without adding it.
    ///
    /// # Errors
    /// [`AggregationError`] says which parameter has what wrong.
    pub fn check(scales: &Scales, delta: &[f32], examples: u64) -> Result<(), AggregationError> {
        if examples == 0 || examples > MAX_EXAMPLES {
            return Err(AggregationError::Weight(examples));
        }
        if delta.len() != scales.len {
            return Err(AggregationError::Length { got: delta.len(), expected: scales.len });
        }
        for (name, range, scale) in &scales.tensors {
            for d in delta.get(range.clone()).unwrap_or_default() {
                quantize(*d, *scale).map_err(|fault| fault.name(name, *d, *scale))?;
            }
        }
        Ok(())
    }

    /// Adds one update of `examples` examples: sum += examples · round(delta / scale). All or nothing.
    ///
    /// # Errors
    /// [`AggregationError`]; the sums are unchanged.
    pub fn add(&mut self, delta: &[f32], examples: u64) -> Result<(), AggregationError> {
        Self::check(&self.scales, delta, examples)?;
        if self.updates >= MAX_COHORT {
            return Err(AggregationError::Cohort);
        }
        let weight = examples as i64;
        for (name, range, scale) in &self.scales.tensors {
            let sums = self.sums.get_mut(range.clone()).unwrap_or_default();
            for (sum, d) in sums.iter_mut().zip(delta.get(range.clone()).unwrap_or_default()) {
                let q = quantize(*d, *scale).map_err(|fault| fault.name(name, *d, *scale))?;
                // 31 + 20 + 12 bits: the checks above leave no way to overflow.
                *sum = sum.saturating_add(q * weight);
            }
        }
        self.examples += examples;
        self.updates += 1;
        Ok(())
    }

    /// The weighted mean delta, sum · scale / examples.
    ///
    /// # Errors
    /// [`AggregationError::Empty`] before the first update.
    pub fn mean(&self) -> Result<Vec<f64>, AggregationError> {
        if self.examples == 0 {
            return Err(AggregationError::Empty);
        }
        let mut mean = vec![0.0; self.sums.len()];
        for (_, range, scale) in &self.scales.tensors {
            let sums = self.sums.get(range.clone()).unwrap_or_default();
            for (m, sum) in mean.get_mut(range.clone()).unwrap_or_default().iter_mut().zip(sums) {
                *m = (*sum as f64) * scale / (self.examples as f64);
            }
        }
        Ok(mean)
    }
}

enum Fault {
    NotFinite,
    OutOfRange,
}

impl Fault {
    fn name(self, parameter: &str, delta: f32, scale: f64) -> AggregationError {
        let parameter = parameter.to_owned();
        match self {
            Fault::NotFinite => AggregationError::NotFinite { parameter },
            Fault::OutOfRange => AggregationError::OutOfRange { parameter, delta, bound: scale * LIMIT },
        }
    }
}

fn quantize(delta: f32, scale: f64) -> Result<i64, Fault> {
    if !delta.is_finite() {
        return Err(Fault::NotFinite);
    }
    let q = (f64::from(delta) / scale).round_ties_even();
    if q.abs() > LIMIT { Err(Fault::OutOfRange) } else { Ok(q as i64) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::aggregate::{Strategy, next_weights};
    use fedge_models::Model;
    use std::path::Path;

    fn base() -> Weights {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/digits_cnn.onnx");
        Model::from_path(&file).unwrap().weights()
    }

    /// A delta whose values are small multiples of 2^-10, exact at every scale.
    fn delta(len: usize, seed: u64) -> Vec<f32> {
        (0..len as u64).map(|i| ((i * 7 + seed * 13) % 31) as f32 / 1024.0 - 15.0 / 1024.0).collect()
    }

    #[test]
    fn fedavg_equals_the_hand_computed_weighted_mean() {
        // Two nodes, 1 and 3 examples, deltas 0.5 and -0.25 on every parameter: (1·0.5 + 3·(-0.25)) / 4 = -0.0625.
        let base = base();
        let mut sum = Accumulator::new(Scales::for_base(&base));
        sum.add(&vec![0.5; base.values().len()], 1).unwrap();
        sum.add(&vec![-0.25; base.values().len()], 3).unwrap();
        let mean = sum.mean().unwrap();
        assert!(mean.iter().all(|m| *m == -0.0625));
        let next = next_weights(Strategy::FedAvg, &base, &mean).unwrap();
        for (new, old) in next.values().iter().zip(base.values()) {
            assert_eq!(*new, old - 0.0625);
        }
    }

    #[test]
    fn the_sum_does_not_depend_on_the_order_of_arrival() {
        let base = base();
        let updates: Vec<(Vec<f32>, u64)> =
            (1..=9).map(|i| (delta(base.values().len(), i).iter().map(|d| d / 3.0).collect(), i * 11)).collect();
        let sum = |order: &[usize]| {
            let mut sum = Accumulator::new(Scales::for_base(&base));
            for i in order {
                sum.add(&updates[*i].0, updates[*i].1).unwrap();
            }
            sum.mean().unwrap()
        };
        assert_eq!(sum(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), sum(&[8, 3, 1, 7, 0, 5, 2, 6, 4]));
    }

    #[test]
    fn the_mean_is_as_fine_as_f32_at_the_weights() {
        let base = base();
        let update: Vec<f32> = base.values().iter().map(|w| w * 0.001 + 1e-5).collect();
        let mut sum = Accumulator::new(Scales::for_base(&base));
        sum.add(&update, 17).unwrap();
        for (m, d) in sum.mean().unwrap().iter().zip(&update) {
            assert!((m - f64::from(*d)).abs() <= 2e-9, "{m} {d}");
        }
    }

    #[test]
    fn nan_infinity_huge_moves_wrong_lengths_and_weights_are_refused_and_change_nothing() {
        let base = base();
        let len = base.values().len();
        let mut sum = Accumulator::new(Scales::for_base(&base));
        sum.add(&delta(len, 1), 2).unwrap();
        let before = sum.mean().unwrap();
        for bad in [f32::NAN, f32::INFINITY, 1e9] {
            let mut update = vec![0.0; len];
            update[len - 1] = bad;
            let error = sum.add(&update, 1).unwrap_err().to_string();
            assert!(error.contains("fc2.bias"), "{error}");
        }
        assert_eq!(sum.add(&vec![0.0; len - 1], 1), Err(AggregationError::Length { got: len - 1, expected: len }));
        assert_eq!(sum.add(&vec![0.0; len], 0), Err(AggregationError::Weight(0)));
        assert_eq!(sum.add(&vec![0.0; len], (1 << 20) + 1), Err(AggregationError::Weight((1 << 20) + 1)));
        assert_eq!(sum.mean().unwrap(), before);
    }

    #[test]
    fn the_largest_cohort_of_the_largest_updates_does_not_overflow() {
        let base = base();
        let len = base.values().len();
        let mut sum = Accumulator::new(Scales::for_base(&base));
        let largest = sum.scales.tensors[0].2 * LIMIT;
        let mut update = vec![0.0; len];
        update[0] = largest as f32 * 0.999_999;
        for _ in 0..MAX_COHORT {
            sum.add(&update, MAX_EXAMPLES).unwrap();
        }
        let mean = sum.mean().unwrap()[0];
        assert!((mean - f64::from(update[0])).abs() < 1e-6, "{mean}");
        assert_eq!(sum.add(&update, 1), Err(AggregationError::Cohort));
    }
}
