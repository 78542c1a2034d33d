//! What was seen, and whether it is good enough: samples, checks and the report.
//! How it came about is the matter of the other parts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::good::Calls;
use crate::watched::Watched;

/// A node at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Resident bytes.
    pub rss: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    /// How the node is now.
    pub fn of(node: &Watched) -> anyhow::Result<Sample> {
        // "Threads:" has no unit; `memory` takes it for KiB.
        let threads = node.memory("Threads:")? / 1024;
        Ok(Sample { rss: node.memory("VmRSS")?, descriptors: node.descriptors(), threads })
    }

    fn json(&self) -> Value {
        json!({ "rss": self.rss, "descriptors": self.descriptors, "threads": self.threads })
    }
}

/// All that was seen.
#[derive(Debug)]
pub struct Seen {
    pub seconds: u64,
    /// Greatest p99 that passes.
    pub p99_ms: f64,
    pub baseline: Sample,
    pub samples: Vec<Sample>,
    /// After the abusers had gone.
    pub after: Sample,
    /// How long it took until their descriptors and threads had gone too.
    pub settled: Option<Duration>,
    pub calls: Calls,
    /// What went wrong when it was asked once more.
    pub answers: Option<String>,
    /// Time of the shutdown, and whether it ended well.
    pub shutdown: Option<(Duration, bool)>,
    /// Versions that were swapped in, and models that were loaded and unloaded.
    pub changes: (u64, u64),
    pub surprises: u64,
}

/// One condition.
#[derive(Debug)]
pub struct Check {
    pub name: &'static str,
    pub passed: bool,
}

/// Memory may grow by a tenth and 2 MiB from the first quarter's median to the last one's.
const GROWTH: f64 = 1.1;
const GROWTH_BYTES: f64 = (2 << 20) as f64;
/// In less time the first quarter is the start itself.
const JUDGED_FROM_S: u64 = 60;

/// Everything as JSON, and the checks.
pub fn report(seen: &Seen) -> (Value, Vec<Check>) {
    let at = |share: f64| {
        let index = (seen.calls.latencies.len() as f64 * share).ceil() as usize;
        seen.calls.latencies.get(index.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1e6
    };
    let quarter = seen.samples.len().div_ceil(4);
    let first = median(seen.samples.iter().take(quarter));
    let last = median(seen.samples.iter().rev().take(quarter));
    let grown = first as f64 * GROWTH + GROWTH_BYTES;
    let mut checks = vec![
        Check { name: "no good request failed", passed: seen.calls.failed == 0 && !seen.calls.latencies.is_empty() },
        Check { name: "p99 of good requests", passed: at(0.99) <= seen.p99_ms },
        Check { name: "descriptors and threads are back", passed: seen.settled.is_some() },
        Check { name: "it still answers", passed: seen.answers.is_none() },
        Check { name: "it shuts down in time", passed: seen.shutdown.is_some_and(|(_, well)| well) },
        Check { name: "models came and went", passed: seen.changes.0 > 0 && seen.changes.1 > 0 },
        Check { name: "no abuser was served", passed: seen.surprises == 0 },
    ];
    if seen.seconds >= JUDGED_FROM_S {
        checks.push(Check { name: "memory does not grow", passed: last as f64 <= grown });
    }
    let peak = |of: fn(&Sample) -> u64| seen.samples.iter().map(of).max();
    let results: serde_json::Map<_, _> = checks.iter().map(|c| (c.name.to_owned(), c.passed.into())).collect();
    let report = json!({
        "seconds": seen.seconds,
        "good": {
            "answered": seen.calls.latencies.len(), "failed": seen.calls.failed, "failures": seen.calls.failures,
            "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0),
        },
        "versions_swapped": seen.changes.0, "loads_and_unloads": seen.changes.1,
        "baseline": seen.baseline.json(), "after": seen.after.json(),
        "rss_first_quarter": first, "rss_last_quarter": last, "rss_peak": peak(|s| s.rss),
        "descriptors_peak": peak(|s| s.descriptors as u64), "threads_peak": peak(|s| s.threads),
        "settled_s": seen.settled.map(|time| time.as_secs_f64()),
        "shutdown_s": seen.shutdown.map(|(time, _)| time.as_secs_f64()),
        "asked_once_more": seen.answers, "checks": results,
    });
    (report, checks)
}

fn median<'a>(samples: impl Iterator<Item = &'a Sample>) -> u64 {
    let mut sizes: Vec<u64> = samples.map(|sample| sample.rss).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or_default()
}
