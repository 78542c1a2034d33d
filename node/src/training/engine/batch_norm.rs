//! Batch normalization in training, on the backend's tensors and on its tape. The arithmetic is in `normalize`.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{AutodiffBackend, DType, TensorMetadata};

use super::super::backend::{Plain, PlainTensor, Taped, Tensor};
use super::super::normalize::{self, Sizes};
use super::{Normalized, Stored, done_with, from, register};

pub(super) fn plain(x: PlainTensor, scale: PlainTensor, bias: PlainTensor, epsilon: f64) -> Normalized<Plain> {
    let [x, scale, bias] = [x, scale, bias].map(|tensor| tensor.to_contiguous());
    forward(&x, &scale, &bias, epsilon)
}

pub(super) fn taped(x: Tensor<Taped>, scale: Tensor<Taped>, bias: Tensor<Taped>, epsilon: f64) -> Normalized<Taped> {
    let [(x, node_x), (scale, node_scale), (bias, node_bias)] = [x, scale, bias].map(|tensor| tensor.into_parts());
    let prepared = BatchNorm.prepare::<NoCheckpointing>([node_x, node_scale, node_bias]).compute_bound().stateful();
    let [x, scale, bias] = [x, scale, bias].map(|tensor| tensor.to_contiguous());
    let Normalized { output, mean, variance } = forward(&x, &scale, &bias, epsilon);
    let output = match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((x, scale, mean.clone(), variance.clone(), epsilon), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Normalized { output, mean: Taped::from_inner(mean), variance: Taped::from_inner(variance) }
}

#[derive(Debug)]
struct BatchNorm;

impl Backward<Plain, 3> for BatchNorm {
    /// x, scale, mean, variance, epsilon.
    type State = (PlainTensor, PlainTensor, PlainTensor, PlainTensor, f64);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        fn of<T: Stored>((x, scale, mean, variance, epsilon): &State, slope: &PlainTensor) -> [PlainTensor; 3] {
            let moments = (T::values(mean), T::values(variance));
            let (values, scales) = (T::values(x), T::values(scale));
            let found = normalize::backward(sizes(x), values, scales, moments, T::values(slope), *epsilon);
            let [of_x, of_scale, of_bias] = found;
            let channels = scale.shape().to_vec();
            [from(of_x, x.shape().to_vec()), from(of_scale, channels.clone()), from(of_bias, channels)]
        }
        let slope = gradients.consume::<Plain>(&ops.node).to_contiguous();
        let found = match ops.state.0.dtype() {
            DType::F64 => of::<f64>(&ops.state, &slope),
            _ => of::<f32>(&ops.state, &slope),
        };
        done_with([ops.state.0, slope]);
        let [node_x, node_scale, node_bias] = ops.parents.map(|node| node.map(|node| node.id));
        let [of_x, of_scale, of_bias] = found.map(Some);
        register(gradients, [(node_x, of_x), (node_scale, of_scale), (node_bias, of_bias)]);
    }
}

type State = <BatchNorm as Backward<Plain, 3>>::State;

/// The graph's shapes are checked: there are channels, and none of the sizes is 0.
fn sizes(x: &PlainTensor) -> Sizes {
    let shape = x.shape();
    let [samples, channels] = [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(1).max(1));
    Sizes { samples, channels, plane: shape.iter().skip(2).product::<usize>().max(1) }
}

fn forward(x: &PlainTensor, scale: &PlainTensor, bias: &PlainTensor, epsilon: f64) -> Normalized<Plain> {
    fn of<T: Stored>(x: &PlainTensor, scale: &PlainTensor, bias: &PlainTensor, epsilon: f64) -> Normalized<Plain> {
        let (s, shape) = (sizes(x), x.shape().to_vec());
        let (values, scale, bias) = (T::values(x), T::values(scale), T::values(bias));
        let (mean, variance) = normalize::moments(s, values);
        let output = normalize::forward(s, values, (scale, bias), (&mean, &variance), epsilon);
        let channels = vec![scale.len()];
        Normalized {
            output: from(output, shape),
            mean: from(mean, channels.clone()),
            variance: from(variance, channels),
        }
    }
    match x.dtype() {
        DType::F64 => of::<f64>(x, scale, bias, epsilon),
        _ => of::<f32>(x, scale, bias, epsilon),
    }
}
