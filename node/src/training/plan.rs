//! What a training run should do: optimizer, schedule, what is trained, epochs, batches, seed; and the accepted ranges.
//! How a step applies them is in `loss`, `optimizer` and `trainer`.

use std::sync::Arc;

use fedge_models::{Exchange, Selection};

use super::augment::Augmentation;
use super::loss::{Loss, Objective};
use super::{Device, TrainingError};

/// Most examples of one batch.
pub const MAX_BATCH_SIZE: u32 = 1 << 16;
/// Most threads of one run.
pub const MAX_THREADS: usize = 256;

/// What a run may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Threads of the run's own pool, `1..=`[`MAX_THREADS`].
    pub threads: usize,
    /// What it computes on.
    pub device: Device,
}

impl Default for Resources {
    fn default() -> Resources {
        Resources { threads: 1, device: Device::Cpu }
    }
}

/// One local training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is minimised.
    pub objective: Objective,
    /// How a gradient becomes a step.
    pub optimizer: Optimizer,
    /// How the learning rate moves over the run.
    pub schedule: Schedule,
    /// Steps over which the learning rate grows linearly from its first fraction to the whole; 0: none.
    pub warmup_steps: u32,
    /// Largest L2 norm of a batch's gradient over all trained parameters, before weight decay and the terms of federated
    /// algorithms; a longer one is scaled down to it, as `torch.nn.utils.clip_grad_norm_` does. 0: any.
    pub clip_norm: f32,
    /// Which parameters are trained; the others keep their values.
    pub trained: Selection,
    /// Patterns of those that stay on their node: trained, and not sent.
    pub local: Arc<[String]>,
    /// Normalize by BatchNormalization's running statistics, and leave them as they are.
    pub frozen_statistics: bool,
    /// How pictures are changed before each step.
    pub augmentation: Augmentation,
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
    /// algorithm is one of plain descent, so anything else is refused beside it.
    pub correction: Option<Arc<[f32]>>,
    /// What the run may use of the machine.
    pub resources: Resources,
}

impl Default for Plan {
    /// One epoch of plain descent on cross-entropy at a rate of 0.01, in batches of 32, on one thread.
    fn default() -> Plan {
        Plan {
            objective: Loss::CrossEntropy.into(),
            optimizer: Optimizer::sgd(0.01, 0.0, 0.0),
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: 0.0,
            trained: Selection::All,
            local: Arc::default(),
            frozen_statistics: false,
            augmentation: Augmentation::default(),
            epochs: 1,
            batch_size: 32,
            seed: 0,
            proximal_mu: 0.0,
            correction: None,
            resources: Resources::default(),
        }
    }
}

/// How a gradient becomes a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent as `torch.optim.SGD` defines it (dampening 0):
    /// g ← g + λw; v ← βv + g (v ← g on the first step); w ← w − ηv, or with Nesterov's momentum w ← w − η(g + βv).
    Sgd {
        /// η > 0.
        learning_rate: f32,
        /// β in `0.0..1.0`; 0 = plain descent.
        momentum: f32,
        /// λ ≥ 0.
        weight_decay: f32,
        /// Nesterov's momentum; needs β > 0.
        nesterov: bool,
    },
    /// Adam (Kingma and Ba 2015, algorithm 1) as `torch.optim.Adam` defines it, or AdamW (Loshchilov and Hutter 2019).
    Adam {
        /// η > 0.
        learning_rate: f32,
        /// β₁ in `0.0..1.0`.
        beta1: f32,
        /// β₂ in `0.0..1.0`.
        beta2: f32,
        /// ε > 0, added to the root of the second moment.
        epsilon: f32,
        /// λ ≥ 0: added to the gradient as λw or, where decoupled, taken off the weights as ηλw.
        weight_decay: f32,
        /// AdamW.
        decoupled: bool,
    },
}

impl Optimizer {
    /// Stochastic gradient descent without Nesterov's momentum.
    pub fn sgd(learning_rate: f32, momentum: f32, weight_decay: f32) -> Optimizer {
        Optimizer::Sgd { learning_rate, momentum, weight_decay, nesterov: false }
    }

    /// η.
    pub fn learning_rate(&self) -> f32 {
        let (Optimizer::Sgd { learning_rate, .. } | Optimizer::Adam { learning_rate, .. }) = self;
        *learning_rate
    }

    fn validate(&self) -> Result<(), TrainingError> {
        positive("learning_rate", self.learning_rate())?;
        let share = |field, value: f32| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(refused(field, format!("is {value}; give a number from 0 to below 1"))),
        };
        match *self {
            Optimizer::Sgd { momentum, weight_decay, nesterov, .. } => {
                share("momentum", momentum)?;
                if nesterov && momentum == 0.0 {
                    return Err(refused("nesterov", "needs a momentum above 0".to_owned()));
                }
                not_negative("weight_decay", weight_decay)
            }
            Optimizer::Adam { beta1, beta2, epsilon, weight_decay, .. } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                positive("epsilon", epsilon)?;
                not_negative("weight_decay", weight_decay)
            }
        }
    }
}

/// How the learning rate moves over a run, after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine (Loshchilov and Hutter 2017, SGDR, equation 5, without restarts).
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate at a step, counted from 0, of `total`, of which `warmup` come before the schedule.
    pub(super) fn factor(self, step: u64, total: u64, warmup: u32) -> f32 {
        let warmup = u64::from(warmup);
        if step < warmup {
            return ((step + 1) as f64 / warmup as f64) as f32;
        }
        let share = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        (match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - share).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos()),
        }) as f32
    }
}

impl Plan {
    /// Which parameters this run moves: those travel.
    pub fn exchange(&self) -> Exchange {
        Exchange { trained: self.trained.clone(), statistics: !self.frozen_statistics, local: self.local.clone() }
    }

    /// Checks every range. The error names the field and what is allowed.
    pub fn validate(&self) -> Result<(), TrainingError> {
        self.objective.validate()?;
        self.optimizer.validate()?;
        not_negative("clip_norm", self.clip_norm)?;
        not_negative("proximal_mu", self.proximal_mu)?;
        if let Selection::Named(patterns) = &self.trained
            && patterns.is_empty()
        {
            return Err(refused("trained", "names no parameters; give at least one pattern".to_owned()));
        }
        self.validate_correction()?;
        if self.epochs == 0 {
            return Err(refused("epochs", "is 0; give at least 1".to_owned()));
        }
        if !(1..=MAX_BATCH_SIZE).contains(&self.batch_size) {
            return Err(refused("batch_size", format!("is {}; give 1 to {MAX_BATCH_SIZE}", self.batch_size)));
        }
        if !(1..=MAX_THREADS).contains(&self.resources.threads) {
            return Err(refused("threads", format!("is {}; give 1 to {MAX_THREADS}", self.resources.threads)));
        }
        Ok(())
    }

    fn validate_correction(&self) -> Result<(), TrainingError> {
        let Some(correction) = &self.correction else { return Ok(()) };
        match self.optimizer {
            Optimizer::Sgd { momentum: 0.0, .. } => {}
            Optimizer::Sgd { momentum, .. } => {
                return Err(refused("momentum", format!("is {momentum}; beside a correction give 0")));
            }
            Optimizer::Adam { .. } => return Err(refused("optimizer", "must be SGD beside a correction".to_owned())),
        }
        if self.schedule != Schedule::Constant || self.warmup_steps > 0 {
            return Err(refused("schedule", "must be constant, without warm-up, beside a correction".to_owned()));
        }
        if self.clip_norm != 0.0 {
            return Err(refused("clip_norm", format!("is {}; beside a correction give 0", self.clip_norm)));
        }
        if let Some(index) = correction.iter().position(|value| !value.is_finite()) {
            return Err(refused("correction", format!("is not finite at value {index}; give finite numbers")));
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
        Plan { optimizer: Optimizer::sgd(0.1, 0.9, 0.0), ..Plan::default() }
    }

    fn threads(threads: usize) -> Resources {
        Resources { threads, ..Resources::default() }
    }

    fn sgd(learning_rate: f32, momentum: f32, weight_decay: f32) -> Plan {
        Plan { optimizer: Optimizer::sgd(learning_rate, momentum, weight_decay), ..plan() }
    }

    fn adam(beta1: f32, beta2: f32, epsilon: f32) -> Plan {
        let optimizer =
            Optimizer::Adam { learning_rate: 0.1, beta1, beta2, epsilon, weight_decay: 0.0, decoupled: false };
        Plan { optimizer, ..plan() }
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
            ("optimizer", Plan { correction: Some([0.0].into()), ..adam(0.9, 0.999, 1e-8) }),
            ("schedule", Plan { correction: Some([0.0].into()), warmup_steps: 1, ..sgd(0.1, 0.0, 0.0) }),
            ("clip_norm", Plan { correction: Some([0.0].into()), clip_norm: 1.0, ..sgd(0.1, 0.0, 0.0) }),
            ("clip_norm", Plan { clip_norm: f32::NAN, ..plan() }),
            ("beta1", adam(1.0, 0.999, 1e-8)),
            ("beta2", adam(0.9, -0.1, 1e-8)),
            ("epsilon", adam(0.9, 0.999, 0.0)),
            ("trained", Plan { trained: Selection::Named([].into()), ..plan() }),
            ("huber_delta", Plan { objective: Loss::Huber { delta: -1.0 }.into(), ..plan() }),
            ("epochs", Plan { epochs: 0, ..plan() }),
            ("batch_size", Plan { batch_size: 0, ..plan() }),
            ("batch_size", Plan { batch_size: MAX_BATCH_SIZE + 1, ..plan() }),
            ("threads", Plan { resources: threads(0), ..plan() }),
            ("threads", Plan { resources: threads(MAX_THREADS + 1), ..plan() }),
        ];
        for (expected, plan) in cases {
            let error = plan.validate().expect_err(expected);
            assert!(matches!(error, TrainingError::Plan { field, .. } if field == expected), "{error}");
        }
    }

    #[test]
    fn schedules_end_near_zero_and_begin_with_their_warm_up() {
        assert_eq!(Schedule::Constant.factor(7, 10, 0), 1.0);
        assert_eq!(Schedule::Linear.factor(5, 10, 0), 0.5);
        assert!((Schedule::Cosine.factor(5, 10, 0) - 0.5).abs() < 1e-6);
        assert_eq!((0..4).map(|step| Schedule::Linear.factor(step, 8, 4)).collect::<Vec<_>>(), [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(Schedule::Linear.factor(4, 8, 4), 1.0);
        assert!(Schedule::Cosine.factor(u64::MAX, 8, 4) < 1e-6);
    }
}
