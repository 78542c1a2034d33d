//! How an update's payload is written and read: plain float32, half floats, 8-bit integers or the largest values alone.
//! Which coding a task uses, and how a payload travels, is the callers' matter.

mod bytes;
mod decoder;
mod encoder;
mod half_float;
mod int8;
mod plain;
mod sizes;
mod top_k;

use std::fmt;
use std::str::FromStr;

pub use decoder::{DecodeError, Decoder};
pub use encoder::{EncodeError, encode, encode_into};
pub use int8::SCALED_VALUES;
pub use sizes::{exact_payload_bytes, max_payload_bytes};

/// How values become bytes. All numbers are little-endian, all values in the layout's flat order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// 4 bytes a value; nothing is lost.
    #[default]
    F32,
    /// 2 bytes a value: IEEE 754 binary16, rounded to nearest even. Beyond ±65504 a value becomes ±65504.
    F16,
    /// 1 byte a value and a float32 scale for each [`SCALED_VALUES`] of a tensor: stochastic rounding, as QSGD
    /// (Alistarh et al. 2017, section 3.1) with 127 levels and the largest magnitude as the norm.
    Int8,
    /// The values of largest magnitude, as float32 with their places; the others are 0. Of use only with error feedback
    /// (Stich et al. 2018, algorithm 1).
    TopK,
}

const NAMES: [(Encoding, &str); 4] =
    [(Encoding::F32, "f32"), (Encoding::F16, "f16"), (Encoding::Int8, "int8"), (Encoding::TopK, "top_k")];

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(encoding, _)| encoding == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Encoding {
    type Err = CodingError;

    fn from_str(text: &str) -> Result<Encoding, CodingError> {
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(encoding, _)| *encoding);
        found.ok_or_else(|| CodingError::Name(text.chars().take(40).collect()))
    }
}

/// How a task's updates are encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// How values become bytes.
    pub encoding: Encoding,
    /// Share of all values that [`Encoding::TopK`] keeps, above 0 and at most 1; the others ignore it.
    pub top_k: f32,
    /// Whether the bytes are compressed (zstd, level 1). Those of floats are first sorted by significance: for normally
    /// distributed values that saves 17 % instead of 8 % of float32, and 16 % instead of 8 % of half floats.
    pub zstd: bool,
}

impl Default for Coding {
    /// Plain float32.
    fn default() -> Coding {
        Coding { encoding: Encoding::F32, top_k: 0.0, zstd: false }
    }
}

impl Coding {
    /// Checks a coding that came from elsewhere.
    ///
    /// # Errors
    /// [`CodingError::TopK`] for a share of 0 or less, more than 1, or no number.
    pub fn validate(&self) -> Result<(), CodingError> {
        if self.encoding == Encoding::TopK && !(self.top_k > 0.0 && self.top_k <= 1.0) {
            return Err(CodingError::TopK(self.top_k));
        }
        Ok(())
    }

    /// Most values that an update of `values` values holds: all, or the share that is kept, rounded up.
    pub fn kept(&self, values: usize) -> usize {
        match self.encoding {
            Encoding::TopK => ((f64::from(self.top_k) * values as f64).ceil() as usize).min(values),
            Encoding::F32 | Encoding::F16 | Encoding::Int8 => values,
        }
    }
}

/// A coding that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodingError {
    /// The share of values to keep is out of range.
    #[error("top_k is {0}, but the share of values that are kept must be above 0 and at most 1, e.g. 0.01")]
    TopK(f32),
    /// No encoding has this name.
    #[error("there is no encoding {0:?}; choose f32, f16, int8 or top_k")]
    Name(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
