//! What a served version did so far: counts and times of requests and runs, for ModelStatistics and Prometheus.
//! It only counts; who reads it formats it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds of the latency histogram, in seconds; the last bucket has none.
pub const LATENCY_BOUNDS_S: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Why a request got no answer; the labels are Triton's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The queue was full, or the request waited too long in it.
    Rejected,
    /// The caller went away.
    Canceled,
    /// The engine failed or panicked.
    Backend,
    /// The request was wrong.
    Other,
}

impl Failure {
    /// All of them.
    pub const ALL: [Failure; 4] = [Failure::Rejected, Failure::Canceled, Failure::Backend, Failure::Other];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Rejected => "REJECTED",
            Failure::Canceled => "CANCELED",
            Failure::Backend => "BACKEND",
            Failure::Other => "OTHER",
        }
    }
}

/// How often, and for how long altogether.
#[derive(Debug, Default)]
pub struct Timer {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Timer {
    pub(super) fn add(&self, duration: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(nanoseconds(duration), Ordering::Relaxed);
    }

    /// Count and nanoseconds.
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.ns.load(Ordering::Relaxed))
    }
}

/// The stages of one answered request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// From its arrival to the start of the run it was part of.
    pub queue: Duration,
    /// Putting inputs together.
    pub input: Duration,
    /// In the engine.
    pub infer: Duration,
    /// Taking outputs apart.
    pub output: Duration,
}

/// Counts since a version was loaded. Times are sums.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Answered requests, from arrival to answer.
    pub success: Timer,
    /// Requests without an answer.
    pub fail: Timer,
    /// Time in the queue.
    pub queue: Timer,
    /// Time of putting inputs together.
    pub compute_input: Timer,
    /// Time in the engine.
    pub compute_infer: Timer,
    /// Time of taking outputs apart.
    pub compute_output: Timer,
    failures: [AtomicU64; 4],
    samples: AtomicU64,
    runs: AtomicU64,
    last_ms: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS_S.len() + 1],
    by_batch: Mutex<BTreeMap<u64, BatchTimes>>,
}

/// Runs of one batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTimes {
    /// How many.
    pub runs: u64,
    /// Nanoseconds of putting inputs together.
    pub input_ns: u64,
    /// Nanoseconds in the engine.
    pub infer_ns: u64,
    /// Nanoseconds of taking outputs apart.
    pub output_ns: u64,
}

impl Statistics {
    /// A request was answered `total` after its arrival.
    pub(super) fn answered(&self, total: Duration, stages: &Stages) {
        self.success.add(total);
        self.queue.add(stages.queue);
        self.compute_input.add(stages.input);
        self.compute_infer.add(stages.infer);
        self.compute_output.add(stages.output);
        let seconds = total.as_secs_f64();
        let bucket = LATENCY_BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(LATENCY_BOUNDS_S.len());
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A request got no answer.
    pub(super) fn failed(&self, why: Failure, after: Duration) {
        self.fail.add(after);
        self.failures[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The engine ran `rows` samples at once.
    pub(super) fn ran(&self, rows: usize, stages: &Stages) {
        self.samples.fetch_add(rows as u64, Ordering::Relaxed);
        self.runs.fetch_add(1, Ordering::Relaxed);
        let mut by_batch = self.by_batch.lock().unwrap_or_else(PoisonError::into_inner);
        // At most as many sizes as a batch may have samples.
        let times = by_batch.entry(rows as u64).or_default();
        times.runs += 1;
        times.input_ns = times.input_ns.saturating_add(nanoseconds(stages.input));
        times.infer_ns = times.infer_ns.saturating_add(nanoseconds(stages.infer));
        times.output_ns = times.output_ns.saturating_add(nanoseconds(stages.output));
    }

    /// Requests without an answer, for this reason.
    pub fn failures(&self, why: Failure) -> u64 {
        self.failures[why as usize].load(Ordering::Relaxed)
    }

    /// Samples that went through the engine.
    pub fn samples(&self) -> u64 {
        self.samples.load(Ordering::Relaxed)
    }

    /// Runs of the engine.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// When the last request was answered, in milliseconds since 1970; 0: none was.
    pub fn last_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// Answered requests by latency: one count for each of [`LATENCY_BOUNDS_S`], and one for those above all.
    pub fn latency(&self) -> Vec<u64> {
        self.latency.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }

    /// Runs by batch size.
    pub fn by_batch(&self) -> BTreeMap<u64, BatchTimes> {
        self.by_batch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
