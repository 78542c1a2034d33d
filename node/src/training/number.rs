//! The numbers that our own forward and backward passes compute with, in vectors of the processor's width, and sums of them.

use std::ops::AddAssign;
use std::sync::OnceLock;

use ndarray::LinalgScalar;
use pulp::{Arch, Simd, WithSimd};

use super::spare::Spare;

/// float32, and float64 for checks.
pub(super) trait Number: LinalgScalar + AddAssign + PartialOrd + Into<f64> + Send + Sync {
    /// A vector of the processor's width.
    type Vector<S: Simd>: Copy;

    /// The nearest number.
    fn of(value: f64) -> Self;
    /// Numbers of a vector; 1 where the processor has no vectors that are known here.
    fn lanes<S: Simd>() -> usize;
    /// One number in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// The first numbers of a slice that has a vector's; zeros where it has not.
    fn load<S: Simd>(simd: S, values: &[Self]) -> Self::Vector<S>;
    /// Writes a vector to the first places of a slice that has room; nothing where it has not.
    fn store<S: Simd>(simd: S, vector: Self::Vector<S>, values: &mut [Self]);
    /// a · b + c, lane by lane, rounded once where the processor can.
    fn multiply_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// The sum of all lanes.
    fn total<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
    /// This thread's memory to use again.
    fn spare<R>(with: impl FnOnce(&Spare<Self>) -> R) -> R;
}

macro_rules! number {
    ($type:ident, $vector:ident, $lanes:ident, $splat:ident, $slices:ident, $slices_mut:ident, $multiply_add:ident, $sum:ident) => {
        impl Number for $type {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn of(value: f64) -> $type {
                value as $type
            }

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: $type) -> S::$vector {
                simd.$splat(value)
            }

            #[inline(always)]
            fn load<S: Simd>(simd: S, values: &[$type]) -> S::$vector {
                debug_assert!(values.len() >= S::$lanes, "{} numbers are no vector", values.len());
                S::$slices(values).0.first().copied().unwrap_or_else(|| simd.$splat(0.0))
            }

            #[inline(always)]
            fn store<S: Simd>(_: S, vector: S::$vector, values: &mut [$type]) {
                debug_assert!(values.len() >= S::$lanes, "{} places take no vector", values.len());
                if let Some(place) = S::$slices_mut(values).0.first_mut() {
                    *place = vector;
                }
            }

            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$multiply_add(a, b, c)
            }

            #[inline(always)]
            fn total<S: Simd>(simd: S, vector: S::$vector) -> $type {
                simd.$sum(vector)
            }

            fn spare<R>(with: impl FnOnce(&Spare<$type>) -> R) -> R {
                thread_local! {
                    static SPARE: Spare<$type> = const { Spare::new() };
                }
                SPARE.with(with)
            }
        }
    };
}

number!(f32, f32s, F32_LANES, splat_f32s, as_simd_f32s, as_mut_simd_f32s, mul_add_e_f32s, reduce_sum_f32s);
number!(f64, f64s, F64_LANES, splat_f64s, as_simd_f64s, as_mut_simd_f64s, mul_add_e_f64s, reduce_sum_f64s);

/// Runs a kernel for the vectors that this processor has.
#[inline(always)]
pub(super) fn kernel<W: WithSimd>(work: W) -> W::Output {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(Arch::new).dispatch(work)
}

/// Runs a loop compiled for the vectors that this processor has: a closure that is `inline(always)`, as all that it calls.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnMut() -> R) -> R {
    kernel(Loop(work))
}

struct Loop<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Loop<F> {
    type Output = R;

    // Not as `FnOnce`, whose shim would not be inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Numbers that are summed in their own precision before float64 takes over.
const RUN: usize = 1024;
/// Sums side by side, so that they can be vectorised.
const LANES: usize = 16;

/// Σ term(a[i], b[i]) over slices of one length, always in the same order. Fast inside of [`vectorized`].
#[inline(always)]
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
            assert_eq!(
                vectorized(
                    #[inline(always)]
                    || sum(&a, &b, |a, b| a * b)
                ),
                expected,
                "{len}"
            );
        }
    }
}
