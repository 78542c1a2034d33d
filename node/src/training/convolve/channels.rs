//! Convolution in vectors of channels: what neither `depthwise` nor `direct` takes, such as small images, wide strides, large
//! weights and fewer outputs than a tile has. Numbers are laid with their channels side by side; then a result is a sum, over the
//! pairs of a pixel and a tap that meet there, of products of matrices, and what lies in the padding is not multiplied.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::number::{Number, kernel};
use super::super::spare;
use super::Sizes;
use super::direct::lanes;

/// Channels side by side are rounded up to so many at least.
const CHANNELS: usize = 8;
/// Numbers of the copies that are held at a time, about: some lines of some samples. One line of one sample may have more.
const TOGETHER: usize = 1 << 21;
/// Products that are summed one after the other before their sum is added to others: a longer sum would lose digits.
const RUN: usize = 1024;
/// Most rows of one tile, in vectors of 512 bits.
const ROWS: usize = 8;

/// Rows of one tile: as many as there are, and as its sums leave registers for.
fn tile_rows<T: Number>(rows: usize) -> usize {
    let most = if lanes::<T>() * size_of::<T>() >= super::direct::WIDE { ROWS } else { ROWS / 2 };
    rows.next_power_of_two().min(most)
}

/// Runs of numbers: `runs[outer][row]`, each axis with its size and step.
#[derive(Clone, Copy)]
struct Runs<'p> {
    outer: [usize; 2],
    row: [usize; 2],
    len: usize,
    /// Which of the numbers of a run count, in order.
    picks: &'p [usize],
}

impl Runs<'_> {
    /// The first number that counts: what is laid begins there.
    fn base(&self) -> usize {
        self.picks.first().copied().unwrap_or(0)
    }

    /// Numbers from there to the last one that counts.
    fn span(&self) -> usize {
        self.picks.last().map_or(0, |last| last + 1 - self.base())
    }
}

/// Where the number `i` of `runs[outer][row]` lies among the others: `N` rows of a block side by side, blocks and outers at their
/// steps, and number after number.
#[derive(Clone, Copy)]
struct Laid {
    outer: usize,
    block: usize,
    number: usize,
}

/// Lays those numbers of runs that are picked, in order; rows that complete a block are zeros. What else lies there is left over.
fn lay<T: Number, const N: usize>(values: &[T], runs: Runs<'_>, laid: Laid) -> Vec<T> {
    let (base, span) = (runs.base(), runs.span());
    let mut room = spare::room(span * laid.number);
    let Runs { outer: [outers, outer_step], row: [rows, row_step], len, picks } = runs;
    let at_once = span.div_ceil(rayon::current_num_threads().max(1)).max(1);
    let parts = room[..span * laid.number].par_chunks_mut((at_once * laid.number).max(1)).enumerate();
    parts.for_each(|(part, to)| {
        let first = base + part * at_once;
        let picks = &picks[picks.partition_point(|pick| *pick < first)..];
        let picks = &picks[..picks.partition_point(|pick| *pick < first + at_once)];
        for block in 0..rows.div_ceil(N) {
            let to = &mut to[block * laid.block..];
            let count = N.min(rows - block * N);
            if row_step == len {
                // The rows of an outer lie one behind the other.
                for outer in 0..outers {
                    let from = &values[outer * outer_step + block * N * len..][..count * len];
                    let to = &mut to[outer * laid.outer..];
                    match (len, from.as_chunks::<9>().0) {
                        (1, _) if count == N && picks.len() == 1 => to[..N].copy_from_slice(from),
                        (9, from) if count == N => {
                            for pick in picks {
                                let column: [T; N] = std::array::from_fn(|row| from[row][*pick]);
                                to[(pick - first) * laid.number..][..N].copy_from_slice(&column);
                            }
                        }
                        _ => {
                            for pick in picks {
                                let to = &mut to[(pick - first) * laid.number..][..N];
                                to[count..].fill(T::zero());
                                let column = from[*pick..].iter().step_by(len);
                                to.iter_mut().zip(column).for_each(|(to, value)| *to = *value);
                            }
                        }
                    }
                }
                continue;
            }
            // The outers of a row do. A row that is missing is the first one, of which nothing is taken.
            let rows: [&[T]; N] = std::array::from_fn(|row| {
                &values[(block * N + if row < count { row } else { 0 }) * row_step..][..outers * len]
            });
            let column = |index: usize| -> [T; N] {
                std::array::from_fn(|row| if row < count { rows[row][index] } else { T::zero() })
            };
            if picks.len() < len || count < N {
                for outer in 0..outers {
                    let to = &mut to[outer * laid.outer..];
                    for pick in picks {
                        to[(pick - first) * laid.number..][..N].copy_from_slice(&column(outer * len + pick));
                    }
                }
                continue;
            }
            let (mut outer, mut number) = (0, 0);
            let mut put = |column: [T; N]| {
                to[number * laid.number + outer * laid.outer..][..N].copy_from_slice(&column);
                number += 1;
                if number == len {
                    (outer, number) = (outer + 1, 0);
                }
            };
            // Squares, whose indices need no check.
            let squares = rows.map(|row| row.as_chunks::<CHANNELS>().0);
            for index in 0..squares[0].len() {
                let square = squares.map(|squares| &squares[index]);
                (0..CHANNELS).for_each(|column| put(std::array::from_fn(|row| square[row][column])));
            }
            for index in outers * len / CHANNELS * CHANNELS..outers * len {
                put(column(index));
            }
        }
    });
    room
}

/// Takes the numbers of runs that are picked, laid one after the other, back to where they belong: each place with its row and what
/// it gets.
fn take_back<T: Number>(
    from: &[T],
    laid: Laid,
    runs: Runs<'_>,
    to: &mut [T],
    put: impl Fn(&mut T, usize, T) + Sync + Send,
) {
    let Runs { outer: [outers, outer_step], row: [rows, row_step], picks, .. } = runs;
    to.par_chunks_mut(outer_step.max(1)).take(outers).enumerate().for_each(|(outer, to)| {
        // Some rows at a time, so that what is read and what is written stays near.
        for (block, to) in to.chunks_mut((CHANNELS * row_step).max(1)).take(rows.div_ceil(CHANNELS)).enumerate() {
            let (first, count) = (block * CHANNELS, CHANNELS.min(rows - block * CHANNELS));
            for (at, number) in picks.iter().enumerate() {
                let from = &from[at * laid.number + outer * laid.outer + first..][..count];
                for ((row, value), to) in (first..).zip(from).zip(to[*number..].iter_mut().step_by(row_step)) {
                    put(to, row, *value);
                }
            }
        }
    });
}

/// Matrices side by side, one a number of their runs: `[outers, width]`.
struct Matrices<T> {
    values: Vec<T>,
    /// The first one's number.
    base: usize,
    /// Rows of the runs, which are columns here, and how many there is place for: whole vectors.
    columns: usize,
    width: usize,
}

impl<T: Number> Matrices<T> {
    fn of(values: &[T], runs: Runs<'_>) -> Matrices<T> {
        let columns = runs.row[0];
        let width = columns.next_multiple_of(lanes::<T>().max(CHANNELS));
        let laid = Laid { outer: width, block: CHANNELS, number: runs.outer[0] * width };
        Matrices { values: lay::<T, CHANNELS>(values, runs, laid), base: runs.base(), columns, width }
    }
}

/// Takes back the sums of products of a[i] by b[j], for the pairs (i, j) of each number of the result's runs: the rows of a's runs by
/// the columns of b, summed over the outers of both.
fn sums<T: Number>(
    (a, a_runs): (&[T], Runs<'_>),
    b: &Matrices<T>,
    (to, runs): (&mut [T], Runs<'_>),
    pairs: impl Fn(usize, &mut Vec<[usize; 2]>) + Sync + Send,
    put: impl Fn(&mut T, usize, T) + Sync + Send,
) {
    let (depth, rows) = (a_runs.outer[0], tile_rows::<T>(a_runs.row[0]));
    let blocks = a_runs.row[0].div_ceil(rows);
    let laid = Laid { outer: rows, block: depth * rows, number: blocks * depth * rows };
    let a = match rows {
        1 => lay::<T, 1>(a, a_runs, laid),
        2 => lay::<T, 2>(a, a_runs, laid),
        4 => lay::<T, 4>(a, a_runs, laid),
        _ => lay::<T, ROWS>(a, a_runs, laid),
    };
    let each = rows * b.width;
    // Some results at a time.
    let at_once = (TOGETHER / (blocks * each).max(1)).max(1);
    let mut room = spare::room(at_once.min(runs.picks.len()) * blocks * each);
    for picks in runs.picks.chunks(at_once) {
        let runs = Runs { picks, ..runs };
        let parts = room[..picks.len() * blocks * each].par_chunks_mut(each.max(1));
        parts.enumerate().for_each_init(Vec::new, |list, (index, out)| {
            list.clear();
            pairs(picks[index / blocks], list);
            list.iter_mut().for_each(|[i, j]| (*i, *j) = (*i - a_runs.base(), *j - b.base));
            kernel(Block { a: &a, b, blocks, depth, rows, block: index % blocks, pairs: list, out });
        });
        take_back(&room, Laid { outer: b.width, block: 0, number: blocks * each }, runs, to, &put);
    }
    [a, room].into_iter().for_each(spare::leave);
}

/// One block of rows of one result: `[rows, width]`, of `a` in `[blocks, depth, rows]` and `b` in `[depth, width]` each.
struct Block<'a, T> {
    a: &'a [T],
    b: &'a Matrices<T>,
    blocks: usize,
    depth: usize,
    rows: usize,
    block: usize,
    pairs: &'a [[usize; 2]],
    out: &'a mut [T],
}

impl<T: Number> WithSimd for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.rows {
            1 => self.tiles::<S, 1>(simd),
            2 => self.tiles::<S, 2>(simd),
            4 => self.tiles::<S, 4>(simd),
            _ => self.tiles::<S, ROWS>(simd),
        }
    }
}

impl<T: Number> Block<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd, const M: usize>(mut self, simd: S) {
        let vectors = self.b.columns.div_ceil(T::lanes::<S>());
        let mut first = 0;
        while first < vectors {
            first += match vectors - first {
                2 | 4 => self.tile::<S, M, 2>(simd, first),
                1 => self.tile::<S, M, 1>(simd, first),
                _ => self.tile::<S, M, 3>(simd, first),
            };
        }
    }

    /// `M` rows by `V` vectors; gives `V`. Nothing here may depend on a length, or the sums are kept in memory.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&mut self, simd: S, first: usize) -> usize {
        let (depth, width, lanes) = (self.depth, self.b.width, T::lanes::<S>());
        let ((a, _), b) = (self.a.as_chunks::<M>(), &self.b.values[..]);
        let (zero, one) = (T::splat(simd, T::zero()), T::splat(simd, T::one()));
        if self.pairs.is_empty() {
            self.out.fill(T::zero());
        }
        for (part, pairs) in self.pairs.chunks((RUN / depth.max(1)).max(1)).enumerate() {
            let mut sums = [[zero; V]; M];
            for [i, j] in pairs {
                let a = &a[(i * self.blocks + self.block) * depth..][..depth];
                let b = &b[j * depth * width..][..depth * width];
                for (a, b) in a.iter().zip(b.chunks_exact(width)) {
                    let b = &b[first * lanes..][..V * lanes];
                    let mut vectors = [zero; V];
                    for (vector, b) in vectors.iter_mut().zip(b.chunks_exact(lanes)) {
                        *vector = T::load(simd, b);
                    }
                    for (sums, a) in sums.iter_mut().zip(a) {
                        let a = T::splat(simd, *a);
                        for (sum, vector) in sums.iter_mut().zip(vectors) {
                            *sum = T::multiply_add(simd, a, vector, *sum);
                        }
                    }
                }
            }
            for (sums, out) in sums.into_iter().zip(self.out.chunks_exact_mut(width)) {
                for (sum, out) in sums.into_iter().zip(out[first * lanes..].chunks_exact_mut(lanes)) {
                    let before = if part == 0 { zero } else { T::load(simd, out) };
                    T::store(simd, T::multiply_add(simd, one, before, sum), out);
                }
            }
        }
        V
    }
}

/// Some samples of one group.
struct Group {
    samples: usize,
    channels: usize,
    outputs: usize,
    /// All taps, and those that meet the image anywhere.
    taps: usize,
    used: Vec<usize>,
}

impl Group {
    /// Those pixels of planes, of `all` that a sample has, each of `len` numbers, with samples as rows.
    fn by_sample<'p>(&self, planes: usize, all: usize, len: usize, picks: &'p [usize]) -> Runs<'p> {
        Runs { outer: [planes, len], row: [self.samples, all * len], len, picks }
    }

    /// With planes as rows.
    fn by_plane<'p>(&self, planes: usize, all: usize, len: usize, picks: &'p [usize]) -> Runs<'p> {
        Runs { outer: [self.samples, all * len], row: [planes, len], len, picks }
    }

    /// The weight, with outputs as rows.
    fn by_output(&self) -> Runs<'_> {
        let (output, channel) = ([self.outputs, self.channels * self.taps], [self.channels, self.taps]);
        Runs { outer: channel, row: output, len: self.taps, picks: &self.used }
    }

    /// With channels as rows.
    fn by_channel(&self) -> Runs<'_> {
        let Runs { outer, row, .. } = self.by_output();
        Runs { outer: row, row: outer, ..self.by_output() }
    }

    /// So many lines at a time.
    fn bands(&self, s: &Sizes, lines: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = (TOGETHER / of_line(s).saturating_mul(self.samples).max(1)).max(1);
        (0..lines).step_by(step).map(move |first| first..lines.min(first + step))
    }
}

/// Numbers that are held of a sample for one line of outputs and the lines that it sees, with channels in whole vectors.
fn of_line(s: &Sizes) -> usize {
    let (channels, outputs) = s.part();
    let whole = |channels: usize, width: usize| channels.next_multiple_of(2 * CHANNELS).saturating_mul(width);
    let lines = (s.strides[0] + (s.kernel[0] - 1) * s.dilations[0]).min(s.size[0]);
    whole(outputs, s.out[1]).saturating_add(whole(channels, s.size[1]).saturating_mul(lines))
}

/// The groups of some samples at a time, each with its first input, output and weight.
fn groups(s: &Sizes, mut each: impl FnMut(&Group, [usize; 3])) {
    let (channels, outputs) = s.part();
    let used = s.taps().filter(|(_, row, column)| !s.inside(0, *row).is_empty() && !s.inside(1, *column).is_empty());
    let used: Vec<usize> = used.map(|(tap, ..)| tap).collect();
    let taps = s.kernel[0] * s.kernel[1];
    let together = (TOGETHER / of_line(s).max(1)).clamp(1, RUN);
    for first in (0..s.batch).step_by(together) {
        let samples = together.min(s.batch - first);
        let group = Group { samples, channels, outputs, taps, used: used.clone() };
        for index in 0..s.groups {
            let input = (first * s.channels + index * channels) * s.image();
            let output = (first * s.outputs + index * outputs) * s.plane();
            each(&group, [input, output, index * outputs * channels * taps]);
        }
    }
}

/// The numbers of those lines of a plane.
fn pixels(lines: Range<usize>, width: usize) -> Vec<usize> {
    (lines.start * width..lines.end * width).collect()
}

/// Lines of the image that lines of outputs see.
fn seen(s: &Sizes, outputs: &Range<usize>) -> Range<usize> {
    let reach = (s.kernel[0] - 1) * s.dilations[0];
    let end = ((outputs.end.max(1) - 1) * s.strides[0] + reach + 1).saturating_sub(s.pads[0]).min(s.size[0]);
    (outputs.start * s.strides[0]).saturating_sub(s.pads[0]).min(end)..end
}

/// Lines of outputs that see lines of the image.
fn seen_by(s: &Sizes, lines: &Range<usize>) -> Range<usize> {
    let reach = (s.kernel[0] - 1) * s.dilations[0];
    let end = ((lines.end.max(1) - 1 + s.pads[0]) / s.strides[0] + 1).min(s.out[0]);
    (lines.start + s.pads[0]).saturating_sub(reach).div_ceil(s.strides[0]).min(end)..end
}

/// The outputs, with a bias for each where given.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], weight: &[T], bias: Option<&[T]>, out: &mut [T]) {
    groups(s, |group, [input, output, first]| {
        let bias = bias.map(|bias| &bias[output / s.plane().max(1) % s.outputs..]);
        let weights = Matrices::of(&weight[first..], group.by_output());
        for band in group.bands(s, s.out[0]) {
            let (seen, given) = (pixels(seen(s, &band), s.size[1]), pixels(band, s.out[1]));
            sums(
                (&x[input..], group.by_sample(group.channels, s.channels, s.image(), &seen)),
                &weights,
                (&mut out[output..], group.by_plane(group.outputs, s.outputs, s.plane(), &given)),
                |pixel, pairs| {
                    let at = [pixel / s.out[1], pixel % s.out[1]];
                    for (tap, row, column) in s.taps() {
                        if s.inside(0, row).contains(&at[0]) && s.inside(1, column).contains(&at[1]) {
                            pairs.push([s.input(0, row, at[0]) * s.size[1] + s.input(1, column, at[1]), tap]);
                        }
                    }
                },
                |to, output, value| *to = bias.map_or(value, |bias| value + bias[output]),
            );
        }
        spare::leave(weights.values);
    });
}

/// The gradient with respect to x.
pub(super) fn backward<T: Number>(s: &Sizes, weight: &[T], slope: &[T], gradient: &mut [T]) {
    // The output that sees the input at `at` with a tap that lies `tap` from its first, if there is one.
    let seen_from = |axis: usize, at: usize, tap: usize| {
        let ahead = (at + s.pads[axis]).checked_sub(tap * s.dilations[axis])?;
        let output = ahead / s.strides[axis];
        (ahead.is_multiple_of(s.strides[axis]) && output < s.out[axis]).then_some(output)
    };
    groups(s, |group, [input, output, first]| {
        let weights = Matrices::of(&weight[first..], group.by_channel());
        for band in group.bands(s, s.size[0]) {
            let (seeing, given) = (pixels(seen_by(s, &band), s.out[1]), pixels(band, s.size[1]));
            sums(
                (&slope[output..], group.by_sample(group.outputs, s.outputs, s.plane(), &seeing)),
                &weights,
                (&mut gradient[input..], group.by_plane(group.channels, s.channels, s.image(), &given)),
                |pixel, pairs| {
                    for (tap, row, column) in s.taps() {
                        let of = [seen_from(0, pixel / s.size[1], row), seen_from(1, pixel % s.size[1], column)];
                        if let [Some(row), Some(column)] = of {
                            pairs.push([row * s.out[1] + column, tap]);
                        }
                    }
                },
                |to, _, value| *to = value,
            );
        }
        spare::leave(weights.values);
    });
}

/// Adds the gradient with respect to the weight.
pub(super) fn backward_weight<T: Number>(s: &Sizes, x: &[T], slope: &[T], sum: &mut [T]) {
    groups(s, |group, [input, output, first]| {
        for band in group.bands(s, s.out[0]) {
            let (seen, given) = (pixels(seen(s, &band), s.size[1]), pixels(band.clone(), s.out[1]));
            let images = group.by_plane(group.channels, s.channels, s.image(), &seen);
            let images = Matrices::of(&x[input..], images);
            sums(
                (&slope[output..], group.by_plane(group.outputs, s.outputs, s.plane(), &given)),
                &images,
                (&mut sum[first..], group.by_channel()),
                |tap, pairs| {
                    let (row, column) = (tap / s.kernel[1], tap % s.kernel[1]);
                    let inside = s.inside(0, row);
                    for y in band.start.max(inside.start)..band.end.min(inside.end) {
                        let line = s.input(0, row, y) * s.size[1];
                        let seen = s.inside(1, column).map(|x| [y * s.out[1] + x, line + s.input(1, column, x)]);
                        pairs.extend(seen);
                    }
                },
                |to, _, value| *to += value,
            );
            spare::leave(images.values);
        }
    });
}
