//! Writes the QDQ graph: Quantize/Dequantize pairs on activations, Dequantize nodes on int8 weights and int32 biases.
//! The layout is that of ONNX Runtime's static quantizer, so that its optimizer fuses the pairs into integer kernels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::build::{self, Names, Room};
use super::numbers::{self, Affine};
use super::plan::{Anchor, Plan};
use super::{QuantizeError, QuantizedTensor, Role};
use crate::model::tensor;
use crate::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

/// What a channel takes beside its weights: two scales, a bias and two zero points.
const BYTES_OF_CHANNEL: usize = 24;

/// Rewrites the graph in place and reports each quantized tensor. `scales` holds an entry for each value that
/// `plan.values` takes its scale from; weights are cut to ±`limit`.
pub(super) fn emit(
    graph: &mut GraphProto,
    plan: &Plan,
    scales: &BTreeMap<String, Affine>,
    limit: f32,
) -> Result<Vec<QuantizedTensor>, QuantizeError> {
    let mut emitter = Emitter {
        names: Names::of(graph),
        room: Room::of(graph),
        scales,
        plan,
        weights: graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect(),
        parameters: HashMap::new(),
        replaced: HashMap::new(),
        nodes: Vec::new(),
        initializers: Vec::new(),
        report: Vec::new(),
    };
    let outputs: BTreeSet<String> = graph.output.iter().map(|value| value.name.clone()).collect();
    for value in &graph.input {
        if plan.values.contains_key(&value.name) {
            let dequantized = emitter.names.fresh(&format!("{}_DequantizeLinear_Output", value.name));
            emitter.pair(&value.name, &value.name, dequantized)?;
        }
    }
    for (index, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        emitter.node(node, plan.anchors.get(&index), limit, &outputs)?;
    }
    let Emitter { nodes, initializers, report, .. } = emitter;
    graph.node = nodes;
    graph.initializer.extend(initializers);
    drop_unused(graph);
    // Types and shapes of the old values are of no use to runtimes, which infer the new ones.
    graph.value_info.clear();
    graph.quantization_annotation.clear();
    Ok(report)
}

struct Emitter<'p> {
    names: Names,
    room: Room,
    scales: &'p BTreeMap<String, Affine>,
    plan: &'p Plan,
    weights: HashMap<String, TensorProto>,
    /// Scale and zero point initializers by the value that they were made for.
    parameters: HashMap<String, (String, String)>,
    /// What readers of a quantized value read instead.
    replaced: HashMap<String, String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    report: Vec<QuantizedTensor>,
}

impl Emitter<'_> {
    fn node(
        &mut self,
        mut node: NodeProto,
        anchor: Option<&Anchor>,
        limit: f32,
        outputs: &BTreeSet<String>,
    ) -> Result<(), QuantizeError> {
        if let Some(anchor) = anchor {
            self.weights_of(&mut node, anchor, limit)?;
        }
        for input in &mut node.input {
            if let Some(replacement) = self.replaced.get(input) {
                input.clone_from(replacement);
            }
        }
        let mut pairs = Vec::new();
        for output in &mut node.output {
            if !self.plan.values.contains_key(output) {
                continue;
            }
            // The graph's output keeps its name, so the value before the pair takes a new one.
            let value = output.clone();
            let dequantized = if outputs.contains(&value) {
                *output = self.names.fresh(&format!("{value}_QuantizeLinear_Input"));
                value.clone()
            } else {
                self.names.fresh(&format!("{value}_DequantizeLinear_Output"))
            };
            pairs.push((value, output.clone(), dequantized));
        }
        self.nodes.push(node);
        for (value, source, dequantized) in pairs {
            self.pair(&value, &source, dequantized)?;
        }
        Ok(())
    }

    /// Adds the pair that reads `source`, and sends the readers of `value` to its end, `dequantized`.
    fn pair(&mut self, value: &str, source: &str, dequantized: String) -> Result<(), QuantizeError> {
        let root = self.plan.values.get(value).map_or(value, String::as_str);
        let (scale, zero_point) = self.activation_parameters(root)?;
        let quantized = self.names.fresh(&format!("{value}_QuantizeLinear_Output"));
        let name = self.names.fresh(&format!("{value}_QuantizeLinear"));
        let inputs = vec![source.to_owned(), scale.clone(), zero_point.clone()];
        self.nodes.push(build::node("QuantizeLinear", name, inputs, vec![quantized.clone()]));
        let name = self.names.fresh(&format!("{value}_DequantizeLinear"));
        let inputs = vec![quantized, scale, zero_point];
        self.nodes.push(build::node("DequantizeLinear", name, inputs, vec![dequantized.clone()]));
        self.replaced.insert(value.to_owned(), dequantized);
        let affine = self.affine(root)?;
        self.report.push(QuantizedTensor {
            name: value.to_owned(),
            role: Role::Activation,
            min: affine.min,
            max: affine.max,
            scale: affine.scale,
            zero_point: i32::from(affine.zero_point),
            channels: 1,
        });
        Ok(())
    }

    fn affine(&self, root: &str) -> Result<Affine, QuantizeError> {
        self.scales
            .get(root)
            .copied()
            .ok_or_else(|| QuantizeError::Model(format!("the activation {root:?} has no range")))
    }

    fn activation_parameters(&mut self, root: &str) -> Result<(String, String), QuantizeError> {
        if let Some(names) = self.parameters.get(root) {
            return Ok(names.clone());
        }
        let affine = self.affine(root)?;
        let scale = self.names.fresh(&format!("{root}_scale"));
        let zero_point = self.names.fresh(&format!("{root}_zero_point"));
        self.initializers.push(build::tensor(scale.clone(), DataType::Float, &[], build::float_bytes(&[affine.scale])));
        self.initializers.push(build::tensor(zero_point.clone(), DataType::Uint8, &[], vec![affine.zero_point]));
        self.parameters.insert(root.to_owned(), (scale.clone(), zero_point.clone()));
        Ok((scale, zero_point))
    }

    /// Replaces a node's weights and bias by dequantized integers.
    fn weights_of(&mut self, node: &mut NodeProto, anchor: &Anchor, limit: f32) -> Result<(), QuantizeError> {
        let missing = |name: &str| QuantizeError::Model(format!("the weights {name:?} cannot be read"));
        let input = node.input.first().map_or("", String::as_str);
        let root = self.plan.values.get(input).map_or(input, String::as_str);
        let input_scale = self.affine(root)?.scale;
        let shape = tensor::shape(self.weights.get(&anchor.weight).ok_or_else(|| missing(&anchor.weight))?)?;
        let channels = shape.get(anchor.axis).copied().unwrap_or(1);
        let bytes = shape.iter().product::<usize>().saturating_add(channels.saturating_mul(BYTES_OF_CHANNEL));
        self.room.take(bytes).ok_or_else(|| {
            QuantizeError::Model(format!("its nodes read the weights {:?} too often to be quantized", anchor.weight))
        })?;
        let floats = |name: &str| self.weights.get(name).and_then(tensor::floats).ok_or_else(|| missing(name));
        let bias = anchor.bias.as_deref().map(floats).transpose()?;
        let values = floats(&anchor.weight)?;
        let weights = numbers::quantize_weights(&values, &shape, anchor.axis, limit, input_scale, bias.as_deref());
        let raw = weights.values.iter().map(|value| value.to_ne_bytes()[0]).collect();
        let zeros = vec![0; weights.scales.len()];
        let quantized = Quantized { data_type: DataType::Int8, shape: &shape, raw, zeros, scales: &weights.scales };
        node.input[1] = self.dequantize(&anchor.weight, quantized, anchor.axis);
        let reach = limit * weights.scales.iter().copied().fold(0.0, f32::max);
        self.report_constant(&anchor.weight, Role::Weight, reach, &weights.scales);
        if let (Some(name), Some(bias)) = (&anchor.bias, &bias) {
            let (values, scales) = numbers::quantize_bias(bias, input_scale, &weights.scales);
            let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let zeros = vec![0; 4 * scales.len()];
            let shape = [scales.len()];
            let quantized = Quantized { data_type: DataType::Int32, shape: &shape, raw, zeros, scales: &scales };
            node.input[2] = self.dequantize(name, quantized, 0);
            let reach = bias.iter().fold(0f32, |reach, value| reach.max(value.abs()));
            self.report_constant(name, Role::Bias, reach, &scales);
        }
        Ok(())
    }

    /// Adds the initializers and the Dequantize node for a constant, and gives the float value's name.
    fn dequantize(&mut self, name: &str, quantized: Quantized<'_>, axis: usize) -> String {
        let [values, scale, zero_point, result, node] =
            ["quantized", "scale", "zero_point", "DequantizeLinear_Output", "DequantizeLinear"]
                .map(|suffix| self.names.fresh(&format!("{name}_{suffix}")));
        let channels = [quantized.scales.len()];
        self.initializers.push(build::tensor(values.clone(), quantized.data_type, quantized.shape, quantized.raw));
        self.initializers.push(build::tensor(
            scale.clone(),
            DataType::Float,
            &channels,
            build::float_bytes(quantized.scales),
        ));
        self.initializers.push(build::tensor(zero_point.clone(), quantized.data_type, &channels, quantized.zeros));
        let mut node = build::node("DequantizeLinear", node, vec![values, scale, zero_point], vec![result.clone()]);
        node.attribute.push(build::int_attribute("axis", i64::try_from(axis).unwrap_or(0)));
        self.nodes.push(node);
        result
    }

    fn report_constant(&mut self, name: &str, role: Role, reach: f32, scales: &[f32]) {
        let scale = scales.iter().copied().fold(0.0, f32::max);
        let channels = scales.len();
        self.report.push(QuantizedTensor {
            name: name.to_owned(),
            role,
            min: -reach,
            max: reach,
            scale,
            zero_point: 0,
            channels,
        });
    }
}

/// A constant in integers, with a scale for each channel.
struct Quantized<'s> {
    data_type: DataType,
    shape: &'s [usize],
    raw: Vec<u8>,
    zeros: Vec<u8>,
    scales: &'s [f32],
}

/// Float weights that no node reads any more would double the file.
fn drop_unused(graph: &mut GraphProto) {
    let used: BTreeSet<&str> = graph
        .node
        .iter()
        .flat_map(|node| &node.input)
        .chain(graph.output.iter().map(|value| &value.name))
        .map(String::as_str)
        .collect();
    let dropped: BTreeSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| &tensor.name)
        .filter(|name| !used.contains(name.as_str()))
        .cloned()
        .collect();
    graph.initializer.retain(|tensor| !dropped.contains(&tensor.name));
    graph.input.retain(|value| !dropped.contains(&value.name));
}
