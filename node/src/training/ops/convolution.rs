//! Conv over one or two spatial axes, with groups, dilations and padding of either side.
//! The window's arithmetic is in `window`.

use burn::backend::Backend;
use burn::backend::ops::ConvOptions;

use super::super::TrainingError;
use super::super::node::Node;
use super::window::Window;
use super::{Built, Kernel};

pub(super) fn conv<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
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
    let kernel = match spatial.len() {
        1 => {
            let options = options::<1>(node, &window, groups)?;
            Kernel::Affine(Box::new(move |x, weight, bias| B::conv1d(x, weight, bias, options.clone())))
        }
        2 => {
            let options = options::<2>(node, &window, groups)?;
            Kernel::Affine(Box::new(move |x, weight, bias| B::conv2d(x, weight, bias, options.clone())))
        }
        axes => return Err(node.error(format!("it has {axes} spatial axes; training has Conv with 1 or 2"))),
    };
    let inputs = [Some(x), Some(weight), bias].into_iter().flatten().cloned().collect();
    Ok(Built::Step { inputs, shape, kernel })
}

fn options<const N: usize>(node: &Node<'_>, window: &Window, groups: usize) -> Result<ConvOptions<N>, TrainingError> {
    let array = |values: &[usize]| <[usize; N]>::try_from(values).ok();
    let pads = <[(usize, usize); N]>::try_from(window.pads.as_slice()).ok();
    let (Some(strides), Some(dilations), Some(pads)) = (array(&window.strides), array(&window.dilations), pads) else {
        return Err(node.error("its window does not match its axes"));
    };
    Ok(ConvOptions::new_with_padding(strides, pads, dilations, groups))
}
