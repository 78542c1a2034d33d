//! FedProx: nodes are held near the base by a proximal term, and may send partial work; the server averages.
//! The proximal term itself is in the node's optimizer.

use serde::{Deserialize, Serialize};

use super::{ClientTerms, Step, Strategy, require};

/// FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2): nodes minimise
/// F_k(w) + mu/2 ‖w − w_t‖² (equation 2), as far as they come. The paper samples nodes by their share of the data and
/// averages plainly; here all nodes are as likely and the mean is weighted by examples, which has the same expectation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedProx {
    /// Strength of the proximal term, 0..=1000.
    mu: f64,
}

impl Default for FedProx {
    fn default() -> Self {
        FedProx { mu: 0.01 }
    }
}

impl Strategy for FedProx {
    fn check(&self) -> Result<(), String> {
        require("mu", self.mu, (0.0..=1000.0).contains(&self.mu), "0 to 1000")
    }

    fn client(&self) -> ClientTerms {
        ClientTerms { proximal_mu: Some(self.mu as f32), accept_partial: true, ..ClientTerms::default() }
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(1.0, out);
    }
}
