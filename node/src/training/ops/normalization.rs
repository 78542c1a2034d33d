//! Normalizations by batch, layer, instance and group; Softmax and LogSoftmax.
//! When running statistics are updated, `trainer` decides; how, is in `optimizer`.

use burn::backend::Scalar;

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Origin, TensorRef};
use super::elementwise::{broadcast_shape, lift, lifted};
use super::{Built, Kernel, elements, reshape};

/// A checked BatchNormalization.
#[derive(Clone, Debug)]
pub(in super::super) struct BatchNorm {
    epsilon: f64,
    /// How running statistics follow the batch's; `None` in evaluation, where they are frozen.
    update: Option<Update>,
}

#[derive(Clone, Debug)]
struct Update {
    mean: usize,
    variance: usize,
    momentum: f32,
    count: usize,
}

/// What one batch says about the running statistics of one BatchNormalization.
pub(in super::super) struct BatchStatistics<B: Engine> {
    /// Index of the parameter that holds the running mean.
    pub mean_parameter: usize,
    /// Index of the parameter that holds the running variance.
    pub variance_parameter: usize,
    /// The batch's mean, `[channels]`.
    pub mean: Tensor<B>,
    /// The batch's biased variance, `[channels]`.
    pub variance: Tensor<B>,
    /// ONNX's momentum: the weight of the old value.
    pub momentum: f32,
    /// Values a channel that the batch holds.
    pub count: usize,
}

impl BatchNorm {
    /// Normalizes; in training by the batch's own statistics, which are then pushed to `statistics`.
    pub(in super::super) fn run<B: Engine>(
        &self,
        [x, scale, bias, mean, variance]: [Tensor<B>; 5],
        statistics: &mut Vec<BatchStatistics<B>>,
    ) -> Tensor<B> {
        let Some(update) = &self.update else {
            return B::batch_norm(x, scale, bias, mean, variance, self.epsilon);
        };
        let result = B::normalize(x, scale, bias, self.epsilon);
        statistics.push(BatchStatistics {
            mean_parameter: update.mean,
            variance_parameter: update.variance,
            mean: result.mean,
            variance: result.variance,
            momentum: update.momentum,
            count: update.count,
        });
        result.output
    }
}

/// Batch normalization (Ioffe and Szegedy, 2015) over axis 1.
pub(super) fn batch_norm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["epsilon", "momentum", "training_mode"])?;
    node.expect_inputs(5..=5)?;
    let x = node.tensor(0)?;
    let [batch, channels, spatial @ ..] = x.shape.as_slice() else {
        return Err(node.error(format!("a tensor of shape {:?} has no channels", x.shape)));
    };
    let mut inputs = vec![x.clone()];
    for index in 1..5 {
        let tensor = node.tensor(index)?;
        if tensor.shape != [*channels] {
            return Err(node.error(format!("its input {index} has the shape {:?}, not [{channels}]", tensor.shape)));
        }
        inputs.push(tensor.clone());
    }
    let epsilon = node.float("epsilon", 1e-5)?;
    let momentum = node.float("momentum", 0.9)?;
    if epsilon < 0.0 || !(0.0..=1.0).contains(&momentum) {
        return Err(node.error(format!("epsilon {epsilon} or momentum {momentum} is out of range")));
    }
    let update = if node.training() {
        let (mean, variance) = (statistic(node, 3)?, statistic(node, 4)?);
        Some(Update { mean, variance, momentum, count: batch * elements(spatial) })
    } else {
        None
    };
    let kernel = Kernel::BatchNorm(BatchNorm { epsilon: f64::from(epsilon), update });
    Ok(Built::step(inputs, x.shape.clone(), kernel))
}

/// The parameter index of a running statistic.
fn statistic(node: &Node<'_>, input: usize) -> Result<usize, TrainingError> {
    match node.tensor(input)? {
        TensorRef { slot, origin: Origin::Statistic, .. } => Ok(*slot),
        _ => Err(node.error(format!("its input {input} must be a running statistic that the file holds"))),
    }
}

/// Layer normalization (Ba, Kiros, Hinton 2016) over the axes from `axis` on.
pub(super) fn layer_norm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axis", "epsilon", "stash_type"])?;
    node.expect_inputs(2..=3)?;
    let (x, scale, bias) = (node.tensor(0)?, node.tensor(1)?, node.optional_tensor(2)?);
    let axis = node.axis(node.int("axis", -1)?, x.shape.len())?;
    let (outer, inner) = x.shape.split_at(axis);
    let target = [vec![1; axis], inner.to_vec()].concat();
    for tensor in [Some(scale), bias].into_iter().flatten() {
        if broadcast_shape(inner, &tensor.shape).as_deref() != Some(inner) {
            return Err(node.error(format!("a scale or bias of shape {:?} does not fit {inner:?}", tensor.shape)));
        }
    }
    let epsilon = epsilon(node)?;
    let (flat, shape) = ([elements(outer), elements(inner)], x.shape.clone());
    let lifts = [Some(scale), bias].map(|tensor| tensor.and_then(|tensor| lifted(&tensor.shape, target.len())));
    let kernel = Kernel::Affine(Box::new(move |x, scale, bias| {
        let normal = reshape::<B>(normalized::<B>(reshape::<B>(x, &flat), 1, epsilon), &shape);
        let [lift_scale, lift_bias] = &lifts;
        let scaled = B::float_mul(normal, lift::<B>(scale, lift_scale.as_deref()));
        match bias {
            Some(bias) => B::float_add(scaled, lift::<B>(bias, lift_bias.as_deref())),
            None => scaled,
        }
    }));
    let inputs = [Some(x), Some(scale), bias].into_iter().flatten().cloned().collect();
    Ok(Built::step(inputs, x.shape.clone(), kernel))
}

/// Instance normalization (Ulyanov, Vedaldi, Lempitsky 2016): each channel of each sample by itself.
pub(super) fn instance_norm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["epsilon"])?;
    let channels = node.tensor(0)?.shape.get(1).copied().unwrap_or(0);
    in_groups(node, channels)
}

/// Group normalization (Wu and He 2018).
pub(super) fn group_norm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["epsilon", "num_groups", "stash_type"])?;
    in_groups(node, usize::try_from(node.int("num_groups", 0)?).unwrap_or(0))
}

/// Normalizes groups of channels; scale and bias are one a channel or, before operator set 21, one a group.
fn in_groups<B: Engine>(node: &Node<'_>, groups: usize) -> Result<Built<B>, TrainingError> {
    node.expect_inputs(3..=3)?;
    let (x, scale, bias) = (node.tensor(0)?, node.tensor(1)?, node.tensor(2)?);
    let [batch, channels, spatial @ ..] = x.shape.as_slice() else {
        return Err(node.error(format!("a tensor of shape {:?} has no channels", x.shape)));
    };
    if groups == 0 || channels % groups != 0 || scale.shape != bias.shape {
        return Err(
            node.error(format!("{channels} channels, {groups} groups, a scale of shape {:?} do not fit", scale.shape))
        );
    }
    let epsilon = epsilon(node)?;
    let flat = [*batch, groups, channels / groups * elements(spatial)];
    let scaled = match scale.shape.as_slice() {
        [count] if count == channels => [vec![1, *channels], vec![1; spatial.len()]].concat(),
        [count] if *count == groups => vec![1, groups, 1],
        other => return Err(node.error(format!("a scale of shape {other:?} does not fit {channels} channels"))),
    };
    let shape = x.shape.clone();
    let kernel = Kernel::Affine(Box::new(move |x, scale, bias| {
        let mut y = normalized::<B>(reshape::<B>(x, &flat), 2, epsilon);
        let by_channel = scaled.len() == shape.len() && scaled.get(1) == shape.get(1);
        if by_channel {
            y = reshape::<B>(y, &shape);
        }
        y = B::float_mul(y, reshape::<B>(scale, &scaled));
        if let Some(bias) = bias {
            y = B::float_add(y, reshape::<B>(bias, &scaled));
        }
        if by_channel { y } else { reshape::<B>(y, &shape) }
    }));
    Ok(Built::step(vec![x.clone(), scale.clone(), bias.clone()], x.shape.clone(), kernel))
}

/// (x − mean) / √(variance + ε) along an axis, with the biased variance.
fn normalized<B: Engine>(x: Tensor<B>, axis: usize, epsilon: f64) -> Tensor<B> {
    let centered = B::float_sub(x.clone(), B::float_mean_dim(x, axis));
    let variance = B::float_mean_dim(B::float_mul(centered.clone(), centered.clone()), axis);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, Scalar::Float(epsilon)));
    B::float_div(centered, deviation)
}

fn epsilon(node: &Node<'_>) -> Result<f64, TrainingError> {
    match node.float("epsilon", 1e-5)? {
        epsilon if epsilon >= 0.0 => Ok(f64::from(epsilon)),
        epsilon => Err(node.error(format!("its epsilon {epsilon} is negative"))),
    }
}

pub(super) fn softmax<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    along_axis(node, B::softmax)
}

pub(super) fn log_softmax<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    along_axis(node, B::log_softmax)
}

/// Since operator set 13 the axis is the one that sums to 1; before, everything from the axis on counts as one.
fn along_axis<B: Engine>(node: &Node<'_>, run: fn(Tensor<B>, usize) -> Tensor<B>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axis"])?;
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    let axis = node.axis(node.int("axis", if node.opset() < 13 { 1 } else { -1 })?, x.shape.len())?;
    if node.opset() >= 13 || axis + 1 == x.shape.len() {
        return Ok(Built::unary(x, x.shape.clone(), move |x| run(x, axis)));
    }
    let (outer, inner) = x.shape.split_at(axis);
    let (flat, shape) = ([elements(outer), elements(inner)], x.shape.clone());
    Ok(Built::unary(x, shape.clone(), move |x| reshape::<B>(run(reshape::<B>(x, &flat), 1), &shape)))
}
