//! Decides which nodes compute in int8 and which values get a Quantize/Dequantize pair.
//! Pure: it looks at the graph alone. Ranges come from `calibrate`, the new graph from `emit`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Skipped;
use crate::error::node_name;
use crate::model::tensor;
use crate::operators::attributes;
use crate::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

/// A node whose weights become int8.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    /// Initializer with the weights (always input 1).
    pub weight: String,
    /// Dimension of the weights that counts output channels.
    pub axis: usize,
    /// Initializer with one bias for each channel (input 2).
    pub bias: Option<String>,
}

/// What the quantizer will do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By index of the node.
    pub anchors: BTreeMap<usize, Anchor>,
    /// Values with a Quantize/Dequantize pair, each with the value whose scale it shares (itself, mostly).
    pub values: BTreeMap<String, String>,
    /// Limits that a ReLU or Clip puts on a value, so that a widened range stays within.
    pub limits: HashMap<String, (f32, f32)>,
    /// Nodes that stay in float.
    pub skipped: Vec<Skipped>,
}

/// Plans a graph that was checked.
pub(super) fn plan(graph: &GraphProto) -> Plan {
    let view = View::of(graph);
    let mut plan = Plan { limits: view.limits(graph), ..Plan::default() };
    let mut refusals: HashMap<usize, String> = HashMap::new();
    let mut marked = BTreeSet::new();
    for (index, node) in graph.node.iter().enumerate() {
        match view.anchor(node) {
            Some(Ok(anchor)) => {
                marked.extend(node.input.first().cloned());
                // ONNX Runtime has no integer convolution with a float result. Gemm and MatMul have, so their result
                // is quantized only where the next node wants it: logits of classes that calibration never saw
                // would saturate.
                if node.op_type == "Conv" {
                    marked.extend(view.settled(node).map(|node| node.output[0].clone()));
                }
                plan.anchors.insert(index, anchor);
            }
            Some(Err(reason)) => {
                refusals.insert(index, reason);
            }
            None => {}
        }
    }
    let joined = view.spread(graph, &mut marked);
    for node in graph.node.iter().filter(|node| passes_through(&node.op_type)) {
        if let (Some(from), Some(to)) = (node.input.first(), node.output.first())
            && marked.contains(from)
            && marked.contains(to)
        {
            let root = plan.values.get(from).unwrap_or(from).clone();
            plan.values.insert(to.clone(), root);
        }
    }
    for value in marked {
        plan.values.entry(value.clone()).or_insert(value);
    }
    plan.skipped = skipped(graph, &plan, &refusals, &joined);
    plan
}

/// Operators that only move or choose values, so that their two sides share one scale.
fn passes_through(operator: &str) -> bool {
    matches!(
        operator,
        "MaxPool" | "Reshape" | "Flatten" | "Transpose" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout"
    )
}

/// The graph, indexed by name.
struct View<'g> {
    initializers: HashMap<&'g str, &'g TensorProto>,
    constants: BTreeSet<&'g str>,
    consumers: HashMap<&'g str, Vec<&'g NodeProto>>,
    output: &'g str,
}

impl<'g> View<'g> {
    fn of(graph: &'g GraphProto) -> View<'g> {
        let mut consumers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
        for node in &graph.node {
            for name in &node.input {
                consumers.entry(name).or_default().push(node);
            }
        }
        let constants = graph.node.iter().filter(|node| node.op_type == "Constant");
        let initializers: HashMap<_, _> =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        View {
            constants: constants
                .flat_map(|node| &node.output)
                .map(String::as_str)
                .chain(initializers.keys().copied())
                .collect(),
            initializers,
            consumers,
            output: graph.output.first().map_or("", |value| &value.name),
        }
    }

    /// How a Conv, Gemm or MatMul becomes an integer operator; `Err` says why it does not; `None` for other operators.
    fn anchor(&self, node: &NodeProto) -> Option<Result<Anchor, String>> {
        let axis = match node.op_type.as_str() {
            "Conv" => 0,
            "Gemm" if attributes::int(node, "transB", 0) != 0 => 0,
            "Gemm" | "MatMul" => 1,
            _ => return None,
        };
        Some(self.anchor_with(node, axis))
    }

    fn anchor_with(&self, node: &NodeProto, axis: usize) -> Result<Anchor, String> {
        let (Some(input), Some(weight)) = (node.input.first(), node.input.get(1)) else {
            return Err("lacks an input".to_owned());
        };
        if self.constants.contains(input.as_str()) {
            return Err(
                "multiplies a constant from the left; only constant weights on the right are quantized".to_owned()
            );
        }
        let Some(tensor) = self.floats(weight) else {
            return Err(format!("takes its weights {weight:?} from another node or in another type than float32"));
        };
        let rank = tensor.dims.len();
        if (node.op_type == "Conv" && rank < 3) || (node.op_type != "Conv" && rank != 2) || tensor.dims.contains(&0) {
            return Err(format!("has weights of the shape {:?}, which have no channel of their own", tensor.dims));
        }
        if node.op_type == "Gemm"
            && (attributes::int(node, "transA", 0) != 0
                || attributes::float(node, "alpha", 1.0) != 1.0
                || attributes::float(node, "beta", 1.0) != 1.0)
        {
            return Err("has transA, alpha or beta, which integer kernels lack".to_owned());
        }
        let channels = tensor.dims.get(axis).copied().unwrap_or(0);
        let bias = node.input.get(2).filter(|name| !name.is_empty());
        if let Some(bias) = bias {
            let fits = self.floats(bias).is_some_and(|tensor| {
                tensor.dims.last() == Some(&channels) && tensor.dims.iter().rev().skip(1).all(|&dim| dim == 1)
            });
            if !fits {
                return Err(format!("has the bias {bias:?}, which is no constant with one float32 for each channel"));
            }
        }
        Ok(Anchor { weight: weight.clone(), axis, bias: bias.cloned() })
    }

    /// A float32 initializer.
    fn floats(&self, name: &str) -> Option<&'g TensorProto> {
        self.initializers.get(name).copied().filter(|tensor| tensor.data_type == DataType::Float as i32)
    }

    /// The node whose result is quantized for `node`: the ReLU or Clip that alone reads it, else the node itself.
    fn settled<'n>(&self, node: &'n NodeProto) -> Option<&'n NodeProto>
    where
        'g: 'n,
    {
        let output = node.output.first()?;
        match self.consumers.get(output.as_str()).map(Vec::as_slice) {
            Some([next]) if output != self.output && self.bounds(next).is_some() && !next.output.is_empty() => {
                Some(next)
            }
            _ => Some(node),
        }
    }

    /// The limits that a ReLU or a Clip with constant bounds puts on its result.
    fn bounds(&self, node: &NodeProto) -> Option<(f32, f32)> {
        match node.op_type.as_str() {
            "Relu" => Some((0.0, f32::INFINITY)),
            "Clip" => {
                let bound = |slot: usize, open: f32| match node.input.get(slot).map(String::as_str) {
                    None | Some("") => Some(open),
                    Some(name) => tensor::first_float(self.floats(name)?),
                };
                Some((bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?))
            }
            _ => None,
        }
    }

    fn limits(&self, graph: &GraphProto) -> HashMap<String, (f32, f32)> {
        let limit = |node: &NodeProto| Some((node.output.first()?.clone(), self.bounds(node)?));
        graph.node.iter().filter_map(limit).collect()
    }

    /// Marks more values until nothing changes, and gives the nodes that compute between marked values. A node is looked at
    /// again where a value that it reads or gives was marked.
    fn spread(&self, graph: &GraphProto, marked: &mut BTreeSet<String>) -> BTreeSet<usize> {
        let mut around: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            for name in node.input.iter().chain(&node.output) {
                around.entry(name).or_default().push(index);
            }
        }
        let mut joined = BTreeSet::new();
        let mut pending: Vec<usize> = (0..graph.node.len()).rev().collect();
        while let Some(node) = pending.pop().and_then(|index| Some((index, graph.node.get(index)?))) {
            let (index, node) = node;
            for name in self.spread_over(index, node, marked, &mut joined) {
                if marked.insert(name.clone()) {
                    pending.extend(around.get(name.as_str()).into_iter().flatten());
                }
            }
        }
        joined
    }

    /// The values that are to be marked because of those around a node that are.
    fn spread_over<'n>(
        &self,
        index: usize,
        node: &'n NodeProto,
        marked: &BTreeSet<String>,
        joined: &mut BTreeSet<usize>,
    ) -> Vec<&'n String>
    where
        'g: 'n,
    {
        let constant = |name: &String| self.constants.contains(name.as_str());
        if passes_through(&node.op_type) {
            // A pair on one side of a node that only moves values belongs on the other side too. The graph's output stays
            // float: a pair there would change nothing.
            let (Some(from), Some(to)) = (node.input.first(), node.output.first()) else { return Vec::new() };
            let either = marked.contains(from) || marked.contains(to);
            return if either && !constant(from) && to != self.output { vec![from, to] } else { Vec::new() };
        }
        if !matches!(node.op_type.as_str(), "Add" | "Concat" | "AveragePool" | "GlobalAveragePool")
            || joined.contains(&index)
            || node.input.iter().any(constant)
            || !node.input.iter().any(|name| marked.contains(name))
        {
            return Vec::new();
        }
        let Some(settled) = self.settled(node).filter(|node| node.output[0] != self.output) else { return Vec::new() };
        joined.insert(index);
        node.input.iter().chain(settled.output.first()).collect()
    }
}

fn skipped(
    graph: &GraphProto,
    plan: &Plan,
    refusals: &HashMap<usize, String>,
    joined: &BTreeSet<usize>,
) -> Vec<Skipped> {
    let is_marked = |name: Option<&String>| name.is_some_and(|name| plan.values.contains_key(name));
    let mut skipped = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        let reason = if let Some(reason) = refusals.get(&index) {
            reason.clone()
        } else if plan.anchors.contains_key(&index)
            || joined.contains(&index)
            || matches!(node.op_type.as_str(), "Constant" | "Shape")
        {
            continue;
        } else {
            match node.op_type.as_str() {
                // Part of the integer operator before it, which saturates at the same bound.
                "Relu" | "Clip" if is_marked(node.output.first()) => continue,
                operator if passes_through(operator) && is_marked(node.input.first()) => continue,
                operator if passes_through(operator) => "moves values that are not quantized".to_owned(),
                "Relu" | "Clip" => "its result is read in float".to_owned(),
                "Add" | "Concat" => "has a constant operand, float neighbours, or gives the model's output".to_owned(),
                "AveragePool" | "GlobalAveragePool" => "has float neighbours, or gives the model's output".to_owned(),
                _ => "has no integer form that ONNX Runtime and tract share".to_owned(),
            }
        };
        skipped.push(Skipped { node: node_name(node).to_owned(), operator: node.op_type.clone(), reason });
    }
    skipped
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing::{floats, graph, node};

    /// A plan of these nodes, with "w" of 2 × 2 weights.
    fn planned(nodes: Vec<NodeProto>) -> Plan {
        plan(&graph(&[-1, 2], &[-1, 2], nodes, vec![floats("w", &[2, 2], &[1.0; 4])]))
    }

    #[test]
    fn pairs_spread_back_over_a_long_chain_in_linear_time() {
        let count = 100_000;
        let name = |index: usize| if index == 0 { "x".to_owned() } else { format!("h{index}") };
        let mut nodes: Vec<NodeProto> =
            (0..count).map(|index| node("Identity", &[&name(index)], &[&name(index + 1)])).collect();
        nodes.push(node("MatMul", &[&name(count), "w"], &["y"]));
        let start = std::time::Instant::now();
        let plan = planned(nodes);
        assert!(plan.values.values().all(|root| root == "x"));
        assert_eq!(plan.values.len(), count + 1);
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }

    #[test]
    fn a_relu_that_gives_nothing_is_no_end_of_a_convolution() {
        let kernel = floats("k", &[1, 1, 1, 1], &[1.0]);
        let nodes =
            vec![node("Conv", &["x", "k"], &["h"]), node("Relu", &["h"], &[]), node("Identity", &["x"], &["y"])];
        let plan = plan(&graph(&[-1, 1, 2, 2], &[-1, 1, 2, 2], nodes, vec![kernel]));
        assert!(plan.values.contains_key("h"));
    }
}
