//! What an executor remembers under its lock: requests that wait, by priority, and what its threads are doing.
//! Which of them run together is decided in `batching`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::executor::{Done, ExecutorError};
use super::request::Inputs;
use super::serving::Serving;

/// A request that waits.
pub(super) struct Job {
    pub(super) serving: Arc<Serving>,
    pub(super) inputs: Inputs,
    pub(super) rows: usize,
    /// Closed when the asker goes.
    pub(super) answer: oneshot::Sender<Result<Done, ExecutorError>>,
    /// When it came.
    pub(super) since: Instant,
    /// When its wait ends.
    pub(super) deadline: Option<Instant>,
}

/// The state of one model's executor.
#[derive(Default)]
pub(super) struct State {
    /// By priority, the most urgent first; no level is empty.
    levels: BTreeMap<u32, VecDeque<Job>>,
    waiting: usize,
    /// Threads that have nothing to do: a job for one of them does not wait.
    pub(super) idle: usize,
    /// Threads that there are.
    pub(super) threads: usize,
    /// Runs that go on, on threads of the executor and of callers.
    pub(super) running: usize,
    pub(super) stopped: bool,
}

impl State {
    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a place for a run at once, if nobody waits and there is one.
    pub(super) fn enter(&mut self, places: usize) -> bool {
        let free = self.waiting == 0 && self.running < places && !self.stopped;
        self.running += usize::from(free);
        free
    }

    pub(super) fn push(&mut self, job: Job, level: u32) {
        self.levels.entry(level).or_default().push_back(job);
        self.waiting += 1;
    }

    /// All that wait, the most urgent first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.levels.values().flatten()
    }

    /// Takes the first `count`.
    pub(super) fn take(&mut self, count: usize) -> Vec<Job> {
        let mut taken = Vec::with_capacity(count.min(self.waiting));
        while taken.len() < count
            && let Some(mut level) = self.levels.first_entry()
        {
            taken.extend(level.get_mut().pop_front());
            if level.get().is_empty() {
                level.remove();
            }
        }
        self.waiting -= taken.len();
        taken
    }

    /// Drops those whose askers have gone.
    pub(super) fn remove_abandoned(&mut self) {
        self.retain(|job| !job.answer.is_closed());
    }

    /// Drops those that waited long enough, whose askers then find their channel closed; says whether there was any.
    pub(super) fn remove_expired(&mut self, now: Instant) -> bool {
        let before = self.waiting;
        self.retain(|job| job.deadline.is_none_or(|deadline| now < deadline));
        self.waiting < before
    }

    /// Takes all away.
    pub(super) fn clear(&mut self) -> BTreeMap<u32, VecDeque<Job>> {
        self.waiting = 0;
        std::mem::take(&mut self.levels)
    }

    fn retain(&mut self, keep: impl Fn(&Job) -> bool) {
        for level in self.levels.values_mut() {
            level.retain(&keep);
        }
        self.levels.retain(|_, level| !level.is_empty());
        self.waiting = self.levels.values().map(VecDeque::len).sum();
    }
}
