//! From recorded updates to a sum: a state is entered, its updates are folded, one by one, each an event of its own.
//! The arithmetic is `arithmetic`'s; what the sum becomes is in `making`.

use std::sync::Arc;

use fedge_coordinator::aggregate::UpdateFacts;
use fedge_coordinator::aggregate::fixed_point::Sums;
use fedge_coordinator::rounds::state::{AssignmentId, Phase, TaskState, WorkStatus};
use fedge_models::Digest;
use rand::RngExt;

use super::{Coordinator, Minted, Timer};
use crate::faults::Bug;
use crate::faults::arithmetic::{facts, fold};
use crate::faults::database::Accepted;
use crate::faults::disk::Name;
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env};
use crate::faults::message::{COORDINATOR, Sha};

/// The sum of a round's updates.
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) task: String,
    pub(super) sums: Arc<Sums>,
    /// Updates on their way into it.
    pub(super) todo: Vec<Todo>,
    /// Updates that are in it.
    pub(super) folded: Vec<(String, AssignmentId, UpdateFacts)>,
    pub(super) broken: Option<String>,
}

/// An update on its way into a sum.
#[derive(Debug)]
pub(super) struct Todo {
    id: AssignmentId,
    node: String,
    facts: UpdateFacts,
    sha256: Sha,
    /// A small one; others are in the spool.
    row: Option<Vec<u8>>,
}

impl Coordinator {
    /// The state is recorded: takes it on, with the sums that belong to it.
    pub(super) fn enter(
        &mut self,
        env: &mut Env,
        task_id: &str,
        next: TaskState,
        minted: Option<Minted>,
        updates: &[Accepted],
    ) {
        let Some(process) = &mut self.process else { return };
        let Some(running) = process.tasks.get_mut(task_id) else { return };
        let new_round = next.round != running.state.round;
        let closes = matches!(next.phase, Phase::Aggregating { .. });
        running.state = next;
        if let Some(minted) = minted {
            running.base = minted.base;
        }
        if new_round || !matches!(running.state.phase, Phase::Training { .. } | Phase::Aggregating { .. }) {
            running.sum.take().map(|sum| process.sums.remove(&sum));
        }
        if matches!(running.state.phase, Phase::Ended { .. }) {
            process.tasks.remove(task_id);
            return;
        }
        if new_round {
            // An asynchronous round begins with what came while the version before was made.
            return self.fold_again(env, task_id);
        }
        let late = closes && env.bug == Some(Bug::ForgetsALateUpdate);
        let known = updates.len() - usize::from(late && !updates.is_empty());
        for accepted in updates.iter().take(known) {
            self.plan_fold(env, task_id, accepted.id);
        }
    }

    /// Begins the round's sum again and folds every accepted update into it.
    pub(super) fn fold_again(&mut self, env: &mut Env, task_id: &str) {
        let Some(process) = &mut self.process else { return };
        let Some(running) = process.tasks.get_mut(task_id) else { return };
        running.sum.take().map(|sum| process.sums.remove(&sum));
        if !matches!(running.state.phase, Phase::Training { .. } | Phase::Aggregating { .. }) {
            return;
        }
        for id in running.trained() {
            self.plan_fold(env, task_id, id);
            if env.bug == Some(Bug::FoldsTwice) {
                self.plan_fold(env, task_id, id);
            }
        }
    }

    fn plan_fold(&mut self, env: &mut Env, task_id: &str, id: AssignmentId) {
        let row = self.database.updates.get(&id).and_then(|row| row.payload.clone());
        let Some(process) = &mut self.process else { return };
        let Some(running) = process.tasks.get_mut(task_id) else { return };
        // An update that belongs to the next buffer waits for it.
        let Some(work) = running.state.cohort().and_then(|work| work.get(&id)) else { return };
        let WorkStatus::Trained(update) = &work.status else { return };
        let facts = facts(&running.spec, &running.state, work, update);
        let todo = Todo { id, node: work.node.clone(), facts, sha256: update.sha256, row };
        let generation = *running.sum.get_or_insert_with(|| {
            process.generations += 1;
            process.generations
        });
        let count = running.spec.strategy.strategy().sums();
        let scales = running.base.scales.clone();
        let sum = process.sums.entry(generation).or_insert_with(|| Sum::new(task_id, Sums::new(scales, count)));
        sum.todo.push(todo);
        let after = env.rng.random_range(1..40);
        env.coordinator_timer(after, Timer::Fold(generation, id));
    }

    /// Adds an update to its sum.
    pub(super) fn fold(&mut self, env: &mut Env, generation: u64, id: AssignmentId) -> Result<(), Crash> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(sum) = process.sums.get_mut(&generation) else { return Ok(()) };
        let Some(place) = sum.todo.iter().position(|todo| todo.id == id) else { return Ok(()) };
        let Ok(struck) = env.begin(COORDINATOR, Effect::Fold) else { return Err(Crash) };
        let Todo { node, facts, sha256, row, .. } = sum.todo.remove(place);
        let spooled = Name::Spooled(id.0, short(&sha256));
        let payload = row.or_else(|| self.disk.read(spooled).map(<[u8]>::to_vec));
        let spec = process.tasks.get(&sum.task).map(|running| running.spec.clone());
        let spec = spec.or_else(|| process.jobs.get(&generation).map(|job| job.spec.clone()));
        match (payload.filter(|payload| Digest::of(payload).as_bytes() == &sha256), spec) {
            (Some(payload), Some(spec)) => match fold(&sum.sums, &spec, &facts, &payload) {
                Ok(()) => sum.folded.push((node, id, facts)),
                Err(error) => sum.broken = Some(error.to_string()),
            },
            _ => sum.broken = Some(format!("the payload of {id} is gone")),
        }
        if sum.todo.is_empty() && process.jobs.contains_key(&generation) {
            env.coordinator_timer(1, Timer::Make(generation));
        }
        env.end(COORDINATOR, struck)
    }
}

impl Sum {
    /// An empty one.
    pub(super) fn new(task: &str, sums: Sums) -> Sum {
        Sum { task: task.to_owned(), sums: Arc::new(sums), todo: Vec::new(), folded: Vec::new(), broken: None }
    }
}

/// What tells an assignment's payloads apart in file names.
pub(super) fn short(sha256: &Sha) -> [u8; 4] {
    let mut first = [0; 4];
    first.iter_mut().zip(sha256).for_each(|(to, from)| *to = *from);
    first
}
