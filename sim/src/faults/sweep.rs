//! Many seeds, on all cores: what they violate, what they cover, how long they take.
//! A single seed is `run`'s.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::coverage::Coverage;
use super::invariants::Violation;
use super::{Bug, command, run};

/// What many seeds led to.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Seeds that ran.
    pub seeds: u64,
    /// Events that happened.
    pub events: u64,
    /// What did not hold, by seed.
    pub violations: Vec<(u64, Violation)>,
    /// What struck what.
    pub coverage: Coverage,
}

impl Sweep {
    /// Each violation with the command that shows it.
    pub fn report(&self, bug: Option<Bug>) -> String {
        let lines = self.violations.iter().map(|(seed, violation)| {
            format!("seed {seed} violates {violation}\n  see it with: {}\n", command(*seed, bug))
        });
        lines.collect()
    }
}

/// Runs seeds on so many threads, to the end or until `enough` of them violate something.
pub fn sweep(seeds: Range<u64>, bug: Option<Bug>, threads: usize, enough: usize) -> Sweep {
    let (next, total) = (AtomicU64::new(seeds.start), Mutex::new(Sweep::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, bug, false);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.seeds += 1;
                    total.events += outcome.events;
                    total.coverage.add(&outcome.coverage);
                    total.violations.extend(outcome.violation.map(|violation| (seed, violation)));
                    if total.violations.len() >= enough {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.violations.sort_by_key(|(seed, _)| *seed);
    total
}
