//! Maxima of windows on the backend's tensors and on its tape. The arithmetic is in `maximum`.

use std::sync::Arc;

use burn::backend::DType;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::super::backend::{Plain, PlainTensor, Taped, Tensor};
use super::super::convolve::Sizes;
use super::super::maximum;
use super::{done_with, from, register};

pub(super) fn plain(x: PlainTensor, sizes: &Sizes) -> PlainTensor {
    forward(&x.to_contiguous(), sizes).0
}

pub(super) fn taped(x: Tensor<Taped>, sizes: &Sizes) -> Tensor<Taped> {
    let (x, node) = x.into_parts();
    let prepared = MaxPool.prepare::<NoCheckpointing>([node]).compute_bound().stateful();
    let (out, places) = forward(&x.to_contiguous(), sizes);
    match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((Arc::new(places), sizes.clone()), out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    }
}

#[derive(Debug)]
struct MaxPool;

impl Backward<Plain, 1> for MaxPool {
    type State = (Arc<Vec<u32>>, Sizes);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents.map(|node| node.map(|node| node.id));
        let slope = gradients.consume::<Plain>(&ops.node).to_contiguous();
        let (places, sizes) = &ops.state;
        let shape = vec![sizes.batch, sizes.channels, sizes.size[0], sizes.size[1]];
        let gradient = match slope.dtype() {
            DType::F64 => from(maximum::backward(sizes, places, slope.storage::<f64>()), shape),
            _ => from(maximum::backward(sizes, places, slope.storage::<f32>()), shape),
        };
        done_with([slope]);
        register(gradients, [(node, Some(gradient))]);
    }
}

fn forward(x: &PlainTensor, sizes: &Sizes) -> (PlainTensor, Vec<u32>) {
    let shape = vec![sizes.batch, sizes.channels, sizes.out[0], sizes.out[1]];
    // Below every finite number, as padding is.
    match x.dtype() {
        DType::F64 => {
            let (out, places) = maximum::forward(sizes, x.storage::<f64>(), f64::from(f32::MIN));
            (from(out, shape), places)
        }
        _ => {
            let (out, places) = maximum::forward(sizes, x.storage::<f32>(), f32::MIN);
            (from(out, shape), places)
        }
    }
}
