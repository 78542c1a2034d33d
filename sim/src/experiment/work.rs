//! What a virtual node does: the node's own training, encoding and evaluation, or a vector that stands for training.
//! Pure computation; when it happens and what becomes of it is `driver`'s matter.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fedge_coordinator::rounds::convert::training_plan;
use fedge_coordinator::rounds::fold::Payload;
use fedge_coordinator::rounds::state::{AssignmentId, TaskState, TrainedUpdate};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::{Digest, Model, ParameterClass};
use fedge_node::federation::convert::{self, Terms};
use fedge_node::federation::learner::{Run, Trained};
use fedge_node::federation::outbox::Metrics;
use fedge_node::federation::{encoding, local_training};
use fedge_node::training::{self, Dataset, Evaluation, Plan, Resources};
use fedge_proto::update::Encoding;
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
    Train(Box<Training>),
    Evaluate { model: Model, data: Dataset },
}

/// One node's training.
#[derive(Debug)]
pub(super) struct Training {
    pub(super) assignment: AssignmentId,
    pub(super) base: Arc<Version>,
    pub(super) source: Source,
    pub(super) plan: Plan,
    pub(super) terms: Terms,
    /// Whether the plan's epochs are fewer than the task's.
    pub(super) partial: bool,
    /// What the node's last counted update left behind.
    pub(super) memory: Option<Arc<Leftover>>,
}

/// What is trained with.
#[derive(Debug)]
pub(super) enum Source {
    Samples(Dataset),
    Vector { seed: u64, node: u64, examples: u64 },
}

/// What an update leaves behind on its node, once it counts. One value an exchanged parameter.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// What the encoding lost.
    residual: Option<Vec<f32>>,
    /// SCAFFOLD's control variate of the node.
    control: Option<Vec<f32>>,
}

/// What came of a job; problems are sentences, as a node says them to the coordinator.
#[derive(Debug)]
pub(super) enum Done {
    Trained(Result<Box<Update>, String>),
    Evaluated(Result<Evaluation, String>),
}

/// An update as it arrives: its bytes, what the coordinator records of it, and what stays on the node.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) payload: Payload,
    pub(super) facts: TrainedUpdate,
    pub(super) leftover: Option<Leftover>,
}

/// Works off a job.
pub(super) fn work(job: Job, unwanted: &Arc<AtomicBool>) -> Done {
    match job {
        Job::Train(job) => Done::Trained(train(*job, unwanted)),
        Job::Evaluate { model, data } => {
            Done::Evaluated(training::evaluate(&model, &data).map_err(|error| error.to_string()))
        }
    }
}

/// The plan of an assignment and what is sent, by the very translations that they take between coordinator and node;
/// with `epochs` of the plan's.
///
/// # Errors
/// A sentence that names the field.
pub(super) fn plan(
    task: &TaskSpec,
    state: &TaskState,
    assignment: AssignmentId,
    epochs: u32,
) -> Result<(Plan, Terms), String> {
    let wire = training_plan(task, state);
    let terms = convert::terms(&wire)?;
    let plan = convert::plan(wire, &assignment.0, Resources::default())?;
    Ok((Plan { epochs, ..plan }, terms))
}

fn train(job: Training, unwanted: &Arc<AtomicBool>) -> Result<Box<Update>, String> {
    let Training { assignment, base, source, mut plan, terms, partial, memory } = job;
    plan.correction = correction(&terms, &base, memory.as_deref());
    let mut trained = match source {
        Source::Samples(data) => {
            let run = Run {
                plan: plan.clone(),
                loss_base: terms.loss_base,
                own: None,
                until: None,
                cancel: unwanted.clone(),
            };
            local_training::train(
                base.model.clone(),
                &base.model.bytes()[..],
                &data,
                &run,
                &local_training::Guard::default(),
            )?
        }
        Source::Vector { seed, node, examples } => fixed(&base, seed, node, examples, terms.loss_base),
    };
    let lossy = terms.coding.encoding != Encoding::F32;
    if let Some(lost) = memory.as_ref().and_then(|memory| memory.residual.as_ref()).filter(|_| lossy) {
        trained.delta.iter_mut().zip(lost).for_each(|(value, lost)| *value += lost);
    }
    let mut payload = Vec::new();
    let id = convert::AssignmentId(assignment.0);
    let control = encoding::encode(&mut trained, &plan, &terms, id, &mut payload).map_err(|e| e.to_string())?;
    let metrics = trained.metrics;
    let facts = TrainedUpdate {
        examples: trained.examples.min(MAX_EXAMPLES),
        sha256: *Digest::of(&payload).as_bytes(),
        bytes: payload.len() as u64,
        steps: metrics.steps,
        loss_first: metrics.loss_first,
        loss_last: metrics.loss_last,
        // Virtual time says how long it took; the wall clock would make no two runs alike.
        duration_ms: 0,
        loss_base: metrics.loss_base,
        partial,
        squared_norm: 0.0,
    };
    let leftover = Leftover { residual: lossy.then_some(trained.delta), control };
    let leftover = (leftover.residual.is_some() || leftover.control.is_some()).then_some(leftover);
    Ok(Box::new(Update { payload: Payload::Row(payload.into()), facts, leftover }))
}

/// SCAFFOLD's c − c_i; none where both are zero or the task has none.
fn correction(terms: &Terms, base: &Version, memory: Option<&Leftover>) -> Option<Arc<[f32]>> {
    terms.control?;
    let own = memory.and_then(|memory| memory.control.as_ref());
    let server = base.arrays.first().filter(|_| base.server.is_some());
    match (server, own) {
        (None, None) => None,
        (Some(server), None) => Some(server.as_slice().into()),
        (None, Some(own)) => Some(own.iter().map(|own| -own).collect()),
        (Some(server), Some(own)) => Some(server.iter().zip(own).map(|(server, own)| server - own).collect()),
    }
}

/// What a training that gives a fixed vector gives.
fn fixed(base: &Version, seed: u64, node: u64, examples: u64, loss_base: bool) -> Trained {
    let exchanged = || base.travelling.layout().exchanged();
    let statistics = exchanged().filter(|(spec, _)| spec.class == ParameterClass::Statistic);
    let statistics: Vec<Range<usize>> = statistics.map(|(_, range)| range).collect();
    Trained {
        delta: vector(seed, node, base.travelling.values().len()),
        tensors: base.tensors(),
        statistics,
        examples,
        own: None,
        metrics: Metrics {
            steps: 1,
            loss_first: 0.0,
            loss_last: 0.0,
            loss_base: loss_base.then_some(1.0),
            partial: false,
            duration_ms: 0,
        },
    }
}

/// A node's fixed vector: uniform in ±0.001.
fn vector(seed: u64, node: u64, len: usize) -> Vec<f32> {
    let mut random = stream(seed, Purpose::Vector, node, 0);
    let scale = VECTOR_SIZE / (1u32 << 31) as f32;
    (0..len).map(|_| (random.next_u32() as i32) as f32 * scale).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use fedge_coordinator::rounds::state::VersionRef;

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
        let task = "model = \"m\"\n[strategy]\nname = \"fedprox\"\nmu = 0.5\n[training]\nepochs = 5\n";
        let task = TaskSpec::parse(task).unwrap();
        let state = TaskState::new("m-1".into(), VersionRef { number: 1, digest: Digest::of(b"") });
        let (first, terms) = plan(&task, &state, AssignmentId([1; 16]), 2).unwrap();
        let (second, _) = plan(&task, &state, AssignmentId([2; 16]), 2).unwrap();
        assert_eq!((first.epochs, first.proximal_mu, first.resources.threads), (2, 0.5, 1));
        assert!(terms.accept_partial && !terms.loss_base);
        assert_ne!(first.seed, second.seed);
    }
}
