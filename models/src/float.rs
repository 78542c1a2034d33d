//! Runs a model with float32 input and output in tract, any batch size: for calibration, checks and one-off inference.
//! Serving has a runner of its own in the node, with queues; what tract must never see, `model` refuses before.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use prost::Message;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::prelude::{
    Framework, InferenceModelExt, Datum, TValue, Tensor, ToDim, TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::InferenceFact;
use tract_onnx::tract_hir::internal::{IntoRunnable, IntoTensor, TDim};

use crate::{ElementType, Model, ModelError, TensorSignature, pb};

/// A model, loaded and optimised. Send and Sync; cheap to clone.
#[derive(Clone)]
pub struct FloatRunner {
    plan: Arc<TypedRunnableModel>,
    input: TensorSignature,
}

impl FloatRunner {
    /// Loads and optimises the model, whose input must be float32. A panic inside tract becomes an error.
    pub fn new(model: &Model) -> Result<FloatRunner, ModelError> {
        let proto = pb::ModelProto::decode(&**model.bytes())
            .map_err(|error| ModelError::NotOnnx { bytes: model.bytes().len(), problem: error.to_string() })?;
        FloatRunner::for_proto(&proto, model.input())
    }

    /// Loads a decoded model with the input of a checked one; its graph may list more outputs.
    pub(crate) fn for_proto(proto: &pb::ModelProto, input: &TensorSignature) -> Result<FloatRunner, ModelError> {
        if input.element != ElementType::Fp32 {
            return Err(ModelError::graph(format!(
                "takes {} as its input {:?}, but fedge feeds float32; export the model with a float32 input",
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
                format!("has the shape {:?}, but the model takes [n, ...] of {sample_shape:?} with n >= 1", input.shape()),
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
                    return Err(runtime("run", "an output does not begin with the batch; export it with a dynamic batch"));
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
        let outputs = caught("run", || self.plan.run(tvec!(TValue::from(Tensor::from(input)))))?;
        let to_array = |output: TValue| {
            let tensor = output.into_tensor();
            tensor.into_plain_array::<f32>().map_err(|error| {
                runtime("run", format!("an output is not float32: {error:#}; export the model with a float32 output"))
            })
        };
        outputs.into_iter().map(to_array).collect()
    }
}

fn load(proto: &pb::ModelProto, input: &TensorSignature) -> TractResult<Arc<TypedRunnableModel>> {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    onnx.provider = Arc::new(NoExternalData);
    let model = onnx.model_for_proto_model(proto)?;
    let batch = match input.fixed_batch() {
        Some(batch) => batch.to_dim(),
        None => TDim::from(model.symbols.sym("fedge_batch")),
    };
    let dims: Vec<TDim> = std::iter::once(batch).chain(input.sample_shape().iter().map(ToDim::to_dim)).collect();
    let fact = InferenceFact::dt_shape(f32::datum_type(), dims);
    model.with_input_fact(0, fact)?.into_optimized()?.into_runnable()
}

/// Files beside a model are folded in by `external` before; tract must not open any.
struct NoExternalData;

impl ModelDataResolver for NoExternalData {
    fn read_bytes_from_path(&self, _: &mut Vec<u8>, path: &Path, _: usize, _: Option<usize>) -> TractResult<()> {
        tract_onnx::tract_hir::internal::bail!("external data is not read here: {}", path.display())
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
