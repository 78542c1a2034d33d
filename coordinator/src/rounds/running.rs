//! A running task in memory: its state, its base version and the sum of the updates that were accepted so far.
//! Everything here can be built again from the store; the order of persisting and acting is `driver`'s.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use fedge_models::Digest;
use tokio::task::JoinHandle;

use super::asynchronous;
use super::base::{Base, BaseError};
use super::fold::{self, Form, Payload};
use super::mint::{self, MintError, Minted, Order};
use super::state::{AssignmentId, Phase, TaskState, TrainedUpdate, VersionRef, Work, WorkStatus};
use super::task::TaskSpec;
use crate::aggregate::UpdateFacts;
use crate::aggregate::fixed_point::{MAX_COHORT, Scales, Sums};
use crate::store::models::ModelRow;
use crate::store::spool::{Entry, ROW_BYTES, Spool};
use crate::store::tasks::TaskRow;
use crate::store::{Store, StoreError};

/// What an upload has to match.
#[derive(Debug, Clone)]
pub struct UploadTerms {
    /// The task.
    pub task_id: String,
    /// What the task wants.
    pub spec: Arc<TaskSpec>,
    /// Digest of the version that was assigned.
    pub base: Digest,
    /// Versions between that one and the newest.
    pub staleness: u64,
    /// Digest of the parameter layout.
    pub layout: Digest,
    /// How the values are written.
    pub form: Form,
    /// The round's integer scales.
    pub scales: Arc<Scales>,
}

/// Assignments that are remembered after their round.
const REMEMBERED: usize = 2 * MAX_COHORT;

type Fold = JoinHandle<Result<(), MintError>>;

/// A running task.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) state: TaskState,
    base: Base,
    form: Form,
    /// The sums of the round's updates; none before its first.
    sums: Option<Arc<Sums>>,
    folds: Vec<Fold>,
    /// Why the sums are of no use, if a fold failed.
    broken: Option<MintError>,
    /// The round whose version is being made.
    aggregating: Option<u64>,
    /// Assignments that nobody waits for any more, the newest last: what comes too late is counted for its task.
    over: VecDeque<AssignmentId>,
}

impl Running {
    /// A new task on this version.
    pub(super) fn create(store: &Store, spec: TaskSpec, id: String, model: &ModelRow) -> Result<Running, BaseError> {
        let manifest = &model.manifest;
        let base = Base::load(store, &manifest.name, manifest.number, &spec.training.exchange())?;
        let version = VersionRef { number: manifest.number, digest: manifest.digest };
        Ok(Running::new(spec, TaskState::new(id, version), base))
    }

    /// A stored task. Its accepted updates have to be folded again.
    pub(super) fn load(store: &Store, row: TaskRow) -> Result<Running, BaseError> {
        let spec = TaskSpec::parse(&row.specification)
            .map_err(|e| StoreError::Damaged { what: format!("task {}", row.state.task_id), reason: e.to_string() })?;
        let base = Base::load(store, &spec.model, row.state.base.number, &spec.training.exchange())?;
        Ok(Running::new(spec, row.state, base))
    }

    fn new(spec: TaskSpec, state: TaskState, base: Base) -> Running {
        let form = Form { coding: spec.updates.coding(), tensors: base.tensors().into() };
        Running {
            spec: Arc::new(spec),
            state,
            base,
            form,
            sums: None,
            folds: Vec::new(),
            broken: None,
            aggregating: None,
            over: VecDeque::new(),
        }
    }

    /// Takes the next state, with the version that was minted for it, if any. True: the round is another one, and updates
    /// that it has from the beginning (of an asynchronous task) have to be folded.
    pub(super) fn enter(&mut self, next: TaskState, minted: Option<Base>) -> bool {
        let new_round = next.round != self.state.round;
        self.over.extend(self.state.assignments().filter(|id| next.work(*id).is_none()));
        self.over.drain(..self.over.len().saturating_sub(REMEMBERED));
        self.state = next;
        if let Some(base) = minted {
            self.base = base;
        }
        if new_round || !matches!(self.state.phase, Phase::Training { .. } | Phase::Aggregating { .. }) {
            self.forget_sums();
        }
        new_round
    }

    /// Whether this was an assignment of the task not long ago.
    pub(super) fn is_over(&self, assignment: AssignmentId) -> bool {
        self.over.contains(&assignment)
    }

    /// What an upload for this assignment has to match.
    pub(super) fn upload_terms(&self, work: &Work) -> UploadTerms {
        UploadTerms {
            task_id: self.state.task_id.clone(),
            spec: self.spec.clone(),
            base: work.base.digest,
            staleness: asynchronous::staleness(&self.state, work),
            layout: self.base.manifest.layout,
            form: self.form.clone(),
            scales: self.base.scales.clone(),
        }
    }

    /// Adds a committed update to the round's sum, in the background. One that belongs to the next buffer waits for it.
    pub(super) fn fold(&mut self, assignment: AssignmentId, payload: Payload, stored: bool) {
        let Some((work, update)) = self.trained_work(assignment) else { return };
        let sha256 = stored.then_some(update.sha256);
        let facts = facts(&self.spec, &self.state, work, update);
        let (spec, form) = (self.spec.clone(), self.form.clone());
        let count = spec.strategy.strategy().sums();
        let sums = self.sums.get_or_insert_with(|| Arc::new(Sums::new(self.base.scales.clone(), count))).clone();
        let is_small = matches!(payload, Payload::Row(_));
        let work = move || {
            let contribution = spec.strategy.contribution(&facts)?;
            fold::fold(&payload, &form, &sums, &contribution, sha256)
        };
        match is_small {
            // Some microseconds: less than handing it over.
            true => self.broken = self.broken.take().or(work().err()),
            false => self.folds.push(tokio::task::spawn_blocking(work)),
        }
    }

    /// Begins the sum again and folds every accepted update into it: after a restart, at the beginning of a buffer, or
    /// when an attempt broke off.
    pub(super) async fn fold_again(&mut self, store: &Store, spool: &Spool) -> Result<(), StoreError> {
        self.forget_sums();
        if !matches!(self.state.phase, Phase::Training { .. } | Phase::Aggregating { .. }) {
            return Ok(());
        }
        let cohort = self.state.cohort().into_iter().flatten();
        let trained: Vec<(AssignmentId, TrainedUpdate)> = cohort
            .filter_map(|(id, work)| match &work.status {
                WorkStatus::Trained(update) => Some((*id, update.clone())),
                _ => None,
            })
            .collect();
        for (id, update) in trained {
            let payload = if update.bytes <= ROW_BYTES {
                Payload::Row(store.payload(id).await?)
            } else {
                Payload::File(spool.path(&Entry { assignment: id.0, sha256: update.sha256 }))
            };
            self.fold(id, payload, true);
        }
        Ok(())
    }

    fn forget_sums(&mut self) {
        self.sums = None;
        self.folds.clear();
        self.broken = None;
    }

    /// A trained assignment of the round that is under way.
    fn trained_work(&self, assignment: AssignmentId) -> Option<(&Work, &TrainedUpdate)> {
        let work = self.state.cohort()?.get(&assignment)?;
        match &work.status {
            WorkStatus::Trained(update) => Some((work, update)),
            _ => None,
        }
    }

    /// Whether the state says that a version is being made while nobody makes it.
    pub(super) fn aggregation_is_missing(&self) -> bool {
        matches!(self.state.phase, Phase::Aggregating { .. }) && self.aggregating != Some(self.state.round)
    }

    /// Nodes that the task waits for.
    pub(super) fn awaited(&self) -> Vec<String> {
        let work = self.state.cohort().into_iter().flatten().chain(&self.state.outstanding);
        let nodes = work.map(|(_, work)| work.node.clone());
        match &self.state.phase {
            Phase::Evaluating { checks, .. } => nodes.chain(checks.keys().cloned()).collect(),
            _ => nodes.collect(),
        }
    }

    /// The aggregation of this round broke off and has to be made again.
    pub(super) fn aggregation_broke_off(&mut self, round: u64) {
        if self.aggregating == Some(round) {
            self.aggregating = None;
        }
    }

    /// Waits for the folds, then makes and writes the next version. None while that is under way.
    pub(super) fn aggregation_job(
        &mut self,
        store: Store,
    ) -> Option<impl Future<Output = Result<Minted, MintError>> + Send + use<>> {
        let Phase::Aggregating { population, .. } = self.state.phase else { return None };
        if !self.aggregation_is_missing() {
            return None;
        }
        self.aggregating = Some(self.state.round);
        let (folds, broken) = (std::mem::take(&mut self.folds), self.broken.take());
        let sums = self.sums.take();
        let order = sums.map(|sums| Order {
            task_id: self.state.task_id.clone(),
            round: self.state.round,
            strategy: self.spec.strategy.clone(),
            base: self.base.clone(),
            server: self.state.server.clone(),
            sums,
            facts: self.facts_by_node(),
            population,
        });
        Some(async move {
            broken.map_or(Ok(()), Err)?;
            for fold in folds {
                fold.await.map_err(|e| MintError::Interrupted(e.to_string()))??;
            }
            let order = order.ok_or(crate::aggregate::AggregationError::Empty)?;
            let manifest = &order.base.manifest;
            store.remove_unrecorded(&manifest.name, manifest.number + 1).await?;
            let work = move || mint::mint(&store, order);
            tokio::task::spawn_blocking(work).await.map_err(|e| MintError::Interrupted(e.to_string()))?
        })
    }

    /// Always in the same order, so that sums of floats can be replayed.
    fn facts_by_node(&self) -> Vec<UpdateFacts> {
        let mut trained: Vec<(&Work, AssignmentId, &TrainedUpdate)> = self
            .state
            .cohort()
            .into_iter()
            .flatten()
            .filter_map(|(id, _)| self.trained_work(*id).map(|(work, update)| (work, *id, update)))
            .collect();
        trained.sort_by(|a, b| (&a.0.node, a.1).cmp(&(&b.0.node, b.1)));
        trained.into_iter().map(|(work, _, update)| facts(&self.spec, &self.state, work, update)).collect()
    }
}

/// What the strategy may know of an accepted update.
pub fn facts(spec: &TaskSpec, state: &TaskState, work: &Work, update: &TrainedUpdate) -> UpdateFacts {
    UpdateFacts {
        staleness: asynchronous::staleness(state, work),
        squared_norm: update.squared_norm,
        ..facts_of(spec, update)
    }
}

/// As [`facts`], of an update that trained the newest version and whose norm is not known yet.
pub(super) fn facts_of(spec: &TaskSpec, update: &TrainedUpdate) -> UpdateFacts {
    UpdateFacts {
        examples: update.examples,
        steps: update.steps,
        loss_base: update.loss_base,
        staleness: 0,
        squared_norm: 0.0,
        learning_rate: spec.training.learning_rate,
        momentum: spec.training.momentum,
        proximal_mu: spec.training.proximal_mu,
    }
}
