//! Batch normalization on the CPU (Ioffe and Szegedy 2015), forward and backward, in a few passes over memory.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use rayon::prelude::*;

use super::number::{Number, sum, vectorized};
use super::spare;

/// Sizes of one x, [samples, channels, plane], row-major; none is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub samples: usize,
    pub channels: usize,
    pub plane: usize,
}

impl Sizes {
    /// Values a channel.
    fn count(self) -> f64 {
        (self.samples * self.plane) as f64
    }

    /// A channel's values, sample by sample.
    fn planes<T>(self, x: &[T], channel: usize) -> impl Iterator<Item = &[T]> {
        x.chunks(self.plane).skip(channel).step_by(self.channels)
    }
}

/// Mean and biased variance of each channel.
pub(super) fn moments<T: Number>(s: Sizes, x: &[T]) -> (Vec<T>, Vec<T>) {
    let moments = (0..s.channels).into_par_iter().map(|channel| {
        let planes = || s.planes(x, channel);
        let total = planes()
            .map(|x| {
                vectorized(
                    #[inline(always)]
                    || sum(x, x, |x, _| x),
                )
            })
            .sum::<f64>();
        let mean = T::of(total / s.count());
        let square = |x, _| (x - mean) * (x - mean);
        let squares = planes()
            .map(|x| {
                vectorized(
                    #[inline(always)]
                    || sum(x, x, square),
                )
            })
            .sum::<f64>();
        (mean, T::of(squares / s.count()))
    });
    moments.unzip()
}

/// (x − mean) / √(variance + ε) · scale + bias.
pub(super) fn forward<T: Number>(
    s: Sizes,
    x: &[T],
    (scale, bias): (&[T], &[T]),
    (mean, variance): (&[T], &[T]),
    epsilon: f64,
) -> Vec<T> {
    let mut out = spare::take(x.len());
    out.par_chunks_mut(s.plane).zip(x.par_chunks(s.plane)).enumerate().for_each(|(index, (out, x))| {
        let channel = index % s.channels;
        let (mean, bias) = (mean[channel], bias[channel]);
        let factor = scale[channel] * inverse(variance[channel], epsilon);
        vectorized(
            #[inline(always)]
            || out.iter_mut().zip(x).for_each(|(out, x)| *out = (*x - mean) * factor + bias),
        );
    });
    out
}

/// The gradients with respect to x, scale and bias.
pub(super) fn backward<T: Number>(
    s: Sizes,
    x: &[T],
    scale: &[T],
    (mean, variance): (&[T], &[T]),
    slope: &[T],
    epsilon: f64,
) -> [Vec<T>; 3] {
    // Σ slope and Σ slope · (x − mean) of each channel.
    let sums = (0..s.channels).into_par_iter().map(|channel| {
        let mean = mean[channel];
        let planes = s.planes(slope, channel).zip(s.planes(x, channel));
        planes.fold((0.0, 0.0), |(slopes, products), (slope, x)| {
            vectorized(
                #[inline(always)]
                || {
                    (
                        slopes + sum(slope, slope, |slope, _| slope),
                        products + sum(slope, x, |slope, x| slope * (x - mean)),
                    )
                },
            )
        })
    });
    let sums: Vec<(f64, f64)> = sums.collect();
    let mut of_x = spare::take(x.len());
    let planes = x.par_chunks(s.plane).zip(slope.par_chunks(s.plane));
    of_x.par_chunks_mut(s.plane).zip(planes).enumerate().for_each(|(index, (of_x, (x, slope)))| {
        let channel = index % s.channels;
        let (slopes, products) = sums[channel];
        let (mean, inverse) = (mean[channel], inverse(variance[channel], epsilon));
        let precise: f64 = inverse.into();
        let (factor, shift) = (scale[channel] * inverse, T::of(slopes / s.count()));
        let along = T::of(products / s.count() * precise * precise);
        vectorized(
            #[inline(always)]
            || {
                for (of_x, (x, slope)) in of_x.iter_mut().zip(x.iter().zip(slope)) {
                    *of_x = factor * (*slope - shift - (*x - mean) * along);
                }
            },
        );
    });
    let of_scale = sums.iter().zip(variance).map(|((_, products), variance)| {
        let inverse: f64 = inverse(*variance, epsilon).into();
        T::of(products * inverse)
    });
    [of_x, of_scale.collect(), sums.iter().map(|(slopes, _)| T::of(*slopes)).collect()]
}

/// 1 / √(variance + ε).
fn inverse<T: Number>(variance: T, epsilon: f64) -> T {
    let variance: f64 = variance.into();
    T::of(1.0 / (variance + epsilon).sqrt())
}
