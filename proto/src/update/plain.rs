//! Float32 as they are, 4 bytes a value; before compression, blocks of them sorted by the significance of their bytes.
//! The stream around the blocks lives in `encoder` and `decoder`.

use std::io::{Read, Write};

use super::bytes::{Sink, Source};
use super::decoder::DecodeError;
use super::encoder::EncodeError;
use crate::planes;

/// Values of a block: 256 KiB, so that two planes fill a block of zstd, which has one table. Part of the format.
pub(super) const BLOCK_VALUES: usize = 1 << 16;

pub(super) fn encode(values: &[f32], sink: &mut Sink) -> Result<(), EncodeError> {
    let (mut bytes, mut sorted) = (Vec::new(), Vec::new());
    for block in values.chunks(BLOCK_VALUES) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
        if sink.compresses() {
            sorted.resize(bytes.len(), 0);
            planes::split(&bytes, &mut sorted);
            sink.write_all(&sorted)?;
        } else {
            sink.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Reads the next block.
pub(super) fn decode<R: Read>(
    source: &mut Source<R>,
    scratch: &mut Vec<u8>,
    values: &mut [f32],
) -> Result<(), DecodeError> {
    let len = values.len() * 4;
    if source.compresses() {
        scratch.resize(len * 2, 0);
        let (sorted, bytes) = scratch.split_at_mut(len);
        source.read_exact(sorted)?;
        planes::join(sorted, bytes);
        fill(values, bytes);
    } else {
        scratch.resize(len, 0);
        source.read_exact(scratch)?;
        fill(values, scratch);
    }
    Ok(())
}

fn fill(values: &mut [f32], bytes: &[u8]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}
