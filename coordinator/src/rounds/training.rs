//! A task's training plan, as its file describes it: loss, optimizer, schedule, what is trained; ranges and defaults.
//! What a strategy asks of it is checked in `task`; how nodes carry it out is theirs.

use std::fmt;

use fedge_models::{Exchange, Selection};
use serde::{Deserialize, Serialize};

use super::task::{TaskError, require};

/// Most characters of a list of patterns.
const MAX_PATTERNS: usize = 1 << 14;

/// Local training on each node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingPlan {
    /// Passes over the local data, 1..=1000.
    pub epochs: u32,
    /// Samples a step, 1..=65536.
    pub batch_size: u32,
    /// Loss.
    pub loss: Loss,
    /// Where Huber's loss turns from a square into a line, above 0.
    pub huber_delta: f32,
    /// Cross-entropy: share of a target that is spread over all classes, 0 <= s < 1.
    pub label_smoothing: f32,
    /// Cross-entropy: a weight for each class, 0 or more; empty: all count the same.
    pub class_weights: Vec<f32>,
    /// How a gradient becomes a step.
    pub optimizer: OptimizerName,
    /// Step size, above 0 and at most 100.
    pub learning_rate: f32,
    /// SGD's momentum, 0 <= m < 1.
    pub momentum: f32,
    /// SGD: Nesterov's momentum.
    pub nesterov: bool,
    /// Adam's decay of the first moment, 0 <= b < 1.
    pub beta1: f32,
    /// Adam's decay of the second moment, 0 <= b < 1.
    pub beta2: f32,
    /// Adam's epsilon, above 0, at most 1.
    pub epsilon: f32,
    /// L2 penalty added to the gradient (AdamW: taken off the weights), 0..=1.
    pub weight_decay: f32,
    /// How the step size moves over a node's run.
    pub schedule: Schedule,
    /// Steps over which the step size grows to its whole first, up to 1000000.
    pub warmup_steps: u32,
    /// Largest L2 norm of a batch's gradient; 0: any.
    pub clip_norm: f32,
    /// Which parameters are trained.
    pub trained: Trained,
    /// Patterns of what is trained on each node and stays there.
    pub local: Vec<String>,
    /// BatchNormalization uses its running statistics and leaves them.
    pub frozen_statistics: bool,
    /// Pictures are mirrored, left to right, at random.
    pub flip: bool,
    /// Pictures are shifted at random by up to so many pixels, 0..=256.
    pub crop: u32,
    /// FedProx's mu (Li et al. 2020, equation 2); 0 switches the proximal term off.
    pub proximal_mu: f32,
    /// Seed of the nodes' shuffling; each node and round mixes its own in.
    pub seed: u64,
}

impl Default for TrainingPlan {
    fn default() -> Self {
        TrainingPlan {
            epochs: 1,
            batch_size: 32,
            loss: Loss::CrossEntropy,
            huber_delta: 1.0,
            label_smoothing: 0.0,
            class_weights: Vec::new(),
            optimizer: OptimizerName::Sgd,
            learning_rate: 0.01,
            momentum: 0.9,
            nesterov: false,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: 0.0,
            trained: Trained::Group(Group::All),
            local: Vec::new(),
            frozen_statistics: false,
            flip: false,
            crop: 0,
            proximal_mu: 0.0,
            seed: 0,
        }
    }
}

/// Training losses, means over the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Softmax cross-entropy from logits.
    CrossEntropy,
    /// Sigmoid cross-entropy of each output on its own, from logits.
    BinaryCrossEntropy,
    /// Squared difference.
    MeanSquaredError,
    /// Absolute difference.
    MeanAbsoluteError,
    /// Squared near 0, absolute beyond (Huber 1964).
    Huber,
}

/// Optimizers of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Stochastic gradient descent.
    Sgd,
    /// Kingma and Ba 2015.
    Adam,
    /// Loshchilov and Hutter 2019.
    Adamw,
}

impl fmt::Display for OptimizerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OptimizerName::Sgd => "sgd",
            OptimizerName::Adam => "adam",
            OptimizerName::Adamw => "adamw",
        })
    }
}

/// How a step size moves over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// To 0 in a straight line.
    Linear,
    /// To 0 along half a cosine.
    Cosine,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Schedule::Constant => "constant",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        })
    }
}

/// Which parameters are trained; the others keep their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Trained {
    /// A group that has a name.
    Group(Group),
    /// Those whose name fits one of these patterns of `*` and `?`.
    Patterns(Vec<String>),
}

/// Groups of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Each of them.
    All,
    /// Those of at most one axis.
    BiasesAndNorms,
}

impl TrainingPlan {
    /// Which parameters travel: what is trained, and the statistics that move with it.
    pub fn exchange(&self) -> Exchange {
        let trained = match &self.trained {
            Trained::Group(Group::All) => Selection::All,
            Trained::Group(Group::BiasesAndNorms) => Selection::BiasesAndNorms,
            Trained::Patterns(patterns) => Selection::Named(patterns.as_slice().into()),
        };
        Exchange { trained, statistics: !self.frozen_statistics, local: self.local.as_slice().into() }
    }

    /// Checks every range.
    pub(super) fn check(&self) -> Result<(), TaskError> {
        let share = |value: f32| (0.0..1.0).contains(&value);
        require("training.epochs", self.epochs, (1..=1000).contains(&self.epochs), "1 to 1000")?;
        require("training.batch_size", self.batch_size, (1..=65_536).contains(&self.batch_size), "1 to 65536")?;
        let rate = self.learning_rate;
        require("training.learning_rate", rate, rate > 0.0 && rate <= 100.0, "above 0, at most 100")?;
        require("training.momentum", self.momentum, share(self.momentum), "0 or more, below 1")?;
        require(
            "training.nesterov",
            self.nesterov,
            !self.nesterov || (self.optimizer == OptimizerName::Sgd && self.momentum > 0.0),
            "false, unless optimizer is \"sgd\" and momentum above 0",
        )?;
        require("training.beta1", self.beta1, share(self.beta1), "0 or more, below 1")?;
        require("training.beta2", self.beta2, share(self.beta2), "0 or more, below 1")?;
        require("training.epsilon", self.epsilon, self.epsilon > 0.0 && self.epsilon <= 1.0, "above 0, at most 1")?;
        require("training.weight_decay", self.weight_decay, (0.0..=1.0).contains(&self.weight_decay), "0 to 1")?;
        require("training.warmup_steps", self.warmup_steps, self.warmup_steps <= 1_000_000, "0 to 1000000")?;
        let clip = self.clip_norm;
        require("training.clip_norm", clip, clip >= 0.0 && clip.is_finite(), "0 (any norm) or more")?;
        require("training.proximal_mu", self.proximal_mu, (0.0..=1000.0).contains(&self.proximal_mu), "0 to 1000")?;
        require("training.crop", self.crop, self.crop <= 256, "0 to 256 pixels")?;
        let sane = |patterns: &[String]| {
            let characters: usize = patterns.iter().map(String::len).sum();
            characters <= MAX_PATTERNS && patterns.iter().all(|pattern| !pattern.is_empty())
        };
        if let Trained::Patterns(patterns) = &self.trained {
            let sane = !patterns.is_empty() && sane(patterns);
            require("training.trained", patterns.len(), sane, "patterns of 1 character or more, 16384 in all")?;
        }
        let local = &self.local;
        require("training.local", local.len(), sane(local), "patterns of 1 character or more, 16384 in all")?;
        self.check_loss()
    }

    fn check_loss(&self) -> Result<(), TaskError> {
        let delta = self.huber_delta;
        require("training.huber_delta", delta, delta > 0.0 && delta.is_finite(), "above 0")?;
        let smoothing = self.label_smoothing;
        let goes = self.loss == Loss::CrossEntropy;
        require("training.label_smoothing", smoothing, (0.0..1.0).contains(&smoothing), "0 or more, below 1")?;
        require("training.label_smoothing", smoothing, goes || smoothing == 0.0, "0 unless loss is \"cross_entropy\"")?;
        let weights = &self.class_weights;
        let shown = || format!("{weights:?}");
        require(
            "training.class_weights",
            shown(),
            goes || weights.is_empty(),
            "empty unless loss is \"cross_entropy\"",
        )?;
        let sane = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().any(|w| *w > 0.0);
        require("training.class_weights", shown(), weights.is_empty() || sane, "numbers of 0 or more, not all 0")?;
        require("training.class_weights", weights.len(), weights.len() <= 65_536, "at most 65536 numbers")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::task::TaskSpec;
    use super::*;

    fn plan(lines: &str) -> Result<TrainingPlan, TaskError> {
        TaskSpec::parse(&format!("model = \"m\"\n[training]\n{lines}\n")).map(|spec| spec.training)
    }

    #[test]
    fn every_option_is_read() {
        let found = plan(
            "optimizer = \"adamw\"\nschedule = \"cosine\"\nwarmup_steps = 10\nclip_norm = 1.0\nloss = \"huber\"\n\
             huber_delta = 0.5\ntrained = [\"fc*\"]\nfrozen_statistics = true\nflip = true\ncrop = 4",
        );
        let found = found.unwrap();
        assert_eq!((found.optimizer, found.schedule), (OptimizerName::Adamw, Schedule::Cosine));
        assert_eq!((found.flip, found.crop), (true, 4));
        assert_eq!(found.trained, Trained::Patterns(vec!["fc*".to_owned()]));
        let found = plan("trained = \"biases_and_norms\"\nclass_weights = [1.0, 2.0]\nlabel_smoothing = 0.1").unwrap();
        assert_eq!(found.trained, Trained::Group(Group::BiasesAndNorms));
        assert_eq!(found.class_weights, [1.0, 2.0]);
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_key() {
        for (line, key) in [
            ("nesterov = true\nmomentum = 0.0", "training.nesterov"),
            ("nesterov = true\noptimizer = \"adam\"", "training.nesterov"),
            ("beta1 = 1.0", "training.beta1"),
            ("beta2 = -0.1", "training.beta2"),
            ("epsilon = 0.0", "training.epsilon"),
            ("warmup_steps = 2000000", "training.warmup_steps"),
            ("clip_norm = inf", "training.clip_norm"),
            ("trained = []", "training.trained"),
            ("crop = 300", "training.crop"),
            ("huber_delta = 0.0", "training.huber_delta"),
            ("label_smoothing = 1.0", "training.label_smoothing"),
            ("label_smoothing = 0.1\nloss = \"huber\"", "training.label_smoothing"),
            ("class_weights = [0.0]", "training.class_weights"),
            ("class_weights = [1.0]\nloss = \"mean_squared_error\"", "training.class_weights"),
        ] {
            let error = plan(line).unwrap_err().to_string();
            assert!(error.starts_with(key), "{line}: {error}");
        }
    }
}
