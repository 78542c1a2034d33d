//! How much one update counts in each of the round's sums, within the bounds that keep them from overflowing.
//! The numbers come from a strategy; the adding is in `sums`.

use super::MAX_EXAMPLES;
use crate::aggregate::AggregationError;

/// What an update adds to one sum: weight · round(delta · multiplier / scale).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Integer weight, 1..=2^20.
    pub weight: u64,
    /// Factor on the delta before it becomes an integer, above 0; weight · multiplier is at most 2^20. A strategy with
    /// real weights keeps weight at 1 and uses the multiplier alone: up to 2^20 its roundings are as fine as can be.
    pub multiplier: f64,
}

impl Share {
    /// `weight` times the delta as it is.
    pub fn weighted(weight: u64) -> Share {
        Share { weight, multiplier: 1.0 }
    }

    /// `multiplier` times the delta.
    pub fn scaled(multiplier: f64) -> Share {
        Share { weight: 1, multiplier }
    }
}

/// How much one update counts: by examples for statistics, and a [`Share`] in each sum for trainable values.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    examples: u64,
    shares: Vec<Share>,
}

impl Contribution {
    /// `shares`: one for each sum of the strategy.
    ///
    /// # Errors
    /// [`AggregationError::Weight`] for examples out of range, [`AggregationError::Share`] for a share.
    pub fn new(examples: u64, shares: Vec<Share>) -> Result<Contribution, AggregationError> {
        if !(1..=MAX_EXAMPLES).contains(&examples) {
            return Err(AggregationError::Weight(examples));
        }
        let most = MAX_EXAMPLES as f64;
        for &Share { weight, multiplier } in &shares {
            let fits = multiplier > 0.0 && weight as f64 * multiplier <= most;
            if !(1..=MAX_EXAMPLES).contains(&weight) || !fits {
                return Err(AggregationError::Share { weight, multiplier });
            }
        }
        Ok(Contribution { examples, shares })
    }

    /// Weight in the means of statistics.
    pub fn examples(&self) -> u64 {
        self.examples
    }

    /// Its part in each sum of trainable values.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_could_make_a_sum_overflow_is_refused() {
        for (weight, multiplier) in
            [(0, 1.0), (MAX_EXAMPLES + 1, 1.0), (2, MAX_EXAMPLES as f64), (1, 0.0), (1, -1.0), (1, f64::NAN)]
        {
            let error = Contribution::new(1, vec![Share { weight, multiplier }]).unwrap_err();
            assert!(matches!(error, AggregationError::Share { .. }), "{error}");
        }
        assert!(Contribution::new(1, vec![Share::scaled(f64::INFINITY)]).is_err());
        assert!(Contribution::new(1, vec![Share::scaled(MAX_EXAMPLES as f64), Share::weighted(MAX_EXAMPLES)]).is_ok());
    }

    #[test]
    fn no_examples_and_too_many_are_refused() {
        for examples in [0, MAX_EXAMPLES + 1, u64::MAX] {
            let error = Contribution::new(examples, vec![Share::weighted(1)]).unwrap_err();
            assert_eq!(error, AggregationError::Weight(examples));
        }
    }
}
