//! What a training run should do: loss, optimizer, epochs, batches, seed; and the ranges that are accepted.
//! How a step applies them is in `loss`, `optimizer` and `trainer`.

use std::sync::Arc;

use super::TrainingError;

/// Most examples of one batch.
pub const MAX_BATCH_SIZE: u32 = 1 << 16;
/// Most threads of one run.
pub const MAX_THREADS: usize = 256;

/// One local training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is minimised.
    pub loss: Loss,
    /// How a gradient becomes a step.
    pub optimizer: Optimizer,
    /// Passes over the data, at least 1.
    pub epochs: u32,
    /// Examples of one step, `1..=`[`MAX_BATCH_SIZE`]. An epoch's last batch may be smaller; it is kept.
    pub batch_size: u32,
    /// Seeds the order of the examples. Same seed, data, model and thread count: the same weights, bit for bit.
    pub seed: u64,
    /// FedProx's μ ≥ 0: adds μ/2·‖w − w₀‖² to the loss, w₀ being the weights that the run starts from; 0 = FedAvg.
    /// (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, eq. 2.)
    pub proximal_mu: f32,
    /// SCAFFOLD's c − c_i, added to every gradient: one finite value an exchanged parameter, in the layout's order; what
    /// stands for a statistic is not looked at. (Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1, line 10.) The
    /// algorithm is one of plain descent, so momentum is refused beside it.
    pub correction: Option<Arc<[f32]>>,
    /// Threads of the run's own pool, `1..=`[`MAX_THREADS`].
    pub threads: usize,
}

/// What training minimises, a mean over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Cross-entropy of the softmax of the model's output. A Softmax or LogSoftmax that ends the graph is recognised and
    /// left out, so files that give logits, probabilities or log-probabilities all train on the logits.
    CrossEntropy,
}

/// How a gradient becomes a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent as `torch.optim.SGD` defines it (dampening 0, no Nesterov):
    /// g ← g + λw; v ← βv + g (v ← g on the first step); w ← w − ηv.
    Sgd {
        /// η > 0.
        learning_rate: f32,
        /// β in `0.0..1.0`; 0 = plain descent.
        momentum: f32,
        /// λ ≥ 0.
        weight_decay: f32,
    },
}

impl Plan {
    /// Checks every range. The error names the field and what is allowed.
    pub fn validate(&self) -> Result<(), TrainingError> {
        let Optimizer::Sgd { learning_rate, momentum, weight_decay } = self.optimizer;
        positive("learning_rate", learning_rate)?;
        if !(0.0..1.0).contains(&momentum) {
            return Err(refused("momentum", format!("is {momentum}; give a number from 0 to below 1")));
        }
        not_negative("weight_decay", weight_decay)?;
        not_negative("proximal_mu", self.proximal_mu)?;
        if let Some(correction) = &self.correction {
            if momentum != 0.0 {
                return Err(refused("momentum", format!("is {momentum}; beside a correction give 0")));
            }
            if let Some(index) = correction.iter().position(|value| !value.is_finite()) {
                return Err(refused("correction", format!("is not finite at value {index}; give finite numbers")));
            }
        }
        if self.epochs == 0 {
            return Err(refused("epochs", "is 0; give at least 1".to_owned()));
        }
        if !(1..=MAX_BATCH_SIZE).contains(&self.batch_size) {
            return Err(refused("batch_size", format!("is {}; give 1 to {MAX_BATCH_SIZE}", self.batch_size)));
        }
        if !(1..=MAX_THREADS).contains(&self.threads) {
            return Err(refused("threads", format!("is {}; give 1 to {MAX_THREADS}", self.threads)));
        }
        Ok(())
    }
}

fn positive(field: &'static str, value: f32) -> Result<(), TrainingError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(refused(field, format!("is {value}; give a positive number")))
}

fn not_negative(field: &'static str, value: f32) -> Result<(), TrainingError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(refused(field, format!("is {value}; give 0 or a positive number")))
}

fn refused(field: &'static str, problem: String) -> TrainingError {
    TrainingError::Plan { field, problem }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            loss: Loss::CrossEntropy,
            optimizer: Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 },
            epochs: 1,
            batch_size: 32,
            seed: 0,
            proximal_mu: 0.0,
            correction: None,
            threads: 1,
        }
    }

    fn sgd(learning_rate: f32, momentum: f32, weight_decay: f32) -> Plan {
        Plan { optimizer: Optimizer::Sgd { learning_rate, momentum, weight_decay }, ..plan() }
    }

    #[test]
    fn a_plan_within_its_ranges_is_accepted() {
        plan().validate().unwrap();
    }

    #[test]
    fn every_number_out_of_range_is_refused_by_name() {
        let cases = [
            ("learning_rate", sgd(-0.1, 0.0, 0.0)),
            ("learning_rate", sgd(0.0, 0.0, 0.0)),
            ("learning_rate", sgd(f32::NAN, 0.0, 0.0)),
            ("learning_rate", sgd(f32::INFINITY, 0.0, 0.0)),
            ("momentum", sgd(0.1, 1.0, 0.0)),
            ("momentum", sgd(0.1, -0.5, 0.0)),
            ("momentum", sgd(0.1, f32::NAN, 0.0)),
            ("weight_decay", sgd(0.1, 0.0, -1.0)),
            ("weight_decay", sgd(0.1, 0.0, f32::NAN)),
            ("proximal_mu", Plan { proximal_mu: -1.0, ..plan() }),
            ("proximal_mu", Plan { proximal_mu: f32::NAN, ..plan() }),
            ("momentum", Plan { correction: Some([0.0].into()), ..plan() }),
            ("correction", Plan { correction: Some([0.0, f32::NAN].into()), ..sgd(0.1, 0.0, 0.0) }),
            ("epochs", Plan { epochs: 0, ..plan() }),
            ("batch_size", Plan { batch_size: 0, ..plan() }),
            ("batch_size", Plan { batch_size: MAX_BATCH_SIZE + 1, ..plan() }),
            ("threads", Plan { threads: 0, ..plan() }),
            ("threads", Plan { threads: MAX_THREADS + 1, ..plan() }),
        ];
        for (expected, plan) in cases {
            let error = plan.validate().expect_err(expected);
            assert!(matches!(error, TrainingError::Plan { field, .. } if field == expected), "{error}");
        }
    }
}
