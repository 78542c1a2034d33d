//! The local check: int8 against float on the node's own labelled samples, and whether int8 is good enough to serve.
//! It only counts and decides; making and running the two models is `prepare`'s.

/// How the int8 model did against the float model on labelled local samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCheck {
    /// Samples that were compared.
    pub examples: u64,
    /// Of those, the float model was right on these.
    pub float_correct: u64,
    /// The int8 model was right on these.
    pub int8_correct: u64,
    /// Both gave the same class on these.
    pub agreed: u64,
    /// Float was right and int8 wrong.
    pub lost: u64,
    /// Int8 was right and float wrong.
    pub gained: u64,
}

impl LocalCheck {
    /// Compares the two models' outputs `[n, classes]` with the labels `[n]`.
    pub(super) fn compare(float: &[f32], int8: &[f32], labels: &[u32], classes: usize) -> LocalCheck {
        let mut check = LocalCheck::default();
        let rows = float.chunks_exact(classes.max(1)).zip(int8.chunks_exact(classes.max(1))).zip(labels);
        for ((float, int8), &label) in rows {
            let (float, int8, label) = (argmax(float), argmax(int8), Some(label as usize));
            let (float_right, int8_right) = (float == label, int8 == label);
            check.examples += 1;
            check.float_correct += u64::from(float_right);
            check.int8_correct += u64::from(int8_right);
            check.agreed += u64::from(float == int8);
            check.lost += u64::from(float_right && !int8_right);
            check.gained += u64::from(int8_right && !float_right);
        }
        check
    }

    /// The float model's accuracy, 0 to 1 (0 without samples).
    pub fn float_accuracy(&self) -> f64 {
        ratio(self.float_correct, self.examples)
    }

    /// The int8 model's accuracy, 0 to 1 (0 without samples).
    pub fn int8_accuracy(&self) -> f64 {
        ratio(self.int8_correct, self.examples)
    }

    /// Share of samples on which both gave the same class, 0 to 1.
    pub fn agreement(&self) -> f64 {
        ratio(self.agreed, self.examples)
    }

    /// Whether int8 loses more than `tolerance` of accuracy (0 to 1), and more than chance would give.
    ///
    /// Chance: among the samples on which exactly one of the two is right, either is equally likely to be it. The loss
    /// counts when (lost - gained)^2 > 2.706 (lost + gained): McNemar's test (Psychometrika 12, 1947), one-sided at
    /// 5 %. So it takes at least three samples, and a few unlucky ones among few do not take int8 away.
    pub fn int8_is_worse(&self, tolerance: f64) -> bool {
        const CHI_SQUARE_90: f64 = 2.706;
        let loss = self.lost as f64 - self.gained as f64;
        let discordant = (self.lost + self.gained) as f64;
        loss > tolerance * self.examples as f64 && loss * loss > CHI_SQUARE_90 * discordant
    }
}

/// Index of the greatest value, the first of equals; `None` where there is none or all are NaN.
pub(super) fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (index, &value) in values.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|(_, greatest)| value > greatest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_difference_is_counted_once() {
        let float = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let int8 = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let check = LocalCheck::compare(&float, &int8, &[0, 0, 0, 0], 2);
        let expected = LocalCheck { examples: 4, float_correct: 2, int8_correct: 2, agreed: 2, lost: 1, gained: 1 };
        assert_eq!(check, expected);
        assert_eq!((check.float_accuracy(), check.agreement()), (0.5, 0.5));
    }

    #[test]
    fn a_loss_counts_only_above_tolerance_and_above_chance() {
        let lost = |examples, lost, gained| LocalCheck { examples, lost, gained, ..LocalCheck::default() };
        assert!(!lost(10, 2, 0).int8_is_worse(0.01), "two samples are chance");
        assert!(lost(10, 3, 0).int8_is_worse(0.01));
        assert!(!lost(1000, 3, 0).int8_is_worse(0.01), "0.3 % is within tolerance");
        assert!(!lost(200, 10, 7).int8_is_worse(0.01), "ten against seven is chance");
        assert!(lost(200, 20, 7).int8_is_worse(0.01));
        assert!(!LocalCheck::default().int8_is_worse(0.0));
    }

    #[test]
    fn nan_is_never_the_greatest() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 2.0, 2.0]), Some(2));
        assert_eq!(argmax(&[f32::NAN]), None);
        assert_eq!(argmax(&[]), None);
    }
}
