//! The work behind an assignment: the version is fetched, then trained into a persisted update, or evaluated into a report.
//! When it runs and what becomes of it is decided in `participant`.

use fedge_models::Digest;
use fedge_node::federation::convert::{Assignment, AssignmentId};
use fedge_node::federation::participant::Event;
use rand::RngExt;

use super::outbox::Update;
use super::session::Call;
use super::{Node, Timer};
use crate::faults::arithmetic::{encode, memory, payload, rest_of, values_of};
use crate::faults::disk::Id;
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Struck, Trouble};
use crate::faults::message::{Body, Sha};
use crate::faults::trace::Short;

/// Attempts at a version or a report.
const ATTEMPTS: u32 = 12;

/// Work that is under way.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: Id,
    serial: u64,
    version: Sha,
    training: bool,
    stage: Stage,
    attempts: u32,
}

#[derive(Debug)]
enum Stage {
    Fetching,
    Training(Struck),
    Evaluating,
    Reporting,
}

impl Node {
    pub(super) fn begin_work(&mut self, env: &mut Env, assignment: &Assignment) -> Result<(), Crash> {
        let (training, version) = match assignment {
            Assignment::Train { base, .. } => (true, base),
            Assignment::Evaluate { version, .. } => (false, version),
        };
        let version = *version.manifest.digest.as_bytes();
        let id = assignment.id().0;
        let what = if training { "trains" } else { "evaluates" };
        env.note(format_args!("node {}: {what} {} for {}", self.host, Short(&version), Short(&id)));
        let Some(process) = &mut self.process else { return Ok(()) };
        process.serial += 1;
        let serial = process.serial;
        process.work = Some(Work { id, serial, version, training, stage: Stage::Fetching, attempts: 0 });
        self.work_goes_on(env, serial)
    }

    /// The next stage, when its time has come.
    pub(super) fn work_goes_on(&mut self, env: &mut Env, serial: u64) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(work) = process.work.as_mut().filter(|work| work.serial == serial) else { return Ok(()) };
        let (id, version) = (work.id, work.version);
        match &work.stage {
            Stage::Fetching if process.versions.iter().any(|(have, _)| *have == version) => {
                if work.training {
                    self.begin_training(env, serial)
                } else {
                    self.begin_evaluating(env, serial)
                }
            }
            Stage::Fetching => {
                work.attempts += 1;
                if work.attempts > ATTEMPTS {
                    return self.fail(env, "its version can't be had");
                }
                self.call(env, Call::Fetch(serial), Body::Fetch(version)).map(drop)
            }
            Stage::Training(_) => self.end_training(env),
            Stage::Evaluating | Stage::Reporting => {
                work.stage = Stage::Reporting;
                work.attempts += 1;
                if work.attempts > ATTEMPTS {
                    return self.fail(env, "its report does not arrive");
                }
                self.call(env, Call::Report(serial), Body::Report(id)).map(drop)
            }
        }
    }

    pub(super) fn fetched(&mut self, env: &mut Env, serial: u64, body: Option<Body>) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(work) = process.work.as_ref().filter(|work| work.serial == serial) else { return Ok(()) };
        match body {
            Some(Body::File(Some(file))) if Digest::of(&file).as_bytes() == &work.version => {
                process.versions.push((work.version, file));
                // The newest few are enough: older ones are fetched again.
                let surplus = process.versions.len().saturating_sub(4);
                process.versions.drain(..surplus);
                self.work_goes_on(env, serial)
            }
            _ => {
                env.node_timer(self.host, 300, Timer::Work(serial));
                Ok(())
            }
        }
    }

    fn begin_training(&mut self, env: &mut Env, serial: u64) -> Result<(), Crash> {
        let Ok(struck) = env.begin(self.host, Effect::Train) else { return Err(Crash) };
        let slower = env.slowness(self.host, Effect::Train);
        let mut after = env.rng.random_range(self.habits.training_ms / 2..self.habits.training_ms * 3 / 2) * slower;
        if struck.in_the_middle() {
            after = env.rng.random_range(0..after);
        }
        if let Some(work) = self.process.as_mut().and_then(|process| process.work.as_mut()) {
            work.stage = Stage::Training(struck);
        }
        env.node_timer(self.host, after, Timer::Work(serial));
        Ok(())
    }

    fn begin_evaluating(&mut self, env: &mut Env, serial: u64) -> Result<(), Crash> {
        if let Some(work) = self.process.as_mut().and_then(|process| process.work.as_mut()) {
            (work.stage, work.attempts) = (Stage::Evaluating, 0);
        }
        let after = env.rng.random_range(50..500);
        env.node_timer(self.host, after, Timer::Work(serial));
        Ok(())
    }

    fn end_training(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Some(work) = self.process.as_mut().and_then(|process| process.work.take()) else { return Ok(()) };
        let Work { id, version, stage: Stage::Training(struck), .. } = work else { return Ok(()) };
        env.end(self.host, struck)?;
        let declines = if env.is_quiet() { 0 } else { self.habits.declines };
        if env.rng.random_range(0..100) < declines {
            self.post(env, Event::Failed(AssignmentId(id), "training diverged".to_owned()));
            return Ok(());
        }
        match self.persist(env, id, version) {
            Err(Trouble::Crash) => Err(Crash),
            Err(Trouble::Disk) => {
                // Half an update is none.
                self.discard(env, id)?;
                self.post(env, Event::Failed(AssignmentId(id), "the disk failed".to_owned()));
                Ok(())
            }
            Ok(()) => {
                self.post(env, Event::Trained(AssignmentId(id)));
                Ok(())
            }
        }
    }

    /// What was learned, and what the last counted update of the task lost, is encoded and persisted.
    fn persist(&mut self, env: &mut Env, id: Id, version: Sha) -> Result<(), Trouble> {
        // The rest of a counted update has to be valid before the next one of its task builds on it.
        let unkept = self.process.as_mut().map(|process| std::mem::take(&mut process.unkept)).unwrap_or_default();
        for counted in unkept {
            if let Err(trouble) = self.keep(env, counted) {
                self.process.as_mut().map(|process| process.unkept.push(counted));
                return Err(trouble);
            }
        }
        let Some(process) = &self.process else { return Ok(()) };
        let task = process.tasks.iter().find(|(told, _)| *told == id).map_or(0, |(_, task)| *task);
        let values = process.versions.iter().find(|(have, _)| *have == version).map(|(_, file)| values_of(file));
        let len = values.unwrap_or_default().len();
        self.trainings += 1;
        let mut delta: Vec<i32> = (0..len).map(|_| env.rng.random_range(-100..=100)).collect();
        let learned = delta.clone();
        let remembered = self.memory(task).map(rest_of).unwrap_or_default();
        delta.iter_mut().zip(&remembered).for_each(|(whole, rest)| *whole += rest);
        let (sent, rest) = encode(&delta, self.habits.coarseness);
        let payload = payload(&sent);
        let sha256 = *Digest::of(&payload).as_bytes();
        let update = Update {
            task,
            leftover: self.habits.coarseness > 1,
            written_ms: env.wall_ms(self.host),
            examples: env.rng.random_range(1..=20),
            base: version,
            sha256,
            payload,
        };
        env.checks.learned(id, sha256, learned, sent);
        env.note(format_args!("node {}: trained {} into {}", self.host, Short(&id), Short(&sha256)));
        let rest = update.leftover.then(|| memory(&rest));
        self.put(env, id, &update, rest.as_deref())
    }

    pub(super) fn reported(&mut self, env: &mut Env, serial: u64, body: Option<Body>) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(work) = process.work.take_if(|work| work.serial == serial) else { return Ok(()) };
        if let Some(Body::Heard) = body {
            self.post(env, Event::Evaluated(AssignmentId(work.id)));
        } else {
            process.work = Some(work);
            env.node_timer(self.host, 300, Timer::Work(serial));
        }
        Ok(())
    }

    fn fail(&mut self, env: &mut Env, reason: &str) -> Result<(), Crash> {
        if let Some(work) = self.process.as_mut().and_then(|process| process.work.take()) {
            self.post(env, Event::Failed(AssignmentId(work.id), reason.to_owned()));
        }
        Ok(())
    }
}
