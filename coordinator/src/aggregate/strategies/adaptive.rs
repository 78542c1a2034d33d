//! What FedAdagrad, FedAdam and FedYogi share: algorithm 2 of Reddi et al. but for the line of v.
//! That line is in each one's file.

use super::{StateArray, Step, require, require_rate};

/// The parameters of algorithm 2 (Reddi et al. 2021, "Adaptive Federated Optimization") that all three have.
///
/// With Δ the mean delta: m ← beta1 m + (1 − beta1) Δ; v by the strategy's rule from v and Δ²;
/// x ← x + eta m / (√v + tau). v is tau² at first, m is 0. As in the paper there is no bias correction; unlike its line
/// for Δ, a plain mean, Δ is weighted by examples, as everywhere where the paper at hand doesn't rest on equal weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adaptive {
    /// eta.
    pub(super) rate: f64,
    pub(super) beta1: f64,
    pub(super) tau: f64,
}

impl Adaptive {
    pub(super) fn check(&self) -> Result<(), String> {
        require_rate(self.rate)?;
        require_decay("beta1", self.beta1)?;
        require("tau", self.tau, (1e-9..=1.0).contains(&self.tau), "1e-9 to 1")
    }

    pub(super) fn state(&self) -> Vec<StateArray> {
        vec![
            StateArray { name: "momentum", initial: 0.0 },
            StateArray { name: "variance", initial: (self.tau * self.tau) as f32 },
        ]
    }

    /// `variance` gives the next v from v and Δ².
    pub(super) fn next(&self, step: Step<'_>, out: &mut [f32], variance: impl Fn(f64, f64) -> f64) {
        let ([mean, _], [momenta, variances]) = (step.means, step.state);
        let state = momenta.iter_mut().zip(variances);
        for (((out, base), mean), (momentum, squares)) in out.iter_mut().zip(step.base).zip(mean).zip(state) {
            let m = self.beta1 * f64::from(*momentum) + (1.0 - self.beta1) * mean;
            let v = variance(f64::from(*squares), mean * mean);
            (*momentum, *squares) = (m as f32, v as f32);
            *out = (f64::from(*base) + self.rate * m / (v.sqrt() + self.tau)) as f32;
        }
    }
}

pub(super) fn require_decay(key: &str, value: f64) -> Result<(), String> {
    require(key, value, (0.0..1.0).contains(&value), "0 or more, below 1")
}
