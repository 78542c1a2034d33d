//! Maxima of sliding windows over images on the CPU, forward and backward.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use rayon::prelude::*;

use super::convolve::Sizes;
use super::number::{Number, vectorized};
use super::spare;

/// Where a maximum came from; a window that lies in the padding alone has none.
const NOWHERE: u32 = u32::MAX;

/// The maximum of each window, `below` where a window lies in the padding alone, and its place in its plane. NaN is
/// greater than all numbers.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], below: T) -> (Vec<T>, Vec<u32>) {
    let planes = s.batch * s.channels;
    let (mut out, mut places) = (spare::take(planes * s.plane()), vec![NOWHERE; planes * s.plane()]);
    out.fill(below);
    let results = out.par_chunks_mut(s.plane().max(1)).zip(places.par_chunks_mut(s.plane().max(1)));
    results.zip(x.par_chunks(s.image().max(1))).for_each(|((out, places), image)| {
        for (_, row_tap, column_tap) in s.taps() {
            let inner = s.inside(1, column_tap);
            if inner.is_empty() {
                continue;
            }
            for row in s.inside(0, row_tap) {
                let start = s.input(0, row_tap, row) * s.size[1] + s.input(1, column_tap, inner.start);
                let line = row * s.out[1] + inner.start..row * s.out[1] + inner.end;
                let (out, places) = (&mut out[line.clone()], &mut places[line]);
                // Steps that are known make vectors.
                match s.strides[1] {
                    1 => vectorized(
                        #[inline(always)]
                        || greater(&image[start..], start, 1, out, places),
                    ),
                    2 => vectorized(
                        #[inline(always)]
                        || greater(&image[start..], start, 2, out, places),
                    ),
                    stride => greater(&image[start..], start, stride, out, places),
                }
            }
        }
    });
    (out, places)
}

/// Takes what is greater of every `stride`-th value, which lie in their plane from `start` on.
#[inline(always)]
fn greater<T: Number>(values: &[T], start: usize, stride: usize, out: &mut [T], places: &mut [u32]) {
    let Some(last) = out.len().checked_sub(1) else { return };
    let (values, places) = (&values[..last * stride + 1], &mut places[..out.len()]);
    for index in 0..out.len() {
        let (value, at) = (values[index * stride], (start + index * stride) as u32);
        let is_nan = value.partial_cmp(&value).is_none();
        let greater = (value > out[index]) | (places[index] == NOWHERE) | is_nan;
        out[index] = if greater { value } else { out[index] };
        places[index] = if greater { at } else { places[index] };
    }
}

/// The gradient with respect to x: each slope goes where its maximum came from.
pub(super) fn backward<T: Number>(s: &Sizes, places: &[u32], slope: &[T]) -> Vec<T> {
    let mut gradient = spare::zeros(s.batch * s.channels * s.image());
    let slopes = slope.par_chunks(s.plane().max(1)).zip(places.par_chunks(s.plane().max(1)));
    gradient.par_chunks_mut(s.image().max(1)).zip(slopes).for_each(|(gradient, (slope, places))| {
        for (slope, place) in slope.iter().zip(places) {
            if let Some(gradient) = gradient.get_mut(*place as usize) {
                *gradient += *slope;
            }
        }
    });
    gradient
}
