//! What was trained becomes the bytes of an update, and what they leave behind for the node's next one.
//! Pure computation: where bytes go, and when what is left behind is valid, is `work`'s and `outbox`'s matter.

use std::io::Write;

use fedge_models::Digest;
use fedge_proto::update::{self, EncodeError};

use super::convert::{AssignmentId, Terms};
use super::learner::Trained;
use crate::training::Plan;

/// Writes the update's payload to `out`. `trained.delta` has the task's last residual added where the coding is lossy;
/// after it, it holds what the coding lost now: the next residual. Gives SCAFFOLD's new control variate of this node,
/// where the terms ask for one.
///
/// # Errors
/// [`EncodeError`] where a value is not finite or `out` fails.
pub fn encode(
    trained: &mut Trained,
    plan: &Plan,
    terms: &Terms,
    id: AssignmentId,
    out: &mut dyn Write,
) -> Result<Option<Vec<f32>>, EncodeError> {
    let mut control = terms.control.map(|_| OwnControl::new(plan, trained));
    // Nobody else has this assignment's id, and it gives no more than one update.
    let seed = *Digest::of(&[b"fedge rounding", &id.0[..]].concat()).as_bytes();
    update::encode_into(&mut trained.delta, &trained.tensors, &terms.coding, seed, out)?;
    if let Some(control) = &mut control {
        control.add_lost(&trained.delta);
        control.clear(&trained.statistics);
    }
    Ok(control.map(|control| control.values))
}

/// SCAFFOLD's new control variate of this node, c_i⁺ = c_i − c + (x − y)/(Kη): x − y is what is sent, negated, because
/// the coordinator derives its own from that. (Karimireddy et al. 2020, algorithm 1, line 12, option II.)
struct OwnControl {
    values: Vec<f32>,
    /// 1/(Kη).
    slope: f64,
}

impl OwnControl {
    /// Before encoding: as if all of `delta` were sent.
    fn new(plan: &Plan, trained: &Trained) -> OwnControl {
        let learning_rate = plan.optimizer.learning_rate();
        let slope = 1.0 / (trained.metrics.steps.max(1) as f64 * f64::from(learning_rate));
        let correction = plan.correction.as_deref().unwrap_or_default();
        let corrections = correction.iter().copied().chain(std::iter::repeat(0.0));
        let values = trained.delta.iter().zip(corrections);
        let values = values.map(|(delta, correction)| (-f64::from(correction) - f64::from(*delta) * slope) as f32);
        OwnControl { values: values.collect(), slope }
    }

    /// After encoding: what was lost was not sent.
    fn add_lost(&mut self, lost: &[f32]) {
        for (value, lost) in self.values.iter_mut().zip(lost) {
            *value = (f64::from(*value) + f64::from(*lost) * self.slope) as f32;
        }
    }

    /// Statistics have no gradient, and so no control variate.
    fn clear(&mut self, statistics: &[std::ops::Range<usize>]) {
        for range in statistics {
            self.values.get_mut(range.clone()).unwrap_or_default().fill(0.0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::federation::outbox::Metrics;
    use crate::training::{self, Loss, Optimizer};

    #[test]
    fn after_one_step_on_all_samples_the_control_variate_is_the_gradient() {
        let model =
            fedge_models::Model::from_bytes(&include_bytes!("../../../models/zoo/digits_cnn.onnx")[..]).unwrap();
        let inputs: Vec<f32> = (0..32 * 64).map(|i| ((i * 37) % 17) as f32 / 16.0).collect();
        let data = training::Dataset::new(inputs, (0..32).map(|i| i % 10).collect(), vec![1, 8, 8]).unwrap();
        let (_, gradients) = training::gradients(&model, &data, Loss::CrossEntropy).unwrap();
        let len = model.layout().exchanged_len();
        let plan = Plan {
            optimizer: Optimizer::sgd(0.25, 0.0, 0.0),
            epochs: 1,
            batch_size: 32,
            correction: Some((0..len).map(|i| (i % 5) as f32 / 10.0 - 0.2).collect()),
            ..Plan::default()
        };
        let outcome = training::train(&model, &data, &plan, &|_| (), &AtomicBool::new(false)).unwrap();
        let base = model.weights();
        let delta: Vec<f32> = outcome.weights.values().iter().zip(base.values()).map(|(new, old)| new - old).collect();
        let metrics = Metrics {
            steps: outcome.steps,
            loss_first: 0.0,
            loss_last: 0.0,
            loss_base: None,
            partial: false,
            duration_ms: 0,
        };
        let trained = Trained {
            delta,
            tensors: [len].into(),
            statistics: std::iter::once(0..144).collect(),
            examples: 32,
            own: None,
            metrics,
        };
        let mut control = OwnControl::new(&plan, &trained);
        for (name, gradient) in gradients {
            let found = &control.values[model.layout().range(&name).unwrap()];
            for (found, expected) in found.iter().zip(gradient) {
                assert!((found - expected).abs() < 1e-5, "{name}: {found} {expected}");
            }
        }
        control.clear(&trained.statistics);
        assert!(
            control.values[..144].iter().all(|value| *value == 0.0) && control.values[144..].iter().any(|v| *v != 0.0)
        );
    }
}
