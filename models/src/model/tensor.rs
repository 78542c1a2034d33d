//! Initializers and tensor attributes: their shapes and bytes checked, their values read.
//! Classes are decided in `layout/classify.rs`; writing values back is `splice`.

use crate::layout::{ParameterSpec, classify};
use crate::pb::{TensorProto, tensor_proto::DataLocation, tensor_proto::DataType};
use crate::{ElementType, Layout, ModelError, ParameterClass, pb};

/// Highest rank of a tensor; ONNX Runtime and tract stay far below.
const MAX_RANK: usize = 16;

/// Checks one tensor: known type, sane shape, and exactly as many values as the shape says.
pub(crate) fn check(tensor: &TensorProto) -> Result<(), ModelError> {
    let refused = |problem: String| Err(ModelError::tensor(&tensor.name, problem));
    if is_external(tensor) {
        return refused(
            "keeps its values in another file; open the model from its path, so that they are folded in".to_owned(),
        );
    }
    if tensor.segment.is_some() {
        return refused("is split into segments, which no runtime reads; export it whole".to_owned());
    }
    let len = shape(tensor)?.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let Some(element) = ElementType::from_onnx(tensor.data_type) else {
        return refused(format!("has the unsupported element type {}", type_name(tensor.data_type)));
    };
    let Some(expected) = len.and_then(|len| len.checked_mul(element.size())) else {
        return refused(format!("has the shape {:?}, whose size overflows", tensor.dims));
    };
    let found = stored_bytes(tensor, element);
    if found != Some(expected) {
        return refused(format!(
            "has the shape {:?} of {}, which takes {expected} bytes, but {} are stored; export the model again",
            tensor.dims,
            element.name(),
            found.map_or_else(|| "values of several kinds".to_owned(), |found| format!("{found} bytes")),
        ));
    }
    Ok(())
}

/// Dimensions of a tensor; negative ones and too many are refused.
pub(crate) fn shape(tensor: &TensorProto) -> Result<Vec<usize>, ModelError> {
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    match dims {
        Some(dims) if dims.len() <= MAX_RANK => Ok(dims),
        _ => Err(ModelError::tensor(
            &tensor.name,
            format!("has the impossible shape {:.200}", format!("{:?}", tensor.dims)),
        )),
    }
}

/// Whether the values lie outside the ONNX file.
pub(crate) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32) || !tensor.external_data.is_empty()
}

/// Values of a checked float32 tensor, row-major; `None` for another element type.
pub(crate) fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return Some(tensor.float_data.clone());
    }
    let (chunks, _) = tensor.raw_data.as_chunks::<4>();
    Some(chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// The first value of a checked float32 tensor.
pub(crate) fn first_float(tensor: &TensorProto) -> Option<f32> {
    let raw = tensor.raw_data.first_chunk::<4>().map(|bytes| f32::from_le_bytes(*bytes));
    raw.or_else(|| tensor.float_data.first().copied())
}

/// Names, shapes and classes of a graph's float32 initializers, whose tensors were checked.
pub(crate) fn layout(graph: &pb::GraphProto) -> Result<Layout, ModelError> {
    let floats = || graph.initializer.iter().filter(|tensor| tensor.data_type == DataType::Float as i32);
    let rank = |tensor: &TensorProto| if is_literal(tensor) { 0 } else { tensor.dims.len() };
    let ranks: Vec<(&str, usize)> = floats().map(|tensor| (tensor.name.as_str(), rank(tensor))).collect();
    let classes = classify(graph, &ranks);
    let mut parameters = Vec::with_capacity(ranks.len());
    for tensor in floats() {
        parameters.push(ParameterSpec {
            name: tensor.name.clone(),
            shape: shape(tensor)?,
            class: classes.get(tensor.name.as_str()).copied().unwrap_or(ParameterClass::Constant),
        });
    }
    Layout::new(parameters)
}

/// Whether a tensor is a number that PyTorch's newer exporter wrote down, such as the scale of an attention: one element,
/// under a name of its own making (`val_77`). Such a number counts as a scalar: it is no parameter.
fn is_literal(tensor: &TensorProto) -> bool {
    let digits = tensor.name.strip_prefix("val_");
    let made = digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    made && tensor.dims.iter().all(|&dim| dim == 1)
}

/// Refuses NaN anywhere and infinity in an exchanged parameter. An infinite constant is legal: a Clip without a bound.
pub(crate) fn check_finite(graph: &pb::GraphProto, layout: &Layout) -> Result<(), ModelError> {
    for tensor in &graph.initializer {
        let exchanged = layout.range(&tensor.name).is_some();
        let bad = |value: f32| value.is_nan() || (exchanged && value.is_infinite());
        // Looked at where they lie: a copy of the largest tensor would raise the most memory that loading takes.
        let found = match tensor.raw_data.as_chunks::<4>().0 {
            _ if tensor.data_type != DataType::Float as i32 => None,
            [] => tensor.float_data.iter().copied().enumerate().find(|(_, value)| bad(*value)),
            raw => {
                let mut values = raw.iter().map(|bytes| f32::from_le_bytes(*bytes)).enumerate();
                values.find(|(_, value)| bad(*value))
            }
        };
        if let Some((index, value)) = found {
            return Err(ModelError::tensor(
                &tensor.name,
                format!("element {index} is {value}; a model that diverged cannot be used, so export a good one"),
            ));
        }
    }
    Ok(())
}

/// Takes the values of exchanged parameters out of a graph.
pub(crate) fn strip(graph: &mut pb::GraphProto, layout: &Layout) {
    for tensor in graph.initializer.iter_mut().filter(|tensor| layout.range(&tensor.name).is_some()) {
        tensor.raw_data = Vec::new();
        tensor.float_data = Vec::new();
    }
}

/// Bytes that the stored values would take as raw data; `None` where values of several kinds are stored.
fn stored_bytes(tensor: &TensorProto, element: ElementType) -> Option<usize> {
    let typed = match element {
        ElementType::Fp32 => tensor.float_data.len(),
        ElementType::Fp64 => tensor.double_data.len(),
        ElementType::Int64 => tensor.int64_data.len(),
        ElementType::Uint32 | ElementType::Uint64 => tensor.uint64_data.len(),
        _ => tensor.int32_data.len(),
    };
    let all = tensor.float_data.len()
        + tensor.double_data.len()
        + tensor.int64_data.len()
        + tensor.uint64_data.len()
        + tensor.int32_data.len()
        + tensor.string_data.len();
    match (tensor.raw_data.len(), all) {
        (raw, 0) => Some(raw),
        (0, all) if all == typed => typed.checked_mul(element.size()),
        _ => None,
    }
}

fn type_name(data_type: i32) -> String {
    DataType::try_from(data_type).map_or_else(|_| data_type.to_string(), |known| known.as_str_name().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Model, testing};

    fn refused(tensor: TensorProto) -> String {
        check(&tensor).unwrap_err().to_string()
    }

    #[test]
    fn bytes_that_do_not_match_the_shape_are_refused_with_both_sizes() {
        let error = refused(testing::floats("w", &[2, 3], &[0.0; 5]));
        assert!(error.contains("\"w\"") && error.contains("24 bytes") && error.contains("20 bytes"), "{error}");
    }

    #[test]
    fn impossible_shapes_are_refused_without_allocating() {
        for dims in [&[1 << 40, 1 << 40][..], &[1 << 62, 4], &[-1], &[i64::MIN], &[1; 17]] {
            refused(testing::floats("w", dims, &[0.0]));
        }
        assert!(refused(testing::floats("w", &[1 << 40], &[0.0])).contains("bytes"));
    }

    #[test]
    fn values_of_two_kinds_and_unknown_types_are_refused() {
        let mut tensor = testing::floats("w", &[1], &[1.0]);
        tensor.float_data.push(1.0);
        assert!(refused(tensor).contains("several kinds"));
        let mut tensor = testing::floats("w", &[1], &[1.0]);
        tensor.data_type = DataType::String as i32;
        assert!(refused(tensor.clone()).contains("STRING"));
        tensor.data_type = 9999;
        assert!(refused(tensor).contains("9999"));
    }

    #[test]
    fn external_data_and_segments_are_refused_here() {
        let mut tensor = testing::floats("w", &[1], &[1.0]);
        tensor.data_location = Some(1);
        assert!(refused(tensor).contains("another file"));
        let mut tensor = testing::floats("w", &[1], &[1.0]);
        tensor.segment = Some(crate::pb::tensor_proto::Segment::default());
        assert!(refused(tensor).contains("segments"));
    }

    #[test]
    fn a_tensor_without_elements_is_legal() {
        check(&testing::floats("w", &[0, 1 << 40], &[])).unwrap();
    }

    #[test]
    fn nan_is_refused_by_name_and_an_infinite_clip_bound_is_not() {
        let mut graph = testing::linear();
        graph.initializer[1] = testing::floats("b", &[3], &[0.0, f32::NAN, 0.0]);
        let error = Model::from_bytes(testing::bytes(graph)).unwrap_err().to_string();
        assert!(error.contains("\"b\"") && error.contains("element 1"), "{error}");

        let mut graph = testing::linear();
        graph.node[0].output[0] = "h".to_owned();
        graph.node.push(testing::node("Clip", &["h", "low", "high"], &["y"]));
        graph.initializer.push(testing::floats("low", &[], &[0.0]));
        graph.initializer.push(testing::floats("high", &[], &[f32::INFINITY]));
        let model = Model::from_bytes(testing::bytes(graph)).unwrap();
        assert_eq!(model.layout().parameter("high").unwrap().class, ParameterClass::Constant);
    }

    #[test]
    fn float_data_and_raw_data_read_alike() {
        let raw = testing::floats("w", &[2], &[1.5, -2.5]);
        let typed = TensorProto { float_data: vec![1.5, -2.5], raw_data: Vec::new(), ..raw.clone() };
        check(&typed).unwrap();
        assert_eq!(floats(&raw), floats(&typed));
    }
}
