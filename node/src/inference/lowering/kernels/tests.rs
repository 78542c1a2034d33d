//! Every kernel that this CPU has against the reference, on random shapes and values.
//! Whole operators are tested in `steps`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::depthwise::{Filters, convolve};
use super::elementwise::{self, Affine};
use super::*;

/// Repeatable values.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    }
}

fn range(zero: u8, low: u8, high: u8) -> Range {
    let (low, high) = (low.min(high), low.max(high));
    let zero = i32::from(zero);
    Range { zero, low: (i32::from(low) - zero) as f32, high: (i32::from(high) - zero) as f32 }
}

proptest! {
    #[test]
    fn matrix_kernels_equal_the_reference(
        rows in 1usize..30, depth in 1usize..80, columns in 1usize..70, extra in 0usize..9, seed: u64,
        zero: u8, low: u8, high: u8, scale in 1e-5f32..0.1,
    ) {
        let mut next = noise(seed);
        let stride = depth.next_multiple_of(2) + extra;
        let values: Vec<i16> = (0..rows * stride).map(|_| (next() % 256) as i16).collect();
        let bias: Vec<i32> = (0..columns).map(|_| (next() % 20_000) as i32 - 10_000).collect();
        let multiplier: Vec<f32> = (0..columns).map(|_| scale * (1.0 + (next() % 100) as f32)).collect();
        let table: Vec<i16> = (0..columns * depth).map(|_| (next() % 511) as i16 - 255).collect();
        let weights = Weights::pack(columns, depth, |c, k| table[c * depth + k], &bias, &multiplier);
        let panel = Panel { values: &values, stride, rows };
        let range = range(zero, low, high);
        let width = columns + extra;
        let mut expected = vec![0u8; rows * width];
        multiply(Isa::Portable, panel, &weights, Target::Codes(&mut expected, range), width);
        let free = Range { zero: 0, low: f32::NEG_INFINITY, high: f32::INFINITY };
        let mut floats = vec![0f32; rows * width];
        multiply(Isa::Portable, panel, &weights, Target::Floats(&mut floats, free), width);
        for isa in Isa::available() {
            let mut found = vec![0u8; rows * width];
            multiply(isa, panel, &weights, Target::Codes(&mut found, range), width);
            prop_assert_eq!(&found, &expected, "{}", isa.name());
            let mut found = vec![0f32; rows * width];
            multiply(isa, panel, &weights, Target::Floats(&mut found, free), width);
            prop_assert_eq!(&found, &floats, "{}", isa.name());
        }
    }

    #[test]
    fn products_of_bytes_equal_those_of_widened_values(
        rows in 1usize..30, depth in 1usize..80, columns in 1usize..90, extra in 0usize..9, seed: u64, zero: u8, low: u8,
        high: u8, scale in 1e-5f32..0.1,
    ) {
        let mut next = noise(seed);
        // Rows lie side by side: what is read behind one meets weights of zero.
        let stride = depth + extra;
        let values: Vec<u8> = (0..rows * stride + SLACK).map(|_| next() as u8).collect();
        let bias: Vec<i32> = (0..columns).map(|_| (next() % 20_000) as i32 - 10_000).collect();
        let multiplier: Vec<f32> = (0..columns).map(|_| scale * (1.0 + (next() % 100) as f32)).collect();
        let table: Vec<i16> = (0..columns * depth).map(|_| (next() % 256) as i16 - 128).collect();
        let at = |c: usize, k: usize| table[c * depth + k];
        let range = range(zero, low, high);
        let width = columns + extra;
        let even = depth.next_multiple_of(2);
        let mut wide = vec![0i16; rows * even];
        for (row, wide) in wide.chunks_exact_mut(even).enumerate() {
            wide.iter_mut().zip(&values[row * stride..][..depth]).for_each(|(to, from)| *to = i16::from(*from));
        }
        let weights = Weights::pack(columns, depth, at, &bias, &multiplier);
        let panel = Panel { values: &wide, stride: even, rows };
        let mut expected = vec![0u8; rows * width];
        multiply(Isa::Portable, panel, &weights, Target::Codes(&mut expected, range), width);
        let free = Range { zero: 0, low: f32::NEG_INFINITY, high: f32::INFINITY };
        let mut floats = vec![0f32; rows * width];
        multiply(Isa::Portable, panel, &weights, Target::Floats(&mut floats, free), width);
        let weights = bytes::ByteWeights::pack(columns, depth, at, &bias, &multiplier).unwrap();
        let panel = bytes::BytePanel { values: &values, stride, rows };
        for isa in Isa::available() {
            let mut found = vec![0u8; rows * width];
            bytes::multiply(isa, panel, &weights, Target::Codes(&mut found, range), width);
            prop_assert_eq!(&found, &expected, "{}", isa.name());
            let mut found = vec![0f32; rows * width];
            bytes::multiply(isa, panel, &weights, Target::Floats(&mut found, free), width);
            prop_assert_eq!(&found, &floats, "{}", isa.name());
        }
        prop_assert!(bytes::ByteWeights::pack(1, 1, |_, _| 128, &[0], &[1.0]).is_none());
    }

    #[test]
    fn depthwise_kernels_equal_the_reference(
        channels in 1usize..200, taps in 1usize..27, step in 0usize..50, pixels in 1usize..5, seed: u64, zero: u8,
        low: u8, high: u8, scale in 1e-5f32..0.1, narrow: bool,
    ) {
        let mut next = noise(seed);
        let input: Vec<u8> = (0..channels * 30 + 5 * step + SLACK).map(|_| next() as u8).collect();
        let seen: Vec<&[u8]> =
            (0..taps.next_multiple_of(4)).map(|_| &input[next() as usize % 30 * channels..]).collect();
        let bias: Vec<i32> = (0..channels).map(|_| (next() % 20_000) as i32 - 10_000).collect();
        let multiplier: Vec<f32> = (0..channels).map(|_| scale * (1.0 + (next() % 100) as f32)).collect();
        let reach = if narrow { 128 } else { 255 };
        let table: Vec<i16> = (0..channels * taps).map(|_| (next() % (2 * reach)) as i16 - reach as i16).collect();
        let range = range(zero, low, high);
        let mut expected = Vec::new();
        for (pixel, channel) in (0..pixels).flat_map(|p| (0..channels).map(move |c| (p, c))) {
            let sum: i32 = (0..taps)
                .map(|t| i32::from(seen[t][pixel * step + channel]) * i32::from(table[channel * taps + t]))
                .sum();
            expected.push(code((sum + bias[channel]) as f32 * multiplier[channel], range));
        }
        for isa in Isa::available() {
            let filters = Filters::pack(isa, channels, [1, taps], |c, t| table[c * taps + t], &bias, &multiplier);
            let fit = table.iter().all(|weight| i8::try_from(*weight).is_ok());
            prop_assert_eq!(matches!(filters, Filters::Bytes(_)), isa == Isa::Avx512Vnni && fit);
            let mut found = vec![0; pixels * channels];
            convolve(isa, &seen[..filters.places()], step, pixels, &filters, range, &mut found);
            prop_assert_eq!(&found, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn rows_are_copied_and_nothing_beside_them(
        from in proptest::collection::vec(any::<u8>(), 600..700), len in 0usize..200, rows in 0usize..4, step in 0usize..100,
        apart in 0usize..9,
    ) {
        let stride = len + apart;
        let mut expected = vec![7; rows * stride + 3];
        for row in 0..rows {
            expected[row * stride..][..len].copy_from_slice(&from[row * step..][..len]);
        }
        for isa in Isa::available() {
            let mut to = vec![7; rows * stride + 3];
            bytes::copy_rows(isa, &from, step, rows, len, &mut to, stride);
            prop_assert_eq!(&to, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn elementwise_loops_equal_the_reference(len in 1usize..100, seed: u64, zero: u8, scale in 1e-4f32..2.0) {
        let mut next = noise(seed);
        let [a, b] = [0, 1].map(|_| (0..len).map(|_| next() as u8).collect::<Vec<u8>>());
        let floats: Vec<f32> = (0..len).map(|_| (next() % 60_000) as f32 / 100.0 - 300.0).collect();
        let affine = Affine { scale, zero: i32::from(zero) };
        let other = Affine { scale: scale * 0.3, zero: 7 };
        let all = |isa| {
            let mut out = vec![vec![0u8; len]; 4];
            elementwise::quantize(isa, &floats, scale, affine.range(), &mut out[0]);
            elementwise::add(isa, &a, affine, &b, other, affine.range(), &mut out[1]);
            elementwise::mul(isa, &a, 5, &b, 250, scale, affine.range(), &mut out[2]);
            elementwise::max(isa, &a, &mut out[3]);
            let mut values = vec![0f32; len];
            elementwise::dequantize(isa, &a, affine, &mut values);
            (out, values)
        };
        let expected = all(Isa::Portable);
        for isa in Isa::available() {
            prop_assert_eq!(&all(isa), &expected, "{}", isa.name());
        }
    }

    #[test]
    fn codes_round_half_to_even_and_saturate(value in -1e9f32..1e9, halves in -600i32..600, zero: u8) {
        let range = Affine { scale: 1.0, zero: i32::from(zero) }.range();
        for value in [value, halves as f32 / 2.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let expected = value.max(range.low).min(range.high).round_ties_even() as i32 + range.zero;
            prop_assert_eq!(i32::from(code(value, range)), expected);
        }
    }

    #[test]
    fn widening_keeps_every_value(
        from in proptest::collection::vec(any::<u8>(), 100..200), len in 0usize..40, rows in 1usize..4, step in 0usize..20,
    ) {
        for isa in Isa::available() {
            let stride = len + 16;
            let mut to = vec![0; rows * stride];
            widen(isa, &from, step, rows, len, &mut to, stride);
            for row in 0..rows {
                let kept = to[row * stride..][..len].iter().zip(&from[row * step..]);
                prop_assert!(kept.clone().all(|(to, from)| *to == i16::from(*from)));
            }
        }
    }
}
