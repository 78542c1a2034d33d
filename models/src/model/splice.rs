//! Writes new weights into an ONNX file's own bytes: only the values of exchanged initializers change.
//! The file is not encoded again, because that would drop fields that IR 8 lacks; where the values lie, `places` says.

use super::Places;
use crate::{ModelError, Weights};

/// The bytes with the values of `weights` in place of the old ones; same length, all other bytes equal.
/// `bytes` is the file of the places, and the weights are of their layout.
pub(crate) fn splice(bytes: &[u8], places: &Places, weights: &Weights) -> Result<Vec<u8>, ModelError> {
    let foreign =
        || ModelError::Weights { problem: "do not fit the places in the file; train from this very model".to_owned() };
    let mut spliced = bytes.to_vec();
    for place in places.runs() {
        let values = weights.values().get(place.flat.clone()).ok_or_else(foreign)?;
        // A file is at most 2 GiB, so that its offsets fit.
        let target = spliced.get_mut(place.bytes.start as usize..place.bytes.end as usize).ok_or_else(foreign)?;
        for (old, new) in target.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *old = new.to_le_bytes();
        }
    }
    Ok(spliced)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{self, DIGITS, FloatData};
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
        for kind in [FloatData::Packed, FloatData::Single] {
            let file = testing::linear_with_float_data(kind);
            let model = Model::from_bytes(file).unwrap();
            assert_eq!(model.weights().tensor("w").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let weights = shifted(&model);
            assert_eq!(model.with_weights(&weights).unwrap().weights(), weights, "{kind:?}");
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
