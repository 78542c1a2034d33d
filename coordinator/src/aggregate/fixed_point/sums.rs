//! The integer sums of a round, sharded by parameter range, into which several updates fold at once.
//! What the sums mean is the strategy's; reading an update's file is `rounds`'.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::MAX_COHORT;
use super::contribution::Contribution;
use super::kernels;
use super::scales::Scales;
use crate::aggregate::AggregationError;

/// Values behind one lock.
pub const SHARD: usize = 1 << 18;

/// The sums of a round's updates. Memory: 8 bytes a value and sum, whatever the cohort.
///
/// Integer addition commutes, so neither the order of updates nor that of their pieces changes a bit.
#[derive(Debug)]
pub struct Sums {
    scales: Arc<Scales>,
    count: usize,
    /// Of each [`SHARD`] values: the first sum's, then the second's.
    shards: Vec<Mutex<Vec<i64>>>,
    begun: AtomicUsize,
    folded: AtomicUsize,
}

impl Sums {
    /// `count` empty sums of each value (`Strategy::sums`).
    pub fn new(scales: Arc<Scales>, count: usize) -> Sums {
        let shards = (0..scales.len()).step_by(SHARD).map(|start| {
            let len = SHARD.min(scales.len() - start);
            Mutex::new(vec![0; len * count])
        });
        Sums { count, shards: shards.collect(), scales, begun: AtomicUsize::new(0), folded: AtomicUsize::new(0) }
    }

    /// The round's scales.
    pub fn scales(&self) -> &Arc<Scales> {
        &self.scales
    }

    /// Begins to add one update, whose values have passed [`super::Check`].
    ///
    /// # Errors
    /// [`AggregationError::Cohort`] for more updates than the sums can hold, [`AggregationError::Length`] for a
    /// contribution to another number of sums.
    pub fn begin(&self, contribution: &Contribution) -> Result<Fold<'_>, AggregationError> {
        let got = contribution.shares().len();
        if got != self.count {
            return Err(AggregationError::Length { what: "a contribution", got, expected: self.count });
        }
        let one_more = |begun| (begun < MAX_COHORT).then_some(begun + 1);
        self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).map_err(|_| AggregationError::Cohort)?;
        Ok(Fold { sums: self, contribution: contribution.clone(), next: 0 })
    }

    /// Updates whose folds were begun, and those that came to their end. While they differ, the sums mean nothing.
    pub fn updates(&self) -> (usize, usize) {
        let folded = self.folded.load(Ordering::Acquire);
        (self.begun.load(Ordering::Acquire), folded)
    }

    /// One sum over a flat range: Σ weight · multiplier · delta for trainable values and Σ examples · delta for
    /// statistics, which only the first sum has. Replaces what `out` holds.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for a range or a sum that there is not.
    pub fn read(&self, sum: usize, range: Range<usize>, out: &mut Vec<f64>) -> Result<(), AggregationError> {
        if range.end > self.scales.len() || range.start > range.end || sum >= self.count {
            let (got, expected) = (range.end.max(range.start), self.scales.len());
            return Err(AggregationError::Length { what: "a range of the sums", got, expected });
        }
        out.clear();
        for (shard, part) in parts(range) {
            let (first, len) = (shard * SHARD, self.shard_len(shard));
            let Some(shard) = self.shards.get(shard) else { continue };
            let sums = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (tensor, run) in self.scales.runs(part) {
                let at = sum * len + run.start - first;
                let values = sums.get(at..at + run.len()).unwrap_or_default();
                out.extend(values.iter().map(|value| *value as f64 * tensor.scale));
            }
        }
        Ok(())
    }

    fn shard_len(&self, shard: usize) -> usize {
        SHARD.min(self.scales.len().saturating_sub(shard * SHARD))
    }
}

/// One update on its way into the sums. Dropped before [`Fold::finish`], it leaves sums that close no round.
#[derive(Debug)]
pub struct Fold<'a> {
    sums: &'a Sums,
    contribution: Contribution,
    next: usize,
}

impl Fold<'_> {
    /// Adds the next values in flat order, any number of them.
    ///
    /// # Errors
    /// As [`super::Check::piece`]: the sums are lost then, and the update should have been checked before.
    pub fn piece(&mut self, values: &[f32]) -> Result<(), AggregationError> {
        let (start, end) = (self.next, self.next + values.len());
        if end > self.sums.scales.len() {
            return Err(AggregationError::Length { what: "an update", got: end, expected: self.sums.scales.len() });
        }
        for (shard, part) in parts(start..end) {
            let values = values.get(part.start - start..part.end - start).unwrap_or_default();
            self.shard(shard, part, values)?;
        }
        self.next = end;
        Ok(())
    }

    /// The update is in.
    ///
    /// # Errors
    /// [`AggregationError::Length`] for too few values: the sums are lost.
    pub fn finish(self) -> Result<(), AggregationError> {
        let (got, expected) = (self.next, self.sums.scales.len());
        if got != expected {
            return Err(AggregationError::Length { what: "an update", got, expected });
        }
        self.sums.folded.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Adds values that lie within one shard.
    fn shard(&self, shard: usize, part: Range<usize>, values: &[f32]) -> Result<(), AggregationError> {
        let (first, len) = (shard * SHARD, self.sums.shard_len(shard));
        let Some(shard) = self.sums.shards.get(shard) else { return Ok(()) };
        let mut sums = shard.lock().unwrap_or_else(PoisonError::into_inner);
        for (tensor, run) in self.sums.scales.runs(part.clone()) {
            let deltas = values.get(run.start - part.start..run.end - part.start).unwrap_or_default();
            if !kernels::all_within(deltas, tensor.bound)
                && let Some(fault) = tensor.fault(deltas)
            {
                return Err(fault);
            }
            for (sum, share) in self.contribution.shares().iter().enumerate() {
                let (weight, multiplier) = match tensor.is_statistic {
                    false => (share.weight, share.multiplier),
                    true if sum == 0 => (self.contribution.examples(), 1.0),
                    true => continue,
                };
                let at = sum * len + run.start - first;
                let sums = sums.get_mut(at..at + run.len()).unwrap_or_default();
                // The scale is a power of two: this quotient is exact.
                kernels::add(sums, deltas, multiplier / tensor.scale, weight as f64);
            }
        }
        Ok(())
    }
}

/// A flat range cut at the shards' borders: each shard with its part.
fn parts(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let shards = range.start / SHARD..range.end.div_ceil(SHARD);
    shards.map(move |shard| (shard, range.start.max(shard * SHARD)..range.end.min((shard + 1) * SHARD)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixed_point::{Check, MAX_EXAMPLES, Share};
    use crate::aggregate::tests::weights;
    use fedge_models::ParameterClass::{Statistic, Trainable};

    /// Three shards, a small statistic across a border of two.
    fn scales() -> Arc<Scales> {
        let (long, short) = (vec![0.5; SHARD - 3], vec![1.0; 7]);
        let base =
            weights(&[("w", &long, Trainable), ("mean", &short, Statistic), ("v", &vec![3.0; SHARD + 100], Trainable)]);
        Arc::new(Scales::for_base(&base))
    }

    /// Some delta below 1 in size, another one for each seed.
    fn delta(len: usize, seed: u64) -> Vec<f32> {
        let hash = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xd129_42e7)) >> 40;
        (0..len as u64).map(|i| hash(i) as f32 / (1u32 << 23) as f32 - 1.0).collect()
    }

    fn contribution(seed: u64) -> Contribution {
        let shares = vec![Share::weighted(seed * 11), Share::scaled(1.0 / (seed as f64 * 0.37))];
        Contribution::new(seed * 7, shares).unwrap()
    }

    fn fold(sums: &Sums, seed: u64, size: usize) {
        let mut fold = sums.begin(&contribution(seed)).unwrap();
        for piece in delta(sums.scales.len(), seed).chunks(size) {
            fold.piece(piece).unwrap();
        }
        fold.finish().unwrap();
    }

    fn read(sums: &Sums) -> Vec<Vec<f64>> {
        let mut all = vec![Vec::new(); sums.count];
        for (sum, out) in all.iter_mut().enumerate() {
            sums.read(sum, 0..sums.scales.len(), out).unwrap();
        }
        all
    }

    #[test]
    fn sums_are_those_of_the_integers_one_by_one() {
        let scales = scales();
        let sums = Sums::new(scales.clone(), 2);
        (1..=3).for_each(|seed| fold(&sums, seed, SHARD));
        let found = read(&sums);
        let updates: Vec<_> = (1..=3).map(|seed| (contribution(seed), delta(scales.len(), seed))).collect();
        for (tensor, run) in scales.runs(0..scales.len()) {
            for i in run {
                for (sum, found) in found.iter().enumerate() {
                    let mut expected = 0i64;
                    for (contribution, delta) in &updates {
                        let Share { weight, multiplier } = match tensor.is_statistic {
                            true => Share::weighted(contribution.examples() * u64::from(sum == 0)),
                            false => contribution.shares()[sum],
                        };
                        let q = (f64::from(delta[i]) * multiplier / tensor.scale).round_ties_even();
                        expected += weight as i64 * q as i64;
                    }
                    assert_eq!(found[i], expected as f64 * tensor.scale, "sum {sum} at {i}");
                }
            }
        }
    }

    #[test]
    fn neither_order_nor_pieces_nor_threads_change_a_bit() {
        let scales = scales();
        let expected = Sums::new(scales.clone(), 2);
        (1..=8).for_each(|seed| fold(&expected, seed, scales.len()));
        let expected = read(&expected);
        for attempt in 0..4 {
            let sums = Sums::new(scales.clone(), 2);
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let sums = &sums;
                    let seeds = [(thread + attempt) % 4 * 2 + 1, (thread + attempt) % 4 * 2 + 2];
                    scope.spawn(move || {
                        for seed in seeds {
                            fold(sums, seed, [1000, SHARD, 3 * SHARD / 2, 99_999][thread as usize]);
                        }
                    });
                }
            });
            assert_eq!(sums.updates(), (8, 8));
            assert!(read(&sums) == expected);
        }
    }

    #[test]
    fn the_largest_cohort_of_the_largest_updates_does_not_overflow() {
        let base = weights(&[("w", &[1.0; 4], Trainable)]);
        let sums = Sums::new(Arc::new(Scales::for_base(&base)), 2);
        let most = vec![Share::weighted(MAX_EXAMPLES), Share::scaled(MAX_EXAMPLES as f64)];
        let most = Contribution::new(MAX_EXAMPLES, most).unwrap();
        let largest = 8.0f32.next_down();
        for _ in 0..MAX_COHORT {
            let mut fold = sums.begin(&most).unwrap();
            fold.piece(&[largest, -largest, largest, 0.0]).unwrap();
            fold.finish().unwrap();
        }
        let expected = f64::from(largest) * MAX_EXAMPLES as f64 * MAX_COHORT as f64;
        for sum in read(&sums) {
            assert_eq!(sum, [expected, -expected, expected, 0.0]);
        }
        assert_eq!(sums.begin(&most).unwrap_err(), AggregationError::Cohort);
    }

    #[test]
    fn values_that_were_not_checked_are_refused_and_leave_the_update_unfinished() {
        let scales = scales();
        for (values, name) in [(vec![f32::NAN], "w"), (vec![0.0, f32::INFINITY], "w"), (vec![-1e9], "w")] {
            let sums = Sums::new(scales.clone(), 2);
            let error = sums.begin(&contribution(1)).unwrap().piece(&values).unwrap_err();
            assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
            assert_eq!(sums.updates(), (1, 0));
        }
        let sums = Sums::new(scales.clone(), 2);
        assert!(matches!(sums.begin(&contribution(1)).unwrap().finish(), Err(AggregationError::Length { got: 0, .. })));
        let long = vec![0.0; scales.len() + 1];
        assert!(matches!(sums.begin(&contribution(1)).unwrap().piece(&long), Err(AggregationError::Length { .. })));
        assert_eq!(sums.updates(), (2, 0));
        assert!(Sums::new(scales, 1).begin(&contribution(1)).is_err());
    }

    #[test]
    fn any_range_can_be_read_and_none_beyond() {
        let sums = Sums::new(scales(), 2);
        fold(&sums, 5, 4096);
        let all = read(&sums);
        let mut part = Vec::new();
        for range in [0..1, SHARD - 5..SHARD + 5, SHARD..SHARD, 2 * SHARD - 1..2 * SHARD + 1, 17..2 * SHARD + 50] {
            sums.read(1, range.clone(), &mut part).unwrap();
            assert!(part == all[1][range]);
        }
        assert!(sums.read(0, 0..sums.scales.len() + 1, &mut part).is_err());
        assert!(sums.read(2, 0..1, &mut part).is_err());
    }

    #[test]
    #[ignore = "a measurement of time: run it alone, with --release and --nocapture, on an idle machine"]
    fn an_update_of_25_million_values_is_checked_within_40_ms_and_folded_within_60_ms_on_one_core() {
        let len = 25_000_000;
        let base = weights(&[("w", &vec![0.5; len], Trainable)]);
        let (scales, update) = (Arc::new(Scales::for_base(&base)), delta(len, 1));
        let sums = Sums::new(scales.clone(), 1);
        let contribution = Contribution::new(1000, vec![Share::weighted(1000)]).unwrap();
        let (mut checked_ms, mut folded_ms) = (f64::MAX, f64::MAX);
        for _ in 0..10 {
            let start = std::time::Instant::now();
            let mut check = Check::new(scales.clone());
            update.chunks(SHARD).for_each(|piece| check.piece(piece).unwrap());
            assert!(check.finish().unwrap() > 1.0);
            checked_ms = checked_ms.min(start.elapsed().as_secs_f64() * 1e3);
            let start = std::time::Instant::now();
            let mut fold = sums.begin(&contribution).unwrap();
            update.chunks(SHARD).for_each(|piece| fold.piece(piece).unwrap());
            fold.finish().unwrap();
            folded_ms = folded_ms.min(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("25 million values: checked in {checked_ms:.1} ms, folded in {folded_ms:.1} ms");
        assert!(checked_ms <= 40.0 && folded_ms <= 60.0, "checked in {checked_ms:.1} ms, folded in {folded_ms:.1} ms");
    }
}
