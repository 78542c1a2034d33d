//! Convolution that reads its windows where they lie: of a padded copy of each plane, parted by the strides' phases, every tap
//! of the filter is a run of neighbours, begun elsewhere. Nothing is unfolded or packed but the weights.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::super::number::{Number, kernel};
use super::{SMALL, Sizes};

/// Outputs and vectors of one tile: their products stay in registers.
const ROWS: usize = 4;
const VECTORS: usize = 3;
/// Vectors of 512 bits come with registers for twice as many outputs.
#[inline(always)]
pub(super) fn is_wide<T: Number, S: Simd>() -> bool {
    T::lanes::<S>() * size_of::<T>() >= 64
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
            lanes: kernel(Lanes::<T>(PhantomData)),
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
pub(super) struct Lanes<T>(pub(super) PhantomData<T>);

impl<T: Number> WithSimd for Lanes<T> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        T::lanes::<S>()
    }
}

/// The weights of each group.
pub(super) type Weights<T> = Vec<Vec<[T; ROWS]>>;

/// Weights of one group as tiles take them: ROWS outputs at a time, [row of windows][output], zeros where there is none.
fn packed<T: Number>(outputs: usize, windows: usize, weight: impl Fn(usize, usize) -> T) -> Vec<[T; ROWS]> {
    let panels = (0..outputs).step_by(ROWS);
    let rows = panels.flat_map(|first| (0..windows).map(move |window| (first, window)));
    rows.map(|(first, window)| {
        std::array::from_fn(|row| if first + row < outputs { weight(first + row, window) } else { T::zero() })
    })
    .collect()
}

/// The weights of every group for the forward pass.
pub(super) fn weights<T: Number>(s: &Sizes, weight: &[T]) -> Weights<T> {
    let (outputs, windows) = (s.part().1, s.rows());
    let groups = weight.chunks(outputs * windows);
    groups.map(|group| packed(outputs, windows, |output, window| group[output * windows + window])).collect()
}

/// The weights of every group for the gradient of the input: channels and outputs change places.
pub(super) fn weights_back<T: Number>(s: &Sizes, weight: &[T]) -> Weights<T> {
    let ((channels, outputs), taps) = (s.part(), s.kernel[0] * s.kernel[1]);
    let groups = weight.chunks(outputs * channels * taps);
    let of = |group: &[T]| {
        packed(channels, outputs * taps, |channel, window| {
            group[(window / taps * channels + channel) * taps + window % taps]
        })
    };
    groups.map(of).collect()
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
    let outputs = out.len() / field.plane / weights.len().max(1);
    for (group, (weights, out)) in weights.iter().zip(out.chunks_mut(outputs * field.plane)).enumerate() {
        let source = &source[group * field.channels * field.channel()..];
        let bias = bias.map(|bias| &bias[group * outputs..(group + 1) * outputs]);
        kernel(Correlate { field, source, weights, bias, out });
    }
}

struct Correlate<'a, T> {
    field: &'a Field,
    source: &'a [T],
    weights: &'a [[T; ROWS]],
    bias: Option<&'a [T]>,
    out: &'a mut [T],
}

impl<T: Number> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (tiles, rest) = self.field.vectors.as_chunks::<VECTORS>();
        for vectors in tiles {
            self.tiles(simd, vectors);
        }
        match *rest {
            [first] => self.tiles(simd, &[first]),
            [first, second] => self.tiles(simd, &[first, second]),
            _ => {}
        }
    }
}

impl<T: Number> Correlate<'_, T> {
    /// All outputs of so many vectors.
    #[inline(always)]
    fn tiles<S: Simd, const N: usize>(&mut self, simd: S, vectors: &[[usize; 2]; N]) {
        let (weights, windows) = (self.weights, self.field.offsets.len());
        let panels = weights.len() / windows.max(1);
        let mut panel = 0;
        while is_wide::<T, S>() && panel + 2 <= panels {
            let (first, second) = weights[panel * windows..(panel + 2) * windows].split_at(windows);
            self.tile(simd, vectors, panel, [first, second]);
            panel += 2;
        }
        while panel < panels {
            self.tile(simd, vectors, panel, [&weights[panel * windows..(panel + 1) * windows]]);
            panel += 1;
        }
    }

    /// The outputs of so many vectors and of the panels from `panel` on.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const N: usize>(
        &mut self,
        simd: S,
        vectors: &[[usize; 2]; N],
        panel: usize,
        panels: [&[[T; ROWS]]; P],
    ) {
        let lanes = T::lanes::<S>();
        let (offsets, plane) = (&self.field.offsets[..], self.field.plane);
        let starts = vectors.map(|[from, _]| from);
        let span = starts.iter().max().map_or(0, |last| last + lanes);
        // Nothing here may depend on a length, or the sums are kept in memory.
        let bias: [[T; ROWS]; P] = std::array::from_fn(|at| {
            std::array::from_fn(|row| {
                self.bias.and_then(|bias| bias.get((panel + at) * ROWS + row)).copied().unwrap_or_else(T::zero)
            })
        });
        let mut sums = bias.map(|bias| bias.map(|bias| [T::splat(simd, bias); N]));
        let panels = panels.map(|panel| &panel[..offsets.len()]);
        for (window, offset) in offsets.iter().enumerate() {
            let source = &self.source[*offset..][..span];
            let mut values = [T::splat(simd, T::zero()); N];
            for (value, from) in values.iter_mut().zip(starts) {
                *value = T::load(simd, &source[from..]);
            }
            for (sums, panel) in sums.iter_mut().zip(panels) {
                for (sums, weight) in sums.iter_mut().zip(panel[window]) {
                    let weight = T::splat(simd, weight);
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = T::multiply_add(simd, weight, value, *sum);
                    }
                }
            }
        }
        let mut rows = self.out[panel * ROWS * plane..].chunks_mut(plane);
        for sums in sums.into_iter().flatten() {
            let Some(row) = rows.next() else { break };
            for (sum, [_, to]) in sums.into_iter().zip(vectors) {
                if self.field.given == lanes {
                    T::store(simd, sum, &mut row[*to..]);
                } else {
                    let mut whole = [T::zero(); MOST_LANES];
                    T::store(simd, sum, &mut whole);
                    row[*to..][..self.field.given].copy_from_slice(&whole[..self.field.given]);
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
                self.tiles::<S, 8>(simd, output, block * together * lanes, parts);
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
