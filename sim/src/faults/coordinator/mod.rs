//! The coordinator's host: does what the real driver does, in its order, on the virtual disk, database and network.
//! What comes of an event is decided by the real `step` and `admit`, what a poll is told by the real `poll_reply`.

mod answers;
mod folds;
mod making;
mod operations;
mod running;
mod session;
mod start;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fedge_coordinator::rounds::board::Board;
use fedge_coordinator::rounds::state::{AssignmentId, RoundRecord, TaskState};
use fedge_coordinator::rounds::step::{self, Effect as Decided, Event, View};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_coordinator::store::models::ModelRow;

use self::answers::Waiting;
use self::folds::Sum;
use self::making::Job;
pub(super) use self::running::Setup;
use self::running::{Base, Running};
use self::session::{Held, Session};
use self::upload::Upload;
use super::Bug;
use super::clock::Ms;
use super::database::{Accepted, Change, Database};
use super::disk::Disk;
use super::effect::Effect;
use super::env::{Crash, Env, Trouble};
use super::message::{Body, COORDINATOR, Host, Message};

/// How often time alone is looked at.
const TICK_MS: Ms = 500;
/// How often the clock is recorded without a step.
const SAVE_CLOCK_MS: Ms = 3_000;

/// What the coordinator waits for.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    /// Time passes.
    Tick,
    /// Answers wait to be recorded.
    Persist,
    /// An update is to be added to this sum.
    Fold(u64, AssignmentId),
    /// The next stage of making the version of this sum.
    Make(u64),
    /// A poll of a node's call is held no longer.
    PollEnds(Host, u64),
    /// Nothing came of an upload of a node's call since its part of this number.
    UploadSilent(Host, u64, u64),
}

/// The coordinator: what lasts, and the process, if it is alive.
#[derive(Debug)]
pub struct Coordinator {
    pub(super) disk: Disk,
    pub(super) database: Database,
    pub(super) setup: Arc<Setup>,
    pub(super) process: Option<Process>,
}

/// What a crash takes away.
#[derive(Debug)]
pub struct Process {
    pub(super) tasks: BTreeMap<String, Running>,
    board: Board,
    sessions: BTreeMap<Host, Session>,
    /// Nodes that tasks of before the start wait for, by lineage.
    awaited: BTreeMap<String, BTreeSet<String>>,
    waiting: Vec<Waiting>,
    persisting: bool,
    uploads: BTreeMap<Host, Upload>,
    held: BTreeMap<Host, Held>,
    sums: BTreeMap<u64, Sum>,
    jobs: BTreeMap<u64, Job>,
    /// Counts the sums, so that what comes late for an old one is told apart.
    generations: u64,
    /// Bytes promised to updates that are growing or whole.
    promised: BTreeMap<([u8; 16], [u8; 4]), u64>,
    clock_base_ms: u64,
    started: Ms,
    saved_ms: u64,
}

/// A new version on disk, not recorded yet.
#[derive(Debug)]
pub(super) struct Minted {
    row: ModelRow,
    base: Base,
    folded: Vec<AssignmentId>,
}

/// What was decided and is not recorded yet.
pub(super) struct Decision {
    next: TaskState,
    effects: Vec<Decided>,
    now_ms: u64,
    available: BTreeSet<String>,
    updates: Vec<Accepted>,
    minted: Option<Minted>,
}

impl Decision {
    /// Decides what comes of one more event, at the same moment as those before it.
    fn event(&mut self, spec: &TaskSpec, event: &Event) {
        let view = View {
            now_ms: self.now_ms,
            available: &self.available,
            resting: &BTreeSet::new(),
            drifting: &BTreeMap::new(),
        };
        let (next, effects) = step::step(spec, self.next.clone(), event, view);
        self.next = next;
        self.effects.extend(effects);
    }
}

impl Coordinator {
    /// A coordinator whose process has not been started. Version 1 of each lineage is published.
    pub fn new(setup: Arc<Setup>) -> Coordinator {
        let mut coordinator =
            Coordinator { disk: Disk::default(), database: Database::default(), setup, process: None };
        coordinator.publish();
        coordinator
    }

    /// A message has arrived.
    ///
    /// # Errors
    /// The process dies.
    pub fn hear(&mut self, env: &mut Env, message: Message) -> Result<(), Crash> {
        let (node, call) = (message.from, message.call);
        match message.body {
            Body::Hello => self.hello(env, node, call),
            Body::Heartbeat(samples) => self.heartbeat(env, node, call, &samples),
            Body::Poll(seen) => self.poll(env, node, call, seen),
            Body::Fetch(digest) => self.fetch(env, node, call, digest),
            Body::Find(id, sha256) => self.find_upload(env, node, call, id, sha256),
            Body::Begin(begin) => self.upload_begins(env, node, call, *begin),
            Body::Chunk(at, bytes) => self.upload_goes_on(env, node, call, at, &bytes),
            Body::Commit => self.upload_ends(env, node, call),
            Body::Decline(id) => self.declined(env, node, call, id),
            Body::Report(id) => self.evaluated(env, node, call, id),
            _ => Ok(()),
        }
    }

    /// A timer has run out.
    ///
    /// # Errors
    /// The process dies.
    pub fn timer(&mut self, env: &mut Env, timer: Timer) -> Result<(), Crash> {
        match timer {
            Timer::Tick => self.tick(env),
            Timer::Persist => self.persist_answers(env),
            Timer::Fold(generation, id) => self.fold(env, generation, id),
            Timer::Make(generation) => self.make(env, generation),
            Timer::PollEnds(node, call) => self.poll_ends(env, node, call),
            Timer::UploadSilent(node, call, part) => self.upload_is_silent(env, node, call, part),
        }
    }

    fn tick(&mut self, env: &mut Env) -> Result<(), Crash> {
        env.coordinator_timer(TICK_MS, Timer::Tick);
        let ids: Vec<String> = self.process.iter().flat_map(|process| process.tasks.keys().cloned()).collect();
        for id in ids {
            // What could not be recorded is tried again by the next tick.
            survive(self.event(env, &id, &Event::Tick, None))?;
        }
        let now_ms = self.now_ms(env);
        let Some(process) = &mut self.process else { return Ok(()) };
        if now_ms >= process.saved_ms + SAVE_CLOCK_MS {
            process.saved_ms = now_ms;
            survive(self.record_clock(env, now_ms))?;
        }
        Ok(())
    }

    fn record_clock(&mut self, env: &mut Env, now_ms: u64) -> Result<(), Trouble> {
        let struck = env.begin(COORDINATOR, Effect::RecordClock)?;
        if !struck.in_the_middle() {
            let elapsed = self.later(env, now_ms);
            self.database.elapsed_ms = elapsed;
            env.checks.clock_recorded(elapsed);
        }
        Ok(env.end(COORDINATOR, struck)?)
    }

    /// The time to record: never before what is recorded.
    fn later(&self, env: &Env, now_ms: u64) -> u64 {
        match env.bug {
            Some(Bug::ClockRunsBackward) => now_ms,
            _ => now_ms.max(self.database.elapsed_ms),
        }
    }

    /// Persisted elapsed milliseconds.
    fn now_ms(&self, env: &Env) -> u64 {
        if env.bug == Some(Bug::ClockRunsBackward) {
            return (env.wall_ms(COORDINATOR) - 1_690_000_000_000).unsigned_abs();
        }
        self.process.as_ref().map_or(0, |process| process.clock_base_ms + (env.time() - process.started))
    }

    /// One event of a task; false: there is no such running task.
    fn event(&mut self, env: &mut Env, task_id: &str, event: &Event, minted: Option<Minted>) -> Result<bool, Trouble> {
        if !self.process.as_ref().is_some_and(|process| process.tasks.contains_key(task_id)) {
            return Ok(false);
        }
        if minted.is_none() && self.aggregation_is_missing(task_id) {
            self.fold_again(env, task_id);
            self.spawn_making(env, task_id);
        }
        let Some(mut decision) = self.decision(env, task_id) else { return Ok(false) };
        if let Some(running) = self.running(task_id) {
            decision.event(&running.spec, event);
        }
        decision.minted = minted;
        self.apply(env, task_id, decision).map(|()| true)
    }

    /// A decision that has decided nothing yet.
    fn decision(&self, env: &mut Env, task_id: &str) -> Option<Decision> {
        let running = self.running(task_id)?;
        let now_ms = self.now_ms(env);
        env.checks.decided_at(now_ms);
        Some(Decision {
            next: running.state.clone(),
            effects: Vec::new(),
            now_ms,
            available: self.available(env, &running.spec.model),
            updates: Vec::new(),
            minted: None,
        })
    }

    /// Records a decision, then acts on it.
    fn apply(&mut self, env: &mut Env, task_id: &str, decision: Decision) -> Result<(), Trouble> {
        let Some(before) = self.running(task_id).map(|running| running.state.clone()) else { return Ok(()) };
        let Decision { next, effects, now_ms, updates, minted, .. } = decision;
        if next == before && effects.is_empty() {
            return Ok(());
        }
        let rounds: Vec<RoundRecord> = effects
            .iter()
            .filter_map(|effect| match effect {
                Decided::RecordRound(record) => Some(record.clone()),
                _ => None,
            })
            .collect();
        let elapsed_ms = self.later(env, now_ms);
        let change = Change {
            state: &next,
            elapsed_ms,
            updates: &updates,
            minted: minted.as_ref().map(|minted| &minted.row),
            rounds: &rounds,
        };
        let folded = minted.as_ref().map(|minted| minted.folded.clone()).unwrap_or_default();
        self.record(env, task_id, &change, &folded)?;
        env.note(format_args!("coordinator: {task_id} round {} {}", next.round, running::phase_of(&next)));
        self.enter(env, task_id, next, minted, &updates);
        for effect in &effects {
            if matches!(effect, Decided::Aggregate { .. }) {
                self.spawn_making(env, task_id);
            }
        }
        self.clean_up(env, task_id, &before)?;
        Ok(self.put_up_board(env)?)
    }

    /// One transaction.
    fn record(
        &mut self,
        env: &mut Env,
        task_id: &str,
        change: &Change<'_>,
        folded: &[AssignmentId],
    ) -> Result<(), Trouble> {
        let effect = match change {
            Change { minted: Some(_), .. } => Effect::RecordVersion,
            Change { updates: [_, ..], .. } => Effect::RecordUpdates,
            Change { rounds: [_, ..], .. } => Effect::RecordRound,
            _ => Effect::RecordStep,
        };
        let struck = env.begin(COORDINATOR, effect)?;
        // A transaction that a crash meets is there or not: nobody can say which.
        let is_lost = struck.in_the_middle() && rand::RngExt::random_bool(&mut env.rng, 0.5);
        if !is_lost {
            self.save_step(env, task_id, change, folded)?;
        }
        Ok(env.end(COORDINATOR, struck)?)
    }

    fn save_step(
        &mut self,
        env: &mut Env,
        task_id: &str,
        change: &Change<'_>,
        folded: &[AssignmentId],
    ) -> Result<(), Trouble> {
        let (Some(row), Some(running)) = (self.database.tasks.get(task_id), self.running(task_id)) else {
            return Ok(());
        };
        let (before, spec) = (row.state.clone(), running.spec.clone());
        env.checks.recorded(&spec, &before, change, folded);
        let saved = self.database.save_step(change);
        self.database.elapsed_ms = change.elapsed_ms;
        if let Err(problem) = saved {
            let invariant = super::invariants::Invariant::RecordsAreSound;
            env.checks.fail(invariant, format!("a step of {task_id}: {problem}"));
            return Err(Trouble::Disk);
        }
        if env.bug == Some(Bug::RoundClosesTwice) && (change.minted.is_some() || !change.rounds.is_empty()) {
            // The state is recorded in a transaction of its own.
            self.database.save_state(&before);
            let struck = env.begin(COORDINATOR, Effect::RecordStep)?;
            if !struck.in_the_middle() {
                self.database.save_state(change.state);
            }
            env.end(COORDINATOR, struck)?;
        }
        Ok(())
    }

    fn running(&self, task_id: &str) -> Option<&Running> {
        self.process.as_ref().and_then(|process| process.tasks.get(task_id))
    }

    fn running_mut(&mut self, task_id: &str) -> Option<&mut Running> {
        self.process.as_mut().and_then(|process| process.tasks.get_mut(task_id))
    }

    /// Whether every recorded task has ended.
    pub fn is_done(&self) -> bool {
        self.database.running().is_empty()
    }

    /// Queues and files within their bounds.
    pub fn check_bounds(&self, checks: &mut super::invariants::Checks) {
        let Some(process) = &self.process else { return };
        let nodes = self.setup.nodes.len();
        let tasks = process.tasks.len();
        checks.bound("uploads at once", process.uploads.len(), nodes);
        checks.bound("polls held", process.held.len(), nodes);
        // Of each node: an upload's end, a refusal and a report, each perhaps twice.
        checks.bound("answers waiting", process.waiting.len(), 8 * nodes);
        checks.bound("sums", process.sums.len(), 2 * tasks + process.jobs.len());
        let used = self.disk.used(super::disk::Folder::Spool);
        checks.bound("bytes in the spool", used as usize, self.setup.spool_bytes as usize);
    }
}

/// A disk's refusal is not the end: what failed is tried again by whoever wanted it.
fn survive<T>(outcome: Result<T, Trouble>) -> Result<(), Crash> {
    match outcome {
        Err(Trouble::Crash) => Err(Crash),
        _ => Ok(()),
    }
}
