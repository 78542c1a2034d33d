//! Steps by a backend's own operations, for numbers that lie on a device: nothing is copied off it.
//! The formulas are those of `slices`.

use burn::backend::{Backend, Scalar, Shape, TensorMetadata};

use super::{Now, Optimizer, Terms};
use crate::training::backend::Tensor;

pub(super) fn step<B: Backend>(
    now: &Now,
    values: &mut Tensor<B>,
    gradient: Tensor<B>,
    [first, second]: &mut [Option<Tensor<B>>; 2],
    terms: &Terms<'_, B>,
) {
    let times = |x: Tensor<B>, factor: f32| B::float_mul_scalar(x, Scalar::Float(f64::from(factor)));
    let (decay, decoupled) = now.decay();
    let mut slope = gradient;
    if decoupled && decay != 0.0 {
        *values = times(values.clone(), 1.0 - now.rate() * decay);
    } else if decay != 0.0 {
        slope = B::float_add(slope, times(values.clone(), decay));
    }
    if let Some(start) = terms.start.filter(|_| now.proximal_mu != 0.0) {
        slope = B::float_add(slope, times(B::float_sub(values.clone(), start.clone()), now.proximal_mu));
    }
    if let Some(correction) = terms.correction {
        slope = B::float_add(slope, correction.clone());
    }
    // What a moment becomes: the slope's part of it alone at first.
    let moved = |moment: &mut Option<Tensor<B>>, kept: f32, added: Tensor<B>| {
        let new = match moment.take() {
            Some(old) => B::float_add(times(old, kept), added),
            None => added,
        };
        *moment = Some(new.clone());
        new
    };
    let step = match now.optimizer {
        Optimizer::Sgd { momentum: 0.0, .. } => times(slope, now.rate()),
        Optimizer::Sgd { momentum, nesterov, .. } => {
            let velocity = moved(first, momentum, slope.clone());
            let step = if nesterov { B::float_add(slope, times(velocity, momentum)) } else { velocity };
            times(step, now.rate())
        }
        Optimizer::Adam { beta1, beta2, epsilon, .. } => {
            let (rate, root) = now.unbiased(beta1, beta2);
            let mean = moved(first, beta1, times(slope.clone(), 1.0 - beta1));
            let square = moved(second, beta2, times(B::float_mul(slope.clone(), slope), 1.0 - beta2));
            let scale = B::float_add_scalar(times(B::float_sqrt(square), 1.0 / root), Scalar::Float(epsilon.into()));
            times(B::float_div(mean, scale), rate)
        }
    };
    *values = B::float_sub(values.clone(), step);
}

/// The norm is summed in the device's single precision: where it overflows, the step is nothing.
pub(super) fn clip<B: Backend>(gradients: &mut [Option<Tensor<B>>], limit: f32) {
    let squares = |slope: &Tensor<B>| B::float_sum(B::float_mul(slope.clone(), slope.clone()));
    let Some(sum) = gradients.iter().flatten().map(squares).reduce(|sum, one| B::float_add(sum, one)) else { return };
    let norm = B::float_add_scalar(B::float_sqrt(sum), Scalar::Float(1e-6));
    let factor = B::float_mul_scalar(B::float_recip(norm), Scalar::Float(limit.into()));
    let factor = B::float_clamp_max(factor, Scalar::Float(1.0));
    for gradient in gradients.iter_mut().flatten() {
        let ones = Shape::from(vec![1; gradient.shape().num_dims()]);
        *gradient = B::float_mul(gradient.clone(), B::float_reshape(factor.clone(), ones));
    }
}

pub(super) fn follow<B: Backend>(running: &mut Tensor<B>, batch: Tensor<B>, momentum: f32, factor: f32) {
    let times = |x: Tensor<B>, factor: f32| B::float_mul_scalar(x, Scalar::Float(f64::from(factor)));
    *running = B::float_add(times(running.clone(), momentum), times(batch, (1.0 - momentum) * factor));
}
