//! FedYogi: Yogi at the server, on the mean delta.
//! The step but for v is in `adaptive`.

use serde::{Deserialize, Serialize};

use super::adaptive::{Adaptive, require_decay};
use super::{StateArray, Step, Strategy};

/// FedYogi (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2): v ← v − (1 − beta2) Δ² sign(v − Δ²).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedYogi {
    /// The paper's eta, above 0, at most 1000.
    server_learning_rate: f64,
    /// 0 <= beta1 < 1.
    beta1: f64,
    /// 0 <= beta2 < 1.
    beta2: f64,
    /// Degree of adaptivity, 1e-9..=1.
    tau: f64,
}

impl Default for FedYogi {
    fn default() -> Self {
        FedYogi { server_learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

impl FedYogi {
    fn adaptive(&self) -> Adaptive {
        Adaptive { rate: self.server_learning_rate, beta1: self.beta1, tau: self.tau }
    }
}

impl Strategy for FedYogi {
    fn check(&self) -> Result<(), String> {
        self.adaptive().check()?;
        require_decay("beta2", self.beta2)
    }

    fn state(&self) -> Vec<StateArray> {
        self.adaptive().state()
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        self.adaptive().next(step, out, |v, square| {
            // The sign of 0 is 0 here, unlike f64::signum's.
            let sign = f64::from(i8::from(v > square) - i8::from(v < square));
            v - (1.0 - self.beta2) * square * sign
        });
    }
}
