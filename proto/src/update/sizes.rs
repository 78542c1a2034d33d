//! How many bytes a payload has, for the check before any of them is taken.
//! The encodings themselves are beside this file.

use super::int8::SCALED_VALUES;
use super::{Coding, Encoding, top_k};

/// Length of every payload of this coding for a layout of these tensors; `None` where it depends on the values.
pub fn exact_payload_bytes(coding: &Coding, tensors: &[usize]) -> Option<u64> {
    let fixed = !coding.zstd && coding.encoding != Encoding::TopK;
    fixed.then(|| raw_bytes(coding, tensors))
}

/// Most bytes that a payload of this coding has for a layout of these tensors. What an honest node sends is never longer.
pub fn max_payload_bytes(coding: &Coding, tensors: &[usize]) -> u64 {
    let raw = raw_bytes(coding, tensors);
    if !coding.zstd {
        return raw;
    }
    // What does not compress grows by 3 bytes a block of 128 KiB, and the frame has at most 22 (RFC 8878, section 3.1.1).
    raw.saturating_add(raw >> 8).saturating_add(128)
}

/// Most bytes before compression.
pub(super) fn raw_bytes(coding: &Coding, tensors: &[usize]) -> u64 {
    let values = tensors.iter().fold(0u64, |sum, len| sum.saturating_add(*len as u64));
    match coding.encoding {
        Encoding::F32 => values.saturating_mul(4),
        Encoding::F16 => values.saturating_mul(2),
        Encoding::Int8 => {
            let blocks = tensors.iter().fold(0u64, |sum, len| sum.saturating_add(len.div_ceil(SCALED_VALUES) as u64));
            values.saturating_add(blocks.saturating_mul(4))
        }
        Encoding::TopK => {
            let kept = coding.kept(usize::try_from(values).unwrap_or(usize::MAX)) as u64;
            let blocks = values.div_ceil(top_k::BLOCK_VALUES as u64);
            // The shorter of gaps of at most 3 bytes and a bit a value; a count of at most 3 bytes and the form.
            let places = kept.saturating_mul(3).min(values.div_ceil(8).saturating_add(blocks));
            kept.saturating_mul(4).saturating_add(places).saturating_add(blocks.saturating_mul(4))
        }
    }
}
