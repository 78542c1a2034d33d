//! The convolution on the backend's tensors and on its tape. The arithmetic is in `convolve`; where it does not apply, burn's
//! convolution does.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::{ConvOptions, ModuleOps};
use burn::backend::{DType, Element, TensorMetadata};

use super::super::backend::{Plain, PlainTensor, Taped, Tensor};
use super::super::convolve::{self, Sizes};
use super::super::number::Number;
use super::{done_with, from, register};

pub(super) fn plain(
    x: PlainTensor,
    weight: PlainTensor,
    bias: Option<PlainTensor>,
    options: &ConvOptions<2>,
) -> PlainTensor {
    forward(&x.to_contiguous(), &weight.to_contiguous(), bias.map(|bias| bias.to_contiguous()).as_ref(), options)
}

pub(super) fn taped(
    x: Tensor<Taped>,
    weight: Tensor<Taped>,
    bias: Option<Tensor<Taped>>,
    options: &ConvOptions<2>,
) -> Tensor<Taped> {
    let ((x, node_x), (weight, node_weight)) = (x.into_parts(), weight.into_parts());
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    match bias.map(|bias| bias.into_parts()) {
        None => {
            let prepared = Plainly.prepare::<NoCheckpointing>([node_x, node_weight]).compute_bound().stateful();
            let out = forward(&x, &weight, None, options);
            match prepared {
                OpsKind::Tracked(prepared) => prepared.finish((x, weight, options.clone()), out),
                OpsKind::UnTracked(prepared) => prepared.finish(out),
            }
        }
        Some((bias, node_bias)) => {
            let nodes = [node_x, node_weight, node_bias];
            let prepared = Biased.prepare::<NoCheckpointing>(nodes).compute_bound().stateful();
            let out = forward(&x, &weight, Some(&bias.to_contiguous()), options);
            match prepared {
                OpsKind::Tracked(prepared) => prepared.finish((x, weight, options.clone()), out),
                OpsKind::UnTracked(prepared) => prepared.finish(out),
            }
        }
    }
}

/// What the backward pass needs of the forward one.
type State = (PlainTensor, PlainTensor, ConvOptions<2>);

#[derive(Debug)]
struct Plainly;

#[derive(Debug)]
struct Biased;

impl Backward<Plain, 2> for Plainly {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node_x, node_weight] = ops.parents.map(|node| node.map(|node| node.id));
        let slope = gradients.consume::<Plain>(&ops.node).to_contiguous();
        let wanted = (node_x.is_some(), node_weight.is_some());
        let (of_x, of_weight, _) = backward(&ops.state, &slope, wanted, false);
        done_with([ops.state.0, slope]);
        register(gradients, [(node_x, of_x), (node_weight, of_weight)]);
    }
}

impl Backward<Plain, 3> for Biased {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents.map(|node| node.map(|node| node.id));
        let slope = gradients.consume::<Plain>(&ops.node).to_contiguous();
        let wanted = (node_x.is_some(), node_weight.is_some());
        let (of_x, of_weight, of_bias) = backward(&ops.state, &slope, wanted, node_bias.is_some());
        done_with([ops.state.0, slope]);
        register(gradients, [(node_x, of_x), (node_weight, of_weight), (node_bias, of_bias)]);
    }
}

fn sizes(x: &PlainTensor, weight: &PlainTensor, options: &ConvOptions<2>) -> Option<Sizes> {
    let (&[batch, channels, height, width], &[outputs, _, rows, columns]) = (&x.shape()[..], &weight.shape()[..])
    else {
        return None;
    };
    let (size, kernel) = ([height, width], [rows, columns]);
    let pads = options.padding;
    let out = [0, 1].map(|axis| {
        let extent = options.dilation[axis] * (kernel[axis] - 1) + 1;
        (size[axis] + pads[axis].0 + pads[axis].1).saturating_sub(extent) / options.stride[axis] + 1
    });
    Some(Sizes {
        batch,
        channels,
        size,
        outputs,
        groups: options.groups,
        kernel,
        strides: options.stride,
        dilations: options.dilation,
        pads: [pads[0].0, pads[1].0],
        out,
    })
}

fn forward(x: &PlainTensor, weight: &PlainTensor, bias: Option<&PlainTensor>, options: &ConvOptions<2>) -> PlainTensor {
    let Some(s) = sizes(x, weight, options) else {
        return Plain::conv2d(x.clone(), weight.clone(), bias.cloned(), options.clone());
    };
    let shape = vec![s.batch, s.outputs, s.out[0], s.out[1]];
    if x.dtype() == DType::F64 {
        let bias = bias.map(|bias| bias.storage::<f64>());
        return from(convolve::forward(&s, x.storage::<f64>(), weight.storage::<f64>(), bias), shape);
    }
    let bias = bias.map(|bias| bias.storage::<f32>());
    from(convolve::forward(&s, x.storage::<f32>(), weight.storage::<f32>(), bias), shape)
}

type Three = (Option<PlainTensor>, Option<PlainTensor>, Option<PlainTensor>);

fn backward((x, weight, options): &State, slope: &PlainTensor, wanted: (bool, bool), want_bias: bool) -> Three {
    fn of<T: Number + Element>(
        s: &Sizes,
        (x, weight, slope): (&[T], &[T], &[T]),
        shapes: [Vec<usize>; 2],
        wanted: (bool, bool),
        want_bias: bool,
    ) -> Three {
        let (of_x, of_weight) = convolve::backward(s, x, weight, slope, wanted);
        let [shape_x, shape_weight] = shapes;
        let of_bias = want_bias.then(|| from(convolve::bias_gradient(s, slope), vec![s.outputs]));
        (of_x.map(|values| from(values, shape_x)), of_weight.map(|values| from(values, shape_weight)), of_bias)
    }
    let Some(s) = sizes(x, weight, options) else { return (None, None, None) };
    let shapes = [x.shape().to_vec(), weight.shape().to_vec()];
    if x.dtype() == DType::F64 {
        let values = (x.storage::<f64>(), weight.storage::<f64>(), slope.storage::<f64>());
        return of(&s, values, shapes, wanted, want_bias);
    }
    of(&s, (x.storage::<f32>(), weight.storage::<f32>(), slope.storage::<f32>()), shapes, wanted, want_bias)
}
