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
        vectorized(
            #[inline(always)]
            || plane(s, image, out, places),
        );
    });
    (out, places)
}

#[inline(always)]
fn plane<T: Number>(s: &Sizes, image: &[T], out: &mut [T], places: &mut [u32]) {
    for (_, row_tap, column_tap) in s.taps() {
        let inner = s.inside(1, column_tap);
        if inner.is_empty() {
            continue;
        }
        for row in s.inside(0, row_tap) {
            let line = row * s.out[1] + inner.start..row * s.out[1] + inner.end;
            let start = s.input(0, row_tap, row) * s.size[1] + s.input(1, column_tap, inner.start);
            let (best, places, seen) = (&mut out[line.clone()], &mut places[line], &image[start..]);
            match s.strides[1] {
                1 => greatest::<T, 1>(best, places, seen, start as u32),
                2 => greatest::<T, 2>(best, places, seen, start as u32),
                3 => greatest::<T, 3>(best, places, seen, start as u32),
                step => {
                    let seen = seen.iter().zip(start as u32..).step_by(step);
                    for ((best, place), (value, at)) in best.iter_mut().zip(places).zip(seen) {
                        keep(best, place, *value, at);
                    }
                }
            }
        }
    }
}

/// Keeps every `STEP`th of the values seen where it is greater; `at` is the first one's place. A loop that becomes vectors.
#[inline(always)]
fn greatest<T: Number, const STEP: usize>(best: &mut [T], places: &mut [u32], seen: &[T], at: u32) {
    // Behind the last one a whole step may be missing.
    let Some(last) = best.len().checked_sub(1) else { return };
    let whole = last.min(seen.len() / STEP);
    let steps = &seen.as_chunks::<STEP>().0[..whole];
    for (index, ((best, place), step)) in best[..whole].iter_mut().zip(&mut places[..whole]).zip(steps).enumerate() {
        keep(best, place, step[0], at + (index * STEP) as u32);
    }
    if let Some(value) = seen.get(last * STEP) {
        keep(&mut best[last], &mut places[last], *value, at + (last * STEP) as u32);
    }
}

/// Without a branch: which values are greater cannot be predicted.
#[inline(always)]
fn keep<T: Number>(best: &mut T, place: &mut u32, value: T, at: u32) {
    let is_nan = value.partial_cmp(&value).is_none();
    let greater = (value > *best) | (*place == NOWHERE) | is_nan;
    *best = if greater { value } else { *best };
    *place = if greater { at } else { *place };
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
