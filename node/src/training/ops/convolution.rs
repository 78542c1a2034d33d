//! Conv and ConvTranspose over one or two spatial axes, with groups, dilations and padding of either side.
//! The window's arithmetic is in `window`.

use burn::backend::ops::{ConvOptions, ConvTransposeOptions};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::select::range;
use super::window::Window;
use super::{Built, Kernel, reshape};

pub(super) fn conv<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["kernel_shape", "strides", "dilations", "pads", "auto_pad", "group"])?;
    node.expect_inputs(2..=3)?;
    let (x, weight, bias) = (node.tensor(0)?, node.tensor(1)?, node.optional_tensor(2)?);
    let ([batch, channels, spatial @ ..], [outputs, inputs, kernel @ ..]) =
        (x.shape.as_slice(), weight.shape.as_slice())
    else {
        return Err(node.error(format!("shapes {:?} and {:?} are no image and filter", x.shape, weight.shape)));
    };
    if spatial.len() != kernel.len() {
        return Err(node.error(format!("a filter of shape {:?} does not fit {:?}", weight.shape, x.shape)));
    }
    let groups = node.int("group", 1)?;
    let groups = usize::try_from(groups).ok().filter(|&groups| groups > 0);
    let Some(groups) = groups.filter(|&groups| inputs.checked_mul(groups) == Some(*channels) && outputs % groups == 0)
    else {
        return Err(node.error(format!(
            "{channels} channels, a filter of shape {:?} and group {} do not match",
            weight.shape,
            node.int("group", 1)?
        )));
    };
    if let Some(bias) = bias
        && bias.shape != [*outputs]
    {
        return Err(node.error(format!("a bias of shape {:?} does not fit {outputs} filters", bias.shape)));
    }
    let window = Window::read(node, spatial, Some(kernel))?;
    let mut shape = vec![*batch, *outputs];
    shape.extend(window.output(node, spatial)?);
    let plane = shape.get(2..).unwrap_or_default();
    node.fits("its unfolded windows", &[&unfolded(*batch, *inputs, kernel), plane].concat())?;
    // What `convolve` may lay out at a time, at most: what lines of a sample see, which may be all of it, and the weight.
    let vectors = |channels: usize| channels.next_multiple_of(VECTOR);
    node.fits("its input in whole vectors", &[&[vectors(*channels)], spatial].concat())?;
    node.fits("its weight in whole vectors", &[&[vectors(*outputs), vectors(*inputs)], kernel].concat())?;
    let kernel = match spatial.len() {
        1 => {
            // A signal is an image of one row.
            let options = options(node, &row(&window), groups)?;
            let (image, filter) = (as_image(&x.shape), as_image(&weight.shape));
            let target = shape.clone();
            Kernel::Affine(Box::new(move |x, weight, bias| {
                let (x, weight) = (reshape::<B>(x, &image), reshape::<B>(weight, &filter));
                reshape::<B>(B::convolve(x, weight, bias, &options), &target)
            }))
        }
        2 => {
            let options = options(node, &window, groups)?;
            Kernel::Affine(Box::new(move |x, weight, bias| B::convolve(x, weight, bias, &options)))
        }
        axes => return Err(node.error(format!("it has {axes} spatial axes; training has Conv with 1 or 2"))),
    };
    let inputs = [Some(x), Some(weight), bias].into_iter().flatten().cloned().collect();
    Ok(Built::step(inputs, shape, kernel))
}

/// Channels that are laid together at least.
const VECTOR: usize = 16;

/// Sizes of what the threads of burn's convolutions unfold at a time, but for the plane of one channel.
fn unfolded(batch: usize, channels: usize, kernel: &[usize]) -> Vec<usize> {
    [&[batch.min(rayon::current_num_threads()), channels], kernel].concat()
}

/// The window of one row over images of one row.
fn row(window: &Window) -> Window {
    let before = |list: &[usize]| [&[1], list].concat();
    Window {
        kernel: before(&window.kernel),
        strides: before(&window.strides),
        dilations: before(&window.dilations),
        pads: [&[(0, 0)], window.pads.as_slice()].concat(),
        ceil_mode: window.ceil_mode,
    }
}

fn as_image(shape: &[usize]) -> Vec<usize> {
    let (before, after) = shape.split_at(2.min(shape.len()));
    [before, &[1], after].concat()
}

fn options(node: &Node<'_>, window: &Window, groups: usize) -> Result<ConvOptions<2>, TrainingError> {
    let array = |values: &[usize]| <[usize; 2]>::try_from(values).ok();
    let pads = <[(usize, usize); 2]>::try_from(window.pads.as_slice()).ok();
    let (Some(strides), Some(dilations), Some(pads)) = (array(&window.strides), array(&window.dilations), pads) else {
        return Err(node.error("its window does not match its axes"));
    };
    Ok(ConvOptions::new_with_padding(strides, pads, dilations, groups))
}

pub(super) fn conv_transpose<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[
        "kernel_shape",
        "strides",
        "dilations",
        "pads",
        "auto_pad",
        "group",
        "output_padding",
        "output_shape",
    ])?;
    node.expect_inputs(2..=3)?;
    let (x, weight, bias) = (node.tensor(0)?, node.tensor(1)?, node.optional_tensor(2)?);
    let ([batch, channels, spatial @ ..], [inputs, filters, kernel @ ..]) =
        (x.shape.as_slice(), weight.shape.as_slice())
    else {
        return Err(node.error(format!("shapes {:?} and {:?} are no image and filter", x.shape, weight.shape)));
    };
    let groups = usize::try_from(node.int("group", 1)?).ok().filter(|&groups| groups > 0 && inputs % groups == 0);
    let outputs = groups.and_then(|groups| filters.checked_mul(groups));
    let (Some(groups), Some(outputs)) =
        (groups, outputs.filter(|_| inputs == channels && spatial.len() == kernel.len()))
    else {
        return Err(node.error(format!("a filter of shape {:?} does not fit {:?}", weight.shape, x.shape)));
    };
    if let Some(bias) = bias
        && bias.shape != [outputs]
    {
        return Err(node.error(format!("a bias of shape {:?} does not fit {outputs} filters", bias.shape)));
    }
    let (window, more, cuts) = Window::transposed(node, spatial, kernel)?;
    let mut shape = vec![*batch, outputs];
    shape.extend(cuts.iter().map(|(_, size)| size));
    let whole = |axis: usize, &size: &usize| {
        let at = |list: &[usize]| list.get(axis).copied().unwrap_or(0);
        at(&window.strides) * (size - 1) + window.extent(axis) + at(&more)
    };
    let whole: Vec<usize> = spatial.iter().enumerate().map(|(axis, size)| whole(axis, size)).collect();
    if shape.get(2..) != Some(&whole) {
        node.hold("its output before its pads are cut off", &[&[*batch, outputs], &*whole].concat())?;
    }
    node.fits("its unfolded windows", &[&unfolded(*batch, *filters, kernel), spatial].concat())?;
    let run: AffineRun<B> = match spatial.len() {
        1 => {
            let options = transposed::<1>(node, &window, &more, groups)?;
            Box::new(move |x, weight, bias| B::conv_transpose1d(x, weight, bias, options.clone()))
        }
        2 => {
            let options = transposed::<2>(node, &window, &more, groups)?;
            Box::new(move |x, weight, bias| B::conv_transpose2d(x, weight, bias, options.clone()))
        }
        axes => return Err(node.error(format!("it has {axes} spatial axes; training has ConvTranspose with 1 or 2"))),
    };
    // The backend gives the whole; padding cuts it on either side.
    let kernel = Kernel::Affine(Box::new(move |x, weight, bias| {
        let cut = |y, (axis, &(start, size)): (usize, &(usize, usize))| range::<B>(y, axis + 2, start, start + size);
        cuts.iter().enumerate().fold(run(x, weight, bias), cut)
    }));
    let inputs = [Some(x), Some(weight), bias].into_iter().flatten().cloned().collect();
    Ok(Built::step(inputs, shape, kernel))
}

type AffineRun<B> = Box<dyn Fn(Tensor<B>, Tensor<B>, Option<Tensor<B>>) -> Tensor<B> + Send + Sync>;

fn transposed<const N: usize>(
    node: &Node<'_>,
    window: &Window,
    more: &[usize],
    groups: usize,
) -> Result<ConvTransposeOptions<N>, TrainingError> {
    let array = |values: &[usize]| <[usize; N]>::try_from(values).ok();
    match (array(&window.strides), array(&window.dilations), array(more)) {
        (Some(strides), Some(dilations), Some(more)) => {
            Ok(ConvTransposeOptions::new(strides, [0; N], more, dilations, groups))
        }
        _ => Err(node.error("its window does not match its axes")),
    }
}
