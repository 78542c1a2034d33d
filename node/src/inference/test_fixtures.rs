//! The demo's model and data, as the tests of `inference` and `samples` use them.
//! Nothing here is part of the node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use fedge_models::{Manifest, Model, Package, Preprocessing, Weights};

use super::{PrepareOptions, Serving, prepare};
use crate::samples::{Sample, file};

/// Values of one digit: 8 × 8 pixels.
pub(crate) const PIXELS: usize = 64;

pub(crate) fn zoo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo").join(file)
}

/// All 1,797 rows of the real data, raw.
pub(crate) fn digits() -> Vec<Sample> {
    let rows = file::read(&zoo("digits.csv")).unwrap();
    let samples = rows.into_samples(PIXELS, 10, &names()).unwrap();
    samples.into_iter().map(|(input, label)| Sample { input, label }).collect()
}

pub(crate) fn names() -> Vec<String> {
    (0..10).map(|digit| format!("{digit}")).collect()
}

/// Version `number`: its weights are those of the file, each multiplied by `1 + (number - 1) / 4`, so that versions
/// answer differently.
pub(crate) fn package(number: u64) -> Package {
    let model = Model::from_path(&zoo("digits_cnn.onnx")).unwrap();
    let factor = 1.0 + (number as f32 - 1.0) / 4.0;
    let values = model.weights().values().iter().map(|value| value * factor).collect();
    let model = model.with_weights(&Weights::new(model.layout().clone(), values).unwrap()).unwrap();
    let manifest = Manifest {
        schema: 1,
        name: "digits".to_owned(),
        number,
        digest: model.digest(),
        layout: model.layout().digest(),
        labels: names(),
        preprocessing: Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() },
        parent: None,
        task: None,
        round: Some(number + 100),
    };
    Package::new(manifest, model).unwrap()
}

/// Version `number`, in float.
pub(crate) fn serving(number: u64) -> Serving {
    prepare(package(number), Vec::new(), &[], &PrepareOptions::default()).unwrap()
}
