//! Convolution of images on the CPU, forward and backward, in three ways: depthwise over padded planes, directly where the
//! windows lie, and by products of matrices over unfolded windows.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use std::ops::Range;

use rayon::prelude::*;

use super::number::{Number, sum, vectorized};
use super::spare;

mod depthwise;
mod direct;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
mod unfolded;

use depthwise::{Walk, depthwise, depthwise_back};
use direct::Field;
use unfolded::{Scratch, product, product_back};

/// A padded copy of so many values is small, whatever it surrounds.
const SMALL: usize = 4096;
/// Fewest columns of one product, where the batch has them: narrow products read the weights too often.
const COLUMNS: usize = 256;

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

    /// Rows of the unfolded windows of one group.
    fn rows(&self) -> usize {
        self.part().0 * self.kernel[0] * self.kernel[1]
    }

    /// How the planes are walked where each channel has a filter of its own.
    fn depthwise(&self) -> Option<Walk> {
        if self.part() == (1, 1) { Walk::of(self) } else { None }
    }

    /// Whether the unfolded windows are the image itself.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0, 0] && self.out == self.size
    }

    /// Samples of one product.
    fn together(&self) -> usize {
        let most = self.batch.div_ceil(rayon::current_num_threads().max(1)).max(1);
        COLUMNS.div_ceil(self.plane().max(1)).clamp(1, most)
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

/// How a convolution is computed.
enum Way<T: Number> {
    /// Each channel has a filter of its own.
    Depthwise(Walk),
    /// Windows read where they lie, with the weights as it takes them.
    Direct(Field, direct::Weights<T>),
    /// Products of matrices.
    Unfolded,
}

/// The convolution, with a bias for each output where given.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut out = spare::take(s.batch * s.outputs * s.plane());
    let way = match (s.depthwise(), Field::of::<T>(s)) {
        (Some(walk), _) => Way::Depthwise(walk),
        (None, Some(field)) => Way::Direct(field, direct::weights(s, weight)),
        (None, None) => Way::Unfolded,
    };
    let together = if matches!(way, Way::Unfolded) { s.together() } else { 1 };
    out.par_chunks_mut((together * s.outputs * s.plane()).max(1))
        .zip(x.par_chunks((together * s.channels * s.image()).max(1)))
        .for_each_init(Scratch::default, |scratch, (out, x)| {
            match &way {
                Way::Depthwise(walk) => depthwise(s, walk, x, weight, out),
                Way::Direct(field, weights) => {
                    return direct::correlate(field, x, weights, bias, out, &mut scratch.columns);
                }
                Way::Unfolded => product(s, x, weight, out, scratch),
            }
            if let Some(bias) = bias {
                for (plane, bias) in out.chunks_mut(s.plane()).zip(bias.iter().cycle()) {
                    plane.iter_mut().for_each(|value| *value += *bias);
                }
            }
        });
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
    let walk = s.depthwise();
    let (forth, back) = if walk.is_some() { (None, None) } else { (Field::of::<T>(s), Field::back::<T>(s)) };
    let back = back.filter(|_| want_x).map(|field| (field, direct::weights_back(s, weight)));
    let forth = forth.filter(|_| want_weight);
    // What is left to products of matrices.
    let (unfold_x, unfold_weight) = (want_x && back.is_none(), want_weight && forth.is_none());
    let together = if walk.is_some() || !(unfold_x || unfold_weight) { 1 } else { s.together() };
    let threads = rayon::current_num_threads().max(1);
    let samples = s.batch.div_ceil(together).div_ceil(threads) * together;
    let (image, plane) = (s.channels * s.image(), s.outputs * s.plane());
    // Products add to what is there; the other ways write all of it.
    let len = if want_x { x.len() } else { 0 };
    let mut gradient = if unfold_x && walk.is_none() { spare::zeros(len) } else { spare::take(len) };
    let mut parts: Vec<&mut [T]> = gradient.chunks_mut((samples * image).max(1)).collect();
    parts.resize_with(s.batch.div_ceil(samples.max(1)), Default::default);
    let sums: Vec<Vec<T>> = parts
        .into_par_iter()
        .zip(x.par_chunks((samples * image).max(1)))
        .zip(slope.par_chunks((samples * plane).max(1)))
        .map(|((gradient, x), slope)| {
            let mut sum = if want_weight { vec![T::zero(); weight.len()] } else { Vec::new() };
            let mut scratch = Scratch::default();
            let (mut of_x, mut of_slope, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
            let mut gradients = gradient.chunks_mut((together * image).max(1));
            for (x, slope) in x.chunks(together * image).zip(slope.chunks(together * plane)) {
                let mut gradient = gradients.next();
                let mut sum = want_weight.then_some(&mut sum[..]);
                if let Some(walk) = &walk {
                    depthwise_back(s, walk, (x, weight, slope), gradient, sum);
                    continue;
                }
                let pairs = x.chunks(image).zip(slope.chunks(plane));
                if let (Some(field), Some(sum)) = (&forth, &mut sum) {
                    for pair in pairs {
                        direct::correlate_weights(field, s.groups, pair, sum, (&mut of_x, &mut slopes));
                    }
                }
                if let (Some((field, weights)), Some(gradient)) = (&back, &mut gradient) {
                    for (slope, gradient) in slope.chunks(plane).zip(gradient.chunks_mut(image)) {
                        direct::correlate(field, slope, weights, None, gradient, &mut of_slope);
                    }
                }
                if unfold_x || unfold_weight {
                    let (gradient, sum) = (gradient.filter(|_| unfold_x), sum.filter(|_| unfold_weight));
                    product_back(s, (x, weight, slope), gradient, sum, &mut scratch);
                }
            }
            sum
        })
        .collect();
    let sum = sums.into_iter().reduce(|mut all, part| {
        all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
        all
    });
    (want_x.then_some(gradient), sum.filter(|_| want_weight))
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
