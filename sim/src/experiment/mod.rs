//! Experiments: one task file, thousands of virtual nodes that really train, and the coordinator's own decisions and
//! arithmetic, on a virtual clock. Nothing here decides about rounds; no file but data and splits is touched.
//!
//! The same experiment gives the same bits, whatever the number of threads: every random number comes from a stream of
//! its own (`random`), every training runs on one thread, and sums are integers.

mod aggregation;
mod crew;
mod driver;
mod fleet;
mod issue;
pub mod population;
mod random;
pub mod report;
pub mod split;
pub mod splits_file;
pub mod systems;
mod tally;
mod work;

use std::sync::atomic::AtomicBool;

use fedge_coordinator::rounds::task::{RoundStart, TaskSpec};
use fedge_models::Model;

pub use self::work::Trainer;
use population::Population;
use report::{News, Round};
use systems::{Systems, SystemsError};

/// Most threads of an experiment.
pub const MAX_THREADS: usize = 1024;

/// Everything that an experiment is made of.
#[derive(Debug)]
pub struct Experiment {
    /// The task, as the coordinator takes it.
    pub task: TaskSpec,
    /// Version 1.
    pub model: Model,
    /// The nodes and their samples.
    pub population: Population,
    /// Their machines and the network.
    pub systems: Systems,
    /// How nodes come to their updates.
    pub trainer: Trainer,
    /// Nodes that evaluate a version on their held-out samples, drawn anew for each; 0 for none.
    pub evaluators: usize,
    /// The test set is asked after every so many rounds, and after the last; at least 1.
    pub test_every: u64,
    /// Seed of the machines and of everything else that the task's own seeds do not decide.
    pub seed: u64,
    /// Trainings at a time, `1..=`[`MAX_THREADS`].
    pub threads: usize,
}

/// How an experiment ended.
#[derive(Debug)]
pub struct Finished {
    /// Every round, and as number 0 the model before the first.
    pub rounds: Vec<Round>,
    /// The newest version.
    pub model: Model,
    /// Whether it was stopped before its last round.
    pub stopped: bool,
}

/// Why an experiment can't run.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// Fewer nodes than a round needs.
    #[error(
        "rounds.min_nodes = {needed}, but {have} of the {nodes} nodes have samples to train on; give more data, fewer or \
         more nodes, or lower it"
    )]
    TooFewNodes {
        /// What the task asks for.
        needed: usize,
        /// Nodes with samples.
        have: usize,
        /// Nodes in all.
        nodes: usize,
    },
    /// Rounds that nothing would start.
    #[error("rounds.start = \"drift\", but nothing drifts in a simulation; simulate the task with \"ready\"")]
    NoDrift,
    /// Layers that no node of a simulation would keep.
    #[error(
        "training.local = {0:?}, but layers that stay on their node are not simulated; simulate the task without them"
    )]
    Local(Vec<String>),
    /// A machine's number.
    #[error(transparent)]
    Systems(#[from] SystemsError),
    /// The model has what training lacks.
    #[error("the model can't be trained: {0}")]
    Untrainable(String),
    /// The training plan.
    #[error("{0}")]
    Plan(String),
    /// Threads out of range.
    #[error("{0} threads; give 1 to 1024")]
    Threads(usize),
    /// The test set can't be asked.
    #[error("the test set: {0}")]
    Test(String),
    /// A node that trains without samples.
    #[error("nodes that train need data; only fixed vectors do without")]
    NoData,
}

impl Experiment {
    /// Runs all rounds, or those until `stop` is set. `observer` is told of each round when it ends.
    ///
    /// # Errors
    /// [`ExperimentError`]; what happens to a node in a round is no error but in the round's figures.
    pub fn run(&self, observer: &mut dyn FnMut(News<'_>), stop: &AtomicBool) -> Result<Finished, ExperimentError> {
        self.check()?;
        std::thread::scope(|scope| {
            let crew = crew::Crew::start(scope, self.threads, work::work);
            driver::Driver::new(self, crew, observer, stop)?.run()
        })
    }

    fn check(&self) -> Result<(), ExperimentError> {
        self.systems.check()?;
        if !(1..=MAX_THREADS).contains(&self.threads) {
            return Err(ExperimentError::Threads(self.threads));
        }
        if self.task.rounds.start == RoundStart::Drift {
            return Err(ExperimentError::NoDrift);
        }
        if !self.task.training.local.is_empty() {
            return Err(ExperimentError::Local(self.task.training.local.clone()));
        }
        if self.population.trainable() < self.task.rounds.min_nodes {
            return Err(self.too_few_nodes());
        }
        if self.trainer == Trainer::Real {
            if self.population.data.is_none() {
                return Err(ExperimentError::NoData);
            }
            if let Some(reason) = self.model.untrainable().first() {
                return Err(ExperimentError::Untrainable(reason.to_string()));
            }
        }
        Ok(())
    }

    fn too_few_nodes(&self) -> ExperimentError {
        ExperimentError::TooFewNodes {
            needed: self.task.rounds.min_nodes,
            have: self.population.trainable(),
            nodes: self.population.nodes.len(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "experiment_tests.rs"]
mod tests;
