//! Pooling over one or two spatial axes, and global pooling over any number.
//! The window's arithmetic is in `window`.

use burn::backend::ops::PadMode;
use burn::backend::{Shape, TensorData, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::convolve::Sizes;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::TensorRef;
use super::window::Window;
use super::{Built, elements, reshape};

pub(super) fn max_pool<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[&Window::ATTRIBUTES[..], &["storage_order"]].concat())?;
    let Pool { x, shape, image, pooled, kernel, strides, dilations, pads, .. } = pool(node)?;
    let ([batch, channels, height, width], [_, _, rows, columns]) = (image, pooled);
    let sizes = Sizes {
        batch,
        channels,
        size: [height, width],
        outputs: channels,
        groups: channels,
        kernel,
        strides,
        dilations,
        pads: pads.map(|(begin, _)| begin),
        out: [rows, columns],
    };
    let target = shape.clone();
    Ok(Built::unary(x, shape, move |x| reshape::<B>(B::max_pool(reshape::<B>(x, &image), &sizes), &target)))
}

pub(super) fn average_pool<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[&Window::ATTRIBUTES[..], &["count_include_pad"]].concat())?;
    let include_pad = node.flag("count_include_pad", false)?;
    let Pool { x, shape, image, pooled, kernel, strides, dilations, pads, room } = pool(node)?;
    if dilations != [1, 1] {
        return Err(node.error("training has AveragePool without dilations only"));
    }
    // The mean over the whole window, times what share of the window counts.
    let [_, _, height, width] = pooled;
    let share = |axis: usize, index: usize| {
        let (start, end) = (index * strides[axis], index * strides[axis] + kernel[axis]);
        let (low, high) = if include_pad { (0, room[axis]) } else { (pads[axis].0, pads[axis].0 + image[axis + 2]) };
        end.min(high).saturating_sub(start.max(low)) as f64 / kernel[axis] as f64
    };
    let factors: Vec<f64> = (0..height)
        .flat_map(|row| (0..width).map(move |column| (row, column)))
        .map(|(row, column)| 1.0 / (share(0, row) * share(1, column)))
        .collect();
    let whole = factors.iter().all(|factor| *factor == 1.0);
    let target = shape.clone();
    Ok(Built::unary(x, shape, move |x| {
        let x = padded::<B>(reshape::<B>(x, &image), pads);
        let mean = cut::<B>(B::avg_pool2d(x, kernel, strides, [0, 0], true, false), &pooled);
        let mean = if whole { mean } else { scaled::<B>(mean, &factors, [height, width]) };
        reshape::<B>(mean, &target)
    }))
}

/// Times one factor for each place of the image.
fn scaled<B: Engine>(x: Tensor<B>, factors: &[f64], [height, width]: [usize; 2]) -> Tensor<B> {
    let shape = Shape::from(vec![1, 1, height, width]);
    let data = TensorData::new(factors.to_vec(), shape).convert_dtype(x.dtype());
    B::float_mul(x, B::float_from_data(data, &B::Device::default()))
}

/// With zeros around.
fn padded<B: Engine>(x: Tensor<B>, [rows, columns]: [(usize, usize); 2]) -> Tensor<B> {
    if [rows, columns] == [(0, 0); 2] {
        return x;
    }
    B::float_pad(x, &[(0, 0), (0, 0), rows, columns], PadMode::Constant(0.0))
}

/// Padding that is longer than the last window needs may add a place.
fn cut<B: Engine>(x: Tensor<B>, [_, _, height, width]: &[usize; 4]) -> Tensor<B> {
    super::select::range::<B>(super::select::range::<B>(x, 2, 0, *height), 3, 0, *width)
}

pub(super) fn global_average_pool<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    global(node, B::float_mean_dim)
}

pub(super) fn global_max_pool<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    global(node, B::float_max_dim)
}

fn global<B: Engine>(node: &Node<'_>, run: fn(Tensor<B>, usize) -> Tensor<B>) -> Result<Built<B>, TrainingError> {
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
    Ok(Built::unary(x, shape, move |x| reshape::<B>(run(reshape::<B>(x, &flat), 2), &target)))
}

/// A checked window over two axes; one axis is an image of one row.
struct Pool<'n> {
    x: &'n TensorRef,
    shape: Vec<usize>,
    /// The input as images.
    image: [usize; 4],
    /// The output as images.
    pooled: [usize; 4],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Padding before and after each axis, with what the last window reaches over.
    pads: [(usize, usize); 2],
    /// Sizes with the file's own padding alone.
    room: [usize; 2],
}

fn pool<'n>(node: &'n Node<'_>) -> Result<Pool<'n>, TrainingError> {
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    let (&[batch, channels], spatial) = match x.shape.split_first_chunk::<2>() {
        Some((first, spatial @ ([_] | [_, _]))) => (first, spatial),
        _ => {
            return Err(
                node.error(format!("its input has the shape {:?}; training pools over one or two axes", x.shape))
            );
        }
    };
    let window = Window::read(node, spatial, None)?;
    let output = window.output(node, spatial)?;
    let mut pads = Vec::new();
    let mut room = Vec::new();
    for (axis, &(begin, end)) in window.pads.iter().enumerate() {
        // A window that lies in the padding alone has no maximum and no mean.
        if begin >= window.extent(axis) || end >= window.extent(axis) {
            return Err(node.error(format!("its padding of {begin} and {end} is as wide as its window (axis {axis})")));
        }
        let at = |list: &[usize]| list.get(axis).copied().unwrap_or(1);
        let reached = (at(&output) - 1) * at(&window.strides) + window.extent(axis);
        room.push(begin + at(spatial) + end);
        pads.push((begin, end.max(reached.saturating_sub(begin + at(spatial)))));
    }
    let mut shape = vec![batch, channels];
    shape.extend(&output);
    fn two<T: Copy>(values: &[T], one: T) -> [T; 2] {
        match *values {
            [a, b] => [a, b],
            [a] => [one, a],
            _ => [one; 2],
        }
    }
    let ([height, width], [rows, columns]) = (two(spatial, 1), two(&output, 1));
    let pads = two(&pads, (0, 0));
    if pads != [(0, 0); 2] {
        let [vertical, horizontal] = pads.map(|(begin, end)| begin + end);
        node.hold("its padded input", &[batch, channels, height + vertical, width + horizontal])?;
    }
    Ok(Pool {
        x,
        shape,
        image: [batch, channels, height, width],
        pooled: [batch, channels, rows, columns],
        kernel: two(&window.kernel, 1),
        strides: two(&window.strides, 1),
        dilations: two(&window.dilations, 1),
        pads,
        room: two(&room, 1),
    })
}
