//! Encoding an update on the node, with what is lost given back for the next one.
//! The single encodings are in their own files.

use std::io::{self, Write};

use super::bytes::Sink;
use super::sizes::raw_bytes;
use super::{Coding, CodingError, Encoding, half_float, int8, plain, top_k};

/// Why an update can't be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The coding makes no sense.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// The layout is another one than the update's.
    #[error("the update has {values} values, but the tensors of its layout have {expected}")]
    Layout {
        /// Values given.
        values: usize,
        /// Sum of the tensors' lengths.
        expected: usize,
    },
    /// A value has no place in a lossy encoding.
    #[error("value {index} of the update is {value}; training diverged, so lower the learning rate")]
    NotFinite {
        /// Its index in the flat vector.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The payload could not be written, or the compressor not be set up.
    #[error("the update cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Encodes an update. `delta` holds the values in flat order, `tensors` the length of each exchanged tensor in that
/// order. Afterwards `delta` holds what was lost, `delta - decoded`: 0 with [`Encoding::F32`]. Added to the next update
/// before that is encoded, nothing is lost for good (error feedback: Seide et al. 2014; Karimireddy et al. 2019,
/// algorithm 1).
///
/// Decoded and residual values sum up to the given ones: exactly with [`Encoding::F32`] and [`Encoding::TopK`], with
/// [`Encoding::F16`] up to the rounding of a float32 beyond ±131008 and exactly below, with [`Encoding::Int8`] to 2^-24
/// of the block's scale.
///
/// `seed` decides how [`Encoding::Int8`] rounds; it must be another one for each update, and nobody else needs to know it.
///
/// # Errors
/// [`EncodeError`]; `delta` is then as it was. A value that is not finite is refused but with [`Encoding::F32`], where it
/// goes as it is, for the coordinator to name.
pub fn encode(delta: &mut [f32], tensors: &[usize], coding: &Coding, seed: [u8; 32]) -> Result<Vec<u8>, EncodeError> {
    let mut payload = Vec::with_capacity(usize::try_from(raw_bytes(coding, tensors)).unwrap_or(0));
    encode_into(delta, tensors, coding, seed, &mut payload)?;
    Ok(payload)
}

/// As [`encode`], to a writer: the payload is never in memory as a whole.
///
/// # Errors
/// As [`encode`]. Where `out` fails, part of `delta` may have been replaced already.
pub fn encode_into(
    delta: &mut [f32],
    tensors: &[usize],
    coding: &Coding,
    seed: [u8; 32],
    out: &mut dyn Write,
) -> Result<(), EncodeError> {
    coding.validate()?;
    let expected = tensors.iter().fold(0usize, |sum, len| sum.saturating_add(*len));
    if expected != delta.len() {
        return Err(EncodeError::Layout { values: delta.len(), expected });
    }
    if coding.encoding != Encoding::F32 {
        check_finite(delta)?;
    }
    let mut sink = Sink::new(coding.zstd, out)?;
    match coding.encoding {
        Encoding::F32 => {
            plain::encode(delta, &mut sink)?;
            delta.fill(0.0);
        }
        Encoding::F16 => half_float::encode(delta, &mut sink)?,
        Encoding::Int8 => int8::encode(delta, tensors, seed, &mut sink)?,
        Encoding::TopK => top_k::encode(delta, coding.kept(delta.len()), &mut sink)?,
    }
    sink.finish()
}

fn check_finite(delta: &[f32]) -> Result<(), EncodeError> {
    // Without a branch a value first: nearly always all are finite.
    if delta.iter().fold(true, |all, value| all & value.is_finite()) {
        return Ok(());
    }
    match delta.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, value)) => Err(EncodeError::NotFinite { index, value: *value }),
        None => Ok(()),
    }
}
