//! q-FedAvg: nodes whose loss is high count more, so that the model serves them as well.
//! The loss of the base on a node's samples comes with its update.

use serde::{Deserialize, Serialize};

use super::{ClientTerms, Step, Strategy, require};
use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::{MAX_EXAMPLES, Share};

/// Coarsest acceptable mean multiplier: at 2^-10, what is lost to rounding is 1e-6 of a usual weight.
const FINEST: f64 = 1.0 / 1024.0;

/// q-FedAvg (Li et al. 2020, "Fair Resource Allocation in Federated Learning", algorithm 2), L = 1 / learning_rate:
/// Δw_k = L (w − w_k), Δ_k = F_k^q Δw_k and h_k = q F_k^(q−1) ‖Δw_k‖² + L F_k^q, w ← w − Σ Δ_k / Σ h_k. As in the
/// authors' code, 1e-10 is added to each loss.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QFedAvg {
    /// Fairness: 0 is the plain mean of the updates; 0..=10.
    q: f64,
    /// Losses above it are refused, 0.001..=1000: the integers are made for (loss / it)^q.
    largest_loss: f64,
}

impl Default for QFedAvg {
    fn default() -> Self {
        QFedAvg { q: 1.0, largest_loss: 16.0 }
    }
}

impl QFedAvg {
    fn loss(&self, facts: &UpdateFacts) -> Result<f64, String> {
        let loss = facts.loss_base.ok_or("the update came without the loss of its base version")?;
        let (loss, largest) = (f64::from(loss), self.largest_loss);
        if loss >= 0.0 && loss <= largest {
            return Ok(loss + 1e-10);
        }
        Err(format!("the base's loss on the node's samples is {loss}; 0 to strategy.largest_loss = {largest} counts"))
    }

    /// 2^20 (F / largest_loss)^q: F^q up to a factor that all updates share.
    fn multiplier(&self, loss: f64) -> f64 {
        MAX_EXAMPLES as f64 * (loss / self.largest_loss).min(1.0).powf(self.q)
    }
}

impl Strategy for QFedAvg {
    fn check(&self) -> Result<(), String> {
        require("q", self.q, (0.0..=10.0).contains(&self.q), "0 to 10")?;
        require("largest_loss", self.largest_loss, (0.001..=1000.0).contains(&self.largest_loss), "0.001 to 1000")
    }

    fn client(&self) -> ClientTerms {
        ClientTerms { loss_base: true, ..ClientTerms::default() }
    }

    fn shares(&self, facts: &UpdateFacts) -> Result<Vec<Share>, String> {
        Ok(vec![Share::scaled(self.multiplier(self.loss(facts)?))])
    }

    fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, String> {
        let (mut multipliers, mut h) = (0.0, 0.0);
        for update in facts {
            if facts.iter().any(|other| other.learning_rate != update.learning_rate) {
                return Err("updates of different learning rates: L = 1 / learning_rate must be one".into());
            }
            let (loss, smoothness) = (self.loss(update)?, 1.0 / f64::from(update.learning_rate));
            let multiplier = self.multiplier(loss);
            multipliers += multiplier;
            // h_k / L, by the factor that F_k^q has been multiplied by: ‖Δw_k‖² is L² ‖delta‖².
            h += multiplier * (self.q / loss * smoothness * update.squared_norm + 1.0);
        }
        if multipliers < FINEST * facts.len() as f64 {
            return Err(format!(
                "the losses have fallen so far below largest_loss = {} that their power {} is lost to rounding; \
                 lower strategy.largest_loss or strategy.q",
                self.largest_loss, self.q
            ));
        }
        Ok(vec![1.0 / h])
    }

    fn next(&self, step: Step<'_>, out: &mut [f32]) {
        step.by_mean(1.0, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::facts;

    fn at(loss_base: Option<f32>) -> UpdateFacts {
        UpdateFacts { loss_base, ..facts() }
    }

    #[test]
    fn an_update_without_a_loss_or_with_an_impossible_one_is_refused() {
        let strategy = QFedAvg::default();
        for loss in [None, Some(f32::NAN), Some(-0.1), Some(16.5), Some(f32::INFINITY)] {
            assert!(strategy.shares(&at(loss)).is_err(), "{loss:?}");
        }
        assert!(strategy.shares(&at(Some(0.0))).is_ok());
        assert!(strategy.shares(&at(Some(16.0))).is_ok());
    }

    #[test]
    fn losses_that_rounding_would_swallow_are_refused_and_a_lower_largest_loss_helps() {
        let strategy = QFedAvg { q: 5.0, largest_loss: 16.0 };
        assert!(strategy.factors(&[at(Some(0.1))]).unwrap_err().contains("largest_loss"));
        assert!(QFedAvg { q: 5.0, largest_loss: 1.0 }.factors(&[at(Some(0.1))]).is_ok());
    }

    #[test]
    fn updates_of_different_learning_rates_make_no_mean() {
        let other = UpdateFacts { learning_rate: 0.2, ..at(Some(1.0)) };
        assert!(QFedAvg::default().factors(&[at(Some(1.0)), other]).is_err());
    }
}
