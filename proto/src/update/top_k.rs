//! The values of largest magnitude, block by block: how many, which ones, and their float32.
//! The stream around the blocks lives in `encoder` and `decoder`.

use std::io::{Read, Write};

use super::bytes::{Sink, Source};
use super::decoder::DecodeError;
use super::encoder::EncodeError;

/// Values of a block, most of which are 0. Part of the format; it bounds what a reader must hold.
pub(super) const BLOCK_VALUES: usize = 1 << 16;

/// The kept values' places follow as the number of values between them, each as a varint.
const GAPS: u8 = 0;
/// The kept values' places follow as a bit a value, the first in a byte's lowest bit.
const BITMAP: u8 = 1;

/// Writes the `kept` values of largest magnitude and leaves 0 in their places. Zeros are never kept; among equal
/// magnitudes the first ones are. The values are finite.
///
/// A block is: the count as a varint; unless it is 0, a byte for the form, the places, and the values as float32.
pub(super) fn encode(values: &mut [f32], kept: usize, sink: &mut Sink) -> Result<(), EncodeError> {
    let mut choice = Choice::new(values, kept);
    let (mut places, mut bytes) = (Vec::new(), Vec::new());
    for block in values.chunks_mut(BLOCK_VALUES) {
        places.clear();
        places.extend(block.iter().enumerate().filter(|(_, value)| choice.keeps(**value)).map(|(place, _)| place));
        bytes.clear();
        put_varint(&mut bytes, places.len() as u32);
        if !places.is_empty() {
            put_places(&mut bytes, &places, block.len());
        }
        for place in &places {
            if let Some(value) = block.get_mut(*place) {
                bytes.extend_from_slice(&std::mem::take(value).to_le_bytes());
            }
        }
        sink.write_all(&bytes)?;
    }
    Ok(())
}

/// Decides which values are kept: all above a magnitude, and of that very magnitude as many as there is room for.
struct Choice {
    /// Bits of the smallest magnitude that is kept; they order as magnitudes do.
    smallest: u32,
    /// How many more of that magnitude are kept.
    equal: usize,
}

impl Choice {
    fn new(values: &[f32], kept: usize) -> Choice {
        let Some(last) = kept.min(values.len()).checked_sub(1) else {
            return Choice { smallest: u32::MAX, equal: 0 };
        };
        let mut magnitudes: Vec<u32> = values.iter().map(|value| value.abs().to_bits()).collect();
        let (larger, smallest, _) = magnitudes.select_nth_unstable_by(last, |a, b| b.cmp(a));
        let smallest = *smallest;
        let above = larger.iter().filter(|magnitude| **magnitude > smallest).count();
        Choice { smallest, equal: if smallest == 0 { 0 } else { last + 1 - above } }
    }

    fn keeps(&mut self, value: f32) -> bool {
        let magnitude = value.abs().to_bits();
        if magnitude != self.smallest {
            return magnitude > self.smallest;
        }
        let keeps = self.equal > 0;
        self.equal = self.equal.saturating_sub(1);
        keeps
    }
}

/// Writes places in the form that takes fewer bytes.
fn put_places(bytes: &mut Vec<u8>, places: &[usize], len: usize) {
    let form = bytes.len();
    bytes.push(GAPS);
    let mut next = 0;
    for place in places {
        put_varint(bytes, (place - next) as u32);
        next = place + 1;
    }
    let bitmap = form + 1;
    if bytes.len() - bitmap <= len.div_ceil(8) {
        return;
    }
    bytes.truncate(form);
    bytes.push(BITMAP);
    bytes.resize(bitmap + len.div_ceil(8), 0);
    for place in places {
        if let Some(byte) = bytes.get_mut(bitmap + place / 8) {
            *byte |= 1 << (place % 8);
        }
    }
}

/// Reads the next block, whose first value is `first`, of which at most `room` values are kept; gives how many are.
pub(super) fn decode<R: Read>(
    source: &mut Source<R>,
    scratch: &mut Vec<u8>,
    places: &mut Vec<usize>,
    first: usize,
    room: usize,
    values: &mut [f32],
) -> Result<usize, DecodeError> {
    values.fill(0.0);
    let count = varint(source, first)? as usize;
    let allowed = room.min(values.len());
    if count > allowed {
        return Err(DecodeError::Count { first, count, allowed });
    }
    if count == 0 {
        return Ok(0);
    }
    places.clear();
    let mut form = [0];
    source.read_exact(&mut form)?;
    match form {
        [GAPS] => read_gaps(source, places, first, count, values.len())?,
        [BITMAP] => read_bitmap(source, scratch, places, first, count, values.len())?,
        [form] => return Err(DecodeError::Form { first, form }),
    }
    scratch.resize(count * 4, 0);
    source.read_exact(scratch)?;
    for (place, bytes) in places.iter().zip(scratch.as_chunks::<4>().0) {
        if let Some(value) = values.get_mut(*place) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
    Ok(count)
}

/// Places ascend whatever the gaps are, so that only the end needs a check.
fn read_gaps<R: Read>(
    source: &mut Source<R>,
    places: &mut Vec<usize>,
    first: usize,
    count: usize,
    len: usize,
) -> Result<(), DecodeError> {
    let mut next = 0;
    for _ in 0..count {
        let place = next + varint(source, first)? as usize;
        if place >= len {
            return Err(DecodeError::Place { first, place, len });
        }
        places.push(place);
        next = place + 1;
    }
    Ok(())
}

fn read_bitmap<R: Read>(
    source: &mut Source<R>,
    scratch: &mut Vec<u8>,
    places: &mut Vec<usize>,
    first: usize,
    count: usize,
    len: usize,
) -> Result<(), DecodeError> {
    scratch.resize(len.div_ceil(8), 0);
    source.read_exact(scratch)?;
    let marked: usize = scratch.iter().map(|byte| byte.count_ones() as usize).sum();
    if marked != count {
        return Err(DecodeError::Bitmap { first, marked, count });
    }
    for (index, byte) in scratch.iter().enumerate() {
        let mut rest = *byte;
        while rest != 0 {
            places.push(index * 8 + rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
    match places.last() {
        Some(&place) if place >= len => Err(DecodeError::Place { first, place, len }),
        _ => Ok(()),
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// At most 3 bytes: no count and no gap within a block needs more.
fn varint<R: Read>(source: &mut Source<R>, first: usize) -> Result<u32, DecodeError> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let mut byte = [0];
        source.read_exact(&mut byte)?;
        let [byte] = byte;
        number |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError::Number { first })
}
