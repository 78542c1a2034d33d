//! The engine's operations made of burn's, on any backend and its tape.

use burn::backend::ops::PadMode;
use burn::backend::{Backend, Scalar, Slice, TensorMetadata};

use super::super::backend::{Tensor, bool_type};
use super::super::convolve::Sizes;

/// The image is padded first: burn pads both ends alike.
pub(super) fn max_pool<B: Backend>(x: Tensor<B>, sizes: &Sizes) -> Tensor<B> {
    let pads = [0, 1].map(|axis| {
        let reached =
            (sizes.out[axis] - 1) * sizes.strides[axis] + sizes.dilations[axis] * (sizes.kernel[axis] - 1) + 1;
        (sizes.pads[axis], reached.saturating_sub(sizes.pads[axis] + sizes.size[axis]))
    });
    let padded = match pads {
        [(0, 0), (0, 0)] => x,
        [rows, columns] => B::float_pad(x, &[(0, 0), (0, 0), rows, columns], PadMode::Constant(f32::NEG_INFINITY)),
    };
    let found = B::max_pool2d(padded, sizes.kernel, sizes.strides, [0, 0], sizes.dilations, false);
    // What lies behind the last window may hold another.
    let [rows, columns] = sizes.out;
    let whole = [sizes.batch, sizes.channels, rows, columns];
    if found.shape()[..] == whole {
        return found;
    }
    B::float_slice(found, &whole.map(|len| Slice::from(0..len)))
}

/// Burn's own clamp passes the gradient on at a bound.
pub(super) fn clamp<B: Backend>(x: Tensor<B>, low: f32, high: f32) -> Tensor<B> {
    let (low, high) = (Scalar::Float(low.into()), Scalar::Float(high.into()));
    let held = B::float_detach(B::float_clamp(x.clone(), low, high));
    let bools = bool_type::<B>();
    let below = B::float_lower_equal_elem(x.clone(), low, bools);
    let above = B::float_greater_equal_elem(x.clone(), high, bools);
    B::float_mask_where(x, B::bool_or(below, above), held)
}

/// x Φ(x). Burn's own has the gradient of the approximation by tanh.
pub(super) fn exact_gelu<B: Backend>(x: Tensor<B>) -> Tensor<B> {
    let scaled = B::float_mul_scalar(x.clone(), Scalar::Float(std::f64::consts::FRAC_1_SQRT_2));
    let gate = B::float_add_scalar(B::float_erf(scaled), Scalar::Float(1.0));
    B::float_mul(B::float_mul_scalar(x, Scalar::Float(0.5)), gate)
}
