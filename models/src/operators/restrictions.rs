//! Attributes and operands that stop a node of a trainable operator from being trained.
//! Which operators are trainable at all is in `table`; the limits are those of `node/training`.

use std::collections::{HashMap, HashSet};

use super::{UnsupportedOperator, attributes};
use crate::error::shorten;
use crate::pb::{self, tensor_proto::DataType};
use crate::{ElementType, Layout, ParameterClass, TensorSignature};

/// What the rules need to know of the graph around a node.
pub(super) struct Surroundings<'g> {
    opset: i64,
    output: &'g TensorSignature,
    constants: HashSet<&'g str>,
    ranks: HashMap<&'g str, usize>,
    used: HashSet<&'g str>,
}

impl<'g> Surroundings<'g> {
    pub(super) fn of(graph: &'g pb::GraphProto, opset: i64, output: &'g TensorSignature) -> Surroundings<'g> {
        let initializers = graph.initializer.iter().map(|tensor| tensor.name.as_str());
        let constants = graph.node.iter().filter(|node| node.op_type == "Constant").flat_map(|node| &node.output);
        Surroundings {
            opset,
            output,
            constants: initializers.chain(constants.map(String::as_str)).collect(),
            ranks: graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.len())).collect(),
            used: graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect(),
        }
    }

    /// Whether the node's input is left out or known without running the graph.
    fn is_constant(&self, node: &pb::NodeProto, slot: usize) -> bool {
        node.input.get(slot).is_none_or(|name| name.is_empty() || self.constants.contains(name.as_str()))
    }

    /// Whether anything reads the node's output of this index.
    fn is_used(&self, node: &pb::NodeProto, index: usize) -> bool {
        node.output.get(index).is_some_and(|name| self.used.contains(name.as_str()) || *name == self.output.name)
    }
}

/// Why this node, whose operator is trainable, cannot be trained; `None` where it can.
pub(super) fn stops_training(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    match node.op_type.as_str() {
        "Conv" => conv(node, around),
        "MaxPool" | "AveragePool" => pooling(node, around),
        "BatchNormalization" => batch_normalization(node, around),
        "Dropout" => dropout(node, around),
        "Softmax" | "LogSoftmax" => softmax(node, around),
        "Gelu" => match attributes::text(node, "approximate") {
            b"" | b"none" | b"tanh" => None,
            other => Some(format!("approximate={:?} is not known to ONNX", shorten(&String::from_utf8_lossy(other)))),
        },
        "Constant" => ["value", "value_float", "value_floats", "value_int", "value_ints"]
            .iter()
            .all(|name| !attributes::has(node, name))
            .then(|| "holds neither a tensor nor numbers".to_owned()),
        "Pow" => computed(node, around, 1..2, "exponent"),
        "Clip" => computed(node, around, 1..3, "bound"),
        "ReduceMean" | "ReduceSum" | "Squeeze" | "Unsqueeze" => computed(node, around, 1..2, "list of axes"),
        _ => None,
    }
}

/// What stops the model as a whole: parameters in another type than float32, or nothing to learn.
pub(super) fn model_stops_training(
    graph: &pb::GraphProto,
    layout: &Layout,
    input: &TensorSignature,
    output: &TensorSignature,
) -> Vec<UnsupportedOperator> {
    let about = |node: &str, reason: String| UnsupportedOperator { operator: String::new(), node: node.to_owned(), reason };
    let mut found = Vec::new();
    for tensor in &graph.initializer {
        let kind = DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined);
        if matches!(kind, DataType::Float16 | DataType::Bfloat16 | DataType::Double) {
            let kind = kind.as_str_name();
            found.push(about(&tensor.name, format!("is stored as {kind}; training holds float32 alone, so export the model in float32")));
        }
    }
    for (role, signature) in [("input", input), ("output", output)] {
        if signature.element != ElementType::Fp32 {
            let element = signature.element.name();
            found.push(about(&signature.name, format!("is the model's {role} in {element}; training needs float32")));
        }
    }
    if !layout.parameters().iter().any(|spec| spec.class == ParameterClass::Trainable) {
        found.push(about(&graph.name, "has no trainable float32 initializer; export the model with its weights as initializers".to_owned()));
    }
    found
}

fn conv(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    let rank = node.input.get(1).and_then(|weight| around.ranks.get(weight.as_str()));
    match rank {
        Some(3 | 4) | None => automatic_padding(node).or_else(|| negative_padding(node)),
        Some(rank) => Some(format!("has weights of rank {rank}; only 1-D and 2-D convolutions (ranks 3 and 4) are trained")),
    }
}

fn pooling(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    let kernel = attributes::ints(node, "kernel_shape");
    if kernel.len() != 2 {
        return Some(format!("has a kernel of {} dimensions; only 2-D pooling is trained", kernel.len()));
    }
    if let Some(reason) = automatic_padding(node).or_else(|| negative_padding(node)) {
        return Some(reason);
    }
    let pads = attributes::ints(node, "pads");
    let (begin, end) = pads.split_at(pads.len() / 2);
    if begin != end {
        return Some(format!("has the asymmetric pads {pads:?}; use a Pad-free model or the same padding on both sides"));
    }
    if attributes::int(node, "ceil_mode", 0) != 0 {
        return Some("has ceil_mode=1; export it with ceil_mode=0".to_owned());
    }
    if attributes::int(node, "storage_order", 0) != 0 {
        return Some("has storage_order=1; export it with storage_order=0".to_owned());
    }
    if node.op_type == "AveragePool" && attributes::ints(node, "dilations").iter().any(|&dilation| dilation != 1) {
        return Some("has dilations, which average pooling cannot train".to_owned());
    }
    around.is_used(node, 1).then(|| "gives its indices to another node, which cannot be trained".to_owned())
}

fn batch_normalization(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    if attributes::int(node, "training_mode", 0) != 0 {
        return Some("has training_mode=1; export the model for inference (model.eval()), training switches by itself".to_owned());
    }
    if attributes::int(node, "spatial", 1) != 1 {
        return Some("has spatial=0, which ONNX dropped; export it again".to_owned());
    }
    (1..5).any(|index| around.is_used(node, index)).then(|| "gives its statistics to another node; export for inference".to_owned())
}

fn dropout(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    if node.input.get(2).is_some_and(|name| !name.is_empty()) {
        return Some("has a training_mode input; export the model for inference (model.eval())".to_owned());
    }
    around.is_used(node, 1).then(|| "gives its mask to another node, which cannot be trained".to_owned())
}

/// Before operator set 13, Softmax flattens its input to two dimensions at the axis; only over the last axis do both
/// meanings agree.
fn softmax(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    let axis = attributes::int(node, "axis", 1);
    let is_output = node.output.first().is_some_and(|name| *name == around.output.name);
    let is_last = axis == -1 || (is_output && usize::try_from(axis + 1).is_ok_and(|rank| rank == around.output.dims.len()));
    (around.opset < 13 && !is_last).then(|| {
        format!("uses axis {axis} as operator sets before 13 define it; export with opset 13 or newer, or over axis -1")
    })
}

fn automatic_padding(node: &pb::NodeProto) -> Option<String> {
    match attributes::text(node, "auto_pad") {
        b"" | b"NOTSET" => None,
        other => Some(format!(
            "has auto_pad={}; export it with explicit pads",
            shorten(&String::from_utf8_lossy(other))
        )),
    }
}

fn negative_padding(node: &pb::NodeProto) -> Option<String> {
    let pads = attributes::ints(node, "pads");
    pads.iter().any(|&pad| pad < 0).then(|| format!("has the negative pads {pads:?}; slice the input instead"))
}

fn computed(node: &pb::NodeProto, around: &Surroundings<'_>, slots: std::ops::Range<usize>, what: &str) -> Option<String> {
    let mut slots = slots.filter(|&slot| !around.is_constant(node, slot));
    slots.next().map(|slot| format!("computes its {what} (input {slot}) while it runs; make it an initializer or a Constant"))
}
