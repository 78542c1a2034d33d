//! A running task in memory: its state, its base model and the sum of the updates that were accepted so far.
//! Everything here can be built again from the store; the order of persisting and acting is `driver`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fedge_models::{Digest, Manifest, Package, Weights};
use tokio::task::JoinHandle;

use super::state::{AssignmentId, Phase, TaskState, TrainedUpdate, VersionRef, Work, WorkStatus};
use super::task::TaskSpec;
use crate::aggregate::fixed_point::{Check, Scales, Sums};
use crate::aggregate::strategies::StrategySpec;
use crate::aggregate::{AggregationError, Close, UpdateFacts};
use crate::store::models::ModelRow;
use crate::store::tasks::TaskRow;
use crate::store::{Store, StoreError};

/// Values of the next version that are made at a time.
const PIECE: usize = 1 << 16;

/// What an upload has to match.
#[derive(Debug, Clone)]
pub struct UploadTerms {
    /// The task.
    pub task_id: String,
    /// Digest of the version that was assigned.
    pub base: Digest,
    /// Digest of the parameter layout.
    pub layout: Digest,
    /// Exchanged parameters.
    pub parameters: usize,
    /// The round's integer scales.
    pub scales: Arc<Scales>,
}

/// Why no version came out of a round's updates.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The arithmetic.
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
    /// The spool or the model repository.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new weights do not make a model.
    #[error("the new weights do not make a model: {0}")]
    Model(String),
    /// A worker died.
    #[error("aggregation was interrupted: {0}")]
    Interrupted(String),
    /// A spool file is gone or unreadable.
    #[error("reading the update {}: {source}", path.display())]
    Spool {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

type Fold = JoinHandle<Result<(), MintError>>;

/// The facts of the updates in the sums, in an order that a replay has as well.
type Facts = Arc<Mutex<BTreeMap<AssignmentId, UpdateFacts>>>;

/// A running task.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) state: TaskState,
    base: Arc<Package>,
    scales: Arc<Scales>,
    sums: Arc<Sums>,
    facts: Facts,
    folds: Vec<Fold>,
    aggregating: bool,
}

impl Running {
    /// A new task on this version.
    pub(super) fn create(store: &Store, spec: TaskSpec, id: String, model: &ModelRow) -> Result<Running, StoreError> {
        let manifest = &model.manifest;
        let base = VersionRef { number: manifest.number, digest: manifest.digest };
        let package = store.read_package(&manifest.name, manifest.number)?;
        Ok(Running::new(spec, TaskState::new(id, base), package))
    }

    /// A stored task, its accepted updates folded again.
    pub(super) fn load(store: &Store, row: TaskRow) -> Result<Running, StoreError> {
        let spec = TaskSpec::parse(&row.specification)
            .map_err(|e| StoreError::Damaged { what: format!("task {}", row.state.task_id), reason: e.to_string() })?;
        let package = store.read_package(&spec.model, row.state.base.number)?;
        let mut running = Running::new(spec, row.state, package);
        if !matches!(running.state.phase, Phase::Evaluating { .. }) {
            running.fold_again(&store.spool_folder());
        }
        Ok(running)
    }

    fn new(spec: TaskSpec, state: TaskState, base: Package) -> Running {
        let scales = Arc::new(Scales::for_base(&base.model.weights()));
        let sums = Arc::new(Sums::new(scales.clone(), spec.strategy.strategy().sums()));
        Running {
            spec: Arc::new(spec),
            state,
            base: Arc::new(base),
            scales,
            sums,
            facts: Facts::default(),
            folds: Vec::new(),
            aggregating: false,
        }
    }

    /// Takes the next state, with the package that was minted for it, if any. A new round begins with empty sums.
    pub(super) fn enter(&mut self, next: TaskState, minted: Option<Package>) {
        let new_round = next.round != self.state.round;
        self.state = next;
        if let Some(package) = minted {
            self.base = Arc::new(package);
        }
        if new_round {
            self.scales = Arc::new(Scales::for_base(&self.base.model.weights()));
            self.empty_sums();
        }
    }

    /// The node that an assignment of the current round belongs to.
    pub(super) fn owner(&self, assignment: AssignmentId) -> Option<&str> {
        let work = match &self.state.phase {
            Phase::Training { work, .. } | Phase::Aggregating { work, .. } => work,
            Phase::Evaluating { trained, checks, .. } => {
                let check = checks.iter().find(|(_, (id, _))| *id == assignment).map(|(node, _)| node.as_str());
                return check.or_else(|| find_owner(trained, assignment));
            }
            Phase::Waiting { .. } | Phase::Ended { .. } => return None,
        };
        find_owner(work, assignment)
    }

    /// What an upload of this round has to match.
    pub(super) fn upload_terms(&self) -> UploadTerms {
        let layout = self.base.model.layout();
        UploadTerms {
            task_id: self.state.task_id.clone(),
            base: self.state.base.digest,
            layout: layout.digest(),
            parameters: layout.exchanged_len(),
            scales: self.scales.clone(),
        }
    }

    /// Adds a committed update to the sum, in the background.
    pub(super) fn fold(&mut self, spool_folder: &Path, assignment: AssignmentId, update: &TrainedUpdate) {
        let path = spool_path(spool_folder, assignment, &update.sha256);
        let (sums, all, spec) = (self.sums.clone(), self.facts.clone(), self.spec.clone());
        let (examples, steps) = (update.examples, update.steps);
        self.folds.push(tokio::task::spawn_blocking(move || {
            let delta = read_delta(&path)?;
            let mut check = Check::new(sums.scales().clone());
            check.piece(&delta)?;
            let facts = UpdateFacts {
                examples,
                steps,
                loss_base: None,
                staleness: 0,
                squared_norm: check.finish()?,
                learning_rate: spec.training.learning_rate,
                momentum: spec.training.momentum,
                proximal_mu: spec.training.proximal_mu,
            };
            let mut fold = sums.begin(&spec.strategy.contribution(&facts)?)?;
            fold.piece(&delta)?;
            fold.finish()?;
            all.lock().unwrap_or_else(PoisonError::into_inner).insert(assignment, facts);
            Ok(())
        }));
    }

    fn empty_sums(&mut self) {
        self.sums = Arc::new(Sums::new(self.scales.clone(), self.spec.strategy.strategy().sums()));
        self.facts = Facts::default();
        self.folds.clear();
    }

    /// Whether the state says that a version is being made while nobody makes it.
    pub(super) fn aggregation_is_missing(&self) -> bool {
        matches!(self.state.phase, Phase::Aggregating { .. }) && !self.aggregating
    }

    /// Begins the sum again and folds every accepted update into it: after a restart, or when an attempt broke off.
    pub(super) fn fold_again(&mut self, spool_folder: &Path) {
        self.empty_sums();
        for (assignment, update) in trained(&self.work()) {
            self.fold(spool_folder, assignment, update);
        }
    }

    /// The cohort's work of the round that is under way; empty between rounds.
    pub(super) fn work(&self) -> BTreeMap<String, Work> {
        match &self.state.phase {
            Phase::Training { work, .. } | Phase::Aggregating { work, .. } => work.clone(),
            Phase::Evaluating { trained, .. } => trained.clone(),
            Phase::Waiting { .. } | Phase::Ended { .. } => BTreeMap::new(),
        }
    }

    /// Nodes that the task waits for.
    pub(super) fn awaited(&self) -> Vec<String> {
        let work = self.work().into_keys();
        match &self.state.phase {
            Phase::Evaluating { checks, .. } => work.chain(checks.keys().cloned()).collect(),
            _ => work.collect(),
        }
    }

    /// The aggregation of this round has reported.
    pub(super) fn aggregation_ended(&mut self) {
        self.aggregating = false;
    }

    /// Waits for the folds, then makes and writes the next version. None while that is under way.
    pub(super) fn aggregation_job(
        &mut self,
        store: Store,
    ) -> Option<impl Future<Output = Result<(VersionRef, ModelRow, Package), MintError>> + Send + use<>> {
        if std::mem::replace(&mut self.aggregating, true) {
            return None;
        }
        let folds = std::mem::take(&mut self.folds);
        let (sums, facts) = (self.sums.clone(), self.facts.clone());
        let (base, spec) = (self.base.clone(), self.spec.clone());
        let (task, round) = (self.state.task_id.clone(), self.state.round);
        Some(async move {
            for fold in folds {
                fold.await.map_err(|e| MintError::Interrupted(e.to_string()))??;
            }
            store.remove_unrecorded(&base.manifest.name, base.manifest.number + 1).await?;
            let facts: Vec<UpdateFacts> =
                facts.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect();
            let work = move || {
                let weights = next_weights(&spec.strategy, &base, sums, &facts)?;
                mint(&store, &base, &weights, task, round)
            };
            tokio::task::spawn_blocking(work).await.map_err(|e| MintError::Interrupted(e.to_string()))?
        })
    }
}

/// The committed updates among a cohort's work.
pub(super) fn trained(work: &BTreeMap<String, Work>) -> impl Iterator<Item = (AssignmentId, &TrainedUpdate)> {
    work.values().filter_map(|w| match &w.status {
        WorkStatus::Trained(update) => Some((w.assignment, update)),
        _ => None,
    })
}

/// Where an accepted update's payload lies until its round closes. The digest is part of the name, so that another
/// payload for the same assignment can't replace it.
pub(super) fn spool_path(folder: &Path, assignment: AssignmentId, sha256: &[u8; 32]) -> PathBuf {
    folder.join(format!("{assignment}-{}", hex::encode(sha256)))
}

/// Removes the payloads of work that is over.
pub(super) fn remove_spools(folder: &Path, work: &BTreeMap<String, Work>) {
    for (assignment, update) in trained(work) {
        let path = spool_path(folder, assignment, &update.sha256);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an update's file could not be removed");
        }
    }
}

/// Removes every file of the spool that no running task refers to: what a crash left behind.
pub(super) fn sweep_spool<'a>(folder: &Path, tasks: impl Iterator<Item = &'a Running>) {
    let known: BTreeSet<PathBuf> = tasks
        .flat_map(|task| {
            let work = task.work();
            trained(&work).map(|(id, update)| spool_path(folder, id, &update.sha256)).collect::<Vec<_>>()
        })
        .collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !known.contains(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "a leftover of the spool could not be removed");
        }
    }
}

/// Reads a payload of little-endian f32 deltas.
pub(super) fn read_delta(path: &Path) -> Result<Vec<f32>, MintError> {
    let bytes = std::fs::read(path).map_err(|source| MintError::Spool { path: path.to_owned(), source })?;
    let (values, _) = bytes.as_chunks::<4>();
    Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn find_owner(work: &BTreeMap<String, Work>, assignment: AssignmentId) -> Option<&str> {
    work.iter().find(|(_, w)| w.assignment == assignment).map(|(node, _)| node.as_str())
}

/// The weights of the next version. The strategies that rounds can do keep no state and know no population.
fn next_weights(
    strategy: &StrategySpec,
    base: &Package,
    sums: Arc<Sums>,
    facts: &[UpdateFacts],
) -> Result<Weights, MintError> {
    let weights = base.model.weights();
    let close = Close::new(strategy, sums, facts, facts.len())?;
    let mut next = Vec::with_capacity(weights.values().len());
    for piece in weights.values().chunks(PIECE) {
        next.extend(close.piece(next.len(), piece, &mut [])?);
    }
    Weights::new(weights.layout().clone(), next).map_err(|e| MintError::Model(e.to_string()))
}

fn mint(
    store: &Store,
    base: &Package,
    weights: &Weights,
    task: String,
    round: u64,
) -> Result<(VersionRef, ModelRow, Package), MintError> {
    let model = base.model.with_weights(weights).map_err(|e| MintError::Model(e.to_string()))?;
    let manifest = Manifest {
        number: base.manifest.number + 1,
        digest: model.digest(),
        parent: Some(base.manifest.digest),
        task: Some(task),
        round: Some(round),
        ..base.manifest.clone()
    };
    let version = VersionRef { number: manifest.number, digest: manifest.digest };
    let package = Package::new(manifest, model).map_err(|e| MintError::Model(e.to_string()))?;
    store.write_package(&package)?;
    let row = ModelRow::of(&package)?;
    Ok((version, row, package))
}
