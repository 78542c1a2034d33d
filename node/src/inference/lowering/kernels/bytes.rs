//! Products of bytes: u8 codes by i8 weights, four at a time into 32-bit sums (`vpdpbusd`), on processors that have them. Exact:
//! nothing saturates on the way. Codes need no widening, so that rows are multiplied where they lie.

use super::{BLOCK, Isa, Target};

/// Weights `[columns, depth]` of 8 bits in blocks of [`BLOCK`] columns: for each four depths, 16 columns × 4 values.
#[derive(Clone, Debug)]
pub(crate) struct ByteWeights {
    /// Output channels.
    pub columns: usize,
    /// Fours of values along the depth.
    pub fours: usize,
    /// `[blocks, fours, BLOCK, 4]`; zeros behind the depth and the last column.
    pub(super) data: Vec<i8>,
    /// `[blocks × BLOCK]`, added to the sums.
    pub(super) bias: Vec<i32>,
    /// `[blocks × BLOCK]`, scale of a sum.
    pub(super) multiplier: Vec<f32>,
}

impl ByteWeights {
    /// Packs weights given as `at(column, depth)`; `None` where one of them is no i8. `bias` and `multiplier` hold `columns`
    /// values.
    pub(crate) fn pack(
        columns: usize,
        depth: usize,
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> Option<ByteWeights> {
        let (blocks, fours) = (columns.div_ceil(BLOCK), depth.div_ceil(4));
        let mut data = vec![0i8; blocks * fours * BLOCK * 4];
        for column in 0..columns {
            for k in 0..depth {
                let block = column / BLOCK * fours + k / 4;
                data[block * BLOCK * 4 + column % BLOCK * 4 + k % 4] = i8::try_from(at(column, k)).ok()?;
            }
        }
        let (mut bias, mut multiplier) = (bias[..columns].to_vec(), multiplier[..columns].to_vec());
        bias.resize(blocks * BLOCK, 0);
        multiplier.resize(blocks * BLOCK, 0.0);
        Some(ByteWeights { columns, fours, data, bias, multiplier })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() + self.bias.len() * 8
    }
}

/// Rows of codes: `rows` times `stride`, of which `4 × fours` are read from the beginning of each.
#[derive(Clone, Copy)]
pub(crate) struct BytePanel<'p> {
    pub values: &'p [u8],
    pub stride: usize,
    pub rows: usize,
}

/// Multiplies rows by all columns. Panics where a slice is shorter than its description: a fault of this crate.
pub(crate) fn multiply(isa: Isa, panel: BytePanel<'_>, weights: &ByteWeights, target: Target<'_>, stride: usize) {
    let BytePanel { values, stride: row, rows } = panel;
    if rows == 0 || weights.columns == 0 {
        return;
    }
    let blocks = weights.columns.div_ceil(BLOCK);
    assert!(values.len() >= (rows - 1) * row + weights.fours * 4, "rows are too short");
    assert!(weights.data.len() >= blocks * weights.fours * BLOCK * 4, "weights are too short");
    assert!(weights.bias.len() >= blocks * BLOCK && weights.multiplier.len() >= blocks * BLOCK);
    assert!(target.len() >= (rows - 1) * stride + weights.columns, "the output is too short");
    match isa {
        // SAFETY: the CPU has the features (only `Isa::available` makes these values), and the assertions above bound
        // every access: 4 × fours codes from each row on, blocks × fours × 64 weights, the results.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { super::avx512::multiply_bytes(panel, weights, target, stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => unsafe { super::avxvnni::multiply_bytes(panel, weights, target, stride) },
        _ => reference(panel, weights, target, stride),
    }
}

/// Rows of codes: row `r` from `from[r × step..]` to `to[r × stride..]`, `len` each. Panics where a slice lacks place.
#[inline]
pub(crate) fn copy_rows(isa: Isa, from: &[u8], step: usize, rows: usize, len: usize, to: &mut [u8], stride: usize) {
    if rows == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * step + len && to.len() >= (rows - 1) * stride + len, "rows are too short");
    match isa {
        // SAFETY: the CPU has the features, and both slices hold `len` from each row on.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { super::avx512::copy_rows(from, step, rows, len, to, stride) },
        _ => {
            for row in 0..rows {
                to[row * stride..][..len].copy_from_slice(&from[row * step..][..len]);
            }
        }
    }
}

/// What the others must equal bit for bit.
fn reference(panel: BytePanel<'_>, weights: &ByteWeights, mut target: Target<'_>, stride: usize) {
    for (block, data) in weights.data.chunks_exact(weights.fours * BLOCK * 4).enumerate() {
        let columns = (weights.columns - block * BLOCK).min(BLOCK);
        for r in 0..panel.rows {
            let row = &panel.values[r * panel.stride..][..weights.fours * 4];
            let mut sums = [0i32; BLOCK];
            sums.copy_from_slice(&weights.bias[block * BLOCK..][..BLOCK]);
            for (a, b) in row.as_chunks::<4>().0.iter().zip(data.as_chunks::<{ BLOCK * 4 }>().0) {
                for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
                    *sum += a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>();
                }
            }
            for (column, &sum) in sums.iter().enumerate().take(columns) {
                let value = sum as f32 * weights.multiplier[block * BLOCK + column];
                target.put(r * stride + block * BLOCK + column, value);
            }
        }
    }
}
