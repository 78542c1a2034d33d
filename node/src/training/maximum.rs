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
    results.zip(x.par_chunks(s.image().max(1))).for_each_init(Default::default, |lines, ((out, places), image)| {
        vectorized(
            #[inline(always)]
            || plane(s, image, below, lines, (out, places)),
        );
    });
    (out, places)
}

/// Greatest values and their places.
type Greatest<T> = (Vec<T>, Vec<u32>);

/// Along each row of the image first, then down.
#[inline(always)]
fn plane<T: Number>(
    s: &Sizes,
    image: &[T],
    below: T,
    (values, seen_at): &mut Greatest<T>,
    (out, places): (&mut [T], &mut [u32]),
) {
    let width = s.out[1];
    values.clear();
    values.resize(s.size[0] * width, below);
    seen_at.clear();
    seen_at.resize(s.size[0] * width, NOWHERE);
    let reach = (s.kernel[1] - 1) * s.dilations[1];
    // All rows are one where each window ends before the next one begins.
    let whole = s.pads[1] == 0 && s.size[1] == width * s.strides[1] && reach < s.strides[1];
    for tap in 0..s.kernel[1] {
        if whole {
            let offset = tap * s.dilations[1];
            along(s.strides[1], values, seen_at, &image[offset..], offset);
            continue;
        }
        let inner = s.inside(1, tap);
        if inner.is_empty() {
            continue;
        }
        for row in 0..s.size[0] {
            let line = row * width + inner.start..row * width + inner.end;
            let start = row * s.size[1] + s.input(1, tap, inner.start);
            along(s.strides[1], &mut values[line.clone()], &mut seen_at[line], &image[start..], start);
        }
    }
    for tap in 0..s.kernel[0] {
        for row in s.inside(0, tap) {
            let from = s.input(0, tap, row) * width..(s.input(0, tap, row) + 1) * width;
            let (best, places) = (&mut out[row * width..][..width], &mut places[row * width..][..width]);
            let seen = values[from.clone()].iter().zip(&seen_at[from]);
            for ((best, place), (value, at)) in best.iter_mut().zip(places).zip(seen) {
                keep(best, place, *value, *at);
            }
        }
    }
}

/// Keeps every `step`th of the values seen where it is greater; `at` is the first one's place.
#[inline(always)]
fn along<T: Number>(step: usize, best: &mut [T], places: &mut [u32], seen: &[T], at: usize) {
    match step {
        1 => greatest::<T, 1>(best, places, seen, at as u32),
        2 => greatest::<T, 2>(best, places, seen, at as u32),
        3 => greatest::<T, 3>(best, places, seen, at as u32),
        step => {
            let seen = seen.iter().zip(at as u32..).step_by(step);
            for ((best, place), (value, at)) in best.iter_mut().zip(places).zip(seen) {
                keep(best, place, *value, at);
            }
        }
    }
}

/// As [`along`], a loop that becomes vectors.
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

/// Keeps a value that is greater than the best, or its first. Without a branch: which values are greater cannot be predicted.
#[inline(always)]
fn keep<T: Number>(best: &mut T, place: &mut u32, value: T, at: u32) {
    let is_nan = value.partial_cmp(&value).is_none();
    let greater = ((value > *best) | (*place == NOWHERE) | is_nan) & (at != NOWHERE);
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
