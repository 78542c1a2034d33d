//! An HTTP body as a request: JSON, and behind it the bytes of the binary extension.
//! The checks of tensors are in `request`; compression is undone before.

use std::fmt;
use std::time::Duration;

use fedge_models::{ElementType, Interface};
use prost::bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::super::request::{InferRequest, InputData, InputTensor, Refused, RequestedOutput, shorten};

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: serde_json::Map<String, Value>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: serde_json::Map<String, Value>,
    data: Option<Flat>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: serde_json::Map<String, Value>,
}

/// The body of an inference request for this model. `header` is the length of its JSON, where the binary extension says it.
///
/// # Errors
/// What is no such request, with the field.
pub(super) fn request(
    model: &str,
    version: &str,
    body: &Bytes,
    header: Option<usize>,
) -> Result<InferRequest, Refused> {
    let split = header.unwrap_or(body.len());
    if split > body.len() {
        let problem = format!("Inference-Header-Content-Length is {split}, but the body has {} bytes", body.len());
        return Err(Refused(problem));
    }
    let json: Body = serde_json::from_slice(&body[..split])
        .map_err(|error| Refused(format!("the body is no inference request: {error}")))?;
    if json.inputs.len().max(json.outputs.len()) > Interface::MAX_TENSORS {
        return Err(Refused(format!("more than {} inputs or outputs", Interface::MAX_TENSORS)));
    }
    let number = |name: &str| match json.parameters.get(name) {
        None => Ok(0),
        Some(value) => {
            value.as_u64().ok_or_else(|| Refused(format!("parameter {name:?}: must be an integer of at least 0")))
        }
    };
    let (timeout, priority) = (number("timeout")?, number("priority")?);
    let all_binary = flag(&json.parameters, "binary_data_output")?;
    let mut rest = body.slice(split..);
    let mut inputs = Vec::with_capacity(json.inputs.len());
    for tensor in json.inputs {
        inputs.push(input(tensor, &mut rest)?);
    }
    if !rest.is_empty() {
        return Err(Refused(format!("{} bytes follow the last input; state binary_data_size for each", rest.len())));
    }
    let mut outputs = Vec::with_capacity(json.outputs.len());
    for output in json.outputs {
        no_shared_memory(&output.parameters, "output", &output.name)?;
        let classification = output
            .parameters
            .get("classification")
            .map(|k| k.as_u64().and_then(|k| usize::try_from(k).ok()).unwrap_or(0));
        let binary = flag(&output.parameters, "binary_data")?.or(all_binary);
        outputs.push(RequestedOutput { name: output.name, classification, binary });
    }
    Ok(InferRequest {
        model: model.to_owned(),
        version: version.to_owned(),
        id: json.id,
        caller: None,
        call: None,
        timeout: Some(timeout).filter(|us| *us > 0).map(Duration::from_micros),
        priority,
        inputs,
        outputs,
    })
}

/// Whether a request asks for all outputs as bytes: for those that it does not name.
pub(super) fn wants_binary(body: &Bytes, header: Option<usize>) -> bool {
    #[derive(Deserialize)]
    struct Parameters {
        #[serde(default)]
        parameters: serde_json::Map<String, Value>,
    }
    let json = body.get(..header.unwrap_or(body.len())).unwrap_or_default();
    serde_json::from_slice::<Parameters>(json)
        .is_ok_and(|body| body.parameters.get("binary_data_output") == Some(&Value::Bool(true)))
}

fn input(tensor: Input, rest: &mut Bytes) -> Result<InputTensor, Refused> {
    no_shared_memory(&tensor.parameters, "input", &tensor.name)?;
    let refused = |problem: String| Refused(format!("input {:?}: {problem}", shorten(&tensor.name)));
    let data = match (tensor.parameters.get("binary_data_size"), tensor.data) {
        (Some(_), Some(_)) => {
            InputData::Wrong("its data came both in data and as binary data; send one of them".to_owned())
        }
        (Some(size), None) => {
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
            let size = size.ok_or_else(|| refused("binary_data_size must be an integer of at least 0".to_owned()))?;
            if size > rest.len() {
                return Err(refused(format!("expected {size} bytes of binary data, but {} came", rest.len())));
            }
            InputData::Raw(rest.split_to(size))
        }
        (None, None) => InputData::Missing,
        (None, Some(Flat(numbers))) => match ElementType::from_name(&tensor.datatype) {
            // The datatype itself is refused by the checks.
            None => InputData::Missing,
            Some(element) => match numbers.and_then(|numbers| bytes(&numbers, element)) {
                Ok(bytes) => InputData::Values(bytes, "data"),
                Err(problem) => InputData::Wrong(problem),
            },
        },
    };
    Ok(InputTensor { name: tensor.name, datatype: tensor.datatype, shape: tensor.shape, data })
}

fn no_shared_memory(parameters: &serde_json::Map<String, Value>, role: &str, name: &str) -> Result<(), Refused> {
    if !parameters.contains_key("shared_memory_region") {
        return Ok(());
    }
    Err(Refused(format!("{role} {:?}: shared memory is not offered; send the data in the body", shorten(name))))
}

fn flag(parameters: &serde_json::Map<String, Value>, name: &str) -> Result<Option<bool>, Refused> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(Refused(format!("parameter {name:?}: must be true or false"))),
    }
}

/// One JSON number, or a truth value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
}

/// Numbers of nested lists, row-major; a sentence where there is anything else.
struct Flat(Result<Vec<Number>, String>);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Flat, D::Error> {
        let mut numbers = Ok(Vec::new());
        deserializer.deserialize_any(Flatten(&mut numbers))?;
        Ok(Flat(numbers))
    }
}

/// Collects numbers at any depth; the parser bounds the depth.
struct Flatten<'a>(&'a mut Result<Vec<Number>, String>);

impl Flatten<'_> {
    fn push(self, number: Number) {
        if let Ok(numbers) = self.0 {
            numbers.push(number);
        }
    }

    fn wrong(self, what: &str) {
        *self.0 = Err(format!("expected numbers in data, but {what} came"));
    }
}

impl<'de> Visitor<'de> for Flatten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers in lists")
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.push(Number::Signed(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.push(Number::Unsigned(value));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.push(Number::Float(value));
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.push(Number::Bool(value));
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.wrong("text");
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.wrong("null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Element(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

/// An element of a list: a number, or another list.
struct Element<'a>(&'a mut Result<Vec<Number>, String>);

impl<'de> serde::de::DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Flatten(self.0))
    }
}

fn bytes(numbers: &[Number], element: ElementType) -> Result<Bytes, String> {
    fn put<const N: usize>(
        numbers: &[Number],
        element: ElementType,
        to: impl Fn(Number) -> Option<[u8; N]>,
    ) -> Result<Bytes, String> {
        let mut bytes = BytesMut::with_capacity(numbers.len().saturating_mul(N));
        for number in numbers {
            let value =
                to(*number).ok_or_else(|| format!("expected values of {}, but {number} came", element.name()))?;
            bytes.extend_from_slice(&value);
        }
        Ok(bytes.freeze())
    }
    fn integer<T: TryFrom<i64> + TryFrom<u64>>(number: Number) -> Option<T> {
        match number {
            Number::Signed(value) => T::try_from(value).ok(),
            Number::Unsigned(value) => T::try_from(value).ok(),
            Number::Float(_) | Number::Bool(_) => None,
        }
    }
    let float = |number: Number| match number {
        Number::Signed(value) => Some(value as f64),
        Number::Unsigned(value) => Some(value as f64),
        Number::Float(value) => Some(value),
        Number::Bool(_) => None,
    };
    let boolean = |number: Number| match number {
        Number::Bool(value) => Some([u8::from(value)]),
        Number::Unsigned(value @ (0 | 1)) => Some([value as u8]),
        _ => None,
    };
    match element {
        ElementType::Bool => put(numbers, element, boolean),
        ElementType::Int8 => put(numbers, element, |n| integer::<i8>(n).map(i8::to_le_bytes)),
        ElementType::Int16 => put(numbers, element, |n| integer::<i16>(n).map(i16::to_le_bytes)),
        ElementType::Int32 => put(numbers, element, |n| integer::<i32>(n).map(i32::to_le_bytes)),
        ElementType::Int64 => put(numbers, element, |n| integer::<i64>(n).map(i64::to_le_bytes)),
        ElementType::Uint8 => put(numbers, element, |n| integer::<u8>(n).map(u8::to_le_bytes)),
        ElementType::Uint16 => put(numbers, element, |n| integer::<u16>(n).map(u16::to_le_bytes)),
        ElementType::Uint32 => put(numbers, element, |n| integer::<u32>(n).map(u32::to_le_bytes)),
        ElementType::Uint64 => put(numbers, element, |n| integer::<u64>(n).map(u64::to_le_bytes)),
        ElementType::Fp16 => put(numbers, element, |n| float(n).map(|v| half::f16::from_f64(v).to_le_bytes())),
        ElementType::Bf16 => put(numbers, element, |n| float(n).map(|v| half::bf16::from_f64(v).to_le_bytes())),
        ElementType::Fp32 => put(numbers, element, |n| float(n).map(|v| (v as f32).to_le_bytes())),
        ElementType::Fp64 => put(numbers, element, |n| float(n).map(f64::to_le_bytes)),
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Signed(value) => value.fmt(f),
            Number::Unsigned(value) => value.fmt(f),
            Number::Float(value) => value.fmt(f),
            Number::Bool(value) => value.fmt(f),
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
