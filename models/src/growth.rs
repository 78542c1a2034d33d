//! Bounds on tensors that a file makes as large as some computed shape says, before tract makes them.
//! Shapes that are written down in the file are bounded in `model/sizes`, values that depend on the input in `float`.

use std::collections::{HashMap, HashSet};

use tract_onnx::Onnx;
use tract_onnx::prelude::{Datum, Framework, InferenceModelExt, TractResult};
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact, InferenceModel};
use tract_onnx::tract_hir::internal::{DimLike, SymbolScope, SymbolValues, TDim, bail};

use crate::model::{sizes::MAX_GROWN, tensor};
use crate::pb;

/// The graph input's fact in a model's scope of symbols.
type InputFact<'f> = dyn Fn(&SymbolScope) -> InferenceFact + 'f;

/// Most nodes whose size is found so; each takes an analysis of what lies before it.
const MAX_NODES: usize = 256;

/// tract folds constants while it loads. A constant whose size follows from a computed shape is therefore refused here
/// where it, for one sample, has more than [`MAX_GROWN`] elements or a size that shapes do not tell. Nodes are looked at in
/// order, each by an analysis of its own of what comes before it, which is bounded by the looks before.
/// `input` is the fact of the first input; without it, all are as the file has them.
pub(crate) fn check(onnx: &Onnx, proto: &pb::ModelProto, input: Option<&InputFact<'_>>) -> TractResult<()> {
    let Some(graph) = &proto.graph else { return Ok(()) };
    let mut constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    // Those whose numbers `model/sizes` has read.
    let integers = graph.initializer.iter().filter(|tensor| tensor::integers(tensor).is_some());
    let mut written: HashSet<&str> = integers.map(|tensor| tensor.name.as_str()).collect();
    let mut looks = 0;
    for node in &graph.node {
        let is_constant = |name: &String| name.is_empty() || constants.contains(name.as_str());
        let constant = matches!(node.op_type.as_str(), "Shape" | "Size") || node.input.iter().all(is_constant);
        if constant {
            let sizes = match node.op_type.as_str() {
                "Expand" | "Tile" => node.input.get(1..).unwrap_or_default(),
                "ConstantOfShape" | "Range" => node.input.as_slice(),
                _ => &[],
            };
            if sizes.iter().any(|name| !written.contains(name.as_str())) {
                looks += 1;
                if looks > MAX_NODES {
                    bail!("more than {MAX_NODES} constants have computed sizes; fold the constants (onnxsim)");
                }
                look(onnx, proto, graph, node, input)?;
            }
            constants.extend(node.output.iter().map(String::as_str));
        }
        if node.op_type == "Constant" && holds_integers(node) {
            written.extend(node.output.iter().map(String::as_str));
        }
    }
    Ok(())
}

fn look(
    onnx: &Onnx,
    proto: &pb::ModelProto,
    graph: &pb::GraphProto,
    node: &pb::NodeProto,
    input: Option<&InputFact<'_>>,
) -> TractResult<()> {
    let mut model = onnx.model_for_proto_model(&before(proto, graph, node))?;
    if let Some(input) = input {
        let fact = input(&model.symbols);
        model.set_input_fact(0, fact)?;
    }
    model.analyse(true)?;
    let fact = |slot: usize| -> TractResult<&InferenceFact> { model.outlet_fact(outlet(&model, slot)?) };
    let numbers = |slot: usize| -> TractResult<Option<Vec<i64>>> {
        let Some(tensor) = fact(slot)?.value.concretize() else { return Ok(None) };
        if tensor.datum_type().is_float() {
            return Ok(None);
        }
        if tensor.datum_type() != TDim::datum_type() {
            // A cast to dimensions would go through 32 bits.
            let tensor = tensor.cast_to::<i64>()?;
            return Ok(Some(tensor.to_plain_array_view::<i64>()?.iter().copied().collect()));
        }
        let tensor = tensor.cast_to::<TDim>()?;
        let view = tensor.to_plain_array_view::<TDim>()?;
        Ok(view.iter().map(|dim| for_one(dim).and_then(|dim| i64::try_from(dim).ok())).collect())
    };
    let dims = |slot: usize| -> TractResult<Option<Vec<usize>>> {
        Ok(fact(slot)?.shape.concretize().and_then(|dims| dims.iter().map(for_one).collect()))
    };
    let product = |dims: &[usize]| dims.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
    let positive = |numbers: Vec<i64>| numbers.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let len = match node.op_type.as_str() {
        "ConstantOfShape" => numbers(0)?.and_then(positive).and_then(|dims| product(&dims)),
        "Range" => match (numbers(0)?.as_deref(), numbers(1)?.as_deref(), numbers(2)?.as_deref()) {
            (Some([start]), Some([limit]), Some([step])) if *step != 0 => {
                usize::try_from(limit.abs_diff(*start).div_ceil(step.unsigned_abs())).ok()
            }
            _ => None,
        },
        "Tile" => match (dims(0)?, numbers(1)?.and_then(positive)) {
            (Some(dims), Some(times)) => product(&dims).and_then(|len| len.checked_mul(product(&times)?)),
            _ => None,
        },
        _ => match (dims(0)?, numbers(1)?.and_then(positive)) {
            (Some(dims), Some(target)) => {
                let rank = dims.len().max(target.len());
                let at = |list: &[usize], axis: usize| {
                    (axis + list.len()).checked_sub(rank).and_then(|axis| list.get(axis)).copied().unwrap_or(1)
                };
                product(&(0..rank).map(|axis| at(&dims, axis).max(at(&target, axis))).collect::<Vec<_>>())
            }
            _ => None,
        },
    };
    match len {
        Some(len) if len <= MAX_GROWN => Ok(()),
        Some(len) => bail!(
            "node {:?} ({}) makes a constant of {len} elements from a computed shape, above the limit of {MAX_GROWN}; fold \
             the constants (onnxsim)",
            crate::error::node_name(node),
            node.op_type
        ),
        None => bail!(
            "node {:?} ({}) makes a constant whose size depends on data; fold the constants (onnxsim)",
            crate::error::node_name(node),
            node.op_type
        ),
    }
}

/// Whether a Constant's numbers are int64, as sizes are.
fn holds_integers(node: &pb::NodeProto) -> bool {
    node.attribute.iter().any(|attribute| match attribute.name.as_str() {
        "value_int" | "value_ints" => true,
        _ => attribute.t.as_ref().is_some_and(|tensor| tensor::integers(tensor).is_some()),
    })
}

fn outlet(model: &InferenceModel, slot: usize) -> TractResult<tract_onnx::prelude::OutletId> {
    match model.output_outlets()?.get(slot) {
        Some(outlet) => Ok(*outlet),
        None => bail!("a node lacks its input {slot}"),
    }
}

/// A dimension for one sample.
fn for_one(dim: &TDim) -> Option<usize> {
    let symbols = dim.symbols().into_iter().fold(SymbolValues::default(), |values, symbol| values.with(&symbol, 1));
    dim.eval(&symbols).to_usize().ok()
}

/// The part of the graph that gives the node's inputs, which are its outputs.
fn before(proto: &pb::ModelProto, graph: &pb::GraphProto, node: &pb::NodeProto) -> pb::ModelProto {
    let makers: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(index, node)| node.output.iter().map(move |name| (name.as_str(), index)))
        .collect();
    let mut needed: HashSet<&str> = node.input.iter().map(String::as_str).collect();
    let mut pending: Vec<&str> = needed.iter().copied().collect();
    let mut nodes = HashSet::new();
    while let Some(name) = pending.pop() {
        let Some((index, maker)) = makers.get(name).and_then(|&index| Some((index, graph.node.get(index)?))) else {
            continue;
        };
        if nodes.insert(index) {
            pending.extend(maker.input.iter().map(String::as_str).filter(|name| needed.insert(name)));
        }
    }
    let kept = |index: &usize| nodes.contains(index);
    let output = |name: &String| pb::ValueInfoProto { name: name.clone(), ..Default::default() };
    let part = pb::GraphProto {
        name: graph.name.clone(),
        node: graph.node.iter().enumerate().filter(|(index, _)| kept(index)).map(|(_, node)| node.clone()).collect(),
        initializer: graph.initializer.iter().filter(|tensor| needed.contains(tensor.name.as_str())).cloned().collect(),
        input: graph.input.clone(),
        output: node.input.iter().filter(|name| !name.is_empty()).map(output).collect(),
        ..Default::default()
    };
    pb::ModelProto {
        ir_version: proto.ir_version,
        opset_import: proto.opset_import.clone(),
        graph: Some(part),
        ..Default::default()
    }
}
