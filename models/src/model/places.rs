//! Where a model's exchanged values lie in its file, found by walking protobuf's wire format.
//! What is read from there or written there is the matter of `splice` and `stream`.

use std::ops::Range;
use std::sync::Arc;

use crate::wire::{Field, Value, WireError, fields};
use crate::{Exchange, Layout, ModelError};

/// Field numbers of onnx.proto.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_FLOAT_DATA: u32 = 4;
const TENSOR_NAME: u32 = 8;
const TENSOR_RAW_DATA: u32 = 9;

/// Where a model's exchanged values lie in its file: enough to read and to rewrite them without the model in memory.
/// Cheap to clone: the parts are shared. Versions of one lineage have equal places, because they differ in values alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    layout: Arc<Layout>,
    runs: Arc<[Place]>,
    file_bytes: u64,
}

/// One run of values without a gap, within one tensor: all of its raw data, or a packed piece of its float data, or a
/// single value where those are not packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which values these are, in the layout's flat order; never empty.
    pub flat: Range<usize>,
    /// Where their little-endian float32 lie in the file, 4 bytes a value.
    pub bytes: Range<u64>,
}

impl Places {
    /// Finds the places in a checked file with this layout; refused where the file stores other values than the layout
    /// asks for.
    pub(crate) fn find(bytes: &[u8], layout: &Arc<Layout>) -> Result<Places, ModelError> {
        let not_onnx = |error: WireError| ModelError::NotOnnx { bytes: bytes.len(), problem: error.to_string() };
        let mut runs = Vec::with_capacity(layout.parameters().len());
        let mut next = 0;
        for tensor in initializers(bytes).map_err(not_onnx)? {
            let slots = slots(bytes, tensor).map_err(not_onnx)?;
            let Some(flat) = layout.range(&slots.name) else { continue };
            let stored: usize = slots.ranges.iter().map(Range::len).sum();
            // The layout is in the file's order, so that flat order and file order are one.
            if flat.start != next || stored != flat.len() * 4 || slots.ranges.iter().any(|range| range.len() % 4 != 0) {
                return Err(ModelError::tensor(
                    &slots.name,
                    "does not store its values as float32; export the model again",
                ));
            }
            for range in slots.ranges.into_iter().filter(|range| !range.is_empty()) {
                let end = next + range.len() / 4;
                runs.push(Place { flat: next..end, bytes: range.start as u64..range.end as u64 });
                next = end;
            }
        }
        if next != layout.exchanged_len() {
            return Err(ModelError::Weights {
                problem: format!(
                    "are {} values by the layout, but the file has places for {next}",
                    layout.exchanged_len()
                ),
            });
        }
        Ok(Places { layout: Arc::clone(layout), runs: runs.into(), file_bytes: bytes.len() as u64 })
    }

    /// Of these places, those of the parameters that travel in a task; the file is the same.
    ///
    /// # Errors
    /// As [`Layout::exchanging`].
    pub fn exchanging(&self, exchange: &Exchange) -> Result<Places, ModelError> {
        let layout = self.layout.exchanging(exchange)?;
        let (mut next, mut runs) = (0, Vec::new());
        for kept in self.layout.ranges_of(&layout) {
            // Runs lie within one parameter each.
            for run in self.runs.iter().filter(|run| kept.start <= run.flat.start && run.flat.end <= kept.end) {
                runs.push(Place { flat: next..next + run.flat.len(), bytes: run.bytes.clone() });
                next += run.flat.len();
            }
        }
        Ok(Places { layout: Arc::new(layout), runs: runs.into(), file_bytes: self.file_bytes })
    }

    /// Names, shapes and classes of the values.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The runs, in file order, which is flat order; together they hold each exchanged value once.
    pub fn runs(&self) -> &[Place] {
        &self.runs
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing::{self, DIGITS, FloatData};
    use crate::{Model, ParameterClass};

    #[test]
    fn the_places_hold_each_exchanged_value_once_and_in_order() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let (places, weights) = (model.places(), model.weights());
        assert_eq!((places.file_bytes(), places.runs().len()), (DIGITS.len() as u64, 8));
        let (mut flat, mut byte) = (0, 0);
        for place in places.runs() {
            assert!(place.flat.start == flat && place.bytes.start > byte, "{place:?}");
            (flat, byte) = (place.flat.end, place.bytes.end);
            let stored = &DIGITS[place.bytes.start as usize..place.bytes.end as usize];
            let values: Vec<u8> = weights.values()[place.flat.clone()].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(stored, values);
        }
        assert_eq!(flat, 11_482);
    }

    #[test]
    fn the_places_of_what_travels_hold_its_values_and_the_rest_of_the_file_stays() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let trained = crate::Selection::Named(["*.bias".to_owned()].into());
        let part = model.places().exchanging(&Exchange { trained, statistics: true, local: Arc::default() }).unwrap();
        assert_eq!((part.runs().len(), part.file_bytes()), (4, DIGITS.len() as u64));
        let mut seen = Vec::new();
        let mut file = Vec::new();
        let zero = |_: usize, values: &[f32], next: &mut Vec<f32>| {
            seen.extend_from_slice(values);
            next.resize(values.len(), 0.0);
            Ok::<_, ModelError>(())
        };
        part.splice(DIGITS, &mut file, zero).unwrap();
        let mut expected = model.weights().into_values();
        model.layout().gather(part.layout(), &mut expected);
        assert_eq!(seen, expected);
        let mut values = model.weights().into_values();
        model.layout().scatter(part.layout(), &vec![0.0; expected.len()], &mut values);
        assert_eq!(Model::from_bytes(file).unwrap().weights().values(), values);
    }

    #[test]
    fn packed_and_single_float_data_have_a_place_a_run() {
        for (kind, lengths) in [(FloatData::Packed, &[2, 4, 3][..]), (FloatData::Single, &[1, 1, 1, 1, 1, 1, 3])] {
            let model = Model::from_bytes(testing::linear_with_float_data(kind)).unwrap();
            let found: Vec<usize> = model.places().runs().iter().map(|place| place.flat.len()).collect();
            assert_eq!(found, lengths);
        }
    }

    #[test]
    fn constants_and_other_types_have_no_place() {
        let mut graph = testing::linear();
        graph.node[0].output[0] = "h".to_owned();
        graph.node.push(testing::node("Clip", &["h", "low"], &["y"]));
        graph.initializer.insert(1, testing::floats("low", &[], &[0.0]));
        let model = Model::from_bytes(testing::bytes(graph)).unwrap();
        assert_eq!(model.layout().parameter("low").unwrap().class, ParameterClass::Constant);
        let found: Vec<Range<usize>> = model.places().runs().iter().map(|place| place.flat.clone()).collect();
        assert_eq!(found, [0..6, 6..9]);
    }
}
