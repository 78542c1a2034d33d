//! Trains a model by interpreting its ONNX graph on burn: on its CPU backend or, if asked to, on a graphics processor.
//! Pure computation: nothing here knows of rounds, files, networks or clocks; samples come in preprocessed.
//!
//! [`train`] compiles the graph once for the batch size (`graph`, `ops`), then steps: parameters are lifted onto a tape,
//! run forward, and stepped in place from their gradients. A run has a thread pool of its own at low priority; whatever
//! happens inside, even a panic of the backend, is a [`TrainingError`].

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use fedge_models::{Model, Weights};

use backend::{Cpu, Precision};
use parameters::Parameters;

mod augment;
mod backend;
mod compile;
mod convolve;
mod dataset;
mod device;
mod engine;
mod error;
mod evaluator;
mod graph;
mod loss;
mod maximum;
mod node;
mod normalize;
mod number;
mod ops;
mod optimizer;
mod parameters;
mod plan;
mod pool;
mod spare;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
mod trainer;
mod value;

pub use augment::Augmentation;
pub(crate) use dataset::Gathering;
pub use dataset::{Dataset, Targets};
pub use device::Device;
pub use error::TrainingError;
pub use loss::{Loss, Objective};
pub use plan::{MAX_BATCH_SIZE, MAX_THREADS, Optimizer, Plan, Resources, Schedule};

/// Runs work on a device's processor `P`, in a thread pool of its own.
macro_rules! on {
    ($device:expr, $threads:expr, $processor:ident => $work:expr) => {
        match $device {
            Device::Cpu => {
                type $processor = Cpu;
                pool::run($threads, || $work)
            }
            #[cfg(feature = "wgpu")]
            Device::Gpu => {
                type $processor = backend::Gpu;
                Device::Gpu.check()?;
                pool::run($threads, || $work)
            }
            #[cfg(not(feature = "wgpu"))]
            Device::Gpu => Err(TrainingError::Device { problem: device::ABSENT.to_owned() }),
        }
    };
}

/// How far a run is; reported after each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The epoch that is running, counted from 1.
    pub epoch: u32,
    /// Epochs of the whole run.
    pub epochs: u32,
    /// Steps that are finished.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean loss of the step's batch, before the step, in nats.
    pub loss: f32,
}

/// What a finished run gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The trained parameters and the updated BatchNormalization statistics.
    pub weights: Weights,
    /// Examples of one epoch: the weight of this outcome in a mean over nodes, also where training stopped early (Li et
    /// al. 2020, algorithm 2, and FedNova weigh by a node's data, whatever its work).
    pub examples: u64,
    /// Steps that were taken, at least 1.
    pub steps: u64,
    /// Whether training was stopped before the plan's last step.
    pub partial: bool,
    /// Mean loss over the first epoch, or what was trained of it, in nats; each batch's is measured before its step.
    pub loss_first: f32,
    /// Mean loss over the last epoch that was begun, in nats.
    pub loss_last: f32,
    /// How the model answered the held-out samples before the first step and after the last; none where none were given.
    pub held_out: Option<(Evaluation, Evaluation)>,
}

/// What watches a run, and ends it.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called after each step, on a training thread.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Looked at before each step: once it is set, the run ends without an outcome.
    pub cancel: &'a AtomicBool,
    /// Asked before each step, on a training thread, and heeded from the second step on: once it says so, the run ends with
    /// what was trained until then.
    pub enough: &'a (dyn Fn() -> bool + Sync),
    /// Samples that are not trained on, for [`Outcome::held_out`].
    pub held_out: Option<&'a Dataset>,
}

/// How well a model answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Examples that were asked.
    pub examples: u64,
    /// Answers that can be right or wrong: one an example, or one a position or decision; 0 where outputs are numbers.
    pub answers: u64,
    /// Those that are right.
    pub correct: u64,
    /// Mean loss; always finite.
    pub loss: f32,
}

impl Evaluation {
    /// Share of correct answers, `0.0..=1.0`.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.answers.max(1) as f64
    }
}

/// How [`gradients_of`] computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GradientOptions {
    /// What computes.
    pub device: Device,
    /// In double precision, which the CPU alone has.
    pub double: bool,
    /// With BatchNormalization's running statistics in place of the batch's.
    pub frozen_statistics: bool,
}

/// Trains the model on the data, from the model's own weights, and blocks until it is done; call it off the async
/// executor. `progress` is called after each step, on a training thread. `cancel` is looked at before each step.
///
/// BatchNormalization normalizes by the batch and updates its running statistics as PyTorch does; Dropout does nothing.
///
/// # Errors
/// A plan out of range, data that does not fit the model, an operator that training lacks (named with its node), a loss
/// or weight that stops being finite, cancellation, or a failure of the threads or the backend.
pub fn train(
    model: &Model,
    data: &Dataset,
    plan: &Plan,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &AtomicBool,
) -> Result<Outcome, TrainingError> {
    train_watched(model.clone(), data, plan, Watch { progress, cancel, enough: &|| false, held_out: None })
}

/// As [`train`], watched in every way. Whoever gives the only clone of the model spares the memory of two files.
///
/// # Errors
/// As [`train`].
pub fn train_watched(model: Model, data: &Dataset, plan: &Plan, watch: Watch<'_>) -> Result<Outcome, TrainingError> {
    plan.validate()?;
    for data in [data].into_iter().chain(watch.held_out) {
        data.check_input(&model)?;
    }
    on!(plan.resources.device, plan.resources.threads, P => trainer::train::<P>(model, data, plan, watch))
}

/// Asks the model about each sample and compares with the labels by cross-entropy; on one low-priority thread.
///
/// # Errors
/// As [`train`], and where an output is not finite.
pub fn evaluate(model: &Model, data: &Dataset) -> Result<Evaluation, TrainingError> {
    evaluate_by(model, data, &Loss::CrossEntropy.into(), Device::Cpu)
}

/// As [`evaluate`], by any loss and on any device.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_by(
    model: &Model,
    data: &Dataset,
    objective: &Objective,
    device: Device,
) -> Result<Evaluation, TrainingError> {
    objective.validate()?;
    data.check_input(model)?;
    on!(device, 1, P => evaluator::evaluate::<P>(model, data, objective))
}

/// The trainer's own forward pass, in evaluation mode: the shape of the graph's output for all samples, and its numbers.
///
/// # Errors
/// As [`train`].
pub fn outputs(model: &Model, data: &Dataset, device: Device) -> Result<(Vec<usize>, Vec<f32>), TrainingError> {
    data.check_input(model)?;
    on!(device, 1, P => evaluator::outputs::<P>(model, data))
}

/// Loss over all the data as one batch, and its gradient with respect to each trainable parameter by name, row-major.
/// BatchNormalization normalizes by the batch. A parameter that the output does not depend on has a gradient of zeros.
///
/// # Errors
/// As [`train`].
pub fn gradients(
    model: &Model,
    data: &Dataset,
    loss: Loss,
) -> Result<(f32, BTreeMap<String, Vec<f32>>), TrainingError> {
    let (loss, gradients) = gradients_of(model, data, &loss.into(), GradientOptions::default())?;
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    Ok((loss as f32, gradients.into_iter().map(|(name, values)| (name, single(values))).collect()))
}

/// As [`gradients`], with every option.
///
/// # Errors
/// As [`train`].
pub fn gradients_of(
    model: &Model,
    data: &Dataset,
    objective: &Objective,
    options: GradientOptions,
) -> Result<(f64, BTreeMap<String, Vec<f64>>), TrainingError> {
    objective.validate()?;
    data.check_input(model)?;
    let mode = if options.frozen_statistics { graph::Mode::Frozen } else { graph::Mode::Train };
    if options.double {
        if options.device != Device::Cpu {
            let problem = "it has no double precision; leave the double out, or use the cpu".to_owned();
            return Err(TrainingError::Device { problem });
        }
        let values: Vec<f64> = model.weights().values().iter().copied().map(f64::from).collect();
        return pool::run(1, || {
            let parameters = Parameters::<Cpu>::from_f64(model.layout(), &values)?;
            trainer::gradients_at(model, &parameters, data, objective, mode, Precision::Double)
        });
    }
    on!(options.device, 1, P => {
        let parameters = Parameters::<P>::from_model(model)?;
        trainer::gradients_at(model, &parameters, data, objective, mode, Precision::Single)
    })
}
