//! The bytes of an ONNX file as a coordinator and a node treat them: checked, loaded to be trained and quantized, loaded to be
//! served as they are, warmed up and run. Folders, manifests on disk and external data are not part of it.

use fedge_models::float::FloatRunner;
use fedge_models::{ElementType, Interface, Model, Package};
use fedge_node::inference::{PrepareOptions, Serving, prepare};

use crate::models::manifest;

/// Samples up to this size are calibrated with.
const CALIBRATED: usize = 4096;

/// Loads the file in every way that a node loads files.
///
/// # Panics
/// A model's own weights can't be written into it, or change it.
pub fn load(bytes: &[u8]) {
    if let Ok(model) = Model::from_bytes(bytes) {
        let same = model.with_weights(&model.weights()).expect("a model takes its own weights");
        assert_eq!(same.digest(), model.digest(), "its own weights change a model");
        let _ = model.untrainable();
        let _ = FloatRunner::new(&model);
        if [model.input(), model.output()].iter().all(|tensor| tensor.element == ElementType::Fp32) {
            federated(model);
        }
    }
    if let Ok(interface) = Interface::from_bytes(bytes) {
        let manifest = manifest("fuzzed", interface.digest, interface.layout);
        let _ = Serving::of_tensors(manifest, interface, bytes);
    }
}

/// As a version that a coordinator published: in float, in int8 where that can be made, and run once more.
fn federated(model: Model) {
    let len = model.input().sample_len();
    let manifest = manifest("fuzzed", model.digest(), model.layout().digest());
    let Ok(package) = Package::new(manifest, model) else { return };
    let row = |row: usize| (0..len).map(|index| ((index * 7 + row * 13) % 32) as f32 / 8.0 - 2.0).collect();
    let calibration = if len <= CALIBRATED { (0..4).map(row).collect() } else { Vec::new() };
    let Ok(serving) = prepare(package, calibration, &[], &PrepareOptions::default()) else { return };
    let _ = serving.run(&vec![0.5; len.saturating_mul(3)]);
}
