//! The kernel of byte products for AVX-VNNI, 256-bit vectors: six rows by sixteen columns.
//! Bounds are checked by the callers in `bytes`; layouts are described there.

#![allow(unsafe_code, clippy::cast_ptr_alignment)]

use std::arch::x86_64::*;

use super::bytes::{BytePanel, ByteWeights};
use super::{BLOCK, Target, avx2};

/// Rows of one block: 12 of the 16 registers hold sums.
const ROWS: usize = 6;

/// # Safety
/// As `bytes::multiply` asserts; the CPU has AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn multiply_bytes(
    panel: BytePanel<'_>,
    weights: &ByteWeights,
    mut target: Target<'_>,
    stride: usize,
) {
    for block in 0..weights.columns.div_ceil(BLOCK) {
        let first = block * BLOCK;
        let columns = (weights.columns - first).min(BLOCK);
        // SAFETY: block < blocks, so these stay inside what the caller checked.
        let (data, bias, scale) = unsafe {
            (
                weights.data.as_ptr().add(block * weights.fours * BLOCK * 4),
                weights.bias.as_ptr().add(first),
                weights.multiplier.as_ptr().add(first),
            )
        };
        let mut row = 0;
        while row < panel.rows {
            let count = (panel.rows - row).min(ROWS);
            // SAFETY: row + count <= rows; each of the rows has 4 × fours codes, and the output `columns` results.
            unsafe {
                let a = panel.values.as_ptr().add(row * panel.stride);
                macro_rules! tile {
                    ($rows:literal) => {
                        for (r, sums) in
                            sums::<$rows>(a, panel.stride, weights.fours, data, bias).into_iter().enumerate()
                        {
                            let at = (row + r) * stride + first;
                            match &mut target {
                                Target::Codes(out, range) => {
                                    avx2::store_codes(out.as_mut_ptr().add(at), sums, columns, *range, scale);
                                }
                                Target::Floats(out, range) => {
                                    avx2::store_floats(out.as_mut_ptr().add(at), sums, columns, *range, scale);
                                }
                            }
                        }
                    };
                }
                match count {
                    6 => tile!(6),
                    5 => tile!(5),
                    4 => tile!(4),
                    3 => tile!(3),
                    2 => tile!(2),
                    _ => tile!(1),
                }
            }
            row += count;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn sums<const M: usize>(
    a: *const u8,
    stride: usize,
    fours: usize,
    b: *const i8,
    bias: *const i32,
) -> [[__m256i; 2]; M] {
    // SAFETY: the caller checked a (M rows of 4 × fours), b (fours × 64) and bias (16).
    unsafe {
        let start = [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())];
        let mut sums = [start; M];
        for four in 0..fours {
            let b = b.add(four * 64);
            let columns = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(32).cast())];
            for (m, sums) in sums.iter_mut().enumerate() {
                let codes = _mm256_set1_epi32(a.add(m * stride + four * 4).cast::<i32>().read_unaligned());
                sums[0] = _mm256_dpbusd_avx_epi32(sums[0], codes, columns[0]);
                sums[1] = _mm256_dpbusd_avx_epi32(sums[1], codes, columns[1]);
            }
        }
        sums
    }
}
