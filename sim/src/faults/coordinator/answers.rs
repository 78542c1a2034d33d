//! What nodes answer: queued, and whatever waits is recorded in one step a task, then answered. Admission is `step`'s.
//! How an update arrives is in `upload`.

use std::collections::BTreeMap;

use fedge_coordinator::rounds::state::{AssignmentId, Evaluation, TaskState, TrainedUpdate};
use fedge_coordinator::rounds::step::{Admission, Event, admit};
use rand::RngExt;

use super::folds::short;
use super::{Coordinator, Decision, Timer};
use crate::faults::Bug;
use crate::faults::database::Accepted;
use crate::faults::disk::{Id, Name};
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::message::{Body, COORDINATOR, Host, Sha};

/// An answer that waits to be recorded.
#[derive(Debug)]
pub(super) struct Waiting {
    node: Host,
    call: u64,
    id: AssignmentId,
    said: Said,
}

/// What a node says of an assignment.
#[derive(Debug)]
enum Said {
    /// A verified update; a small one comes along.
    Trained(TrainedUpdate, Option<Vec<u8>>),
    Declined(String),
    Evaluated,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Awaited.
    Open,
    /// Recorded.
    Noted,
    /// Recorded before.
    Duplicate,
    /// Another update was.
    Conflict,
    /// Too old.
    Stale,
    /// Nobody waits for it.
    Closed,
    /// Another node's.
    Foreign,
}

impl Coordinator {
    /// Whether an update of a node is awaited; and the task.
    pub(super) fn admission(&self, node: Host, id: AssignmentId, sha256: Option<Sha>) -> (Answer, Option<String>) {
        let tasks = self.process.iter().flat_map(|process| process.tasks.values());
        let found = tasks.filter_map(|running| owner(&running.state, id).map(|owner| (running, owner))).next();
        match found {
            None => (Answer::Closed, None),
            Some((_, owner)) if owner != self.setup.name(node) => (Answer::Foreign, None),
            Some((running, _)) => {
                let answer = answer_of(admit(&running.spec, &running.state, id, sha256));
                (answer, Some(running.state.task_id.clone()))
            }
        }
    }

    /// A verified update waits to be recorded.
    pub(super) fn commit(
        &mut self,
        env: &mut Env,
        node: Host,
        call: u64,
        id: AssignmentId,
        update: TrainedUpdate,
        row: Option<Vec<u8>>,
    ) -> Result<(), Crash> {
        let sha256 = update.sha256;
        self.wait(env, Waiting { node, call, id, said: Said::Trained(update, row) });
        if env.bug == Some(Bug::AcknowledgesBeforeRecording) {
            return self.receipt(env, node, call, id, &sha256);
        }
        Ok(())
    }

    pub(super) fn declined(&mut self, env: &mut Env, node: Host, call: u64, id: Id) -> Result<(), Crash> {
        let said = Said::Declined("it can't".to_owned());
        self.wait(env, Waiting { node, call, id: AssignmentId(id), said });
        Ok(())
    }

    /// An update that will never be right is not waited for.
    pub(super) fn give_up_on(&mut self, env: &mut Env, node: Host, id: AssignmentId) {
        let said = Said::Declined("its update was refused".to_owned());
        self.wait(env, Waiting { node, call: 0, id, said });
    }

    pub(super) fn evaluated(&mut self, env: &mut Env, node: Host, call: u64, id: Id) -> Result<(), Crash> {
        self.wait(env, Waiting { node, call, id: AssignmentId(id), said: Said::Evaluated });
        Ok(())
    }

    fn wait(&mut self, env: &mut Env, waiting: Waiting) {
        let Some(process) = &mut self.process else { return };
        process.waiting.push(waiting);
        if !std::mem::replace(&mut process.persisting, true) {
            // A disk that is busy now and then.
            let slow = env.rng.random_ratio(1, 20);
            let after = env.rng.random_range(1..if slow { 4_000 } else { 60 });
            env.coordinator_timer(after, Timer::Persist);
        }
    }

    /// Records all answers that wait, one step a task.
    pub(super) fn persist_answers(&mut self, env: &mut Env) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.persisting = false;
        let mut by_task: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
        let mut at_once = Vec::new();
        for waiting in std::mem::take(&mut process.waiting) {
            let owner =
                process.tasks.iter().find_map(|(task, running)| Some((task, owner(&running.state, waiting.id)?)));
            match owner {
                Some((task, owner)) if owner == self.setup.name(waiting.node) => {
                    by_task.entry(task.clone()).or_default().push(waiting);
                }
                Some(_) => at_once.push((waiting, Answer::Foreign)),
                None => at_once.push((waiting, Answer::Closed)),
            }
        }
        for (waiting, answer) in at_once {
            self.reply_to(env, &waiting, &answer)?;
        }
        for (task_id, waiting) in by_task {
            let Some((decision, answered)) = self.decide(env, &task_id, waiting) else { continue };
            let outcome = match self.apply(env, &task_id, decision) {
                Err(Trouble::Crash) => return Err(Crash),
                outcome => outcome,
            };
            for (waiting, answer) in answered {
                match outcome {
                    Ok(()) => self.reply_to(env, &waiting, &answer)?,
                    // Nothing of the step is on disk.
                    Err(_) => self.end_upload(env, waiting.node, waiting.call, Body::TryAgain)?,
                }
            }
        }
        Ok(())
    }

    /// One decision after the other: each answer is admitted by the state as it is after those before it.
    fn decide(
        &mut self,
        env: &mut Env,
        task_id: &str,
        waiting: Vec<Waiting>,
    ) -> Option<(Decision, Vec<(Waiting, Answer)>)> {
        let mut decision = self.decision(env, task_id)?;
        let spec = self.running(task_id)?.spec.clone();
        let mut answered = Vec::new();
        for waiting in waiting {
            let answer = match &waiting.said {
                Said::Trained(update, row) => {
                    match answer_of(admit(&spec, &decision.next, waiting.id, Some(update.sha256))) {
                        Answer::Open => {
                            decision.updates.push(Accepted {
                                id: waiting.id,
                                node: waiting.node,
                                update: update.clone(),
                                payload: row.clone(),
                            });
                            decision.event(&spec, &Event::UpdateCommitted(waiting.id, update.clone()));
                            Answer::Noted
                        }
                        other => other,
                    }
                }
                // Its round may have closed within this very step.
                _ if owner(&decision.next, waiting.id).is_none() => Answer::Closed,
                Said::Declined(reason) => {
                    decision.event(&spec, &Event::Declined(waiting.id, reason.clone()));
                    Answer::Noted
                }
                Said::Evaluated => {
                    let result = Evaluation {
                        examples: 4,
                        correct_float: 3,
                        correct_served: 3,
                        loss: 0.5,
                        precision: "float".to_owned(),
                    };
                    decision.event(&spec, &Event::Evaluated(waiting.id, result));
                    Answer::Noted
                }
            };
            answered.push((waiting, answer));
        }
        Some((decision, answered))
    }

    fn reply_to(&mut self, env: &mut Env, waiting: &Waiting, answer: &Answer) -> Result<(), Crash> {
        let Waiting { node, call, id, said } = waiting;
        let Said::Trained(update, _) = said else {
            // What the coordinator gave up on by itself was nobody's call.
            return if *call == 0 { Ok(()) } else { env.send(COORDINATOR, *node, *call, Body::Heard) };
        };
        match answer {
            Answer::Noted | Answer::Duplicate => self.receipt(env, *node, *call, *id, &update.sha256),
            _ => self.earlier(env, *node, *call, *id, &update.sha256, answer),
        }
    }

    /// What came of an assignment that is not open: the same receipt for the same bytes, also after its round.
    pub(super) fn earlier(
        &mut self,
        env: &mut Env,
        node: Host,
        call: u64,
        id: AssignmentId,
        sha256: &Sha,
        answer: &Answer,
    ) -> Result<(), Crash> {
        let recorded = self.database.updates.get(&id).map(|row| row.sha256 == *sha256 && row.node == node);
        match (recorded, answer) {
            (Some(true), _) => self.receipt(env, node, call, id, sha256),
            (_, Answer::Stale) => self.end_upload(env, node, call, Body::Refused("stale")),
            (_, Answer::Foreign) => self.end_upload(env, node, call, Body::Refused("foreign")),
            (Some(false), _) => self.end_upload(env, node, call, Body::Refused("conflict")),
            (None, _) => self.end_upload(env, node, call, Body::Refused("closed")),
        }
    }

    /// Acknowledges an update.
    pub(super) fn receipt(
        &mut self,
        env: &mut Env,
        node: Host,
        call: u64,
        id: AssignmentId,
        sha256: &Sha,
    ) -> Result<(), Crash> {
        let row = self.database.updates.get(&id).is_some_and(|row| row.payload.is_some());
        let spooled = self.disk.lasting(Name::Spooled(id.0, short(sha256)));
        let lasts = row || spooled.is_some_and(|file| fedge_models::Digest::of(file).as_bytes() == sha256);
        env.checks.acknowledged(id, sha256, lasts);
        self.end_upload(env, node, call, Body::Counted)
    }
}

/// The node that an assignment of a running round belongs to.
fn owner(state: &TaskState, id: AssignmentId) -> Option<&str> {
    state.work(id).map(|work| work.node.as_str()).or_else(|| state.evaluator(id))
}

fn answer_of(admission: Admission) -> Answer {
    match admission {
        Admission::Open => Answer::Open,
        Admission::Duplicate => Answer::Duplicate,
        Admission::Conflict => Answer::Conflict,
        Admission::Stale(_) => Answer::Stale,
        Admission::Closed => Answer::Closed,
    }
}
