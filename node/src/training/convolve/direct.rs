//! Convolution that reads its windows where they lie: of a padded copy of each plane, parted by the strides' phases, every tap
//! of the filter is a run of neighbours, begun elsewhere. Nothing is unfolded or packed but the weights.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::super::number::{Number, kernel};
use super::{SMALL, Sizes};

/// Outputs and vectors of one tile: their products stay in registers.
const ROWS: usize = 4;
const VECTORS: usize = 3;
/// Vectors of so many bytes come with registers for twice as many outputs.
pub(super) const WIDE: usize = 64;

#[inline(always)]
fn is_wide<T: Number, S: Simd>() -> bool {
    T::lanes::<S>() * size_of::<T>() >= WIDE
}

/// Most numbers of a vector: float32 in 512 bits.
const MOST_LANES: usize = 16;
/// Weights of a group above this are read too often here, for a few vectors of outputs at a time.
const WEIGHTS: usize = 1 << 20;
/// Numbers of the source that the gradient of the weights takes at a time: they stay in the second cache.
const TOGETHER: usize = 1 << 16;

/// Where the numbers of one sample lie, and which of them each output takes.
pub(super) struct Field {
    /// Channels of a group, of all groups, and the values of one as they come.
    channels: usize,
    all: usize,
    image: [usize; 2],
    /// Zeros before each axis, the phases that it is parted into, and the size of one phase's plane.
    before: [usize; 2],
    phases: [usize; 2],
    size: [usize; 2],
    /// The numbers lie as they come: no copy.
    direct: bool,
    /// Numbers of a vector, and of a plane of outputs.
    lanes: usize,
    plane: usize,
    /// Where each channel's taps begin, for output 0.
    offsets: Vec<usize>,
    /// Where each vector of outputs begins, seen from output 0 of the first tap, and where it goes.
    vectors: Vec<[usize; 2]>,
    /// Outputs that each of them gives: all, or a whole row of a small plane.
    given: usize,
    /// The same with no output twice.
    parts: Vec<Part>,
}

/// Outputs of one vector, which the end of a run may cut short.
struct Part {
    from: usize,
    to: usize,
    len: usize,
}

impl Field {
    /// The input's, seen by the outputs. `None` where this way does not pay.
    pub(super) fn of<T: Number>(s: &Sizes) -> Option<Field> {
        let (channels, outputs) = s.part();
        if outputs < ROWS || outputs.saturating_mul(s.rows()) > WEIGHTS {
            return None;
        }
        let reach = [0, 1].map(|axis| (s.kernel[axis] - 1) * s.dilations[axis] / s.strides[axis]);
        let size = [0, 1].map(|axis| s.out[axis] + reach[axis]);
        let taps = s.taps().map(|(_, row, column)| [row * s.dilations[0], column * s.dilations[1]]).collect();
        let field = Field {
            channels,
            all: s.channels,
            image: s.size,
            before: s.pads,
            phases: s.strides,
            size,
            ..Field::empty::<T>(s)
        };
        field.laid(taps, [0, 0], s.out, s.outputs)
    }

    /// The slopes', seen by the inputs; only where the strides are 1.
    pub(super) fn back<T: Number>(s: &Sizes) -> Option<Field> {
        let (channels, outputs) = s.part();
        if s.strides != [1, 1] || channels < ROWS || outputs.saturating_mul(s.rows()) > WEIGHTS {
            return None;
        }
        let reach = [0, 1].map(|axis| (s.kernel[axis] - 1) * s.dilations[axis]);
        let size = [0, 1].map(|axis| s.size[axis] + s.pads[axis] + reach[axis]);
        let turned =
            s.taps().map(|(_, row, column)| [reach[0] - row * s.dilations[0], reach[1] - column * s.dilations[1]]);
        let field =
            Field { channels: outputs, all: s.outputs, image: s.out, before: reach, size, ..Field::empty::<T>(s) };
        field.laid(turned.collect(), s.pads, s.size, s.channels)
    }

    /// Nothing yet, on either side.
    fn empty<T: Number>(s: &Sizes) -> Field {
        Field {
            channels: 0,
            all: 0,
            image: [0; 2],
            before: [0; 2],
            phases: [1; 2],
            size: [0; 2],
            direct: s.is_pointwise(),
            lanes: lanes::<T>(),
            plane: 0,
            offsets: Vec::new(),
            vectors: Vec::new(),
            given: 0,
            parts: Vec::new(),
        }
    }

    /// With the taps' places, for planes of outputs of this size whose first lies at `first`.
    fn laid(mut self, taps: Vec<[usize; 2]>, first: [usize; 2], out: [usize; 2], outputs: usize) -> Option<Field> {
        let lanes = self.lanes;
        self.plane = out[0] * out[1];
        let [height, width] = self.size;
        let plane = height.checked_mul(width)?;
        let channel = plane.checked_mul(self.phases[0])?.checked_mul(self.phases[1])?;
        // The padded copy of a sample takes no more than its values do.
        let values = |planes: usize, size: [usize; 2]| planes.saturating_mul(size[0]).saturating_mul(size[1]);
        let most = values(self.all, self.image).saturating_add(values(outputs, out)).saturating_mul(2);
        let padded = channel.checked_mul(self.all)?;
        let (runs, len) = if width == out[1] { (1, self.plane) } else { (out[0], out[1]) };
        // Vectors that compute few outputs twice, or for nothing.
        if padded > most.saturating_add(SMALL) || lanes < 2 || len == 0 || 4 * len.div_ceil(lanes) * lanes > 5 * len {
            return None;
        }
        // Behind a row that is shorter than a vector something has to lie.
        self.given = len.min(lanes);
        self.direct &= self.given == lanes;
        for start in 0..self.channels {
            for [row, column] in &taps {
                let [down, across] = self.phases;
                let phase = row % down * across + column % across;
                self.offsets.push(start * channel + phase * plane + row / down * width + column / across);
            }
        }
        for run in 0..runs {
            let (from, to) = ((first[0] + run) * width + first[1], run * out[1]);
            for begin in (0..len).step_by(lanes) {
                let full = begin.min(len - self.given);
                self.vectors.push([from + full, to + full]);
                self.parts.push(Part { from: from + begin, to: to + begin, len: lanes.min(len - begin) });
            }
        }
        Some(self)
    }

    /// Values of one channel of a source.
    fn channel(&self) -> usize {
        self.phases[0] * self.phases[1] * self.size[0] * self.size[1]
    }

    /// The padded copy of a sample.
    fn pad<'v, T: Number>(&self, values: &[T], padded: &'v mut Vec<T>) -> &'v [T] {
        // Behind the last channel, what a vector that is cut short reads too much.
        padded.resize(self.all * self.channel() + self.lanes, T::zero());
        let ([height, width], [down, across]) = (self.size, self.phases);
        let images = values.chunks(self.image[0] * self.image[1]);
        for (image, channel) in images.zip(padded.chunks_mut(self.channel())) {
            for (row, line) in image.chunks(self.image[1]).enumerate() {
                let row = row + self.before[0];
                if row / down >= height {
                    break;
                }
                let start = row % down * across * height * width + row / down * width;
                if across == 1 {
                    let len = line.len().min(width.saturating_sub(self.before[1]));
                    channel[start + self.before[1]..][..len].copy_from_slice(&line[..len]);
                    continue;
                }
                for (column, value) in (self.before[1]..).zip(line) {
                    if column / across < width {
                        channel[start + column % across * height * width + column / across] = *value;
                    }
                }
            }
        }
        padded
    }
}

/// Numbers of a vector.
pub(super) fn lanes<T: Number>() -> usize {
    kernel(Lanes::<T>(PhantomData))
}

struct Lanes<T>(PhantomData<T>);

impl<T: Number> WithSimd for Lanes<T> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        T::lanes::<S>()
    }
}

/// The weights of each group as tiles take them: so many panels of ROWS outputs together, [row of windows][panel][output], zeros
/// where there is none.
pub(super) struct Weights<T> {
    together: usize,
    groups: Vec<Vec<[T; ROWS]>>,
}

impl<T: Number> Weights<T> {
    fn of<'w>(weight: &'w [T], outputs: usize, windows: usize, at: impl Fn(&'w [T], usize, usize) -> T) -> Weights<T> {
        let together = if outputs > ROWS && lanes::<T>() * size_of::<T>() >= WIDE { 2 } else { 1 };
        let groups = weight.chunks(outputs * windows).map(|group| {
            let mut panels = Vec::with_capacity(outputs.next_multiple_of(together * ROWS) / ROWS * windows);
            for first in (0..outputs).step_by(together * ROWS) {
                for (window, panel) in (0..windows).flat_map(|window| (0..together).map(move |panel| (window, panel))) {
                    panels.push(std::array::from_fn(|row| match first + panel * ROWS + row {
                        output if output < outputs => at(group, output, window),
                        _ => T::zero(),
                    }));
                }
            }
            panels
        });
        Weights { together, groups: groups.collect() }
    }
}

/// The weights of every group for the forward pass.
pub(super) fn weights<T: Number>(s: &Sizes, weight: &[T]) -> Weights<T> {
    let (outputs, windows) = (s.part().1, s.rows());
    Weights::of(weight, outputs, windows, |group, output, window| group[output * windows + window])
}

/// The weights of every group for the gradient of the input: channels and outputs change places.
pub(super) fn weights_back<T: Number>(s: &Sizes, weight: &[T]) -> Weights<T> {
    let ((channels, outputs), taps) = (s.part(), s.kernel[0] * s.kernel[1]);
    Weights::of(weight, channels, outputs * taps, |group, channel, window| {
        group[(window / taps * channels + channel) * taps + window % taps]
    })
}

/// One sample: every group's outputs, with a bias for each where given. `padded` is this field's alone.
pub(super) fn correlate<T: Number>(
    field: &Field,
    values: &[T],
    weights: &Weights<T>,
    bias: Option<&[T]>,
    out: &mut [T],
    padded: &mut Vec<T>,
) {
    let source = if field.direct { values } else { field.pad(values, padded) };
    let outputs = out.len() / field.plane / weights.groups.len().max(1);
    for (group, (panels, out)) in weights.groups.iter().zip(out.chunks_mut(outputs * field.plane)).enumerate() {
        let source = &source[group * field.channels * field.channel()..];
        let bias = bias.map(|bias| &bias[group * outputs..(group + 1) * outputs]);
        kernel(Correlate { field, source, together: weights.together, panels, bias, out });
    }
}

struct Correlate<'a, T> {
    field: &'a Field,
    source: &'a [T],
    together: usize,
    panels: &'a [[T; ROWS]],
    bias: Option<&'a [T]>,
    out: &'a mut [T],
}

impl<T: Number> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.together {
            2 => self.tiles::<S, 2>(simd),
            _ => self.tiles::<S, 1>(simd),
        }
    }
}

impl<T: Number> Correlate<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd, const P: usize>(mut self, simd: S) {
        let (tiles, rest) = self.field.vectors.as_chunks::<VECTORS>();
        for vectors in tiles {
            self.tile::<S, P, VECTORS>(simd, vectors);
        }
        match *rest {
            [first] => self.tile::<S, P, 1>(simd, &[first]),
            [first, second] => self.tile::<S, P, 2>(simd, &[first, second]),
            _ => {}
        }
    }

    /// The outputs of so many vectors, all rows of them, `P` panels at a time.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const N: usize>(&mut self, simd: S, vectors: &[[usize; 2]; N]) {
        let lanes = T::lanes::<S>();
        let (offsets, plane, given) = (&self.field.offsets[..], self.field.plane, self.field.given);
        let starts = vectors.map(|[from, _]| from);
        let span = starts.iter().max().map_or(0, |last| last + lanes);
        let (panels, _) = self.panels.as_chunks::<P>();
        let panels = panels.chunks_exact(offsets.len());
        for (index, (panels, out)) in panels.zip(self.out.chunks_mut(P * ROWS * plane)).enumerate() {
            // Nothing here may depend on a length, or the sums are kept in memory.
            let bias = |panel: usize, row: usize| {
                self.bias.and_then(|bias| bias.get((index * P + panel) * ROWS + row)).copied().unwrap_or_else(T::zero)
            };
            let bias: [[T; ROWS]; P] = std::array::from_fn(|panel| std::array::from_fn(|row| bias(panel, row)));
            let mut sums = bias.map(|bias| bias.map(|bias| [T::splat(simd, bias); N]));
            for (panels, offset) in panels.iter().zip(offsets) {
                let source = &self.source[*offset..][..span];
                let mut values = [T::splat(simd, T::zero()); N];
                for (value, from) in values.iter_mut().zip(starts) {
                    *value = T::load(simd, &source[from..]);
                }
                for (sums, weights) in sums.iter_mut().zip(panels) {
                    for (sums, weight) in sums.iter_mut().zip(weights) {
                        let weight = T::splat(simd, *weight);
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = T::multiply_add(simd, weight, value, *sum);
                        }
                    }
                }
            }
            let mut rows = out.chunks_mut(plane);
            for sums in sums.into_iter().flatten() {
                let Some(row) = rows.next() else { break };
                for (sum, [_, to]) in sums.into_iter().zip(vectors) {
                    if given == lanes {
                        T::store(simd, sum, &mut row[*to..]);
                    } else {
                        let mut whole = [T::zero(); MOST_LANES];
                        T::store(simd, sum, &mut whole);
                        row[*to..][..given].copy_from_slice(&whole[..given]);
                    }
                }
            }
        }
    }
}

/// Adds the gradient of every group's weights, of one sample, to `sum`. `padded` is this field's alone.
pub(super) fn correlate_weights<T: Number>(
    field: &Field,
    groups: usize,
    (values, slope): (&[T], &[T]),
    sum: &mut [T],
    (padded, slopes): (&mut Vec<T>, &mut Vec<T>),
) {
    // What a vector that is cut short reads too much is multiplied by zero, but has to be there.
    let whole = field.parts.iter().all(|part| part.len == field.lanes);
    let source = if field.direct && whole { values } else { field.pad(values, padded) };
    let row = field.parts.len() * field.lanes;
    let outputs = slope.len() / field.plane / groups;
    let windows = field.offsets.len();
    let as_they_lie = whole && outputs.is_multiple_of(ROWS);
    let parts = slope.chunks(outputs * field.plane).zip(sum.chunks_mut(outputs * windows));
    for (group, (slope, sum)) in parts.enumerate() {
        if !as_they_lie {
            slopes.resize(outputs.next_multiple_of(ROWS) * row, T::zero());
            for (slope, line) in slope.chunks(field.plane).zip(slopes.chunks_mut(row)) {
                for (part, vector) in field.parts.iter().zip(line.chunks_mut(field.lanes)) {
                    vector[..part.len].copy_from_slice(&slope[part.to..part.to + part.len]);
                }
            }
        }
        let slopes = if as_they_lie { slope } else { &slopes[..] };
        let source = &source[group * field.channels * field.channel()..];
        kernel(CorrelateWeights { field, source, slopes, sum });
    }
}

struct CorrelateWeights<'a, T> {
    field: &'a Field,
    source: &'a [T],
    slopes: &'a [T],
    sum: &'a mut [T],
}

impl<T: Number> WithSimd for CorrelateWeights<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (lanes, field) = (T::lanes::<S>(), self.field);
        let outputs = self.slopes.len() / (field.parts.len() * lanes).max(1);
        let together = (TOGETHER / (field.channels * lanes)).max(VECTORS);
        for (block, parts) in field.parts.chunks(together).enumerate() {
            let mut output = 0;
            while is_wide::<T, S>() && output + 2 * ROWS <= outputs {
                self.tiles::<S, { 2 * ROWS }>(simd, output, block * together * lanes, parts);
                output += 2 * ROWS;
            }
            while output < outputs {
                self.tiles::<S, ROWS>(simd, output, block * together * lanes, parts);
                output += ROWS;
            }
        }
    }
}

impl<T: Number> CorrelateWeights<'_, T> {
    /// The weights of `R` outputs: what these vectors add to them, of which the first lies at `first` in each output's slopes.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(&mut self, simd: S, output: usize, first: usize, parts: &[Part]) {
        let (lanes, windows) = (T::lanes::<S>(), self.field.offsets.len());
        let row = self.field.parts.len() * lanes;
        let span = parts.iter().map(|part| part.from + lanes).max().unwrap_or(0);
        // The same vectors of each of the tile's outputs.
        let rows: [&[T]; R] =
            std::array::from_fn(|at| &self.slopes[(output + at) * row + first..][..parts.len() * lanes]);
        for (index, offsets) in self.field.offsets.chunks(VECTORS).enumerate() {
            let sources: [&[T]; VECTORS] =
                std::array::from_fn(|at| &self.source[offsets.get(at).copied().unwrap_or(offsets[0])..][..span]);
            let mut totals = [[T::splat(simd, T::zero()); VECTORS]; R];
            for (at, part) in parts.iter().enumerate() {
                let mut values = [T::splat(simd, T::zero()); VECTORS];
                for (value, source) in values.iter_mut().zip(&sources) {
                    *value = T::load(simd, &source[part.from..]);
                }
                for (totals, row) in totals.iter_mut().zip(&rows) {
                    let slope = T::load(simd, &row[at * lanes..]);
                    for (total, value) in totals.iter_mut().zip(values) {
                        *total = T::multiply_add(simd, slope, value, *total);
                    }
                }
            }
            let mut rows = self.sum[output * windows..].chunks_mut(windows);
            for totals in totals {
                let Some(sums) = rows.next() else { break };
                for (at, total) in totals.into_iter().enumerate() {
                    if let Some(sum) = sums.get_mut(index * VECTORS + at) {
                        *sum += T::total(simd, total);
                    }
                }
            }
        }
    }
}
