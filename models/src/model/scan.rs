//! The first look at a file, before it is decoded: bounds on size, counts and depth, and parts of ONNX refused whole.
//! It walks wire bytes with a fixed depth, so that decoding afterwards needs bounded memory. Meaning comes later.

use std::ops::Range;

use super::MAX_FILE_BYTES;
use crate::ModelError;
use crate::wire::{Field, Value, WireError, fields};

/// Most protobuf records in a file, outside tensor data: a record decodes to at most a few hundred bytes.
const MAX_RECORDS: u64 = 2_000_000;
/// Most bytes of packed varints, each of which may decode to 8 bytes.
const MAX_PACKED_BYTES: u64 = 256 << 20;

/// The messages whose fields are looked into; all others are skipped as opaque bytes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Flat,
}

/// Checks a file's bytes before decoding them.
pub(crate) fn check(bytes: &[u8]) -> Result<(), ModelError> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ModelError::TooLarge {
            what: "the file's size in bytes".to_owned(),
            size: bytes.len() as u64,
            limit: MAX_FILE_BYTES,
        });
    }
    if bytes.is_empty() {
        return Err(ModelError::NotOnnx { bytes: 0, problem: "the file is empty".to_owned() });
    }
    let not_onnx = |error: WireError| ModelError::NotOnnx { bytes: bytes.len(), problem: error.to_string() };
    let mut pending: Vec<(Kind, Range<usize>)> = vec![(Kind::Model, 0..bytes.len())];
    let (mut records, mut packed, mut graphs) = (0u64, 0u64, 0u64);
    while let Some((kind, range)) = pending.pop() {
        let mut data_fields = 0;
        for field in fields(bytes, range.clone()) {
            let field = field.map_err(not_onnx)?;
            records += 1;
            bound("the number of records in the file", records, MAX_RECORDS)?;
            if let Some(error) = refusal(bytes, kind, &range, &field) {
                return Err(error);
            }
            if is_packed_integers(kind, &field) {
                packed += field.payload.len() as u64;
                bound("the bytes of packed integers in the file", packed, MAX_PACKED_BYTES)?;
            }
            data_fields += u64::from(kind == Kind::Tensor && field.number == 9);
            graphs += u64::from(kind == Kind::Model && field.number == 7);
            if let (Some(child), Value::Bytes) = (child(kind, field.number), &field.value) {
                pending.push((child, field.payload));
            }
        }
        // Protobuf lets the last of two values win or merges them; two readers of such a file need not agree.
        if data_fields > 1 || graphs > 1 {
            let what = if graphs > 1 { "two graphs" } else { "a tensor with two data fields" };
            return Err(ModelError::NotOnnx {
                bytes: bytes.len(),
                problem: format!("it holds {what}, and readers would not agree on which counts"),
            });
        }
    }
    Ok(())
}

fn bound(what: &str, size: u64, limit: u64) -> Result<(), ModelError> {
    if size > limit {
        return Err(ModelError::TooLarge { what: what.to_owned(), size, limit });
    }
    Ok(())
}

/// Field numbers are those of onnx.proto (onnx 1.19).
fn child(kind: Kind, number: u32) -> Option<Kind> {
    match (kind, number) {
        (Kind::Model, 7) => Some(Kind::Graph),
        (Kind::Model, 8 | 14) => Some(Kind::Flat),
        (Kind::Graph, 1) => Some(Kind::Node),
        (Kind::Graph, 5) => Some(Kind::Tensor),
        (Kind::Graph, 11..=13) => Some(Kind::ValueInfo),
        (Kind::Graph, 14 | 16) => Some(Kind::Flat),
        (Kind::Node, 5) => Some(Kind::Attribute),
        (Kind::Attribute, 5 | 10) => Some(Kind::Tensor),
        (Kind::Attribute, 14 | 15) => Some(Kind::Type),
        (Kind::Tensor, 13) => Some(Kind::Flat),
        (Kind::ValueInfo, 2) => Some(Kind::Type),
        (Kind::Type, 1) => Some(Kind::TensorType),
        (Kind::TensorType, 2) => Some(Kind::Shape),
        (Kind::Shape, 1) => Some(Kind::Flat),
        _ => None,
    }
}

fn is_packed_integers(kind: Kind, field: &Field) -> bool {
    field.value == Value::Bytes && matches!((kind, field.number), (Kind::Tensor, 1 | 5 | 7 | 11) | (Kind::Attribute, 8))
}

/// Parts of ONNX that are refused whole. `functions` (25) must be found here: decoders of IR 8 and older drop it, and
/// the graph would then silently mean something else.
fn refusal(bytes: &[u8], kind: Kind, message: &Range<usize>, field: &Field) -> Option<ModelError> {
    let (feature, advice) = match (kind, field.number) {
        (Kind::Model, 25) => (
            format!("the model-local function {:?}", text(bytes, &field.payload, 1)),
            "inline it before publishing (onnx.inliner.inline_local_functions)",
        ),
        (Kind::Model, 20) => {
            ("training_info".to_owned(), "export the inference graph alone; fedge derives the gradients itself")
        }
        (Kind::Graph, 15) => ("a sparse initializer".to_owned(), "store the tensor densely"),
        (Kind::Attribute, 22 | 23) => ("a sparse tensor attribute".to_owned(), "store the tensor densely"),
        (Kind::Node, 5) => {
            // Only a node knows its name, so its attributes are searched for subgraphs from here.
            let subgraph = fields(bytes, field.payload.clone()).flatten().any(|part| matches!(part.number, 6 | 11));
            if !subgraph {
                return None;
            }
            let [name, operator] = [3, 4].map(|number| text(bytes, message, number));
            (
                format!("the subgraph of node {name:?} ({operator})"),
                "control flow (If, Loop, Scan) cannot be served or trained yet; export the model without it",
            )
        }
        _ => return None,
    };
    Some(ModelError::Unsupported { feature, advice: advice.to_owned() })
}

/// A string field of a message, for a message to people.
fn text(bytes: &[u8], message: &Range<usize>, number: u32) -> String {
    let found = fields(bytes, message.clone()).flatten().find(|field| field.number == number);
    let payload = found.and_then(|field| bytes.get(field.payload));
    crate::error::shorten(&String::from_utf8_lossy(payload.unwrap_or_default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::pb::{AttributeProto, FunctionProto, GraphProto, SparseTensorProto, TrainingInfoProto};
    use crate::testing;
    use crate::wire::put_bytes;
    use prost::Message;

    fn refused(model: crate::pb::ModelProto) -> String {
        check(&model.encode_to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_model_passes() {
        check(&testing::bytes(testing::linear())).unwrap();
        check(testing::DIGITS).unwrap();
    }

    #[test]
    fn model_local_functions_are_refused_by_name() {
        let mut model = testing::model(testing::linear(), 17);
        model.functions.push(FunctionProto { name: Some("attention".to_owned()), ..FunctionProto::default() });
        let error = refused(model);
        assert!(error.contains("attention") && error.contains("inline"), "{error}");
    }

    #[test]
    fn training_info_and_sparse_initializers_are_refused() {
        let mut model = testing::model(testing::linear(), 17);
        model.training_info.push(TrainingInfoProto::default());
        assert!(refused(model).contains("training_info"));
        let mut graph = testing::linear();
        graph.sparse_initializer.push(SparseTensorProto::default());
        assert!(refused(testing::model(graph, 17)).contains("sparse"));
    }

    #[test]
    fn a_subgraph_is_refused_with_its_node() {
        let mut graph = testing::linear();
        graph.node[0].op_type = "If".to_owned();
        let branch = AttributeProto { g: Some(GraphProto::default()), ..AttributeProto::default() };
        graph.node[0].attribute.push(branch);
        let error = refused(testing::model(graph, 17));
        assert!(error.contains("the_Gemm") && error.contains("If"), "{error}");
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let mut inner = Vec::new();
        for _ in 0..100_000 {
            let mut node = Vec::new();
            put_bytes(&mut node, 6, &inner);
            inner = node;
            if inner.len() > 1 << 20 {
                break;
            }
        }
        let [mut attribute, mut node, mut graph] = [const { Vec::new() }; 3];
        put_bytes(&mut attribute, 5, &inner);
        put_bytes(&mut node, 1, &attribute);
        put_bytes(&mut graph, 7, &node);
        assert!(check(&graph).is_err());
    }

    #[test]
    fn a_file_of_countless_empty_nodes_is_refused_before_it_is_decoded() {
        let mut file = Vec::new();
        put_bytes(&mut file, 7, &[0x0a, 0x00].repeat(3_000_000));
        assert!(matches!(check(&file), Err(ModelError::TooLarge { .. })));
    }

    #[test]
    fn two_graphs_and_two_values_of_a_tensor_are_refused() {
        let mut bytes = testing::bytes(testing::linear());
        bytes.extend_from_within(..);
        assert!(check(&bytes).unwrap_err().to_string().contains("two graphs"));
        let mut tensor = Vec::new();
        put_bytes(&mut tensor, 9, &[0; 4]);
        put_bytes(&mut tensor, 9, &[0; 4]);
        let [mut graph, mut file] = [const { Vec::new() }; 2];
        put_bytes(&mut graph, 5, &tensor);
        put_bytes(&mut file, 7, &graph);
        assert!(check(&file).unwrap_err().to_string().contains("two data fields"));
    }
}
