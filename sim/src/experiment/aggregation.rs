//! The one place where a simulation meets the coordinator's arithmetic: a round's sum and the version that it becomes.
//! What counts is decided in `rounds::step`; nothing is computed here that `aggregate` does not compute.

use std::sync::Arc;

use fedge_coordinator::aggregate::fixed_point::{Accumulator, AggregationError, Scales};
use fedge_coordinator::aggregate::{self, Strategy};
use fedge_coordinator::rounds::state::VersionRef;
use fedge_models::{Model, ModelError, Weights};

/// A version in memory.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) id: VersionRef,
    pub(super) model: Model,
    pub(super) weights: Weights,
}

/// Why no version came of a round.
#[derive(Debug, thiserror::Error)]
pub(super) enum MintError {
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
    #[error("the new weights do not make a model: {0}")]
    Model(#[from] ModelError),
}

impl Version {
    /// The model that a simulation begins with.
    pub(super) fn first(model: Model) -> Arc<Version> {
        Version::numbered(1, model)
    }

    fn numbered(number: u64, model: Model) -> Arc<Version> {
        let id = VersionRef { number, digest: model.digest() };
        Arc::new(Version { id, weights: model.weights(), model })
    }
}

/// The running sum of one round.
pub(super) struct Sum {
    base: Arc<Version>,
    scales: Scales,
    sum: Accumulator,
}

impl Sum {
    /// Empty, on the round's base.
    pub(super) fn on(base: Arc<Version>) -> Sum {
        let scales = Scales::for_base(&base.weights);
        Sum { sum: Accumulator::new(scales.clone()), base, scales }
    }

    /// What the coordinator would say to this update.
    pub(super) fn check(&self, delta: &[f32], examples: u64) -> Result<(), AggregationError> {
        Accumulator::check(&self.scales, delta, examples)
    }

    /// Folds an accepted update in.
    pub(super) fn add(&mut self, delta: &[f32], examples: u64) -> Result<(), AggregationError> {
        self.sum.add(delta, examples)
    }

    /// The next version.
    pub(super) fn mint(&self, strategy: Strategy) -> Result<Arc<Version>, MintError> {
        let weights = aggregate::next_weights(strategy, &self.base.weights, &self.sum.mean()?)?;
        Ok(Version::numbered(self.base.id.number + 1, self.base.model.with_weights(&weights)?))
    }
}
