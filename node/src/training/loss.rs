//! The loss and its gradient with respect to the logits, in closed form.
//! The gradient of everything before the logits is the tape's work.

/// Mean softmax cross-entropy over a batch.
pub(super) struct CrossEntropy {
    /// The mean of −log p(label), in nats; not finite where a logit is not.
    pub(super) loss: f64,
    /// ∂loss/∂logits, row-major like the logits: (softmax − one-hot) / batch.
    pub(super) gradient: Vec<f64>,
    /// Samples whose largest logit is the label's; the first of equal logits counts.
    pub(super) correct: usize,
}

/// `logits` is `[labels.len(), classes]`, row-major; labels are below `classes`.
///
/// The softmax is shifted by the row's maximum, so no finite logit overflows. (Bridle 1990; the gradient is that of
/// Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2.3.)
pub(super) fn cross_entropy(logits: &[f64], labels: &[u32], classes: usize) -> CrossEntropy {
    let batch = labels.len() as f64;
    let mut gradient = Vec::with_capacity(logits.len());
    let (mut loss, mut correct) = (0.0, 0);
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let label = label as usize;
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - max).exp()).sum();
        let at_label = row.get(label).copied().unwrap_or(f64::NAN);
        loss += sum.ln() + max - at_label;
        correct += usize::from(argmax(row) == Some(label));
        gradient.extend(row.iter().enumerate().map(|(class, logit)| {
            let probability = (logit - max).exp() / sum;
            (probability - f64::from(u8::from(class == label))) / batch
        }));
    }
    CrossEntropy { loss: loss / batch, gradient, correct }
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
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let result = cross_entropy(&[3.0; 8], &[1, 0], 4);
        assert!((result.loss - 4f64.ln()).abs() < 1e-12);
        assert_eq!(result.correct, 1, "the first of equal logits counts");
        let expected = [0.125, -0.375, 0.125, 0.125, -0.375, 0.125, 0.125, 0.125];
        assert!(result.gradient.iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-12));
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let result = cross_entropy(&[1e30, -1e30, 0.0, 0.0], &[0, 1], 2);
        assert!((result.loss - 2f64.ln() / 2.0).abs() < 1e-12);
        assert!(result.gradient.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn nan_logits_give_a_loss_that_is_not_finite_and_no_correct_answer() {
        let result = cross_entropy(&[f64::NAN, 1.0], &[1], 2);
        assert!(!result.loss.is_finite());
        assert_eq!(result.correct, 0);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let logits = [0.3, -1.2, 2.0, 0.7, 0.1, -0.4];
        let labels = [2, 0];
        let gradient = cross_entropy(&logits, &labels, 3).gradient;
        for (index, slope) in gradient.iter().enumerate() {
            let at = |delta: f64| {
                let mut moved = logits;
                moved[index] += delta;
                cross_entropy(&moved, &labels, 3).loss
            };
            assert!(((at(1e-6) - at(-1e-6)) / 2e-6 - slope).abs() < 1e-8);
        }
    }
}
