//! From a sum to a version on disk, stage by stage, each of which other events may interrupt.
//! The arithmetic is `arithmetic`'s; what the result leads to is decided in `step`.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::Sums;
use fedge_coordinator::rounds::state::{AssignmentId, Phase, ServerState, TaskState, VersionRef};
use fedge_coordinator::rounds::step::Event;
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::Digest;
use rand::RngExt;

use super::folds::Sum;
use super::running::{Base, row};
use super::{Coordinator, Minted, Timer, survive};
use crate::faults::arithmetic::{Made, close, file_of, in_order, kept_of};
use crate::faults::disk::Name;
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::invariants::Invariant;
use crate::faults::message::COORDINATOR;

/// The making of a version.
#[derive(Debug)]
pub(super) struct Job {
    task: String,
    index: u8,
    lineage: u8,
    round: u64,
    pub(super) spec: Arc<TaskSpec>,
    base: Base,
    server: Option<ServerState>,
    population: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Clear,
    Write,
    Keep(Made),
    Report(Made),
}

impl Coordinator {
    /// Whether the state says that a version is being made while nobody makes it.
    pub(super) fn aggregation_is_missing(&self, task_id: &str) -> bool {
        self.running(task_id).is_some_and(|running| {
            matches!(running.state.phase, Phase::Aggregating { .. }) && running.making != Some(running.state.round)
        })
    }

    /// Begins to make the round's version, unless that is under way.
    pub(super) fn spawn_making(&mut self, env: &mut Env, task_id: &str) {
        if !self.aggregation_is_missing(task_id) {
            return;
        }
        let Some(process) = &mut self.process else { return };
        let Some(running) = process.tasks.get_mut(task_id) else { return };
        let Phase::Aggregating { population, .. } = running.state.phase else { return };
        let Some((lineage, _)) = self.setup.lineage(&running.spec.model) else { return };
        running.making = Some(running.state.round);
        let generation = running.sum.take().unwrap_or_else(|| {
            process.generations += 1;
            process.generations
        });
        let (scales, count) = (running.base.scales.clone(), running.spec.strategy.strategy().sums());
        let sum = process.sums.entry(generation).or_insert_with(|| Sum::new(task_id, Sums::new(scales, count)));
        if sum.todo.is_empty() {
            env.coordinator_timer(1, Timer::Make(generation));
        }
        let job = Job {
            task: task_id.to_owned(),
            index: running.index,
            lineage,
            round: running.state.round,
            spec: running.spec.clone(),
            base: running.base.clone(),
            server: running.state.server.clone(),
            population,
            stage: Stage::Clear,
        };
        process.jobs.insert(generation, job);
    }

    /// The next stage.
    pub(super) fn make(&mut self, env: &mut Env, generation: u64) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(mut job) = process.jobs.remove(&generation) else { return Ok(()) };
        let outcome = match std::mem::replace(&mut job.stage, Stage::Clear) {
            Stage::Clear => self.clear(env, &job).map(|()| Stage::Write),
            Stage::Write => self.write(env, &job, generation).map(Stage::Keep),
            Stage::Keep(made) => self.keep(env, &job, &made).map(|()| Stage::Report(made)),
            Stage::Report(made) => return self.report(env, &job, generation, made),
        };
        match outcome {
            Ok(stage) => {
                job.stage = stage;
                if let Some(process) = &mut self.process {
                    process.jobs.insert(generation, job);
                }
                let slow = env.rng.random_ratio(1, 10);
                let after = env.rng.random_range(1..if slow { 2_000 } else { 60 });
                env.coordinator_timer(after, Timer::Make(generation));
                Ok(())
            }
            Err(Failure::Trouble(Trouble::Crash)) => Err(Crash),
            Err(failure) => self.give_up(env, &job, generation, failure),
        }
    }

    /// Removes the files of a version that has no row.
    fn clear(&mut self, env: &mut Env, job: &Job) -> Result<(), Failure> {
        let struck = env.begin(COORDINATOR, Effect::VersionClear)?;
        let number = job.base.number + 1;
        if !self.database.versions.contains_key(&(job.spec.model.clone(), number)) && !struck.in_the_middle() {
            self.disk.remove(Name::Version(job.lineage, number));
        }
        Ok(env.end(COORDINATOR, struck)?)
    }

    /// Makes the version and gives it its lasting name.
    fn write(&mut self, env: &mut Env, job: &Job, generation: u64) -> Result<Made, Failure> {
        let sum = self.process.as_mut().and_then(|process| process.sums.get_mut(&generation));
        let Some(sum) = sum else { return Err(Failure::NoVersion("its sum is gone".into())) };
        if let Some(problem) = &sum.broken {
            return Err(Failure::NoVersion(problem.clone()));
        }
        let (facts, sums) = (in_order(&mut sum.folded), sum.sums.clone());
        let file = job.server.as_ref().map(|_| self.disk.read(Name::Kept(job.index, job.base.number)));
        let file = match (file, &job.server) {
            (Some(file), Some(server)) => match file.filter(|file| Digest::of(file) == server.digest) {
                Some(file) => Some(file),
                None => {
                    let what = format!("what {} kept beside version {} is gone", job.task, job.base.number);
                    env.checks.fail(Invariant::RecordsAreSound, what);
                    return Err(Failure::NoVersion("the strategy's state is gone".into()));
                }
            },
            _ => None,
        };
        let kept = kept_of(&job.spec.strategy, file, job.base.values.len());
        let made = close(&job.spec.strategy, sums, &facts, job.population, &job.base.values, kept);
        let made = made.map_err(|error| Failure::NoVersion(error.to_string()))?;
        let number = job.base.number + 1;
        let (stage, name) = (Name::VersionStage(job.lineage, number), Name::Version(job.lineage, number));
        let file = file_of(&made.values);
        if self.disk.read(name).is_some_and(|other| *other != file[..]) {
            return Err(Failure::NoVersion(format!("another version {number} is there already")));
        }
        use Effect::{VersionFolderSync, VersionName, VersionSync, VersionWrite};
        self.write_file(env, stage, name, &file, [VersionWrite, VersionSync, VersionName, VersionFolderSync])?;
        Ok(made)
    }

    fn keep(&mut self, env: &mut Env, job: &Job, made: &Made) -> Result<(), Failure> {
        if made.kept.is_empty() {
            return Ok(());
        }
        let number = job.base.number + 1;
        let (stage, name) = (Name::KeptStage(job.index, number), Name::Kept(job.index, number));
        use Effect::{KeptFolderSync, KeptName, KeptSync, KeptWrite};
        self.write_file(env, stage, name, &made.kept_file(), [KeptWrite, KeptSync, KeptName, KeptFolderSync])
    }

    /// Written beside, synced, renamed, the folder synced.
    fn write_file(
        &mut self,
        env: &mut Env,
        stage: Name,
        name: Name,
        file: &[u8],
        [write, sync, rename, folder_sync]: [Effect; 4],
    ) -> Result<(), Failure> {
        self.disk.remove(stage);
        let struck = env.begin(COORDINATOR, write)?;
        self.disk.create(stage);
        let len = if struck.in_the_middle() { env.rng.random_range(0..=file.len()) } else { file.len() };
        let _ = self.disk.append(stage, file.get(..len).unwrap_or_default());
        env.end(COORDINATOR, struck)?;
        let struck = env.begin(COORDINATOR, sync).inspect_err(|_| {
            self.disk.fail_sync(stage);
            self.disk.remove(stage);
        })?;
        let _ = struck.in_the_middle() || self.disk.sync(stage);
        env.end(COORDINATOR, struck)?;
        let struck = env.begin(COORDINATOR, rename).inspect_err(|_| {
            self.disk.remove(stage);
        })?;
        let _ = self.disk.rename(stage, name);
        env.end(COORDINATOR, struck)?;
        let struck = env.begin(COORDINATOR, folder_sync)?;
        if !struck.in_the_middle() {
            self.disk.sync_folder(name.folder());
        }
        Ok(env.end(COORDINATOR, struck)?)
    }

    fn report(&mut self, env: &mut Env, job: &Job, generation: u64, made: Made) -> Result<(), Crash> {
        let sum = self.process.as_mut().and_then(|process| process.sums.remove(&generation));
        let (Some(mut sum), Some((_, lineage))) = (sum, self.setup.lineage(&job.spec.model)) else { return Ok(()) };
        let (number, digest) = (job.base.number + 1, made.digest());
        let row = row(lineage, number, digest, Some(job.base.digest), env.wall_ms(COORDINATOR));
        let kept = (!made.kept.is_empty()).then(|| made.kept_file());
        let server = kept.map(|file| ServerState { digest: Digest::of(&file), size_bytes: file.len() as u64 });
        let Ok(scales) = lineage.scales(&made.values) else { return Ok(()) };
        let base = Base { number, digest, values: Arc::new(made.values), scales };
        sum.folded.sort_by_key(|(_, id, _)| *id);
        let minted = Minted { row, base, folded: sum.folded.iter().map(|(_, id, _)| *id).collect() };
        let event = Event::Aggregated(VersionRef { number, digest }, server);
        let outcome = self.event(env, &job.task, &event, Some(minted));
        self.made(outcome, job)
    }

    /// No version came out.
    fn give_up(&mut self, env: &mut Env, job: &Job, generation: u64, failure: Failure) -> Result<(), Crash> {
        let reason = match failure {
            Failure::NoVersion(reason) => {
                // Of a task that ended meanwhile the updates are gone, and nobody misses them.
                let wanted = self.running(&job.task).is_some_and(|running| running.making == Some(job.round));
                env.checks.require(!wanted, Invariant::AcceptedUpdatesFit, || {
                    format!("round {} of {}: {reason}", job.round, job.task)
                });
                reason
            }
            Failure::Trouble(_) => "the disk failed".to_owned(),
        };
        env.note(format_args!("coordinator: no version of {} round {}: {reason}", job.task, job.round));
        self.process.as_mut().and_then(|process| process.sums.remove(&generation));
        let outcome = self.event(env, &job.task, &Event::AggregationFailed(reason), None);
        self.made(outcome, job)
    }

    /// What could not be recorded is made again.
    fn made(&mut self, outcome: Result<bool, Trouble>, job: &Job) -> Result<(), Crash> {
        match outcome {
            Err(Trouble::Crash) => Err(Crash),
            Err(Trouble::Disk) => {
                if let Some(running) = self.running_mut(&job.task).filter(|r| r.making == Some(job.round)) {
                    running.making = None;
                }
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What no assignment of the task refers to any more may go, and what the strategy kept beside the version before.
    pub(super) fn clean_up(&mut self, env: &mut Env, task_id: &str, before: &TaskState) -> Result<(), Crash> {
        let (server, index) = match self.database.tasks.get(task_id) {
            Some(row) => (row.state.server.clone(), row.index),
            None => return Ok(()),
        };
        let state = self.running(task_id).map(|running| &running.state);
        let kept = |id: &AssignmentId| state.is_some_and(|state| state.assignments().any(|other| other == *id));
        let gone: Vec<AssignmentId> = before.assignments().filter(|id| !kept(id)).collect();
        for id in gone {
            self.remove_spooled(env, id)?;
        }
        if before.server.is_some() && before.server != server {
            survive(self.remove_kept(env, Name::Kept(index, before.base.number)))?;
        }
        Ok(())
    }

    fn remove_kept(&mut self, env: &mut Env, name: Name) -> Result<(), Trouble> {
        let struck = env.begin(COORDINATOR, Effect::KeptRemove)?;
        self.disk.remove(name);
        Ok(env.end(COORDINATOR, struck)?)
    }
}

/// Why no version was made.
enum Failure {
    Trouble(Trouble),
    NoVersion(String),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Failure::Trouble(trouble)
    }
}

impl From<Crash> for Failure {
    fn from(_: Crash) -> Self {
        Failure::Trouble(Trouble::Crash)
    }
}
