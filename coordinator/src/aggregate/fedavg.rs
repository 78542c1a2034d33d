//! Federated averaging (McMahan et al. 2017, algorithm 1): the next weights are the base plus the weighted mean delta.
//! Weighting by examples has happened in `fixed_point`.

/// `base + mean`, element by element; rounded to f32 once.
pub(super) fn next(base: &[f32], mean: &[f64]) -> Vec<f32> {
    base.iter().zip(mean).map(|(w, d)| (f64::from(*w) + d) as f32).collect()
}
