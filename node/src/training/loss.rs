//! What is minimised: the losses, each with its gradient with respect to the model's output in closed form.
//! The gradient of everything before the output is the tape's work; what a target is, `dataset` says.

use std::sync::Arc;

use super::TrainingError;
use super::dataset::Targets;

mod cross_entropy;
mod elementwise;

/// What training minimises, a mean over the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Cross-entropy of the softmax of the model's output. A Softmax or LogSoftmax that ends the graph is recognised and
    /// left out, so files that give logits, probabilities or log-probabilities all train on the logits. Targets are class
    /// indices, one a sample or, where the output has more than two axes, one a position.
    CrossEntropy,
    /// Cross-entropy of the sigmoid of each output on its own; a Sigmoid that ends the graph is left out.
    BinaryCrossEntropy,
    /// Mean of (output − target)².
    MeanSquaredError,
    /// Mean of |output − target|.
    MeanAbsoluteError,
    /// Huber's loss (1964) as `torch.nn.HuberLoss` defines it: ½d² up to |d| = δ, and δ(|d| − ½δ) beyond.
    Huber {
        /// δ > 0.
        delta: f32,
    },
}

/// A loss with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// The loss.
    pub loss: Loss,
    /// Cross-entropy alone: the share of a target that is spread evenly over all classes, `0.0..1.0` (Szegedy et al. 2016, §7).
    pub label_smoothing: f32,
    /// Cross-entropy alone: a weight ≥ 0 for each class; the loss is the weighted mean, as in `torch.nn.CrossEntropyLoss`.
    pub class_weights: Option<Arc<[f32]>>,
}

impl From<Loss> for Objective {
    fn from(loss: Loss) -> Objective {
        Objective { loss, label_smoothing: 0.0, class_weights: None }
    }
}

impl Objective {
    /// Checks every range. The error names the field and what is allowed.
    pub(super) fn validate(&self) -> Result<(), TrainingError> {
        let refused = |field, problem: String| Err(TrainingError::Plan { field, problem });
        if let Loss::Huber { delta } = self.loss
            && !(delta.is_finite() && delta > 0.0)
        {
            return refused("huber_delta", format!("is {delta}; give a positive number"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refused("label_smoothing", format!("is {}; give 0 or more, below 1", self.label_smoothing));
        }
        if self.loss != Loss::CrossEntropy && self.label_smoothing != 0.0 {
            return refused("label_smoothing", "goes with cross-entropy alone; give 0".to_owned());
        }
        match &self.class_weights {
            Some(_) if self.loss != Loss::CrossEntropy => {
                refused("class_weights", "go with cross-entropy alone; leave them out".to_owned())
            }
            Some(weights) if !weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0) => {
                refused("class_weights", format!("are {weights:?}; give numbers of 0 or more"))
            }
            Some(weights) if !weights.iter().any(|weight| *weight > 0.0) => {
                refused("class_weights", "are all 0; give at least one above".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// How an output is compared with its targets: the class axis lies between `inner` values behind it and the rest before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    /// Classes, 1 where each output stands for itself.
    pub classes: usize,
    /// Elements behind the class axis.
    pub inner: usize,
    /// The class axis, counted with the batch; `None` where each output stands for itself.
    pub axis: Option<usize>,
}

impl Form {
    /// For an output of this shape, batch first, and targets whose one sample has `target`'s shape; `values`: they are
    /// numbers, not classes.
    pub(super) fn of(loss: Loss, output: &[usize], target: &[usize], values: bool) -> Result<Form, TrainingError> {
        let sample = output.get(1..).unwrap_or_default();
        let len = |shape: &[usize]| shape.iter().product::<usize>();
        let each = Form { classes: 1, inner: 1, axis: None };
        if values {
            return match loss {
                Loss::CrossEntropy => Err(TrainingError::data(
                    "the targets are fractions; cross-entropy needs class indices (integers)".to_owned(),
                )),
                _ if len(sample) == len(target) => Ok(each),
                _ => Err(TrainingError::data(format!(
                    "a sample's targets have the shape {target:?}, but the model gives {sample:?} for it"
                ))),
            };
        }
        // One output a label: the label itself is the target, 0 or 1 for a binary decision.
        if loss != Loss::CrossEntropy && len(sample) == len(target) {
            return Ok(each);
        }
        match sample {
            // The class axis is the second, as in PyTorch, or the last, as in models of sequences.
            [classes, rest @ ..] if rest == target => Ok(Form { classes: *classes, inner: len(rest), axis: Some(1) }),
            [rest @ .., classes] if rest == target => {
                Ok(Form { classes: *classes, inner: 1, axis: Some(output.len() - 1) })
            }
            _ => Err(TrainingError::data(format!(
                "the model gives an output of shape {sample:?} a sample, and its labels have the shape {target:?}; the output \
                 needs one axis more, of classes, second or last"
            ))),
        }
    }
}

/// What a batch's outputs are worth.
pub(super) struct Measured {
    /// The mean loss, in nats for the cross-entropies; not finite where an output is not.
    pub loss: f64,
    /// ∂loss/∂outputs, row-major like the outputs.
    pub gradient: Vec<f64>,
    /// Right answers: the class of the largest output, or the side of 0 in a binary decision; 0 for numbers.
    pub correct: usize,
    /// Answers that can be right or wrong.
    pub answers: usize,
    /// What the mean is taken over: Σ weights, or the number of elements.
    pub weight: f64,
}

/// Compares outputs, row-major, of a whole batch with its targets; both fit the form.
pub(super) fn measure(objective: &Objective, form: Form, outputs: &[f64], targets: &Targets) -> Measured {
    match objective.loss {
        Loss::CrossEntropy => cross_entropy::measure(objective, form, outputs, targets.labels()),
        _ => elementwise::measure(objective.loss, form, outputs, targets),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_class_axis_is_the_second_or_the_last() {
        let of = |output: &[usize], target: &[usize]| Form::of(Loss::CrossEntropy, output, target, false);
        assert_eq!(of(&[4, 10], &[]).unwrap(), Form { classes: 10, inner: 1, axis: Some(1) });
        assert_eq!(of(&[4, 3, 8, 8], &[8, 8]).unwrap(), Form { classes: 3, inner: 64, axis: Some(1) });
        assert_eq!(of(&[4, 7, 5], &[7]).unwrap(), Form { classes: 5, inner: 1, axis: Some(2) });
        assert!(of(&[4, 7, 5], &[]).unwrap_err().to_string().contains("one axis more"));
    }

    #[test]
    fn one_output_a_label_is_compared_with_the_label_itself() {
        let form = Form::of(Loss::BinaryCrossEntropy, &[4, 1], &[], false).unwrap();
        assert_eq!(form.axis, None);
        let form = Form::of(Loss::BinaryCrossEntropy, &[4, 3], &[], false).unwrap();
        assert_eq!(form, Form { classes: 3, inner: 1, axis: Some(1) });
    }

    #[test]
    fn options_out_of_range_or_of_another_loss_are_refused_by_name() {
        let plain = |loss| Objective::from(loss);
        let weights = |weights: &[f32]| Some(Arc::from(weights));
        for (field, objective) in [
            ("huber_delta", plain(Loss::Huber { delta: 0.0 })),
            ("label_smoothing", Objective { label_smoothing: 1.0, ..plain(Loss::CrossEntropy) }),
            ("label_smoothing", Objective { label_smoothing: 0.1, ..plain(Loss::MeanSquaredError) }),
            ("class_weights", Objective { class_weights: weights(&[1.0]), ..plain(Loss::BinaryCrossEntropy) }),
            ("class_weights", Objective { class_weights: weights(&[1.0, -1.0]), ..plain(Loss::CrossEntropy) }),
            ("class_weights", Objective { class_weights: weights(&[0.0]), ..plain(Loss::CrossEntropy) }),
        ] {
            let error = objective.validate().unwrap_err();
            assert!(matches!(error, TrainingError::Plan { field: found, .. } if found == field), "{error}");
        }
    }
}
