//! Bounds on tensors that a file makes as large as some computed shape says, before tract makes them.
//! Shapes that are written down in the file are bounded in `model/sizes`, values that depend on the input in `float`.

use std::collections::{HashMap, HashSet};

use tract_onnx::Onnx;
use tract_onnx::prelude::{Datum, Framework, InferenceModelExt, TractError, TractResult};
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact, InferenceModel};
use tract_onnx::tract_hir::internal::{DimLike, SymbolScope, SymbolValues, TDim, bail};

use crate::model::sizes::{self, MAX_GROWN};
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
    let computed = sizes::computed(graph)?;
    if computed.len() > MAX_NODES {
        bail!("more than {MAX_NODES} constants have computed sizes; fold the constants (onnxsim)");
    }
    for (_, node) in graph.node.iter().enumerate().filter(|(index, _)| computed.contains(index)) {
        look(onnx, proto, graph, node, input)?;
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
        "Expand" => match (dims(0)?, numbers(1)?.and_then(positive)) {
            (Some(dims), Some(target)) => product(&broadcast(&dims, &target)),
            _ => None,
        },
        // One number with another of each input's.
        _ => (0..node.input.len())
            .try_fold(Some(Vec::new()), |all, slot| {
                Ok::<_, TractError>(all.zip(dims(slot)?).map(|(all, dims)| broadcast(&all, &dims)))
            })?
            .and_then(|dims| product(&dims)),
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

/// Numpy's rule for two shapes that fit each other.
fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| {
        (axis + dims.len()).checked_sub(rank).and_then(|axis| dims.get(axis)).copied().unwrap_or(1)
    };
    (0..rank).map(|axis| at(a, axis).max(at(b, axis))).collect()
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
