//! Every way against sums that are written down as the definition has them, on random sizes.

use proptest::prelude::*;

use super::*;

/// Deterministic numbers around 0.
fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| ((i * 37 + seed * 101) % 23) as f64 / 11.0 - 1.0).collect()
}

/// All triples (output, input, weight) of which outputs are sums of products.
fn products(s: &Sizes, mut each: impl FnMut(usize, usize, usize)) {
    let (channels, outputs) = s.part();
    for sample in 0..s.batch {
        for output in 0..s.outputs {
            for (row, column) in (0..s.out[0]).flat_map(|row| (0..s.out[1]).map(move |column| (row, column))) {
                let out = ((sample * s.outputs + output) * s.out[0] + row) * s.out[1] + column;
                for channel in 0..channels {
                    for (tap, row_tap, column_tap) in s.taps() {
                        let y = (row * s.strides[0] + row_tap * s.dilations[0]).checked_sub(s.pads[0]);
                        let x = (column * s.strides[1] + column_tap * s.dilations[1]).checked_sub(s.pads[1]);
                        let (Some(y), Some(x)) = (y, x) else { continue };
                        if y < s.size[0] && x < s.size[1] {
                            let of = sample * s.channels + output / outputs * channels + channel;
                            let weight = (output * channels + channel) * s.kernel[0] * s.kernel[1] + tap;
                            each(out, (of * s.size[0] + y) * s.size[1] + x, weight);
                        }
                    }
                }
            }
        }
    }
}

fn close<T: Number>(found: &[T], expected: &[f64], precision: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found: f64 = (*found).into();
        assert!((found - expected).abs() <= precision * largest, "{what}, number {index}: {found} for {expected}");
    }
}

fn check<T: Number>(s: &Sizes, precision: f64) {
    let (inputs, outs) = (s.batch * s.channels * s.image(), s.batch * s.outputs * s.plane());
    let weights = s.outputs * s.rows();
    let [x, weight, slope, bias] =
        [(inputs, 1), (weights, 2), (outs, 3), (s.outputs, 4)].map(|(len, seed)| numbers(len, seed));
    let of = |values: &[f64]| values.iter().map(|value| T::of(*value)).collect::<Vec<T>>();
    let [x_t, weight_t, slope_t, bias_t] = [&x, &weight, &slope, &bias].map(|values| of(values));
    let mut out: Vec<f64> = (0..outs).map(|index| bias[index / s.plane() % s.outputs]).collect();
    let (mut of_x, mut of_weight) = (vec![0.0; inputs], vec![0.0; weights]);
    products(s, |o, i, w| {
        out[o] += x[i] * weight[w];
        of_x[i] += slope[o] * weight[w];
        of_weight[w] += slope[o] * x[i];
    });
    // Memory that was used before must not show.
    spare::give_vec(vec![T::of(f64::NAN); outs.max(inputs)]);
    (0..3).for_each(|_| spare::leave(vec![T::of(f64::NAN); 32 * outs.max(inputs).max(weights)]));
    close(&forward(s, &x_t, &weight_t, Some(&bias_t)), &out, precision, "output");
    for wanted in [(true, true), (true, false), (false, true)] {
        spare::give_vec(vec![T::of(f64::NAN); inputs]);
        let (found_x, found_weight) = backward(s, &x_t, &weight_t, &slope_t, wanted);
        assert_eq!((found_x.is_some(), found_weight.is_some()), wanted);
        found_x.iter().for_each(|found| close(found, &of_x, precision, "gradient of x"));
        found_weight.iter().for_each(|found| close(found, &of_weight, precision, "gradient of the weight"));
    }
    drop(spare::Kept);
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let axis = (1usize..=40, 1usize..=5, 1usize..=3, 1usize..=2, 0usize..=3, 0usize..=3);
    let channels = (1usize..=3, 1usize..=9, 1usize..=9);
    (1usize..=4, channels, axis.clone(), axis).prop_filter_map(
        "no output",
        |(batch, (groups, inputs, outputs), a, b)| {
            let out = [a, b].map(|(size, kernel, stride, dilation, before, after)| {
                Some((size + before + after).checked_sub((kernel - 1) * dilation + 1)? / stride + 1)
            });
            let [Some(height), Some(width)] = out else { return None };
            Some(Sizes {
                batch,
                channels: groups * inputs,
                size: [a.0, b.0],
                outputs: groups * outputs,
                groups,
                kernel: [a.1, b.1],
                strides: [a.2, b.2],
                dilations: [a.3, b.3],
                pads: [a.4, b.4],
                out: [height, width],
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn all_sizes_are_computed_as_defined(s in sizes(), threads in 1usize..=2) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            check::<f32>(&s, 2e-5);
            check::<f64>(&s, 1e-12);
        });
    }
}

/// Small planes under many samples and channels: several blocks and vectors of what `channels` lays out.
fn many_channels() -> impl Strategy<Value = Sizes> {
    let axis = (1usize..=6, 1usize..=3, 1usize..=2, 0usize..=1);
    let channels = (1usize..=2, prop_oneof![1usize..=70, Just(64), Just(128)], 1usize..=70);
    (1usize..=20, channels, axis.clone(), axis).prop_filter_map(
        "no output",
        |(batch, (groups, inputs, outputs), a, b)| {
            let out =
                [a, b].map(|(size, kernel, stride, pad)| Some((size + 2 * pad).checked_sub(kernel)? / stride + 1));
            let [Some(height), Some(width)] = out else { return None };
            Some(Sizes {
                batch,
                channels: groups * inputs,
                size: [a.0, b.0],
                outputs: groups * outputs,
                groups,
                kernel: [a.1, b.1],
                strides: [a.2, b.2],
                dilations: [1, 1],
                pads: [a.3, b.3],
                out: [height, width],
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn many_channels_of_small_planes_are_computed_as_defined(s in many_channels(), threads in 1usize..=3) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            check::<f32>(&s, 2e-5);
            check::<f64>(&s, 1e-12);
        });
    }
}

#[test]
fn layers_of_known_networks_go_the_way_that_is_meant_for_them() {
    let square = |channels, outputs, groups, size, kernel, stride: usize| {
        let pad = kernel / 2;
        let out = (size + 2 * pad - kernel) / stride + 1;
        Sizes {
            batch: 2,
            channels,
            size: [size; 2],
            outputs,
            groups,
            kernel: [kernel; 2],
            strides: [stride; 2],
            dilations: [1; 2],
            pads: [pad; 2],
            out: [out; 2],
        }
    };
    // Direct at all, and for the gradient of x.
    for (s, forth, back) in [
        (square(1, 16, 1, 28, 5, 1), true, false),
        (square(16, 32, 1, 14, 5, 1), true, true),
        (square(3, 32, 1, 96, 3, 2), true, false),
        (square(96, 24, 1, 24, 1, 1), true, true),
        // The gradient of its weights takes several turns.
        (square(96, 24, 1, 48, 1, 1), true, true),
        (square(8, 12, 2, 16, 3, 1), true, true),
        (square(512, 512, 1, 4, 3, 1), false, false),
        (square(960, 160, 1, 3, 1, 1), false, false),
    ] {
        let vectors = direct::lanes::<f32>() > 1;
        assert_eq!(Field::of::<f32>(&s).is_some(), forth && vectors, "{s:?}");
        assert_eq!(Field::back::<f32>(&s).is_some(), back && vectors, "{s:?}");
        if s.outputs < 100 {
            check::<f32>(&s, 2e-5);
        }
    }
    // Few outputs, in several bands of lines: padding of one side alone, steps and dilation.
    for (size, kernel, stride, dilation) in [(400, 3, 1, 1), (300, 5, 2, 3)] {
        let mut wide = square(17, 2, 1, size, kernel, stride);
        (wide.batch, wide.dilations, wide.pads) = (3, [dilation; 2], [0, 2]);
        wide.out =
            [(size - (kernel - 1) * dilation - 1) / stride + 1, (size + 2 - (kernel - 1) * dilation - 1) / stride + 1];
        check::<f32>(&wide, 2e-5);
    }
    assert!(square(96, 96, 96, 24, 3, 1).depthwise().is_some());
    // Padding that would make copies larger than all values.
    let [mut padded, mut dilated] = [square(1 << 16, 4, 1, 8, 1, 1), square(1 << 16, 4, 1, 8, 2, 1)];
    (padded.pads, padded.out) = ([28; 2], [64; 2]);
    (dilated.dilations, dilated.pads, dilated.size, dilated.out) = ([31, 120], [15, 60], [1, 8], [1, 8]);
    assert!([padded, dilated].iter().all(|s| Field::of::<f32>(s).is_none()));
}
