//! Losses that compare each output with a number of its own: binary cross-entropy, squared, absolute and Huber.
//! Classes as targets become numbers here: one-hot where there is a class axis, else the class index itself.

use super::super::dataset::Targets;
use super::{Form, Loss, Measured};

pub(super) fn measure(loss: Loss, form: Form, outputs: &[f64], targets: &Targets) -> Measured {
    let count = outputs.len() as f64;
    let mut sum = 0.0;
    let mut correct = 0;
    let mut gradient = Vec::with_capacity(outputs.len());
    for (index, &output) in outputs.iter().enumerate() {
        let target = target(form, targets, index);
        let (cost, slope) = at(loss, output, target);
        sum += cost;
        gradient.push(slope / count);
        correct += usize::from(!output.is_nan() && (output > 0.0) == (target > 0.5));
    }
    let decides = loss == Loss::BinaryCrossEntropy;
    let (correct, answers) = if decides { (correct, outputs.len()) } else { (0, 0) };
    Measured { loss: sum / count, gradient, correct, answers, weight: count }
}

/// What the output of this index should be.
fn target(form: Form, targets: &Targets, index: usize) -> f64 {
    match targets {
        Targets::Values { values, .. } => values.get(index).map_or(f64::NAN, |value| f64::from(*value)),
        Targets::Classes { labels, .. } if form.axis.is_none() => {
            labels.get(index).map_or(f64::NAN, |label| f64::from(*label))
        }
        Targets::Classes { labels, .. } => {
            let (position, class) = (
                index / (form.classes * form.inner) * form.inner + index % form.inner,
                index / form.inner % form.classes,
            );
            labels.get(position).map_or(f64::NAN, |&label| f64::from(u8::from(label as usize == class)))
        }
    }
}

/// The loss of one output and its slope.
fn at(loss: Loss, output: f64, target: f64) -> (f64, f64) {
    let difference = output - target;
    match loss {
        // −t log σ(x) − (1 − t) log(1 − σ(x)) = max(x, 0) − x t + log(1 + exp(−|x|)), which overflows for no x.
        Loss::BinaryCrossEntropy | Loss::CrossEntropy => {
            let sigmoid =
                if output >= 0.0 { 1.0 / (1.0 + (-output).exp()) } else { output.exp() / (1.0 + output.exp()) };
            // f64::max would drop a NaN.
            let positive = if output < 0.0 { 0.0 } else { output };
            (positive - output * target + (-output.abs()).exp().ln_1p(), sigmoid - target)
        }
        Loss::MeanSquaredError => (difference * difference, 2.0 * difference),
        Loss::MeanAbsoluteError => (difference.abs(), if difference == 0.0 { 0.0 } else { difference.signum() }),
        Loss::Huber { delta } => {
            let delta = f64::from(delta);
            if difference.abs() <= delta {
                (0.5 * difference * difference, difference)
            } else {
                (delta * (difference.abs() - 0.5 * delta), delta * difference.signum())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const EACH: Form = Form { classes: 1, inner: 1, axis: None };
    const LOSSES: [Loss; 4] =
        [Loss::BinaryCrossEntropy, Loss::MeanSquaredError, Loss::MeanAbsoluteError, Loss::Huber { delta: 0.7 }];

    fn values(values: &[f32]) -> Targets {
        Targets::Values { values: values.to_vec(), shape: vec![1] }
    }

    #[test]
    fn each_loss_is_the_one_that_its_name_says() {
        let at = |loss, output, target: f32| measure(loss, EACH, &[output], &values(&[target])).loss;
        assert!((at(Loss::BinaryCrossEntropy, 0.0, 1.0) - 2f64.ln()).abs() < 1e-12);
        assert!((at(Loss::MeanSquaredError, 3.0, 1.0) - 4.0).abs() < 1e-12);
        assert!((at(Loss::MeanAbsoluteError, -1.0, 1.0) - 2.0).abs() < 1e-12);
        assert!((at(Loss::Huber { delta: 1.0 }, 1.5, 1.0) - 0.125).abs() < 1e-12);
        assert!((at(Loss::Huber { delta: 1.0 }, 4.0, 1.0) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn gradients_are_slopes() {
        let outputs = [0.3, -1.2, 2.0, 0.7];
        let targets = values(&[0.0, 1.0, 0.25, 1.0]);
        for loss in LOSSES {
            let gradient = measure(loss, EACH, &outputs, &targets).gradient;
            for (index, slope) in gradient.iter().enumerate() {
                let at = |delta: f64| {
                    let mut moved = outputs;
                    moved[index] += delta;
                    measure(loss, EACH, &moved, &targets).loss
                };
                assert!(((at(1e-6) - at(-1e-6)) / 2e-6 - slope).abs() < 1e-8, "{loss:?} {index}");
            }
        }
    }

    #[test]
    fn classes_become_one_hot_targets_along_the_class_axis() {
        let form = Form { classes: 3, inner: 2, axis: Some(1) };
        let targets = Targets::Classes { labels: vec![2, 0], shape: vec![2] };
        let found: Vec<f64> = (0..6).map(|index| target(form, &targets, index)).collect();
        assert_eq!(found, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn large_and_missing_numbers_are_not_hidden() {
        for loss in LOSSES {
            assert!(measure(loss, EACH, &[1e300, -700.0], &values(&[1.0, 0.0])).gradient.iter().all(|g| !g.is_nan()));
            assert!(!measure(loss, EACH, &[f64::NAN], &values(&[1.0])).loss.is_finite(), "{loss:?}");
        }
    }
}
