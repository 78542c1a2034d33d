//! The rule by which a sample is kept for evaluation: by its input alone, the same on every node, for ever.
//! Where the parts are kept is `store`'s matter.

use sha2::{Digest, Sha256};

/// The share of a node's samples that it keeps for evaluation.
pub const SHARE: f64 = 0.1;

/// Whether a raw input is held out where `share` of all inputs are, `0.0..=1.0`: those whose SHA-256 begins with a
/// big-endian u16 below share · 2^16, rounded (6554 for [`SHARE`]). The rule looks at the input alone, so that no label
/// and no second copy ever moves a sample between the parts, and a larger share holds every sample of a smaller one.
/// Never change it.
pub fn is_held_out(input: &[f32], share: f64) -> bool {
    let digest: [u8; 32] = Sha256::digest(bytes(input)).into();
    falls_below(&digest, share)
}

/// The bytes that a digest is of: little-endian. Adding 0 turns -0.0 into 0.0: equal inputs have equal bytes.
pub(crate) fn bytes(input: &[f32]) -> Vec<u8> {
    input.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect()
}

pub(crate) fn falls_below(digest: &[u8; 32], share: f64) -> bool {
    let place = u16::from_be_bytes([digest[0], digest[1]]);
    f64::from(place) < (share * 65_536.0).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_the_one_that_stored_samples_were_divided_by() {
        let mut digest = [0xff; 32];
        for (place, expected) in [(6553u16, true), (6554, false)] {
            digest[..2].copy_from_slice(&place.to_be_bytes());
            assert_eq!(falls_below(&digest, SHARE), expected, "{place}");
        }
        assert!(!falls_below(&[0; 32], 0.0) && falls_below(&[0xff; 32], 1.0));
    }

    #[test]
    fn about_the_share_is_held_out_and_a_larger_share_holds_the_smaller() {
        let held = |share| (0..5000).filter(|i| is_held_out(&[*i as f32, 1.0], share)).collect::<Vec<_>>();
        let (small, large) = (held(0.1), held(0.3));
        assert!((400..600).contains(&small.len()), "{}", small.len());
        assert!((1350..1650).contains(&large.len()), "{}", large.len());
        assert!(small.iter().all(|i| large.contains(i)));
    }
}
