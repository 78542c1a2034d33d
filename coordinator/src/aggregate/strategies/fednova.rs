//! FedNova: each delta is divided by how far the node's local steps reach, so that many steps don't pull the model to one
//! node's optimum. How far SGD with momentum and a proximal term reaches is computed here; the steps are the node's.

use serde::{Deserialize, Serialize};

use super::{Step, Strategy};
use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::Share;

/// FedNova (Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization"):
/// x ← x + tau_eff Σ p_i Δ_i / ‖a_i‖₁ with p_i = n_i / n, where a_i says how the local optimiser weighs its gradients,
/// Δ_i = −η G_i a_i. tau_eff is Σ p_i ‖a_i‖₁, FedAvg's own; the paper leaves it free. (Its code takes Σ p_i tau_i where
/// mu > 0, a longer step than any node made.)
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FedNova {}

impl Strategy for FedNova {
    fn client(&self) -> super::ClientTerms {
        super::ClientTerms { accept_partial: true, fixed_sgd: true, ..super::ClientTerms::default() }
    }

    fn shares(&self, facts: &UpdateFacts) -> Result<Vec<Share>, String> {
        Ok(vec![Share::scaled(facts.examples as f64 / reach(facts)?)])
    }

    fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, String> {
        let (mut examples, mut reached) = (0.0, 0.0);
        for facts in facts {
            examples += facts.examples as f64;
            reached += facts.examples as f64 * reach(facts)?;
        }
        Ok(vec![reached / examples / examples])
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(1.0, out);
    }
}

/// ‖a‖₁ of `steps` steps of v ← ρ v + g + mu (y − x), y ← y − η v: how far they go, in units of η, along a gradient
/// that stays the same. For plain SGD it is the number of steps; with momentum and with a proximal term it is what the
/// paper gives in section 4 for each.
///
/// (u, v, 1) with u = (x − y) / η follows a 3 × 3 matrix, whose power is taken by squaring: 30 products for 2^30 steps.
fn reach(facts: &UpdateFacts) -> Result<f64, String> {
    let (momentum, pull) = (f64::from(facts.momentum), f64::from(facts.learning_rate) * f64::from(facts.proximal_mu));
    let mut power = [[1.0 - pull, momentum, 1.0], [-pull, momentum, 1.0], [0.0, 0.0, 1.0]];
    let mut all = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let mut steps = facts.steps;
    while steps > 0 {
        if steps % 2 == 1 {
            all = product(&all, &power);
        }
        power = product(&power, &power);
        steps /= 2;
    }
    let [[_, _, reach], _, _] = all;
    if reach.is_finite() && reach > 0.0 {
        return Ok(reach);
    }
    Err(format!(
        "local training does not settle: learning_rate {} × proximal_mu {} is too large; lower one of them",
        facts.learning_rate, facts.proximal_mu
    ))
}

fn product(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let [b0, b1, b2] = b;
    a.map(|[x, y, z]| std::array::from_fn(|j| x * b0[j] + y * b1[j] + z * b2[j]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::facts;
    use proptest::prelude::*;

    fn with(steps: u64, learning_rate: f32, momentum: f32, proximal_mu: f32) -> UpdateFacts {
        UpdateFacts { steps, learning_rate, momentum, proximal_mu, ..facts() }
    }

    #[test]
    fn plain_sgd_reaches_as_far_as_its_steps() {
        for steps in [1, 2, 3, 1000, 1 << 30] {
            assert_eq!(reach(&with(steps, 0.1, 0.0, 0.0)).unwrap(), steps as f64);
        }
    }

    #[test]
    fn a_proximal_term_that_makes_training_explode_is_refused() {
        assert!(reach(&with(1000, 1.0, 0.9, 1000.0)).unwrap_err().contains("proximal_mu"));
    }

    proptest! {
        #[test]
        fn the_reach_equals_the_closed_forms_of_the_paper(
            steps in 1u64..3000, rho in 0.01f32..0.99, alpha in 0.001f64..0.99,
        ) {
            let (tau, rho_64) = (steps as f64, f64::from(rho));
            let momentum = (tau - rho_64 * (1.0 - rho_64.powf(tau)) / (1.0 - rho_64)) / (1.0 - rho_64);
            let found = reach(&with(steps, 0.1, rho, 0.0)).unwrap();
            prop_assert!((found / momentum - 1.0).abs() < 1e-9, "{} {}", found, momentum);
            let mu = (alpha / f64::from(0.5f32)) as f32;
            let alpha = f64::from(0.5f32) * f64::from(mu);
            let proximal = (1.0 - (1.0 - alpha).powf(tau)) / alpha;
            let found = reach(&with(steps, 0.5, 0.0, mu)).unwrap();
            prop_assert!((found / proximal - 1.0).abs() < 1e-9, "{} {}", found, proximal);
        }

        #[test]
        fn the_reach_equals_that_of_an_optimizer_run_on_a_constant_gradient(
            steps in 1u64..300, rho in 0.0f32..0.95, mu in 0.0f32..1.0,
        ) {
            let facts = with(steps, 0.5, rho, mu);
            let (mut y, mut v) = (0.0, 0.0);
            for _ in 0..steps {
                v = f64::from(rho) * v + 1.0 + f64::from(mu) * y;
                y -= 0.5 * v;
            }
            prop_assert!((reach(&facts).unwrap() / (-y / 0.5) - 1.0).abs() < 1e-9);
        }
    }
}
