//! The arithmetic of a round: updates become integers, integers become means, means become the next weights.
//! Which updates count is decided in `rounds`; nothing here reads a file or a clock, or holds a whole model.

mod close;
mod error;
pub mod fixed_point;
pub mod strategies;
#[cfg(test)]
mod tests;

pub use self::close::Close;
pub use self::error::AggregationError;

/// What is known of an accepted update besides its values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateFacts {
    /// Samples that it was trained on, 1..=2^20.
    pub examples: u64,
    /// Optimiser steps that it took, 1..=2^30. The caller has compared it with what the plan allows: some strategies
    /// divide by it.
    pub steps: u64,
    /// Mean loss of the base version on the node's samples, where the strategy asked for it.
    pub loss_base: Option<f32>,
    /// Versions between its base and the current one; 0 in synchronous rounds.
    pub staleness: u64,
    /// ‖delta‖² over the trainable values, as [`fixed_point::Check`] found it.
    pub squared_norm: f64,
    /// SGD's step size of the plan, above 0.
    pub learning_rate: f32,
    /// SGD's momentum of the plan, 0 <= m < 1.
    pub momentum: f32,
    /// FedProx's mu of the plan, 0 or more.
    pub proximal_mu: f32,
}
