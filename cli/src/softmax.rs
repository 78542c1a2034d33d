//! From a model's output to classes with probabilities, for people to read.
//! Nodes answer with what the model computes; nothing here is sent anywhere.

/// Probabilities of one row. Values that are probabilities already (0 to 1, sum 1) stay as they are; else they are logits.
pub(crate) fn probabilities(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    if row.iter().all(|v| (0.0..=1.0).contains(v)) && (sum - 1.0).abs() < 1e-3 {
        return row.iter().map(|v| f64::from(*v)).collect();
    }
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
    let exponentials: Vec<f64> = row.iter().map(|v| (f64::from(*v) - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_become_probabilities_and_probabilities_stay() {
        let p = probabilities(&[0.0, f32::ln(3.0)]);
        assert!((p[0] - 0.25).abs() < 1e-6 && (p[1] - 0.75).abs() < 1e-6);
        assert_eq!(probabilities(&[0.25, 0.75]), [0.25, 0.75]);
        assert_eq!(probabilities(&[1000.0, 0.0]), [1.0, 0.0]);
    }
}
