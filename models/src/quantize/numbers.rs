//! The arithmetic of 8-bit quantization: scales, zero points and rounded weights and biases.
//! Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).

/// Where activations lie on the u8 scale: real = scale × (stored − zero_point).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub min: f32,
    pub max: f32,
    pub scale: f32,
    pub zero_point: u8,
}

/// Ranges below this are those of a dead value: any scale does, and a smaller one could underflow.
const DEAD_RANGE: f32 = 1e-20;

impl Affine {
    /// The scale for a range of finite numbers, which is widened to hold zero exactly: padding and ReLU need it.
    pub(super) fn of_range(min: f32, max: f32) -> Affine {
        let (min, max) = (min.min(0.0), max.max(0.0));
        let range = f64::from(max) - f64::from(min);
        if range < f64::from(DEAD_RANGE) {
            return Affine { min: 0.0, max: 1.0, scale: 1.0 / 255.0, zero_point: 0 };
        }
        let scale = range / 255.0;
        let zero_point = (-f64::from(min) / scale).round().clamp(0.0, 255.0);
        Affine { min, max, scale: scale as f32, zero_point: zero_point as u8 }
    }
}

/// Weights as int8 with a scale for each output channel.
pub(super) struct ChannelWeights {
    pub values: Vec<i8>,
    pub scales: Vec<f32>,
}

/// Quantizes weights symmetrically to [−limit, limit], a scale for each index along `axis` of `shape`.
/// `bias` (a value for each channel, or none) and `input_scale` raise a scale where the int32 bias would not fit.
pub(super) fn quantize_weights(
    values: &[f32],
    shape: &[usize],
    axis: usize,
    limit: f32,
    input_scale: f32,
    bias: Option<&[f32]>,
) -> ChannelWeights {
    let channels = shape.get(axis).copied().unwrap_or(1).max(1);
    let inner: usize = shape.iter().skip(axis + 1).product::<usize>().max(1);
    let channel_of = |index: usize| index / inner % channels;
    let mut largest = vec![0f32; channels];
    for (index, value) in values.iter().enumerate() {
        let slot = &mut largest[channel_of(index)];
        *slot = slot.max(value.abs());
    }
    let scales: Vec<f32> = largest
        .iter()
        .enumerate()
        .map(|(channel, &largest)| {
            let own = largest / limit;
            let bias = bias.and_then(|bias| bias.get(channel)).copied().unwrap_or(0.0);
            // Half of int32's range is left to the sum of products.
            let for_bias = bias.abs() / input_scale / (1u32 << 30) as f32;
            let scale = own.max(for_bias);
            if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
        })
        .collect();
    let quantized = values
        .iter()
        .enumerate()
        .map(|(index, value)| (value / scales[channel_of(index)]).round_ties_even().clamp(-limit, limit) as i8)
        .collect();
    ChannelWeights { values: quantized, scales }
}

/// Biases as int32 on the scale of the products: input scale × weight scale. Gives the values and their scales.
pub(super) fn quantize_bias(bias: &[f32], input_scale: f32, weight_scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let scales: Vec<f32> = weight_scales.iter().map(|scale| (input_scale * scale).max(f32::MIN_POSITIVE)).collect();
    let values = bias
        .iter()
        .zip(&scales)
        .map(|(value, scale)| (f64::from(*value) / f64::from(*scale)).round_ties_even() as i32)
        .collect();
    (values, scales)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights_of_two_channels_get_scales_of_their_own() {
        // Channel 0 reaches 1.27, channel 1 reaches 12.7: scales 0.01 and 0.1.
        let weights = quantize_weights(&[1.27, -0.5, 12.7, 5.0], &[2, 2], 0, 127.0, 1.0, None);
        assert_eq!(weights.values, [127, -50, 127, 50]);
        let columns = quantize_weights(&[1.27, 12.7, -0.5, 5.0], &[2, 2], 1, 127.0, 1.0, None);
        assert_eq!(columns.values, [127, 127, -50, 50]);
        assert_eq!(columns.scales, weights.scales);
    }

    #[test]
    fn the_bias_of_a_dead_channel_still_fits_int32() {
        let bias = [3.0];
        let weights = quantize_weights(&[0.0, 0.0], &[1, 2], 0, 127.0, 1e-4, Some(&bias));
        let (values, scales) = quantize_bias(&bias, 1e-4, &weights.scales);
        assert!((values[0] as f32 * scales[0] - 3.0).abs() < 1e-5);
    }

    #[test]
    fn a_range_of_nothing_gets_a_usable_scale() {
        assert_eq!(Affine::of_range(0.0, 0.0).scale, 1.0 / 255.0);
    }

    proptest! {
        #[test]
        fn zero_is_exact_and_the_range_is_covered(min in -1e6f32..1e6, width in 0f32..1e6) {
            let affine = Affine::of_range(min, min + width);
            let real = |stored: u8| f32::from(stored) * affine.scale - f32::from(affine.zero_point) * affine.scale;
            prop_assert_eq!(real(affine.zero_point), 0.0);
            prop_assert!(real(0) <= min.min(0.0) + affine.scale * 0.51);
            prop_assert!(real(255) >= (min + width).max(0.0) - affine.scale * 0.51);
        }
    }
}
