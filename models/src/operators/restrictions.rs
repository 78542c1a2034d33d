//! Attributes and operands that stop a node of a trainable operator from being trained.
//! Which operators are trainable at all is in `table`; the limits are those of `node/training`.

use std::collections::{HashMap, HashSet};

use super::{UnsupportedOperator, attributes};
use crate::error::shorten;
use crate::pb::{self, tensor_proto::DataType};
use crate::{ElementType, Layout, ParameterClass, TensorSignature};

/// What the rules need to know of the graph around a node.
pub(super) struct Surroundings<'g> {
    output: &'g TensorSignature,
    constants: HashSet<&'g str>,
    ranks: HashMap<&'g str, usize>,
    used: HashSet<&'g str>,
}

impl<'g> Surroundings<'g> {
    pub(super) fn of(graph: &'g pb::GraphProto, output: &'g TensorSignature) -> Surroundings<'g> {
        let initializers = graph.initializer.iter().map(|tensor| tensor.name.as_str());
        let constants = graph.node.iter().filter(|node| node.op_type == "Constant").flat_map(|node| &node.output);
        Surroundings {
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

/// The element type that a Cast gives.
fn target(node: &pb::NodeProto) -> i32 {
    i32::try_from(attributes::int(node, "to", 0)).unwrap_or(0)
}

/// Why this node, whose operator is trainable, cannot be trained; `None` where it can.
pub(super) fn stops_training(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    match node.op_type.as_str() {
        "Conv" => conv(node, around),
        "Cast" => cast(node),
        "ConvTranspose" => conv(node, around),
        "Resize" => resize(node),
        "LSTM" | "GRU" => recurrent(node),
        "Einsum" => einsum(node),
        "LayerNormalization" => (1..3)
            .any(|index| around.is_used(node, index))
            .then(|| "gives its statistics to another node; export for inference".to_owned()),
        "MaxPool" | "AveragePool" => pooling(node, around),
        "BatchNormalization" => batch_normalization(node, around),
        "Dropout" => dropout(node, around),
        "Gelu" => match attributes::text(node, "approximate") {
            b"" | b"none" | b"tanh" => None,
            other => Some(format!("approximate={:?} is not known to ONNX", shorten(&String::from_utf8_lossy(other)))),
        },
        "Constant" => ["value", "value_float", "value_floats", "value_int", "value_ints"]
            .iter()
            .all(|name| !attributes::has(node, name))
            .then(|| "holds neither a tensor nor numbers".to_owned()),
        "Clip" => computed(node, around, 1..3, "bound"),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare"
        | "ReduceLogSum" | "ReduceLogSumExp" | "Squeeze" | "Unsqueeze" => computed(node, around, 1..2, "list of axes"),
        "Pad" => match attributes::text(node, "mode") {
            b"" | b"constant" | b"edge" | b"reflect" | b"wrap" => computed(node, around, 1..4, "pads or value"),
            other => Some(format!("has the mode {:?}, which is not trained", shorten(&String::from_utf8_lossy(other)))),
        },
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
    let about =
        |node: &str, reason: String| UnsupportedOperator { operator: String::new(), node: node.to_owned(), reason };
    let mut found = Vec::new();
    for tensor in &graph.initializer {
        let kind = DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined);
        if matches!(kind, DataType::Float16 | DataType::Bfloat16 | DataType::Double) {
            let kind = kind.as_str_name();
            found.push(about(
                &tensor.name,
                format!("is stored as {kind}; training holds float32 alone, so export the model in float32"),
            ));
        }
    }
    let element = |signature: &TensorSignature| signature.element.name();
    if !input.element.is_held_as_float() {
        let reason = format!("is the model's input in {}; training needs float32 or integers", element(input));
        found.push(about(&input.name, reason));
    }
    if output.element != ElementType::Fp32 {
        let reason = format!("is the model's output in {}; training needs float32", element(output));
        found.push(about(&output.name, reason));
    }
    if !layout.parameters().iter().any(|spec| spec.class == ParameterClass::Trainable) {
        found.push(about(
            &graph.name,
            "has no trainable float32 initializer; export the model with its weights as initializers".to_owned(),
        ));
    }
    found
}

fn conv(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    let rank = node.input.get(1).and_then(|weight| around.ranks.get(weight.as_str()));
    match rank {
        Some(3 | 4) | None => negative_padding(node),
        Some(rank) => {
            Some(format!("has weights of rank {rank}; only 1-D and 2-D convolutions (ranks 3 and 4) are trained"))
        }
    }
}

fn cast(node: &pb::NodeProto) -> Option<String> {
    let to = DataType::try_from(target(node)).unwrap_or(DataType::Undefined);
    let known = matches!(to, DataType::Float | DataType::Int64 | DataType::Int32 | DataType::Bool);
    (!known).then(|| format!("casts to {}; training casts to float32, int64, int32 and bool", to.as_str_name()))
}

fn resize(node: &pb::NodeProto) -> Option<String> {
    let mode = |name| String::from_utf8_lossy(attributes::text(node, name)).into_owned();
    if !matches!(mode("mode").as_str(), "" | "nearest" | "linear") {
        return Some(format!("has mode={:?}; only nearest and linear are trained", shorten(&mode("mode"))));
    }
    if mode("coordinate_transformation_mode") == "tf_crop_and_resize" {
        return Some("crops while it resizes; export it without".to_owned());
    }
    if attributes::int(node, "antialias", 0) != 0
        || !matches!(mode("keep_aspect_ratio_policy").as_str(), "" | "stretch")
    {
        return Some("has antialias or keeps the aspect ratio; export it without".to_owned());
    }
    None
}

fn recurrent(node: &pb::NodeProto) -> Option<String> {
    let given = |slot: usize| node.input.get(slot).is_some_and(|name| !name.is_empty());
    if given(4) {
        return Some("has sequence_lens; pad sequences to one length and export without it".to_owned());
    }
    if given(7) || attributes::int(node, "input_forget", 0) != 0 {
        return Some("has peepholes or coupled gates, which are not trained".to_owned());
    }
    if attributes::int(node, "layout", 0) != 0 || attributes::has(node, "clip") {
        return Some("has layout=1 or clip; export it without".to_owned());
    }
    let usual: &[&[u8]] = if node.op_type == "LSTM" { &[b"Sigmoid", b"Tanh", b"Tanh"] } else { &[b"Sigmoid", b"Tanh"] };
    let given = attributes::strings(node, "activations");
    let same = given.chunks(usual.len()).all(|given| given.iter().map(Vec::as_slice).eq(usual.iter().copied()));
    (!same).then(|| "has other activations than Sigmoid and Tanh, which are not trained".to_owned())
}

fn einsum(node: &pb::NodeProto) -> Option<String> {
    let equation = String::from_utf8_lossy(attributes::text(node, "equation")).replace(' ', "");
    let sides = equation.split_once("->").map(|(left, right)| (left.split(',').collect::<Vec<_>>(), right));
    let plain = |text: &str| {
        text.chars()
            .enumerate()
            .all(|(at, c)| c.is_ascii_alphabetic() && !text.chars().take(at).any(|other| other == c))
    };
    match sides {
        Some((operands, result)) if operands.len() <= 2 && plain(result) && operands.iter().all(|o| plain(o)) => None,
        _ => Some(format!(
            "has the equation {:?}; training has one or two operands, without dots and repeats",
            shorten(&equation)
        )),
    }
}

fn pooling(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    let kernel = attributes::ints(node, "kernel_shape");
    if !matches!(kernel.len(), 1 | 2) {
        return Some(format!("has a kernel of {} dimensions; only 1-D and 2-D pooling is trained", kernel.len()));
    }
    if let Some(reason) = negative_padding(node) {
        return Some(reason);
    }
    let pads = attributes::ints(node, "pads");
    let dilations = attributes::ints(node, "dilations");
    let extent =
        |axis: usize, size: i64| (size - 1).saturating_mul(dilations.get(axis).copied().unwrap_or(1)).saturating_add(1);
    if pads
        .iter()
        .zip(kernel.iter().cycle())
        .enumerate()
        .any(|(at, (&pad, &size))| pad >= extent(at % kernel.len(), size))
    {
        return Some(format!("has pads {pads:?} as wide as its window; a window in the padding alone has no result"));
    }
    if attributes::int(node, "storage_order", 0) != 0 {
        return Some("has storage_order=1; export it with storage_order=0".to_owned());
    }
    if node.op_type == "AveragePool" && dilations.iter().any(|&dilation| dilation != 1) {
        return Some("has dilations, which average pooling cannot train".to_owned());
    }
    around.is_used(node, 1).then(|| "gives its indices to another node, which cannot be trained".to_owned())
}

fn batch_normalization(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    if attributes::int(node, "training_mode", 0) != 0 {
        return Some(
            "has training_mode=1; export the model for inference (model.eval()), training switches by itself"
                .to_owned(),
        );
    }
    if attributes::int(node, "spatial", 1) != 1 {
        return Some("has spatial=0, which ONNX dropped; export it again".to_owned());
    }
    (1..5)
        .any(|index| around.is_used(node, index))
        .then(|| "gives its statistics to another node; export for inference".to_owned())
}

fn dropout(node: &pb::NodeProto, around: &Surroundings<'_>) -> Option<String> {
    if node.input.get(2).is_some_and(|name| !name.is_empty()) {
        return Some("has a training_mode input; export the model for inference (model.eval())".to_owned());
    }
    around.is_used(node, 1).then(|| "gives its mask to another node, which cannot be trained".to_owned())
}

fn negative_padding(node: &pb::NodeProto) -> Option<String> {
    let pads = attributes::ints(node, "pads");
    pads.iter().any(|&pad| pad < 0).then(|| format!("has the negative pads {pads:?}; slice the input instead"))
}

fn computed(
    node: &pb::NodeProto,
    around: &Surroundings<'_>,
    slots: std::ops::Range<usize>,
    what: &str,
) -> Option<String> {
    let mut slots = slots.filter(|&slot| !around.is_constant(node, slot));
    slots
        .next()
        .map(|slot| format!("computes its {what} (input {slot}) while it runs; make it an initializer or a Constant"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{bytes, floats, graph, int, integers, ints, model, node, text};
    use crate::{Model, UnsupportedOperator, pb};
    use prost::Message;

    fn reasons(node: pb::NodeProto) -> Vec<UnsupportedOperator> {
        let w = floats("w", &[1, 1, 3, 3], &[0.1; 9]);
        let first = node_before();
        let graph = graph(&[-1, 1, 8, 8], &[-1, 1, 8, 8], vec![first, node], vec![w, integers("i", &[0])]);
        Model::from_bytes(model(graph, 20).encode_to_vec()).unwrap().untrainable()
    }

    fn node_before() -> pb::NodeProto {
        ints(node("Conv", &["x", "w"], &["h"]), "pads", &[1, 1, 1, 1])
    }

    fn pool(operator: &str) -> pb::NodeProto {
        ints(node(operator, &["h"], &["y"]), "kernel_shape", &[2, 2])
    }

    #[test]
    fn plain_nodes_can_be_trained() {
        for node in [
            pool("MaxPool"),
            ints(pool("AveragePool"), "pads", &[1, 0, 1, 0]),
            node("Softmax", &["h"], &["y"]),
            node("Gelu", &["h"], &["y"]),
        ] {
            assert_eq!(reasons(node), []);
        }
    }

    #[test]
    fn the_arithmetic_of_shapes_that_exporters_write_can_be_trained() {
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            node("Gather", &["s", "zero"], &["n"]),
            int(node("Cast", &["n"], &["m"]), "to", 7),
            node("Unsqueeze", &["m", "axes"], &["u"]),
            int(node("Concat", &["u", "rest"], &["target"]), "axis", 0),
            node("Gemm", &["x", "w"], &["h"]),
            node("Reshape", &["h", "target"], &["y"]),
        ];
        let mut zero = integers("zero", &[0]);
        zero.dims.clear();
        let initializers = vec![zero, integers("axes", &[0]), integers("rest", &[2]), floats("w", &[2, 2], &[1.0; 4])];
        let model = Model::from_bytes(bytes(graph(&[-1, 2], &[-1, 2], nodes, initializers))).unwrap();
        assert_eq!(model.untrainable(), []);
    }

    #[test]
    fn an_operator_without_a_gradient_is_named_with_its_node() {
        let found = reasons(node("ArgMax", &["h"], &["y"]));
        assert_eq!((found[0].operator.as_str(), found[0].node.as_str()), ("ArgMax", "the_ArgMax"));
        assert!(found[0].to_string().contains("no gradient"));
    }

    #[test]
    fn attributes_that_training_lacks_are_named() {
        for (node, word) in [
            (ints(pool("MaxPool"), "pads", &[2, 2, 2, 2]), "as wide as"),
            (int(node("Cast", &["h"], &["y"]), "to", 11), "DOUBLE"),
            (int(pool("MaxPool"), "storage_order", 1), "storage_order"),
            (ints(pool("AveragePool"), "dilations", &[2, 2]), "dilations"),
            (ints(node("MaxPool", &["h"], &["y"]), "kernel_shape", &[2, 2, 2]), "3 dimensions"),
            (int(node("BatchNormalization", &["h", "w", "w", "w", "w"], &["y"]), "training_mode", 1), "training_mode"),
            (node("Dropout", &["h", "", "w"], &["y"]), "training_mode"),
            (node("Clip", &["h", "", "x"], &["y"]), "input 2"),
            (text(node("Resize", &["h"], &["y"]), "mode", "cubic"), "cubic"),
            (node("LSTM", &["h", "w", "w", "", "i"], &["y"]), "sequence_lens"),
            (int(node("GRU", &["h", "w", "w"], &["y"]), "layout", 1), "layout"),
            (text(node("Einsum", &["h", "w"], &["y"]), "equation", "...ij,jk->...ik"), "equation"),
            (text(node("Pad", &["h", "i"], &["y"]), "mode", "circular"), "circular"),
        ] {
            let found = reasons(node);
            assert!(found.iter().any(|found| found.reason.contains(word)), "{word}: {found:?}");
        }
    }

    #[test]
    fn half_precision_weights_serve_but_do_not_train() {
        let mut half = floats("w", &[1, 1, 3, 3], &[]);
        half.data_type = pb::tensor_proto::DataType::Float16 as i32;
        half.raw_data = vec![0; 18];
        let graph = graph(&[-1, 1, 8, 8], &[-1, 1, 6, 6], vec![node("Conv", &["x", "w"], &["y"])], vec![half]);
        let found = Model::from_bytes(bytes(graph)).unwrap().untrainable();
        assert!(found.iter().any(|found| found.node == "w" && found.reason.contains("FLOAT16")), "{found:?}");
        assert!(found.iter().any(|found| found.reason.contains("no trainable")), "{found:?}");
    }
}
