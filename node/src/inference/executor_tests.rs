//! Tests of the executor with a run that can be held: overload, abandoned work, timeouts, priorities, batches, panics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::mpsc;

use super::super::test_fixtures::{PIXELS, serving};
use super::*;

/// An executor whose first run waits until the sender is dropped, and which remembers the rows of each run.
struct Held {
    executor: Arc<Executor>,
    serving: Arc<Serving>,
    runs: Arc<Mutex<Vec<usize>>>,
    release: Option<mpsc::Sender<()>>,
    first: tokio::task::JoinHandle<Result<Done, ExecutorError>>,
}

fn samples(rows: usize) -> Batch {
    Batch { inputs: Inputs::Floats(vec![rows as f32; rows * PIXELS]), rows }
}

fn options() -> ExecutorOptions {
    ExecutorOptions { threads: 1, max_waiting: 4, inline: Duration::ZERO, ..ExecutorOptions::default() }
}

impl Held {
    async fn start(options: ExecutorOptions) -> Held {
        let (release, released) = mpsc::channel::<()>();
        let (released, runs) = (Mutex::new(Some(released)), Arc::<Mutex<Vec<usize>>>::default());
        let seen = Arc::clone(&runs);
        let run = move |serving: &Serving, inputs: &Inputs| {
            let Inputs::Floats(values) = inputs else { panic!("floats") };
            seen.lock().unwrap().push(values.len() / PIXELS);
            if values.first() == Some(&77.0) {
                panic!("tract gave up");
            }
            if let Some(released) = released.lock().unwrap().take() {
                let _ = released.recv();
            }
            serving.infer(inputs)
        };
        let executor = Arc::new(Executor::running(options, Box::new(run)));
        let serving = Arc::new(serving(3));
        let first = tokio::spawn({
            let (executor, serving) = (Arc::clone(&executor), Arc::clone(&serving));
            async move { executor.run(&serving, samples(1), None, 0).await }
        });
        while runs.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Held { executor, serving, runs, release: Some(release), first }
    }

    /// Puts a request into the queue and waits until it is there.
    async fn queue(&self, rows: usize, priority: u64) -> tokio::task::JoinHandle<Result<Done, ExecutorError>> {
        let before = self.executor.waiting();
        let (executor, serving) = (Arc::clone(&self.executor), Arc::clone(&self.serving));
        let task = tokio::spawn(async move { executor.run(&serving, samples(rows), None, priority).await });
        while self.executor.waiting() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task
    }

    async fn release(&mut self) {
        self.release = None;
        (&mut self.first).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_answers_overloaded_at_once_and_recovers() {
    let mut held = Held::start(ExecutorOptions { max_waiting: 2, ..options() }).await;
    let waiting = [held.queue(1, 0).await, held.queue(1, 0).await];
    let refused = held.executor.run(&held.serving, samples(1), None, 0).await;
    assert_eq!(refused.unwrap_err(), ExecutorError::Overloaded { waiting: 2 });
    held.release().await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    held.executor.run(&held.serving, samples(1), None, 0).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_thread_survives() {
    let mut held = Held::start(options()).await;
    held.release().await;
    let batch = Batch { inputs: Inputs::Floats(vec![77.0; PIXELS]), rows: 1 };
    let result = held.executor.run(&held.serving, batch, None, 0).await;
    assert_eq!(result.unwrap_err(), ExecutorError::Panicked { message: "tract gave up".to_owned() });
    held.executor.run(&held.serving, samples(1), None, 0).await.unwrap();
}

#[tokio::test]
async fn work_that_nobody_waits_for_never_runs_and_takes_no_place() {
    let mut held = Held::start(ExecutorOptions { max_waiting: 1, ..options() }).await;
    let cancelled = held.queue(5, 0).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    let (executor, serving) = (Arc::clone(&held.executor), Arc::clone(&held.serving));
    let next = tokio::spawn(async move { executor.run(&serving, samples(2), None, 0).await });
    tokio::time::sleep(Duration::from_millis(5)).await;
    held.release().await;
    next.await.unwrap().unwrap();
    assert_eq!(*held.runs.lock().unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_answered_in_time_and_never_runs() {
    let mut held = Held::start(options()).await;
    let started = Instant::now();
    let result = held.executor.run(&held.serving, samples(9), Some(Duration::from_millis(20)), 0).await;
    assert_eq!(result.unwrap_err(), ExecutorError::TimedOut { timeout_us: 20_000 });
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(held.executor.waiting(), 0);
    held.release().await;
    assert_eq!(*held.runs.lock().unwrap(), [1]);
}

#[tokio::test]
async fn requests_that_wait_are_put_together_and_each_gets_its_own_rows() {
    let batching = BatchingOptions { max_batch_size: Some(6), ..BatchingOptions::default() };
    let mut held = Held::start(ExecutorOptions { batching, ..options() }).await;
    let waiting = [held.queue(1, 0).await, held.queue(2, 0).await, held.queue(3, 0).await, held.queue(1, 0).await];
    held.release().await;
    for (task, rows) in waiting.into_iter().zip([1, 2, 3, 1]) {
        let done = task.await.unwrap().unwrap();
        let alone = held.serving.infer(&samples(rows).inputs).unwrap();
        assert_eq!(done.outputs[0].shape, [rows, 10]);
        let values = |data: &TensorData| -> Vec<f32> {
            data.data.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
        };
        for (a, b) in values(&done.outputs[0]).iter().zip(values(&alone[0])) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
        }
    }
    assert_eq!(*held.runs.lock().unwrap(), [1, 6, 1], "six samples at most");
}

#[tokio::test]
async fn preferred_sizes_bound_a_batch() {
    let batching =
        BatchingOptions { max_batch_size: Some(8), preferred_batch_size: vec![2], max_queue_delay: Duration::ZERO };
    let mut held = Held::start(ExecutorOptions { batching, ..options() }).await;
    let waiting = [held.queue(1, 0).await, held.queue(1, 0).await, held.queue(1, 0).await];
    held.release().await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(*held.runs.lock().unwrap(), [1, 2, 1]);
}

#[tokio::test]
async fn the_urgent_go_first_and_an_idle_model_does_not_wait_for_others() {
    let batching = BatchingOptions {
        max_batch_size: Some(1),
        preferred_batch_size: Vec::new(),
        max_queue_delay: Duration::from_secs(5),
    };
    let mut held =
        Held::start(ExecutorOptions { batching, priority_levels: 3, default_priority: 3, ..options() }).await;
    let waiting = [held.queue(2, 3).await, held.queue(3, 0).await, held.queue(4, 1).await];
    held.release().await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(*held.runs.lock().unwrap(), [1, 4, 2, 3]);

    let batching = BatchingOptions {
        max_batch_size: Some(8),
        max_queue_delay: Duration::from_secs(60),
        ..BatchingOptions::default()
    };
    let mut idle = Held::start(ExecutorOptions { batching, ..options() }).await;
    idle.release().await;
    let started = Instant::now();
    idle.executor.run(&idle.serving, samples(1), None, 0).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30), "the delay is for a busy model");
}

#[tokio::test]
async fn a_quick_model_runs_where_the_request_arrives() {
    let executor = Executor::new(ExecutorOptions { inline: Duration::from_secs(1), ..options() });
    let serving = Arc::new(serving(3));
    executor.run(&serving, samples(1), None, 0).await.unwrap();
    assert_eq!(executor.shared.lock().threads, 0);
    assert_eq!(executor.shared.lock().running, 0);
    let slow = Executor::new(options());
    slow.run(&serving, samples(1), None, 0).await.unwrap();
    assert_eq!(slow.shared.lock().threads, 1);
}
