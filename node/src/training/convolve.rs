//! Convolution of images on the CPU, forward and backward, in three ways: depthwise over padded planes, directly where the
//! windows lie, and in vectors of channels.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use std::ops::Range;

use rayon::prelude::*;

use super::number::{Number, sum, vectorized};
use super::spare;

mod channels;
mod depthwise;
mod direct;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;

use depthwise::{Walk, depthwise, depthwise_back};
use direct::Field;

/// A padded copy of so many values is small, whatever it surrounds.
const SMALL: usize = 4096;

/// Sizes of one convolution; x is [batch, channels, size], the weight [outputs, channels / groups, kernel], the result
/// [batch, outputs, out], all row-major.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub channels: usize,
    pub size: [usize; 2],
    pub outputs: usize,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Padding before each axis; what lies behind follows from `out`.
    pub pads: [usize; 2],
    pub out: [usize; 2],
}

impl Sizes {
    pub(super) fn image(&self) -> usize {
        self.size[0] * self.size[1]
    }

    pub(super) fn plane(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Channels and outputs of one group.
    fn part(&self) -> (usize, usize) {
        (self.channels / self.groups, self.outputs / self.groups)
    }

    /// Weights of one output.
    fn rows(&self) -> usize {
        self.part().0 * self.kernel[0] * self.kernel[1]
    }

    /// How the planes are walked where each channel has a filter of its own.
    fn depthwise(&self) -> Option<Walk> {
        if self.part() == (1, 1) { Walk::of(self) } else { None }
    }

    /// Whether each output sees the input at its own place alone.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0, 0] && self.out == self.size
    }

    /// Where the kernel's row or column `tap` begins in the image, for output 0.
    fn offset(&self, axis: usize, tap: usize) -> isize {
        (tap * self.dilations[axis]) as isize - self.pads[axis] as isize
    }

    /// Outputs whose input of this tap lies inside the image.
    pub(super) fn inside(&self, axis: usize, tap: usize) -> Range<usize> {
        let (offset, stride) = (self.offset(axis, tap), self.strides[axis] as isize);
        let last = self.size[axis] as isize - 1 - offset;
        let end = if last < 0 { 0 } else { (last / stride + 1) as usize }.min(self.out[axis]);
        let start = if offset >= 0 { 0 } else { ((-offset + stride - 1) / stride) as usize };
        start.min(end)..end
    }

    /// The input index of an output that is inside.
    pub(super) fn input(&self, axis: usize, tap: usize, output: usize) -> usize {
        ((output * self.strides[axis]) as isize + self.offset(axis, tap)) as usize
    }

    /// Each tap of the kernel with its number.
    pub(super) fn taps(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let [height, width] = self.kernel;
        (0..height).flat_map(move |row| (0..width).map(move |column| (row * width + column, row, column)))
    }
}

/// The convolution, with a bias for each output where given.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut out = spare::take(s.batch * s.outputs * s.plane());
    let samples = out.par_chunks_mut((s.outputs * s.plane()).max(1)).zip(x.par_chunks((s.channels * s.image()).max(1)));
    if let Some(walk) = s.depthwise() {
        samples.for_each(|(out, x)| {
            depthwise(s, &walk, x, weight, out);
            for (plane, bias) in out.chunks_mut(s.plane()).zip(bias.into_iter().flatten()) {
                plane.iter_mut().for_each(|value| *value += *bias);
            }
        });
    } else if let Some(field) = Field::of::<T>(s) {
        let weights = direct::weights(s, weight);
        samples.for_each_init(Vec::new, |padded, (out, x)| direct::correlate(&field, x, &weights, bias, out, padded));
    } else {
        channels::forward(s, x, weight, bias, &mut out);
    }
    out
}

/// The gradients with respect to x and to the weight, each where wanted. Samples are parted among threads by number, and
/// the parts' sums added in order, so that equal runs give equal bits.
pub(super) fn backward<T: Number>(
    s: &Sizes,
    x: &[T],
    weight: &[T],
    slope: &[T],
    (want_x, want_weight): (bool, bool),
) -> (Option<Vec<T>>, Option<Vec<T>>) {
    let mut gradient = spare::take(if want_x { x.len() } else { 0 });
    let mut sum = spare::gradient(if want_weight { weight.len() } else { 0 });
    let back = if want_x { Field::back::<T>(s) } else { None };
    let forth = if want_weight { Field::of::<T>(s) } else { None };
    if let Some(walk) = s.depthwise() {
        let way = |x: &[T], slope: &[T], gradient: Option<&mut [T]>, sum: Option<&mut [T]>| {
            depthwise_back(s, &walk, (x, weight, slope), gradient, sum);
        };
        by_samples(s, x, slope, (want_x, want_weight), &mut gradient, &mut sum, || way);
        return (want_x.then_some(gradient), want_weight.then_some(sum));
    }
    if want_x && back.is_none() {
        channels::backward(s, weight, slope, &mut gradient);
    }
    if want_weight && forth.is_none() {
        channels::backward_weight(s, x, slope, &mut sum);
    }
    let weights = back.as_ref().map(|_| direct::weights_back(s, weight));
    let wanted = (back.is_some(), forth.is_some());
    by_samples(s, x, slope, wanted, &mut gradient, &mut sum, || {
        let (mut of_x, mut of_slope, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        let (back, forth, weights) = (&back, &forth, &weights);
        move |x: &[T], slope: &[T], gradient: Option<&mut [T]>, sum: Option<&mut [T]>| {
            if let (Some(field), Some(sum)) = (forth, sum) {
                direct::correlate_weights(field, s.groups, (x, slope), sum, (&mut of_x, &mut slopes));
            }
            if let (Some(field), Some(weights), Some(gradient)) = (back, weights, gradient) {
                direct::correlate(field, slope, weights, None, gradient, &mut of_slope);
            }
        }
    });
    (want_x.then_some(gradient), want_weight.then_some(sum))
}

/// Runs `each` of what a thread makes for every sample: its part of the gradient with respect to x, and a sum for the weight, each
/// where wanted. The threads' sums are added in order.
fn by_samples<T: Number, F: FnMut(&[T], &[T], Option<&mut [T]>, Option<&mut [T]>)>(
    s: &Sizes,
    x: &[T],
    slope: &[T],
    (want_x, want_weight): (bool, bool),
    gradient: &mut [T],
    sum: &mut [T],
    each: impl Fn() -> F + Sync,
) {
    if !(want_x || want_weight) {
        return;
    }
    let samples = s.batch.div_ceil(rayon::current_num_threads().max(1)).max(1);
    let (image, plane) = ((s.channels * s.image()).max(1), (s.outputs * s.plane()).max(1));
    let count = s.batch.div_ceil(samples);
    let mut gradients: Vec<&mut [T]> = if want_x { gradient.chunks_mut(samples * image).collect() } else { Vec::new() };
    gradients.resize_with(count, Default::default);
    let mut more = vec![vec![T::zero(); if want_weight { sum.len() } else { 0 }]; count.saturating_sub(1)];
    let sums: Vec<&mut [T]> = std::iter::once(&mut *sum).chain(more.iter_mut().map(Vec::as_mut_slice)).collect();
    sums.into_par_iter()
        .zip(gradients)
        .zip(x.par_chunks(samples * image).zip(slope.par_chunks(samples * plane)))
        .for_each(|((sum, gradient), (x, slope))| {
            let (mut each, mut gradients) = (each(), gradient.chunks_mut(image));
            for (x, slope) in x.chunks(image).zip(slope.chunks(plane)) {
                each(x, slope, gradients.next(), want_weight.then_some(&mut *sum));
            }
        });
    for part in more {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}

/// The gradient with respect to the bias: each output's sum.
pub(super) fn bias_gradient<T: Number>(s: &Sizes, slope: &[T]) -> Vec<T> {
    let mut sums = vec![0.0; s.outputs];
    for sample in slope.chunks(s.outputs * s.plane()) {
        for (total, plane) in sums.iter_mut().zip(sample.chunks(s.plane())) {
            *total += vectorized(
                #[inline(always)]
                || sum(plane, plane, |value, _| value),
            );
        }
    }
    sums.into_iter().map(T::of).collect()
}

/// target[i · stride] += factor · values[i]
#[inline(always)]
fn add<T: Number>(target: &mut [T], stride: usize, values: &[T], factor: T) {
    if stride == 1 {
        target.iter_mut().zip(values).for_each(|(target, value)| *target += *value * factor);
    } else {
        target.iter_mut().step_by(stride).zip(values).for_each(|(target, value)| *target += *value * factor);
    }
}
