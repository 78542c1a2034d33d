//! Values held between two bounds, forward and backward in one pass over memory each.
//! What is kept for the backward pass is the result, which the next layer keeps anyway.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{DType, Element, TensorMetadata};
use rayon::prelude::*;

use super::super::backend::{Plain, PlainTensor, Taped, Tensor};
use super::super::number::{Number, vectorized};
use super::super::spare;
use super::{Stored, done_with, from, register, whole};

/// Values that a thread takes at a time.
const PIECE: usize = 1 << 14;

pub(super) fn plain(x: PlainTensor, low: f32, high: f32) -> PlainTensor {
    fn of<T: Stored>(mut x: PlainTensor, low: T, high: T) -> PlainTensor {
        // In place where nobody else has it.
        if let Some(values) = T::values_mut(&mut x) {
            clamp(values, low, high);
            return x;
        }
        let mut values = spare::take(x.layout().num_elements());
        values.copy_from_slice(T::values(&x));
        clamp(&mut values, low, high);
        from(values, x.shape().to_vec())
    }
    let x = whole(x);
    match x.dtype() {
        DType::F64 => of(x, f64::from(low), f64::from(high)),
        _ => of(x, low, high),
    }
}

pub(super) fn taped(x: Tensor<Taped>, low: f32, high: f32) -> Tensor<Taped> {
    let (x, node) = x.into_parts();
    let prepared = Clamp.prepare::<NoCheckpointing>([node]).compute_bound().stateful();
    let out = plain(x, low, high);
    match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((out.clone(), low, high), out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    }
}

#[derive(Debug)]
struct Clamp;

impl Backward<Plain, 1> for Clamp {
    type State = (PlainTensor, f32, f32);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents.map(|node| node.map(|node| node.id));
        let slope = gradients.consume::<Plain>(&ops.node).to_contiguous();
        let (out, low, high) = ops.state;
        let shape = out.shape().to_vec();
        let gradient = match out.dtype() {
            DType::F64 => from(inside(out.storage(), slope.storage::<f64>(), f64::from(low), f64::from(high)), shape),
            _ => from(inside(out.storage(), slope.storage::<f32>(), low, high), shape),
        };
        done_with([out, slope]);
        register(gradients, [(node, Some(gradient))]);
    }
}

/// NaN stays NaN.
fn clamp<T: Number>(values: &mut [T], low: T, high: T) {
    values.par_chunks_mut(PIECE).for_each(|values| {
        vectorized(
            #[inline(always)]
            || {
                for value in values.iter_mut() {
                    let above = if *value < low { low } else { *value };
                    *value = if above > high { high } else { above };
                }
            },
        );
    });
}

/// The slope where the result is off both bounds.
fn inside<T: Number + Element>(out: &[T], slope: &[T], low: T, high: T) -> Vec<T> {
    let mut gradient = spare::take(slope.len());
    gradient.par_chunks_mut(PIECE).zip(out.par_chunks(PIECE).zip(slope.par_chunks(PIECE))).for_each(
        |(gradient, (out, slope))| {
            vectorized(
                #[inline(always)]
                || {
                    for (gradient, (out, slope)) in gradient.iter_mut().zip(out.iter().zip(slope)) {
                        // Without a branch: which values are cut off is anybody's guess.
                        let off_bounds = (*out > low) & (*out < high);
                        *gradient = if off_bounds { *slope } else { T::zero() };
                    }
                },
            );
        },
    );
    gradient
}
