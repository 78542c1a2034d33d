//! Post-training static int8 quantization of a float model into QDQ form, which ONNX Runtime and tract both load.
//! Reading and checking files is `model`; running them is `float` and the node.

use std::collections::BTreeSet;

use ndarray::ArrayViewD;
use prost::Message;
use serde::Serialize;

use self::numbers::Affine;
use crate::{Model, ModelError, pb};

pub(crate) mod build;
mod calibrate;
mod emit;
mod fold;
mod numbers;
mod plan;
mod qoperator;

pub use qoperator::to_qdq;

/// Oldest default operator set that can be quantized: DequantizeLinear has an axis since 13.
pub const OLDEST_OPSET: i64 = 13;

/// How activation ranges are taken from the calibration samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calibration {
    /// The least and the greatest value seen.
    MinMax,
    /// The given percentage of values, e.g. 99.9, lies inside the range; the rest saturates. In (50, 100].
    Percentile(f32),
}

/// How to quantize.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How ranges are found.
    pub calibration: Calibration,
    /// Each range is widened by this fraction of itself, because calibration samples do not show everything; 0 to 1.
    pub margin: f32,
    /// Weights use 7 bits. x86 processors with AVX2 but without VNNI add u8 x s8 products in 16 bits, which can overflow
    /// in ONNX Runtime; tract is not affected.
    pub reduce_range: bool,
}

/// Measured on the digits CNN in ONNX Runtime with 12 calibration sets (10 samples of 1 class, 50 of 3, 500 of all), by the
/// mean distance of the logits from the float model's: least and greatest value without a margin 0.17, with 10 % 0.12,
/// 25 % 0.09, 50 % 0.08, 100 % 0.10; the 99.9th percentile 0.28 without a margin. No class changed from 0 to 50 %. A
/// margin of a quarter costs a third of a bit where the samples show everything, so it is the default.
impl Default for Options {
    fn default() -> Options {
        Options { calibration: Calibration::MinMax, margin: 0.25, reduce_range: false }
    }
}

/// A quantized tensor, for reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedTensor {
    /// The value's or initializer's name in the float model.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Least value that the range covers.
    pub min: f32,
    /// Greatest value that the range covers.
    pub max: f32,
    /// Step between two neighbouring integers; the largest of the channels' for weights and biases.
    pub scale: f32,
    /// The integer that stands for zero.
    pub zero_point: i32,
    /// Number of scales: the channels of weights and biases, 1 for activations.
    pub channels: usize,
}

/// What a quantized tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// uint8, asymmetric, one scale.
    Activation,
    /// int8, symmetric, a scale for each output channel.
    Weight,
    /// int32, scale = input scale × weight scale.
    Bias,
}

/// A node that stays in float.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The node's name, or its first output where it has none.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// Why it stays in float.
    pub reason: String,
}

/// The quantized model and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The ONNX file in QDQ form; input and output stay float32, under their old names.
    pub bytes: Vec<u8>,
    /// Each quantized tensor's range and scale.
    pub tensors: Vec<QuantizedTensor>,
    /// Nodes left in float, and why.
    pub skipped: Vec<Skipped>,
}

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The calibration samples or the options are unfit.
    #[error("calibration: {0}")]
    Calibration(String),
    /// The model cannot take the QDQ form.
    #[error("the model cannot be quantized: {0}")]
    Model(String),
    /// Reading or running a model failed.
    #[error(transparent)]
    Inner(#[from] ModelError),
}

/// Quantizes a float model. `samples` are preprocessed model inputs of shape `[n, ...sample_shape]`, n >= 1, finite.
///
/// Refused: models of an operator set before 13 (per-channel DequantizeLinear needs an axis), samples of another shape,
/// and models in which nothing can be quantized.
pub fn quantize(model: &Model, samples: ArrayViewD<'_, f32>, options: &Options) -> Result<Quantized, QuantizeError> {
    check_options(options)?;
    check_samples(model, samples.view())?;
    if model.opset() < OLDEST_OPSET {
        return Err(QuantizeError::Model(format!(
            "its operator set is {}, but a scale for each channel needs {OLDEST_OPSET}; export the model with opset {OLDEST_OPSET} or newer",
            model.opset()
        )));
    }
    let mut proto = pb::ModelProto::decode(&**model.bytes())
        .map_err(|error| ModelError::NotOnnx { bytes: model.bytes().len(), problem: error.to_string() })?;
    let mut graph = proto.graph.take().unwrap_or_default();
    fold::batch_normalization(&mut graph);
    let plan = plan::plan(&graph);
    if plan.anchors.is_empty() {
        return Err(QuantizeError::Model(
            "it has no Conv, Gemm or MatMul with constant float32 weights, so there is nothing to gain; serve it in float".to_owned(),
        ));
    }
    let roots: BTreeSet<&String> = plan.values.values().collect();
    let roots: Vec<String> = roots.into_iter().cloned().collect();
    proto.graph = Some(graph);
    let ranges = calibrate::ranges(&proto, model.input(), &roots, samples, options.calibration)?;
    let scales = ranges.into_iter().map(|(name, range)| {
        let affine = affine(range, plan.limits.get(&name), options.margin);
        (name, affine)
    });
    let limit = if options.reduce_range { 63.0 } else { 127.0 };
    let mut graph = proto.graph.take().unwrap_or_default();
    let tensors = emit::emit(&mut graph, &plan, &scales.collect(), limit)?;
    proto.graph = Some(graph);
    Ok(Quantized { bytes: proto.encode_to_vec(), tensors, skipped: plan.skipped })
}

/// Widens a range by the margin, within what a ReLU or Clip lets through.
fn affine((min, max): (f32, f32), limits: Option<&(f32, f32)>, margin: f32) -> Affine {
    let (low, high) = limits.copied().unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
    let widened = (min - (max - min) * margin, max + (max - min) * margin);
    // A side that ends at zero does so for a reason (a ReLU, pixels), and zero belongs to every range anyway.
    let min = if min >= 0.0 { 0.0 } else { widened.0 };
    let max = if max <= 0.0 { 0.0 } else { widened.1 };
    Affine::of_range(min.max(low).max(-f32::MAX / 4.0), max.min(high).min(f32::MAX / 4.0))
}

fn check_options(options: &Options) -> Result<(), QuantizeError> {
    if !(0.0..=1.0).contains(&options.margin) {
        return Err(QuantizeError::Calibration(format!(
            "the margin is {}; give a fraction from 0 to 1",
            options.margin
        )));
    }
    match options.calibration {
        Calibration::Percentile(percentile) if !(percentile > 50.0 && percentile <= 100.0) => {
            Err(QuantizeError::Calibration(format!(
                "the percentile is {percentile}; give one above 50 and up to 100, e.g. 99.9"
            )))
        }
        _ => Ok(()),
    }
}

fn check_samples(model: &Model, samples: ArrayViewD<'_, f32>) -> Result<(), QuantizeError> {
    let expected = model.input().sample_shape();
    let fits = samples.ndim() > 0 && samples.shape()[0] > 0 && samples.shape()[1..] == expected;
    if !fits {
        return Err(QuantizeError::Calibration(format!(
            "the samples have the shape {:?}, but the model takes [n, ...] of {expected:?}, n at least 1",
            samples.shape()
        )));
    }
    let bad = samples.iter().position(|value| !value.is_finite());
    match bad {
        Some(index) => Err(QuantizeError::Calibration(format!(
            "sample {} (counted from 0) holds a value that is not finite; drop it",
            index / model.input().sample_len().max(1)
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn an_operator_set_without_per_channel_scales_is_refused_with_advice() {
        let model = Model::from_bytes(testing::model(testing::linear(), 12).encode_to_vec()).unwrap();
        let samples = ndarray::ArrayD::ones(vec![1, 2]);
        let error = quantize(&model, samples.view(), &Options::default()).unwrap_err().to_string();
        assert!(error.contains("operator set is 12") && error.contains("opset 13"), "{error}");
    }

    #[test]
    fn a_margin_widens_a_range_but_not_past_zero_or_a_clip() {
        assert_eq!(affine((0.0, 8.0), None, 0.25).max, 10.0);
        assert_eq!(affine((0.0, 8.0), None, 0.25).zero_point, 0);
        assert_eq!(affine((1.0, 5.0), Some(&(0.0, 5.5)), 0.25).max, 5.5);
        let both = affine((-4.0, 4.0), None, 0.25);
        assert_eq!((both.min, both.max), (-6.0, 6.0));
    }

    #[test]
    fn weights_that_many_nodes_read_are_quantized_for_a_few_and_not_without_end() {
        let side = 2048;
        let chain = |readers: usize| {
            let name = |index: usize| match index {
                0 => "x".to_owned(),
                index if index == readers => "y".to_owned(),
                index => format!("h{index}"),
            };
            let mut nodes: Vec<_> =
                (0..readers).map(|index| testing::node("MatMul", &[&name(index), "w"], &[&name(index + 1)])).collect();
            nodes.iter_mut().for_each(|node| node.name = node.output[0].clone());
            let weights = testing::floats("w", &[side, side], &vec![0.0; (side * side) as usize]);
            let graph = testing::graph(&[-1, side], &[-1, side], nodes, vec![weights]);
            let model = Model::from_bytes(testing::bytes(graph)).unwrap();
            quantize(&model, ndarray::ArrayD::ones(vec![1, side as usize]).view(), &Options::default())
        };
        assert!(chain(4).unwrap().bytes.len() < 5 << 22);
        let error = chain(24).unwrap_err().to_string();
        assert!(error.contains("too often"), "{error}");
    }

    #[test]
    fn columns_of_a_matrix_that_is_not_transposed_get_their_own_scales() {
        let model = Model::from_bytes(testing::bytes(testing::linear())).unwrap();
        let samples = ndarray::arr2(&[[1.0f32, 2.0], [0.5, 1.0], [0.0, 0.0]]).into_dyn();
        let quantized = quantize(&model, samples.view(), &Options::default()).unwrap();
        let runner = |bytes: &[u8]| crate::float::FloatRunner::new(&Model::from_bytes(bytes).unwrap()).unwrap();
        let [float, int8] =
            [model.bytes(), quantized.bytes.as_slice()].map(|bytes| runner(bytes).run(samples.view()).unwrap());
        let weight = quantized.tensors.iter().find(|tensor| tensor.role == Role::Weight).unwrap();
        assert_eq!((weight.channels, weight.scale), (3, 6.0 / 127.0));
        for (float, int8) in float.iter().zip(&int8) {
            assert!((float - int8).abs() < 0.06, "{float} {int8}");
        }
    }
}
