//! Sums and means over axes.
//! The global average of images is in `pooling`.

use burn::backend::Backend;

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::node::Node;
use super::super::value::Value;
use super::{Built, reshape};

pub(super) fn mean<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, B::float_mean_dim)
}

pub(super) fn sum<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    over_axes(node, B::float_sum_dim)
}

/// Axis by axis; the axes' order does not matter, since a mean of means of equal size is the mean.
fn over_axes<B: Backend>(node: &Node<'_>, run: fn(Tensor<B>, usize) -> Tensor<B>) -> Result<Built<B>, TrainingError> {
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
        let y = axes.iter().fold(x, |x, &axis| run(x, axis));
        match &target {
            Some(shape) => reshape::<B>(y, shape),
            None => y,
        }
    }))
}
