//! Why updates could not be checked, summed or turned into a version.
//! How refusals travel and are counted is `rounds`' matter.

/// Why updates could not be aggregated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AggregationError {
    /// NaN or infinity.
    #[error("parameter {parameter:?} has a value that is not finite")]
    NotFinite {
        /// Its name.
        parameter: String,
    },
    /// A delta beyond what the round's scale can hold.
    #[error(
        "parameter {parameter:?} moved by {delta:.3e}, more than the {bound:.1} that this round accepts: \
         training diverged there; lower the learning rate"
    )]
    OutOfRange {
        /// Its name.
        parameter: String,
        /// The delta.
        delta: f32,
        /// The bound.
        bound: f64,
    },
    /// Wrong number of values.
    #[error("{what} has {got} values where {expected} belong")]
    Length {
        /// What was counted.
        what: &'static str,
        /// Values that came; at least so many where the count was broken off.
        got: usize,
        /// Values that belong there.
        expected: usize,
    },
    /// A weight of 0 or above 2^20.
    #[error("{0} examples: an update's weight is 1 to 1048576")]
    Weight(u64),
    /// A weight and a multiplier whose product leaves no room for the sum.
    #[error(
        "an update would count {weight} × {multiplier:.3e}, beyond the 2^20 that the sums hold; \
         its examples, steps, loss or learning rate are out of all proportion"
    )]
    Share {
        /// Integer weight.
        weight: u64,
        /// Real factor on its values.
        multiplier: f64,
    },
    /// More updates than the sum can hold.
    #[error("more than 4096 updates in one round")]
    Cohort,
    /// Nothing to average.
    #[error("no update to average")]
    Empty,
    /// A strategy can't use what is known of an update.
    #[error("strategy {strategy}: {problem}")]
    Facts {
        /// Its name in the task file.
        strategy: &'static str,
        /// What it can't use, and what to do.
        problem: String,
    },
    /// The sums hold something else than the updates that the round is to be closed with.
    #[error("{begun} updates were begun and {folded} folded where {expected} count: fold them again into empty sums")]
    Unfinished {
        /// Folds begun.
        begun: usize,
        /// Folds that came to their end.
        folded: usize,
        /// Updates that count.
        expected: usize,
    },
    /// The server's step left f32's range.
    #[error(
        "the next value of parameter {parameter:?} is not finite: \
         lower the strategy's server_learning_rate, or training's learning_rate"
    )]
    Diverged {
        /// Its name.
        parameter: String,
    },
}
