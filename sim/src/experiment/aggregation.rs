//! The one place where an experiment meets the coordinator's arithmetic: updates are checked, folded and become a version.
//! What counts is decided in `rounds::step`; nothing is computed here that `aggregate` does not compute.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::{Scales, Sums};
use fedge_coordinator::aggregate::{AggregationError, Close};
use fedge_coordinator::rounds::fold::{self, Form, Payload};
use fedge_coordinator::rounds::running::{UploadTerms, facts};
use fedge_coordinator::rounds::state::{
    AssignmentId, Phase, ServerState, TaskState, TrainedUpdate, VersionRef, Work, WorkStatus,
};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_coordinator::rounds::upload;
use fedge_models::{Digest, Model, ModelError, Weights};

/// Values that are closed at a time.
const PIECE: usize = 1 << 17;

/// A version in memory.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) id: VersionRef,
    pub(super) model: Model,
    /// The values that travel in the task.
    pub(super) travelling: Weights,
    scales: Arc<Scales>,
    /// What the strategy keeps beside it: its arrays, and how the coordinator names them.
    pub(super) arrays: Vec<Vec<f32>>,
    pub(super) server: Option<ServerState>,
}

/// Why no version came of a round.
#[derive(Debug, thiserror::Error)]
pub(super) enum MintError {
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
    #[error("the new weights do not make a model: {0}")]
    Model(#[from] ModelError),
    #[error("{0}")]
    Fold(String),
}

impl Version {
    /// The model that an experiment begins with.
    ///
    /// # Errors
    /// [`ModelError`] where the task trains nothing of it.
    pub(super) fn first(model: Model, task: &TaskSpec) -> Result<Arc<Version>, ModelError> {
        let travels = Arc::new(model.layout().exchanging(&task.training.exchange())?);
        let len = travels.exchanged_len();
        let arrays = task.strategy.strategy().state().iter().map(|array| vec![array.initial; len]).collect();
        let mut values = model.weights().into_values();
        model.layout().gather(&travels, &mut values);
        let travelling = Weights::new(travels, values)?;
        Ok(Version::of(1, model, travelling, arrays, None))
    }

    fn of(
        number: u64,
        model: Model,
        travelling: Weights,
        arrays: Vec<Vec<f32>>,
        server: Option<ServerState>,
    ) -> Arc<Version> {
        let id = VersionRef { number, digest: model.digest() };
        let scales = Arc::new(Scales::for_base(&travelling));
        Arc::new(Version { id, model, travelling, scales, arrays, server })
    }

    /// Lengths of the tensors that travel.
    pub(super) fn tensors(&self) -> Arc<[usize]> {
        self.travelling.layout().exchanged().map(|(_, range)| range.len()).collect()
    }
}

/// The sums of one round.
pub(super) struct Round {
    task: Arc<TaskSpec>,
    form: Form,
    sums: Option<Arc<Sums>>,
    /// Why the sums are of no use, if a fold failed.
    broken: Option<String>,
}

impl Round {
    /// Empty sums.
    pub(super) fn new(task: Arc<TaskSpec>, first: &Version) -> Round {
        let form = Form { coding: task.updates.coding(), tensors: first.tensors() };
        Round { task, form, sums: None, broken: None }
    }

    /// Empties the sums.
    pub(super) fn forget(&mut self) {
        (self.sums, self.broken) = (None, None);
    }

    /// What the coordinator says to an update of this assignment: its squared norm, or a sentence why it is refused.
    pub(super) fn check(
        &self,
        newest: &Version,
        work: &Work,
        update: &TrainedUpdate,
        payload: &Payload,
    ) -> Result<f64, String> {
        let terms = UploadTerms {
            task_id: String::new(),
            spec: self.task.clone(),
            base: work.base.digest,
            staleness: newest.id.number.saturating_sub(work.base.number),
            layout: newest.model.layout().digest(),
            form: self.form.clone(),
            scales: newest.scales.clone(),
        };
        upload::check_values(payload, update, &terms).map_err(|error| format!("its update was refused: {error}"))
    }

    /// Folds a committed update of the round in. False: it belongs to a later round.
    pub(super) fn fold(
        &mut self,
        newest: &Version,
        state: &TaskState,
        assignment: AssignmentId,
        payload: &Payload,
    ) -> bool {
        let Some((work, update)) = trained(state).find(|(id, ..)| *id == assignment).map(|(_, w, u)| (w, u)) else {
            return false;
        };
        let count = self.task.strategy.strategy().sums();
        let sums = self.sums.get_or_insert_with(|| Arc::new(Sums::new(newest.scales.clone(), count)));
        let contribution = self.task.strategy.contribution(&facts(&self.task, state, work, update));
        let folded = match contribution {
            Ok(contribution) => {
                fold::fold(payload, &self.form, sums, &contribution, None).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        self.broken = self.broken.take().or(folded.err());
        true
    }

    /// The version that the round's updates become.
    pub(super) fn mint(&mut self, base: &Version, state: &TaskState) -> Result<Arc<Version>, MintError> {
        if let Some(problem) = self.broken.take() {
            return Err(MintError::Fold(problem));
        }
        let Phase::Aggregating { population, .. } = state.phase else { return Err(AggregationError::Empty.into()) };
        let sums = self.sums.take().ok_or(AggregationError::Empty)?;
        // Always in the same order, as the coordinator has it: by node.
        let mut updates: Vec<_> = trained(state).collect();
        updates.sort_by(|a, b| (&a.1.node, a.0).cmp(&(&b.1.node, b.0)));
        let facts: Vec<_> =
            updates.into_iter().map(|(_, work, update)| facts(&self.task, state, work, update)).collect();
        let close = Close::new(&self.task.strategy, sums, &facts, population)?;
        let (old, mut new) = (base.travelling.values(), Vec::with_capacity(base.travelling.values().len()));
        let mut arrays = vec![Vec::with_capacity(old.len()); base.arrays.len()];
        for piece in old.chunks(PIECE) {
            let start = new.len();
            let part = |array: &Vec<f32>| array.get(start..start + piece.len()).unwrap_or_default().to_vec();
            let mut parts: Vec<Vec<f32>> = base.arrays.iter().map(part).collect();
            new.extend(close.piece(start, piece, &mut parts)?);
            arrays.iter_mut().zip(parts).for_each(|(array, part)| array.extend(part));
        }
        let layout = base.model.layout();
        let mut values = base.model.weights().into_values();
        layout.scatter(base.travelling.layout(), &new, &mut values);
        let model = base.model.with_weights(&Weights::new(layout.clone(), values)?)?;
        let travelling = Weights::new(base.travelling.layout().clone(), new)?;
        let server = named(&arrays);
        Ok(Version::of(base.id.number + 1, model, travelling, arrays, server))
    }
}

/// The committed updates of the round that is under way.
fn trained(state: &TaskState) -> impl Iterator<Item = (AssignmentId, &Work, &TrainedUpdate)> {
    state.cohort().into_iter().flatten().filter_map(|(id, work)| match &work.status {
        WorkStatus::Trained(update) => Some((*id, work, update)),
        _ => None,
    })
}

/// How the coordinator names the strategy's arrays: by the digest of the file that they would be.
fn named(arrays: &[Vec<f32>]) -> Option<ServerState> {
    if arrays.is_empty() {
        return None;
    }
    let bytes: Vec<u8> = arrays.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    Some(ServerState { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 })
}
