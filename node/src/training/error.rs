//! What can stop a training run, said so that the reader can act on it.
//! Errors of the model file itself come from `fedge_models` and are passed on.

use fedge_models::ModelError;

/// Why a model could not be trained, evaluated or differentiated. The caller's model is never changed by a failed run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A number in the plan is out of its range.
    #[error("training plan: {field} {problem}")]
    Plan {
        /// The plan's field.
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The samples do not fit the model, or are no numbers.
    #[error("training data: {problem}")]
    Data {
        /// What is wrong, at which sample (counted from 1), and what to do.
        problem: String,
    },
    /// A node of the graph that the trainer cannot run.
    #[error("node {node:?} ({operator}) cannot be trained: {problem}")]
    Node {
        /// The node's name, or its first output where it has none.
        node: String,
        /// The node's ONNX operator.
        operator: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The graph as a whole does not fit training.
    #[error("the graph cannot be trained: it {problem}")]
    Graph {
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model or its weights were refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The loss or the weights stopped being finite numbers.
    #[error("training diverged at step {step} (epoch {epoch}): {what} is not finite; lower the learning rate")]
    Diverged {
        /// The step, counted from 1 over the whole run.
        step: u64,
        /// The epoch, counted from 1.
        epoch: u32,
        /// What is not finite.
        what: &'static str,
    },
    /// The model answers with infinities or NaN.
    #[error(
        "the model's output for sample {sample} is not finite; its weights are unusable, publish an earlier version"
    )]
    NotFinite {
        /// The sample, counted from 1.
        sample: usize,
    },
    /// The caller asked to stop.
    #[error("training was cancelled after {steps} steps")]
    Cancelled {
        /// Steps that were finished; their result is dropped.
        steps: u64,
    },
    /// The training threads could not be started.
    #[error("cannot start {threads} training threads: {problem}; ask for fewer")]
    Pool {
        /// Threads that the plan asked for.
        threads: usize,
        /// The operating system's answer.
        problem: String,
    },
    /// What the run was to compute on is not there.
    #[error("training cannot run on the gpu: {problem}")]
    Device {
        /// Why not, and what to do.
        problem: String,
    },
    /// The device's answer to a copy of its numbers.
    #[error("the training device failed: {problem}")]
    Backend {
        /// What the backend says.
        problem: String,
    },
    /// A bug: the numerical backend panicked. The process goes on.
    #[error("training failed inside the numerical backend: {message}; please report this with the model file")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl TrainingError {
    pub(crate) fn data(problem: impl Into<String>) -> TrainingError {
        TrainingError::Data { problem: problem.into() }
    }

    pub(super) fn graph(problem: impl Into<String>) -> TrainingError {
        TrainingError::Graph { problem: problem.into() }
    }
}
