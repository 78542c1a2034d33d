//! Wire tensors to samples and answers to wire tensors; every check of a request's tensors, with checked arithmetic.
//! Which model answers is looked up in `repository`; nothing is computed here.

use fedge_models::TensorSignature;
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use fedge_proto::inference::model_infer_response::InferOutputTensor;
use fedge_proto::inference::{InferTensorContents, ModelInferRequest};
use prost::bytes::{BufMut, Bytes, BytesMut};

/// Type of all inputs and outputs: loading refuses models with others.
const DATATYPE: &str = "FP32";

/// How large a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Samples in a batch.
    pub max_batch: usize,
    /// Values of all samples together.
    pub max_elements: usize,
}

impl Default for RequestLimits {
    /// 4,096 samples, 4 Mi values (16 MiB).
    fn default() -> RequestLimits {
        RequestLimits { max_batch: 4096, max_elements: 4 << 20 }
    }
}

/// A request that is wrong in itself: which tensor, what was expected and what came. `INVALID_ARGUMENT` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// The samples of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Raw values `[rows, ...sample_shape]`, row-major, all finite.
    pub values: Vec<f32>,
    /// Number of samples, at least 1.
    pub rows: usize,
}

/// In which form an output was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputForm {
    /// FP32 values.
    Values,
    /// The k greatest values with their indices and labels, k >= 1.
    Classification(usize),
}

/// The one output in the form that the request asks for; without any request, its values.
pub fn requested_output(
    outputs: &[InferRequestedOutputTensor],
    signature: &TensorSignature,
) -> Result<OutputForm, Refused> {
    let Some(first) = outputs.first() else { return Ok(OutputForm::Values) };
    if let Some(unknown) = outputs.iter().find(|output| output.name != signature.name) {
        return Err(Refused(format!(
            "output {:?}: is unknown; the model's output is {:?}",
            shorten(&unknown.name),
            signature.name
        )));
    }
    if outputs.len() > 1 {
        return Err(Refused(format!(
            "output {:?}: is requested {} times; once is enough",
            signature.name,
            outputs.len()
        )));
    }
    let Some(parameter) = first.parameters.get("classification") else { return Ok(OutputForm::Values) };
    let k = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(k)) => usize::try_from(k).ok(),
        Some(ParameterChoice::Uint64Param(k)) => usize::try_from(k).ok(),
        _ => None,
    };
    match k {
        Some(k) if k >= 1 => Ok(OutputForm::Classification(k)),
        _ => Err(Refused(format!(
            "output {:?}: its parameter \"classification\" must be an integer of at least 1",
            signature.name
        ))),
    }
}

/// The samples of a request, checked against the model's input.
pub fn samples(
    request: &ModelInferRequest,
    signature: &TensorSignature,
    limits: &RequestLimits,
) -> Result<Batch, Refused> {
    let tensor = only_input(request, signature)?;
    let refused = |problem: String| Refused(format!("input {:?}: {problem}", signature.name));
    if tensor.datatype != DATATYPE {
        return Err(refused(format!("expected the datatype {DATATYPE}, but {:?} came", shorten(&tensor.datatype))));
    }
    let (rows, elements) = check_shape(&tensor.shape, signature, limits)?;
    let typed = tensor.contents.as_ref().filter(|contents| !is_empty(contents));
    let values = match (request.raw_input_contents.as_slice(), typed) {
        ([], None) => return Err(refused(format!("its data is missing; expected {elements} values"))),
        ([], Some(contents)) => typed_values(contents, elements).map_err(refused)?,
        ([raw], None) => raw_values(raw, elements).map_err(refused)?,
        ([_], Some(_)) => {
            return Err(refused(
                "its data came both in raw_input_contents and in contents; send one of them".to_owned(),
            ));
        }
        (raw, _) => {
            return Err(refused(format!(
                "expected one entry of raw_input_contents an input, so 1, but {} came",
                raw.len()
            )));
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(refused(format!("expected finite numbers, but element {at} (from 0) is {}", values[at]))),
        None => Ok(Batch { values, rows }),
    }
}

/// The reply's tensor and its raw form, little-endian and row-major.
pub fn output_values(name: &str, shape: &[usize], values: &[f32]) -> (InferOutputTensor, Bytes) {
    let mut raw = BytesMut::with_capacity(size_of_val(values));
    for &value in values {
        raw.put_f32_le(value);
    }
    let tensor = InferOutputTensor {
        name: name.to_owned(),
        datatype: DATATYPE.to_owned(),
        shape: wire_shape(shape),
        ..InferOutputTensor::default()
    };
    (tensor, raw.freeze())
}

/// A signature's dimensions for the metadata: -1 for the batch and any other dynamic one.
pub fn wire_dims(signature: &TensorSignature) -> Vec<i64> {
    let sample = signature.dims.iter().skip(1).map(|dim| dim.and_then(|dim| i64::try_from(dim).ok()).unwrap_or(-1));
    std::iter::once(-1).chain(sample).collect()
}

pub(super) fn wire_shape(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
}

fn only_input<'a>(
    request: &'a ModelInferRequest,
    signature: &TensorSignature,
) -> Result<&'a InferInputTensor, Refused> {
    if let Some(unknown) = request.inputs.iter().find(|input| input.name != signature.name) {
        return Err(Refused(format!(
            "input {:?}: is unknown; the model's input is {:?}",
            shorten(&unknown.name),
            signature.name
        )));
    }
    match request.inputs.as_slice() {
        [only] => Ok(only),
        [] => Err(Refused(format!("input {:?}: is missing", signature.name))),
        many => Err(Refused(format!("input {:?}: came {} times; send it once", signature.name, many.len()))),
    }
}

/// Number of samples and of values.
fn check_shape(shape: &[i64], signature: &TensorSignature, limits: &RequestLimits) -> Result<(usize, usize), Refused> {
    let name = &signature.name;
    let shown: Vec<i64> = shape.iter().copied().take(16).collect();
    let expected = wire_dims(signature);
    if shape.len() != signature.dims.len() {
        let (wanted, came) = (signature.dims.len(), shape.len());
        return Err(Refused(format!(
            "input {name:?}: expected {wanted} dimensions, {expected:?}, but {came} came: {shown:?}"
        )));
    }
    let batch = shape.first().copied().unwrap_or(0);
    if shape.iter().skip(1).ne(expected.iter().skip(1)) {
        return Err(Refused(format!("input {name:?}: expected the shape {expected:?}, but {shown:?} came")));
    }
    let max_batch = limits.max_batch;
    let rows = usize::try_from(batch).ok().filter(|rows| (1..=max_batch).contains(rows)).ok_or_else(|| {
        Refused(format!(
            "input {name:?}: expected a batch of 1 to {max_batch} samples, but {batch} came (shape {shown:?})"
        ))
    })?;
    let elements = rows.checked_mul(signature.sample_len()).filter(|&elements| elements <= limits.max_elements);
    let elements = elements.ok_or_else(|| {
        Refused(format!(
            "input {name:?}: expected at most {} values, but the shape {shown:?} has more",
            limits.max_elements
        ))
    })?;
    Ok((rows, elements))
}

fn raw_values(raw: &[u8], elements: usize) -> Result<Vec<f32>, String> {
    let expected = elements.saturating_mul(size_of::<f32>());
    if raw.len() != expected {
        return Err(format!(
            "expected {expected} bytes of raw data ({elements} values of 4 bytes), but {} came",
            raw.len()
        ));
    }
    Ok(raw.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
}

fn typed_values(contents: &InferTensorContents, elements: usize) -> Result<Vec<f32>, String> {
    let values = &contents.fp32_contents;
    if !is_empty(&InferTensorContents { fp32_contents: Vec::new(), ..contents.clone() }) {
        return Err(format!(
            "expected its values in fp32_contents ({DATATYPE}), but another field of contents has some"
        ));
    }
    if values.len() != elements {
        return Err(format!("expected {elements} values in fp32_contents, but {} came", values.len()));
    }
    Ok(values.clone())
}

fn is_empty(contents: &InferTensorContents) -> bool {
    *contents == InferTensorContents::default()
}

/// A name from a request, cut to a length that fits a message.
fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}
