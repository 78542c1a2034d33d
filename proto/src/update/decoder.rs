//! Decoding an update as it is read, piece by piece in flat order. Every payload is hostile.
//! The single encodings are in their own files; whether the values are finite and small enough is the reader's matter.

use std::io::{self, Read};

use super::bytes::Source;
use super::{Coding, CodingError, Encoding, SCALED_VALUES, half_float, int8, plain, top_k};

/// Why a payload can't be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The payload could not be read.
    #[error("the update's payload cannot be read: {0}")]
    Io(#[source] io::Error),
    /// The coding makes no sense.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// The payload ends too early.
    #[error("the update's payload ends before its last value")]
    Truncated,
    /// The payload goes on after the last value.
    #[error("the update's payload goes on after its last value, number {values}")]
    Trailing {
        /// Values that the layout has.
        values: usize,
    },
    /// The compressed bytes are damaged, or no zstd at all, or need more memory than is allowed.
    #[error("the update's payload is no zstd frame of ours, or damaged: {0}")]
    Compression(String),
    /// The scale of a block of 8-bit integers makes no sense.
    #[error("the scale of the block at value {first} is {scale}, but must be finite and not negative")]
    Scale {
        /// The block's first value.
        first: usize,
        /// Its scale.
        scale: f32,
    },
    /// A block keeps more values than it has, or than the task allows in all.
    #[error("the block at value {first} claims {count} kept values, but at most {allowed} are allowed there")]
    Count {
        /// The block's first value.
        first: usize,
        /// The values that it claims to keep.
        count: usize,
        /// How many it may keep.
        allowed: usize,
    },
    /// The places of kept values have an unknown form.
    #[error("the block at value {first} gives its places in the unknown form {form}")]
    Form {
        /// The block's first value.
        first: usize,
        /// The form.
        form: u8,
    },
    /// A number has more bytes than any within a block needs.
    #[error("the block at value {first} holds a number of more than 3 bytes")]
    Number {
        /// The block's first value.
        first: usize,
    },
    /// A kept value lies outside its block.
    #[error("the block at value {first} has {len} values, but keeps one at place {place}")]
    Place {
        /// The block's first value.
        first: usize,
        /// The place within the block, counted from 0.
        place: usize,
        /// Values that the block has.
        len: usize,
    },
    /// A bitmap marks another number of values than announced.
    #[error("the block at value {first} announces {count} kept values, but its bitmap marks {marked}")]
    Bitmap {
        /// The block's first value.
        first: usize,
        /// Values that the bitmap marks.
        marked: usize,
        /// Values announced.
        count: usize,
    },
}

/// Reads an update's values from its payload. Memory: at most 2 MiB and what the payload's reader needs, whatever the
/// payload holds or claims.
pub struct Decoder<R: Read> {
    source: Source<R>,
    encoding: Encoding,
    tensors: Vec<usize>,
    /// Values of the whole update.
    values: usize,
    /// Values decoded so far, those in `block` among them.
    decoded: usize,
    /// The tensor that is being read, and how many of its values have been.
    tensor: usize,
    within: usize,
    /// How many more values may be kept.
    room: usize,
    /// A decoded block for which the caller had no room, and how many of its values were given since.
    block: Vec<f32>,
    given: usize,
    scratch: Vec<u8>,
    halves: Vec<u16>,
    places: Vec<usize>,
}

impl<R: Read> Decoder<R> {
    /// Begins a payload of an update whose layout has tensors of these lengths, in flat order.
    ///
    /// # Errors
    /// [`DecodeError::Coding`].
    pub fn new(payload: R, coding: &Coding, tensors: &[usize]) -> Result<Decoder<R>, DecodeError> {
        coding.validate()?;
        let values = tensors.iter().fold(0usize, |sum, len| sum.saturating_add(*len));
        Ok(Decoder {
            source: Source::new(payload, coding.zstd)?,
            encoding: coding.encoding,
            tensors: tensors.to_vec(),
            values,
            decoded: 0,
            tensor: 0,
            within: 0,
            room: coding.kept(values),
            block: Vec::new(),
            given: 0,
            scratch: Vec::new(),
            halves: Vec::new(),
            places: Vec::new(),
        })
    }

    /// Fills `out` with the next values in flat order and gives their number: less than its length only at the end,
    /// and 0 when there are no more. Values that are not finite are given as they came.
    ///
    /// The call that gives the last value has seen that the payload ends there.
    ///
    /// # Errors
    /// [`DecodeError`]; the decoder is of no use then.
    pub fn read(&mut self, out: &mut [f32]) -> Result<usize, DecodeError> {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let waiting = self.block.get(self.given..).unwrap_or_default();
            if !waiting.is_empty() {
                let len = waiting.len().min(rest.len());
                for (value, waiting) in rest.iter_mut().zip(waiting) {
                    *value = *waiting;
                }
                self.given += len;
                filled += len;
                continue;
            }
            let len = self.next_len();
            if len == 0 {
                break;
            }
            if let Some(whole) = rest.get_mut(..len) {
                self.decode(whole)?;
                filled += len;
            } else {
                let mut block = std::mem::take(&mut self.block);
                block.resize(len, 0.0);
                let decoded = self.decode(&mut block);
                (self.block, self.given) = (block, 0);
                decoded?;
            }
        }
        // Asked once all values are decoded, and again at each later call, which is cheap.
        if self.decoded == self.values && !self.source.ends()? {
            return Err(DecodeError::Trailing { values: self.values });
        }
        Ok(filled)
    }

    /// Values of the next block; 0 at the end.
    fn next_len(&mut self) -> usize {
        let left = self.values - self.decoded;
        match self.encoding {
            Encoding::F32 => plain::BLOCK_VALUES.min(left),
            Encoding::F16 => half_float::BLOCK_VALUES.min(left),
            Encoding::TopK => top_k::BLOCK_VALUES.min(left),
            Encoding::Int8 => {
                while let Some(len) = self.tensors.get(self.tensor) {
                    if self.within < *len {
                        return SCALED_VALUES.min(len - self.within);
                    }
                    self.tensor += 1;
                    self.within = 0;
                }
                0
            }
        }
    }

    /// Decodes one block.
    fn decode(&mut self, block: &mut [f32]) -> Result<(), DecodeError> {
        let Decoder { source, scratch, halves, places, decoded, room, .. } = self;
        match self.encoding {
            Encoding::F32 => plain::decode(source, scratch, block)?,
            Encoding::F16 => half_float::decode(source, scratch, halves, block)?,
            Encoding::Int8 => int8::decode(source, scratch, *decoded, block)?,
            Encoding::TopK => *room -= top_k::decode(source, scratch, places, *decoded, *room, block)?,
        }
        self.decoded += block.len();
        self.within += block.len();
        Ok(())
    }
}
