//! The scales of a round, one power of two per exchanged tensor, from the largest absolute values of the base alone.
//! What is done with them is in `check` and `sums`.

use std::ops::Range;

use fedge_models::{Layout, ParameterClass, Weights};

use super::kernels;
use crate::aggregate::AggregationError;

/// The scales of a round. They follow from the base weights alone, so that the coordinator and a replay of it agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    tensors: Vec<Tensor>,
    len: usize,
}

/// One exchanged tensor.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::aggregate) struct Tensor {
    /// Its name.
    pub(in crate::aggregate) name: String,
    /// Its place in the flat vector.
    pub(in crate::aggregate) range: Range<usize>,
    /// Whether it is a mean whatever the strategy.
    pub(in crate::aggregate) is_statistic: bool,
    /// The step of the integers, a power of two.
    pub(in crate::aggregate) scale: f64,
    /// Every |delta| is below it: scale · 2^31. Infinite where f32 can't hold it.
    pub(in crate::aggregate) bound: f32,
}

impl Tensor {
    /// What is wrong with the first of these deltas that is not within the bound; `None` where all are.
    pub(super) fn fault(&self, deltas: &[f32]) -> Option<AggregationError> {
        let delta = *deltas.iter().find(|delta| delta.is_nan() || delta.abs() >= self.bound)?;
        let parameter = self.name.clone();
        Some(match delta.is_finite() {
            false => AggregationError::NotFinite { parameter },
            true => AggregationError::OutOfRange { parameter, delta, bound: f64::from(self.bound) },
        })
    }
}

impl Scales {
    /// A trainable tensor may move by 8 × max(1, its largest |weight|) in a round; a statistic (running mean or
    /// variance, which follows the data's range) by 4096 ×. The bound is rounded up to a power of two and divided by
    /// 2^31: steps of 3.7e-9 for a usual layer, below f32's own resolution at its weights.
    ///
    /// `largest_abs` holds the largest |value| of each exchanged tensor, in the layout's order ([`LargestAbs`]).
    ///
    /// # Errors
    /// [`AggregationError::Length`] where their number differs, [`AggregationError::NotFinite`] where one isn't.
    pub fn new(layout: &Layout, largest_abs: &[f64]) -> Result<Scales, AggregationError> {
        let (got, expected) = (largest_abs.len(), layout.exchanged().count());
        if got != expected {
            return Err(AggregationError::Length { what: "the list of largest values", got, expected });
        }
        if let Some(((spec, _), _)) = layout.exchanged().zip(largest_abs).find(|(_, largest)| !largest.is_finite()) {
            return Err(AggregationError::NotFinite { parameter: spec.name.clone() });
        }
        Ok(Scales::of(layout, largest_abs.iter().copied()))
    }

    /// The scales of a base that is in memory.
    pub fn for_base(base: &Weights) -> Scales {
        let layout: &Layout = base.layout();
        let values = |range| base.values().get(range).unwrap_or_default();
        Scales::of(layout, layout.exchanged().map(|(_, range)| f64::from(kernels::largest_abs(values(range)))))
    }

    fn of(layout: &Layout, largest_abs: impl Iterator<Item = f64>) -> Scales {
        let tensors = layout.exchanged().zip(largest_abs).map(|((spec, range), largest)| {
            let is_statistic = spec.class == ParameterClass::Statistic;
            let bound = ceil_to_power_of_two(largest.abs().max(1.0)) * if is_statistic { 4096.0 } else { 8.0 };
            let scale = bound / f64::from(1u32 << 31);
            Tensor { name: spec.name.clone(), range, is_statistic, scale, bound: bound as f32 }
        });
        Scales { tensors: tensors.collect(), len: layout.exchanged_len() }
    }

    /// Number of values of an update.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is exchanged.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors of a flat range, each with the part of its own range that lies inside.
    pub(in crate::aggregate) fn runs(&self, within: Range<usize>) -> impl Iterator<Item = (&Tensor, Range<usize>)> {
        let first = self.tensors.partition_point(|tensor| tensor.range.end <= within.start);
        self.tensors.iter().skip(first).take_while(move |tensor| tensor.range.start < within.end).filter_map(
            move |tensor| {
                let run = tensor.range.start.max(within.start)..tensor.range.end.min(within.end);
                (!run.is_empty()).then_some((tensor, run))
            },
        )
    }
}

/// Finds the largest |value| of each exchanged tensor in a base that comes piece by piece.
#[derive(Debug, Clone)]
pub struct LargestAbs {
    ranges: Vec<Range<usize>>,
    largest: Vec<f32>,
    tensor: usize,
    next: usize,
    len: usize,
}

impl LargestAbs {
    /// Before the first piece.
    pub fn new(layout: &Layout) -> LargestAbs {
        let ranges: Vec<Range<usize>> = layout.exchanged().map(|(_, range)| range).collect();
        LargestAbs { largest: vec![0.0; ranges.len()], ranges, tensor: 0, next: 0, len: layout.exchanged_len() }
    }

    /// The next values in flat order, any number of them.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for more values than the layout has.
    pub fn piece(&mut self, mut values: &[f32]) -> Result<(), AggregationError> {
        let got = self.next + values.len();
        if got > self.len {
            return Err(AggregationError::Length { what: "the base", got, expected: self.len });
        }
        while let (Some(range), Some(largest), false) =
            (self.ranges.get(self.tensor), self.largest.get_mut(self.tensor), values.is_empty())
        {
            let (run, rest) = values.split_at(values.len().min(range.end - self.next));
            *largest = kernels::largest_abs(&[*largest, kernels::largest_abs(run)]);
            self.next += run.len();
            values = rest;
            if self.next == range.end {
                self.tensor += 1;
            }
        }
        Ok(())
    }

    /// The largest |value| of each exchanged tensor, in the layout's order; not finite where one of its values isn't.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for fewer values than the layout has.
    pub fn finish(self) -> Result<Vec<f64>, AggregationError> {
        if self.next != self.len {
            return Err(AggregationError::Length { what: "the base", got: self.next, expected: self.len });
        }
        Ok(self.largest.into_iter().map(f64::from).collect())
    }
}

/// The smallest power of two that is at least `x`, for finite x >= 1. Exact, unlike a logarithm.
fn ceil_to_power_of_two(x: f64) -> f64 {
    let floor = f64::from_bits(x.to_bits() & (0x7ff << 52));
    if floor == x { floor } else { floor * 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::weights;
    use ParameterClass::{Constant, Statistic, Trainable};

    fn base() -> Weights {
        weights(&[
            ("w", &[0.5, -3.0, 1.0], Trainable),
            ("clip", &[6.0], Constant),
            ("none", &[], Trainable),
            ("mean", &[-300.0, 2.0], Statistic),
            ("b", &[0.25], Trainable),
        ])
    }

    #[test]
    fn a_tensor_may_move_by_eight_times_its_largest_weight_and_a_statistic_by_4096_times() {
        let scales = Scales::for_base(&base());
        let bounds: Vec<f32> = scales.tensors.iter().map(|t| t.bound).collect();
        assert_eq!(bounds, [32.0, 8.0, 512.0 * 4096.0, 8.0]);
        for tensor in &scales.tensors {
            assert_eq!(tensor.scale * 2f64.powi(31), f64::from(tensor.bound));
        }
    }

    #[test]
    fn scales_from_pieces_of_any_size_equal_those_of_a_base_in_memory() {
        let base = base();
        for size in 1..=base.values().len() {
            let mut largest = LargestAbs::new(base.layout());
            for piece in base.values().chunks(size) {
                largest.piece(piece).unwrap();
            }
            let largest = largest.finish().unwrap();
            assert_eq!(Scales::new(base.layout(), &largest).unwrap(), Scales::for_base(&base));
        }
    }

    #[test]
    fn a_base_with_other_numbers_of_values_or_a_nan_gives_no_scales() {
        let base = base();
        let mut largest = LargestAbs::new(base.layout());
        largest.piece(&base.values()[1..]).unwrap();
        assert!(largest.clone().finish().is_err());
        assert!(largest.piece(&[1.0, 2.0]).is_err());
        assert!(Scales::new(base.layout(), &[1.0; 3]).is_err());
        let mut largest = LargestAbs::new(base.layout());
        largest.piece(&[0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]).unwrap();
        let error = Scales::new(base.layout(), &largest.finish().unwrap()).unwrap_err();
        assert_eq!(error, AggregationError::NotFinite { parameter: "mean".into() });
    }

    #[test]
    fn the_runs_of_a_range_cover_it_in_order() {
        let scales = Scales::for_base(&base());
        let runs: Vec<(&str, Range<usize>)> = scales.runs(1..6).map(|(t, run)| (t.name.as_str(), run)).collect();
        assert_eq!(runs, [("w", 1..3), ("mean", 3..5), ("b", 5..6)]);
        assert_eq!(scales.runs(2..2).count(), 0);
    }

    #[test]
    fn powers_of_two_are_exact() {
        for (x, power) in [(1.0, 1.0), (1.0 + f64::EPSILON, 2.0), (2.0, 2.0), (3.0, 4.0), (4.1, 8.0)] {
            assert_eq!(ceil_to_power_of_two(x), power);
        }
        assert_eq!(ceil_to_power_of_two(f64::from(f32::MAX)), 2f64.powi(128));
    }
}
