//! Low-rank adapters beside chosen weights (Hu et al. 2022, "LoRA", section 4.1): the file is rewritten to hold them.
//! What is trained of it is a task's choice; training and serving see ordinary MatMul and Add nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use prost::Message;

use crate::layout::fits;
use crate::pb::{NodeProto, TensorProto, tensor_proto::DataType};
use crate::wire::{Value, WireError, fields, put_bytes};
use crate::{Model, ModelError, ParameterClass};

/// Largest rank of an adapter.
pub const MAX_RANK: usize = 4096;
/// Field numbers of onnx.proto.
const MODEL_GRAPH: u32 = 7;
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const NODE_OUTPUT: u32 = 2;
/// Names that an error shows.
const SHOWN: usize = 8;

/// A model with adapters.
#[derive(Debug, Clone)]
pub struct Adapted {
    /// The model; it answers as the one without did until its adapters are trained.
    pub model: Model,
    /// The weights that have an adapter, in the file's order. Its parts are named after them, `.lora_A` and `.lora_B`.
    pub weights: Vec<String>,
}

/// A weight that gets an adapter: y = x·W becomes y = x·W + (x·A)·B.
struct Target {
    /// Rows of W as it multiplies: values of x.
    inputs: usize,
    /// Columns: values of y.
    outputs: usize,
}

/// Puts an adapter of this rank beside each weight of a MatMul or Gemm node whose name fits one of the patterns (`*` and
/// `?`). A, `[inputs, rank]`, is uniform in ±1/√inputs, from the seed; B, `[rank, outputs]`, is zero. The paper's factor α/r is 1: the
/// learning rate takes its place.
///
/// # Errors
/// [`ModelError::Selection`] for a rank out of range or not below the weight's own dimensions, a pattern that fits no
/// such weight, and a weight that has an adapter already.
pub fn adapt(model: &Model, patterns: &[String], rank: usize, seed: u64) -> Result<Adapted, ModelError> {
    let candidates = candidates(model);
    let names = || candidates.keys().filter(|name| patterns.iter().any(|pattern| fits(pattern, name)));
    let missing = patterns.iter().find(|pattern| !candidates.keys().any(|name| fits(pattern, name)));
    if let Some(pattern) = missing {
        let known: Vec<&str> = candidates.keys().take(SHOWN).map(String::as_str).collect();
        let known =
            if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
        return Err(refused(format!("names {pattern:?}, which fits no weight of a MatMul or Gemm; {known}")));
    }
    for name in names() {
        let Some(target) = candidates.get(name) else { continue };
        let least = target.inputs.min(target.outputs).min(MAX_RANK + 1);
        if rank == 0 || rank >= least {
            let size = format!("{} × {}", target.inputs, target.outputs);
            return Err(refused(format!(
                "has the rank {rank}; {name:?} is {size}: give 1 to {}",
                least.saturating_sub(1)
            )));
        }
        if [a_of(name), b_of(name)].iter().any(|part| model.layout().parameter(part).is_some()) {
            return Err(refused(format!("names {name:?}, which has an adapter already")));
        }
    }
    let chosen: BTreeSet<&String> = names().collect();
    let weights: Vec<String> = model
        .layout()
        .parameters()
        .iter()
        .map(|spec| &spec.name)
        .filter(|name| chosen.contains(name))
        .cloned()
        .collect();
    let not_onnx = |error: WireError| ModelError::NotOnnx { bytes: model.bytes().len(), problem: error.to_string() };
    let mut file = rewrite(model, &chosen).map_err(not_onnx)?;
    let mut random = SplitMix(seed);
    for name in &weights {
        let Some(target) = candidates.get(name) else { continue };
        let bound = 1.0 / (target.inputs as f32).sqrt();
        let a = (0..target.inputs * rank).map(|_| (random.unit() * 2.0 - 1.0) * bound).collect();
        let b = vec![0.0; rank * target.outputs];
        for part in [tensor(a_of(name), [target.inputs, rank], a), tensor(b_of(name), [rank, target.outputs], b)] {
            put_bytes(&mut file.graph, GRAPH_INITIALIZER, &part.encode_to_vec());
        }
    }
    Ok(Adapted { model: Model::from_bytes(file.whole())?, weights })
}

fn refused(problem: String) -> ModelError {
    ModelError::Selection { field: "lora", problem }
}

fn a_of(name: &str) -> String {
    format!("{name}.lora_A")
}

fn b_of(name: &str) -> String {
    format!("{name}.lora_B")
}

/// The trainable matrices that are the second operand of a MatMul or Gemm, and of nothing else.
fn candidates(model: &Model) -> BTreeMap<String, Target> {
    let mut found = BTreeMap::new();
    let mut others = BTreeSet::new();
    for node in &model.graph().node {
        for (index, input) in node.input.iter().enumerate() {
            match (index == 1).then(|| target(model, node, input)).flatten() {
                Some(target) => drop(found.insert(input.clone(), target)),
                None => drop(others.insert(input.clone())),
            }
        }
    }
    found.retain(|name, _| !others.contains(name));
    found
}

fn target(model: &Model, node: &NodeProto, weight: &str) -> Option<Target> {
    let spec = model.layout().parameter(weight).filter(|spec| spec.class == ParameterClass::Trainable)?;
    let &[rows, columns] = &spec.shape[..] else { return None };
    let set = |name: &str| node.attribute.iter().any(|attribute| attribute.name == name && attribute.i != 0);
    let plain = node.domain.is_empty() && node.output.len() == 1;
    match node.op_type.as_str() {
        "MatMul" if plain => Some(Target { inputs: rows, outputs: columns }),
        // With x transposed, the adapter's own product would have to be.
        "Gemm" if plain && !set("transA") && !set("transB") => Some(Target { inputs: rows, outputs: columns }),
        "Gemm" if plain && !set("transA") => Some(Target { inputs: columns, outputs: rows }),
        _ => None,
    }
}

/// A model's file in parts: its graph, and the fields before and after it.
struct Parts {
    before: Vec<u8>,
    graph: Vec<u8>,
    after: Vec<u8>,
}

impl Parts {
    fn whole(self) -> Vec<u8> {
        let mut bytes = self.before;
        put_bytes(&mut bytes, MODEL_GRAPH, &self.graph);
        bytes.extend_from_slice(&self.after);
        bytes
    }
}

/// The file with three nodes more after each node whose weight is chosen. Its own fields stay byte for byte, whatever they are.
fn rewrite(model: &Model, chosen: &BTreeSet<&String>) -> Result<Parts, WireError> {
    let bytes = model.bytes();
    let mut parts = Parts { before: Vec::new(), graph: Vec::new(), after: Vec::new() };
    let mut in_graph = false;
    for field in fields(bytes, 0..bytes.len()) {
        let field = field?;
        if field.number == MODEL_GRAPH && field.value == Value::Bytes {
            graph(bytes, field.payload, chosen, &mut parts.graph)?;
            in_graph = true;
        } else {
            let rest = if in_graph { &mut parts.after } else { &mut parts.before };
            rest.extend_from_slice(bytes.get(field.record).unwrap_or_default());
        }
    }
    Ok(parts)
}

fn graph(bytes: &[u8], range: Range<usize>, chosen: &BTreeSet<&String>, out: &mut Vec<u8>) -> Result<(), WireError> {
    for field in fields(bytes, range) {
        let field = field?;
        let node = match field.number == GRAPH_NODE && field.value == Value::Bytes {
            true => NodeProto::decode(bytes.get(field.payload.clone()).unwrap_or_default()).ok(),
            false => None,
        };
        let weight = node.as_ref().and_then(|node| node.input.get(1)).filter(|weight| chosen.contains(weight));
        match (&node, weight) {
            (Some(node), Some(weight)) => {
                put_bytes(out, GRAPH_NODE, &renamed(bytes, field.payload, &base_of(node))?);
                for added in adapter(node, weight) {
                    put_bytes(out, GRAPH_NODE, &added.encode_to_vec());
                }
            }
            _ => out.extend_from_slice(bytes.get(field.record).unwrap_or_default()),
        }
    }
    Ok(())
}

fn output_of(node: &NodeProto) -> &str {
    node.output.first().map(String::as_str).unwrap_or_default()
}

fn base_of(node: &NodeProto) -> String {
    format!("{}.lora_base", output_of(node))
}

/// The node's bytes with another name for its output.
fn renamed(bytes: &[u8], range: Range<usize>, output: &str) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    for field in fields(bytes, range) {
        let field = field?;
        if field.number == NODE_OUTPUT && field.value == Value::Bytes {
            put_bytes(&mut out, NODE_OUTPUT, output.as_bytes());
        } else {
            out.extend_from_slice(bytes.get(field.record).unwrap_or_default());
        }
    }
    Ok(out)
}

/// (x·A)·B, and its sum with what the node gave before.
fn adapter(node: &NodeProto, weight: &str) -> [NodeProto; 3] {
    let y = output_of(node);
    let x = node.input.first().cloned().unwrap_or_default();
    let (low, high) = (format!("{y}.lora_low"), format!("{y}.lora_high"));
    let make = |operator: &str, part: &str, inputs: [String; 2], output: &str| NodeProto {
        op_type: operator.to_owned(),
        name: format!("{}.lora_{part}", node.name),
        input: inputs.to_vec(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    [
        make("MatMul", "down", [x, a_of(weight)], &low),
        make("MatMul", "up", [low.clone(), b_of(weight)], &high),
        make("Add", "sum", [base_of(node), high.clone()], y),
    ]
}

fn tensor(name: String, shape: [usize; 2], values: Vec<f32>) -> TensorProto {
    TensorProto {
        name,
        dims: shape.iter().map(|&dim| dim as i64).collect(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): enough for an initialization, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    /// Uniform in `0.0..1.0`.
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;
    use crate::float::FloatRunner;
    use crate::testing::{self, DIGITS};
    use crate::{Exchange, Selection, Weights};

    fn patterns(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    fn answer(model: &Model) -> Vec<f32> {
        let input = ArrayD::from_shape_fn(IxDyn(&[2, 1, 8, 8]), |i| (i[0] * 31 + i[2] * 8 + i[3]) as f32 % 17.0 / 16.0);
        FloatRunner::new(model).unwrap().run(input.view()).unwrap().into_iter().collect()
    }

    #[test]
    fn an_adapted_model_answers_as_before_until_its_adapters_are_trained() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let Adapted { model: adapted, weights } = adapt(&model, &patterns(&["fc*"]), 4, 1).unwrap();
        assert_eq!(weights, ["fc1.weight", "fc2.weight"]);
        assert!(adapted.untrainable().is_empty());
        assert_eq!(answer(&adapted), answer(&model));
        let (before, after) = (model.weights(), adapted.weights());
        for (spec, range) in model.layout().exchanged() {
            assert_eq!(before.values()[range], *after.tensor(&spec.name).unwrap());
        }
        let trained = Selection::Named(patterns(&["*.lora_?"]).into());
        let travels = adapted.layout().exchanging(&Exchange { trained, statistics: false, local: [].into() }).unwrap();
        assert_eq!(travels.exchanged_len(), 4 * (128 + 48) + 4 * (48 + 10));
        // With B of ones, it is x·(W + A·B).
        let mut values = after.into_values();
        for name in ["fc1.weight.lora_B", "fc2.weight.lora_B"] {
            values[adapted.layout().range(name).unwrap()].fill(0.1);
        }
        let moved = adapted.with_weights(&Weights::new(adapted.layout().clone(), values.clone()).unwrap()).unwrap();
        let mut folded = model.weights().into_values();
        for (name, inputs, outputs) in [("fc1.weight", 128, 48), ("fc2.weight", 48, 10)] {
            let a = &values[adapted.layout().range(&a_of(name)).unwrap()];
            let weight = &mut folded[model.layout().range(name).unwrap()];
            for (row, a) in a.chunks(4).enumerate() {
                let sum: f32 = a.iter().sum::<f32>() * 0.1;
                // Gemm's weights are [outputs, inputs].
                (0..outputs).for_each(|column| weight[column * inputs + row] += sum);
            }
        }
        let folded = model.with_weights(&Weights::new(model.layout().clone(), folded).unwrap()).unwrap();
        for (found, expected) in answer(&moved).iter().zip(answer(&folded)) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn the_seed_decides_the_adapters_and_nothing_else_does() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let digest = |seed| adapt(&model, &patterns(&["fc1*"]), 2, seed).unwrap().model.digest();
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
        let adapted = adapt(&model, &patterns(&["fc1*"]), 2, 3).unwrap().model;
        let weights = adapted.weights();
        let a = weights.tensor("fc1.weight.lora_A").unwrap();
        let bound = 1.0 / 128f32.sqrt();
        assert!(a.iter().all(|value| value.abs() <= bound) && a.iter().any(|value| value.abs() > bound * 0.9));
        assert!(a.iter().sum::<f32>().abs() / (a.len() as f32) < bound * 0.2);
    }

    #[test]
    fn what_can_have_no_adapter_is_refused_with_what_can() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let error = |names: &[&str], rank| adapt(&model, &patterns(names), rank, 1).unwrap_err().to_string();
        assert!(error(&["conv*"], 2).contains("\"conv*\"") && error(&["conv*"], 2).contains("fc1.weight"));
        assert!(error(&["fc2*"], 10).contains("48 × 10") && error(&["fc2*"], 0).contains("1 to 9"));
        let once = adapt(&model, &patterns(&["fc1.weight"]), 2, 1).unwrap().model;
        let again = adapt(&once, &patterns(&["fc1.weight"]), 2, 1).unwrap_err().to_string();
        assert!(again.contains("already"), "{again}");
    }

    #[test]
    fn fields_that_our_protobuf_types_lack_survive() {
        let mut graph = testing::linear();
        let node = [graph.node.remove(0).encode_to_vec(), b"\x4a\x06\x0a\x01k\x12\x01v".to_vec()].concat();
        let mut graph = graph.encode_to_vec();
        put_bytes(&mut graph, GRAPH_NODE, &node);
        let mut file = Vec::new();
        put_bytes(&mut file, 9999, b"from the future");
        put_bytes(&mut file, MODEL_GRAPH, &graph);
        let mut rest = testing::model(testing::linear(), 17);
        rest.graph = None;
        file.extend_from_slice(&rest.encode_to_vec());
        let model = Model::from_bytes(file).unwrap();
        let adapted = adapt(&model, &patterns(&["w"]), 1, 1).unwrap().model;
        let holds = |what: &[u8]| adapted.bytes().windows(what.len()).any(|window| window == what);
        assert!(holds(b"from the future") && holds(b"\x0a\x01k\x12\x01v"));
    }
}
