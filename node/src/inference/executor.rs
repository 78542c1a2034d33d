//! The bounded executor of inference: a few threads, a short queue, and an answer at once when it is full.
//! What runs is the caller's; training has a pool of its own, at lower priority.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// Runs blocking work on threads of its own. Dropping it lets running work finish and drops what waits.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    max_waiting: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Threads that have nothing to do: a job for one of them does not wait.
    idle: usize,
    stopped: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("waiting", &self.waiting.len()).field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// Work that knows its asker.
struct Job {
    /// Does the work and answers, unless nobody waits for the answer any more.
    run: Box<dyn FnOnce() + Send>,
    /// Set when the asker goes.
    abandoned: Arc<AtomicBool>,
}

/// Lives in the asker's future; dropping it abandons the job.
struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Why work gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The queue is full.
    #[error("overloaded: {waiting} requests are waiting already; try again later, or at another node")]
    Overloaded {
        /// Work that waits at this moment.
        waiting: usize,
    },
    /// The work panicked; the thread goes on.
    #[error("the work panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The executor is going away.
    #[error("the node is shutting down")]
    Stopped,
}

impl Executor {
    /// Starts `threads` threads (at least 1) behind a queue of at most `max_waiting`; an error where the system
    /// refuses a thread.
    pub fn new(threads: usize, max_waiting: usize) -> std::io::Result<Executor> {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), max_waiting });
        let executor = Executor { shared: Arc::clone(&shared) };
        for index in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("fedge-infer-{index}")).spawn(move || shared.serve())?;
        }
        Ok(executor)
    }

    /// Runs blocking work and waits for its result. Work whose future was dropped while it waited never runs.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ExecutorError> {
        let (answer, result) = oneshot::channel();
        let asker = Asker(Arc::default());
        let run = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work))
                .map_err(|panic| ExecutorError::Panicked { message: panic_message(&*panic) });
            // The asker may have gone meanwhile.
            let _ = answer.send(outcome);
        });
        self.push(Job { run, abandoned: Arc::clone(&asker.0) })?;
        result.await.unwrap_or(Err(ExecutorError::Stopped))
    }

    /// How much work waits for a thread.
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    fn push(&self, job: Job) -> Result<(), ExecutorError> {
        let mut state = self.shared.lock();
        if state.waiting.len() >= self.shared.max_waiting + state.idle {
            state.waiting.retain(|job| !job.abandoned.load(Ordering::Relaxed));
        }
        let waiting = state.waiting.len();
        if waiting >= self.shared.max_waiting + state.idle {
            return Err(ExecutorError::Overloaded { waiting });
        }
        state.waiting.push_back(job);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        drop(dropped);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Jobs run and are dropped outside the lock, so that a panic never leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(job) = self.next() {
            if !job.abandoned.load(Ordering::Relaxed) {
                (job.run)();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle += 1;
        let job = loop {
            if state.stopped {
                break None;
            }
            if let Some(job) = state.waiting.pop_front() {
                break Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.idle -= 1;
        job
    }
}

/// What a caught panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    message.unwrap_or("no message").to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Occupies the executor's only thread until the sender is dropped.
    async fn occupy(executor: &Arc<Executor>) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let executor = Arc::clone(executor);
        tokio::spawn(async move {
            executor
                .run(move || {
                    started.send(()).unwrap();
                    let _ = released.recv();
                })
                .await
        });
        running.await.unwrap();
        release
    }

    #[tokio::test]
    async fn a_full_queue_answers_overloaded_at_once_and_recovers() {
        let executor = Arc::new(Executor::new(1, 2).unwrap());
        let release = occupy(&executor).await;
        let waiting: Vec<_> = (0..2)
            .map(|index| {
                let executor = Arc::clone(&executor);
                tokio::spawn(async move { executor.run(move || index).await })
            })
            .collect();
        while executor.waiting() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(executor.run(|| 0).await, Err(ExecutorError::Overloaded { waiting: 2 }));
        drop(release);
        for (index, task) in waiting.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), Ok(index));
        }
        assert_eq!(executor.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_survives() {
        let executor = Executor::new(1, 1).unwrap();
        let result: Result<(), _> = executor.run(|| panic!("tract gave up")).await;
        assert_eq!(result, Err(ExecutorError::Panicked { message: "tract gave up".to_owned() }));
        assert_eq!(executor.run(|| 1).await, Ok(1));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_never_runs_and_takes_no_place() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let executor = Arc::new(Executor::new(1, 1).unwrap());
        let release = occupy(&executor).await;
        let cancelled = tokio::spawn({
            let executor = Arc::clone(&executor);
            async move { executor.run(|| RUNS.fetch_add(1, Ordering::SeqCst)).await }
        });
        while executor.waiting() < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        let next = tokio::spawn({
            let executor = Arc::clone(&executor);
            async move { executor.run(|| 1).await }
        });
        tokio::task::yield_now().await;
        drop(release);
        assert_eq!(next.await.unwrap(), Ok(1));
        assert_eq!(RUNS.load(Ordering::SeqCst), 0);
    }
}
