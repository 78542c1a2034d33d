//! The numbers that our own forward and backward passes compute with, and sums of them.

use std::ops::AddAssign;

use ndarray::LinalgScalar;

/// float32, and float64 for checks.
pub(super) trait Number: LinalgScalar + AddAssign + PartialOrd + Into<f64> + Send + Sync {
    /// The nearest number.
    fn of(value: f64) -> Self;
}

impl Number for f32 {
    fn of(value: f64) -> f32 {
        value as f32
    }
}

impl Number for f64 {
    fn of(value: f64) -> f64 {
        value
    }
}

/// Numbers that are summed in their own precision before float64 takes over.
const RUN: usize = 1024;
/// Sums side by side, so that they can be vectorised.
pub(super) const LANES: usize = 16;

/// Σ term(a[i], b[i]) over slices of one length, always in the same order.
pub(super) fn sum<T: Number>(a: &[T], b: &[T], term: impl Fn(T, T) -> T) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let ((heads_a, rest_a), (heads_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut sums = [T::zero(); LANES];
        for (a, b) in heads_a.iter().zip(heads_b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += term(*a, *b);
            }
        }
        let rest = rest_a.iter().zip(rest_b).map(|(a, b)| term(*a, *b));
        total += sums.into_iter().chain(rest).map(Into::<f64>::into).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_every_term_once() {
        for len in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let a: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 5) as f32).collect();
            let expected: f64 = (0..len).map(|i| f64::from((i % 7) * (i % 5))).sum();
            assert_eq!(sum(&a, &b, |a, b| a * b), expected, "{len}");
        }
    }
}
