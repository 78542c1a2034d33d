//! The one loop of the rounds: feeds `step`, persists what it decided, then acts on it, in that order.
//! What to do is decided in `step`; what handlers and nodes say is translated in `convert`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fedge_models::{Digest, Package};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::board::{Board, TaskView};
use super::running::{self, Running, UploadTerms};
use super::state::{AssignmentId, Evaluation, Phase, RoundOutcome, RoundRecord, TrainedUpdate};
use super::step::{self, Admission, Effect, Event, View};
use super::task::{TaskError, TaskSpec};
use crate::registry::nodes::NodeRegistry;
use crate::store::models::ModelRow;
use crate::store::tasks::{RoundRow, StepChange};
use crate::store::{Store, StoreError, wall_clock_ms};

/// How often time alone is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often the clock is persisted without a step: at most so much of a deadline is lost by a restart.
const SAVE_CLOCK_MS: u64 = 5_000;

/// What the driver says to an upload.
#[derive(Debug, Clone)]
pub enum UploadAnswer {
    /// Awaited, on these terms.
    Open(UploadTerms),
    /// Accepted before: the same receipt again.
    Duplicate,
    /// Another update was accepted for this assignment.
    Conflict,
    /// No running round waits for it.
    Closed,
    /// The assignment is another node's.
    Foreign,
}

/// Why a task could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The file.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// No such lineage.
    #[error("no model named {0:?} is published: `fedge model list` shows what is, `fedge model publish` adds one")]
    UnknownModel(String),
    /// One running task a lineage.
    #[error("task {task} is running on model {model:?}: wait for its end or cancel it")]
    Busy {
        /// The running task.
        task: String,
        /// The lineage.
        model: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The rounds of all tasks.
#[derive(Debug)]
pub struct Rounds {
    store: Store,
    nodes: Arc<NodeRegistry>,
    tasks: AsyncMutex<BTreeMap<String, Running>>,
    board: watch::Sender<Arc<Board>>,
    downloaded: Mutex<BTreeMap<Digest, u64>>,
    clock_base_ms: u64,
    started: Instant,
}

impl Rounds {
    /// Loads every task that has not ended, folds its accepted updates again, and waits for its nodes again.
    ///
    /// # Errors
    /// [`StoreError`] if the store can't be read; a task whose model or spool is damaged is named.
    pub async fn load(store: Store, nodes: Arc<NodeRegistry>) -> Result<Arc<Rounds>, StoreError> {
        let mut tasks = BTreeMap::new();
        for row in store.tasks().await? {
            if !matches!(row.state.phase, Phase::Ended { .. }) {
                let id = row.state.task_id.clone();
                let running = Running::load(&store, row)?;
                nodes.await_again(&running.spec.model, running.awaited());
                tasks.insert(id, running);
            }
        }
        running::sweep_spool(&store.spool_folder(), tasks.values());
        let clock_base_ms = store.elapsed_ms().await?;
        let rounds = Arc::new(Rounds {
            store,
            nodes,
            tasks: AsyncMutex::new(tasks),
            board: watch::Sender::new(Arc::default()),
            downloaded: Mutex::default(),
            clock_base_ms,
            started: Instant::now(),
        });
        let tasks = rounds.tasks.lock().await;
        rounds.refresh_board(&tasks).await?;
        drop(tasks);
        Ok(rounds)
    }

    /// Lets time pass until `stop`; a step that has begun is finished first.
    pub fn spawn_ticks(self: &Arc<Self>, stop: CancellationToken) -> JoinHandle<()> {
        let rounds = self.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut saved_ms = rounds.now_ms();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let ids: Vec<String> = rounds.tasks.lock().await.keys().cloned().collect();
                for id in ids {
                    if let Err(error) = rounds.event(&id, Event::Tick, Attached::default()).await {
                        tracing::error!(task = %id, %error, "a step could not be persisted; it is tried again");
                    }
                }
                let now_ms = rounds.now_ms();
                if now_ms >= saved_ms + SAVE_CLOCK_MS {
                    saved_ms = now_ms;
                    if let Err(error) = rounds.store.save_elapsed(now_ms).await {
                        tracing::error!(%error, "the clock could not be persisted");
                    }
                }
            }
        })
    }

    /// The board, and how to wait for its changes.
    pub fn board(&self) -> watch::Receiver<Arc<Board>> {
        self.board.subscribe()
    }

    /// The store behind the rounds.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The registry of nodes behind the rounds.
    pub fn nodes(&self) -> &NodeRegistry {
        &self.nodes
    }

    /// Persisted elapsed milliseconds; never runs backward, also across restarts.
    pub fn now_ms(&self) -> u64 {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock_base_ms.saturating_add(since)
    }

    /// Starts a task on the newest version of its lineage.
    ///
    /// # Errors
    /// [`CreateError`] says what is wrong with the file, or which task is in the way.
    pub async fn create_task(self: &Arc<Self>, specification: String) -> Result<String, CreateError> {
        let rounds = self.clone();
        uncancelled(async move { rounds.create_task_now(&specification).await }).await
    }

    async fn create_task_now(&self, specification: &str) -> Result<String, CreateError> {
        let spec = TaskSpec::parse(specification)?;
        let mut tasks = self.tasks.lock().await;
        if let Some((task, _)) = tasks.iter().find(|(_, t)| t.spec.model == spec.model) {
            return Err(CreateError::Busy { task: task.clone(), model: spec.model });
        }
        let Some(model) = self.store.model(&spec.model, 0).await? else {
            return Err(CreateError::UnknownModel(spec.model));
        };
        let earlier = self.store.tasks().await?;
        let mut number = earlier.len() + 1;
        while earlier.iter().any(|t| t.state.task_id == format!("{}-{number}", spec.model)) {
            number += 1;
        }
        let id = format!("{}-{number}", spec.model);
        let running = Running::create(&self.store, spec, id.clone(), &model)?;
        self.store.insert_task(specification, &running.spec.model, &running.state).await?;
        tracing::info!(task = %id, model = %running.spec.model, "task created");
        tasks.insert(id.clone(), running);
        self.refresh_board(&tasks).await?;
        Ok(id)
    }

    /// A model was published: tell the nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn published(&self) -> Result<(), StoreError> {
        let tasks = self.tasks.lock().await;
        self.refresh_board(&tasks).await
    }

    /// Ends a running task. False: there is none of this id.
    ///
    /// # Errors
    /// [`StoreError`] if the end could not be persisted.
    pub async fn cancel(self: &Arc<Self>, task_id: &str) -> Result<bool, StoreError> {
        let (rounds, id) = (self.clone(), task_id.to_owned());
        uncancelled(async move { rounds.event(&id, Event::Cancelled, Attached::default()).await }).await
    }

    /// Whether an upload of `node` for `assignment` is awaited, and on which terms.
    pub async fn admission(&self, node: &str, assignment: AssignmentId, sha256: Option<[u8; 32]>) -> UploadAnswer {
        let tasks = self.tasks.lock().await;
        for running in tasks.values() {
            let Some(owner) = running.owner(assignment) else { continue };
            if owner != node {
                return UploadAnswer::Foreign;
            }
            return match step::admit(&running.state, assignment, sha256) {
                Admission::Open => UploadAnswer::Open(running.upload_terms()),
                Admission::Duplicate => UploadAnswer::Duplicate,
                Admission::Conflict => UploadAnswer::Conflict,
                Admission::Closed => UploadAnswer::Closed,
            };
        }
        UploadAnswer::Closed
    }

    /// Commits a verified update whose payload lies in its spool file; persisted when this returns.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was acknowledged, the node may send it again.
    pub async fn commit(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        update: TrainedUpdate,
    ) -> Result<UploadAnswer, StoreError> {
        let (rounds, node) = (self.clone(), node.to_owned());
        uncancelled(async move { rounds.commit_now(&node, assignment, update).await }).await
    }

    async fn commit_now(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        update: TrainedUpdate,
    ) -> Result<UploadAnswer, StoreError> {
        let mut tasks = self.tasks.lock().await;
        let Some((id, running)) = tasks.iter_mut().find(|(_, t)| t.owner(assignment) == Some(node)) else {
            return Ok(UploadAnswer::Closed);
        };
        let id = id.clone();
        match step::admit(&running.state, assignment, Some(update.sha256)) {
            Admission::Open => {}
            Admission::Duplicate => return Ok(UploadAnswer::Duplicate),
            Admission::Conflict => return Ok(UploadAnswer::Conflict),
            Admission::Closed => return Ok(UploadAnswer::Closed),
        }
        let terms = running.upload_terms();
        let attached = Attached { update: Some((assignment, node.to_owned(), update.clone())), minted: None };
        self.apply(&mut tasks, &id, Event::UpdateCommitted(assignment, update), attached).await?;
        Ok(UploadAnswer::Open(terms))
    }

    /// A node can't do an assignment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decline(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        reason: String,
    ) -> Result<bool, StoreError> {
        self.answer(node, assignment, Event::Declined(assignment, reason)).await
    }

    /// A node's result on its held-out part.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn evaluated(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        evaluation: Evaluation,
    ) -> Result<bool, StoreError> {
        self.answer(node, assignment, Event::Evaluated(assignment, evaluation)).await
    }

    /// Bytes of a model file went out to a node.
    pub fn count_download(&self, digest: Digest, bytes: u64) {
        let mut downloaded = self.downloaded.lock().unwrap_or_else(PoisonError::into_inner);
        *downloaded.entry(digest).or_default() += bytes;
    }

    async fn answer(self: &Arc<Self>, node: &str, assignment: AssignmentId, event: Event) -> Result<bool, StoreError> {
        let (rounds, node) = (self.clone(), node.to_owned());
        uncancelled(async move {
            let mut tasks = rounds.tasks.lock().await;
            let id = tasks.iter().find(|(_, t)| t.owner(assignment) == Some(&node)).map(|(id, _)| id.clone());
            match id {
                Some(id) => rounds.apply(&mut tasks, &id, event, Attached::default()).await.map(|()| true),
                None => Ok(false),
            }
        })
        .await
    }

    async fn event(self: &Arc<Self>, task_id: &str, event: Event, attached: Attached) -> Result<bool, StoreError> {
        let mut tasks = self.tasks.lock().await;
        if !tasks.contains_key(task_id) {
            return Ok(false);
        }
        self.apply(&mut tasks, task_id, event, attached).await.map(|()| true)
    }

    /// Decide, persist, act.
    async fn apply(
        self: &Arc<Self>,
        tasks: &mut BTreeMap<String, Running>,
        task_id: &str,
        event: Event,
        attached: Attached,
    ) -> Result<(), StoreError> {
        let Some(running) = tasks.get_mut(task_id) else { return Ok(()) };
        let available = self.nodes.available(&running.spec.model);
        let view = View { now_ms: self.now_ms(), available: &available };
        let (next, effects) = step::step(&running.spec, running.state.clone(), &event, view);
        if next == running.state && effects.is_empty() {
            if running.aggregation_is_missing() {
                running.fold_again(&self.store.spool_folder());
                self.spawn_aggregation(running);
            }
            return Ok(());
        }
        let round = effects.iter().find_map(|e| match e {
            Effect::RecordRound(record) => Some(self.round_row(record)),
            _ => None,
        });
        self.store
            .save_step(&StepChange {
                state: &next,
                elapsed_ms: view.now_ms,
                update: attached.update.as_ref().map(|(id, node, update)| (*id, node.as_str(), update)),
                minted: attached.minted.as_ref().map(|(row, _)| row),
                round: round.as_ref(),
            })
            .await?;
        let work_before = running.work();
        running.enter(next, attached.minted.map(|(_, package)| package));
        if let Some((assignment, _, update)) = &attached.update {
            running.fold(&self.store.spool_folder(), *assignment, update);
        }
        let ended = self.act(running, &effects);
        if ended {
            running::remove_spools(&self.store.spool_folder(), &work_before);
            tasks.remove(task_id);
        }
        self.refresh_board(tasks).await
    }

    /// Acts on persisted decisions; true when the task is over.
    fn act(self: &Arc<Self>, running: &mut Running, effects: &[Effect]) -> bool {
        let mut ended = false;
        for effect in effects {
            match effect {
                Effect::Aggregate { .. } => self.spawn_aggregation(running),
                Effect::RecordRound(record) => {
                    tracing::info!(task = %running.state.task_id, round = record.round, outcome = %record.outcome, "round ended");
                    running::remove_spools(&self.store.spool_folder(), &record.work);
                }
                Effect::Ended(outcome) => {
                    tracing::info!(task = %running.state.task_id, ?outcome, "task ended");
                    ended = true;
                }
            }
        }
        ended
    }

    fn spawn_aggregation(self: &Arc<Self>, running: &mut Running) {
        let Some(job) = running.aggregation_job(self.store.clone()) else { return };
        let (rounds, task_id) = (self.clone(), running.state.task_id.clone());
        tokio::spawn(async move {
            let (event, minted) = match job.await {
                Ok((version, row, package)) => (Event::Aggregated(version), Some((row, package))),
                Err(error) => (Event::AggregationFailed(error.to_string()), None),
            };
            let attached = Attached { update: None, minted };
            if let Err(error) = rounds.event(&task_id, event, attached).await {
                tracing::error!(task = %task_id, %error, "a new version could not be recorded; it is made again");
            }
            let mut tasks = rounds.tasks.lock().await;
            if let Some(running) = tasks.get_mut(&task_id) {
                running.aggregation_ended();
            }
        });
    }

    fn round_row(&self, record: &RoundRecord) -> RoundRow {
        let bytes_down = match &record.outcome {
            RoundOutcome::Aggregated(version) => {
                let downloaded = self.downloaded.lock().unwrap_or_else(PoisonError::into_inner);
                downloaded.get(&version.digest).copied().unwrap_or(0)
            }
            RoundOutcome::Failed(_) => 0,
        };
        let bytes_up = running::trained(&record.work).map(|(_, update)| update.bytes).sum();
        RoundRow { record: record.clone(), bytes_up, bytes_down, ended_ms: wall_clock_ms() }
    }

    async fn refresh_board(&self, tasks: &BTreeMap<String, Running>) -> Result<(), StoreError> {
        let newest = self.store.newest_models().await?;
        let tasks = tasks
            .iter()
            .map(|(id, t)| (id.clone(), TaskView { spec: t.spec.clone(), state: t.state.clone() }))
            .collect();
        let counter = self.board.borrow().counter + 1;
        self.board.send_replace(Arc::new(Board::new(counter, newest, tasks)));
        Ok(())
    }
}

/// What an event brings along for the store.
#[derive(Debug, Default)]
struct Attached {
    update: Option<(AssignmentId, String, TrainedUpdate)>,
    minted: Option<(ModelRow, Package)>,
}

/// Runs a step to its end even when the caller goes away: a handler is dropped with its connection, and what was persisted
/// must be entered as well.
async fn uncancelled<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(StoreError::Interrupted("a step of the rounds").into()))
}
