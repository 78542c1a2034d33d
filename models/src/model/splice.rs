//! Writes new weights into an ONNX file's own bytes: only the values of exchanged initializers change.
//! The walk is over protobuf's wire format, because decoding and encoding again would drop fields that IR 8 lacks.

use std::ops::Range;

use crate::wire::{Field, Value, WireError, fields};
use crate::{ModelError, Weights};

/// Field numbers of onnx.proto.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_FLOAT_DATA: u32 = 4;
const TENSOR_NAME: u32 = 8;
const TENSOR_RAW_DATA: u32 = 9;

/// The bytes with the values of `weights` in place of the old ones; same length, all other bytes equal.
/// `bytes` is a checked file with the layout of `weights`.
pub(crate) fn splice(bytes: &[u8], weights: &Weights) -> Result<Vec<u8>, ModelError> {
    let mut spliced = bytes.to_vec();
    let mut written = 0;
    for tensor in initializers(bytes).map_err(|error| not_onnx(bytes, &error))? {
        let slots = slots(bytes, tensor).map_err(|error| not_onnx(bytes, &error))?;
        let Some(values) = weights.tensor(&slots.name) else { continue };
        if slots.ranges.iter().map(Range::len).sum::<usize>() != values.len() * 4 {
            return Err(ModelError::tensor(
                &slots.name,
                "does not store its values as float32; export the model again",
            ));
        }
        let mut values = values.iter();
        for range in slots.ranges {
            let target = spliced.get_mut(range).unwrap_or_default();
            for (old, new) in target.as_chunks_mut::<4>().0.iter_mut().zip(&mut values) {
                *old = new.to_le_bytes();
                written += 1;
            }
        }
    }
    if written != weights.values().len() {
        return Err(ModelError::Weights {
            problem: format!("hold {} values, but the file has places for {written}", weights.values().len()),
        });
    }
    Ok(spliced)
}

/// Where the initializers' messages lie.
pub(crate) fn initializers(bytes: &[u8]) -> Result<Vec<Range<usize>>, WireError> {
    let mut found = Vec::new();
    for field in fields(bytes, 0..bytes.len()) {
        let field = field?;
        if is_message(&field, MODEL_GRAPH) {
            for field in fields(bytes, field.payload) {
                let field = field?;
                if is_message(&field, GRAPH_INITIALIZER) {
                    found.push(field.payload);
                }
            }
        }
    }
    Ok(found)
}

/// A tensor's name and where its float32 values lie, in order: one range of raw or packed values, or four bytes each.
struct Slots {
    name: String,
    ranges: Vec<Range<usize>>,
}

fn slots(bytes: &[u8], tensor: Range<usize>) -> Result<Slots, WireError> {
    let mut slots = Slots { name: String::new(), ranges: Vec::new() };
    for field in fields(bytes, tensor) {
        let field = field?;
        match (field.number, &field.value) {
            (TENSOR_NAME, Value::Bytes) => {
                slots.name = String::from_utf8_lossy(bytes.get(field.payload).unwrap_or_default()).into_owned();
            }
            (TENSOR_RAW_DATA, Value::Bytes) | (TENSOR_FLOAT_DATA, Value::Bytes | Value::Fixed32) => {
                slots.ranges.push(field.payload);
            }
            _ => {}
        }
    }
    Ok(slots)
}

fn is_message(field: &Field, number: u32) -> bool {
    field.number == number && field.value == Value::Bytes
}

fn not_onnx(bytes: &[u8], error: &WireError) -> ModelError {
    ModelError::NotOnnx { bytes: bytes.len(), problem: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{self, DIGITS};
    use crate::wire::put_bytes;
    use crate::{Model, Weights, pb};
    use prost::Message;

    fn shifted(model: &Model) -> Weights {
        let values = model.weights().values().iter().map(|value| value * 0.5 + 0.25).collect();
        Weights::new(model.layout().clone(), values).unwrap()
    }

    #[test]
    fn only_the_values_change_and_they_are_read_again() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let weights = shifted(&model);
        let trained = model.with_weights(&weights).unwrap();
        assert_eq!(trained.weights(), weights);
        assert_eq!(trained.bytes().len(), DIGITS.len());
        let changed = trained.bytes().iter().zip(DIGITS).filter(|(new, old)| new != old).count();
        assert!(changed > 11_482 && changed <= 4 * 11_482, "{changed} bytes changed");
        // With the old weights the file is the old one: no other byte moved.
        assert_eq!(&**trained.with_weights(&model.weights()).unwrap().bytes(), DIGITS);
        let mut old = pb::ModelProto::decode(DIGITS).unwrap();
        let mut new = pb::ModelProto::decode(&**trained.bytes()).unwrap();
        for file in [&mut old, &mut new] {
            for tensor in &mut file.graph.as_mut().unwrap().initializer {
                if model.layout().range(&tensor.name).is_some() {
                    tensor.raw_data.clear();
                }
            }
        }
        assert_eq!(old, new);
    }

    #[test]
    fn float_data_is_spliced_packed_and_unpacked() {
        for packed in [true, false] {
            let mut tensor = testing::floats("w", &[2, 3], &[]).encode_to_vec();
            let values: Vec<u8> = (1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
            if packed {
                put_bytes(&mut tensor, 4, &values[..8]);
                put_bytes(&mut tensor, 4, &values[8..]);
            } else {
                for value in values.chunks(4) {
                    tensor.push(4 << 3 | 5);
                    tensor.extend_from_slice(value);
                }
            }
            let mut graph = testing::linear();
            graph.initializer.remove(0);
            let mut graph = graph.encode_to_vec();
            put_bytes(&mut graph, 5, &tensor);
            let mut file = testing::model(pb::GraphProto::default(), 17);
            file.graph = None;
            let mut file = file.encode_to_vec();
            put_bytes(&mut file, 7, &graph);
            let model = Model::from_bytes(file).unwrap();
            assert_eq!(model.weights().tensor("w").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let weights = shifted(&model);
            assert_eq!(model.with_weights(&weights).unwrap().weights(), weights, "packed: {packed}");
        }
    }

    #[test]
    fn fields_that_our_protobuf_types_lack_survive() {
        // Field 9 of a node is IR 10's metadata; field 9999 is nobody's.
        let mut graph = testing::linear();
        let node = [graph.node.remove(0).encode_to_vec(), b"\x4a\x06\x0a\x01k\x12\x01v".to_vec()].concat();
        let mut graph = graph.encode_to_vec();
        put_bytes(&mut graph, 1, &node);
        let mut file = Vec::new();
        put_bytes(&mut file, 9999, b"from the future");
        put_bytes(&mut file, 7, &graph);
        put_bytes(&mut file, 8, &pb::OperatorSetIdProto { domain: String::new(), version: 17 }.encode_to_vec());
        let model = Model::from_bytes(file.clone()).unwrap();
        let trained = model.with_weights(&shifted(&model)).unwrap();
        let at = trained.bytes().windows(15).position(|part| part == b"from the future");
        assert!(at.is_some() && trained.bytes().windows(8).any(|part| part == b"\x4a\x06\x0a\x01k\x12\x01v"));
        assert_eq!(&**trained.with_weights(&model.weights()).unwrap().bytes(), file.as_slice());
    }

    #[test]
    fn the_answers_are_those_of_the_new_weights() {
        let model = Model::from_bytes(testing::bytes(testing::linear())).unwrap();
        let weights =
            Weights::new(model.layout().clone(), vec![1.0, 0.0, -1.0, 0.0, 2.0, 0.0, 10.0, 20.0, 30.0]).unwrap();
        let trained = model.with_weights(&weights).unwrap();
        let runner = crate::float::FloatRunner::new(&trained).unwrap();
        let input = ndarray::arr2(&[[1.0f32, 2.0], [3.0, -1.0]]).into_dyn();
        let output = runner.run(input.view()).unwrap();
        assert_eq!(output, ndarray::arr2(&[[11.0f32, 24.0, 29.0], [13.0, 18.0, 27.0]]).into_dyn());
    }
}
