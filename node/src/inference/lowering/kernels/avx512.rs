//! The kernels for AVX-512 VNNI: one register for sixteen columns, twelve rows; products of 16 bits in the same blocks as
//! AVX2's, and products of bytes over two blocks at a time. Bounds are checked by the callers in `kernels` and `bytes`; layouts
//! are described there.

#![allow(unsafe_code, clippy::cast_ptr_alignment)]

use std::arch::x86_64::*;

use super::bytes::{BytePanel, ByteWeights};
use super::{BLOCK, Panel, Range, Target, Weights};

pub(super) mod depthwise;

/// Rows of one block: enough independent sums to hide the latency of `vpdpwssd`.
const ROWS: usize = 12;

/// # Safety
/// As `kernels::multiply` asserts; the CPU has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply(panel: Panel<'_>, weights: &Weights, mut target: Target<'_>, stride: usize) {
    let size = weights.pairs * BLOCK * 2;
    for block in 0..weights.columns.div_ceil(BLOCK) {
        let first = block * BLOCK;
        let columns = (weights.columns - first).min(BLOCK);
        let mut row = 0;
        while row < panel.rows {
            // A row past the end repeats the last one, and is not stored.
            let count = (panel.rows - row).min(ROWS);
            // SAFETY: the caller checked rows × stride values, the weights' blocks, and the output's length.
            unsafe {
                let a = panel.values.as_ptr().add(row * panel.stride);
                let data = weights.data.as_ptr().add(block * size);
                let bias = weights.bias.as_ptr().add(first);
                let scale = _mm512_loadu_ps(weights.multiplier.as_ptr().add(first));
                macro_rules! tile {
                    ($rows:literal) => {{
                        let sums = sums::<$rows>(a, panel.stride, weights.pairs, data, bias);
                        for (r, sum) in sums.into_iter().enumerate() {
                            store(&mut target, (row + r) * stride + first, sum, columns, scale);
                        }
                    }};
                }
                match count {
                    12 => tile!(12),
                    8..=11 => tile!(8),
                    4..=7 => tile!(4),
                    2..=3 => tile!(2),
                    _ => tile!(1),
                }
            }
            row += match count {
                12 => 12,
                8..=11 => 8,
                4..=7 => 4,
                2..=3 => 2,
                _ => 1,
            };
        }
    }
}

/// # Safety
/// As `kernels::sums` asserts; the CPU has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn block_sums(panel: Panel<'_>, weights: &Weights, block: usize, out: &mut [i32]) {
    let zeros = [0i32; BLOCK];
    // SAFETY: the block lies within the weights.
    let data = unsafe { weights.data.as_ptr().add(block * weights.pairs * BLOCK * 2) };
    let mut row = 0;
    while row < panel.rows {
        let left = panel.rows - row;
        // SAFETY: each tile takes at most the rows that are left, of which `panel` and `out` have all.
        unsafe {
            let a = panel.values.as_ptr().add(row * panel.stride);
            let out = out.as_mut_ptr().add(row * BLOCK);
            macro_rules! tile {
                ($rows:literal) => {{
                    let all = sums::<$rows>(a, panel.stride, weights.pairs, data, zeros.as_ptr());
                    for (r, sum) in all.into_iter().enumerate() {
                        _mm512_storeu_si512(out.add(r * BLOCK).cast(), sum);
                    }
                    row += $rows;
                }};
            }
            match left {
                12.. => tile!(12),
                8.. => tile!(8),
                4.. => tile!(4),
                2.. => tile!(2),
                _ => tile!(1),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sums<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    b: *const i16,
    bias: *const i32,
) -> [__m512i; M] {
    // SAFETY: the caller checked a (M rows of 2 × pairs), b (pairs × 32) and bias (16).
    unsafe {
        let mut sums = [_mm512_loadu_si512(bias.cast()); M];
        for pair in 0..pairs {
            let columns = _mm512_loadu_si512(b.add(pair * 32).cast());
            for (m, sum) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_epi32(a.add(m * stride + pair * 2).cast::<i32>().read_unaligned());
                *sum = _mm512_dpwssd_epi32(*sum, value, columns);
            }
        }
        sums
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn store(target: &mut Target<'_>, at: usize, sum: __m512i, columns: usize, scale: __m512) {
    let clamped = |range: &Range| {
        let value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
        _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(range.low)), _mm512_set1_ps(range.high))
    };
    let mask = if columns == BLOCK { u16::MAX } else { (1u16 << columns) - 1 };
    // SAFETY: the mask keeps the store within the `columns` values that the output holds from `at`.
    unsafe {
        match target {
            Target::Codes(out, range) => {
                let codes = _mm512_add_epi32(_mm512_cvtps_epi32(clamped(range)), _mm512_set1_epi32(range.zero));
                _mm_mask_storeu_epi8(out.as_mut_ptr().add(at).cast(), mask, _mm512_cvtusepi32_epi8(codes));
            }
            Target::Floats(out, range) => {
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, clamped(range));
            }
        }
    }
}

/// # Safety
/// As `bytes::multiply` asserts; the CPU has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply_bytes(
    panel: BytePanel<'_>,
    weights: &ByteWeights,
    mut target: Target<'_>,
    stride: usize,
) {
    let blocks = weights.columns.div_ceil(BLOCK);
    let mut block = 0;
    while block < blocks {
        // One row alone has no other sums to hide the latency behind: it takes more columns.
        let wide = match (panel.rows, blocks - block) {
            (1, 4..) => 4,
            (_, 2..) => 2,
            _ => 1,
        };
        let mut row = 0;
        while row < panel.rows {
            let left = panel.rows - row;
            // SAFETY: `wide` blocks and the tile's rows are left; the caller checked weights, rows and the output.
            unsafe {
                macro_rules! tile {
                    ($rows:literal, $wide:literal) => {{
                        byte_tile::<$rows, $wide>(panel, weights, &mut target, stride, row, block);
                        row += $rows;
                    }};
                }
                match (left, wide) {
                    (_, 4) => tile!(1, 4),
                    (12.., 2) => tile!(12, 2),
                    (8.., 2) => tile!(8, 2),
                    (4.., 2) => tile!(4, 2),
                    (2.., 2) => tile!(2, 2),
                    (_, 2) => tile!(1, 2),
                    (12.., _) => tile!(12, 1),
                    (4.., _) => tile!(4, 1),
                    _ => tile!(1, 1),
                }
            }
        }
        block += wide;
    }
}

/// `M` rows by `N` blocks of columns.
///
/// # Safety
/// As [`multiply_bytes`]; rows `row..row + M` and blocks `block..block + N` are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn byte_tile<const M: usize, const N: usize>(
    panel: BytePanel<'_>,
    weights: &ByteWeights,
    target: &mut Target<'_>,
    stride: usize,
    row: usize,
    block: usize,
) {
    let size = weights.fours * BLOCK * 4;
    // SAFETY: the caller's promise bounds every access.
    unsafe {
        let a = panel.values.as_ptr().add(row * panel.stride);
        let b = weights.data.as_ptr().add(block * size);
        let bias = weights.bias.as_ptr().add(block * BLOCK);
        let mut sums = [[_mm512_setzero_si512(); N]; M];
        for n in 0..N {
            let bias = _mm512_loadu_si512(bias.add(n * BLOCK).cast());
            sums.iter_mut().for_each(|sums| sums[n] = bias);
        }
        for four in 0..weights.fours {
            let mut columns = [_mm512_setzero_si512(); N];
            for (n, columns) in columns.iter_mut().enumerate() {
                *columns = _mm512_loadu_si512(b.add(n * size + four * 64).cast());
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let codes = _mm512_set1_epi32(a.add(m * panel.stride + four * 4).cast::<i32>().read_unaligned());
                for (sum, columns) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbusd_epi32(*sum, codes, columns);
                }
            }
        }
        for n in 0..N {
            let first = (block + n) * BLOCK;
            let scale = _mm512_loadu_ps(weights.multiplier.as_ptr().add(first));
            let columns = (weights.columns - first).min(BLOCK);
            for (m, sums) in sums.iter().enumerate() {
                store(target, (row + m) * stride + first, sums[n], columns, scale);
            }
        }
    }
}

/// # Safety
/// As `bytes::copy_rows` asserts; the CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn copy_rows(from: &[u8], step: usize, rows: usize, len: usize, to: &mut [u8], stride: usize) {
    let (whole, left) = (len / 64 * 64, len % 64);
    let mask = (1u64 << left) - 1;
    for row in 0..rows {
        // SAFETY: both slices hold `len` from each row on; the mask ends a row's last load and store there.
        unsafe {
            let (from, to) =
                (from.as_ptr().add(row * step).cast::<i8>(), to.as_mut_ptr().add(row * stride).cast::<i8>());
            for at in (0..whole).step_by(64) {
                _mm512_storeu_epi8(to.add(at), _mm512_loadu_epi8(from.add(at)));
            }
            if left > 0 {
                _mm512_mask_storeu_epi8(to.add(whole), mask, _mm512_maskz_loadu_epi8(mask, from.add(whole)));
            }
        }
    }
}
