//! The kernels for AVX2: blocks of six rows by sixteen columns, and depthwise taps in pairs.
//! Bounds are checked by the callers in `kernels`; layouts are described there.

#![allow(unsafe_code, clippy::cast_ptr_alignment)]

use std::arch::x86_64::*;

use super::{BLOCK, DepthwiseWeights, Panel, Range, Target, Weights};

/// Rows of one block: 12 of the 16 registers hold sums.
const ROWS: usize = 6;

/// # Safety
/// As `kernels::multiply` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(panel: Panel<'_>, weights: &Weights, target: Target<'_>, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match target {
            Target::Codes(out, range) => blocks(panel, weights, range, stride, |at, sums, columns, range, scale| {
                store_codes(out.as_mut_ptr().add(at), sums, columns, range, scale);
            }),
            Target::Floats(out, range) => blocks(panel, weights, range, stride, |at, sums, columns, range, scale| {
                store_floats(out.as_mut_ptr().add(at), sums, columns, range, scale);
            }),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn blocks(
    panel: Panel<'_>,
    weights: &Weights,
    range: Range,
    stride: usize,
    mut store: impl FnMut(usize, [__m256i; 2], usize, Range, *const f32),
) {
    let size = weights.pairs * BLOCK * 2;
    for block in 0..weights.columns.div_ceil(BLOCK) {
        let first = block * BLOCK;
        let columns = (weights.columns - first).min(BLOCK);
        // SAFETY: block < blocks, so these stay inside what the caller checked.
        let (data, bias, scale) = unsafe {
            (
                weights.data.as_ptr().add(block * size),
                weights.bias.as_ptr().add(first),
                weights.multiplier.as_ptr().add(first),
            )
        };
        let mut row = 0;
        while row < panel.rows {
            let count = (panel.rows - row).min(ROWS);
            // SAFETY: row + count <= rows.
            let a = unsafe { panel.values.as_ptr().add(row * panel.stride) };
            macro_rules! tile {
                ($rows:literal) => {{
                    // SAFETY: as above; each of the rows holds 2 × pairs values.
                    let sums = unsafe { sums::<$rows>(a, panel.stride, weights.pairs, data, bias) };
                    for (r, sums) in sums.into_iter().enumerate() {
                        store((row + r) * stride + first, sums, columns, range, scale);
                    }
                }};
            }
            match count {
                6 => tile!(6),
                5 => tile!(5),
                4 => tile!(4),
                3 => tile!(3),
                2 => tile!(2),
                _ => tile!(1),
            }
            row += count;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    b: *const i16,
    bias: *const i32,
) -> [[__m256i; 2]; M] {
    // SAFETY: the caller checked a (M rows of 2 × pairs), b (pairs × 32) and bias (16).
    unsafe {
        let start = [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())];
        let mut sums = [start; M];
        for pair in 0..pairs {
            let b = b.add(pair * 32);
            let columns = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(16).cast())];
            for (m, sums) in sums.iter_mut().enumerate() {
                let value = _mm256_set1_epi32(a.add(m * stride + pair * 2).cast::<i32>().read_unaligned());
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(value, columns[0]));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(value, columns[1]));
            }
        }
        sums
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scaled(sums: [__m256i; 2], range: Range, scale: *const f32) -> [__m256; 2] {
    let (low, high) = (_mm256_set1_ps(range.low), _mm256_set1_ps(range.high));
    // SAFETY: the caller's scale holds 16 values.
    let scales = unsafe { [_mm256_loadu_ps(scale), _mm256_loadu_ps(scale.add(8))] };
    [0, 1].map(|i| {
        let value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), scales[i]);
        _mm256_min_ps(_mm256_max_ps(value, low), high)
    })
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_codes(out: *mut u8, sums: [__m256i; 2], columns: usize, range: Range, scale: *const f32) {
    // SAFETY: scale holds 16 values and out `columns`.
    unsafe {
        let zero = _mm256_set1_epi32(range.zero);
        let [a, b] = scaled(sums, range, scale).map(|value| _mm256_add_epi32(_mm256_cvtps_epi32(value), zero));
        let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(a, b));
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        store(out, bytes, columns);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(out: *mut u8, bytes: __m128i, columns: usize) {
    // SAFETY: out holds `columns` bytes, at most 16.
    unsafe {
        if columns == BLOCK {
            _mm_storeu_si128(out.cast(), bytes);
        } else {
            let mut part = [0u8; BLOCK];
            _mm_storeu_si128(part.as_mut_ptr().cast(), bytes);
            std::ptr::copy_nonoverlapping(part.as_ptr(), out, columns);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_floats(out: *mut f32, sums: [__m256i; 2], columns: usize, range: Range, scale: *const f32) {
    // SAFETY: scale holds 16 values and out `columns`.
    unsafe {
        let values = scaled(sums, range, scale);
        let mut part = [0f32; BLOCK];
        _mm256_storeu_ps(part.as_mut_ptr(), values[0]);
        _mm256_storeu_ps(part.as_mut_ptr().add(8), values[1]);
        std::ptr::copy_nonoverlapping(part.as_ptr(), out, columns);
    }
}

/// # Safety
/// Both slices have `len` + 16 elements; the CPU has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen(from: &[u8], len: usize, to: &mut [i16]) {
    let mut at = 0;
    while at < len {
        // SAFETY: at < len, and the slices hold len + 16.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().add(at).cast());
            _mm256_storeu_si256(to.as_mut_ptr().add(at).cast(), _mm256_cvtepu8_epi16(bytes));
        }
        at += 16;
    }
}

/// # Safety
/// As `kernels::depthwise` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn depthwise(taps: &[&[u8]], weights: &DepthwiseWeights, range: Range, out: &mut [u8]) {
    // SAFETY: the caller checked that each tap has blocks × 16 bytes, and the weights' sizes.
    unsafe {
        let (pairs, _) = taps.as_chunks::<2>();
        let mut data = weights.data.as_ptr();
        for block in 0..weights.channels.div_ceil(BLOCK) {
            let first = block * BLOCK;
            let bias = weights.bias.as_ptr().add(first);
            let mut sums = [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())];
            for [a, b] in pairs {
                let a = _mm256_cvtepu8_epi16(_mm_loadu_si128(a.as_ptr().add(first).cast()));
                let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(b.as_ptr().add(first).cast()));
                let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, _mm256_loadu_si256(data.cast())));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, _mm256_loadu_si256(data.add(16).cast())));
                data = data.add(32);
            }
            let zero = _mm256_set1_epi32(range.zero);
            let [a, b] = scaled(sums, range, weights.multiplier.as_ptr().add(first))
                .map(|value| _mm256_add_epi32(_mm256_cvtps_epi32(value), zero));
            // The order of the channels is that of unpacking, so packing restores it.
            let words = _mm256_packs_epi32(a, b);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            store(out.as_mut_ptr().add(first), bytes, (weights.channels - first).min(BLOCK));
        }
    }
}
