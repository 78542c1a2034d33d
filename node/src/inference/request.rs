//! One inference request, whatever wire it came by, and the checks of its tensors, with checked arithmetic.
//! Messages become requests in `convert` (gRPC) and `rest` (HTTP); which model answers is looked up in `repository`.

use std::time::Duration;

use fedge_models::{ElementType, TensorSignature};
use fedge_proto::identity::SpiffeId;
use prost::bytes::Bytes;

use crate::calls::Call;

/// How large a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Samples in a batch.
    pub max_batch: usize,
    /// Values of all samples together, a tensor.
    pub max_elements: usize,
}

impl Default for RequestLimits {
    /// 4,096 samples, 4 Mi values (16 MiB of float32).
    fn default() -> RequestLimits {
        RequestLimits { max_batch: 4096, max_elements: 4 << 20 }
    }
}

/// A request that is wrong in itself: which tensor, what was expected and what came. `INVALID_ARGUMENT` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub(super) String);

/// A request as it came: nothing of it is checked but its form.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The model's name.
    pub model: String,
    /// Empty for the highest ready version.
    pub version: String,
    /// Echoed in the reply.
    pub id: String,
    /// Who asks; none on a plaintext port of loopback.
    pub caller: Option<SpiffeId>,
    /// What is known of the call that it came by.
    pub call: Option<Call>,
    /// Longest time in the queue.
    pub timeout: Option<Duration>,
    /// 1 is the most urgent; 0: the model's default.
    pub priority: u64,
    /// The inputs, in any order.
    pub inputs: Vec<InputTensor>,
    /// The wanted outputs, in the order of the reply; empty: all.
    pub outputs: Vec<RequestedOutput>,
}

/// One input as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct InputTensor {
    /// Its name in the model.
    pub name: String,
    /// `FP32`, ..., `BYTES`, or anything else.
    pub datatype: String,
    /// Its dimensions as the caller states them.
    pub shape: Vec<i64>,
    /// Its values.
    pub data: InputData,
}

/// Where an input's values are.
#[derive(Clone, Debug, PartialEq)]
pub enum InputData {
    /// Nowhere.
    Missing,
    /// Little-endian bytes, as they came.
    Raw(Bytes),
    /// Numbers that were decoded from this field of the message, as little-endian bytes.
    Values(Bytes, &'static str),
    /// What came can't be values of the stated type: a sentence.
    Wrong(String),
}

/// One output that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Its name in the model.
    pub name: String,
    /// The number of classes that the classification extension asks for; 0 where it is no number.
    pub classification: Option<usize>,
    /// Whether the reply carries it as bytes; `None`: as the wire usually does.
    pub binary: Option<bool>,
}

/// A tensor between the wire and the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Type of its elements.
    pub element: ElementType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub data: Bytes,
}

/// Checked inputs of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Raw samples `[rows, ...sample_shape]`, all finite, of a model with one input that is held as float32.
    Floats(Vec<f32>),
    /// One tensor an input, in the model's order.
    Tensors(Vec<TensorData>),
}

/// Checked inputs and how many samples they hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The inputs.
    pub inputs: Inputs,
    /// Number of samples, at least 1; 1 for a model without a batch dimension.
    pub rows: usize,
}

/// In which form an output was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputForm {
    /// Its values.
    Values,
    /// The k greatest values with their indices and labels, k >= 1.
    Classification(usize),
}

/// What a model takes and gives, as requests are checked against it.
#[derive(Clone, Copy, Debug)]
pub struct Contract<'a> {
    /// Its inputs.
    pub inputs: &'a [TensorSignature],
    /// Its outputs.
    pub outputs: &'a [TensorSignature],
    /// Whether the first dimension of every tensor counts samples.
    pub batched: bool,
    /// Whether its one input is samples that are held as float32.
    pub floats: bool,
}

/// Which outputs (by their index in the model) in which form, in the order of the reply.
pub fn requested_outputs(
    outputs: &[RequestedOutput],
    contract: &Contract<'_>,
) -> Result<Vec<(usize, OutputForm)>, Refused> {
    if outputs.is_empty() {
        return Ok((0..contract.outputs.len()).map(|index| (index, OutputForm::Values)).collect());
    }
    let mut wanted: Vec<(usize, OutputForm)> = Vec::with_capacity(outputs.len());
    for output in outputs {
        let name = &output.name;
        let Some(index) = contract.outputs.iter().position(|signature| signature.name == *name) else {
            let known = names(contract.outputs, "output");
            return Err(Refused(format!("output {:?}: is unknown; {known}", shorten(name))));
        };
        if wanted.iter().any(|(known, _)| *known == index) {
            let times = outputs.iter().filter(|other| other.name == *name).count();
            return Err(Refused(format!("output {name:?}: is requested {times} times; once is enough")));
        }
        let form = match output.classification {
            None => OutputForm::Values,
            Some(0) => {
                return Err(Refused(format!(
                    "output {name:?}: its parameter \"classification\" must be an integer of at least 1"
                )));
            }
            Some(_) if contract.outputs[index].element != ElementType::Fp32 || !contract.batched => {
                return Err(Refused(format!(
                    "output {name:?}: \"classification\" is for float32 outputs [batch, classes]; this one is {} {:?}",
                    contract.outputs[index].element.name(),
                    wire_dims(&contract.outputs[index], contract.batched)
                )));
            }
            Some(k) => OutputForm::Classification(k),
        };
        wanted.push((index, form));
    }
    Ok(wanted)
}

/// The request's inputs, checked against the model's.
pub fn check(inputs: Vec<InputTensor>, contract: &Contract<'_>, limits: &RequestLimits) -> Result<Batch, Refused> {
    if let Some(unknown) = inputs.iter().find(|input| contract.inputs.iter().all(|known| known.name != input.name)) {
        let known = names(contract.inputs, "input");
        return Err(Refused(format!("input {:?}: is unknown; {known}", shorten(&unknown.name))));
    }
    let mut given: Vec<Option<InputTensor>> = inputs.into_iter().map(Some).collect();
    let mut rows = None;
    let mut tensors = Vec::with_capacity(contract.inputs.len());
    for signature in contract.inputs {
        let name = &signature.name;
        let mut of_this = given.iter_mut().filter(|input| input.as_ref().is_some_and(|input| input.name == *name));
        let Some(input) = of_this.next().and_then(Option::take) else {
            return Err(Refused(format!("input {name:?}: is missing")));
        };
        let more = of_this.count();
        if more > 0 {
            return Err(Refused(format!("input {name:?}: came {} times; send it once", more + 1)));
        }
        let refused = |problem: String| Refused(format!("input {name:?}: {problem}"));
        let (element, datatype) = (signature.element, signature.element.name());
        if input.datatype != datatype {
            let came = shorten(&input.datatype);
            return Err(refused(format!("expected the datatype {datatype}, but {came:?} came")));
        }
        let shape = check_shape(&input.shape, signature, contract.batched, limits).map_err(refused)?;
        let batch = if contract.batched { shape.first().copied().unwrap_or(1) } else { 1 };
        if let Some(rows) = rows.filter(|rows| *rows != batch) {
            let problem = format!("expected {rows} samples, as the inputs before it have, but {batch} came");
            return Err(refused(problem));
        }
        rows = Some(batch);
        let elements = shape.iter().product();
        let data = bytes(input.data, element, elements).map_err(refused)?;
        tensors.push(TensorData { element, shape, data });
    }
    let rows = rows.unwrap_or(1);
    match tensors.as_slice() {
        [only] if contract.floats => {
            let values = floats(&only.data, only.element)
                .map_err(|problem| Refused(format!("input {:?}: {problem}", contract.inputs[0].name)))?;
            Ok(Batch { inputs: Inputs::Floats(values), rows })
        }
        _ => Ok(Batch { inputs: Inputs::Tensors(tensors), rows }),
    }
}

/// A signature's dimensions on the wire: -1 for the batch and any other dynamic one.
pub fn wire_dims(signature: &TensorSignature, batched: bool) -> Vec<i64> {
    let dim = |dim: &Option<usize>| dim.and_then(|dim| i64::try_from(dim).ok()).unwrap_or(-1);
    let mut dims: Vec<i64> = signature.dims.iter().map(dim).collect();
    if let (true, Some(first)) = (batched, dims.first_mut()) {
        *first = -1;
    }
    dims
}

/// A name from a request, cut to a length that fits a message.
pub(super) fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}

fn names(signatures: &[TensorSignature], role: &str) -> String {
    match signatures {
        [only] => format!("the model's {role} is {:?}", only.name),
        several => {
            let shown: Vec<String> = several.iter().take(16).map(|known| format!("{:?}", known.name)).collect();
            format!("the model's {role}s are {}", shown.join(", "))
        }
    }
}

/// The dimensions, if they are of the signature and within the limits.
fn check_shape(
    shape: &[i64],
    signature: &TensorSignature,
    batched: bool,
    limits: &RequestLimits,
) -> Result<Vec<usize>, String> {
    let shown: Vec<i64> = shape.iter().copied().take(16).collect();
    let expected = wire_dims(signature, batched);
    if shape.len() != expected.len() {
        let (wanted, came) = (expected.len(), shape.len());
        return Err(format!("expected {wanted} dimensions, {expected:?}, but {came} came: {shown:?}"));
    }
    let first = usize::from(batched);
    let fits = |(came, wanted): (&i64, &i64)| came == wanted || (*wanted == -1 && *came >= 1);
    if !shape.iter().zip(&expected).skip(first).all(fits) {
        return Err(format!("expected the shape {expected:?}, but {shown:?} came"));
    }
    if batched {
        let (batch, max_batch) = (shape.first().copied().unwrap_or(0), limits.max_batch);
        if !usize::try_from(batch).is_ok_and(|rows| (1..=max_batch).contains(&rows)) {
            return Err(format!("expected a batch of 1 to {max_batch} samples, but {batch} came (shape {shown:?})"));
        }
    }
    let dims: Option<Vec<usize>> = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let dims = dims.ok_or_else(|| format!("expected the shape {expected:?}, but {shown:?} came"))?;
    let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if elements.is_none_or(|elements| elements > limits.max_elements) {
        return Err(format!("expected at most {} values, but the shape {shown:?} has more", limits.max_elements));
    }
    Ok(dims)
}

fn bytes(data: InputData, element: ElementType, elements: usize) -> Result<Bytes, String> {
    let size = element.size();
    let expected = elements.saturating_mul(size);
    let bytes = match data {
        InputData::Missing => return Err(format!("its data is missing; expected {elements} values")),
        InputData::Wrong(problem) => return Err(problem),
        InputData::Raw(raw) if raw.len() != expected => {
            return Err(format!(
                "expected {expected} bytes of raw data ({elements} values of {size} bytes), but {} came",
                raw.len()
            ));
        }
        InputData::Values(bytes, field) if bytes.len() != expected => {
            return Err(format!("expected {elements} values in {field}, but {} came", bytes.len() / size));
        }
        InputData::Raw(bytes) | InputData::Values(bytes, _) => bytes,
    };
    if element == ElementType::Bool
        && let Some(at) = bytes.iter().position(|byte| *byte > 1)
    {
        return Err(format!("expected bytes of 0 and 1, but element {at} (from 0) is {}", bytes[at]));
    }
    Ok(bytes)
}

/// The values as they are held, checked to be held exactly.
#[allow(clippy::cast_precision_loss, reason = "what is not held exactly is refused")]
fn floats(raw: &[u8], element: ElementType) -> Result<Vec<f32>, String> {
    fn each<const SIZE: usize>(raw: &[u8], value: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
        raw.as_chunks().0.iter().map(|&chunk| value(chunk)).collect()
    }
    let values = match element {
        ElementType::Uint8 => each(raw, |chunk| f32::from(u8::from_le_bytes(chunk))),
        ElementType::Int8 => each(raw, |chunk| f32::from(i8::from_le_bytes(chunk))),
        ElementType::Uint16 => each(raw, |chunk| f32::from(u16::from_le_bytes(chunk))),
        ElementType::Int16 => each(raw, |chunk| f32::from(i16::from_le_bytes(chunk))),
        ElementType::Uint32 => each(raw, |chunk| u32::from_le_bytes(chunk) as f32),
        ElementType::Int32 => each(raw, |chunk| i32::from_le_bytes(chunk) as f32),
        ElementType::Uint64 => each(raw, |chunk| u64::from_le_bytes(chunk) as f32),
        ElementType::Int64 => each(raw, |chunk| i64::from_le_bytes(chunk) as f32),
        _ => each(raw, f32::from_le_bytes),
    };
    match (values.iter().position(|value| !element.holds(*value)), element) {
        (None, _) => Ok(values),
        (Some(at), ElementType::Fp32) => {
            Err(format!("expected finite numbers, but element {at} (from 0) is {}", values[at]))
        }
        (Some(at), _) => Err(format!(
            "expected whole numbers below 16777216, which this model's samples are, but element {at} (from 0) is larger"
        )),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
