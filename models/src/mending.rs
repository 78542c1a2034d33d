//! Rewrites graphs on whose original form tract 0.23 computes something else than the file says.
//! Loading and running them is `float`'s and the node's; what tract must never see at all, `model` refuses.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::operators::attributes;
use crate::pb::{self, tensor_proto::DataType};
use crate::quantize::build::{self, Names};

/// The same function as `proto` in a form that tract gets right.
///
/// tract makes one table of 256 codes of everything between a DequantizeLinear and a QuantizeLinear that its axes mapping
/// calls element by element (`DequantizeLinearF32::declutter`). It says so of Softmax too, whose row then is a single
/// code: each result is 1. A second operand ends such a chain, so a Softmax is followed by a maximum that changes nothing.
pub fn mended(mut proto: Cow<'_, pb::ModelProto>) -> Cow<'_, pb::ModelProto> {
    let Some(graph) = &proto.graph else { return proto };
    let found = softmaxes_of_codes(graph);
    if found.is_empty() {
        return proto;
    }
    let Some(graph) = &mut proto.to_mut().graph else { return proto };
    let mut names = Names::of(graph);
    let least = names.fresh("fedge_least");
    graph.initializer.push(build::tensor(least.clone(), DataType::Float, &[], build::float_bytes(&[f32::MIN])));
    let mut nodes = Vec::with_capacity(graph.node.len() + found.len());
    for (index, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        let output = node.output.first_mut().filter(|_| found.contains(&index));
        let maximum = output.map(|output| {
            let [own, name] = ["shares", "Max"].map(|suffix| names.fresh(&format!("{output}_{suffix}")));
            let result = std::mem::replace(output, own.clone());
            build::node("Max", name, vec![own, least.clone()], vec![result])
        });
        nodes.push(node);
        nodes.extend(maximum);
    }
    graph.node = nodes;
    proto
}

/// Each Softmax of a graph that quantizes to float32 scales and no other.
fn softmaxes_of_codes(graph: &pb::GraphProto) -> HashSet<usize> {
    let single = |tensor: &pb::TensorProto| tensor.data_type == DataType::Float as i32;
    let initializers = graph.initializer.iter().filter(|tensor| single(tensor)).map(|tensor| tensor.name.as_str());
    let constants = graph.node.iter().filter(|node| attributes::tensor(node, "value").is_some_and(single));
    let floats: HashSet<&str> =
        initializers.chain(constants.flat_map(|node| &node.output).map(String::as_str)).collect();
    let mut scales = graph.node.iter().filter(|node| node.op_type == "QuantizeLinear").map(|node| node.input.get(1));
    let quantizes = scales.clone().next().is_some();
    if !quantizes || !scales.all(|scale| scale.is_some_and(|scale| floats.contains(scale.as_str()))) {
        return HashSet::new();
    }
    let nodes = graph.node.iter().enumerate();
    nodes
        .filter(|(_, node)| matches!(node.op_type.as_str(), "Softmax" | "LogSoftmax"))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Model, float::FloatRunner, testing};

    #[test]
    fn a_softmax_between_codes_shares_out_one_among_its_row() {
        let tensor = |name: &str, kind, bytes| build::tensor(name.to_owned(), kind, &[], bytes);
        let initializers = vec![
            tensor("s", DataType::Float, build::float_bytes(&[0.5])),
            tensor("t", DataType::Float, build::float_bytes(&[1.0 / 256.0])),
            tensor("z", DataType::Uint8, vec![0]),
        ];
        let nodes = vec![
            testing::node("QuantizeLinear", &["x", "s", "z"], &["xq"]),
            testing::node("DequantizeLinear", &["xq", "s", "z"], &["xd"]),
            testing::node("Softmax", &["xd"], &["p"]),
            testing::node("QuantizeLinear", &["p", "t", "z"], &["pq"]),
            testing::node("DequantizeLinear", &["pq", "t", "z"], &["y"]),
        ];
        let mut nodes = nodes;
        nodes.iter_mut().for_each(|node| node.name = node.output[0].clone());
        let file = testing::bytes(testing::graph(&[-1, 4], &[-1, 4], nodes, initializers));
        let runner = FloatRunner::new(&Model::from_bytes(file).unwrap()).unwrap();
        let y =
            runner.run(ndarray::arr2(&[[1.0f32, 1.0, 1.0, 1.0], [0.0, 20.0, 0.0, 20.0]]).into_dyn().view()).unwrap();
        for (found, expected) in y.iter().zip([0.25, 0.25, 0.25, 0.25, 0.0, 0.5, 0.0, 0.5]) {
            assert!((found - expected).abs() < 1.0 / 128.0, "{y:?}");
        }
    }

    #[test]
    fn float_files_stay_as_they_are() {
        let graph = testing::graph(&[-1, 4], &[-1, 4], vec![testing::node("Softmax", &["x"], &["y"])], vec![]);
        let proto = testing::model(graph, 17);
        assert!(matches!(mended(Cow::Borrowed(&proto)), Cow::Borrowed(_)));
    }
}
