//! Folds a BatchNormalization into the convolution before it, whose weights and bias then do both.
//! Without it no runtime could fuse the pair around such a convolution. Exact up to rounding in float32.

use std::collections::HashMap;

use super::build::{self, Names, Room};
use crate::model::tensor;
use crate::operators::attributes;
use crate::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

/// ONNX's default for BatchNormalization's epsilon.
const EPSILON: f32 = 1e-5;

/// Rewrites each Conv whose result goes to a BatchNormalization alone; all parameters must be float32 initializers. Where
/// many share their weights, only as many are rewritten as there is room for.
pub(super) fn batch_normalization(graph: &mut GraphProto) {
    let mut readers: HashMap<String, usize> = HashMap::new();
    for name in graph.node.iter().flat_map(|node| &node.input).chain(graph.output.iter().map(|value| &value.name)) {
        *readers.entry(name.clone()).or_default() += 1;
    }
    let producers: HashMap<String, usize> = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, node)| node.op_type == "Conv")
        .filter_map(|(index, node)| Some((node.output.first()?.clone(), index)))
        .collect();
    let initializers: HashMap<String, usize> =
        graph.initializer.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
    let (mut names, mut room) = (Names::of(graph), Room::of(graph));
    let mut folded = Vec::new();
    for index in 0..graph.node.len() {
        let Some(norm) = graph.node.get(index).filter(|node| node.op_type == "BatchNormalization") else { continue };
        let Some(&conv) = norm.input.first().and_then(|input| producers.get(input)) else { continue };
        if norm.input.first().and_then(|input| readers.get(input)) != Some(&1) || has_extra_outputs(norm) {
            continue;
        }
        let find = |name: &String| graph.initializer.get(*initializers.get(name)?);
        let Some((weight, bias, shape)) = graph.node.get(conv).and_then(|conv| merged(find, conv, norm, &mut room))
        else {
            continue;
        };
        let output = norm.output.first().cloned();
        let [new_weight, new_bias] = ["weight", "bias"]
            .map(|part| names.fresh(&format!("{}_folded_{part}", output.as_deref().unwrap_or("conv"))));
        let channels = [bias.len()];
        graph.initializer.push(build::tensor(new_weight.clone(), DataType::Float, &shape, build::float_bytes(&weight)));
        graph.initializer.push(build::tensor(new_bias.clone(), DataType::Float, &channels, build::float_bytes(&bias)));
        if let Some(conv) = graph.node.get_mut(conv) {
            conv.input.truncate(1);
            conv.input.extend([new_weight, new_bias]);
            conv.output = output.into_iter().collect();
        }
        folded.push(index);
    }
    let mut index = 0;
    graph.node.retain(|_| {
        index += 1;
        folded.binary_search(&(index - 1)).is_err()
    });
}

fn has_extra_outputs(norm: &NodeProto) -> bool {
    norm.output.iter().skip(1).any(|name| !name.is_empty()) || attributes::int(norm, "training_mode", 0) != 0
}

/// Weights, bias and the weights' shape of both nodes together: w·g/√(v+ε) and (b−m)·g/√(v+ε)+β for each channel.
fn merged<'g>(
    find: impl Fn(&String) -> Option<&'g TensorProto>,
    conv: &NodeProto,
    norm: &NodeProto,
    room: &mut Room,
) -> Option<(Vec<f32>, Vec<f32>, Vec<usize>)> {
    let read = |tensor: &TensorProto, room: &mut Room| {
        room.take(tensor.raw_data.len() + 4 * tensor.float_data.len())?;
        tensor::floats(tensor)
    };
    let weight_tensor = find(conv.input.get(1)?)?;
    let mut weight = read(weight_tensor, room)?;
    let mut floats = |name: &String| read(find(name)?, room);
    let shape = tensor::shape(weight_tensor).ok()?;
    let channels = *shape.first()?;
    let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|slot| norm.input.get(slot).and_then(&mut floats));
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let mut bias = match conv.input.get(2).filter(|name| !name.is_empty()) {
        Some(name) => floats(name)?,
        None => vec![0.0; channels],
    };
    if channels == 0 || [&gamma, &beta, &mean, &variance, &bias].iter().any(|values| values.len() != channels) {
        return None;
    }
    let epsilon = attributes::float(norm, "epsilon", EPSILON);
    let per_channel = weight.len() / channels;
    for (channel, bias) in bias.iter_mut().enumerate() {
        let factor = gamma[channel] / (variance[channel] + epsilon).sqrt();
        for value in &mut weight[channel * per_channel..(channel + 1) * per_channel] {
            *value *= factor;
        }
        *bias = (*bias - mean[channel]) * factor + beta[channel];
    }
    let finite = weight.iter().chain(&bias).all(|value| value.is_finite());
    finite.then_some((weight, bias, shape))
}
