//! Convolution in vectors of channels: what neither `depthwise` nor `direct` takes, such as small images, wide strides and large
//! weights. Numbers are laid with their channels side by side; then a result is a sum, over the pairs of a pixel and a tap that
//! meet there, of products of matrices, and what lies in the padding is not multiplied.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::number::{Number, kernel};
use super::super::spare;
use super::Sizes;
use super::direct::{Lanes, is_wide};

/// Channels side by side are rounded up to so many at least.
const CHANNELS: usize = 8;
/// Numbers of the copies of some samples, about.
const TOGETHER: usize = 1 << 21;

/// Rows of one tile.
fn rows<T: Number>() -> usize {
    if lanes::<T>() * size_of::<T>() >= 64 { 8 } else { 4 }
}

fn lanes<T: Number>() -> usize {
    kernel(Lanes::<T>(PhantomData))
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
    let mut room = spare::room(runs.len * laid.number);
    let Runs { outer: [outers, outer_step], row: [rows, row_step], len, picks } = runs;
    let at_once = len.div_ceil(rayon::current_num_threads().max(1)).max(1);
    let parts = room[..len * laid.number].par_chunks_mut((at_once * laid.number).max(1)).enumerate();
    parts.for_each(|(part, to)| {
        let first = part * at_once;
        let picks = &picks[picks.partition_point(|pick| *pick < first)..];
        let picks = &picks[..picks.partition_point(|pick| *pick < first + to.len() / laid.number)];
        let zeros = vec![T::zero(); if rows % N == 0 { 0 } else { outers * len }];
        for block in 0..rows.div_ceil(N) {
            let to = &mut to[block * laid.block..];
            let count = N.min(rows - block * N);
            if row_step == len {
                // The rows of an outer lie one behind the other.
                for outer in 0..outers {
                    let from = &values[outer * outer_step + block * N * len..][..count * len];
                    let to = &mut to[outer * laid.outer..];
                    match (len, from.as_chunks::<9>().0) {
                        (1, _) if count == N && first == 0 => to[..N].copy_from_slice(from),
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
            // The outers of a row do.
            let rows: [&[T]; N] = std::array::from_fn(|row| {
                let from = if row < count { &values[(block * N + row) * row_step..] } else { &zeros[..] };
                &from[..outers * len]
            });
            if picks.len() < len {
                for outer in 0..outers {
                    let to = &mut to[outer * laid.outer..];
                    for pick in picks {
                        let column = rows.map(|row| row[outer * len + pick]);
                        to[(pick - first) * laid.number..][..N].copy_from_slice(&column);
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
                for column in 0..CHANNELS {
                    put(std::array::from_fn(|row| square[row][column]));
                }
            }
            for index in outers * len / CHANNELS * CHANNELS..outers * len {
                put(rows.map(|row| row[index]));
            }
        }
    });
    room
}

/// Takes runs back to where they belong: each place with its row and what it gets.
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
            for number in picks {
                let from = &from[number * laid.number + outer * laid.outer + first..][..count];
                for ((row, value), to) in (first..).zip(from).zip(to[*number..].iter_mut().step_by(row_step)) {
                    put(to, row, *value);
                }
            }
        }
    });
}

/// Sums of products of matrices: a[i] of `[blocks, depth, rows]` by b[j] of `[depth, width]`, for the pairs (i, j) of each result,
/// which is `[blocks × rows, width]`.
struct Sums<'a, T> {
    a: &'a [T],
    b: &'a [T],
    blocks: usize,
    depth: usize,
    /// Of b, and how many of them count.
    width: usize,
    columns: usize,
}

/// Takes back the sums of products of `a`'s numbers by `b`'s, for the pairs of each number of the result's runs: their rows lie
/// side by side, the sum goes over their outers.
fn sums<T: Number>(
    (a, a_runs): (&[T], Runs<'_>),
    (b, b_runs): (&[T], Runs<'_>),
    (to, runs): (&mut [T], Runs<'_>),
    pairs: impl Fn(usize, &mut Vec<[usize; 2]>) + Sync + Send,
    put: impl Fn(&mut T, usize, T) + Sync + Send,
) {
    let (depth, columns) = (a_runs.outer[0], b_runs.row[0]);
    let (rows, width) = (rows::<T>(), columns.next_multiple_of(lanes::<T>().max(CHANNELS)));
    let blocks = a_runs.row[0].div_ceil(rows);
    let laid = Laid { outer: rows, block: depth * rows, number: blocks * depth * rows };
    let a = if rows == 8 { lay::<T, 8>(a, a_runs, laid) } else { lay::<T, 4>(a, a_runs, laid) };
    let b = lay::<T, CHANNELS>(b, b_runs, Laid { outer: width, block: CHANNELS, number: depth * width });
    let each = rows * width;
    let mut room = spare::room(runs.len * blocks * each);
    let sums = Sums { a: &a, b: &b, blocks, depth, width, columns };
    let parts = room[..runs.len * blocks * each].par_chunks_mut(each);
    parts.enumerate().for_each_init(Vec::new, |list, (index, out)| {
        if runs.picks.binary_search(&(index / blocks)).is_err() {
            return;
        }
        list.clear();
        pairs(index / blocks, list);
        kernel(Part { sums: &sums, block: index % blocks, pairs: list, out });
    });
    take_back(&room, Laid { outer: width, block: 0, number: blocks * each }, runs, to, put);
    [a, b, room].into_iter().for_each(spare::leave);
}

/// One block of rows of one result.
struct Part<'a, T> {
    sums: &'a Sums<'a, T>,
    block: usize,
    pairs: &'a [[usize; 2]],
    out: &'a mut [T],
}

impl<T: Number> WithSimd for Part<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if is_wide::<T, S>() { self.tiles::<S, 8>(simd) } else { self.tiles::<S, 4>(simd) }
    }
}

impl<T: Number> Part<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd, const M: usize>(mut self, simd: S) {
        let vectors = self.sums.columns.div_ceil(T::lanes::<S>());
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
        let Sums { a, b, blocks, depth, width, .. } = *self.sums;
        let lanes = T::lanes::<S>();
        let (a, _) = a.as_chunks::<M>();
        let mut sums = [[T::splat(simd, T::zero()); V]; M];
        for [i, j] in self.pairs {
            let a = &a[(i * blocks + self.block) * depth..][..depth];
            let b = &b[j * depth * width..][..depth * width];
            for (a, b) in a.iter().zip(b.chunks_exact(width)) {
                let b = &b[first * lanes..][..V * lanes];
                let mut vectors = [T::splat(simd, T::zero()); V];
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
                T::store(simd, sum, out);
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
    /// Planes, of `all` that a sample has, with samples as rows.
    fn by_sample<'p>(&self, planes: usize, all: usize, picks: &'p [usize]) -> Runs<'p> {
        let len = picks.len();
        Runs { outer: [planes, len], row: [self.samples, all * len], len, picks }
    }

    /// With planes as rows.
    fn by_plane<'p>(&self, planes: usize, all: usize, picks: &'p [usize]) -> Runs<'p> {
        let len = picks.len();
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
}

/// The groups of some samples at a time, each with its first input, output and weight.
fn groups(s: &Sizes, mut each: impl FnMut(&Group, [usize; 3])) {
    let (channels, outputs) = s.part();
    let used = s.taps().filter(|(_, row, column)| !s.inside(0, *row).is_empty() && !s.inside(1, *column).is_empty());
    let used: Vec<usize> = used.map(|(tap, ..)| tap).collect();
    let taps = s.kernel[0] * s.kernel[1];
    let of_sample = s.channels.saturating_mul(s.image()).saturating_add(s.outputs.saturating_mul(s.plane()));
    let together = (TOGETHER / of_sample.max(1)).max(8);
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

/// The outputs, with a bias for each where given.
pub(super) fn forward<T: Number>(s: &Sizes, x: &[T], weight: &[T], bias: Option<&[T]>, out: &mut [T]) {
    let (pixels, outs) = (every(s.image()), every(s.plane()));
    groups(s, |group, [input, output, first]| {
        let bias = bias.map(|bias| &bias[output / s.plane() % s.outputs..]);
        sums(
            (&x[input..], group.by_sample(group.channels, s.channels, &pixels)),
            (&weight[first..], group.by_output()),
            (&mut out[output..], group.by_plane(group.outputs, s.outputs, &outs)),
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
    });
}

/// The gradient with respect to x.
pub(super) fn backward<T: Number>(s: &Sizes, weight: &[T], slope: &[T], gradient: &mut [T]) {
    let (pixels, outs) = (every(s.image()), every(s.plane()));
    // The output that sees the input at `at` with a tap that lies `tap` from its first, if there is one.
    let seen_from = |axis: usize, at: usize, tap: usize| {
        let ahead = (at + s.pads[axis]).checked_sub(tap * s.dilations[axis])?;
        let output = ahead / s.strides[axis];
        (ahead.is_multiple_of(s.strides[axis]) && output < s.out[axis]).then_some(output)
    };
    groups(s, |group, [input, output, first]| {
        sums(
            (&slope[output..], group.by_sample(group.outputs, s.outputs, &outs)),
            (&weight[first..], group.by_channel()),
            (&mut gradient[input..], group.by_plane(group.channels, s.channels, &pixels)),
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
    });
}

/// Adds the gradient with respect to the weight.
pub(super) fn backward_weight<T: Number>(s: &Sizes, x: &[T], slope: &[T], sum: &mut [T]) {
    let (pixels, outs) = (every(s.image()), every(s.plane()));
    groups(s, |group, [input, output, first]| {
        sums(
            (&slope[output..], group.by_plane(group.outputs, s.outputs, &outs)),
            (&x[input..], group.by_plane(group.channels, s.channels, &pixels)),
            (&mut sum[first..], group.by_channel()),
            |tap, pairs| {
                let (row, column) = (tap / s.kernel[1], tap % s.kernel[1]);
                for y in s.inside(0, row) {
                    let line = s.input(0, row, y) * s.size[1];
                    let seen = s.inside(1, column).map(|x| [y * s.out[1] + x, line + s.input(1, column, x)]);
                    pairs.extend(seen);
                }
            },
            |to, _, value| *to += value,
        );
    });
}

fn every(len: usize) -> Vec<usize> {
    (0..len).collect()
}
