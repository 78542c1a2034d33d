//! One version's files to a version that may serve: with its settings, in int8 where it can be calibrated.
//! Blocking; which versions are loaded and when, the library decides.

use std::path::Path;

use fedge_models::package::MANIFEST_SCHEMA;
use fedge_models::{ElementType, Interface, Manifest, Model, Package, external};

use super::folder::MODEL_FILE;
use super::settings::Settings;
use crate::inference::{PrepareOptions, Serving, prepare};
use crate::samples::file;

/// A version that was published by a coordinator has this beside its model.
const MANIFEST_FILE: &str = "manifest.json";
/// Samples that int8 is calibrated on, at most.
const CALIBRATION_SAMPLES: usize = 512;

/// Loads `<folder>/<number>/model.onnx`.
///
/// # Errors
/// A sentence that says what is wrong with the file or the settings.
pub(super) fn load(folder: &Path, name: &str, number: u64, settings: &Settings) -> Result<Serving, String> {
    let directory = folder.join(number.to_string());
    if directory.join(MANIFEST_FILE).exists() {
        let Package { mut manifest, model } = Package::read(&directory).map_err(|error| error.to_string())?;
        (manifest.name, manifest.number) = (name.to_owned(), number);
        return prepared(folder, Package { manifest, model }, settings);
    }
    let bytes = external::read_folded(&directory.join(MODEL_FILE)).map_err(|error| error.to_string())?;
    let bytes: std::sync::Arc<[u8]> = bytes.into();
    let manifest = |digest, layout| Manifest {
        schema: MANIFEST_SCHEMA,
        name: name.to_owned(),
        number,
        digest,
        layout,
        labels: settings.labels.clone(),
        preprocessing: settings.preprocessing.clone(),
        parent: None,
        task: None,
        round: None,
    };
    let why_not = match Model::from_bytes(bytes.clone()) {
        // Integers go to the engine as they come: nothing here learns from them, so that they need not fit into float32.
        Ok(model) if [model.input(), model.output()].iter().all(|tensor| tensor.element == ElementType::Fp32) => {
            let package = package(manifest(model.digest(), model.layout().digest()), model)?;
            match prepared(folder, package, settings) {
                Ok(serving) => return Ok(serving),
                Err(problem) => problem,
            }
        }
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let interface = Interface::from_bytes(&bytes).map_err(|error| error.to_string())?;
    if settings.preprocessing != fedge_models::Preprocessing::default() || settings.calibration_file.is_some() {
        return Err(format!(
            "preprocessing and calibration are for models of one float32 input and output that fedge can quantize; \
             leave them out for this one {why_not}"
        ));
    }
    let manifest = manifest(interface.digest, interface.layout);
    let serving = Serving::of_tensors(manifest, interface, &bytes).map_err(|error| match why_not.as_str() {
        "" => error.to_string(),
        why_not => format!("{error} ({why_not})"),
    })?;
    tracing::info!(model = %name, version = number, "a version is ready to serve, as it is");
    Ok(serving)
}

/// Pairs the manifest with its model after the checks of a package; names here are freer than a coordinator's.
fn package(manifest: Manifest, model: Model) -> Result<Package, String> {
    let name = manifest.name.clone();
    let checked = Package::new(Manifest { name: "checked".to_owned(), ..manifest }, model);
    let Package { mut manifest, model } = checked.map_err(|error| error.to_string())?;
    manifest.name = name;
    Ok(Package { manifest, model })
}

fn prepared(folder: &Path, package: Package, settings: &Settings) -> Result<Serving, String> {
    let mut calibration = Vec::new();
    if let Some(name) = &settings.calibration_file {
        let rows = file::read_inputs(&folder.join(name), &package.model.input().sample_shape());
        let rows = rows.map_err(|error| format!("calibration_file: {error}"))?;
        calibration = rows.rows().take(CALIBRATION_SAMPLES).map(<[f32]>::to_vec).collect();
    }
    prepare(package, calibration, &[], &PrepareOptions::default()).map_err(|error| error.to_string())
}
