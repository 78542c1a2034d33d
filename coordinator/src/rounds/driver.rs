//! The one loop of the rounds: feeds `step`, persists what it decided, then acts on it, in that order.
//! What to do is decided in `step`; what nodes answer comes through `answers`, what operators want through `operations`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fedge_models::Digest;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::answers::Waiting;
use super::base::BaseError;
use super::board::{Board, News, TaskView, news};
use super::fold::Payload;
use super::mint::Minted;
use super::running::Running;
use super::state::{AssignmentId, Phase, RoundRecord, TaskState, TrainedUpdate, WorkStatus};
use super::step::{self, Effect, Event, View};
use super::task::TaskSpec;
use crate::registry::nodes::NodeRegistry;
use crate::store::spool::Spool;
use crate::store::tasks::{Accepted, RoundRow, StepChange};
use crate::store::{Store, StoreError, wall_clock_ms};

/// How often time alone is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often the clock is persisted without a step: at most so much of a deadline is lost by a restart.
const SAVE_CLOCK_MS: u64 = 5_000;

/// The rounds of all tasks.
#[derive(Debug)]
pub struct Rounds {
    pub(super) store: Store,
    pub(super) spool: Spool,
    nodes: Arc<NodeRegistry>,
    pub(super) tasks: AsyncMutex<BTreeMap<String, Running>>,
    pub(super) waiting: Mutex<Vec<Waiting>>,
    board: watch::Sender<Arc<Board>>,
    news: News,
    /// Bytes of model files that went out since a lineage's last round ended.
    downloaded: Mutex<BTreeMap<String, u64>>,
    clock_base_ms: u64,
    started: Instant,
}

impl Rounds {
    /// Loads every task that has not ended, folds its accepted updates again, and waits for its nodes again. `spool_bytes`:
    /// what updates that wait for their round's close may take of the disk.
    ///
    /// # Errors
    /// [`StoreError`] if the store can't be read; a task whose model or spool is damaged is named.
    pub async fn load(store: Store, nodes: Arc<NodeRegistry>, spool_bytes: u64) -> Result<Arc<Rounds>, StoreError> {
        let mut tasks = BTreeMap::new();
        for row in store.tasks().await? {
            if !matches!(row.state.phase, Phase::Ended { .. }) {
                let id = row.state.task_id.clone();
                let running = match Running::load(&store, row) {
                    Ok(running) => running,
                    Err(BaseError::Store(error)) => return Err(error),
                    // Not refused when it was created; nothing could come of it.
                    Err(BaseError::Exchange(reason)) => {
                        tracing::error!(task = %id, %reason, "a task asks for what its model does not have; it does not run");
                        continue;
                    }
                };
                nodes.await_again(&running.spec.model, running.awaited());
                tasks.insert(id, running);
            }
        }
        let states = || tasks.values().map(|t: &Running| &t.state);
        let known: BTreeSet<[u8; 16]> = states().flat_map(TaskState::assignments).map(|id| id.0).collect();
        let spool = Spool::open(store.spool_folder(), spool_bytes, &known);
        sweep_server_states(&store, states());
        for running in tasks.values_mut() {
            running.fold_again(&store, &spool).await?;
        }
        let clock_base_ms = store.elapsed_ms().await?;
        let rounds = Arc::new(Rounds {
            store,
            spool,
            nodes,
            tasks: AsyncMutex::new(tasks),
            waiting: Mutex::default(),
            board: watch::Sender::new(Arc::default()),
            news: News::default(),
            downloaded: Mutex::default(),
            clock_base_ms,
            started: Instant::now(),
        });
        let tasks = rounds.tasks.lock().await;
        rounds.refresh_board(&tasks, true).await?;
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
                    if let Err(error) = rounds.event(&id, Event::Tick, None).await {
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

    /// What wakes nodes that wait for instructions.
    pub fn news(&self) -> &News {
        &self.news
    }

    /// The spool of updates.
    pub fn spool(&self) -> &Spool {
        &self.spool
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

    /// Where the state of a running task's strategy lies that has this digest, and its lineage.
    pub fn server_state_file(&self, digest: Digest) -> Option<(PathBuf, String)> {
        let board = self.board.borrow();
        let has_it = |state: &TaskState| state.server.as_ref().is_some_and(|server| server.digest == digest);
        let task = board.tasks.values().find(|task| has_it(&task.state))?;
        let path = self.store.server_state(&task.state.task_id, task.state.base.number);
        Some((path, task.spec.model.clone()))
    }

    /// Bytes of a model file of this lineage went out to a node.
    pub fn count_download(&self, lineage: &str, bytes: u64) {
        let mut downloaded = self.downloaded.lock().unwrap_or_else(PoisonError::into_inner);
        match downloaded.get_mut(lineage) {
            Some(count) => *count += bytes,
            None => drop(downloaded.insert(lineage.to_owned(), bytes)),
        }
    }

    /// Bytes that went out since this was asked last.
    pub(super) fn take_downloaded(&self, lineage: &str) -> u64 {
        let mut downloaded = self.downloaded.lock().unwrap_or_else(PoisonError::into_inner);
        downloaded.remove(lineage).unwrap_or(0)
    }

    /// One event; false: there is no such running task.
    pub(super) async fn event(
        self: &Arc<Self>,
        task_id: &str,
        event: Event,
        minted: Option<Minted>,
    ) -> Result<bool, StoreError> {
        let mut tasks = self.tasks.lock().await;
        let Some(running) = tasks.get_mut(task_id) else { return Ok(false) };
        if running.aggregation_is_missing() && minted.is_none() {
            running.fold_again(&self.store, &self.spool).await?;
            self.spawn_aggregation(running);
        }
        let mut decision = self.decision(running);
        decision.event(&running.spec, &event);
        decision.minted = minted;
        self.apply(&mut tasks, task_id, decision).await.map(|()| true)
    }

    /// A decision that has decided nothing yet.
    pub(super) fn decision(&self, running: &Running) -> Decision {
        Decision {
            next: running.state.clone(),
            effects: Vec::new(),
            now_ms: self.now_ms(),
            available: self.nodes.available(&running.spec.model),
            resting: self.nodes.resting(),
            drifting: self.nodes.drifting(&running.spec.model),
            updates: Vec::new(),
            payloads: Vec::new(),
            minted: None,
        }
    }

    /// Persists a decision, then acts on it.
    pub(super) async fn apply(
        self: &Arc<Self>,
        tasks: &mut BTreeMap<String, Running>,
        task_id: &str,
        decision: Decision,
    ) -> Result<(), StoreError> {
        let Some(running) = tasks.get_mut(task_id) else { return Ok(()) };
        let Decision { next, effects, now_ms, updates, payloads, minted, .. } = decision;
        if next == running.state && effects.is_empty() {
            return Ok(());
        }
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::RecordRound(record) => Some(self.round_row(&running.spec.model, record)),
            _ => None,
        });
        let rounds: Vec<RoundRow> = records.collect();
        fail::fail_point!("step_before_save");
        self.store
            .save_step(&StepChange {
                state: &next,
                elapsed_ms: now_ms,
                updates: &updates,
                minted: minted.as_ref().map(|minted| &minted.row),
                rounds: &rounds,
            })
            .await?;
        fail::fail_point!("step_saved");
        let before = running.state.clone();
        let new_version = minted.is_some();
        if running.enter(next, minted.map(|minted| minted.base)) {
            // An asynchronous round begins with what came while the version before was made.
            running.fold_again(&self.store, &self.spool).await?;
        } else {
            for (assignment, payload) in payloads {
                running.fold(assignment, payload, false);
            }
        }
        self.act(running, &before, &effects);
        if matches!(running.state.phase, Phase::Ended { .. }) {
            tasks.remove(task_id);
        }
        self.refresh_board(tasks, new_version).await
    }

    /// Acts on persisted decisions.
    fn act(self: &Arc<Self>, running: &mut Running, before: &TaskState, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Aggregate { .. } => self.spawn_aggregation(running),
                Effect::RecordRound(record) => {
                    let task = &running.state.task_id;
                    tracing::info!(%task, round = record.round, outcome = %record.outcome, "round ended");
                }
                Effect::Ended(outcome) => {
                    tracing::info!(task = %running.state.task_id, ?outcome, "task ended");
                }
            }
        }
        // What no assignment of the task refers to any more may go.
        let kept: BTreeSet<AssignmentId> = running.state.assignments().collect();
        before.assignments().filter(|id| !kept.contains(id)).for_each(|id| self.spool.remove(&id.0));
        let old = before.server.as_ref().filter(|old| running.state.server.as_ref() != Some(old));
        if old.is_some() {
            remove_file(&self.store.server_state(&before.task_id, before.base.number));
        }
    }

    fn spawn_aggregation(self: &Arc<Self>, running: &mut Running) {
        let round = running.state.round;
        let Some(job) = running.aggregation_job(self.store.clone()) else { return };
        let (rounds, task_id) = (self.clone(), running.state.task_id.clone());
        tokio::spawn(async move {
            let (event, minted) = match job.await {
                Ok(minted) => (Event::Aggregated(minted.version.clone(), minted.server.clone()), Some(minted)),
                Err(error) => {
                    tracing::error!(task = %task_id, round, %error, "no version could be made");
                    (Event::AggregationFailed(error.to_string()), None)
                }
            };
            if let Err(error) = rounds.event(&task_id, event, minted).await {
                tracing::error!(task = %task_id, %error, "a new version could not be recorded; it is made again");
                if let Some(running) = rounds.tasks.lock().await.get_mut(&task_id) {
                    running.aggregation_broke_off(round);
                }
            }
        });
    }

    fn round_row(&self, model: &str, record: &RoundRecord) -> RoundRow {
        let bytes_down = self.take_downloaded(model);
        let updates = record.work.values().filter_map(|work| match &work.status {
            WorkStatus::Trained(update) => Some(update.bytes),
            _ => None,
        });
        let bytes_up = updates.sum();
        RoundRow { record: record.clone(), bytes_up, bytes_down, ended_ms: wall_clock_ms() }
    }

    /// Puts up a new board; `newest`: the versions have changed too.
    pub(super) async fn refresh_board(
        &self,
        tasks: &BTreeMap<String, Running>,
        newest: bool,
    ) -> Result<(), StoreError> {
        let old = self.board.borrow().clone();
        let newest = match newest {
            true => self.store.newest_models().await?,
            false => old.serve.iter().map(|(row, _)| row.clone()).collect(),
        };
        let tasks: BTreeMap<String, TaskView> = tasks
            .iter()
            .map(|(id, t)| (id.clone(), TaskView { spec: t.spec.clone(), state: t.state.clone() }))
            .collect();
        let mut new = Board::new(newest, tasks);
        for digest in new.missing_bases() {
            let known = old.row(digest).cloned();
            let row = match known {
                Some(row) => Some(row),
                None => self.store.model_by_digest(digest).await?,
            };
            new.bases.extend(row.map(|row| (digest, row)));
        }
        let new = Arc::new(new);
        self.board.send_replace(new.clone());
        self.news.tell(&news(&old, &new));
        Ok(())
    }
}

/// What was decided and is not persisted yet.
#[derive(Debug)]
pub(super) struct Decision {
    /// The state after it.
    pub(super) next: TaskState,
    effects: Vec<Effect>,
    now_ms: u64,
    available: BTreeSet<String>,
    resting: BTreeSet<String>,
    drifting: BTreeMap<String, u64>,
    updates: Vec<Accepted>,
    payloads: Vec<(AssignmentId, Payload)>,
    minted: Option<Minted>,
}

impl Decision {
    /// Decides what comes of one more event, at the same moment as those before it.
    pub(super) fn event(&mut self, spec: &TaskSpec, event: &Event) {
        let view =
            View { now_ms: self.now_ms, available: &self.available, resting: &self.resting, drifting: &self.drifting };
        let (next, effects) = step::step(spec, self.next.clone(), event, view);
        self.next = next;
        self.effects.extend(effects);
    }

    /// An admitted update comes along.
    pub(super) fn accept(&mut self, node: String, assignment: AssignmentId, update: &TrainedUpdate, payload: Payload) {
        let row = match &payload {
            Payload::Row(bytes) => Some(bytes.clone()),
            Payload::File(_) => None,
        };
        self.updates.push(Accepted { assignment, node, update: update.clone(), payload: row });
        self.payloads.push((assignment, payload));
    }
}

/// Removes what strategies kept beside versions that are not the newest any more.
fn sweep_server_states<'a>(store: &Store, states: impl Iterator<Item = &'a TaskState>) {
    let known: BTreeSet<PathBuf> = states
        .filter(|state| state.server.is_some())
        .map(|state| store.server_state(&state.task_id, state.base.number))
        .collect();
    let folder = store.server_state("", 0).parent().map(std::path::Path::to_owned);
    for entry in folder.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        if !known.contains(&entry.path()) {
            remove_file(&entry.path());
        }
    }
}

fn remove_file(path: &std::path::Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file that is not needed any more could not be removed");
    }
}

/// Runs a step to its end even when the caller goes away: a handler is dropped with its connection, and what was persisted
/// must be entered as well.
pub(super) async fn uncancelled<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(StoreError::Interrupted("a step of the rounds").into()))
}
