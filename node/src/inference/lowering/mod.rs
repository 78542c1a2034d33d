//! Lowers a quantized ONNX graph (QDQ form) to a program of fused int8 operators, instead of handing it to tract.
//! Loading, batching and falling back to tract are `engine`'s; nothing here reads files.
//!
//! A graph is walked node by node (`graph`, with `linear`, `mixing`, `moving`), results wait until they are quantized and are
//! then stored in one go (`emit`); the program (`program`) runs steps (`steps`) made of kernels (`kernels`) over shared `buffers`.

#[cfg(test)]
mod bounds_tests;
mod buffers;
mod constant;
mod emit;
mod graph;
mod kernels;
mod linear;
mod mixing;
mod moving;
mod program;
mod steps;
#[cfg(test)]
mod tests;
mod value;

use fedge_models::{TensorSignature, pb};

pub(crate) use graph::NotLowered;
pub(crate) use program::Program;

/// Lowers a whole model, or says which node stands in the way.
pub(crate) fn lower(
    proto: &pb::ModelProto,
    input: &TensorSignature,
    output: &TensorSignature,
) -> Result<Program, NotLowered> {
    let default = pb::GraphProto::default();
    let graph = proto.graph.as_ref().unwrap_or(&default);
    if !graph.node.iter().any(|node| node.op_type == "DequantizeLinear") {
        let reason = "nothing in the model is quantized to static int8".to_owned();
        return Err(NotLowered { operator: "graph".to_owned(), node: graph.name.clone(), reason });
    }
    let default_set = |set: &&pb::OperatorSetIdProto| matches!(set.domain.as_str(), "" | "ai.onnx");
    let opset = proto.opset_import.iter().find(default_set).map_or(0, |set| set.version);
    graph::build(graph, opset, &input.name, input.sample_shape(), &output.name)
}
