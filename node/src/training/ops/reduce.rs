//! Sums, means, norms and extremes over axes.
//! The global average of images is in `pooling`.

use burn::backend::Scalar;

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::Value;
use super::{Built, reshape};

pub(super) fn mean<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| each(x, axes, B::float_mean_dim))
}

pub(super) fn sum<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, sums::<B>)
}

/// Of equal ones the first gets the gradient.
pub(super) fn max<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| each(x, axes, B::float_max_dim))
}

/// Of equal ones the first gets the gradient.
pub(super) fn min<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| each(x, axes, B::float_min_dim))
}

pub(super) fn l1<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| sums::<B>(B::float_abs(x), axes))
}

pub(super) fn l2<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| {
        let squares = sums::<B>(B::float_mul(x.clone(), x), axes);
        // The slope of a row of zeros is 0, as PyTorch has it; a root's is infinite there.
        let least = Scalar::Float(f64::from(f32::MIN_POSITIVE));
        B::float_sqrt(B::float_clamp(squares, least, Scalar::Float(f64::INFINITY)))
    })
}

pub(super) fn sum_square<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| sums::<B>(B::float_mul(x.clone(), x), axes))
}

pub(super) fn log_sum<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| B::float_log(sums::<B>(x, axes)))
}

/// Shifted by the maximum, so that no finite number overflows.
pub(super) fn log_sum_exp<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, |x: Tensor<B>, axes| {
        let max = B::float_detach(each(x.clone(), axes, B::float_max_dim));
        let sum = sums::<B>(B::float_exp(B::float_sub(x, max.clone())), axes);
        B::float_add(B::float_log(sum), max)
    })
}

fn sums<B: Engine>(x: Tensor<B>, axes: &[usize]) -> Tensor<B> {
    each(x, axes, B::float_sum_dim)
}

/// Axis by axis; the axes' order does not matter, since a mean of means of equal size is the mean.
fn each<T>(x: T, axes: &[usize], run: fn(T, usize) -> T) -> T {
    axes.iter().fold(x, |x, &axis| run(x, axis))
}

/// `run` gets the axes and keeps each as one entry.
fn over_axes<B: Engine>(node: &Node<'_>, run: fn(Tensor<B>, &[usize]) -> Tensor<B>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axes", "keepdims", "noop_with_empty_axes"])?;
    node.expect_inputs(1..=2)?;
    let x = node.tensor(0)?;
    let rank = x.shape.len();
    let mut reduced = vec![false; rank];
    match node.axes()?.filter(|axes| !axes.is_empty()) {
        None if node.flag("noop_with_empty_axes", false)? => return Ok(Built::Value(Value::Tensor(x.clone()))),
        None => reduced.fill(true),
        Some(axes) => {
            for axis in axes {
                let axis = node.axis(axis, rank)?;
                if let Some(reduced) = reduced.get_mut(axis) {
                    *reduced = true;
                }
            }
        }
    }
    let keep = node.flag("keepdims", true)?;
    let shape: Vec<usize> = x
        .shape
        .iter()
        .zip(&reduced)
        .filter(|&(_, reduced)| keep || !reduced)
        .map(|(&dim, &reduced)| if reduced { 1 } else { dim })
        .collect();
    let axes: Vec<usize> = (0..rank).filter(|&axis| reduced.get(axis) == Some(&true)).collect();
    let target = (!keep).then(|| shape.clone());
    Ok(Built::unary(x, shape, move |x| {
        let y = run(x, &axes);
        match &target {
            Some(shape) => reshape::<B>(y, shape),
            None => y,
        }
    }))
}
