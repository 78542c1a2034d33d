//! Depthwise convolution: each channel has a filter of its own. A plane is copied once with its padding; then every tap of the
//! filter is the same long run of numbers, begun elsewhere. Everything else is a product of matrices, in `convolve`.

use super::super::number::{LANES, Number, sum};
use super::{Sizes, add};

/// A padded plane of so many values is small, whatever it surrounds.
const SMALL: usize = 4096;

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

    /// The place in a run of each output of these rows, output by output.
    fn places(&self, columns: usize) -> impl Iterator<Item = usize> + use<> {
        let ([step, line], rows) = (self.steps, self.rows);
        (0..rows).flat_map(move |row| (0..columns).map(move |column| row * line + column * step))
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
            correlate(&mut run, &padded[*start..], &walk.taps, weights);
            for (output, place) in outputs.iter_mut().zip(walk.places(s.out[1])) {
                *output = run[place];
            }
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
            for (slope, place) in slopes.iter().zip(walk.places(s.out[1])) {
                run[reach + place] = *slope;
            }
            if let Some(sums) = &mut sums {
                let slopes = &run[reach..reach + walk.len];
                for (sum_of, tap) in sums[weights.clone()].iter_mut().zip(&walk.taps) {
                    *sum_of += T::of(sum(slopes, &padded[start + tap..][..walk.len], |slope, x| slope * x));
                }
            }
            if gradient.is_some() && walk.len < reach {
                // Of a long run around a short one most would be zeros.
                for (tap, weight) in walk.taps.iter().zip(&weight[weights.clone()]) {
                    add(&mut of_padded[start + tap..], 1, &run[reach..reach + walk.len], *weight);
                }
            } else if gradient.is_some() {
                correlate(&mut of_padded[*start..][..walk.len + reach], &run, &turned, &weight[weights.clone()]);
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
fn correlate<T: Number>(out: &mut [T], source: &[T], begins: &[usize], weights: &[T]) {
    let (heads, rest) = out.as_chunks_mut::<LANES>();
    let done = heads.len() * LANES;
    for (index, head) in heads.iter_mut().enumerate() {
        let mut sums = *head;
        for (begin, weight) in begins.iter().zip(weights) {
            let Some(values) = source[begin + index * LANES..].first_chunk::<LANES>() else { continue };
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value * *weight);
        }
        *head = sums;
    }
    for (begin, weight) in begins.iter().zip(weights) {
        rest.iter_mut().zip(&source[begin + done..]).for_each(|(out, value)| *out += *value * *weight);
    }
}
