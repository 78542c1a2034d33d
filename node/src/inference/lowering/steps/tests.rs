//! Whole operators against plain loops over indices, on random shapes, strides, paddings, dilations and groups, with every
//! kernel that this CPU has. Inner loops are tested in `kernels`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::conv::Results;
use super::*;
use crate::inference::lowering::kernels::depthwise::Filters;
use crate::inference::lowering::kernels::elementwise::Affine;
use crate::inference::lowering::kernels::{self, Isa, Range, SLACK, Weights};

fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    }
}

fn codes(len: usize, next: &mut impl FnMut() -> u64) -> Vec<u8> {
    (0..len + SLACK).map(|_| next() as u8).collect()
}

/// A window whose output is not empty.
fn window() -> impl Strategy<Value = Window> {
    let pair = |low: usize, high: usize| [low..high, low..high];
    (pair(1, 12), 1usize..9, pair(1, 5), pair(1, 4), pair(1, 4), pair(0, 4)).prop_filter_map(
        "the kernel is larger than the image",
        |([h, w], c, kernel, stride, dilation, pad)| {
            let size = |size: usize, i: usize| {
                let free = (size + 2 * pad[i]).checked_sub((kernel[i] - 1) * dilation[i] + 1)?;
                Some(free / stride[i] + 1)
            };
            Some(Window { h, w, c, kernel, stride, dilation, pad, out: [size(h, 0)?, size(w, 1)?] })
        },
    )
}

/// Every position that a window sees: kernel position, and input pixel or `None` for padding.
fn seen(window: &Window, oy: usize, ox: usize) -> Vec<(usize, Option<usize>)> {
    let mut seen = Vec::new();
    for ky in 0..window.kernel[0] {
        for kx in 0..window.kernel[1] {
            let y = (oy * window.stride[0] + ky * window.dilation[0]) as isize - window.pad[0] as isize;
            let x = (ox * window.stride[1] + kx * window.dilation[1]) as isize - window.pad[1] as isize;
            let inside = y >= 0 && x >= 0 && y < window.h as isize && x < window.w as isize;
            seen.push((ky * window.kernel[1] + kx, inside.then(|| y as usize * window.w + x as usize)));
        }
    }
    seen
}

proptest! {
    #[test]
    fn convolutions_equal_plain_loops(
        mut window in window(), groups in 1usize..4, columns in 1usize..20, batch in 1usize..4, seed: u64, zero: u8,
        narrow: bool,
    ) {
        let mut next = noise(seed);
        let per = window.c;
        window.c *= groups;
        let depth = window.taps() * per;
        let x = codes(batch * window.input_len(), &mut next);
        let reach = if narrow { 128 } else { 255 };
        let table: Vec<i16> = (0..groups * columns * depth).map(|_| (next() % (2 * reach)) as i16 - reach as i16).collect();
        let bias: Vec<i32> = (0..groups * columns).map(|_| (next() % 4000) as i32 - 2000).collect();
        let multiplier: Vec<f32> = (0..groups * columns).map(|_| 1e-4 * (1.0 + (next() % 50) as f32)).collect();
        let range = Range { zero: 100, low: -100.0, high: 155.0 };
        let packed = |isa: Isa| {
            let weights = (0..groups).map(|g| {
                let part = g * columns..(g + 1) * columns;
                let at = |c: usize, k: usize| table[(g * columns + c) * depth + k];
                Packed::pack(isa, columns, depth, at, &bias[part.clone()], &multiplier[part])
            });
            Conv { window, groups: weights.collect(), padding: zero, output: Output::Codes(range) }
        };
        let mut expected = Vec::new();
        for image in 0..batch {
            for (oy, ox) in (0..window.out[0]).flat_map(|y| (0..window.out[1]).map(move |x| (y, x))) {
                for column in 0..groups * columns {
                    let mut sum = bias[column];
                    for (tap, pixel) in seen(&window, oy, ox) {
                        for c in 0..per {
                            let at = |p: usize| image * window.input_len() + p * window.c + column / columns * per + c;
                            let value = pixel.map_or(zero, |pixel| x[at(pixel)]);
                            sum += i32::from(value) * i32::from(table[column * depth + tap * per + c]);
                        }
                    }
                    expected.push(kernels::code(sum as f32 * multiplier[column], range));
                }
            }
        }
        // Those that were packed as bytes also run in plain Rust.
        let all = Isa::available().into_iter().map(|isa| (isa, isa)).chain([(Isa::Avx512Vnni, Isa::Portable)]);
        for (form, isa) in all {
            let mut y = vec![0; expected.len()];
            packed(form).run(isa, &x, batch, Results::Codes(&mut y), &mut Default::default());
            prop_assert_eq!(&y, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn depthwise_convolutions_equal_plain_loops(
        mut window in window(), three: bool, more in 0usize..100, batch in 1usize..3, seed: u64, zero: u8, narrow: bool,
    ) {
        // A kernel of three columns next to each other slides.
        if three {
            (window.kernel, window.stride, window.dilation) = ([3, 3], [1, 1], [1, 1]);
            window.out = [window.h + 2, window.w + 2];
            window.pad = [2, 2];
        }
        window.c += more;
        let mut next = noise(seed);
        let (c, taps) = (window.c, window.taps());
        let x = codes(batch * window.input_len(), &mut next);
        let reach = if narrow { 128 } else { 255 };
        let table: Vec<i16> = (0..c * taps).map(|_| (next() % (2 * reach)) as i16 - reach as i16).collect();
        let bias: Vec<i32> = (0..c).map(|_| (next() % 4000) as i32 - 2000).collect();
        let multiplier: Vec<f32> = (0..c).map(|_| 1e-3 * (1.0 + (next() % 50) as f32)).collect();
        let range = Range { zero: 20, low: -20.0, high: 235.0 };
        let packed = |isa: Isa| {
            let filters = Filters::pack(isa, c, window.kernel, |c, t| table[c * taps + t], &bias, &multiplier);
            Depthwise { window, filters, padding: zero, range }
        };
        let mut expected = Vec::new();
        for image in 0..batch {
            for (oy, ox) in (0..window.out[0]).flat_map(|y| (0..window.out[1]).map(move |x| (y, x))) {
                for channel in 0..c {
                    let mut sum = bias[channel];
                    for (tap, pixel) in seen(&window, oy, ox) {
                        let value = pixel.map_or(zero, |pixel| x[image * window.input_len() + pixel * c + channel]);
                        sum += i32::from(value) * i32::from(table[channel * taps + tap]);
                    }
                    expected.push(kernels::code(sum as f32 * multiplier[channel], range));
                }
            }
        }
        // Those that were packed as bytes also run in plain Rust.
        let all = Isa::available().into_iter().map(|isa| (isa, isa)).chain([(Isa::Avx512Vnni, Isa::Portable)]);
        for (form, isa) in all {
            let mut y = vec![0; expected.len()];
            packed(form).run(isa, &x, batch, &mut y);
            prop_assert_eq!(&y, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn winograd_equals_the_direct_convolution(
        size in [12usize..18, 12usize..18], c in 16usize..40, columns in 16usize..40, pad in [0usize..3, 0usize..3],
        batch in 1usize..3, seed: u64, zero: u8,
    ) {
        let [h, w] = size;
        let ones = [1, 1];
        let window = Window {
            h: h + 2, w: w + 2, c, kernel: [3, 3], stride: ones, dilation: ones, pad,
            out: [h + 2 * pad[0], w + 2 * pad[1]],
        };
        let mut next = noise(seed);
        let x = codes(batch * window.input_len(), &mut next);
        let depth = 9 * c;
        let table: Vec<i16> = (0..columns * depth).map(|_| (next() % 511) as i16 - 255).collect();
        let bias: Vec<i32> = (0..columns).map(|_| (next() % 4000) as i32 - 2000).collect();
        let multiplier: Vec<f32> = (0..columns).map(|_| 1e-4 * (1.0 + (next() % 5) as f32)).collect();
        let range = Range { zero: 100, low: -100.0, high: 155.0 };
        let weights = Weights::pack(columns, depth, |c, k| table[c * depth + k], &bias, &multiplier);
        let conv = Conv { window, groups: vec![Packed::Words(weights)], padding: zero, output: Output::Codes(range) };
        let mut expected = vec![0; batch * window.pixels() * columns];
        conv.run(Isa::Portable, &x, batch, Results::Codes(&mut expected), &mut Default::default());
        let winograd = Winograd::new(window, |column, k| table[column * depth + k], &bias, &multiplier, zero, range).unwrap();
        for isa in Isa::available() {
            let mut y = vec![0; expected.len()];
            winograd.run(isa, &x, batch, &mut y, &mut Default::default());
            prop_assert_eq!(&y, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn pools_equal_plain_loops(window in window(), batch in 1usize..3, seed: u64, zero: u8, count_padding: bool) {
        let mut next = noise(seed);
        let x = codes(batch * window.input_len(), &mut next);
        let input = Affine { scale: 0.7, zero: i32::from(zero) };
        let output = Affine { scale: 1.0, zero: 90 }.range();
        let (mut greatest, mut means) = (Vec::new(), Vec::new());
        for image in 0..batch {
            for (oy, ox) in (0..window.out[0]).flat_map(|y| (0..window.out[1]).map(move |x| (y, x))) {
                for channel in 0..window.c {
                    let values: Vec<u8> = seen(&window, oy, ox)
                        .into_iter()
                        .filter_map(|(_, pixel)| Some(x[image * window.input_len() + pixel? * window.c + channel]))
                        .collect();
                    greatest.push(values.iter().copied().max().unwrap_or(0));
                    let count = if count_padding { window.taps() } else { values.len().max(1) };
                    let sum: i32 = values.iter().map(|&value| i32::from(value) - input.zero).sum();
                    means.push(kernels::code(sum as f32 * (input.scale / count as f32), output));
                }
            }
        }
        for isa in Isa::available() {
            let mut y = vec![0; greatest.len()];
            MaxPool { window }.run(isa, &x, batch, &mut y);
            prop_assert_eq!(&y, &greatest, "{}", isa.name());
            AveragePool { window, input, output, count_padding }.run(isa, &x, batch, &mut y);
            prop_assert_eq!(&y, &means, "{}", isa.name());
        }
    }

    #[test]
    fn a_permutation_puts_each_value_where_its_strides_say(dims in proptest::collection::vec(1usize..5, 1..5), seed: u64) {
        let len: usize = dims.iter().product();
        let x: Vec<usize> = (0..len).collect();
        let mut order: Vec<usize> = (0..dims.len()).collect();
        let mut next = noise(seed);
        (1..order.len()).for_each(|i| order.swap(i, next() as usize % (i + 1)));
        let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let permute = Permute { dims: order.iter().map(|&axis| (dims[axis], stride(axis))).collect() };
        let mut y = vec![usize::MAX; len];
        permute.run(&x, &mut y);
        let expected = ndarray::ArrayD::from_shape_vec(dims.clone(), x).unwrap().permuted_axes(order);
        prop_assert!(y.iter().eq(expected.iter()));
    }
}

#[test]
fn a_hundred_thousand_parts_are_joined_in_linear_time() {
    let count = 200_000;
    let shift: Box<[u8; 256]> = Box::new(std::array::from_fn(|code| (code as u8).wrapping_add(1)));
    let concat = Concat::new((0..count).map(|part| (part % 3, (part % 2 == 0).then(|| shift.clone()))));
    let total: usize = (0..count).map(|part| part % 3).sum();
    let (mut y, mut expected) = (vec![0; 2 * total], Vec::new());
    let start = std::time::Instant::now();
    for part in 0..count {
        concat.run(part, &vec![part as u8; 2 * (part % 3)], &mut y);
        expected.extend(vec![(part + usize::from(part % 2 == 0)) as u8; part % 3]);
    }
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    assert!(y[..total] == expected && y[total..] == expected);
}
