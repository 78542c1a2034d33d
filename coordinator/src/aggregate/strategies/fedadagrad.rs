//! FedAdagrad: Adagrad at the server, on the mean delta.
//! The step but for v is in `adaptive`.

use serde::{Deserialize, Serialize};

use super::adaptive::Adaptive;
use super::{StateArray, Step, Strategy};

/// FedAdagrad (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2): v ← v + Δ².
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedAdagrad {
    /// The paper's eta, above 0, at most 1000.
    server_learning_rate: f64,
    /// 0 <= beta1 < 1; 0 as Adagrad has it.
    beta1: f64,
    /// Degree of adaptivity, 1e-9..=1.
    tau: f64,
}

impl Default for FedAdagrad {
    fn default() -> Self {
        FedAdagrad { server_learning_rate: 0.1, beta1: 0.0, tau: 1e-3 }
    }
}

impl FedAdagrad {
    fn adaptive(&self) -> Adaptive {
        Adaptive { rate: self.server_learning_rate, beta1: self.beta1, tau: self.tau }
    }
}

impl Strategy for FedAdagrad {
    fn check(&self) -> Result<(), String> {
        self.adaptive().check()
    }

    fn state(&self) -> Vec<StateArray> {
        self.adaptive().state()
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        self.adaptive().next(step, out, |v, square| v + square);
    }
}
