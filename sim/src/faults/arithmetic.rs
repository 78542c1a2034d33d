//! Small models whose deltas are whole numbers, so that nothing is lost to rounding; sums and versions by `aggregate`.
//! The other way from the updates to a version, undisturbed and in one go, is here too: both have to give the same bits.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::{Check, Scales, Sums};
use fedge_coordinator::aggregate::strategies::StrategySpec;
use fedge_coordinator::aggregate::{AggregationError, Close, UpdateFacts};
use fedge_coordinator::rounds::state::{AssignmentId, TaskState, TrainedUpdate, Work, WorkStatus};
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::{Digest, Layout, ModelError, ParameterClass, ParameterSpec, Weights};

/// One of a delta's whole numbers, as a weight: a power of two, so that it is exact.
const UNIT: f32 = 1.0 / 1024.0;

/// A lineage: its name and what its versions hold.
#[derive(Debug)]
pub struct Lineage {
    /// The name that task files give.
    pub name: String,
    /// Two tensors, one of them a statistic.
    pub layout: Arc<Layout>,
}

impl Lineage {
    /// A lineage of `len` values, 4 or more.
    ///
    /// # Errors
    /// None, for these names and sizes.
    pub fn new(index: u8, len: usize) -> Result<Lineage, ModelError> {
        let spec = |name: &str, len, class| ParameterSpec { name: name.to_owned(), shape: vec![len], class };
        let (weight, mean) = ((len - 1).div_ceil(2), (len - 1) / 2 + 1);
        let tensors =
            vec![spec("weight", weight, ParameterClass::Trainable), spec("mean", mean, ParameterClass::Statistic)];
        Ok(Lineage { name: format!("m{index}"), layout: Arc::new(Layout::new(tensors)?) })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.layout.exchanged_len()
    }

    /// The values of version 1.
    pub fn first(&self) -> Vec<f32> {
        (0..self.len()).map(|index| ((index * 37) % 101) as f32 / 256.0 - 0.2).collect()
    }

    /// The integer scales of a version's round.
    ///
    /// # Errors
    /// [`ModelError`] for another number of values, or one that is not finite.
    pub fn scales(&self, values: &[f32]) -> Result<Arc<Scales>, ModelError> {
        Ok(Arc::new(Scales::for_base(&Weights::new(self.layout.clone(), values.to_vec())?)))
    }
}

/// Values as a file holds them: little-endian f32.
pub fn file_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The values of a file.
pub fn values_of(file: &[u8]) -> Vec<f32> {
    file.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// An update's payload.
pub fn payload(delta: &[i32]) -> Vec<u8> {
    delta.iter().flat_map(|whole| (*whole as f32 * UNIT).to_le_bytes()).collect()
}

/// What a node remembers, as a file.
pub fn memory(rest: &[i32]) -> Vec<u8> {
    rest.iter().flat_map(|whole| whole.to_le_bytes()).collect()
}

/// The numbers of a memory.
pub fn rest_of(file: &[u8]) -> Vec<i32> {
    file.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
}

/// A lossy encoding: multiples of `coarseness` are sent, the rest is kept for the next update.
pub fn encode(delta: &[i32], coarseness: i32) -> (Vec<i32>, Vec<i32>) {
    let rest = |whole: &i32| whole.rem_euclid(coarseness);
    (delta.iter().map(|whole| whole - rest(whole)).collect(), delta.iter().map(rest).collect())
}

/// Checks every value of a payload; gives the squared norm of the trainable ones.
///
/// # Errors
/// [`AggregationError`].
pub fn check(scales: &Arc<Scales>, payload: &[u8]) -> Result<f64, AggregationError> {
    let mut check = Check::new(scales.clone());
    check.piece(&values_of(payload))?;
    check.finish()
}

/// What the strategy may know of an accepted update.
pub fn facts(spec: &TaskSpec, state: &TaskState, work: &Work, update: &TrainedUpdate) -> UpdateFacts {
    UpdateFacts {
        examples: update.examples,
        steps: update.steps,
        loss_base: update.loss_base,
        staleness: state.base.number.saturating_sub(work.base.number),
        squared_norm: update.squared_norm,
        learning_rate: spec.training.learning_rate,
        momentum: spec.training.momentum,
        proximal_mu: spec.training.proximal_mu,
    }
}

/// Adds an update to the sums.
///
/// # Errors
/// [`AggregationError`]; the sums are lost then.
pub fn fold(sums: &Sums, spec: &TaskSpec, facts: &UpdateFacts, payload: &[u8]) -> Result<(), AggregationError> {
    let mut fold = sums.begin(&spec.strategy.contribution(facts)?)?;
    fold.piece(&values_of(payload))?;
    fold.finish()
}

/// A version's values, and what the strategy keeps beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The values.
    pub values: Vec<f32>,
    /// The strategy's arrays; none where it keeps nothing.
    pub kept: Vec<Vec<f32>>,
}

impl Made {
    /// The digest of the version's file.
    pub fn digest(&self) -> Digest {
        Digest::of(&file_of(&self.values))
    }

    /// What the strategy keeps, as one file.
    pub fn kept_file(&self) -> Vec<u8> {
        self.kept.iter().flat_map(|array| file_of(array)).collect()
    }
}

/// The arrays of what a strategy kept; those of before the first round where there is no file.
pub fn kept_of(strategy: &StrategySpec, file: Option<&[u8]>, len: usize) -> Vec<Vec<f32>> {
    let arrays = strategy.strategy().state();
    match file {
        Some(file) => values_of(file).chunks(len.max(1)).map(<[f32]>::to_vec).collect(),
        None => arrays.iter().map(|array| vec![array.initial; len]).collect(),
    }
}

/// Closes a round: the next version's values. In two pieces, as larger models are made in many.
///
/// # Errors
/// [`AggregationError`].
pub fn close(
    strategy: &StrategySpec,
    sums: Arc<Sums>,
    facts: &[UpdateFacts],
    population: usize,
    base: &[f32],
    mut kept: Vec<Vec<f32>>,
) -> Result<Made, AggregationError> {
    let close = Close::new(strategy, sums, facts, population)?;
    let (mut values, half) = (Vec::with_capacity(base.len()), base.len() / 2);
    for (start, end) in [(0, half), (half, base.len())] {
        let mut part: Vec<Vec<f32>> =
            kept.iter().map(|array| array.get(start..end).unwrap_or_default().to_vec()).collect();
        values.extend(close.piece(start, base.get(start..end).unwrap_or_default(), &mut part)?);
        for (array, part) in kept.iter_mut().zip(part) {
            if let Some(place) = array.get_mut(start..end) {
                place.copy_from_slice(&part);
            }
        }
    }
    Ok(Made { values, kept })
}

/// The version that the accepted updates of a round give when nothing disturbs them: folded one after the other, closed.
///
/// # Errors
/// [`AggregationError`].
pub fn undisturbed(
    spec: &TaskSpec,
    state: &TaskState,
    population: usize,
    scales: Arc<Scales>,
    base: &[f32],
    kept: Vec<Vec<f32>>,
    payload_of: impl Fn(AssignmentId, &TrainedUpdate) -> Option<Vec<u8>>,
) -> Result<Made, AggregationError> {
    let sums = Sums::new(scales, spec.strategy.strategy().sums());
    let mut all = Vec::new();
    for (id, work) in state.cohort().into_iter().flatten() {
        let WorkStatus::Trained(update) = &work.status else { continue };
        let facts = facts(spec, state, work, update);
        fold(&sums, spec, &facts, &payload_of(*id, update).unwrap_or_default())?;
        all.push((work.node.clone(), *id, facts));
    }
    let facts = in_order(&mut all);
    close(&spec.strategy, Arc::new(sums), &facts, population, base, kept)
}

/// By node, so that sums of floats can be replayed.
pub fn in_order(facts: &mut [(String, AssignmentId, UpdateFacts)]) -> Vec<UpdateFacts> {
    facts.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    facts.iter().map(|(.., facts)| *facts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_and_what_is_kept_make_the_whole() {
        let delta = [-17, -8, 0, 3, 8, 90];
        let (sent, rest) = encode(&delta, 8);
        assert!(sent.iter().all(|whole| whole % 8 == 0));
        assert!(sent.iter().zip(&rest).zip(delta).all(|((sent, rest), whole)| sent + rest == whole));
        assert_eq!(rest_of(&memory(&rest)), rest);
        assert_eq!(values_of(&payload(&sent)), sent.map_to_units());
    }

    trait Units {
        fn map_to_units(&self) -> Vec<f32>;
    }

    impl Units for Vec<i32> {
        fn map_to_units(&self) -> Vec<f32> {
            self.iter().map(|whole| *whole as f32 / 1024.0).collect()
        }
    }
}
