//! Softmax cross-entropy over a class axis, with class weights and label smoothing.
//! Which axis that is, `Form` says.

use super::{Form, Measured, Objective};

/// `labels` holds one class below `form.classes` for each position, the class axis left out.
///
/// With weights w and smoothing ε over C classes: loss = Σ ((1 − ε) w_y (−log p_y) + ε/C Σ_c w_c (−log p_c)) / Σ w_y, as
/// `torch.nn.CrossEntropyLoss` defines it. The softmax is shifted by the row's maximum, so no finite logit overflows. (Bridle
/// 1990; the gradient is that of Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2.3.)
pub(super) fn measure(objective: &Objective, form: Form, outputs: &[f64], labels: &[u32]) -> Measured {
    let Form { classes, inner, .. } = form;
    let smoothing = f64::from(objective.label_smoothing);
    let weight_of = |class: usize| match &objective.class_weights {
        None => 1.0,
        Some(weights) => weights.get(class).map_or(f64::NAN, |weight| f64::from(*weight)),
    };
    let weights: Vec<f64> = (0..classes).map(weight_of).collect();
    let all_weights: f64 = weights.iter().sum();
    let total: f64 = labels.iter().map(|&label| weights.get(label as usize).copied().unwrap_or(f64::NAN)).sum();
    // A batch whose classes all weigh nothing says nothing.
    let over = |value: f64| if total == 0.0 { 0.0 } else { value / total };
    let mut gradient = vec![0.0; outputs.len()];
    let (mut loss, mut correct) = (0.0, 0);
    let mut row = vec![0.0; classes];
    for (position, &label) in labels.iter().enumerate() {
        let (label, start) = (label as usize, position / inner * classes * inner + position % inner);
        let places = (0..classes).map(|class| start + class * inner);
        for (value, place) in row.iter_mut().zip(places.clone()) {
            *value = outputs.get(place).copied().unwrap_or(f64::NAN);
        }
        correct += usize::from(argmax(&row) == Some(label));
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - max).exp()).sum();
        let log_sum = sum.ln() + max;
        let weight = weights.get(label).copied().unwrap_or(f64::NAN);
        // Weights of the target distribution: q_c; the row costs Σ q_c (log_sum − x_c).
        let share = smoothing / classes as f64;
        let row_weight = (1.0 - smoothing) * weight + share * all_weights;
        for (class, ((logit, place), class_weight)) in row.iter().zip(places).zip(&weights).enumerate() {
            let wanted = share * class_weight + if class == label { (1.0 - smoothing) * weight } else { 0.0 };
            if wanted != 0.0 || logit.is_nan() {
                loss += wanted * (log_sum - logit);
            }
            if let Some(slope) = gradient.get_mut(place) {
                *slope = over(row_weight * (logit - max).exp() / sum - wanted);
            }
        }
    }
    Measured { loss: over(loss), gradient, correct, answers: labels.len(), weight: total }
}

/// Index of the largest element, the first of equals; `None` where one is NaN.
fn argmax(row: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, &value) in row.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::Loss;
    use super::*;

    fn plain(outputs: &[f64], labels: &[u32], classes: usize) -> Measured {
        measure(&Loss::CrossEntropy.into(), Form { classes, inner: 1, axis: Some(1) }, outputs, labels)
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let result = plain(&[3.0; 8], &[1, 0], 4);
        assert!((result.loss - 4f64.ln()).abs() < 1e-12);
        assert_eq!(result.correct, 1, "the first of equal logits counts");
        let expected = [0.125, -0.375, 0.125, 0.125, -0.375, 0.125, 0.125, 0.125];
        assert!(result.gradient.iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-12));
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let result = plain(&[1e30, -1e30, 0.0, 0.0], &[0, 1], 2);
        assert!((result.loss - 2f64.ln() / 2.0).abs() < 1e-12);
        assert!(result.gradient.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn nan_logits_give_a_loss_that_is_not_finite_and_no_correct_answer() {
        let result = plain(&[f64::NAN, 1.0], &[1], 2);
        assert!(!result.loss.is_finite());
        assert_eq!(result.correct, 0);
    }

    /// The figures of torch.nn.functional.cross_entropy 2.15 on the same numbers.
    #[test]
    fn weights_and_smoothing_are_pytorchs() {
        let outputs = [0.3, -1.2, 2.0, 0.7, 0.1, -0.4];
        let form = Form { classes: 3, inner: 1, axis: Some(1) };
        let objective = Objective {
            label_smoothing: 0.1,
            class_weights: Some([0.5f32, 2.0, 1.0].into()),
            ..Objective::from(Loss::CrossEntropy)
        };
        let found = measure(&objective, form, &outputs, &[2, 0]);
        assert!((found.loss - WEIGHTED_LOSS).abs() < 1e-6, "{}", found.loss);
        for (found, expected) in found.gradient.iter().zip(WEIGHTED_GRADIENT) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
    const WEIGHTED_LOSS: f64 = 0.587728943;
    const WEIGHTED_GRADIENT: [f64; 6] =
        [0.090093895, -0.021862555, -0.068231340, -0.110345183, 0.065738233, 0.044606950];

    #[test]
    fn the_gradient_is_the_slope_of_the_loss_whatever_the_axis() {
        let outputs: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 11) / 4.0 - 1.0).collect();
        let objective = Objective {
            label_smoothing: 0.2,
            class_weights: Some([0.5f32, 2.0, 1.0].into()),
            ..Objective::from(Loss::CrossEntropy)
        };
        for inner in [1, 2, 4] {
            let form = Form { classes: 3, inner, axis: Some(1) };
            let labels = [2, 0, 1, 1, 2, 0, 0, 1];
            let gradient = measure(&objective, form, &outputs, &labels).gradient;
            for (index, slope) in gradient.iter().enumerate() {
                let at = |delta: f64| {
                    let mut moved = outputs.clone();
                    moved[index] += delta;
                    measure(&objective, form, &moved, &labels).loss
                };
                assert!(((at(1e-6) - at(-1e-6)) / 2e-6 - slope).abs() < 1e-8, "{inner}, {index}");
            }
        }
    }
}
