//! Builds small ONNX models for tests.
//! The cases are in `operators` and `refusals`.

use fedge_models::Model;
use fedge_models::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};
use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// An attribute's value.
pub(super) enum Attribute {
    Int(i64),
    Ints(&'static [i64]),
    Float(f32),
    Text(&'static str),
    Texts(&'static [&'static str]),
    Numbers(&'static [f32]),
}

/// A graph under construction: the input `x`, initializers and nodes.
pub(super) struct Builder {
    graph: GraphProto,
    opset: i64,
    random: ChaCha8Rng,
}

impl Builder {
    /// A graph whose input `x` takes samples of this shape.
    pub(super) fn new(opset: i64, sample_shape: &[i64]) -> Builder {
        let dims = std::iter::once(None).chain(sample_shape.iter().copied().map(Some));
        let graph = GraphProto { name: "test".into(), input: vec![value_info("x", dims)], ..Default::default() };
        Builder { graph, opset, random: ChaCha8Rng::seed_from_u64(3) }
    }

    /// The same graph, whose input is 64-bit integers.
    pub(super) fn of_integers(mut self) -> Builder {
        let kind = self.graph.input.iter_mut().filter_map(|input| input.r#type.as_mut());
        for value in kind.filter_map(|kind| kind.value.as_mut()) {
            let type_proto::Value::TensorType(tensor) = value;
            tensor.elem_type = DataType::Int64 as i32;
        }
        self
    }

    /// A trainable float tensor of seeded numbers in −1..1.
    pub(super) fn parameter(self, name: &str, shape: &[i64]) -> Builder {
        self.spread(name, shape, -1.0, 1.0)
    }

    /// A float tensor of seeded numbers in a range.
    pub(super) fn spread(mut self, name: &str, shape: &[i64], low: f32, high: f32) -> Builder {
        let len: i64 = shape.iter().product();
        let values = (0..len).map(|_| low + (high - low) * uniform(&mut self.random)).collect();
        self.floats(name, shape, values)
    }

    pub(super) fn floats(mut self, name: &str, shape: &[i64], values: Vec<f32>) -> Builder {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: shape.to_vec(),
            data_type: DataType::Float as i32,
            float_data: values,
            ..Default::default()
        });
        self
    }

    /// A list of integers.
    pub(super) fn integers(self, name: &str, values: &[i64]) -> Builder {
        self.integers_of(name, &[values.len() as i64], values)
    }

    pub(super) fn integers_of(mut self, name: &str, shape: &[i64], values: &[i64]) -> Builder {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: shape.to_vec(),
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    /// A node; inputs are names separated by spaces, "-" leaves one out. Its name is its output's.
    pub(super) fn node(self, operator: &str, inputs: &str, output: &str) -> Builder {
        self.node_with(operator, inputs, output, &[])
    }

    pub(super) fn node_with(
        mut self,
        operator: &str,
        inputs: &str,
        output: &str,
        attributes: &[(&str, Attribute)],
    ) -> Builder {
        self.graph.node.push(NodeProto {
            op_type: operator.into(),
            name: format!("node_{output}"),
            input: inputs
                .split_whitespace()
                .map(|name| if name == "-" { String::new() } else { name.into() })
                .collect(),
            output: output.split_whitespace().map(String::from).collect(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        });
        self
    }

    /// Ends with a Flatten, so that whatever `last` is becomes logits.
    pub(super) fn flat(self, last: &str) -> Model {
        self.node("Flatten", last, "logits").model("logits")
    }

    pub(super) fn model(mut self, output: &str) -> Model {
        self.graph.output = vec![value_info(output, [None, None].into_iter())];
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            graph: Some(self.graph),
            ..Default::default()
        };
        Model::from_bytes(model.encode_to_vec()).unwrap()
    }
}

/// Seeded numbers in −1..1.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| 2.0 * uniform(&mut random) - 1.0).collect()
}

fn uniform(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1 << 24) as f32
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.into(), ..Default::default() };
    match value {
        Attribute::Int(value) => (proto.i, proto.r#type) = (*value, AttributeType::Int as i32),
        Attribute::Ints(values) => (proto.ints, proto.r#type) = (values.to_vec(), AttributeType::Ints as i32),
        Attribute::Float(value) => (proto.f, proto.r#type) = (*value, AttributeType::Float as i32),
        Attribute::Numbers(values) => {
            (proto.floats, proto.r#type) = (values.to_vec(), AttributeType::Floats as i32);
        }
        Attribute::Texts(texts) => {
            proto.strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
            proto.r#type = AttributeType::Strings as i32;
        }
        Attribute::Text(text) => (proto.s, proto.r#type) = (text.as_bytes().to_vec(), AttributeType::String as i32),
    }
    proto
}

fn value_info(name: &str, dims: impl Iterator<Item = Option<i64>>) -> ValueInfoProto {
    let dim = dims
        .enumerate()
        .map(|(axis, size)| tensor_shape_proto::Dimension {
            value: Some(match size {
                Some(size) => tensor_shape_proto::dimension::Value::DimValue(size),
                None => tensor_shape_proto::dimension::Value::DimParam(if axis == 0 {
                    "batch".into()
                } else {
                    "width".into()
                }),
            }),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..Default::default() }
}
