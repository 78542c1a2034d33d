//! The one catalogue of ONNX operators: which can be served, which can be trained, and since which operator set.
//! It decides by name and attributes; running an operator is tract's and the trainer's work.

use crate::{Layout, ModelError, TensorSignature, pb};

pub(crate) mod attributes;
mod restrictions;
mod table;

/// Version of the catalogue: a node that knows an older one is not selected for tasks of a newer one. It grows whenever
/// an entry is added, removed or restricted.
pub const CATALOGUE_VERSION: u32 = 2;

/// Oldest default operator set that is read.
pub const OLDEST_OPSET: i64 = 9;

/// One operator of the default domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// ONNX's name for it.
    pub name: &'static str,
    /// The oldest operator set whose form of it is served.
    pub since: i64,
    /// Whether the trainer can differentiate it. Attributes may still stop a node; see [`crate::Model::untrainable`].
    pub trainable: bool,
}

/// A node that cannot be trained, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct UnsupportedOperator {
    /// ONNX's name of the operator; empty where the reason is an initializer.
    pub operator: String,
    /// The node's name, or its first output where it has none; or the initializer's name.
    pub node: String,
    /// Why it cannot be trained.
    pub reason: String,
}

impl std::fmt::Display for UnsupportedOperator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.operator.is_empty() {
            write!(f, "{:?}: {}", self.node, self.reason)
        } else {
            write!(f, "{} at node {:?}: {}", self.operator, self.node, self.reason)
        }
    }
}

/// All operators that can be served, sorted by name.
pub fn catalogue() -> &'static [Operator] {
    table::OPERATORS
}

/// The catalogue's entry of this name.
pub fn find(name: &str) -> Option<&'static Operator> {
    let index = table::OPERATORS.binary_search_by(|operator| operator.name.cmp(name)).ok()?;
    table::OPERATORS.get(index)
}

/// Refuses a node whose operator is unknown, too old, or could use up memory.
pub(crate) fn check(node: &pb::NodeProto, opset: i64) -> Result<(), ModelError> {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Err(ModelError::node(
            node,
            format!(
                "belongs to the domain {:?}; only ONNX's default operators are supported",
                crate::error::shorten(&node.domain)
            ),
        ));
    }
    let Some(operator) = find(&node.op_type) else {
        return Err(ModelError::node(node, table::why_missing(&node.op_type)));
    };
    if opset < operator.since {
        return Err(ModelError::node(
            node,
            format!("needs operator set {} or newer, but the model uses {opset}; export it again", operator.since),
        ));
    }
    // tract 0.23 reads the direction as two or one, and runs one forwards.
    if matches!(node.op_type.as_str(), "LSTM" | "GRU") && attributes::text(node, "direction") == b"reverse" {
        return Err(ModelError::node(
            node,
            "runs backwards alone, which serving lacks; export it as bidirectional, or reverse its input and output",
        ));
    }
    Ok(())
}

/// What stops the nodes and parameters of a checked graph from being trained.
pub(crate) fn untrainable(
    graph: &pb::GraphProto,
    layout: &Layout,
    input: &TensorSignature,
    output: &TensorSignature,
) -> Vec<UnsupportedOperator> {
    let around = restrictions::Surroundings::of(graph, output);
    let nodes = graph.node.iter().filter_map(|node| {
        let reason = match find(&node.op_type) {
            Some(operator) if operator.trainable => restrictions::stops_training(node, &around)?,
            _ => "has no gradient in fedge yet; export the model without it, or open an issue".to_owned(),
        };
        Some(UnsupportedOperator {
            operator: node.op_type.clone(),
            node: crate::error::node_name(node).to_owned(),
            reason,
        })
    });
    nodes.chain(restrictions::model_stops_training(graph, layout, input, output)).collect()
}
