//! Which inputs of answered requests are kept for a later label: none, a share by chance, or the share that was least certain.
//! It decides; keeping and forgetting them is the sample store's.

use std::sync::{Mutex, PoisonError};

/// Which inputs of answered requests are kept for a later label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepPolicy {
    /// None: replies carry no `fedge_sample_id`.
    Off,
    /// Of requests with a single sample, each with this probability, 0 to 1.
    Sampled(f64),
    /// Of requests with a single sample, this share, 0 to 1: those whose two greatest outputs are nearest to each other.
    Uncertain(f64),
}

/// A policy, and what it learnt of the requests so far.
#[derive(Debug)]
pub(super) struct Keeper {
    policy: KeepPolicy,
    /// Margins below this are kept; it follows the wanted quantile of all margins.
    threshold: Mutex<f64>,
}

/// How far one request moves the threshold.
const STEP: f64 = 0.02;

impl Keeper {
    pub(super) fn new(policy: KeepPolicy) -> Keeper {
        let start = match policy {
            KeepPolicy::Uncertain(share) => share,
            KeepPolicy::Off | KeepPolicy::Sampled(_) => 0.0,
        };
        Keeper { policy, threshold: Mutex::new(start) }
    }

    /// Whether to keep the input that gave these outputs of one sample.
    ///
    /// Uncertain: the margin is the difference of the two greatest softmax probabilities (Settles, "Active Learning
    /// Literature Survey", 2009, section 3.1). The threshold follows a quantile by stochastic approximation (Robbins and
    /// Monro 1951): up by `STEP * share`, down by `STEP` for each margin below it.
    pub(super) fn keeps(&self, outputs: &[f32]) -> bool {
        match self.policy {
            KeepPolicy::Off => false,
            KeepPolicy::Sampled(probability) => rand::random::<f64>() < probability,
            KeepPolicy::Uncertain(share) if share >= 1.0 => true,
            KeepPolicy::Uncertain(share) => {
                let margin = margin(outputs);
                let mut threshold = self.threshold.lock().unwrap_or_else(PoisonError::into_inner);
                let kept = margin < *threshold;
                *threshold = (*threshold + STEP * (share - f64::from(u8::from(kept)))).clamp(0.0, 1.0);
                kept
            }
        }
    }
}

/// Difference of the two greatest softmax probabilities, 0 to 1; 1 for fewer than two values.
fn margin(outputs: &[f32]) -> f64 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for value in outputs.iter().copied().filter(|value| !value.is_nan()) {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    if second == f32::NEG_INFINITY {
        return 1.0;
    }
    let weight = |value: f32| f64::from(value - first).exp();
    let sum: f64 = outputs.iter().copied().filter(|value| !value.is_nan()).map(weight).sum();
    (1.0 - weight(second)) / sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_that_of_the_softmax() {
        assert_eq!(margin(&[2.0, 2.0, -50.0]), 0.0);
        let expected = (1.0f64.exp() - 1.0) / (1.0f64.exp() + 1.0);
        assert!((margin(&[1.0, 0.0]) - expected).abs() < 1e-12);
        assert_eq!((margin(&[1.0]), margin(&[])), (1.0, 1.0));
        assert!(margin(&[f32::NAN, 1000.0, 0.0]) > 0.999);
    }

    #[test]
    fn about_the_wanted_share_is_kept_and_it_is_the_least_certain() {
        for share in [0.05, 0.3] {
            let keeper = Keeper::new(KeepPolicy::Uncertain(share));
            let (mut kept, mut of_kept, mut of_others) = (0, 0.0, 0.0);
            let total = 20_000;
            for step in 0..total {
                // Every margin between 0 and 1 as often, in an order without a pattern.
                let logit = (f64::from(step) * 0.618_033_988_749).fract() as f32 * 6.0;
                if keeper.keeps(&[logit, 0.0]) {
                    kept += 1;
                    of_kept += f64::from(logit);
                } else {
                    of_others += f64::from(logit);
                }
            }
            let found = f64::from(kept) / f64::from(total);
            assert!((found - share).abs() < 0.02, "{found} of {share}");
            assert!(of_kept / f64::from(kept) < 0.5 * of_others / f64::from(total - kept));
        }
        assert!((0..100).all(|_| !Keeper::new(KeepPolicy::Off).keeps(&[0.0, 0.0])));
        assert!(Keeper::new(KeepPolicy::Uncertain(1.0)).keeps(&[9.0, 0.0]));
    }
}
