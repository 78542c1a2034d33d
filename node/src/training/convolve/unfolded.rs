//! Convolution as a product of matrices: the weight times the unfolded windows of some samples.
//! What neither `depthwise` nor `direct` takes: wide strides, small images, large weights.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::super::number::{Number, vectorized};
use super::{Sizes, add};

/// Memory that a thread keeps between products.
pub(super) struct Scratch<T> {
    pub(super) columns: Vec<T>,
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
pub(super) fn product<T: Number>(s: &Sizes, x: &[T], weight: &[T], out: &mut [T], scratch: &mut Scratch<T>) {
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

pub(super) fn product_back<T: Number>(
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
                let windows = &scratch.columns;
                vectorized(
                    #[inline(always)]
                    || fold(s, windows, columns, sample * plane, part),
                );
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
#[inline(always)]
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
