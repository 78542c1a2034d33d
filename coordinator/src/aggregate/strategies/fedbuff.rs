//! FedBuff: no rounds; a version is made of every K updates, whatever base they were trained on. Stale ones count less.
//! When a node gets work and when the buffer is full is decided in `rounds`.

use serde::{Deserialize, Serialize};

use super::{Buffer, ClientTerms, Step, Strategy, require, require_rate};
use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::{MAX_COHORT, Share};

/// FedBuff (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm 1):
/// w ← w + η_g / K Σ s(tau_i) Δ_i over a buffer of K updates, with the paper's s(tau) = 1 / √(1 + tau) for an update
/// whose base is tau versions old.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedBuff {
    /// The paper's K, 1..=4096.
    buffer_size: usize,
    /// The paper's η_g, above 0, at most 1000.
    server_learning_rate: f64,
    /// a in s(tau) = (1 + tau)^−a, 0..=10.
    staleness_exponent: f64,
    /// Older updates are refused, 0..=10000 versions.
    max_staleness: u64,
}

impl Default for FedBuff {
    fn default() -> Self {
        FedBuff { buffer_size: 10, server_learning_rate: 1.0, staleness_exponent: 0.5, max_staleness: 20 }
    }
}

impl Strategy for FedBuff {
    fn check(&self) -> Result<(), String> {
        let FedBuff { buffer_size: size, staleness_exponent: exponent, max_staleness: staleness, .. } = *self;
        require("buffer_size", size, (1..=MAX_COHORT).contains(&size), "1 to 4096")?;
        require_rate(self.server_learning_rate)?;
        require("staleness_exponent", exponent, (0.0..=10.0).contains(&exponent), "0 to 10")?;
        require("max_staleness", staleness, staleness <= 10_000, "0 to 10000 versions")
    }

    fn client(&self) -> ClientTerms {
        let buffer = Buffer { size: self.buffer_size, max_staleness: self.max_staleness };
        ClientTerms { asynchronous: Some(buffer), ..ClientTerms::default() }
    }

    fn shares(&self, facts: &UpdateFacts) -> Result<Vec<Share>, String> {
        Ok(vec![Share::scaled((1.0 + facts.staleness as f64).powf(-self.staleness_exponent))])
    }

    fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, String> {
        Ok(vec![1.0 / facts.len() as f64])
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(self.server_learning_rate, out);
    }
}
