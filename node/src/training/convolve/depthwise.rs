//! Depthwise convolution: each channel has a filter of its own. A plane is copied once with its padding; then every tap of the
//! filter is the same long run of numbers, begun elsewhere.

use pulp::{Simd, WithSimd};

use super::super::number::{Number, kernel};
use super::{SMALL, Sizes, add};

/// Vectors, or taps, that are summed side by side.
const TILE: usize = 5;

/// How one padded plane is walked: in one run over all its rows where the strides are 1, else in a run a row of outputs.
pub(super) struct Walk {
    /// Values of a padded row, and of the padded plane.
    width: usize,
    plane: usize,
    /// Where each tap begins, for output 0.
    taps: Vec<usize>,
    /// Where each run begins, and its length.
    starts: Vec<usize>,
    len: usize,
    /// Rows of outputs in a run, and how far two outputs of a row and two rows are apart in it.
    rows: usize,
    steps: [usize; 2],
}

impl Walk {
    /// `None` where the padding is larger than what it surrounds: its copies would take more memory than the model's values.
    pub(super) fn of(s: &Sizes) -> Option<Walk> {
        let [height, width] = [0, 1].map(|axis| {
            let used = (s.out[axis].saturating_sub(1)) * s.strides[axis] + (s.kernel[axis] - 1) * s.dilations[axis] + 1;
            used.max(s.pads[axis] + s.size[axis])
        });
        let plane = height.checked_mul(width)?;
        if s.plane() == 0 || plane > 2 * (s.image() + s.plane()) + SMALL {
            return None;
        }
        let taps = s.taps().map(|(_, row, column)| row * s.dilations[0] * width + column * s.dilations[1]).collect();
        let [rows, columns] = s.out;
        if s.strides == [1, 1] {
            let len = (rows - 1) * width + columns;
            return Some(Walk { width, plane, taps, starts: vec![0], len, rows, steps: [1, width] });
        }
        let starts = (0..rows).map(|row| row * s.strides[0] * width).collect();
        let len = (columns - 1) * s.strides[1] + 1;
        Some(Walk { width, plane, taps, starts, len, rows: 1, steps: [s.strides[1], 0] })
    }

    /// Farthest that a tap begins from the first.
    fn reach(&self) -> usize {
        self.taps.iter().copied().max().unwrap_or(0)
    }

    fn pad<T: Number>(&self, s: &Sizes, image: &[T], padded: &mut Vec<T>) {
        padded.clear();
        padded.resize(self.plane, T::zero());
        let [height, width] = s.size;
        let lines = padded.chunks_mut(self.width).skip(s.pads[0]);
        for (line, row) in lines.zip(image.chunks(width)).take(height) {
            line[s.pads[1]..s.pads[1] + width].copy_from_slice(row);
        }
    }

    /// Takes the outputs of a run from their places.
    fn take<T: Number>(&self, s: &Sizes, run: &[T], outputs: &mut [T]) {
        let [step, line] = self.steps;
        for (row, outputs) in outputs.chunks_mut(s.out[1]).enumerate() {
            let run = &run[row * line..];
            match step {
                1 => outputs.copy_from_slice(&run[..outputs.len()]),
                _ => outputs.iter_mut().zip(run.iter().step_by(step)).for_each(|(output, value)| *output = *value),
            }
        }
    }

    /// Puts numbers of outputs to their places in a run.
    fn put<T: Number>(&self, s: &Sizes, outputs: &[T], run: &mut [T]) {
        let [step, line] = self.steps;
        for (row, outputs) in outputs.chunks(s.out[1]).enumerate() {
            let run = &mut run[row * line..];
            match step {
                1 => run[..outputs.len()].copy_from_slice(outputs),
                _ => run.iter_mut().step_by(step).zip(outputs).for_each(|(value, output)| *value = *output),
            }
        }
    }
}

/// One sample, each channel with a filter of its own.
pub(super) fn depthwise<T: Number>(s: &Sizes, walk: &Walk, x: &[T], weight: &[T], out: &mut [T]) {
    let (mut padded, mut run) = (Vec::new(), Vec::new());
    let weights = weight.chunks(walk.taps.len());
    for ((image, plane), weights) in x.chunks(s.image()).zip(out.chunks_mut(s.plane())).zip(weights) {
        walk.pad(s, image, &mut padded);
        for (start, outputs) in walk.starts.iter().zip(plane.chunks_mut(walk.rows * s.out[1])) {
            run.clear();
            run.resize(walk.len, T::zero());
            kernel(Correlate { out: &mut run, source: &padded[*start..], begins: &walk.taps, weights });
            walk.take(s, &run, outputs);
        }
    }
}

pub(super) fn depthwise_back<T: Number>(
    s: &Sizes,
    walk: &Walk,
    (x, weight, slope): (&[T], &[T], &[T]),
    mut gradient: Option<&mut [T]>,
    mut sums: Option<&mut [T]>,
) {
    let (taps, reach) = (walk.taps.len(), walk.reach());
    // Seen from the image, the taps lie the other way round.
    let turned: Vec<usize> = walk.taps.iter().map(|tap| reach - tap).collect();
    let (mut padded, mut of_padded) = (Vec::new(), Vec::new());
    // The slopes of a run in their places, zeros between and around them.
    let mut run = vec![T::zero(); walk.len + 2 * reach];
    for channel in 0..s.channels {
        let image = channel * s.image()..(channel + 1) * s.image();
        let plane = &slope[channel * s.plane()..(channel + 1) * s.plane()];
        let weights = channel * taps..(channel + 1) * taps;
        if sums.is_some() {
            walk.pad(s, &x[image.clone()], &mut padded);
        }
        of_padded.clear();
        of_padded.resize(if gradient.is_some() { walk.plane } else { 0 }, T::zero());
        for (start, slopes) in walk.starts.iter().zip(plane.chunks(walk.rows * s.out[1])) {
            walk.put(s, slopes, &mut run[reach..]);
            if let Some(sums) = &mut sums {
                let (slopes, values) = (&run[reach..reach + walk.len], &padded[*start..]);
                kernel(Products { slopes, values, begins: &walk.taps, sums: &mut sums[weights.clone()] });
            }
            if gradient.is_some() && walk.len < reach {
                // Of a long run around a short one most would be zeros.
                for (tap, weight) in walk.taps.iter().zip(&weight[weights.clone()]) {
                    add(&mut of_padded[start + tap..], 1, &run[reach..reach + walk.len], *weight);
                }
            } else if gradient.is_some() {
                let out = &mut of_padded[*start..][..walk.len + reach];
                kernel(Correlate { out, source: &run, begins: &turned, weights: &weight[weights.clone()] });
            }
        }
        if let Some(gradient) = &mut gradient {
            let lines = of_padded.chunks(walk.width).skip(s.pads[0]);
            for (row, line) in gradient[image].chunks_mut(s.size[1]).zip(lines) {
                row.copy_from_slice(&line[s.pads[1]..s.pads[1] + s.size[1]]);
            }
        }
    }
}

/// out[i] += Σ weights[k] · source[begins[k] + i]
struct Correlate<'a, T> {
    out: &'a mut [T],
    source: &'a [T],
    begins: &'a [usize],
    weights: &'a [T],
}

impl<T: Number> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Correlate { out, source, begins, weights } = self;
        let lanes = T::lanes::<S>();
        let mut done = 0;
        let mut tiles = out.chunks_exact_mut(TILE * lanes);
        for out in &mut tiles {
            let mut sums = [T::splat(simd, T::zero()); TILE];
            for (sum, out) in sums.iter_mut().zip(out.chunks(lanes)) {
                *sum = T::load(simd, out);
            }
            for (begin, weight) in begins.iter().zip(weights) {
                let weight = T::splat(simd, *weight);
                let values = source[begin + done..][..TILE * lanes].chunks(lanes);
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = T::multiply_add(simd, weight, T::load(simd, values), *sum);
                }
            }
            for (sum, out) in sums.into_iter().zip(out.chunks_mut(lanes)) {
                T::store(simd, sum, out);
            }
            done += TILE * lanes;
        }
        let rest = tiles.into_remainder();
        for (begin, weight) in begins.iter().zip(weights) {
            rest.iter_mut().zip(&source[begin + done..]).for_each(|(out, value)| *out += *value * *weight);
        }
    }
}

/// sums[k] += Σ slopes[i] · values[begins[k] + i]
struct Products<'a, T> {
    slopes: &'a [T],
    values: &'a [T],
    begins: &'a [usize],
    sums: &'a mut [T],
}

impl<T: Number> WithSimd for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let whole = self.slopes.len() / lanes * lanes;
        for (begins, sums) in self.begins.chunks(TILE).zip(self.sums.chunks_mut(TILE)) {
            let runs: [&[T]; TILE] = std::array::from_fn(|at| {
                &self.values[begins.get(at).copied().unwrap_or(begins[0])..][..self.slopes.len()]
            });
            let mut totals = [T::splat(simd, T::zero()); TILE];
            for at in (0..whole).step_by(lanes) {
                let slope = T::load(simd, &self.slopes[at..]);
                for (total, run) in totals.iter_mut().zip(&runs) {
                    *total = T::multiply_add(simd, slope, T::load(simd, &run[at..]), *total);
                }
            }
            // As many as there are totals: were it the sums' number, these would be kept in memory.
            for (at, (total, run)) in totals.into_iter().zip(&runs).enumerate() {
                let Some(sum) = sums.get_mut(at) else { break };
                *sum += T::total(simd, total);
                for (slope, value) in self.slopes[whole..].iter().zip(&run[whole..]) {
                    *sum += *slope * *value;
                }
            }
        }
    }
}
