//! 8-bit integers: a float32 scale, then one byte a value, for each block within a tensor. Rounding is stochastic.
//! The stream around the blocks lives in `encoder` and `decoder`.

use std::io::{Read, Write};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::bytes::{Sink, Source};
use super::decoder::DecodeError;
use super::encoder::EncodeError;

/// Most values that share a scale; a block never crosses a tensor. Part of the format.
pub const SCALED_VALUES: usize = 1024;

/// Values are -127 to 127 times the scale.
const LEVELS: f32 = 127.0;
/// Rounding compares this many random bits with the fraction. 127 times 2^15 is below 2^22, see [`nearest`].
const FRACTION_BITS: u32 = 15;
/// Added to a number below 2^22 in magnitude, it leaves the nearest integer in the low bits of the sum.
const NEAREST: f32 = 12_582_912.0;

/// Writes the values and leaves what they lost. They are finite, and their number is the sum of `tensors`.
///
/// With the scale s = max|x| / 127 of its block, x becomes the integer below x / s or the one above, above with the
/// probability of the fraction, so that the mean of what is decoded is x: to 2^-16 of a step, the resolution of the random
/// numbers. One ChaCha8 stream, 2 bytes a value, begins anew in each block's 2 KiB.
pub(super) fn encode(
    values: &mut [f32],
    tensors: &[usize],
    seed: [u8; 32],
    sink: &mut Sink,
) -> Result<(), EncodeError> {
    let mut random = ChaCha8Rng::from_seed(seed);
    let mut noise = [0; SCALED_VALUES * 2];
    let mut bytes = Vec::with_capacity(4 + SCALED_VALUES);
    let mut rest = values;
    for &len in tensors {
        let Some((tensor, after)) = rest.split_at_mut_checked(len) else { break };
        rest = after;
        for block in tensor.chunks_mut(SCALED_VALUES) {
            random.fill_bytes(&mut noise);
            encode_block(block, &noise, &mut bytes);
            sink.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn encode_block(block: &mut [f32], noise: &[u8; SCALED_VALUES * 2], bytes: &mut Vec<u8>) {
    // Magnitudes order as their bits do, and a maximum of integers is quicker than one of floats.
    let largest = block.iter().fold(0, |largest, value| (value.abs().to_bits() as i32).max(largest));
    let largest = f32::from_bits(largest as u32);
    let mut scale = largest / LEVELS;
    let mut steps = LEVELS * (1 << FRACTION_BITS) as f32 / largest;
    // Below 1.3e-32 a step has no inverse; so small values are as good as nothing and stay in the residual.
    if !steps.is_finite() {
        (scale, steps) = (0.0, 0.0);
    }
    bytes.clear();
    bytes.extend_from_slice(&scale.to_le_bytes());
    let noise = noise.as_chunks::<2>().0;
    bytes.extend(block.iter().zip(noise).map(|(value, noise)| {
        let up = i32::from(u16::from_le_bytes(*noise) >> (16 - FRACTION_BITS));
        let level = (nearest(value * steps) + up) >> FRACTION_BITS;
        level.clamp(-(LEVELS as i32), LEVELS as i32) as i8 as u8
    }));
    for (value, level) in block.iter_mut().zip(bytes.iter().skip(4)) {
        *value -= decoded(*level, scale);
    }
}

/// The nearest integer to a number of at most 2^22 in magnitude. Unlike a cast, which must look for NaN and overflow, it
/// is quick.
fn nearest(number: f32) -> i32 {
    (number + NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32
}

fn decoded(level: u8, scale: f32) -> f32 {
    f32::from(level as i8) * scale
}

/// Reads the next block, whose first value is `first`.
pub(super) fn decode<R: Read>(
    source: &mut Source<R>,
    scratch: &mut Vec<u8>,
    first: usize,
    values: &mut [f32],
) -> Result<(), DecodeError> {
    let mut scale = [0; 4];
    source.read_exact(&mut scale)?;
    let scale = f32::from_le_bytes(scale);
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(DecodeError::Scale { first, scale });
    }
    scratch.resize(values.len(), 0);
    source.read_exact(scratch)?;
    for (value, level) in values.iter_mut().zip(&*scratch) {
        *value = decoded(*level, scale);
    }
    Ok(())
}
