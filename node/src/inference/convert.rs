//! gRPC messages to requests, and answers to gRPC messages.
//! The checks are in `request`; the same for HTTP is in `rest`.

use std::collections::BTreeMap;
use std::time::Duration;

use fedge_models::{ElementType, Interface};
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use fedge_proto::inference::model_infer_response::InferOutputTensor;
use fedge_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use prost::bytes::{Bytes, BytesMut};

use super::answer::{Answer, Parameter};
use super::request::{InferRequest, InputData, InputTensor, Refused, RequestedOutput, shorten};

/// A message as a request. Refused: more tensors than models have, parameters of a wrong type, and shared memory.
pub fn request(message: ModelInferRequest) -> Result<InferRequest, Refused> {
    let (sent, raws) = (message.inputs.len(), message.raw_input_contents.len());
    if sent.max(raws).max(message.outputs.len()) > Interface::MAX_TENSORS {
        return Err(Refused(format!(
            "more than {} inputs or outputs came; no model has as many",
            Interface::MAX_TENSORS
        )));
    }
    let mut raw = message.raw_input_contents.into_iter();
    let mut inputs = Vec::with_capacity(sent);
    for tensor in message.inputs {
        no_shared_memory(&tensor.parameters, "input", &tensor.name)?;
        inputs.push(input(tensor, raw.next(), (sent, raws)));
    }
    let mut outputs = Vec::with_capacity(message.outputs.len());
    for output in message.outputs {
        no_shared_memory(&output.parameters, "output", &output.name)?;
        let classification = output
            .parameters
            .get("classification")
            .map(|parameter| integer(parameter).and_then(|k| usize::try_from(k).ok()).unwrap_or(0));
        outputs.push(RequestedOutput { name: output.name, classification, binary: None });
    }
    let number = |name: &str| match message.parameters.get(name) {
        None => Ok(0),
        Some(parameter) => {
            integer(parameter).ok_or_else(|| Refused(format!("parameter {name:?}: must be an integer of at least 0")))
        }
    };
    Ok(InferRequest {
        timeout: Some(number("timeout")?).filter(|us| *us > 0).map(Duration::from_micros),
        priority: number("priority")?,
        model: message.model_name,
        version: message.model_version,
        id: message.id,
        caller: None,
        call: None,
        inputs,
        outputs,
    })
}

/// An answer as a message: always raw.
pub fn response(answer: Answer) -> ModelInferResponse {
    let parameters = answer.parameters().into_iter().map(|(name, value)| {
        let choice = match value {
            Parameter::Text(text) => ParameterChoice::StringParam(text),
            Parameter::Integer(number) => ParameterChoice::Int64Param(number),
        };
        (name.to_owned(), InferParameter { parameter_choice: Some(choice) })
    });
    let parameters = parameters.collect();
    let manifest = answer.serving.manifest();
    let (outputs, raw_output_contents) = answer
        .outputs
        .into_iter()
        .map(|output| {
            let tensor = InferOutputTensor {
                name: output.name,
                datatype: output.datatype.to_owned(),
                shape: output.shape,
                ..InferOutputTensor::default()
            };
            (tensor, output.data)
        })
        .unzip();
    ModelInferResponse {
        model_name: manifest.name.clone(),
        model_version: manifest.number.to_string(),
        id: answer.id,
        parameters,
        outputs,
        raw_output_contents,
    }
}

fn no_shared_memory(parameters: &BTreeMap<String, InferParameter>, role: &str, name: &str) -> Result<(), Refused> {
    if !parameters.contains_key("shared_memory_region") {
        return Ok(());
    }
    Err(Refused(format!("{role} {:?}: shared memory is not offered; send the data in the message", shorten(name))))
}

fn integer(parameter: &InferParameter) -> Option<u64> {
    match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(value)) => u64::try_from(value).ok(),
        Some(ParameterChoice::Uint64Param(value)) => Some(value),
        _ => None,
    }
}

fn input(tensor: InferInputTensor, raw: Option<Bytes>, (sent, raws): (usize, usize)) -> InputTensor {
    let typed = tensor.contents.filter(|contents| *contents != InferTensorContents::default());
    let data = match (raw, typed) {
        _ if raws != 0 && raws != sent => {
            InputData::Wrong(format!("expected one entry of raw_input_contents an input, so {sent}, but {raws} came"))
        }
        (Some(_), Some(_)) => {
            InputData::Wrong("its data came both in raw_input_contents and in contents; send one of them".to_owned())
        }
        (Some(raw), None) => InputData::Raw(raw),
        (None, None) => InputData::Missing,
        (None, Some(contents)) => match ElementType::from_name(&tensor.datatype) {
            // The datatype itself is refused by the checks.
            None => InputData::Missing,
            Some(element) => match values(contents, element) {
                Ok((bytes, field)) => InputData::Values(bytes, field),
                Err(problem) => InputData::Wrong(problem),
            },
        },
    };
    InputTensor { name: tensor.name, datatype: tensor.datatype, shape: tensor.shape, data }
}

/// The typed values as little-endian bytes, and the name of the field that has them.
fn values(mut contents: InferTensorContents, element: ElementType) -> Result<(Bytes, &'static str), String> {
    fn bytes<T, const N: usize>(values: Vec<T>, to: impl Fn(T) -> [u8; N]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(values.len().saturating_mul(N));
        values.into_iter().for_each(|value| bytes.extend_from_slice(&to(value)));
        bytes.freeze()
    }
    fn narrow<T: Copy + std::fmt::Display, S: TryFrom<T>>(
        values: Vec<T>,
        element: ElementType,
    ) -> Result<Vec<S>, String> {
        let narrowed = |value: T| {
            S::try_from(value).map_err(|_| format!("expected values of {}, but {value} came", element.name()))
        };
        values.into_iter().map(narrowed).collect()
    }
    use std::mem::take;
    let (bytes, field) = match element {
        ElementType::Bool => (bytes(take(&mut contents.bool_contents), |v| [u8::from(v)]), "bool_contents"),
        ElementType::Int8 => {
            (bytes(narrow::<_, i8>(take(&mut contents.int_contents), element)?, i8::to_le_bytes), "int_contents")
        }
        ElementType::Int16 => {
            (bytes(narrow::<_, i16>(take(&mut contents.int_contents), element)?, i16::to_le_bytes), "int_contents")
        }
        ElementType::Int32 => (bytes(take(&mut contents.int_contents), i32::to_le_bytes), "int_contents"),
        ElementType::Int64 => (bytes(take(&mut contents.int64_contents), i64::to_le_bytes), "int64_contents"),
        ElementType::Uint8 => {
            (bytes(narrow::<_, u8>(take(&mut contents.uint_contents), element)?, u8::to_le_bytes), "uint_contents")
        }
        ElementType::Uint16 => {
            (bytes(narrow::<_, u16>(take(&mut contents.uint_contents), element)?, u16::to_le_bytes), "uint_contents")
        }
        ElementType::Uint32 => (bytes(take(&mut contents.uint_contents), u32::to_le_bytes), "uint_contents"),
        ElementType::Uint64 => (bytes(take(&mut contents.uint64_contents), u64::to_le_bytes), "uint64_contents"),
        ElementType::Fp32 => (bytes(take(&mut contents.fp32_contents), f32::to_le_bytes), "fp32_contents"),
        ElementType::Fp64 => (bytes(take(&mut contents.fp64_contents), f64::to_le_bytes), "fp64_contents"),
        ElementType::Fp16 | ElementType::Bf16 => {
            return Err(format!("{} travels in raw_input_contents alone, but contents has values", element.name()));
        }
    };
    if contents != InferTensorContents::default() {
        return Err(format!(
            "expected its values in {field} ({}), but another field of contents has some",
            element.name()
        ));
    }
    Ok((bytes, field))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::super::test_fixtures::fuzz_cases;
    use super::*;

    #[test]
    fn small_integers_are_taken_from_their_field_and_checked() {
        let contents = InferTensorContents { int_contents: vec![-128, 127], ..InferTensorContents::default() };
        let (bytes, field) = values(contents.clone(), ElementType::Int8).unwrap();
        assert_eq!((&bytes[..], field), (&[0x80, 0x7f][..], "int_contents"));
        let error = values(contents, ElementType::Uint8).unwrap_err();
        assert!(error.contains("another field"), "{error}");
        let large = InferTensorContents { int_contents: vec![300], ..InferTensorContents::default() };
        assert!(values(large, ElementType::Int8).unwrap_err().contains("300"));
        let half = InferTensorContents { fp32_contents: vec![1.0], ..InferTensorContents::default() };
        assert!(values(half, ElementType::Fp16).unwrap_err().contains("raw_input_contents"));
    }

    #[test]
    fn parameters_of_another_type_and_shared_memory_are_refused() {
        let with = |name: &str, choice| ModelInferRequest {
            parameters: BTreeMap::from([(name.to_owned(), InferParameter { parameter_choice: Some(choice) })]),
            ..ModelInferRequest::default()
        };
        assert_eq!(
            request(with("timeout", ParameterChoice::Int64Param(5))).unwrap().timeout,
            Some(Duration::from_micros(5))
        );
        assert_eq!(request(with("priority", ParameterChoice::Uint64Param(2))).unwrap().priority, 2);
        for choice in [ParameterChoice::Int64Param(-1), ParameterChoice::StringParam("1".to_owned())] {
            assert!(request(with("timeout", choice)).unwrap_err().to_string().contains("timeout"));
        }
        let region = InferParameter { parameter_choice: Some(ParameterChoice::StringParam("r".to_owned())) };
        let tensor = InferInputTensor {
            parameters: BTreeMap::from([("shared_memory_region".to_owned(), region)]),
            ..InferInputTensor::default()
        };
        let message = ModelInferRequest { inputs: vec![tensor], ..ModelInferRequest::default() };
        assert!(request(message).unwrap_err().to_string().contains("shared memory"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(fuzz_cases(2000)))]
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = ModelInferRequest::decode(&bytes[..]) {
                let _ = request(message);
            }
        }
    }
}
