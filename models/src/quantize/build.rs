//! Makes the ONNX nodes, tensors and fresh names that the quantizer adds to a graph.
//! What is added where is decided in `emit`.

use std::collections::{HashMap, HashSet};

use crate::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
};

/// Names that a graph already uses, so that new ones stay unique.
pub(crate) struct Names {
    taken: HashSet<String>,
    /// The last number behind each base: thousands of nodes may ask for one base.
    counts: HashMap<String, u64>,
}

/// Bytes that a quantizer may add to a graph. One tensor may be read by many nodes, each of which gets a form of its own.
pub(crate) struct Room {
    left: usize,
}

impl Room {
    /// As much as the graph's initializers take, and 64 MiB.
    pub(crate) fn of(graph: &GraphProto) -> Room {
        let bytes = graph.initializer.iter().map(|tensor| tensor.raw_data.len() + 4 * tensor.float_data.len());
        Room { left: bytes.fold(64 << 20, usize::saturating_add) }
    }

    /// Takes bytes for what is about to be made; `None` where there are not as many.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<()> {
        self.left = self.left.checked_sub(bytes)?;
        Some(())
    }
}

impl Names {
    pub(crate) fn of(graph: &GraphProto) -> Names {
        let initializers = graph.initializer.iter().map(|tensor| &tensor.name);
        let values = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output).chain([&node.name]));
        let ends = graph.input.iter().chain(&graph.output).map(|value| &value.name);
        Names { taken: initializers.chain(values).chain(ends).cloned().collect(), counts: HashMap::new() }
    }

    /// `base` itself where it is free, else with a number behind it.
    pub(crate) fn fresh(&mut self, base: &str) -> String {
        if self.taken.insert(base.to_owned()) {
            return base.to_owned();
        }
        let count = self.counts.entry(base.to_owned()).or_insert(1);
        loop {
            *count += 1;
            let name = format!("{base}_{count}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

pub(crate) fn node(operator: &str, name: String, input: Vec<String>, output: Vec<String>) -> NodeProto {
    NodeProto { op_type: operator.to_owned(), name, input, output, ..NodeProto::default() }
}

pub(crate) fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Int as i32, i: value, ..AttributeProto::default() }
}

pub(crate) fn tensor(name: String, data_type: DataType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    let dims = dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect();
    TensorProto { name, data_type: data_type as i32, dims, raw_data, ..TensorProto::default() }
}

pub(crate) fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
