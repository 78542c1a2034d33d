//! What the federation asks of the device that takes part: to hold versions, train them, evaluate them, say what it holds.
//! There are two: `edge`, which is a node, and the benchmarks' one, whose training gives a fixed vector.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use fedge_proto::federation::federation_client::FederationClient;
use tonic::transport::Channel;

use super::convert::Version;
use super::memory::Own;
use super::outbox::Metrics;
use crate::status::ServedModel;
use crate::training::{Objective, Plan};

/// A client of the federation service.
pub type Client = FederationClient<Channel>;

/// The device behind a session. Errors are sentences for the coordinator and the log.
#[tonic::async_trait]
pub trait Learner: fmt::Debug + Send + Sync {
    /// What it serves and holds.
    async fn holdings(&self) -> Holdings;

    /// Serves a version from now on; nothing where it does so already.
    ///
    /// # Errors
    /// Why not; what was served before goes on.
    async fn serve(&self, client: &Client, version: &Version, int8_tolerance: f64) -> Result<(), String>;

    /// Gets everything that training needs and gives the training itself, which blocks.
    ///
    /// # Errors
    /// What is missing.
    async fn train(&self, client: &Client, base: &Version, run: Run) -> Result<Job, String>;

    /// Evaluates a version, by this loss, on samples that are never trained on.
    ///
    /// # Errors
    /// Why not.
    async fn evaluate(
        &self,
        client: &Client,
        version: &Version,
        objective: &Objective,
        int8_tolerance: f64,
    ) -> Result<Evaluated, String>;
}

/// A training that is ready to run, off the executor.
pub type Job = Box<dyn FnOnce() -> Result<Trained, String> + Send>;

/// What a device holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holdings {
    /// A lineage each.
    pub models: Vec<ServedModel>,
    /// What is wrong with data files, a sentence each.
    pub data_problems: Vec<String>,
    /// Why it does not train now; empty: it would.
    pub resting: String,
}

/// How to train.
#[derive(Debug, Clone)]
pub struct Run {
    /// The plan, with the correction in it.
    pub plan: Plan,
    /// Whether the base's loss is asked for.
    pub loss_base: bool,
    /// What stayed here of earlier trainings of the task; put into the base before this one.
    pub own: Option<Own>,
    /// When to end with what was trained until then; none: after the plan's last step alone.
    pub until: Option<Instant>,
    /// Set when nobody waits for it any more.
    pub cancel: Arc<AtomicBool>,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// New values less the base's, of the parameters that travel, in the layout's order.
    pub delta: Vec<f32>,
    /// Length of each tensor that travels, in the layout's order.
    pub tensors: Arc<[usize]>,
    /// Values that no gradient moves: BatchNormalization's statistics.
    pub statistics: Vec<Range<usize>>,
    /// Samples trained on, the weight in the average.
    pub examples: u64,
    /// What was trained and stays here.
    pub own: Option<Own>,
    /// What it was like.
    pub metrics: Metrics,
}

/// How well a version answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Samples asked.
    pub examples: u64,
    /// Right answers of the float model.
    pub correct_float: u64,
    /// Right answers as it is served.
    pub correct_served: u64,
    /// Mean loss of the float model.
    pub loss: f32,
    /// "int8" or "float": how it is served.
    pub precision: String,
}
