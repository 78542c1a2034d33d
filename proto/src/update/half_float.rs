//! Half floats: IEEE 754 binary16, 2 bytes a value; before compression, blocks of their lower and then higher bytes.
//! The stream around them lives in `encoder` and `decoder`.

use std::io::{Read, Write};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::bytes::{Sink, Source};
use super::decoder::DecodeError;
use super::encoder::EncodeError;

/// Values of a block: 128 KiB, as much as zstd compresses with one table. Part of the format.
pub(super) const BLOCK_VALUES: usize = 1 << 16;

/// The largest finite half float, to which larger values are cut; what is cut off stays in the residual.
const LARGEST: f32 = 65504.0;

/// Writes the values and leaves what they lost. They are finite.
pub(super) fn encode(values: &mut [f32], sink: &mut Sink) -> Result<(), EncodeError> {
    let mut halves = vec![0; BLOCK_VALUES.min(values.len())];
    let mut decoded = vec![0.0; halves.len()];
    let mut bytes = Vec::with_capacity(halves.len() * 2);
    for block in values.chunks_mut(BLOCK_VALUES) {
        let (Some(halves), Some(decoded)) = (halves.get_mut(..block.len()), decoded.get_mut(..block.len())) else {
            continue;
        };
        for (cut, value) in decoded.iter_mut().zip(&*block) {
            *cut = value.clamp(-LARGEST, LARGEST);
        }
        halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(decoded);
        halves.reinterpret_cast::<f16>().convert_to_f32_slice(decoded);
        for (value, decoded) in block.iter_mut().zip(&*decoded) {
            *value -= decoded;
        }
        bytes.clear();
        if sink.compresses() {
            bytes.extend(halves.iter().map(|half| *half as u8));
            bytes.extend(halves.iter().map(|half| (half >> 8) as u8));
        } else {
            bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        }
        sink.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads the next block; infinities and NaN are given as they came.
pub(super) fn decode<R: Read>(
    source: &mut Source<R>,
    scratch: &mut Vec<u8>,
    halves: &mut Vec<u16>,
    values: &mut [f32],
) -> Result<(), DecodeError> {
    scratch.resize(values.len() * 2, 0);
    source.read_exact(scratch)?;
    halves.clear();
    if source.compresses() {
        let (lower, higher) = scratch.split_at(values.len());
        halves.extend(lower.iter().zip(higher).map(|(lower, higher)| u16::from_le_bytes([*lower, *higher])));
    } else {
        halves.extend(scratch.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)));
    }
    halves.reinterpret_cast::<f16>().convert_to_f32_slice(values);
    Ok(())
}
