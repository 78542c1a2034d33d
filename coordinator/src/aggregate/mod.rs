//! The arithmetic of a round: updates become integers, integers become a mean, the mean becomes the next weights.
//! Which updates count is decided in `rounds`; nothing here reads a file or a clock.

mod fedavg;
pub mod fixed_point;

use fedge_models::{Layout, Weights};
use serde::{Deserialize, Serialize};

use self::fixed_point::AggregationError;

/// How the mean of the updates becomes the next global model. One file each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Federated averaging (McMahan et al. 2017, algorithm 1).
    #[default]
    FedAvg,
}

/// The next global weights from the base and the weighted mean delta (one value an exchanged parameter).
///
/// # Errors
/// [`AggregationError::NotFinite`] when the result leaves f32's range.
pub fn next_weights(strategy: Strategy, base: &Weights, mean: &[f64]) -> Result<Weights, AggregationError> {
    let values = match strategy {
        Strategy::FedAvg => fedavg::next(base.values(), mean),
    };
    check_finite(base.layout(), &values)?;
    Weights::new(base.layout().clone(), values).map_err(|e| AggregationError::Weights(e.to_string()))
}

fn check_finite(layout: &Layout, values: &[f32]) -> Result<(), AggregationError> {
    for (parameter, range) in layout.exchanged() {
        if values.get(range).is_some_and(|v| v.iter().any(|x| !x.is_finite())) {
            return Err(AggregationError::NotFinite { parameter: parameter.name.clone() });
        }
    }
    Ok(())
}

/// What a strategy asks of the nodes and of the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClientTerms {
    /// FedProx's mu.
    pub proximal_mu: Option<f32>,
    /// Work that stopped at the deadline counts.
    pub accept_partial: bool,
    /// SCAFFOLD's control variates.
    pub control_variates: bool,
    /// Nodes report the base's loss.
    pub loss_base: bool,
    /// No rounds: a buffer of updates.
    pub asynchronous: Option<Buffer>,
}

/// FedBuff's buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buffer {
    /// Updates that make a version.
    pub size: usize,
    /// Most versions between an update's base and the newest.
    pub max_staleness: u64,
}

impl Strategy {
    /// What it asks of the nodes and of the rounds.
    pub fn client(&self) -> ClientTerms {
        ClientTerms::default()
    }
}
