//! Checked integer sums of updates: the result depends on neither arrival order, sharding, threads nor a replay.
//! What a sum means and how it becomes the next weights is in `strategies` and `close`.
//!
//! A delta becomes q = round(delta · multiplier / scale), at a power-of-two scale per tensor, and is added `weight`
//! times. |delta| / scale < 2^31, weight · max(multiplier, 1) <= 2^20 and at most 2^12 updates: every addend is below
//! 2^51 and an `i64` sum cannot overflow. Means weighted by examples have multiplier 1, so |q| < 2^31.

mod check;
mod contribution;
mod kernels;
mod scales;
mod sums;

pub use self::check::Check;
pub use self::contribution::{Contribution, Share};
pub(super) use self::kernels::all_within;
pub use self::scales::{LargestAbs, Scales};
pub use self::sums::{Fold, SHARD, Sums};
pub use super::error::AggregationError;

/// Most updates in one sum.
pub const MAX_COHORT: usize = 1 << 12;
/// Largest weight (number of examples) of one update.
pub const MAX_EXAMPLES: u64 = 1 << 20;
