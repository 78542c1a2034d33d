//! BatchNormalization, Softmax and LogSoftmax.
//! When running statistics are updated, `trainer` decides; how, is here.

use burn::backend::Backend;

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::node::Node;
use super::super::value::{Origin, TensorRef};
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
pub(in super::super) struct BatchStatistics<B: Backend> {
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
    pub(in super::super) fn run<B: Backend>(
        &self,
        [x, scale, bias, mean, variance]: [Tensor<B>; 5],
        statistics: &mut Vec<BatchStatistics<B>>,
    ) -> Tensor<B> {
        let Some(update) = &self.update else {
            return B::batch_norm(x, scale, bias, mean, variance, self.epsilon);
        };
        let result = B::batch_norm_train(x, scale, bias, self.epsilon);
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

/// Moves a running statistic towards a batch's: running ← m·running + (1 − m)·batch, with m ONNX's momentum. `factor`
/// is 1 for a mean and n/(n−1) for a variance over n values: PyTorch keeps the unbiased one.
pub(in super::super) fn follow(running: &mut [f32], batch: &[f32], momentum: f32, factor: f32) {
    for (running, batch) in running.iter_mut().zip(batch) {
        *running = momentum * *running + (1.0 - momentum) * factor * batch;
    }
}

/// Batch normalization (Ioffe and Szegedy, 2015) over axis 1.
pub(super) fn batch_norm<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
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
    Ok(Built::Step { inputs, shape: x.shape.clone(), kernel })
}

/// The parameter index of a running statistic.
fn statistic(node: &Node<'_>, input: usize) -> Result<usize, TrainingError> {
    match node.tensor(input)? {
        TensorRef { slot, origin: Origin::Statistic, .. } => Ok(*slot),
        _ => Err(node.error(format!("its input {input} must be a running statistic that the file holds"))),
    }
}

pub(super) fn softmax<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    along_axis(node, B::softmax)
}

pub(super) fn log_softmax<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    along_axis(node, B::log_softmax)
}

/// Since operator set 13 the axis is the one that sums to 1; before, everything from the axis on counts as one.
fn along_axis<B: Backend>(node: &Node<'_>, run: fn(Tensor<B>, usize) -> Tensor<B>) -> Result<Built<B>, TrainingError> {
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
