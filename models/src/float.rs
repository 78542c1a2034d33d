//! Runs a model with float32 input and output in tract, any batch size: for calibration, checks and one-off inference.
//! Serving has a runner of its own in the node, with queues; what tract must never see, `model` refuses before.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use prost::Message;
use tract_onnx::Onnx;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::prelude::{
    DatumType, Framework, InferenceModelExt, TValue, Tensor, ToDim, TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::InferenceFact;
use tract_onnx::tract_hir::internal::{
    DimLike, IntoRunnable, IntoTensor, SymbolScope, SymbolValues, TDim, TypedFact, TypedModel, bail,
};

use crate::mending::mended;
use crate::{ElementType, Model, ModelError, TensorSignature, growth, pb};

/// Most elements that any value of the model may have for one sample: 1 GiB of float32.
pub const MAX_VALUE_LEN: usize = 1 << 28;

/// A model, loaded and optimised. Send and Sync; cheap to clone.
#[derive(Clone)]
pub struct FloatRunner {
    plan: Arc<TypedRunnableModel>,
    input: TensorSignature,
}

impl FloatRunner {
    /// Loads and optimises the model, whose input must be float32 or integers ([`ElementType::is_held_as_float`]). A panic inside tract becomes an error.
    pub fn new(model: &Model) -> Result<FloatRunner, ModelError> {
        let proto = pb::ModelProto::decode(&**model.bytes())
            .map_err(|error| ModelError::NotOnnx { bytes: model.bytes().len(), problem: error.to_string() })?;
        FloatRunner::for_proto(proto, model.input())
    }

    /// Loads a decoded model with the input of a checked one; its graph may list more outputs.
    pub(crate) fn for_proto(proto: pb::ModelProto, input: &TensorSignature) -> Result<FloatRunner, ModelError> {
        if !input.element.is_held_as_float() {
            return Err(ModelError::graph(format!(
                "takes {} as its input {:?}, but fedge feeds float32 and integers; export the model with such an input",
                input.element.name(),
                crate::error::shorten(&input.name)
            )));
        }
        let plan = caught("load", || load(proto, input))?;
        Ok(FloatRunner { plan, input: input.clone() })
    }

    /// Runs a batch: `input` is `[n, ...sample_shape]`, n >= 1; gives the output `[n, ...]`. A model whose file fixes
    /// the batch runs as often as needed, the last time on repeated rows. Refused: any other shape.
    pub fn run(&self, input: ArrayViewD<'_, f32>) -> Result<ArrayD<f32>, ModelError> {
        let outputs = self.run_all(input)?;
        outputs.into_iter().next().ok_or_else(|| runtime("run", "it gave no output"))
    }

    /// As [`Self::run`], all outputs in the graph's order.
    pub(crate) fn run_all(&self, input: ArrayViewD<'_, f32>) -> Result<Vec<ArrayD<f32>>, ModelError> {
        let sample_shape = self.input.sample_shape();
        if input.ndim() == 0 || input.shape()[1..] != sample_shape || input.shape()[0] == 0 {
            return Err(ModelError::input(
                format!("input {:?}", crate::error::shorten(&self.input.name)),
                format!(
                    "has the shape {:?}, but the model takes [n, ...] of {sample_shape:?} with n >= 1",
                    input.shape()
                ),
            ));
        }
        let rows = input.shape()[0];
        let Some(batch) = self.input.fixed_batch().filter(|&batch| batch != rows) else {
            return self.run_once(input.to_owned());
        };
        let mut parts: Vec<Vec<ArrayD<f32>>> = Vec::new();
        for start in (0..rows).step_by(batch) {
            let indices: Vec<usize> = (start..start + batch).map(|row| row.min(rows - 1)).collect();
            let kept = batch.min(rows - start);
            for (index, output) in self.run_once(input.select(Axis(0), &indices))?.into_iter().enumerate() {
                if output.shape().first() != Some(&batch) {
                    return Err(runtime(
                        "run",
                        "an output does not begin with the batch; export it with a dynamic batch",
                    ));
                }
                if parts.len() <= index {
                    parts.push(Vec::new());
                }
                parts[index].push(output.slice_axis(Axis(0), Slice::from(..kept)).to_owned());
            }
        }
        parts
            .iter()
            .map(|parts| {
                let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
                ndarray::concatenate(Axis(0), &views).map_err(|error| runtime("run", error))
            })
            .collect()
    }

    fn run_once(&self, input: ArrayD<f32>) -> Result<Vec<ArrayD<f32>>, ModelError> {
        let outputs = caught("run", || self.plan.run(tvec!(TValue::from(typed(Tensor::from(input), &self.input)?))))?;
        let to_array = |output: TValue| {
            let tensor = output.into_tensor();
            tensor.into_plain_array::<f32>().map_err(|error| {
                runtime("run", format!("an output is not float32: {error:#}; export the model with a float32 output"))
            })
        };
        outputs.into_iter().map(to_array).collect()
    }
}

/// Refuses a file that would make tract fold a constant without bounds, as [`FloatRunner::new`] does before it loads one: for
/// whoever loads it in another way. `input` is the one input whose shape is fixed but for the batch; without it, the inputs
/// are as the file has them.
pub fn check_growth(proto: &pb::ModelProto, input: Option<&TensorSignature>) -> Result<(), ModelError> {
    caught("load", || match input {
        Some(input) => growth::check(&onnx(), proto, Some(&|symbols| fact(input, symbols))),
        None => growth::check(&onnx(), proto, None),
    })
}

/// tract's reader; symbolic shapes in value_info would clash with the input's.
fn onnx() -> Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    onnx.provider = Arc::new(NoExternalData);
    onnx
}

fn fact(input: &TensorSignature, symbols: &SymbolScope) -> InferenceFact {
    let batch = match input.fixed_batch() {
        Some(batch) => batch.to_dim(),
        None => TDim::from(symbols.sym("fedge_batch")),
    };
    let dims: Vec<TDim> = std::iter::once(batch).chain(input.sample_shape().iter().map(ToDim::to_dim)).collect();
    input_fact(input, dims)
}

/// tract's name for a type; none for those that it does not carry.
pub fn datum_type(element: ElementType) -> Option<DatumType> {
    Some(match element {
        ElementType::Bool => DatumType::Bool,
        ElementType::Uint8 => DatumType::U8,
        ElementType::Uint16 => DatumType::U16,
        ElementType::Uint32 => DatumType::U32,
        ElementType::Uint64 => DatumType::U64,
        ElementType::Int8 => DatumType::I8,
        ElementType::Int16 => DatumType::I16,
        ElementType::Int32 => DatumType::I32,
        ElementType::Int64 => DatumType::I64,
        ElementType::Fp16 => DatumType::F16,
        ElementType::Fp32 => DatumType::F32,
        ElementType::Fp64 => DatumType::F64,
        ElementType::Bf16 => return None,
    })
}

/// The input of a model whose samples are held as float32, for tract: `dims` are the batch and a sample's.
pub fn input_fact(input: &TensorSignature, dims: Vec<TDim>) -> InferenceFact {
    InferenceFact::dt_shape(datum_type(input.element).unwrap_or(DatumType::F32), dims)
}

/// Samples that are held as float32, as the model takes them. Refused: a number that its type does not hold.
pub fn typed(samples: Tensor, input: &TensorSignature) -> TractResult<Tensor> {
    if input.element == ElementType::Fp32 {
        return Ok(samples);
    }
    if let Some(value) = samples.to_plain_array_view::<f32>()?.iter().find(|value| !input.element.holds(**value)) {
        bail!("{value} is no {}, which its input {:?} takes", input.element.name(), crate::error::shorten(&input.name));
    }
    Ok(samples.cast_to_dt(datum_type(input.element).unwrap_or(DatumType::F32))?.into_owned())
}

fn load(proto: pb::ModelProto, input: &TensorSignature) -> TractResult<Arc<TypedRunnableModel>> {
    let onnx = onnx();
    growth::check(&onnx, &proto, Some(&|symbols| fact(input, symbols)))?;
    let proto = mended(Cow::Owned(proto));
    let model = onnx.model_for_proto_model(&proto)?;
    // tract has the weights now, and is about to pack them: a third copy would raise the most memory that loading takes.
    drop(proto);
    let fact = fact(input, &model.symbols);
    let model = model.with_input_fact(0, fact)?.into_typed()?;
    check_sizes(&model)?;
    model.into_optimized()?.into_runnable()
}

/// Refuses a typed model of which a value, or all outputs together, would not fit into memory for a single sample, all open
/// dimensions being 1. Gives the elements of the largest value that grows with an open dimension.
pub fn check_sizes(model: &TypedModel) -> TractResult<usize> {
    let of_one = |dim: &TDim| {
        let symbols = dim.symbols().into_iter().fold(SymbolValues::default(), |values, symbol| values.with(&symbol, 1));
        dim.eval(&symbols).to_usize().ok()
    };
    let len_of = |fact: &TypedFact| fact.shape.iter().map(of_one).try_fold(1usize, |len, dim| len.checked_mul(dim?));
    let mut largest = 0;
    for node in model.nodes() {
        for output in &node.outputs {
            let len = len_of(&output.fact);
            if output.fact.shape.iter().any(|dim| !dim.symbols().is_empty()) {
                largest = largest.max(len.unwrap_or(usize::MAX));
            }
            // A dimension that even a known batch leaves open is computed from data; operators that do so are refused.
            if len.is_none_or(|len| len > MAX_VALUE_LEN) {
                let shape = &output.fact.shape;
                bail!(
                    "node {:?} gives the shape {shape:?}, above the limit of {MAX_VALUE_LEN} elements a sample",
                    node.name
                );
            }
        }
    }
    // Calibration makes an output of every value that is to be quantized, and outputs live until all are there.
    let mut kept = 0usize;
    for outlet in model.output_outlets()? {
        kept = kept.saturating_add(len_of(model.outlet_fact(*outlet)?).unwrap_or(usize::MAX));
    }
    if kept > MAX_VALUE_LEN {
        bail!("its outputs have {kept} elements a sample together, above the limit of {MAX_VALUE_LEN}");
    }
    Ok(largest)
}

/// Files beside a model are folded in by `external` before; tract must not open any.
struct NoExternalData;

impl ModelDataResolver for NoExternalData {
    fn read_bytes_from_path(&self, _: &mut Vec<u8>, path: &Path, _: usize, _: Option<usize>) -> TractResult<()> {
        bail!("external data is not read here: {}", path.display())
    }
}

/// tract 0.23 reaches `unimplemented!` and failed assertions on odd models; a node must outlive them.
fn caught<T>(action: &'static str, work: impl FnOnce() -> TractResult<T>) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| runtime(action, format!("{error:#}"))),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(runtime(action, format!("it panicked: {}", message.unwrap_or("no message"))))
        }
    }
}

fn runtime(action: &'static str, problem: impl ToString) -> ModelError {
    let problem: String = problem.to_string().chars().take(2000).collect();
    ModelError::Runtime { action, problem }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing::{self, floats, graph, integers, node};

    #[test]
    fn any_batch_gives_the_rows_of_single_runs() {
        let runner = FloatRunner::new(&Model::from_bytes(testing::DIGITS).unwrap()).unwrap();
        let input =
            ArrayD::from_shape_fn(vec![5, 1, 8, 8], |index| ((index[0] + 2) * index[2] * index[3] % 17) as f32 / 16.0);
        let all = runner.run(input.view()).unwrap();
        assert_eq!(all.shape(), [5, 10]);
        for row in 0..5 {
            let one = runner.run(input.slice_axis(Axis(0), Slice::from(row..row + 1))).unwrap();
            for (one, all) in one.iter().zip(all.index_axis(Axis(0), row)) {
                assert!((one - all).abs() < 1e-5, "{one} {all}");
            }
        }
    }

    #[test]
    fn a_model_that_fixes_its_batch_runs_any_number_of_rows() {
        let mut graph = testing::linear();
        graph.input[0] = testing::value("x", &[2, 2]);
        graph.node[0].output[0] = "h".to_owned();
        graph.node.push(node("Reshape", &["h", "shape"], &["y"]));
        graph.initializer.push(integers("shape", &[2, 3]));
        let runner = FloatRunner::new(&Model::from_bytes(testing::bytes(graph)).unwrap()).unwrap();
        let input = ndarray::arr2(&[[1.0f32, 0.0], [0.0, 1.0], [1.0, 1.0]]).into_dyn();
        let expected = ndarray::arr2(&[[1.5f32, 1.5, 3.0], [4.5, 4.5, 6.0], [5.5, 6.5, 9.0]]).into_dyn();
        assert_eq!(runner.run(input.view()).unwrap(), expected);
    }

    #[test]
    fn another_shape_is_refused_with_both_shapes() {
        let runner = FloatRunner::new(&Model::from_bytes(testing::bytes(testing::linear())).unwrap()).unwrap();
        for shape in [&[1, 3][..], &[2], &[], &[0, 2], &[1, 2, 1]] {
            let error = runner.run(ArrayD::zeros(shape).view()).unwrap_err().to_string();
            assert!(error.contains("\"x\"") && error.contains("[2]"), "{error}");
        }
    }

    #[test]
    fn what_tract_cannot_load_is_an_error() {
        let nodes = vec![node("MatMul", &["x", "w"], &["y"])];
        let wrong = graph(&[-1, 2], &[-1, 3], nodes, vec![floats("w", &[5, 3], &[0.0; 15])]);
        let error = FloatRunner::new(&Model::from_bytes(testing::bytes(wrong)).unwrap()).err().unwrap().to_string();
        assert!(error.contains("tract cannot load"), "{error}");
    }

    #[test]
    fn a_model_whose_values_outgrow_the_memory_is_refused_before_it_runs() {
        let mut nodes = Vec::new();
        for step in 0..6 {
            let (from, to) = (format!("h{step}"), format!("h{}", step + 1));
            nodes.push(testing::ints(node("ConvTranspose", &[&from, "w"], &[&to]), "strides", &[60, 60]));
        }
        for (step, node) in nodes.iter_mut().enumerate() {
            node.name = format!("grow{step}");
        }
        nodes[0].input[0] = "x".to_owned();
        nodes[5].output[0] = "y".to_owned();
        let grown = graph(&[-1, 1, 8, 8], &[-1, 1, 8, 8], nodes, vec![floats("w", &[1, 1, 1, 1], &[1.0])]);
        let error = FloatRunner::new(&Model::from_bytes(testing::bytes(grown)).unwrap()).err().unwrap().to_string();
        assert!(error.contains("limit"), "{error}");
    }

    #[test]
    fn outputs_that_outgrow_the_memory_together_are_refused() {
        let mut nodes = vec![node("Expand", &["x", "large"], &["h0"])];
        nodes.extend((0..4).map(|step| node("Relu", &[&format!("h{step}")], &[&format!("h{}", step + 1)])));
        nodes.push(node("ReduceMax", &["h4"], &["y"]));
        nodes.iter_mut().for_each(|node| node.name = node.output[0].clone());
        let large = integers("large", &[1, 1 << 26]);
        let mut proto = testing::model(graph(&[-1, 1], &[-1, 1], nodes, vec![large]), 13);
        let input = Model::from_bytes(proto.encode_to_vec()).unwrap().input().clone();
        FloatRunner::for_proto(proto.clone(), &input).map(|_| ()).unwrap();
        let outputs = &mut proto.graph.as_mut().unwrap().output;
        outputs.extend((0..5).map(|step| pb::ValueInfoProto { name: format!("h{step}"), ..Default::default() }));
        let error = FloatRunner::for_proto(proto, &input).err().unwrap().to_string();
        assert!(error.contains("elements a sample together"), "{error}");
    }

    #[test]
    fn damaged_files_that_pass_the_checks_do_not_take_the_process_down() {
        // A fixed walk over the graph's bytes, which follow the file's header; most changes hit weights or names.
        let mut loaded = 0;
        for step in 0..400usize {
            let mut bytes = testing::DIGITS.to_vec();
            let place = step * 7919 % bytes.len();
            bytes[place] ^= 1 << (step % 8);
            let Ok(model) = Model::from_bytes(bytes) else { continue };
            if let Ok(runner) = FloatRunner::new(&model) {
                let shape = [vec![1], model.input().sample_shape()].concat();
                loaded += usize::from(runner.run(ArrayD::zeros(shape).view()).is_ok());
            }
        }
        assert!(loaded > 100, "{loaded}");
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = caught::<()>("run", || panic!("index {} out of range", 7)).unwrap_err().to_string();
        assert!(error.contains("panicked") && error.contains("index 7"), "{error}");
    }
}
