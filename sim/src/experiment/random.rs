//! Random numbers of a simulation: one independent stream for each purpose, node and round.
//! What is drawn from them is each caller's matter.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// What numbers are for. Adding a purpose changes no other's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Which samples are the test part.
    Test,
    /// Which node gets which sample.
    Split,
    /// Each node's speed.
    Speed,
    /// Who straggles or vanishes in a round, and when.
    Systems,
    /// Who evaluates a version.
    Evaluators,
    /// The vectors of the fixed-vector trainer.
    Vector,
}

/// The stream of a purpose for two numbers, such as a round and a node. The numbers of one stream say nothing about
/// another's, and no thread shares one, so that a result depends on the seed alone.
pub(super) fn stream(seed: u64, purpose: Purpose, first: u64, second: u64) -> ChaCha8Rng {
    let name: &[u8] = match purpose {
        Purpose::Test => b"test",
        Purpose::Split => b"split",
        Purpose::Speed => b"speed",
        Purpose::Systems => b"systems",
        Purpose::Evaluators => b"evaluators",
        Purpose::Vector => b"vector",
    };
    let mut hash = Sha256::new();
    hash.update(b"fedge simulation 1\0");
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    for number in [seed, first, second] {
        hash.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_repeat_and_differ_by_seed_purpose_and_both_numbers() {
        let first = |seed, purpose, a, b| stream(seed, purpose, a, b).next_u64();
        let base = first(1, Purpose::Split, 2, 3);
        assert_eq!(base, first(1, Purpose::Split, 2, 3));
        for other in [
            first(2, Purpose::Split, 2, 3),
            first(1, Purpose::Test, 2, 3),
            first(1, Purpose::Split, 3, 3),
            first(1, Purpose::Split, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }
}
