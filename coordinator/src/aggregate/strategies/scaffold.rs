//! SCAFFOLD: control variates correct the drift of local training. The server's half: the model's step and its variate.
//! The correction of each local step, and a node's own variate, are the node's.

use serde::{Deserialize, Serialize};

use super::{ClientTerms, StateArray, Step, Strategy, require_rate};
use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::Share;

/// SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", algorithm 1)
/// with option II for the variates: x ← x + η_g mean Δy_i, c ← c + |S|/N mean Δc_i, plain means over the cohort S of N
/// nodes.
///
/// By option II, c_i⁺ = c_i − c + (x − y_i) / (K_i η_l), so Δc_i = −c − Δy_i / (K_i η_l): the server finds it from
/// Δy_i alone and no variate is ever sent up. The second sum is that of Δy_i / (K_i η_l).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Scaffold {
    /// The paper's η_g, above 0, at most 1000.
    server_learning_rate: f64,
}

impl Default for Scaffold {
    fn default() -> Self {
        Scaffold { server_learning_rate: 1.0 }
    }
}

impl Strategy for Scaffold {
    fn check(&self) -> Result<(), String> {
        require_rate(self.server_learning_rate)
    }

    fn client(&self) -> ClientTerms {
        ClientTerms { control_variates: true, plain_sgd: true, fixed_sgd: true, ..ClientTerms::default() }
    }

    fn sums(&self) -> usize {
        2
    }

    fn state(&self) -> Vec<StateArray> {
        vec![StateArray { name: "control", initial: 0.0 }]
    }

    fn shares(&self, facts: &UpdateFacts) -> Result<Vec<Share>, String> {
        if facts.momentum != 0.0 || facts.proximal_mu != 0.0 {
            return Err(
                "option II reads the mean gradient off plain SGD; set training.momentum and proximal_mu to 0".into()
            );
        }
        let path = facts.steps as f64 * f64::from(facts.learning_rate);
        Ok(vec![Share::weighted(1), Share::scaled(1.0 / path)])
    }

    fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, String> {
        Ok(vec![1.0 / facts.len() as f64; 2])
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(self.server_learning_rate, out);
        let ([_, slope], [control, _]) = (step.means, step.state);
        for (control, slope) in control.iter_mut().zip(slope) {
            let c = f64::from(*control);
            *control = (c + step.participation * (-c - slope)) as f32;
        }
    }
}
