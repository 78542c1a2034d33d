//! The reference: what every other kernel must equal bit for bit.
//! Speed is not its matter.

use super::{BLOCK, DepthwiseWeights, ORDER, Panel, Range, Target, Weights, code};

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
                let at = r * stride + block * BLOCK + column;
                let value = sum as f32 * weights.multiplier[block * BLOCK + column];
                match &mut target {
                    Target::Codes(out, range) => out[at] = code(value, *range),
                    Target::Floats(out, range) => out[at] = value.max(range.low).min(range.high),
                }
            }
        }
    }
}

pub(super) fn depthwise(taps: &[&[u8]], weights: &DepthwiseWeights, range: Range, out: &mut [u8]) {
    let pairs = weights.taps.div_ceil(2);
    for (block, data) in weights.data.chunks_exact(pairs * 32).enumerate() {
        for (place, &within) in ORDER.iter().enumerate() {
            let channel = block * BLOCK + within;
            if channel >= weights.channels {
                continue;
            }
            let mut sum = weights.bias[block * BLOCK + place];
            for (tap, values) in taps.iter().enumerate() {
                let weight = data[tap / 2 * 32 + place * 2 + tap % 2];
                sum += i32::from(values[channel]) * i32::from(weight);
            }
            out[channel] = code(sum as f32 * weights.multiplier[block * BLOCK + place], range);
        }
    }
}
