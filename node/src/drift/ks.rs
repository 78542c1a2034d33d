//! The two-sample Kolmogorov-Smirnov test: the distance of two samples' empirical distributions, and how far is far.
//! Which samples are compared is the parent's matter.

/// The greatest difference of two empirical distribution functions, 0 to 1; both samples sorted by `total_cmp`, not empty.
pub(super) fn distance(left: &[f32], right: &[f32]) -> f64 {
    let (mut l, mut r, mut greatest) = (0, 0, 0.0f64);
    while let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
        // Past every copy of the value on both sides, so that ties count as equal.
        let value = if a.total_cmp(b).is_le() { *a } else { *b };
        let reached = |other: &&f32| other.total_cmp(&value).is_le();
        l += left.get(l..).unwrap_or_default().iter().take_while(reached).count();
        r += right.get(r..).unwrap_or_default().iter().take_while(reached).count();
        greatest = greatest.max((l as f64 / left.len() as f64 - r as f64 / right.len() as f64).abs());
    }
    greatest
}

/// The distance that samples of these sizes from one distribution exceed with at most about this probability: from the
/// first term of Kolmogorov's series, √(−ln(level/2)/2) · √((n+m)/(n·m)) (Smirnov 1948). Ties make it safer.
pub(super) fn threshold(level: f64, left: usize, right: usize) -> f64 {
    let (left, right) = (left as f64, right as f64);
    (-(level / 2.0).ln() / 2.0).sqrt() * ((left + right) / (left * right)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_scipys() {
        // scipy.stats.ks_2samp(...).statistic
        assert_eq!(distance(&[1.0, 2.0, 3.0, 4.0], &[3.0, 4.0, 5.0, 6.0]), 0.5);
        assert_eq!(distance(&[1.0, 1.0, 1.0], &[1.0, 1.0]), 0.0);
        assert_eq!(distance(&[0.0, 1.0], &[2.0, 3.0]), 1.0);
        assert_eq!(distance(&[1.0, 2.0, 2.0, 3.0], &[2.0]), 0.25);
        // Numbers that are none have a place in the order too.
        assert_eq!(distance(&[1.0, f32::NAN], &[-f32::NAN, 1.0]), 0.5);
    }

    #[test]
    fn the_threshold_is_that_of_the_tables() {
        // c(0.05) = 1.358, c(0.001) = 1.949.
        assert!((threshold(0.05, 100, 100) - 1.358 * 0.02f64.sqrt()).abs() < 1e-3);
        assert!((threshold(0.001, 100, 400) - 1.949 * 0.0125f64.sqrt()).abs() < 1e-3);
    }
}
