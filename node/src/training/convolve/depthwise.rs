//! Depthwise convolution: each channel has a filter of its own, and plain loops over rows are as fast as memory.
//! Everything else is a product of matrices, in `convolve`.

use super::{Number, Sizes, add};

/// One sample, each channel with a filter of its own.
pub(super) fn depthwise<T: Number>(s: &Sizes, x: &[T], weight: &[T], out: &mut [T]) {
    let (taps, out_width, width) = (s.kernel[0] * s.kernel[1], s.out[1], s.size[1]);
    for ((image, plane), weights) in x.chunks(s.image()).zip(out.chunks_mut(s.plane())).zip(weight.chunks(taps)) {
        for ((_, row_tap, column_tap), weight) in s.taps().zip(weights) {
            let inner = s.inside(1, column_tap);
            if inner.is_empty() {
                continue;
            }
            for output in s.inside(0, row_tap) {
                let line = &mut plane[output * out_width..][inner.clone()];
                let source = &image[s.input(0, row_tap, output) * width + s.input(1, column_tap, inner.start)..];
                if s.strides[1] == 1 {
                    add(line, 1, &source[..line.len()], *weight);
                } else {
                    let picked = source.iter().step_by(s.strides[1]);
                    line.iter_mut().zip(picked).for_each(|(value, picked)| *value += *picked * *weight);
                }
            }
        }
    }
}

pub(super) fn depthwise_back<T: Number>(
    s: &Sizes,
    x: &[T],
    weight: &[T],
    slope: &[T],
    mut gradient: Option<&mut [T]>,
    mut sum: Option<&mut [T]>,
) {
    let (taps, out_width, width) = (s.kernel[0] * s.kernel[1], s.out[1], s.size[1]);
    for channel in 0..s.channels {
        let image = channel * s.image()..(channel + 1) * s.image();
        let plane = &slope[channel * s.plane()..(channel + 1) * s.plane()];
        for (tap, row_tap, column_tap) in s.taps() {
            let inner = s.inside(1, column_tap);
            if inner.is_empty() {
                continue;
            }
            let mut total = T::zero();
            for output in s.inside(0, row_tap) {
                let line = &plane[output * out_width..][inner.clone()];
                let start = s.input(0, row_tap, output) * width + s.input(1, column_tap, inner.start);
                if sum.is_some() {
                    total += dot(line, &x[image.clone()][start..], s.strides[1]);
                }
                if let Some(gradient) = &mut gradient {
                    add(&mut gradient[image.clone()][start..], s.strides[1], line, weight[channel * taps + tap]);
                }
            }
            if let Some(sum) = &mut sum {
                sum[channel * taps + tap] += total;
            }
        }
    }
}

/// Σ a[i] · b[i · stride], in eight sums so that it can be vectorised.
fn dot<T: Number>(a: &[T], b: &[T], stride: usize) -> T {
    if stride != 1 {
        return a.iter().zip(b.iter().step_by(stride)).fold(T::zero(), |sum, (a, b)| sum + *a * *b);
    }
    let ((heads_a, rest_a), (heads_b, rest_b)) = (a.as_chunks::<8>(), b[..a.len()].as_chunks::<8>());
    let mut sums = [T::zero(); 8];
    for (a, b) in heads_a.iter().zip(heads_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += *a * *b;
        }
    }
    let rest = rest_a.iter().zip(rest_b).fold(T::zero(), |sum, (a, b)| sum + *a * *b);
    sums.into_iter().fold(rest, |sum, part| sum + part)
}
