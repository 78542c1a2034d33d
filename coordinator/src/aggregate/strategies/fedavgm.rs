//! Federated averaging with momentum at the server.
//! Momentum within a node's training is the training plan's.

use serde::{Deserialize, Serialize};

use super::{StateArray, Step, Strategy, require, require_rate};

/// FedAvgM (Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
/// Classification"): v ← beta v + Δw, w ← w − v, where Δw points from the mean to the base; here with a server learning
/// rate before v, 1 by default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedAvgM {
    /// Factor on v, above 0, at most 1000.
    server_learning_rate: f64,
    /// The paper's beta, 0 <= m < 1.
    momentum: f64,
}

impl Default for FedAvgM {
    fn default() -> Self {
        FedAvgM { server_learning_rate: 1.0, momentum: 0.9 }
    }
}

impl Strategy for FedAvgM {
    fn check(&self) -> Result<(), String> {
        require_rate(self.server_learning_rate)?;
        require("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "0 or more, below 1")
    }

    fn state(&self) -> Vec<StateArray> {
        vec![StateArray { name: "momentum", initial: 0.0 }]
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        let ([mean, _], [velocity, _]) = (step.means, step.state);
        for (((out, base), mean), velocity) in out.iter_mut().zip(step.base).zip(mean).zip(velocity) {
            let v = self.momentum * f64::from(*velocity) + mean;
            *velocity = v as f32;
            *out = (f64::from(*base) + self.server_learning_rate * v) as f32;
        }
    }
}
