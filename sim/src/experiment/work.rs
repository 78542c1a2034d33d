//! What a virtual node does: the node's own training and evaluation on its rows, or a vector that stands for it.
//! Pure computation; when it happens and what becomes of it is `driver`'s matter.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fedge_coordinator::rounds::convert::training_plan;
use fedge_coordinator::rounds::state::{AssignmentId, TrainedUpdate};
use fedge_coordinator::rounds::task::TrainingPlan;
use fedge_models::{Digest, Model};
use fedge_node::federation::convert;
use fedge_node::training::{self, Dataset, Evaluation, Plan};
use rand::Rng;

use super::aggregation::Version;
use super::random::{Purpose, stream};

/// Largest weight of an update that the coordinator takes.
const MAX_EXAMPLES: u64 = fedge_coordinator::aggregate::fixed_point::MAX_EXAMPLES;
/// Largest value of a fixed vector.
const VECTOR_SIZE: f32 = 1e-3;

/// How a node comes to its update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainer {
    /// It trains, as every node does.
    Real,
    /// It sends a vector of its own, the same in every round: what is left is the work of the engine.
    FixedVector,
}

/// A piece of work for a thread.
#[derive(Debug)]
pub(super) enum Job {
    Train(Training),
    Evaluate { model: Model, data: Dataset },
}

/// One node's training.
#[derive(Debug)]
pub(super) struct Training {
    pub(super) base: Arc<Version>,
    pub(super) kind: Kind,
    /// Weight of the update.
    pub(super) examples: u64,
}

/// What is trained with.
#[derive(Debug)]
pub(super) enum Kind {
    Samples { data: Dataset, plan: Plan },
    Vector { seed: u64, node: u64 },
}

/// What came of a job; problems are sentences, as a node says them to the coordinator.
#[derive(Debug)]
pub(super) enum Done {
    Trained(Result<Trained, String>),
    Evaluated(Result<Evaluation, String>),
}

/// An update: its values and what the coordinator records of it.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) delta: Vec<f32>,
    pub(super) update: TrainedUpdate,
}

/// Works off a job.
pub(super) fn work(job: Job, unwanted: &AtomicBool) -> Done {
    match job {
        Job::Train(job) => Done::Trained(train(&job, unwanted)),
        Job::Evaluate { model, data } => {
            Done::Evaluated(training::evaluate(&model, &data).map_err(|error| error.to_string()))
        }
    }
}

/// The plan of an assignment, by the very translations that it takes between coordinator and node; `epochs` of it.
///
/// # Errors
/// A sentence that names the field.
pub(super) fn plan(plan: &TrainingPlan, assignment: AssignmentId, epochs: u32) -> Result<Plan, String> {
    let plan = convert::plan(training_plan(plan), &assignment.0, 1)?;
    Ok(Plan { epochs, ..plan })
}

fn train(job: &Training, unwanted: &AtomicBool) -> Result<Trained, String> {
    let base = job.base.weights.values();
    let (delta, steps, loss_first, loss_last) = match &job.kind {
        Kind::Vector { seed, node } => (vector(*seed, *node, base.len()), 1, 0.0, 0.0),
        Kind::Samples { data, plan } => {
            let outcome = training::train(&job.base.model, data, plan, &|_| {}, unwanted).map_err(|e| e.to_string())?;
            let delta = outcome.weights.values().iter().zip(base).map(|(new, old)| new - old).collect();
            (delta, outcome.steps, outcome.loss_first, outcome.loss_last)
        }
    };
    let payload: Vec<u8> = delta.iter().flat_map(|value| value.to_le_bytes()).collect();
    let update = TrainedUpdate {
        examples: job.examples.min(MAX_EXAMPLES),
        sha256: *Digest::of(&payload).as_bytes(),
        bytes: payload.len() as u64,
        steps,
        loss_first,
        loss_last,
        // Virtual time says how long it took; the wall clock would make no two runs alike.
        duration_ms: 0,
    };
    Ok(Trained { delta, update })
}

/// A node's fixed vector: uniform in ±0.001.
fn vector(seed: u64, node: u64, len: usize) -> Vec<f32> {
    let mut random = stream(seed, Purpose::Vector, node, 0);
    let scale = VECTOR_SIZE / (1u32 << 31) as f32;
    (0..len).map(|_| (random.next_u32() as i32) as f32 * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_vector_of_its_own_and_always_the_same() {
        let first = vector(1, 0, 100);
        assert_eq!(first, vector(1, 0, 100));
        assert_ne!(first, vector(1, 1, 100));
        assert_ne!(first, vector(2, 0, 100));
        assert!(first.iter().all(|value| value.abs() <= VECTOR_SIZE));
        assert!(first.iter().any(|value| *value > 0.0) && first.iter().any(|value| *value < 0.0));
    }

    #[test]
    fn a_plan_is_the_tasks_with_the_assignments_own_shuffle() {
        let task = TrainingPlan { epochs: 5, proximal_mu: 0.5, ..TrainingPlan::default() };
        let first = plan(&task, AssignmentId([1; 16]), 2);
        let second = plan(&task, AssignmentId([2; 16]), 2);
        let (Ok(first), Ok(second)) = (first, second) else { panic!("refused") };
        assert_eq!((first.epochs, first.proximal_mu, first.threads), (2, 0.5, 1));
        assert_ne!(first.seed, second.seed);
    }
}
