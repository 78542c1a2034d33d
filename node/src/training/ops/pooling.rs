//! Pooling over two spatial axes, and the global average over any number.
//! The window's arithmetic is in `window`.

use burn::backend::Backend;

use super::super::TrainingError;
use super::super::node::Node;
use super::super::value::TensorRef;
use super::window::Window;
use super::{Built, elements, reshape};

pub(super) fn max_pool<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[&Window::ATTRIBUTES[..], &["storage_order"]].concat())?;
    let Pool { x, shape, kernel, strides, dilations, pads, ceil_mode } = pool(node)?;
    Ok(Built::unary(x, shape, move |x| B::max_pool2d(x, kernel, strides, pads, dilations, ceil_mode)))
}

pub(super) fn average_pool<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[&Window::ATTRIBUTES[..], &["count_include_pad"]].concat())?;
    let Pool { x, shape, kernel, strides, dilations, pads, ceil_mode } = pool(node)?;
    if dilations != [1, 1] {
        return Err(node.error("training has AveragePool without dilations only"));
    }
    let include_pad = node.flag("count_include_pad", false)?;
    Ok(Built::unary(x, shape, move |x| B::avg_pool2d(x, kernel, strides, pads, include_pad, ceil_mode)))
}

pub(super) fn global_average_pool<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[])?;
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    let [batch, channels, spatial @ ..] = x.shape.as_slice() else {
        return Err(node.error(format!("a tensor of shape {:?} has no channels", x.shape)));
    };
    let flat = [*batch, *channels, elements(spatial)];
    let mut shape = vec![*batch, *channels];
    shape.resize(x.shape.len(), 1);
    let target = shape.clone();
    Ok(Built::unary(x, shape, move |x| reshape::<B>(B::float_mean_dim(reshape::<B>(x, &flat), 2), &target)))
}

/// A checked window over two axes.
struct Pool<'n> {
    x: &'n TensorRef,
    shape: Vec<usize>,
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 2],
    ceil_mode: bool,
}

fn pool<'n>(node: &'n Node<'_>) -> Result<Pool<'n>, TrainingError> {
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    let &[batch, channels, height, width] = x.shape.as_slice() else {
        return Err(node.error(format!("its input has the shape {:?}; training pools images of rank 4", x.shape)));
    };
    let spatial = [height, width];
    let window = Window::read(node, &spatial, None)?;
    let mut shape = vec![batch, channels];
    shape.extend(window.output(node, &spatial)?);
    for (axis, &(begin, end)) in window.pads.iter().enumerate() {
        if begin != end {
            return Err(node.error(format!("its padding of {begin} before and {end} after axis {axis} is uneven")));
        }
        // A window that lies in the padding alone has no maximum and no mean.
        if begin >= window.extent(axis) {
            return Err(node.error(format!("its padding of {begin} is as wide as its window (axis {axis})")));
        }
    }
    match (
        window.kernel[..].try_into(),
        window.strides[..].try_into(),
        window.dilations[..].try_into(),
        &window.pads[..],
    ) {
        (Ok(kernel), Ok(strides), Ok(dilations), &[(top, _), (left, _)]) => {
            Ok(Pool { x, shape, kernel, strides, dilations, pads: [top, left], ceil_mode: window.ceil_mode })
        }
        _ => Err(node.error("its window does not match its axes")),
    }
}
