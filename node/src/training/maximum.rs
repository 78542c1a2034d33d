//! Maxima of sliding windows over images on the CPU, forward and backward.
//! Plain numbers in, plain numbers out; how it meets a backend and its tape is in `engine`.

use rayon::prelude::*;

use super::convolve::Sizes;
use super::number::Number;
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
                let found = image[start..].iter().step_by(s.strides[1]).zip((start..).step_by(s.strides[1]));
                let best = out[line.clone()].iter_mut().zip(&mut places[line]);
                for ((best, place), (value, at)) in best.zip(found) {
                    let is_nan = value.partial_cmp(value).is_none();
                    let greater = (*value > *best) | (*place == NOWHERE) | is_nan;
                    *best = if greater { *value } else { *best };
                    *place = if greater { at as u32 } else { *place };
                }
            }
        }
    });
    (out, places)
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
