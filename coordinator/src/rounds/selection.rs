//! Decides who is selected: seeded, so that a replay selects the same nodes.
//! Whether a round begins at all is decided in `step`.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::task::RoundPlan;
use crate::aggregate::fixed_point::MAX_COHORT;

/// The nodes of a round's cohort, over-selection included.
pub(super) fn cohort<'a>(plan: &RoundPlan, round: u64, available: &'a BTreeSet<String>) -> Vec<&'a str> {
    let mut nodes: Vec<&str> = available.iter().map(String::as_str).collect();
    let selected = plan.selected();
    if plan.cohort > 0 && selected < nodes.len() {
        shuffle(plan.seed, round, &mut nodes);
        nodes.truncate(selected);
    }
    nodes.truncate(MAX_COHORT);
    nodes
}

/// Shuffles by the task's seed and a number (of the round, or of the assignment) alone.
pub(super) fn shuffle(seed: u64, number: u64, nodes: &mut [&str]) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    nodes.shuffle(&mut rng);
}
