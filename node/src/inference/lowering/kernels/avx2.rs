//! The kernels for AVX2: blocks of six rows by sixteen columns, and depthwise taps in pairs.
//! Bounds are checked by the callers in `kernels`; layouts are described there.

#![allow(unsafe_code, clippy::cast_ptr_alignment, clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::depthwise::WordFilters;
use super::{BLOCK, Panel, Range, Target, Weights};

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
                    let sums = unsafe {
                        if columns > BLOCK / 2 {
                            sums::<$rows>(a, panel.stride, weights.pairs, data, bias)
                        } else {
                            half_sums::<$rows>(a, panel.stride, weights.pairs, data, bias)
                        }
                    };
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

/// # Safety
/// As `kernels::sums` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn block_sums(panel: Panel<'_>, weights: &Weights, block: usize, out: &mut [i32]) {
    let zeros = [0i32; BLOCK];
    // SAFETY: the block lies within the weights.
    let data = unsafe { weights.data.as_ptr().add(block * weights.pairs * BLOCK * 2) };
    let mut row = 0;
    while row < panel.rows {
        let count = (panel.rows - row).min(ROWS);
        // SAFETY: row + count <= rows, of which `panel` and `out` have all.
        unsafe {
            let a = panel.values.as_ptr().add(row * panel.stride);
            let out = out.as_mut_ptr().add(row * BLOCK);
            macro_rules! tile {
                ($rows:literal) => {
                    for (r, [low, high]) in
                        sums::<$rows>(a, panel.stride, weights.pairs, data, zeros.as_ptr()).into_iter().enumerate()
                    {
                        _mm256_storeu_si256(out.add(r * BLOCK).cast(), low);
                        _mm256_storeu_si256(out.add(r * BLOCK + 8).cast(), high);
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

/// The first eight columns alone.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_sums<const M: usize>(
    a: *const i16,
    stride: usize,
    pairs: usize,
    b: *const i16,
    bias: *const i32,
) -> [[__m256i; 2]; M] {
    // SAFETY: as for `sums`.
    unsafe {
        let mut sums = [_mm256_loadu_si256(bias.cast()); M];
        for pair in 0..pairs {
            let columns = _mm256_loadu_si256(b.add(pair * 32).cast());
            for (m, sum) in sums.iter_mut().enumerate() {
                let value = _mm256_set1_epi32(a.add(m * stride + pair * 2).cast::<i32>().read_unaligned());
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(value, columns));
            }
        }
        sums.map(|sum| [sum, _mm256_setzero_si256()])
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
pub(super) unsafe fn store_codes(out: *mut u8, sums: [__m256i; 2], columns: usize, range: Range, scale: *const f32) {
    // SAFETY: scale holds 16 values and out `columns`.
    unsafe {
        let words = _mm256_permute4x64_epi64::<0xD8>(words(sums, range, scale));
        store(out, words, columns, range);
    }
}

/// Rounded and saturated sums plus the zero point, the eight of the first register in the lower half of each lane. The lower
/// bound comes last, on bytes: below it all of these saturate downwards.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn words(sums: [__m256i; 2], range: Range, scale: *const f32) -> __m256i {
    let high = _mm256_set1_ps(range.high);
    // SAFETY: the caller's scale holds 16 values.
    let scales = unsafe { [_mm256_loadu_ps(scale), _mm256_loadu_ps(scale.add(8))] };
    let [a, b] = [0, 1].map(|i| {
        let value = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), scales[i]), high);
        _mm256_cvtps_epi32(value)
    });
    _mm256_adds_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(range.zero as i16))
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(out: *mut u8, words: __m256i, columns: usize, range: Range) {
    let low = _mm_set1_epi8((range.low as i32 + range.zero) as i8);
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let bytes = _mm_max_epu8(bytes, low);
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
pub(super) unsafe fn store_floats(out: *mut f32, sums: [__m256i; 2], columns: usize, range: Range, scale: *const f32) {
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
/// As `kernels::widen` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen(from: &[u8], step: usize, rows: usize, len: usize, to: &mut [i16], stride: usize) {
    for row in 0..rows {
        let mut at = 0;
        while at < len {
            // SAFETY: at < len, and both slices hold len + 16 from this row on.
            unsafe {
                let bytes = _mm_loadu_si128(from.as_ptr().add(row * step + at).cast());
                _mm256_storeu_si256(to.as_mut_ptr().add(row * stride + at).cast(), _mm256_cvtepu8_epi16(bytes));
            }
            at += 16;
        }
    }
}

/// `PAIRS` is half the number of taps where that is known while compiling, else 0.
///
/// # Safety
/// As `depthwise::convolve` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn depthwise<const PAIRS: usize>(
    taps: &[&[u8]],
    step: usize,
    pixels: usize,
    weights: &WordFilters,
    range: Range,
    out: &mut [u8],
) {
    let (all, _) = taps.as_chunks::<2>();
    let all = if PAIRS == 0 { all } else { all.first_chunk::<PAIRS>().map_or(all, |all| all.as_slice()) };
    let channels = weights.channels;
    for block in 0..channels.div_ceil(BLOCK) {
        let first = block * BLOCK;
        let columns = (channels - first).min(BLOCK);
        // SAFETY: the caller checked the weights' sizes, and that each tap has whole blocks at each pixel.
        unsafe {
            let data = weights.data.as_ptr().add(block * all.len() * 32);
            let bias = weights.bias.as_ptr().add(first);
            let bias = [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())];
            let scale = weights.multiplier.as_ptr().add(first);
            for pixel in 0..pixels {
                let at = pixel * step + first;
                let mut sums = bias;
                for (index, [a, b]) in all.iter().enumerate() {
                    let data = data.add(index * 32);
                    let a = _mm256_cvtepu8_epi16(_mm_loadu_si128(a.as_ptr().add(at).cast()));
                    let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(b.as_ptr().add(at).cast()));
                    let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
                    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, _mm256_loadu_si256(data.cast())));
                    sums[1] =
                        _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, _mm256_loadu_si256(data.add(16).cast())));
                }
                // The order of the channels is that of unpacking, so packing restores it.
                store(out.as_mut_ptr().add(pixel * channels + first), words(sums, range, scale), columns, range);
            }
        }
    }
}

/// # Safety
/// As `kernels::winograd_input` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn winograd_input(pixels: &[&[u8]; 16], channels: usize, step: usize, to: &mut [i16]) {
    for first in (0..channels).step_by(BLOCK) {
        // SAFETY: pixels and each of the 16 parts of `to` hold whole vectors up to `channels` rounded up.
        unsafe {
            let d = |p: usize| _mm256_cvtepu8_epi16(_mm_loadu_si128(pixels[p].as_ptr().add(first).cast()));
            let mut rows = [[_mm256_setzero_si256(); 4]; 4];
            for j in 0..4 {
                let column = [d(j), d(4 + j), d(8 + j), d(12 + j)];
                rows[0][j] = _mm256_sub_epi16(column[0], column[2]);
                rows[1][j] = _mm256_add_epi16(column[1], column[2]);
                rows[2][j] = _mm256_sub_epi16(column[2], column[1]);
                rows[3][j] = _mm256_sub_epi16(column[1], column[3]);
            }
            for (i, row) in rows.iter().enumerate() {
                let to = to.as_mut_ptr().add(i * 4 * step + first);
                _mm256_storeu_si256(to.cast(), _mm256_sub_epi16(row[0], row[2]));
                _mm256_storeu_si256(to.add(step).cast(), _mm256_add_epi16(row[1], row[2]));
                _mm256_storeu_si256(to.add(2 * step).cast(), _mm256_sub_epi16(row[2], row[1]));
                _mm256_storeu_si256(to.add(3 * step).cast(), _mm256_sub_epi16(row[1], row[3]));
            }
        }
    }
}

/// # Safety
/// As `kernels::winograd_output` asserts; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn winograd_output(
    sums: &[i32],
    step: usize,
    bias: &[i32],
    multiplier: &[f32],
    range: Range,
    to: &mut [[u8; BLOCK]; 4],
) {
    let mut results = [[_mm256_setzero_si256(); 2]; 4];
    for half in 0..2 {
        // SAFETY: each of the 16 parts of `sums`, and `bias`, hold 16 values.
        unsafe {
            let m = |p: usize| _mm256_loadu_si256(sums.as_ptr().add(p * step + half * 8).cast());
            let mut rows = [[_mm256_setzero_si256(); 4]; 2];
            for j in 0..4 {
                let middle = [m(4 + j), m(8 + j)];
                rows[0][j] = _mm256_add_epi32(m(j), _mm256_add_epi32(middle[0], middle[1]));
                rows[1][j] = _mm256_sub_epi32(_mm256_sub_epi32(middle[0], middle[1]), m(12 + j));
            }
            let bias = _mm256_loadu_si256(bias.as_ptr().add(half * 8).cast());
            for (i, row) in rows.iter().enumerate() {
                let left = _mm256_add_epi32(row[0], _mm256_add_epi32(row[1], row[2]));
                let right = _mm256_sub_epi32(_mm256_sub_epi32(row[1], row[2]), row[3]);
                results[i * 2][half] = _mm256_add_epi32(_mm256_srai_epi32::<2>(left), bias);
                results[i * 2 + 1][half] = _mm256_add_epi32(_mm256_srai_epi32::<2>(right), bias);
            }
        }
    }
    for (to, sums) in to.iter_mut().zip(results) {
        // SAFETY: `to` and `multiplier` hold 16 values.
        unsafe { store_codes(to.as_mut_ptr(), sums, BLOCK, range, multiplier.as_ptr()) };
    }
}
