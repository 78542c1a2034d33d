//! The reference: what every other kernel must equal bit for bit.
//! Speed is not its matter.

use super::depthwise::{ORDER, WordFilters};
use super::{BLOCK, Panel, Range, Target, Weights, code};

pub(super) fn multiply(panel: Panel<'_>, weights: &Weights, mut target: Target<'_>, stride: usize) {
    for (block, data) in weights.data.chunks_exact(weights.pairs * BLOCK * 2).enumerate() {
        let columns = (weights.columns - block * BLOCK).min(BLOCK);
        for r in 0..panel.rows {
            let row = &panel.values[r * panel.stride..][..weights.pairs * 2];
            let mut sums = [0i32; BLOCK];
            sums.copy_from_slice(&weights.bias[block * BLOCK..][..BLOCK]);
            for (a, b) in row.chunks_exact(2).zip(data.chunks_exact(BLOCK * 2)) {
                for (sum, b) in sums.iter_mut().zip(b.chunks_exact(2)) {
                    *sum += i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
                }
            }
            for (column, &sum) in sums.iter().enumerate().take(columns) {
                let value = sum as f32 * weights.multiplier[block * BLOCK + column];
                target.put(r * stride + block * BLOCK + column, value);
            }
        }
    }
}

pub(super) fn block_sums(panel: Panel<'_>, weights: &Weights, block: usize, out: &mut [i32]) {
    let size = weights.pairs * BLOCK * 2;
    let data = &weights.data[block * size..][..size];
    for (r, out) in out.chunks_exact_mut(BLOCK).take(panel.rows).enumerate() {
        let row = &panel.values[r * panel.stride..][..weights.pairs * 2];
        out.fill(0);
        for (a, b) in row.chunks_exact(2).zip(data.chunks_exact(BLOCK * 2)) {
            for (out, b) in out.iter_mut().zip(b.chunks_exact(2)) {
                let pair = i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
                *out = out.wrapping_add(pair);
            }
        }
    }
}

pub(super) fn depthwise(
    taps: &[&[u8]],
    step: usize,
    pixels: usize,
    weights: &WordFilters,
    range: Range,
    out: &mut [u8],
) {
    let pairs = weights.taps.div_ceil(2);
    for (pixel, out) in out.chunks_exact_mut(weights.channels.max(1)).take(pixels).enumerate() {
        for (block, data) in weights.data.chunks_exact(pairs * 32).enumerate() {
            for (place, &within) in ORDER.iter().enumerate() {
                let channel = block * BLOCK + within;
                if channel >= weights.channels {
                    continue;
                }
                let mut sum = weights.bias[block * BLOCK + place];
                for (tap, values) in taps.iter().enumerate() {
                    let weight = data[tap / 2 * 32 + place * 2 + tap % 2];
                    sum += i32::from(values[pixel * step + channel]) * i32::from(weight);
                }
                out[channel] = code(sum as f32 * weights.multiplier[block * BLOCK + place], range);
            }
        }
    }
}

pub(super) fn winograd_input(pixels: &[&[u8]; 16], channels: usize, step: usize, to: &mut [i16]) {
    for c in 0..channels {
        let d = |p: usize| i16::from(pixels[p][c]);
        let rows = |j: usize| [d(j) - d(8 + j), d(4 + j) + d(8 + j), d(8 + j) - d(4 + j), d(4 + j) - d(12 + j)];
        let columns = [rows(0), rows(1), rows(2), rows(3)];
        for i in 0..4 {
            let [p, q, r, s] = columns.map(|column| column[i]);
            for (j, value) in [p - r, q + r, r - q, q - s].into_iter().enumerate() {
                to[(i * 4 + j) * step + c] = value;
            }
        }
    }
}

pub(super) fn winograd_output(
    sums: &[i32],
    step: usize,
    bias: &[i32],
    multiplier: &[f32],
    range: Range,
    to: &mut [[u8; BLOCK]; 4],
) {
    for c in 0..BLOCK {
        // Wraps around on the way; the results fit.
        let m = |p: usize| sums[p * step + c];
        let first = |j: usize| m(j).wrapping_add(m(4 + j)).wrapping_add(m(8 + j));
        let second = |j: usize| m(4 + j).wrapping_sub(m(8 + j)).wrapping_sub(m(12 + j));
        let rows = [[first(0), first(1), first(2), first(3)], [second(0), second(1), second(2), second(3)]];
        for (i, [p, q, r, s]) in rows.into_iter().enumerate() {
            let results = [p.wrapping_add(q).wrapping_add(r), q.wrapping_sub(r).wrapping_sub(s)];
            for (j, result) in results.into_iter().enumerate() {
                to[i * 2 + j][c] = code(((result >> 2) + bias[c]) as f32 * multiplier[c], range);
            }
        }
    }
}
