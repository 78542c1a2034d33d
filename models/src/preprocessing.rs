//! What training and serving do to raw samples before the model sees them, so that both do the same.
//! It is stored in the package's manifest; decoding files and requests into samples is elsewhere.

use serde::{Deserialize, Serialize};

use crate::ModelError;

/// `y = (x * scale - mean[c]) / std[c]`, where c is the channel: dimension 1 of the batch, the first of a sample.
/// `mean` and `std` hold one value for every channel, or a single one for all. The default changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Factor on the raw value, e.g. 1/255 for pixels; finite, not zero.
    #[serde(default = "one")]
    pub scale: f32,
    /// Subtracted after scaling; finite.
    #[serde(default = "zeros")]
    pub mean: Vec<f32>,
    /// Divides at the end; finite, above zero.
    #[serde(default = "ones")]
    pub std: Vec<f32>,
}

impl Default for Preprocessing {
    fn default() -> Preprocessing {
        Preprocessing { scale: one(), mean: zeros(), std: ones() }
    }
}

impl Preprocessing {
    /// Refuses values that would make a sample meaningless, and lengths that do not fit `sample_shape` (without batch).
    pub fn validate(&self, sample_shape: &[usize]) -> Result<(), ModelError> {
        let refused = |problem: String| Err(ModelError::input("preprocessing", problem));
        if !self.scale.is_finite() || self.scale == 0.0 {
            return refused(format!("scale is {}; give a finite number other than 0", self.scale));
        }
        let channels = sample_shape.first().copied().unwrap_or(1);
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                return refused(format!(
                    "{name} has {} values; give 1, or one for each of the {channels} channels of the sample shape {sample_shape:?}",
                    values.len()
                ));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return refused(format!("{name} holds {value}; give finite numbers"));
            }
        }
        if let Some(value) = self.std.iter().find(|&&value| value <= 0.0) {
            return refused(format!("std holds {value}; give numbers above 0"));
        }
        Ok(())
    }

    /// Transforms whole samples in place; `samples` is `[n, ...sample_shape]`, row-major. Call [`Self::validate`] first:
    /// a channel without a value of its own takes the last one.
    pub fn apply(&self, samples: &mut [f32], sample_shape: &[usize]) {
        let channels = sample_shape.first().copied().unwrap_or(1).max(1);
        let plane: usize = sample_shape.iter().skip(1).product::<usize>().max(1);
        let pick = |values: &[f32], channel: usize, otherwise: f32| {
            values.get(channel).or(values.last()).copied().unwrap_or(otherwise)
        };
        for (index, values) in samples.chunks_mut(plane).enumerate() {
            let channel = index % channels;
            let (mean, std) = (pick(&self.mean, channel, 0.0), pick(&self.std, channel, 1.0));
            for value in values {
                *value = (*value * self.scale - mean) / std;
            }
        }
    }
}

fn one() -> f32 {
    1.0
}

fn zeros() -> Vec<f32> {
    vec![0.0]
}

fn ones() -> Vec<f32> {
    vec![1.0]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_default_changes_nothing() {
        let mut samples = [1.5, -2.0, 0.0, 7.0];
        let preprocessing = Preprocessing::default();
        preprocessing.validate(&[1, 2]).unwrap();
        preprocessing.apply(&mut samples, &[1, 2]);
        assert_eq!(samples, [1.5, -2.0, 0.0, 7.0]);
    }

    #[test]
    fn each_channel_has_its_own_mean_and_deviation() {
        let preprocessing = Preprocessing { scale: 0.5, mean: vec![1.0, 2.0], std: vec![2.0, 4.0] };
        preprocessing.validate(&[2, 1, 2]).unwrap();
        let mut samples = [2.0, 4.0, 4.0, 12.0, 6.0, 6.0, 20.0, 20.0];
        preprocessing.apply(&mut samples, &[2, 1, 2]);
        assert_eq!(samples, [0.0, 0.5, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn values_that_make_samples_meaningless_are_refused() {
        for (scale, mean, std) in [
            (0.0, vec![0.0], vec![1.0]),
            (f32::NAN, vec![0.0], vec![1.0]),
            (1.0, vec![0.0, 0.0], vec![1.0]),
            (1.0, vec![], vec![1.0]),
            (1.0, vec![0.0], vec![0.0]),
            (1.0, vec![0.0], vec![-1.0]),
            (1.0, vec![f32::INFINITY], vec![1.0]),
        ] {
            let preprocessing = Preprocessing { scale, mean, std };
            assert!(preprocessing.validate(&[3, 8, 8]).is_err(), "{preprocessing:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = serde_json::from_str::<Preprocessing>(r#"{"scale": 1.0, "means": [0.0]}"#).unwrap_err();
        assert!(error.to_string().contains("means"), "{error}");
    }
}
