//! Federated averaging: the next weights are the base plus the mean delta, weighted by examples.
//! All of it is what `Strategy` does unless told otherwise.

use serde::{Deserialize, Serialize};

use super::{Step, Strategy};

/// FedAvg (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
/// algorithm 1): w ← Σ (n_k / n) w_k.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedAvg {}

impl Strategy for FedAvg {
    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(1.0, out);
    }
}
