//! A task as its file describes it: model, strategy, training plan, round plan; checked ranges and defaults.
//! How a task runs is decided in `step`; this file knows no state and no wire type.

use serde::{Deserialize, Serialize};

use fedge_proto::update::{Coding, Encoding};

use super::training::{OptimizerName, Schedule, TrainingPlan};
use crate::aggregate::fixed_point::MAX_COHORT;
use crate::aggregate::strategies::StrategySpec;

/// A task file, TOML. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Lineage to train: the name that the model was published under.
    pub model: String,
    /// How updates become the next global model.
    #[serde(default)]
    pub strategy: StrategySpec,
    /// Round plan.
    #[serde(default)]
    pub rounds: RoundPlan,
    /// How updates travel.
    #[serde(default)]
    pub updates: UpdatePlan,
    /// Training plan of every node.
    #[serde(default)]
    pub training: TrainingPlan,
    /// What nodes do with a new version.
    #[serde(default)]
    pub serving: ServingPlan,
}

/// When a round starts, who takes part and when it closes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundPlan {
    /// Number of rounds, 1..=100000. A failed round counts.
    pub count: u64,
    /// Fewest updates that make a round, 1..=4096.
    pub min_nodes: usize,
    /// Nodes that a round wants updates of, 0 (all that are available) ..=4096. Asynchronous: nodes that train at once.
    pub cohort: usize,
    /// Share of the cohort that is selected on top, 0..=4; the round closes with the first `cohort` updates.
    pub over_selection: f64,
    /// Seconds from selection to the round's close, 1..=604800.
    pub deadline_s: u64,
    /// Federated evaluation after every so many rounds, and after the last; 0: never.
    pub evaluate_every: u64,
    /// Seconds for federated evaluation after aggregation, 1..=604800.
    pub evaluation_deadline_s: u64,
    /// Seed of the selection.
    pub seed: u64,
    /// What a round waits for besides nodes.
    pub start: RoundStart,
    /// `drift`: available nodes that must report it of the newest version, 1..=4096.
    pub drift_nodes: usize,
    /// `drift`: rounds that begin one after the other before the next drift is waited for, 1..=1000.
    pub drift_rounds: u64,
}

/// What a round waits for besides `min_nodes` available nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundStart {
    /// Nothing.
    #[default]
    Ready,
    /// Nodes that report drift: what the newest version is asked, or how sure it is of its answers, has changed there.
    Drift,
}

impl std::fmt::Display for RoundStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RoundStart::Ready => "\"ready\"",
            RoundStart::Drift => "\"drift\"",
        })
    }
}

impl Default for RoundPlan {
    fn default() -> Self {
        RoundPlan {
            count: 10,
            min_nodes: 2,
            cohort: 0,
            over_selection: 0.0,
            deadline_s: 600,
            evaluate_every: 1,
            evaluation_deadline_s: 120,
            seed: 0,
            start: RoundStart::Ready,
            drift_nodes: 1,
            drift_rounds: 3,
        }
    }
}

impl RoundPlan {
    /// Nodes to select when the round wants updates of `cohort`.
    pub fn selected(&self) -> usize {
        self.cohort.saturating_add((self.cohort as f64 * self.over_selection).ceil() as usize).min(MAX_COHORT)
    }
}

/// How updates travel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePlan {
    /// How values are written.
    pub encoding: UpdateEncoding,
    /// Share of the values that `top_k` keeps, above 0, at most 1.
    pub top_k: f32,
    /// Compress with zstd on top.
    pub zstd: bool,
    /// Largest L2 norm of an update's trainable values; a larger update is refused. 0: any.
    pub max_norm: f64,
}

impl Default for UpdatePlan {
    fn default() -> Self {
        UpdatePlan { encoding: UpdateEncoding::F32, top_k: 0.01, zstd: false, max_norm: 0.0 }
    }
}

impl UpdatePlan {
    /// As the wire's room knows it.
    pub fn coding(&self) -> Coding {
        let encoding = match self.encoding {
            UpdateEncoding::F32 => Encoding::F32,
            UpdateEncoding::F16 => Encoding::F16,
            UpdateEncoding::Int8 => Encoding::Int8,
            UpdateEncoding::TopK => Encoding::TopK,
        };
        Coding { encoding, top_k: self.top_k, zstd: self.zstd }
    }
}

/// Encodings of an update's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateEncoding {
    /// As they are.
    F32,
    /// IEEE 754 binary16; what is lost is kept on the node and added to its next update.
    F16,
    /// Stochastically rounded to 8 bits with a scale a block; what is lost is kept on the node.
    Int8,
    /// The largest values alone; the rest is kept on the node.
    TopK,
}

/// How nodes serve the versions that this task mints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServingPlan {
    /// Accuracy on local samples that int8 may lose against float before a node serves float, 0..=1.
    pub int8_tolerance: f32,
}

impl Default for ServingPlan {
    fn default() -> Self {
        ServingPlan { int8_tolerance: 0.02 }
    }
}

/// Why a task file was refused.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TaskError {
    /// Not TOML, a wrong type, a missing or an unknown key.
    #[error("the task file does not parse: {0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("{key} = {value} is out of range: {range}")]
    Range {
        /// The key, dotted.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
}

impl TaskSpec {
    /// Parses and checks a task file.
    ///
    /// # Errors
    /// [`TaskError`] names the key, its value and the allowed range.
    pub fn parse(text: &str) -> Result<TaskSpec, TaskError> {
        let mut spec: TaskSpec = toml::from_str(text).map_err(|e| TaskError::Syntax(e.to_string()))?;
        spec.check()?;
        if let Some(mu) = spec.strategy.client().proximal_mu {
            spec.training.proximal_mu = mu;
        }
        Ok(spec)
    }

    fn check(&self) -> Result<(), TaskError> {
        let (r, t) = (&self.rounds, &self.training);
        require("rounds.count", r.count, (1..=100_000).contains(&r.count), "1 to 100000")?;
        require("rounds.min_nodes", r.min_nodes, (1..=MAX_COHORT).contains(&r.min_nodes), "1 to 4096")?;
        require("rounds.cohort", r.cohort, r.cohort <= MAX_COHORT, "0 (all available nodes) to 4096")?;
        require(
            "rounds.cohort",
            r.cohort,
            r.cohort == 0 || r.cohort >= r.min_nodes,
            "at least rounds.min_nodes, or 0 for all",
        )?;
        require("rounds.over_selection", r.over_selection, (0.0..=4.0).contains(&r.over_selection), "0 to 4")?;
        require(
            "rounds.over_selection",
            r.over_selection,
            r.over_selection == 0.0 || r.cohort > 0,
            "0, unless rounds.cohort says how many updates a round wants",
        )?;
        require("rounds.deadline_s", r.deadline_s, (1..=604_800).contains(&r.deadline_s), "1 to 604800 seconds")?;
        require(
            "rounds.evaluation_deadline_s",
            r.evaluation_deadline_s,
            (1..=604_800).contains(&r.evaluation_deadline_s),
            "1 to 604800 seconds",
        )?;
        require("rounds.drift_nodes", r.drift_nodes, (1..=MAX_COHORT).contains(&r.drift_nodes), "1 to 4096")?;
        require("rounds.drift_rounds", r.drift_rounds, (1..=1000).contains(&r.drift_rounds), "1 to 1000")?;
        let u = &self.updates;
        require("updates.top_k", u.top_k, u.top_k > 0.0 && u.top_k <= 1.0, "above 0, at most 1")?;
        require("updates.max_norm", u.max_norm, u.max_norm >= 0.0 && u.max_norm.is_finite(), "0 (any norm) or more")?;
        t.check()?;
        self.check_strategy()?;
        let tolerance = self.serving.int8_tolerance;
        require("serving.int8_tolerance", tolerance, (0.0..=1.0).contains(&tolerance), "0 to 1")
    }

    /// What the strategy asks of the rest of the file.
    fn check_strategy(&self) -> Result<(), TaskError> {
        let client = self.strategy.client();
        let (r, t) = (&self.rounds, &self.training);
        let mu_is_free = t.proximal_mu == 0.0 || (client.proximal_mu.is_none() && !client.plain_sgd);
        require("training.proximal_mu", t.proximal_mu, mu_is_free, "0 with this strategy")?;
        require("training.momentum", t.momentum, t.momentum == 0.0 || !client.plain_sgd, "0 with this strategy")?;
        if client.fixed_sgd {
            let sgd = t.optimizer == OptimizerName::Sgd && !t.nesterov;
            require("training.optimizer", t.optimizer, sgd, "\"sgd\", without nesterov, with this strategy")?;
            let constant = t.schedule == Schedule::Constant && t.warmup_steps == 0;
            require(
                "training.schedule",
                t.schedule,
                constant,
                "\"constant\", without warmup_steps, with this strategy",
            )?;
            require("training.clip_norm", t.clip_norm, t.clip_norm == 0.0, "0 with this strategy")?;
        }
        if client.control_variates {
            let exact = "f32 with this strategy: control variates follow from what was really trained";
            let encoding = self.updates.coding().encoding;
            require("updates.encoding", encoding, encoding == Encoding::F32, exact)?;
        }
        if client.asynchronous.is_some() {
            let none = "0 with this strategy: it has no rounds to close early";
            require("rounds.over_selection", r.over_selection, r.over_selection == 0.0, none)?;
            let ready = "\"ready\" with this strategy: its nodes train all the time";
            require("rounds.start", r.start, r.start == RoundStart::Ready, ready)?;
        }
        Ok(())
    }
}

/// Refuses a value outside its range.
pub(super) fn require(
    key: &'static str,
    value: impl std::fmt::Display,
    holds: bool,
    range: &'static str,
) -> Result<(), TaskError> {
    if holds { Ok(()) } else { Err(TaskError::Range { key, value: value.to_string(), range }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_task_file_names_its_model_and_takes_the_defaults() {
        let spec = TaskSpec::parse("model = \"digits\"").unwrap();
        assert_eq!(spec.strategy.name(), "fedavg");
        assert_eq!(spec.rounds.count, 10);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = TaskSpec::parse("model = \"digits\"\n[training]\nepoch = 3\n").unwrap_err().to_string();
        assert!(error.contains("epoch"), "{error}");
    }

    #[test]
    fn every_value_out_of_range_is_refused_with_its_key() {
        for (line, key) in [
            ("[rounds]\ncount = 0", "rounds.count"),
            ("[rounds]\nmin_nodes = 5000", "rounds.min_nodes"),
            ("[rounds]\ncohort = 1\nmin_nodes = 2", "rounds.cohort"),
            ("[rounds]\ndeadline_s = 0", "rounds.deadline_s"),
            ("[rounds]\ndrift_nodes = 0", "rounds.drift_nodes"),
            ("[rounds]\ndrift_rounds = 0", "rounds.drift_rounds"),
            ("strategy = \"fedbuff\"\n[rounds]\nstart = \"drift\"", "rounds.start"),
            ("[rounds]\nover_selection = -0.1", "rounds.over_selection"),
            ("[rounds]\nover_selection = 0.5", "rounds.over_selection"),
            ("[updates]\ntop_k = 0.0", "updates.top_k"),
            ("[updates]\nmax_norm = nan", "updates.max_norm"),
            ("[training]\nepochs = 0", "training.epochs"),
            ("[training]\nbatch_size = 0", "training.batch_size"),
            ("[training]\nlearning_rate = nan", "training.learning_rate"),
            ("[training]\nlearning_rate = -0.1", "training.learning_rate"),
            ("[training]\nmomentum = 1.0", "training.momentum"),
            ("[training]\nproximal_mu = -1.0", "training.proximal_mu"),
            ("strategy = \"scaffold\"\n[training]\nmomentum = 0.0\noptimizer = \"adam\"", "training.optimizer"),
            ("strategy = \"fednova\"\n[training]\nschedule = \"cosine\"", "training.schedule"),
            ("strategy = \"scaffold\"\n[training]\nmomentum = 0.0\nclip_norm = 1.0", "training.clip_norm"),
            ("[serving]\nint8_tolerance = 2.0", "serving.int8_tolerance"),
        ] {
            let error = TaskSpec::parse(&format!("model = \"m\"\n{line}\n")).unwrap_err();
            assert!(error.to_string().starts_with(key), "{line}: {error}");
        }
    }

    #[test]
    fn the_strategy_is_a_name_or_a_table_and_its_mu_is_the_training_plans() {
        let parse = |text: &str| TaskSpec::parse(&format!("model = \"m\"\n{text}\n"));
        assert_eq!(parse("strategy = \"fednova\"").unwrap().strategy.name(), "fednova");
        let spec = parse("[strategy]\nname = \"fedprox\"\nmu = 0.5").unwrap();
        assert_eq!(spec.training.proximal_mu, 0.5);
        let error = parse("strategy = \"fedprox\"\n[training]\nproximal_mu = 0.1").unwrap_err();
        assert!(error.to_string().starts_with("training.proximal_mu"), "{error}");
        let error = parse("[strategy]\nname = \"fedprox\"\nmu = -1.0").unwrap_err();
        assert!(error.to_string().contains("strategy.mu"), "{error}");
        let error = parse("strategy = \"scaffold\"").unwrap_err();
        assert!(error.to_string().starts_with("training.momentum"), "{error}");
    }
}
