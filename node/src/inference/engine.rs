//! Loads ONNX bytes and runs batches of float32: int8 in a lowered program, all else in a tract plan.
//! Panics inside become errors. What is loaded, and what a batch means, is decided in `prepare` and `serving`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fedge_models::float::{MAX_VALUE_LEN, check_sizes, input_fact, typed};
use fedge_models::mending::mended;
use fedge_models::{ElementType, TensorSignature, pb};
use prost::Message;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::prelude::{
    Framework, InferenceModelExt, TValue, Tensor, ToDim, TractResult, TypedFact, TypedModel, TypedNode,
    TypedRunnableModel, tvec,
};
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv, MaxPool, SumPool};
use tract_onnx::tract_core::ops::nn::{Reduce, Softmax};
use tract_onnx::tract_hir::internal::{DimLike, IntoRunnable, TDim};

/// tract refused a model, failed in it, or gave something else than the model's signature says.
#[derive(Debug, thiserror::Error)]
#[error("the inference engine cannot {action} the model: {problem}")]
pub struct EngineError {
    /// What was tried: "load" or "run".
    pub action: &'static str,
    /// tract's message, cut to 2,000 characters.
    pub problem: String,
}

use super::lowering::{self, NotLowered, Program};

/// A loaded model. Send and Sync: many threads run one, each with buffers of its own.
pub(crate) struct Engine {
    runner: Runner,
    /// Why it is not lowered.
    not_lowered: Option<NotLowered>,
    /// Threads of the current rayon pool that one batch may use, at least 1.
    threads: usize,
    input: TensorSignature,
    output_len: usize,
}

enum Runner {
    /// Fused int8 operators; takes any batch.
    Lowered(Box<Program>),
    /// The plan, and most samples that it takes at once: 1, or as many as keep its largest value within bounds.
    Tract(Arc<TypedRunnableModel>, usize),
}

/// What runs a loaded model, for a user who wants to know whether it will be quick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineReport {
    /// `int8 program` or `tract`.
    pub runner: &'static str,
    /// Kernels that the program runs on: `portable`, `avx2`, `avx-vnni` or `avx512-vnni`; empty for tract.
    pub kernels: &'static str,
    /// How many steps of each kind the program has; empty for tract.
    pub steps: BTreeMap<&'static str, usize>,
    /// Bytes of packed weights; 0 for tract.
    pub weight_bytes: usize,
    /// Operator, node and reason of what fell back to tract.
    pub fallback: Option<[String; 3]>,
}

impl Engine {
    /// Loads ONNX bytes whose one input and one output have these signatures: samples that are held as float32, and float32.
    ///
    /// The batch stays symbolic where the file leaves it open and nothing slides over large images; where tract cannot do that, or the
    /// file fixes it to 1, samples run one by one. Any other fixed batch is refused.
    pub(crate) fn load(onnx: &[u8], input: &TensorSignature, output: &TensorSignature) -> Result<Engine, EngineError> {
        let refused = |problem: String| EngineError { action: "load", problem };
        for (role, signature, fits) in [
            ("input", input, input.element.is_held_as_float()),
            ("output", output, output.element == ElementType::Fp32),
        ] {
            if !fits {
                return Err(refused(format!(
                    "its {role} {:?} is {}; export it with a float32 or integer input and a float32 output",
                    signature.name,
                    signature.element.name()
                )));
            }
        }
        let proto = pb::ModelProto::decode(onnx).map_err(|error| refused(error.to_string()))?;
        if input.fixed_batch().is_none_or(|batch| batch == 1) {
            // What the lowering did not foresee is tract's too.
            let lowered = caught("load", || Ok(lowering::lower(&proto, input, output))).unwrap_or_else(|error| {
                Err(NotLowered { operator: "graph".to_owned(), node: String::new(), reason: error.problem })
            });
            match lowered {
                Ok(program) => return Ok(Engine::new(Runner::Lowered(Box::new(program)), None, input, output)),
                Err(why) => {
                    tracing::debug!(operator = why.operator, node = why.node, why.reason, "not lowered");
                    return Engine::tract(&proto, input, output, Some(why), false);
                }
            }
        }
        Engine::tract(&proto, input, output, None, false)
    }

    /// Loads a model into tract, whatever it is. `stock`: with an open batch if the file has one, as who just uses tract would:
    /// what programs and plans are compared with.
    pub(crate) fn tract(
        proto: &pb::ModelProto,
        input: &TensorSignature,
        output: &TensorSignature,
        not_lowered: Option<NotLowered>,
        stock: bool,
    ) -> Result<Engine, EngineError> {
        let refused = |problem: String| EngineError { action: "load", problem };
        fedge_models::float::check_growth(proto, Some(input)).map_err(|error| refused(error.to_string()))?;
        let (plan, most) = match input.fixed_batch() {
            None => match caught("load", || open_plan(proto, input, stock)) {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::info!(%error, "the model does not load with an open batch; its samples run one by one");
                    caught("load", || plan(proto, input, 1))?
                }
            },
            Some(1) => caught("load", || plan(proto, input, 1))?,
            Some(batch) => {
                return Err(refused(format!(
                    "its batch is fixed to {batch}; export it with a dynamic batch, or with 1"
                )));
            }
        };
        Ok(Engine::new(Runner::Tract(plan, most), not_lowered, input, output))
    }

    fn new(
        runner: Runner,
        not_lowered: Option<NotLowered>,
        input: &TensorSignature,
        output: &TensorSignature,
    ) -> Engine {
        Engine { runner, not_lowered, threads: 1, input: input.clone(), output_len: output.sample_len() }
    }

    /// Lets one batch use this many threads of the rayon pool in which it runs.
    pub(crate) fn with_threads(self, threads: usize) -> Engine {
        Engine { threads: threads.max(1), ..self }
    }

    /// Milliseconds that each kind of step takes for these samples on one thread; empty for tract.
    pub(crate) fn profile(&self, samples: &[f32]) -> BTreeMap<&'static str, f64> {
        match &self.runner {
            Runner::Lowered(program) => program.profile(samples).into_iter().map(|(name, s)| (name, s * 1e3)).collect(),
            Runner::Tract(..) => BTreeMap::new(),
        }
    }

    /// What runs the model, and why.
    pub(crate) fn report(&self) -> EngineReport {
        let fallback = self.not_lowered.clone().map(|why| [why.operator, why.node, why.reason]);
        let mut report =
            EngineReport { runner: "tract", kernels: "", steps: BTreeMap::new(), weight_bytes: 0, fallback };
        if let Runner::Lowered(program) = &self.runner {
            report.runner = "int8 program";
            report.kernels = program.isa().name();
            report.weight_bytes = program.weight_bytes();
            for name in program.step_names() {
                *report.steps.entry(name).or_default() += 1;
            }
        }
        report
    }

    /// Runs samples `[n, ...sample_shape]`, row-major, n >= 1; gives `[n, ...]` outputs, row-major.
    pub(crate) fn run(&self, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        let sample_len = self.input.sample_len().max(1);
        let rows = samples.len() / sample_len;
        if rows == 0 || rows * sample_len != samples.len() {
            let problem = format!("{} values are no whole number of samples of {sample_len}", samples.len());
            return Err(EngineError { action: "run", problem });
        }
        let mut outputs = Vec::with_capacity(rows * self.output_len);
        match &self.runner {
            Runner::Lowered(program) => caught("run", || {
                program.run(samples, self.threads, &mut outputs);
                Ok(())
            })?,
            Runner::Tract(plan, most) => {
                for part in samples.chunks((*most).min(rows) * sample_len) {
                    caught("run", || self.run_once(plan, part, part.len() / sample_len, &mut outputs))?;
                }
            }
        }
        if outputs.len() == rows * self.output_len {
            return Ok(outputs);
        }
        let problem =
            format!("{rows} samples gave {} values where its signature says {}", outputs.len(), rows * self.output_len);
        Err(EngineError { action: "run", problem })
    }

    fn run_once(
        &self,
        plan: &Arc<TypedRunnableModel>,
        samples: &[f32],
        rows: usize,
        outputs: &mut Vec<f32>,
    ) -> TractResult<()> {
        let shape: Vec<usize> = std::iter::once(rows).chain(self.input.sample_shape()).collect();
        let samples = typed(Tensor::from_shape(&shape, samples)?, &self.input)?;
        let results = plan.run(tvec!(TValue::from(samples)))?;
        if let Some(result) = results.first() {
            outputs.extend(result.to_plain_array_view::<f32>()?.iter());
        }
        Ok(())
    }
}

/// From images of so many numbers on, samples were quicker one by one; of small ones a batch saves more than it costs.
const LARGE_IMAGE: usize = 1 << 15;

/// A plan for any batch, and most samples that it takes at once; unless `stock`, for one sample where that is quicker: tract has its
/// direct, depthwise and lazy kernels for images of known sizes only, batch included, and unfolds all windows of the others.
fn open_plan(
    proto: &pb::ModelProto,
    input: &TensorSignature,
    stock: bool,
) -> TractResult<(Arc<TypedRunnableModel>, usize)> {
    let (mut model, largest) = typed_model(proto, input, None)?;
    if !stock && model.nodes().iter().any(slides_over_large_images) && !mixes_samples(proto, &model) {
        // Not both at a time: each has the weights.
        drop(model);
        match caught("load", || plan(proto, input, 1)) {
            Ok(plan) => return Ok(plan),
            Err(error) => tracing::info!(%error, "the model does not load for one sample; its batch stays open"),
        }
        model = typed_model(proto, input, None)?.0;
    }
    Ok((model.into_optimized()?.into_runnable()?, (MAX_VALUE_LEN / largest.max(1)).max(1)))
}

/// Whether what a sample gives may depend on those beside it: then the file says that they are seen together.
fn mixes_samples(proto: &pb::ModelProto, model: &TypedModel) -> bool {
    let over_batch = |node: &TypedNode| {
        node.op_as::<Reduce>().is_some_and(|reduce| reduce.axes.contains(&0))
            || node.op_as::<Softmax>().is_some_and(|softmax| softmax.axes.contains(&0))
    };
    let mut nodes = proto.graph.iter().flat_map(|graph| &graph.node);
    nodes.any(|node| node.op_type == "DynamicQuantizeLinear") || model.nodes().iter().any(over_batch)
}

/// Whether a node's windows, in float, give large images.
fn slides_over_large_images(node: &TypedNode) -> bool {
    let slides = node.op_as::<Conv>().is_some_and(|conv| conv.q_params.is_none())
        || node.op_is::<Deconv>()
        || node.op_is::<MaxPool>()
        || node.op_is::<SumPool>();
    let len = |fact: &TypedFact| {
        let mut sample = fact.shape.iter().skip(1).map(|dim| dim.to_usize().ok());
        sample.try_fold(1usize, |len, dim| len.checked_mul(dim?)).unwrap_or(0)
    };
    slides && node.outputs.iter().any(|output| len(&output.fact) >= LARGE_IMAGE)
}

/// A plan for this batch, and the batch.
fn plan(
    proto: &pb::ModelProto,
    input: &TensorSignature,
    batch: usize,
) -> TractResult<(Arc<TypedRunnableModel>, usize)> {
    let (model, _) = typed_model(proto, input, Some(batch))?;
    Ok((model.into_optimized()?.into_runnable()?, batch))
}

/// A model for this batch, or for any, and the numbers of its largest value for one sample.
fn typed_model(
    proto: &pb::ModelProto,
    input: &TensorSignature,
    batch: Option<usize>,
) -> TractResult<(TypedModel, usize)> {
    // Symbolic shapes in value_info would clash with the input's.
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    onnx.provider = Arc::new(NoExternalData);
    let model = onnx.model_for_proto_model(&mended(Cow::Borrowed(proto)))?;
    let dim = match batch {
        Some(batch) => batch.to_dim(),
        None => TDim::from(model.symbols.sym("fedge_batch")),
    };
    let dims: Vec<TDim> = std::iter::once(dim).chain(input.sample_shape().iter().map(ToDim::to_dim)).collect();
    let model = model.with_input_fact(0, input_fact(input, dims))?.into_typed()?;
    let largest = check_sizes(&model)?;
    Ok((model, largest))
}

/// A package is self-contained: whatever a file names, tract opens none.
pub(super) struct NoExternalData;

impl ModelDataResolver for NoExternalData {
    fn read_bytes_from_path(&self, _: &mut Vec<u8>, path: &Path, _: usize, _: Option<usize>) -> TractResult<()> {
        tract_onnx::tract_hir::internal::bail!("external data is not read here: {}", path.display())
    }
}

/// tract 0.23 reaches `unimplemented!` and failed assertions on odd models; a node must outlive them.
pub(super) fn caught<T>(action: &'static str, work: impl FnOnce() -> TractResult<T>) -> Result<T, EngineError> {
    let problem = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => format!("it panicked: {}", super::executor::panic_message(&*panic)),
    };
    Err(EngineError { action, problem: problem.chars().take(2000).collect() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::test_fixtures::{digits, package, value_info};
    use super::*;

    #[test]
    fn a_batch_whose_values_would_be_too_large_runs_in_parts() {
        let model = package(1).model;
        let mut engine = Engine::load(model.bytes(), model.input(), model.output()).unwrap();
        let rows: Vec<f32> = digits().iter().take(11).flat_map(|sample| sample.input.clone()).collect();
        let whole = engine.run(&rows).unwrap();
        // 16 channels of 8 × 8 pixels are its largest value.
        let Runner::Tract(_, most) = &mut engine.runner else { panic!("a float model is tract's") };
        assert!((1 << 16..=1 << 18).contains(most), "{most}");
        *most = 4;
        let parts = engine.run(&rows).unwrap();
        assert!(parts.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-4) && parts.len() == whole.len());
    }

    #[test]
    fn large_images_run_one_by_one_and_give_what_an_open_batch_gives() {
        let side = 192;
        let signature = |name: &str| TensorSignature {
            name: name.to_owned(),
            element: ElementType::Fp32,
            dims: vec![None, Some(1), Some(side), Some(side)],
        };
        let (input, output) = (signature("x"), signature("y"));
        let dims = [None, Some(1), Some(side as i64), Some(side as i64)];
        let value = |name: &str| value_info(name, pb::tensor_proto::DataType::Float as i32, &dims);
        let pads = pb::AttributeProto {
            name: "pads".to_owned(),
            r#type: pb::attribute_proto::AttributeType::Ints as i32,
            ints: vec![1; 4],
            ..Default::default()
        };
        let node = |operator: &str, inputs: &[&str], output: &str| pb::NodeProto {
            op_type: operator.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        };
        let graph = pb::GraphProto {
            node: vec![pb::NodeProto { attribute: vec![pads], ..node("Conv", &["x", "w"], "y") }],
            initializer: vec![pb::TensorProto {
                name: "w".to_owned(),
                dims: vec![1, 1, 3, 3],
                data_type: pb::tensor_proto::DataType::Float as i32,
                raw_data: (0..9u8).flat_map(|i| (f32::from(i) - 4.0).to_le_bytes()).collect(),
                ..Default::default()
            }],
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        };
        let opset_import = vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }];
        let proto = pb::ModelProto { opset_import, graph: Some(graph), ..Default::default() };
        let engine = Engine::load(&proto.encode_to_vec(), &input, &output).unwrap();
        let stock = Engine::tract(&proto, &input, &output, None, true).unwrap();
        assert!(matches!(engine.runner, Runner::Tract(_, 1)) && matches!(stock.runner, Runner::Tract(_, 2..)));
        let x: Vec<f32> = (0..3 * side * side).map(|i| (i % 101) as f32).collect();
        assert_eq!(engine.run(&x).unwrap(), stock.run(&x).unwrap());
        // What is taken over the batch is no matter of one sample.
        let mut mixing = proto;
        let graph = mixing.graph.as_mut().unwrap();
        graph.node[0].output = vec!["c".to_owned()];
        let axes = pb::AttributeProto {
            name: "axes".to_owned(),
            r#type: pb::attribute_proto::AttributeType::Ints as i32,
            ints: vec![0],
            ..Default::default()
        };
        graph.node.push(pb::NodeProto { attribute: vec![axes], ..node("ReduceMean", &["c"], "m") });
        graph.node.push(node("Sub", &["c", "m"], "y"));
        let engine = Engine::load(&mixing.encode_to_vec(), &input, &output).unwrap();
        assert!(matches!(engine.runner, Runner::Tract(_, 2..)));
        let centred = engine.run(&x).unwrap();
        let pixel: f32 = centred.iter().step_by(side * side).sum();
        assert!(pixel.abs() < 1e-3 && centred.iter().any(|value| value.abs() > 1.0), "{pixel}");
    }
}
