//! Checks an update's values while they stream by: finite, within the round's range, as many as the layout has.
//! Adding them up is in `sums`; whether the update answers an assignment was decided before.

use std::sync::Arc;

use super::kernels::{self, Squares};
use super::scales::Scales;
use crate::aggregate::AggregationError;

/// An update that is being checked, piece by piece. Memory: nothing that grows with the model.
#[derive(Debug)]
pub struct Check {
    scales: Arc<Scales>,
    squares: Squares,
    next: usize,
}

impl Check {
    /// Before the first piece.
    pub fn new(scales: Arc<Scales>) -> Check {
        Check { scales, squares: Squares::default(), next: 0 }
    }

    /// The next values in flat order, any number of them.
    ///
    /// # Errors
    /// [`AggregationError`] says which parameter has what wrong, or that there are too many values.
    pub fn piece(&mut self, values: &[f32]) -> Result<(), AggregationError> {
        let (start, end) = (self.next, self.next + values.len());
        if end > self.scales.len() {
            return Err(AggregationError::Length { what: "an update", got: end, expected: self.scales.len() });
        }
        for (tensor, run) in self.scales.runs(start..end) {
            let run_values = values.get(run.start - start..run.end - start).unwrap_or_default();
            let squares = (!tensor.is_statistic).then_some(&mut self.squares);
            if !kernels::check(run_values, tensor.bound, run.start, squares)
                && let Some(fault) = tensor.fault(run_values)
            {
                return Err(fault);
            }
        }
        self.next = end;
        Ok(())
    }

    /// ‖delta‖² over the trainable values, the same however the values were cut.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for too few values.
    pub fn finish(self) -> Result<f64, AggregationError> {
        let (got, expected) = (self.next, self.scales.len());
        if got != expected {
            return Err(AggregationError::Length { what: "an update", got, expected });
        }
        Ok(self.squares.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::weights;
    use fedge_models::ParameterClass::{Statistic, Trainable};

    fn scales() -> Arc<Scales> {
        let base =
            weights(&[("w", &[1.0; 10], Trainable), ("mean", &[1.0; 3], Statistic), ("b", &[1.0; 4], Trainable)]);
        Arc::new(Scales::for_base(&base))
    }

    fn check(pieces: &[&[f32]]) -> Result<f64, AggregationError> {
        let mut check = Check::new(scales());
        for piece in pieces {
            check.piece(piece)?;
        }
        check.finish()
    }

    #[test]
    fn the_squared_norm_counts_trainable_values_only_and_does_not_depend_on_the_pieces() {
        let update: Vec<f32> = (0..17).map(|i| i as f32 * 0.37 - 3.0).collect();
        let trainable = update[..10].iter().chain(&update[13..]);
        let expected: f64 = trainable.map(|d| f64::from(*d).powi(2)).sum();
        let whole = check(&[&update]).unwrap();
        assert!((whole - expected).abs() < 1e-12 * expected);
        for size in 1..17 {
            assert_eq!(check(&update.chunks(size).collect::<Vec<_>>()).unwrap(), whole);
        }
    }

    #[test]
    fn nan_infinity_and_huge_moves_are_refused_by_name_wherever_they_are() {
        for (at, name) in [(0, "w"), (9, "w"), (10, "mean"), (12, "mean"), (13, "b"), (16, "b")] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9, -1e9] {
                let mut update = [0.0; 17];
                update[at] = bad;
                let error = check(&[&update[..5], &update[5..]]).unwrap_err();
                assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
                assert_eq!(matches!(error, AggregationError::NotFinite { .. }), !bad.is_finite());
            }
        }
    }

    #[test]
    fn the_bound_itself_is_refused_and_the_value_below_it_is_not() {
        let mut update = vec![0.0; 17];
        for (at, bound) in [(0, 8.0f32), (11, 4096.0)] {
            update[at] = bound.next_down();
            assert!(check(&[&update]).is_ok());
            update[at] = -bound;
            assert!(matches!(check(&[&update]), Err(AggregationError::OutOfRange { .. })));
            update[at] = 0.0;
        }
    }

    #[test]
    fn too_many_and_too_few_values_are_refused() {
        assert!(matches!(check(&[&[0.0; 16]]), Err(AggregationError::Length { got: 16, expected: 17, .. })));
        assert!(matches!(check(&[&[0.0; 16], &[0.0; 2]]), Err(AggregationError::Length { got: 18, expected: 17, .. })));
    }
}
