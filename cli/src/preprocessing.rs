//! The flags that say what happens to raw samples before the model, shared by `model publish` and `model quantize`.
//! What they mean is defined in the crate `models`.

use clap::Args;
use fedge_models::Preprocessing;

/// y = (x * scale - mean) / std, by training and serving alike.
#[derive(Debug, Clone, Args)]
pub(crate) struct PreprocessingFlags {
    /// Factor on raw values, such as 0.0625 for pixels 0..16 [default: 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Subtracted after scaling: one value, or one a channel, comma-separated [default: 0]
    #[arg(long, value_name = "M,M,M", value_delimiter = ',', allow_negative_numbers = true)]
    mean: Vec<f32>,
    /// Divides at the end: one value, or one a channel, comma-separated [default: 1]
    #[arg(long, value_name = "S,S,S", value_delimiter = ',')]
    std: Vec<f32>,
}

impl PreprocessingFlags {
    /// The preprocessing that they say; its values are checked against the model where it is used.
    pub(crate) fn preprocessing(&self) -> Preprocessing {
        let mut preprocessing = Preprocessing::default();
        if let Some(scale) = self.scale {
            preprocessing.scale = scale;
        }
        if !self.mean.is_empty() {
            preprocessing.mean.clone_from(&self.mean);
        }
        if !self.std.is_empty() {
            preprocessing.std.clone_from(&self.std);
        }
        preprocessing
    }
}
