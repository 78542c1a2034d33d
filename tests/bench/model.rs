//! An ONNX file of a wanted size: one Gemm, whose weights are pseudo-random and so do not compress.
//! What is measured with it is the matter of its callers.

use fedge_models::pb;
use prost::Message;

/// Inputs of the layer.
const INPUTS: usize = 64;

/// A classifier `[batch, 64] → [batch, classes]` of about `bytes` bytes of weights, and the number of its parameters.
pub fn linear(bytes: usize) -> (Vec<u8>, usize) {
    let classes = (bytes / 4 / (INPUTS + 1)).max(2);
    let weight = tensor("weight", &[classes, INPUTS], 1);
    let bias = tensor("bias", &[classes], 2);
    let node = pb::NodeProto {
        op_type: "Gemm".into(),
        name: "gemm".into(),
        input: vec!["x".into(), "weight".into(), "bias".into()],
        output: vec!["logits".into()],
        attribute: vec![pb::AttributeProto {
            name: "transB".into(),
            r#type: pb::attribute_proto::AttributeType::Int.into(),
            i: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    let graph = pb::GraphProto {
        name: "bench".into(),
        node: vec![node],
        initializer: vec![weight, bias],
        input: vec![value("x", INPUTS)],
        output: vec![value("logits", classes)],
        ..Default::default()
    };
    let model = pb::ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }],
        ..Default::default()
    };
    (model.encode_to_vec(), classes * (INPUTS + 1))
}

fn tensor(name: &str, dims: &[usize], seed: u64) -> pb::TensorProto {
    let len: usize = dims.iter().product();
    let raw_data = (0..len as u64).flat_map(|i| (crate::vector::unit(seed, i) * 0.1).to_le_bytes()).collect();
    pb::TensorProto {
        name: name.into(),
        dims: dims.iter().map(|d| *d as i64).collect(),
        data_type: pb::tensor_proto::DataType::Float.into(),
        raw_data,
        ..Default::default()
    }
}

fn value(name: &str, width: usize) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dims = [Value::DimParam("batch".into()), Value::DimValue(width as i64)];
    let shape = pb::TensorShapeProto {
        dim: dims.into_iter().map(|value| Dimension { value: Some(value), ..Default::default() }).collect(),
    };
    let tensor = pb::type_proto::Tensor { elem_type: pb::tensor_proto::DataType::Float.into(), shape: Some(shape) };
    let r#type = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..Default::default() };
    pb::ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
