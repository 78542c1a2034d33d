//! Convolution of images on the CPU, forward and backward: products of matrices over unfolded windows; depthwise
//! over padded planes, where padding does not outweigh them.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::number::{Number, sum};

mod depthwise;

use depthwise::{Walk, depthwise, depthwise_back};

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

/// The convolution, with a bias for each output where given.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut out = vec![T::zero(); s.batch * s.outputs * s.plane()];
    let walk = s.depthwise();
    let together = if walk.is_some() { 1 } else { s.together() };
    out.par_chunks_mut((together * s.outputs * s.plane()).max(1))
        .zip(x.par_chunks((together * s.channels * s.image()).max(1)))
        .for_each_init(Scratch::default, |scratch, (out, x)| {
            match &walk {
                Some(walk) => depthwise(s, walk, x, weight, out),
                None => product(s, x, weight, out, scratch),
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
    let together = if walk.is_some() { 1 } else { s.together() };
    let threads = rayon::current_num_threads().max(1);
    let samples = s.batch.div_ceil(together).div_ceil(threads) * together;
    let (image, plane) = (s.channels * s.image(), s.outputs * s.plane());
    let mut gradient = if want_x { vec![T::zero(); x.len()] } else { Vec::new() };
    let mut parts: Vec<&mut [T]> = gradient.chunks_mut((samples * image).max(1)).collect();
    parts.resize_with(s.batch.div_ceil(samples.max(1)), Default::default);
    let sums: Vec<Vec<T>> = parts
        .into_par_iter()
        .zip(x.par_chunks((samples * image).max(1)))
        .zip(slope.par_chunks((samples * plane).max(1)))
        .map(|((gradient, x), slope)| {
            let mut sum = if want_weight { vec![T::zero(); weight.len()] } else { Vec::new() };
            let mut scratch = Scratch::default();
            let mut gradients = gradient.chunks_mut((together * image).max(1));
            for (x, slope) in x.chunks(together * image).zip(slope.chunks(together * plane)) {
                let gradient = gradients.next();
                let sum = want_weight.then_some(&mut sum[..]);
                match &walk {
                    Some(walk) => depthwise_back(s, walk, (x, weight, slope), gradient, sum),
                    None => product_back(s, (x, weight, slope), gradient, sum, &mut scratch),
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
            *total += sum(plane, plane, |value, _| value);
        }
    }
    sums.into_iter().map(T::of).collect()
}

/// Memory that a thread keeps between products.
struct Scratch<T> {
    columns: Vec<T>,
    rows: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { columns: Vec::new(), rows: Vec::new() }
    }
}

fn matrix<T>(values: &[T], rows: usize, columns: usize) -> Option<ArrayView2<'_, T>> {
    ArrayView2::from_shape((rows, columns), values.get(..rows * columns)?).ok()
}

fn matrix_mut<T>(values: &mut [T], rows: usize, columns: usize) -> Option<ArrayViewMut2<'_, T>> {
    ArrayViewMut2::from_shape((rows, columns), values.get_mut(..rows * columns)?).ok()
}

/// c ← ab + beta·c. The sizes are this file's own; a mismatch would leave c as it is, and the tests red.
fn multiply<T: Number>(
    a: Option<ArrayView2<'_, T>>,
    b: Option<ArrayView2<'_, T>>,
    beta: T,
    c: Option<ArrayViewMut2<'_, T>>,
) {
    if let (Some(a), Some(b), Some(mut c)) = (a, b, c) {
        general_mat_mul(T::one(), &a, &b, beta, &mut c);
    }
}

/// Some samples by one product a group.
fn product<T: Number>(s: &Sizes, x: &[T], weight: &[T], out: &mut [T], scratch: &mut Scratch<T>) {
    let (image, plane, rows) = (s.image(), s.plane(), s.rows());
    let (channels, outputs) = s.part();
    let samples = out.len() / (s.outputs * plane);
    let columns = samples * plane;
    scratch.columns.resize(rows * columns, T::zero());
    for group in 0..s.groups {
        let weights = matrix(&weight[group * outputs * rows..], outputs, rows);
        let direct = samples == 1 && s.is_pointwise();
        if !direct {
            for sample in 0..samples {
                let part = &x[(sample * s.channels + group * channels) * image..];
                unfold(s, part, &mut scratch.columns, columns, sample * plane);
            }
        }
        let windows = match direct {
            true => matrix(&x[group * channels * image..], rows, columns),
            false => matrix(&scratch.columns, rows, columns),
        };
        if samples == 1 {
            let place = &mut out[group * outputs * plane..];
            multiply(weights, windows, T::zero(), matrix_mut(place, outputs, columns));
            continue;
        }
        scratch.rows.resize(outputs * columns, T::zero());
        multiply(weights, windows, T::zero(), matrix_mut(&mut scratch.rows, outputs, columns));
        for (output, row) in scratch.rows.chunks(columns).enumerate() {
            for (sample, values) in row.chunks(plane).enumerate() {
                let start = (sample * s.outputs + group * outputs + output) * plane;
                out[start..start + plane].copy_from_slice(values);
            }
        }
    }
}

fn product_back<T: Number>(
    s: &Sizes,
    (x, weight, slope): (&[T], &[T], &[T]),
    mut gradient: Option<&mut [T]>,
    mut sum: Option<&mut [T]>,
    scratch: &mut Scratch<T>,
) {
    let (image, plane, rows) = (s.image(), s.plane(), s.rows());
    let (channels, outputs) = s.part();
    let samples = slope.len() / (s.outputs * plane);
    let columns = samples * plane;
    scratch.columns.resize(rows * columns, T::zero());
    for group in 0..s.groups {
        if samples > 1 {
            scratch.rows.resize(outputs * columns, T::zero());
            for (output, row) in scratch.rows.chunks_mut(columns).enumerate() {
                for (sample, values) in row.chunks_mut(plane).enumerate() {
                    let start = (sample * s.outputs + group * outputs + output) * plane;
                    values.copy_from_slice(&slope[start..start + plane]);
                }
            }
        }
        let slopes = if samples > 1 { &scratch.rows[..] } else { &slope[group * outputs * plane..] };
        let weights = group * outputs * rows..(group + 1) * outputs * rows;
        if let Some(sum) = &mut sum {
            for sample in 0..samples {
                let part = &x[(sample * s.channels + group * channels) * image..];
                unfold(s, part, &mut scratch.columns, columns, sample * plane);
            }
            let windows = matrix(&scratch.columns, rows, columns).map(|windows| windows.reversed_axes());
            let sum = matrix_mut(&mut sum[weights.clone()], outputs, rows);
            multiply(matrix(slopes, outputs, columns), windows, T::one(), sum);
        }
        if let Some(gradient) = &mut gradient {
            let turned = matrix(&weight[weights], outputs, rows).map(|weights| weights.reversed_axes());
            let windows = matrix_mut(&mut scratch.columns, rows, columns);
            multiply(turned, matrix(slopes, outputs, columns), T::zero(), windows);
            for sample in 0..samples {
                let part = &mut gradient[(sample * s.channels + group * channels) * image..];
                fold(s, &scratch.columns, columns, sample * plane, part);
            }
        }
    }
}

/// Writes a sample's windows, for the channels of a group, as columns from `first` on.
fn unfold<T: Number>(s: &Sizes, x: &[T], columns: &mut [T], width: usize, first: usize) {
    let [out_height, out_width] = s.out;
    for channel in 0..s.part().0 {
        let image = &x[channel * s.image()..(channel + 1) * s.image()];
        for (tap, row_tap, column_tap) in s.taps() {
            let row = channel * s.kernel[0] * s.kernel[1] + tap;
            let target = &mut columns[row * width + first..row * width + first + s.plane()];
            let (rows, inner) = (s.inside(0, row_tap), s.inside(1, column_tap));
            target[..rows.start * out_width].fill(T::zero());
            target[rows.end.min(out_height) * out_width..].fill(T::zero());
            for output in rows {
                let line = &mut target[output * out_width..(output + 1) * out_width];
                let source = &image[s.input(0, row_tap, output) * s.size[1]..][..s.size[1]];
                line[..inner.start].fill(T::zero());
                line[inner.end..].fill(T::zero());
                if inner.is_empty() {
                    continue;
                }
                let start = s.input(1, column_tap, inner.start);
                let line = &mut line[inner.clone()];
                if s.strides[1] == 1 {
                    line.copy_from_slice(&source[start..start + line.len()]);
                } else {
                    let picked = source[start..].iter().step_by(s.strides[1]);
                    line.iter_mut().zip(picked).for_each(|(value, picked)| *value = *picked);
                }
            }
        }
    }
}

/// Adds columns from `first` on back to where `unfold` took them from.
fn fold<T: Number>(s: &Sizes, columns: &[T], width: usize, first: usize, x: &mut [T]) {
    let out_width = s.out[1];
    for channel in 0..s.part().0 {
        let image = &mut x[channel * s.image()..(channel + 1) * s.image()];
        for (tap, row_tap, column_tap) in s.taps() {
            let row = channel * s.kernel[0] * s.kernel[1] + tap;
            let source = &columns[row * width + first..row * width + first + s.plane()];
            let inner = s.inside(1, column_tap);
            if inner.is_empty() {
                continue;
            }
            for output in s.inside(0, row_tap) {
                let line = &source[output * out_width..][inner.clone()];
                let start = s.input(0, row_tap, output) * s.size[1] + s.input(1, column_tap, inner.start);
                add(&mut image[start..], s.strides[1], line, T::one());
            }
        }
    }
}

/// target[i · stride] += factor · values[i]
fn add<T: Number>(target: &mut [T], stride: usize, values: &[T], factor: T) {
    if stride == 1 {
        target.iter_mut().zip(values).for_each(|(target, value)| *target += *value * factor);
    } else {
        target.iter_mut().step_by(stride).zip(values).for_each(|(target, value)| *target += *value * factor);
    }
}
