//! What nodes answer (updates, refusals, evaluations), queued: whoever gets the turn persists all that wait in one step,
//! so that they share one sync of the disk. What an answer changes is decided in `step`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::driver::{Decision, Rounds};
use super::fold::Payload;
use super::running::{Running, UploadTerms};
use super::state::{AssignmentId, Evaluation, TaskState, TrainedUpdate};
use super::step::{self, Admission, Event};
use crate::store::StoreError;

/// What became of an answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Awaited, on these terms.
    Open(Box<UploadTerms>),
    /// Persisted.
    Noted,
    /// Accepted before: the same receipt again.
    Duplicate,
    /// Another update was accepted for this assignment.
    Conflict,
    /// Its base is older than the strategy takes, by this many versions.
    Stale(u64),
    /// No running round waits for it.
    Closed,
    /// The assignment is another node's.
    Foreign,
}

/// What a node says of an assignment.
#[derive(Debug)]
pub(super) enum Said {
    /// A verified update, in memory or in the spool.
    Trained(TrainedUpdate, Payload),
    Declined(String),
    Evaluated(Evaluation),
}

/// An answer that waits to be persisted.
#[derive(Debug)]
pub(super) struct Waiting {
    node: String,
    assignment: AssignmentId,
    said: Said,
    reply: oneshot::Sender<Result<Answer, Arc<StoreError>>>,
}

impl Rounds {
    /// Whether an upload of `node` for `assignment` is awaited, and on which terms; and the task that it is of, where that
    /// is known.
    pub async fn admission(
        &self,
        node: &str,
        assignment: AssignmentId,
        sha256: Option<[u8; 32]>,
    ) -> (Answer, Option<String>) {
        let tasks = self.tasks.lock().await;
        for (id, running) in tasks.iter() {
            let answer = match owner(&running.state, assignment) {
                Some(owner) if owner != node => Answer::Foreign,
                Some(_) => admit(running, &running.state, assignment, sha256),
                None if running.is_over(assignment) => Answer::Closed,
                None => continue,
            };
            return (answer, Some(id.clone()));
        }
        (Answer::Closed, None)
    }

    /// Commits a verified update; persisted when this returns.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was acknowledged, the node may send it again.
    pub async fn commit(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        update: TrainedUpdate,
        payload: Payload,
    ) -> Result<Answer, Arc<StoreError>> {
        self.answer(node, assignment, Said::Trained(update, payload)).await
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
    ) -> Result<bool, Arc<StoreError>> {
        let answer = self.answer(node, assignment, Said::Declined(reason)).await?;
        Ok(matches!(answer, Answer::Noted))
    }

    /// A node's result on its held-out part. False: no round waits for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn evaluated(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        evaluation: Evaluation,
    ) -> Result<bool, Arc<StoreError>> {
        let answer = self.answer(node, assignment, Said::Evaluated(evaluation)).await?;
        Ok(matches!(answer, Answer::Noted))
    }

    async fn answer(
        self: &Arc<Self>,
        node: &str,
        assignment: AssignmentId,
        said: Said,
    ) -> Result<Answer, Arc<StoreError>> {
        let (reply, answered) = oneshot::channel();
        let waiting = Waiting { node: node.to_owned(), assignment, said, reply };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
        // In a task of its own: a caller that vanishes must not tear a step that has begun.
        let rounds = self.clone();
        tokio::spawn(async move { rounds.persist_answers().await });
        answered.await.unwrap_or_else(|_| Err(Arc::new(StoreError::Interrupted("a step of the rounds"))))
    }

    /// Persists all answers that wait, one step a task.
    async fn persist_answers(self: &Arc<Self>) {
        let mut tasks = self.tasks.lock().await;
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_task: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
        for waiting in waiting {
            let found = tasks.iter().find_map(|(id, t)| owner(&t.state, waiting.assignment).map(|owner| (id, owner)));
            match found {
                Some((id, owner)) if owner == waiting.node => by_task.entry(id.clone()).or_default().push(waiting),
                Some(_) => drop(waiting.reply.send(Ok(Answer::Foreign))),
                None => drop(waiting.reply.send(Ok(Answer::Closed))),
            }
        }
        for (task_id, waiting) in by_task {
            let Some(running) = tasks.get(&task_id) else { continue };
            let (decision, replies) = self.decide(running, waiting);
            let outcome = self.apply(&mut tasks, &task_id, decision).await.map_err(Arc::new);
            for (reply, answer) in replies {
                // An error of the whole step means that nothing of it is on disk.
                let _ = reply.send(outcome.clone().map(|()| answer));
            }
        }
    }

    /// One decision after the other: each answer is admitted by the state as it is after those before it.
    fn decide(&self, running: &Running, waiting: Vec<Waiting>) -> (Decision, Vec<Reply>) {
        let (mut decision, mut replies) = (self.decision(running), Vec::new());
        for Waiting { node, assignment, said, reply } in waiting {
            let answer = match said {
                Said::Trained(update, payload) => {
                    match admit(running, &decision.next, assignment, Some(update.sha256)) {
                        Answer::Open(_) => {
                            decision.accept(node, assignment, &update, payload);
                            decision.event(&running.spec, &Event::UpdateCommitted(assignment, update));
                            Answer::Noted
                        }
                        other => other,
                    }
                }
                // Its round may have closed within this very step.
                _ if owner(&decision.next, assignment).is_none() => Answer::Closed,
                Said::Declined(reason) => {
                    decision.event(&running.spec, &Event::Declined(assignment, reason));
                    Answer::Noted
                }
                Said::Evaluated(result) => {
                    decision.event(&running.spec, &Event::Evaluated(assignment, result));
                    Answer::Noted
                }
            };
            replies.push((reply, answer));
        }
        (decision, replies)
    }
}

type Reply = (oneshot::Sender<Result<Answer, Arc<StoreError>>>, Answer);

/// The node that an assignment of a running round belongs to.
fn owner(state: &TaskState, assignment: AssignmentId) -> Option<&str> {
    state.work(assignment).map(|work| work.node.as_str()).or_else(|| state.evaluator(assignment))
}

fn admit(running: &Running, state: &TaskState, assignment: AssignmentId, sha256: Option<[u8; 32]>) -> Answer {
    match (step::admit(&running.spec, state, assignment, sha256), state.work(assignment)) {
        (Admission::Open, Some(work)) => Answer::Open(Box::new(running.upload_terms(work))),
        (Admission::Duplicate, _) => Answer::Duplicate,
        (Admission::Conflict, _) => Answer::Conflict,
        (Admission::Stale(by), _) => Answer::Stale(by),
        (Admission::Open | Admission::Closed, _) => Answer::Closed,
    }
}
