//! Small ONNX models for this crate's own tests, built field by field so that each can be wrong in one place.
//! Real exporters' files are under `zoo/` and `tests/fixtures/`.

use prost::Message;

use crate::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension, type_proto,
};
use crate::wire::put_bytes;

/// The demo's model, untrained.
pub(crate) const DIGITS: &[u8] = include_bytes!("../zoo/digits_cnn.onnx");

pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

pub(crate) fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: DataType::Int64 as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: operator.to_owned(),
        name: format!("the_{operator}"),
        input: own(inputs),
        output: own(outputs),
        ..NodeProto::default()
    }
}

pub(crate) fn ints(mut node: NodeProto, name: &str, values: &[i64]) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    });
    node
}

pub(crate) fn int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    });
    node
}

pub(crate) fn text(mut node: NodeProto, name: &str, value: &str) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::String as i32,
        s: value.as_bytes().to_vec(),
        ..AttributeProto::default()
    });
    node
}

/// `-1` = dynamic.
pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dimension = |&dim: &i64| Dimension {
        value: Some(match dim {
            -1 => dimension::Value::DimParam("batch".to_owned()),
            dim => dimension::Value::DimValue(dim),
        }),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: dims.iter().map(dimension).collect() }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A graph from `x` of `input` dims to `y` of `output` dims.
pub(crate) fn graph(
    input: &[i64],
    output: &[i64],
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
) -> GraphProto {
    GraphProto {
        name: "g".to_owned(),
        node: nodes,
        initializer: initializers,
        input: vec![value("x", input)],
        output: vec![value("y", output)],
        ..GraphProto::default()
    }
}

pub(crate) fn model(graph: GraphProto, opset: i64) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub(crate) fn bytes(graph: GraphProto) -> Vec<u8> {
    model(graph, 17).encode_to_vec()
}

/// `y = x · w + b` with 2 inputs and 3 outputs.
pub(crate) fn linear() -> GraphProto {
    graph(
        &[-1, 2],
        &[-1, 3],
        vec![node("Gemm", &["x", "w", "b"], &["y"])],
        vec![floats("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), floats("b", &[3], &[0.5, -0.5, 0.0])],
    )
}

/// How float data lies in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FloatData {
    /// Several values a field.
    Packed,
    /// One value a field.
    Single,
}

/// The linear model as a file whose `w` holds 1 to 6 as float data: in two packed fields of 2
/// and 4 values, or in six fields of one.
pub(crate) fn linear_with_float_data(kind: FloatData) -> Vec<u8> {
    let mut tensor = floats("w", &[2, 3], &[]).encode_to_vec();
    let values: Vec<u8> = (1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    match kind {
        FloatData::Packed => {
            put_bytes(&mut tensor, 4, &values[..8]);
            put_bytes(&mut tensor, 4, &values[8..]);
        }
        FloatData::Single => {
            for value in values.chunks(4) {
                tensor.push(4 << 3 | 5);
                tensor.extend_from_slice(value);
            }
        }
    }
    let mut whole = linear();
    let bias = whole.initializer.remove(1);
    whole.initializer.clear();
    let mut graph = whole.encode_to_vec();
    put_bytes(&mut graph, 5, &tensor);
    put_bytes(&mut graph, 5, &bias.encode_to_vec());
    let mut file = model(GraphProto::default(), 17);
    file.graph = None;
    let mut file = file.encode_to_vec();
    put_bytes(&mut file, 7, &graph);
    file
}
