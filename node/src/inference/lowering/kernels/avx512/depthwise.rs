//! Depthwise convolution of bytes for AVX-512 VNNI: 64 channels a vector, and what is left in vectors of 32 and 16. Bounds are
//! checked by the caller in `kernels::depthwise`; layouts are described there.

#![allow(unsafe_code, clippy::cast_ptr_alignment)]

use super::super::Range;
use super::super::depthwise::{ByteFilters, blocks};

/// Channels that lie in one vector, and what is done with them.
struct Block {
    data: *const i8,
    bias: *const i32,
    scale: *const f32,
    out: *mut i8,
    /// Of the channels that are there.
    mask: u64,
    first: usize,
    step: usize,
    pixels: usize,
    /// From one pixel's results to the next.
    channels: usize,
    range: Range,
}

/// With `sliding`, the filters are of three columns, and what a column sees at one pixel the column before sees at the next.
///
/// # Safety
/// As `depthwise::convolve` asserts; the CPU has AVX-512 F, BW, VL and VNNI. With `sliding` the first three taps reach two pixels
/// further than the others must.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn convolve(
    taps: &[&[u8]],
    step: usize,
    pixels: usize,
    filters: &ByteFilters,
    range: Range,
    out: &mut [u8],
    sliding: bool,
) {
    let channels = filters.channels;
    for (first, width) in blocks(channels) {
        let columns = (channels - first).min(width);
        // SAFETY: the block lies within the filters' data, biases and multipliers; each tap has it at each pixel, and `out`
        // has place for `columns` codes of each.
        unsafe {
            let block = Block {
                data: filters.data.as_ptr().add(first * filters.fours * 4),
                bias: filters.bias.as_ptr().add(first),
                scale: filters.multiplier.as_ptr().add(first),
                out: out.as_mut_ptr().add(first).cast(),
                mask: if columns == 64 { u64::MAX } else { (1 << columns) - 1 },
                first,
                step,
                pixels,
                channels,
                range,
            };
            macro_rules! run {
                ($vectors:ident) => {
                    match taps {
                        [a, b, c, ..] if sliding => $vectors::slide(&block, [a, b, c]),
                        _ if taps.len() == 12 => $vectors::each::<3>(&block, taps),
                        _ if taps.len() == 28 => $vectors::each::<7>(&block, taps),
                        _ => $vectors::each::<0>(&block, taps),
                    }
                };
            }
            match width {
                64 => run!(wide),
                32 => run!(middle),
                _ => run!(narrow),
            }
        }
    }
}

/// The kernels on vectors of one width. Their safety is [`convolve`]'s.
macro_rules! vectors {
    (
        $name:ident, $width:literal, $vector:ident, $load:ident, $floats:ident, $zero:ident,
        [$low8:ident, $high8:ident, $low16:ident, $high16:ident], $sum:ident,
        [$float:ident, $mul:ident, $min:ident, $word:ident], [$packs:ident, $adds:ident, $packus:ident, $max:ident],
        [$set_ps:ident, $set16:ident, $set8:ident], $store:ident, $mask:ty
    ) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::Block;

            const PART: usize = $width / 4;

            /// Four taps' codes, side by side for each channel.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            fn together([a, b, c, d]: [$vector; 4]) -> [$vector; 4] {
                let (ab, cd) = (($low8(a, b), $high8(a, b)), ($low8(c, d), $high8(c, d)));
                [$low16(ab.0, cd.0), $high16(ab.0, cd.0), $low16(ab.1, cd.1), $high16(ab.1, cd.1)]
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            fn add(sums: &mut [$vector; 4], codes: [$vector; 4], weights: [$vector; 4]) {
                for ((sum, codes), weights) in sums.iter_mut().zip(codes).zip(weights) {
                    *sum = $sum(*sum, codes, weights);
                }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn bias(block: &Block) -> [$vector; 4] {
                // SAFETY: the caller's.
                std::array::from_fn(|k| unsafe { $load(block.bias.add(k * PART).cast()) })
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn weights(block: &Block, four: usize) -> [$vector; 4] {
                // SAFETY: the caller's.
                std::array::from_fn(|k| unsafe { $load(block.data.add((four * 4 + k) * $width).cast()) })
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn store(block: &Block, pixel: usize, sums: [$vector; 4]) {
                let (range, scale) = (block.range, block.scale);
                let (high, zero) = ($set_ps(range.high), $set16(range.zero as i16));
                // SAFETY: the caller's.
                unsafe {
                    let words = |k: usize| $word($min($mul($float(sums[k]), $floats(scale.add(k * PART))), high));
                    let words = [$packs(words(0), words(1)), $packs(words(2), words(3))];
                    // Below the lower bound all of this saturates downwards; it comes last, on bytes.
                    let codes = $packus($adds(words[0], zero), $adds(words[1], zero));
                    let codes = $max(codes, $set8((range.low as i32 + range.zero) as i8));
                    $store(block.out.add(pixel * block.channels), block.mask as $mask, codes);
                }
            }

            /// Each pixel for itself. `FOURS` is a quarter of the number of taps where that is known while compiling, else 0.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(super) unsafe fn each<const FOURS: usize>(block: &Block, taps: &[&[u8]]) {
                let (all, _) = taps.as_chunks::<4>();
                let all = if FOURS == 0 { all } else { all.first_chunk::<FOURS>().map_or(all, |all| all.as_slice()) };
                for pixel in 0..block.pixels {
                    let at = pixel * block.step + block.first;
                    // SAFETY: the caller's.
                    unsafe {
                        let mut sums = bias(block);
                        for (four, taps) in all.iter().enumerate() {
                            let codes = taps.map(|tap| $load(tap.as_ptr().add(at).cast()));
                            add(&mut sums, together(codes), weights(block, four));
                        }
                        store(block, pixel, sums);
                    }
                }
            }

            /// Each column of the image once, for the three pixels that see it.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(super) unsafe fn slide(block: &Block, rows: [&[u8]; 3]) {
                // SAFETY: the caller's.
                unsafe {
                    let [first, second, third] = [weights(block, 0), weights(block, 1), weights(block, 2)];
                    let column = |column: usize| {
                        let [a, b, c] =
                            rows.map(|row| $load(row.as_ptr().add(column * block.step + block.first).cast()));
                        together([a, b, c, $zero()])
                    };
                    let (mut now, mut next) = (bias(block), bias(block));
                    let codes = column(0);
                    add(&mut now, codes, first);
                    let codes = column(1);
                    add(&mut now, codes, second);
                    add(&mut next, codes, first);
                    for pixel in 0..block.pixels {
                        let (codes, mut last) = (column(pixel + 2), bias(block));
                        add(&mut now, codes, third);
                        add(&mut next, codes, second);
                        add(&mut last, codes, first);
                        store(block, pixel, now);
                        (now, next) = (next, last);
                    }
                }
            }
        }
    };
}

vectors!(
    wide,
    64,
    __m512i,
    _mm512_loadu_si512,
    _mm512_loadu_ps,
    _mm512_setzero_si512,
    [_mm512_unpacklo_epi8, _mm512_unpackhi_epi8, _mm512_unpacklo_epi16, _mm512_unpackhi_epi16],
    _mm512_dpbusd_epi32,
    [_mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_min_ps, _mm512_cvtps_epi32],
    [_mm512_packs_epi32, _mm512_adds_epi16, _mm512_packus_epi16, _mm512_max_epu8],
    [_mm512_set1_ps, _mm512_set1_epi16, _mm512_set1_epi8],
    _mm512_mask_storeu_epi8,
    u64
);
vectors!(
    middle,
    32,
    __m256i,
    _mm256_loadu_si256,
    _mm256_loadu_ps,
    _mm256_setzero_si256,
    [_mm256_unpacklo_epi8, _mm256_unpackhi_epi8, _mm256_unpacklo_epi16, _mm256_unpackhi_epi16],
    _mm256_dpbusd_epi32,
    [_mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_min_ps, _mm256_cvtps_epi32],
    [_mm256_packs_epi32, _mm256_adds_epi16, _mm256_packus_epi16, _mm256_max_epu8],
    [_mm256_set1_ps, _mm256_set1_epi16, _mm256_set1_epi8],
    _mm256_mask_storeu_epi8,
    u32
);
vectors!(
    narrow,
    16,
    __m128i,
    _mm_loadu_si128,
    _mm_loadu_ps,
    _mm_setzero_si128,
    [_mm_unpacklo_epi8, _mm_unpackhi_epi8, _mm_unpacklo_epi16, _mm_unpackhi_epi16],
    _mm_dpbusd_epi32,
    [_mm_cvtepi32_ps, _mm_mul_ps, _mm_min_ps, _mm_cvtps_epi32],
    [_mm_packs_epi32, _mm_adds_epi16, _mm_packus_epi16, _mm_max_epu8],
    [_mm_set1_ps, _mm_set1_epi16, _mm_set1_epi8],
    _mm_mask_storeu_epi8,
    u16
);
