//! The numerical backend: which one it is, and how numbers go in and out of it.
//! The interpreter (`graph`, `ops`) is generic over burn's `Backend`; nothing else here names burn's types.

use burn::backend::ops::FloatTensorOps;
use burn::backend::{Autodiff, AutodiffBackend, Backend, DType, Flex, Shape, TensorData, flex::FlexTensor};

use super::TrainingError;

/// The CPU backend without a tape: evaluation runs on it, and parameters live on it between steps.
pub(super) type Plain = Flex;
/// The same backend recording a tape for the backward pass. Fixed at compile time: a step pays for no dispatch.
pub(super) type Taped = Autodiff<Flex>;
/// A float tensor of any rank.
pub(super) type Tensor<B> = burn::backend::tensor::FloatTensor<B>;
/// A float tensor that is on no tape.
pub(super) type PlainTensor = FlexTensor;

/// Precision of a run. Production trains in single; gradient checks by finite differences need double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    Single,
    Double,
}

/// Moves numbers into a tensor. `values` must hold exactly the shape's number of elements (checked, not trusted).
pub(super) fn tensor<B: Backend>(
    values: Vec<f32>,
    shape: &[usize],
    precision: Precision,
) -> Result<Tensor<B>, TrainingError> {
    let data = checked(values.len(), shape).map(|shape| TensorData::new(values, shape))?;
    let data = match precision {
        Precision::Single => data,
        Precision::Double => data.convert_dtype(DType::F64),
    };
    Ok(B::float_from_data(data, &B::Device::default()))
}

/// As [`tensor`], from doubles.
pub(super) fn tensor_from_f64<B: Backend>(
    values: Vec<f64>,
    shape: &[usize],
    precision: Precision,
) -> Result<Tensor<B>, TrainingError> {
    let data = checked(values.len(), shape).map(|shape| TensorData::new(values, shape))?;
    let data = match precision {
        Precision::Single => data.convert_dtype(DType::F32),
        Precision::Double => data,
    };
    Ok(B::float_from_data(data, &B::Device::default()))
}

/// Copies a tensor's elements out, row-major, whatever its precision.
pub(super) fn to_f64(tensor: PlainTensor) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Puts a plain tensor on the tape as a leaf; its gradient can be asked for where `tracked`.
pub(super) fn leaf(tensor: PlainTensor, tracked: bool) -> Tensor<Taped> {
    let leaf = Taped::from_inner(tensor);
    if tracked { Taped::float_set_require_grad(leaf, true) } else { leaf }
}

fn checked(len: usize, shape: &[usize]) -> Result<Shape, TrainingError> {
    let expected = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if expected != Some(len) {
        return Err(TrainingError::data(format!("{len} numbers do not fill the shape {shape:?}")));
    }
    // A rank-0 tensor is held as one element of rank 1: burn's primitives have no scalars.
    Ok(if shape.is_empty() { Shape::from(vec![1]) } else { Shape::from(shape.to_vec()) })
}
