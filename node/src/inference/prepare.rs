//! From a package to a version that may serve: quantize, load, warm up, check against float on local samples.
//! Swapping it in is `repository`'s; all of this blocks, so it runs beside the requests.

use std::borrow::Cow;

use fedge_models::quantize::{self, quantize};
use fedge_models::{ElementType, Manifest, Model, Package, TensorSignature};
use ndarray::{ArrayViewD, IxDyn};

use super::check::LocalCheck;
use super::engine::{Engine, EngineError};
use super::serving::{self, Pace, Precision, Runner, Serving};
use super::statistics::Statistics;
use crate::samples::Sample;

/// How a version is prepared.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Accuracy that int8 may lose against float on local samples before float is served instead, 0 to 1.
    pub int8_tolerance: f64,
    /// Samples of the larger warm-up batch, at least 1.
    pub warm_up_batch: usize,
    /// How activation ranges are found.
    pub quantize: quantize::Options,
}

impl Default for PrepareOptions {
    /// One point of accuracy, a warm-up batch of 16, the quantizer's own defaults.
    fn default() -> PrepareOptions {
        PrepareOptions { int8_tolerance: 0.01, warm_up_batch: 16, quantize: quantize::Options::default() }
    }
}

/// A package that cannot serve. What served before goes on serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The engine refuses the float model, or fails in it.
    #[error("model {name:?} version {number}: {source}")]
    Engine {
        /// The package's lineage.
        name: String,
        /// The package's version number.
        number: u64,
        /// What the engine said.
        source: EngineError,
    },
    /// Given samples do not fit the model.
    #[error("model {name:?} version {number}: {problem}")]
    Samples {
        /// The package's lineage.
        name: String,
        /// The package's version number.
        number: u64,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Samples that run through the engine at once in the local check.
const CHECK_BATCH: usize = 64;

/// Makes a package ready to serve. Blocking: call it in `spawn_blocking`.
///
/// `calibration` and `labelled` hold raw samples of `package.model.input().sample_len()` values. The int8 model is
/// served if it can be made, runs, and is not worse than float by the rule of [`LocalCheck::int8_is_worse`]; else the
/// float model is, with the reason in [`Serving::float_reason`]. An error means that not even float can serve.
pub fn prepare(
    package: Package,
    calibration: Vec<Vec<f32>>,
    labelled: &[Sample],
    options: &PrepareOptions,
) -> Result<Serving, PrepareError> {
    let Package { manifest, model } = package;
    let (name, number) = (manifest.name.clone(), manifest.number);
    // Samples come from many hands: those that are no values of a model's integers teach nothing about it.
    let element = model.input().element;
    let held = |values: &[f32]| values.iter().all(|value| element.holds(*value));
    let (mut calibration, mut labelled) = (calibration, Cow::Borrowed(labelled));
    if element != ElementType::Fp32 {
        calibration.retain(|values| held(values));
        labelled = labelled.iter().filter(|sample| held(&sample.input)).cloned().collect::<Vec<_>>().into();
    }
    let (input, output) = (model.input().clone(), model.output().clone());
    let unfit = |samples: &mut dyn Iterator<Item = &[f32]>| unfit(samples, &input);
    let problem = unfit(&mut calibration.iter().map(Vec::as_slice))
        .or_else(|| unfit(&mut labelled.iter().map(|sample| sample.input.as_slice())));
    if let Some(problem) = problem {
        return Err(PrepareError::Samples { name, number, problem });
    }
    let failed = |source| PrepareError::Engine { name: name.clone(), number, source };

    let mut calibration: Vec<f32> = calibration.concat();
    manifest.preprocessing.apply(&mut calibration, &input.sample_shape());
    let float = Engine::load(model.bytes(), &input, &output).map_err(failed)?;
    warm_up(&float, &calibration, &input, options).map_err(failed)?;
    let int8 = int8(&model, &calibration, options);
    let check = match &int8 {
        Ok(int8) => compare(&manifest, &model, (&float, int8), &labelled).map_err(failed)?,
        Err(_) => None,
    };

    let mut serving = Serving {
        manifest,
        precision: Precision::Float,
        float_reason: None,
        check,
        inputs: vec![input],
        outputs: vec![output],
        batched: true,
        runner: Runner::Floats(float),
        pace: Pace::default(),
        statistics: Statistics::default(),
    };
    match int8 {
        Err(reason) => serving.float_reason = Some(reason),
        Ok(engine) => match serving.check.filter(|check| check.int8_is_worse(options.int8_tolerance)) {
            Some(check) => serving.float_reason = Some(too_inaccurate(&check, options.int8_tolerance)),
            None => {
                serving.runner = Runner::Floats(engine);
                serving.precision = Precision::Int8;
            }
        },
    }
    let serving = serving.timed();
    let manifest = &serving.manifest;
    tracing::info!(
        model = %manifest.name, version = manifest.number, precision = %serving.precision,
        reason = serving.float_reason(), "a version is ready to serve"
    );
    Ok(serving)
}

/// The quantized model, loaded and warm; or why there is none.
fn int8(model: &Model, calibration: &[f32], options: &PrepareOptions) -> Result<Engine, String> {
    let (input, output) = (model.input(), model.output());
    if calibration.is_empty() {
        return Err("no calibration samples yet".to_owned());
    }
    let mut shape = input.sample_shape();
    shape.insert(0, calibration.len() / input.sample_len().max(1));
    let samples = ArrayViewD::from_shape(IxDyn(&shape), calibration).map_err(|error| error.to_string())?;
    let quantized = quantize(model, samples, &options.quantize).map_err(|error| format!("not quantized: {error}"))?;
    let engine = Engine::load(&quantized.bytes, input, output)
        .map_err(|error| format!("the int8 model does not load: {error}"))?;
    warm_up(&engine, calibration, input, options).map_err(|error| format!("the int8 model does not run: {error}"))?;
    Ok(engine)
}

/// Most values of one sample: a request has at most 16 MiB.
pub(super) const MAX_SAMPLE_LEN: usize = 4 << 20;

/// Runs a batch of one and a larger one, so that the first request does not pay for it, and refuses NaN outputs.
fn warm_up(
    engine: &Engine,
    calibration: &[f32],
    input: &TensorSignature,
    options: &PrepareOptions,
) -> Result<(), EngineError> {
    let len = input.sample_len();
    if len > MAX_SAMPLE_LEN {
        let problem = format!("a sample has {len} values, more than a request may bring ({MAX_SAMPLE_LEN})");
        return Err(EngineError { action: "run", problem });
    }
    let zeros = vec![0.0; len];
    let source = if calibration.len() < len { &zeros[..] } else { calibration };
    for rows in [1, options.warm_up_batch.clamp(1, 256)] {
        let batch: Vec<f32> = source.iter().copied().cycle().take(rows * len).collect();
        if let Some(value) = engine.run(&batch)?.iter().find(|value| !value.is_finite()) {
            let problem = format!("a warm-up batch of {rows} gave {value}; its outputs must be finite numbers");
            return Err(EngineError { action: "run", problem });
        }
    }
    Ok(())
}

fn compare(
    manifest: &Manifest,
    model: &Model,
    (float, int8): (&Engine, &Engine),
    labelled: &[Sample],
) -> Result<Option<LocalCheck>, EngineError> {
    let (input, output) = (model.input(), model.output());
    if labelled.is_empty() || output.dims.len() != 2 {
        return Ok(None);
    }
    let labels: Vec<u32> = labelled.iter().map(|sample| sample.label).collect();
    let (mut of_float, mut of_int8) = (Vec::new(), Vec::new());
    for part in labelled.chunks(CHECK_BATCH) {
        let raw: Vec<f32> = part.iter().flat_map(|sample| sample.input.iter().copied()).collect();
        of_float.extend(serving::run(float, manifest, input, &raw)?);
        of_int8.extend(serving::run(int8, manifest, input, &raw)?);
    }
    Ok(Some(LocalCheck::compare(&of_float, &of_int8, &labels, output.sample_len())))
}

fn too_inaccurate(check: &LocalCheck, tolerance: f64) -> String {
    format!(
        "int8 is right on {} of {} local samples and float on {}, more than the tolerated loss of {tolerance}",
        check.int8_correct, check.examples, check.float_correct
    )
}

fn unfit(samples: &mut dyn Iterator<Item = &[f32]>, input: &TensorSignature) -> Option<String> {
    let expected = input.sample_len();
    samples.enumerate().find_map(|(index, sample)| {
        if sample.len() != expected {
            let shape = input.sample_shape();
            return Some(format!(
                "local sample {index} has {} values, but the model takes {expected} (shape {shape:?}); remove samples of another model",
                sample.len()
            ));
        }
        let bad = sample.iter().find(|value| !value.is_finite())?;
        Some(format!("local sample {index} holds {bad}; samples must be finite numbers"))
    })
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
