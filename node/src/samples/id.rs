//! Names of answered requests, by which a later label cites them.
//! What is kept under a name is in `pending`.

use std::fmt;
use std::str::FromStr;

/// A random 128-bit name, minted by the node for one answered request; written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId([u8; 16]);

/// The text is no sample id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sample id is the 32 hexadecimal digits of a reply's `fedge_sample_id`, but {} bytes of other text were given",
    length
)]
pub struct ParseSampleIdError {
    length: usize,
}

impl SampleId {
    /// A new name, from the operating system's random numbers.
    pub fn mint() -> SampleId {
        SampleId(rand::random())
    }

    /// The 16 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for SampleId {
    type Err = ParseSampleIdError;

    fn from_str(text: &str) -> Result<SampleId, ParseSampleIdError> {
        let mut bytes = [0; 16];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(SampleId(bytes)),
            Err(_) => Err(ParseSampleIdError { length: text.len() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_own_text_and_other_text_is_refused() {
        let id = SampleId::mint();
        assert_eq!(id.to_string().parse::<SampleId>().unwrap(), id);
        assert_ne!(SampleId::mint(), id);
        for bad in ["", "zz", &id.to_string()[1..], &format!("{id}00"), &"é".repeat(16)] {
            assert!(bad.parse::<SampleId>().is_err(), "{bad}");
        }
    }
}
