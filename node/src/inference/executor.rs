//! The bounded executor of one model: a short queue, a few threads, requests put together, an answer at once when full.
//! Quick models run on the caller's thread. What a request holds is checked before; training has a pool of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::EngineError;
use super::batching::{self, BatchingOptions};
use super::queue::{Job, State};
use super::request::{Batch, Inputs, TensorData};
use super::serving::Serving;
use super::statistics::Stages;

/// How one model's requests are run.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutorOptions {
    /// Runs at a time, at least 1.
    pub threads: usize,
    /// Requests that may wait; more are answered `RESOURCE_EXHAUSTED` at once.
    pub max_waiting: usize,
    /// How requests are put together.
    pub batching: BatchingOptions,
    /// Longest time in the queue where a request names none.
    pub default_timeout: Option<Duration>,
    /// Levels of priority, of which 1 is the most urgent; 0: all requests are alike.
    pub priority_levels: u32,
    /// The level of requests that name none.
    pub default_priority: u32,
    /// Requests that will take no longer than this run where they arrive, without a queue, while a place is free.
    pub inline: Duration,
}

impl Default for ExecutorOptions {
    /// As many threads as the machine has cores; 256 may wait, for any time; 150 µs are not worth another thread.
    fn default() -> ExecutorOptions {
        ExecutorOptions {
            threads: thread::available_parallelism().map_or(1, usize::from),
            max_waiting: 256,
            batching: BatchingOptions::default(),
            default_timeout: None,
            priority_levels: 0,
            default_priority: 1,
            inline: Duration::from_micros(150),
        }
    }
}

/// An answered request.
#[derive(Debug)]
pub struct Done {
    /// One tensor an output, in the model's order.
    pub outputs: Vec<TensorData>,
    /// What came in, given back.
    pub inputs: Inputs,
    /// Where the time went.
    pub stages: Stages,
}

/// Why a request was not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The queue is full.
    #[error("overloaded: {waiting} requests are waiting already; try again later, or at another node")]
    Overloaded {
        /// Work that waits at this moment.
        waiting: usize,
    },
    /// It waited longer than it may.
    #[error("the request waited longer than its {timeout_us} µs; give it more time, or try another node")]
    TimedOut {
        /// The longest wait.
        timeout_us: u64,
    },
    /// The engine refused it.
    #[error("{0}")]
    Engine(String),
    /// The work panicked; the thread goes on.
    #[error("the work panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The executor is going away.
    #[error("the model is being unloaded")]
    Stopped,
}

type Run = dyn Fn(&Serving, &Inputs) -> Result<Vec<TensorData>, EngineError> + Send + Sync;

/// Runs one model's requests. Dropping it lets running work finish and drops what waits.
pub struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    options: ExecutorOptions,
    run: Box<Run>,
}

/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("options", &self.shared.options).field("waiting", &self.waiting()).finish()
    }
}

impl Executor {
    /// An executor without a thread: they start when they are needed.
    pub fn new(options: ExecutorOptions) -> Executor {
        Executor::running(options, Box::new(Serving::infer))
    }

    fn running(options: ExecutorOptions, run: Box<Run>) -> Executor {
        let options = ExecutorOptions { threads: options.threads.max(1), ..options };
        Executor { shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), options, run }) }
    }

    /// Its options.
    pub fn options(&self) -> &ExecutorOptions {
        &self.shared.options
    }

    /// Requests that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting()
    }

    /// Runs a request and waits for its answer. One whose future was dropped while it waited never runs.
    ///
    /// # Errors
    /// [`ExecutorError`].
    pub async fn run(
        &self,
        serving: &Arc<Serving>,
        batch: Batch,
        timeout: Option<Duration>,
        priority: u64,
    ) -> Result<Done, ExecutorError> {
        let shared = &self.shared;
        if serving.expected(batch.rows).is_some_and(|time| time <= shared.options.inline)
            && shared.lock().enter(shared.options.threads)
        {
            let place = Place(shared);
            let done = shared.run_one(serving, batch.inputs, batch.rows, Duration::ZERO);
            drop(place);
            return done;
        }
        let timeout = timeout.or(shared.options.default_timeout);
        let now = Instant::now();
        let (answer, mut result) = oneshot::channel();
        let job = Job {
            serving: Arc::clone(serving),
            inputs: batch.inputs,
            rows: batch.rows,
            answer,
            since: now,
            deadline: timeout.and_then(|timeout| now.checked_add(timeout)),
        };
        self.push(job, priority)?;
        let Some(timeout) = timeout else { return result.await.unwrap_or(Err(ExecutorError::Stopped)) };
        let expired = |_| match shared.lock().stopped {
            true => Err(ExecutorError::Stopped),
            false => {
                Err(ExecutorError::TimedOut { timeout_us: u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX) })
            }
        };
        match tokio::time::timeout(timeout, &mut result).await {
            Ok(done) => done.unwrap_or_else(expired),
            Err(_) => {
                // It waits no longer, so that its channel is closed; a run that has begun is waited for.
                shared.lock().remove_expired(Instant::now());
                result.await.unwrap_or_else(expired)
            }
        }
    }

    fn push(&self, job: Job, priority: u64) -> Result<(), ExecutorError> {
        let options = &self.shared.options;
        let mut state = self.shared.lock();
        let limit = options.max_waiting + state.idle;
        if state.waiting() >= limit {
            state.remove_expired(job.since);
            state.remove_abandoned();
        }
        if state.waiting() >= limit {
            return Err(ExecutorError::Overloaded { waiting: state.waiting() });
        }
        let level = match u32::try_from(priority).unwrap_or(u32::MAX) {
            _ if options.priority_levels == 0 => 0,
            0 => options.default_priority,
            level => level.min(options.priority_levels),
        };
        state.push(job, level);
        let start = state.idle < state.waiting() && state.threads < options.threads;
        state.threads += usize::from(start);
        drop(state);
        if start {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("fedge-infer".to_owned()).spawn(move || shared.serve());
            if let Err(error) = started {
                tracing::error!(%error, "no thread for inference");
                let mut state = self.shared.lock();
                state.threads -= 1;
                if state.threads == 0 {
                    state.clear();
                }
            }
        }
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        let dropped = state.clear();
        drop(state);
        drop(dropped);
        self.shared.work.notify_all();
    }
}

/// A run's place among those that go on at a time.
struct Place<'a>(&'a Shared);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        let waiting = state.waiting() > 0;
        drop(state);
        // A batch that waits to be filled need not wait any longer where nothing runs. Telling nobody costs a system call too.
        if waiting {
            self.0.work.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Jobs run and are dropped outside the lock, so that a panic never leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(jobs) = self.next() {
            let place = Place(self);
            self.run_jobs(jobs);
            drop(place);
        }
    }

    /// The next jobs that run together; none where the thread should end.
    fn next(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        state.idle += 1;
        let jobs = loop {
            if state.stopped {
                break None;
            }
            let now = Instant::now();
            match batching::next(&mut state, &self.options.batching, now) {
                batching::Next::Run(jobs) => break Some(jobs),
                batching::Next::Wait(until) => {
                    state = self.work.wait_timeout(state, until).unwrap_or_else(PoisonError::into_inner).0;
                }
                batching::Next::Nothing => {
                    let (next, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                    state = next;
                    if waited.timed_out() && state.waiting() == 0 {
                        break None;
                    }
                }
            }
        };
        state.idle -= 1;
        match jobs {
            Some(_) => state.running += 1,
            None => state.threads -= 1,
        }
        jobs
    }

    fn run_jobs(&self, mut jobs: Vec<Job>) {
        let started = Instant::now();
        if jobs.len() > 1
            && let Some(merged) = batching::merge(&jobs)
        {
            let rows = jobs.iter().map(|job| job.rows).sum();
            let input = started.elapsed();
            let serving = Arc::clone(&jobs[0].serving);
            if let Ok((outputs, infer)) = self.timed(&serving, &merged, rows)
                && let Some(parts) = batching::split(&outputs, jobs.iter().map(|job| job.rows))
            {
                let output = started.elapsed().saturating_sub(input + infer);
                let stages = Stages { queue: Duration::ZERO, input, infer, output };
                serving.statistics().ran(rows, &stages);
                for (job, outputs) in jobs.into_iter().zip(parts) {
                    let stages = Stages { queue: started.saturating_duration_since(job.since), ..stages };
                    // The asker may have gone meanwhile.
                    let _ = job.answer.send(Ok(Done { outputs, inputs: job.inputs, stages }));
                }
                return;
            }
            // One of them may be the reason: each runs alone.
        }
        for job in jobs.drain(..) {
            let queue = Instant::now().saturating_duration_since(job.since);
            let done = self.run_one(&job.serving, job.inputs, job.rows, queue);
            let _ = job.answer.send(done);
        }
    }

    fn run_one(&self, serving: &Serving, inputs: Inputs, rows: usize, queue: Duration) -> Result<Done, ExecutorError> {
        let (outputs, infer) = self.timed(serving, &inputs, rows)?;
        let stages = Stages { queue, infer, ..Stages::default() };
        serving.statistics().ran(rows, &stages);
        Ok(Done { outputs, inputs, stages })
    }

    fn timed(
        &self,
        serving: &Serving,
        inputs: &Inputs,
        rows: usize,
    ) -> Result<(Vec<TensorData>, Duration), ExecutorError> {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(serving, inputs)))
            .map_err(|panic| ExecutorError::Panicked { message: panic_message(&*panic) })?;
        let outputs = outcome.map_err(|error| ExecutorError::Engine(error.to_string()))?;
        let took = started.elapsed();
        serving.took(rows, took);
        Ok((outputs, took))
    }
}

/// What a caught panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    message.unwrap_or("no message").to_owned()
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
