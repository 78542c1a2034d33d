//! The numerical backends: which there are, and how numbers go in and out of them.
//! The interpreter (`graph`, `ops`) is generic over burn's `Backend`; the trainer over a [`Processor`].

use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BoolDType, DType, DeviceOps, Flex, Shape, TensorData, flex::FlexTensor,
};
use burn::tensor::read_sync;

use super::TrainingError;
use super::engine::Engine;
use super::optimizer::Store;

/// The CPU backend without a tape.
pub(super) type Plain = Flex;
/// The CPU backend recording a tape for the backward pass.
pub(super) type Taped = Autodiff<Flex>;
/// A float tensor of any rank.
pub(super) type Tensor<B> = burn::backend::tensor::FloatTensor<B>;
/// A float tensor of the CPU that is on no tape.
pub(super) type PlainTensor = FlexTensor;

/// What a run computes on. Fixed at compile time: a step pays for no dispatch.
pub(super) trait Processor {
    /// Without a tape: evaluation runs on it, and parameters live on it between steps.
    type Plain: Engine + Store;
    /// The same, recording a tape for the backward pass.
    type Taped: Engine + AutodiffBackend<InnerBackend = Self::Plain>;
}

/// The processor that the program itself runs on.
pub(super) struct Cpu;

impl Processor for Cpu {
    type Plain = Plain;
    type Taped = Taped;
}

/// A graphics processor.
#[cfg(feature = "wgpu")]
pub(super) struct Gpu;

#[cfg(feature = "wgpu")]
impl Processor for Gpu {
    type Plain = burn_wgpu::Wgpu;
    type Taped = Autodiff<burn_wgpu::Wgpu>;
}

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

/// Copies a tensor's elements out, row-major, whatever its precision; waits for all that they depend on.
pub(super) fn to_f64<B: Backend>(tensor: Tensor<B>) -> Result<Vec<f64>, TrainingError> {
    Ok(read::<B>(tensor)?.iter::<f64>().collect())
}

/// As [`to_f64`], of a tensor in single precision.
pub(super) fn to_f32<B: Backend>(tensor: Tensor<B>) -> Result<Vec<f32>, TrainingError> {
    read::<B>(tensor)?
        .try_into_vec::<f32>()
        .map_err(|problem| TrainingError::Backend { problem: format!("{problem:?}") })
}

fn read<B: Backend>(tensor: Tensor<B>) -> Result<TensorData, TrainingError> {
    read_sync(B::float_into_data(tensor)).map_err(|problem| TrainingError::Backend { problem: format!("{problem:?}") })
}

/// Puts a plain tensor on the tape as a leaf; its gradient can be asked for where `tracked`.
pub(super) fn leaf<T: AutodiffBackend>(tensor: Tensor<T::InnerBackend>, tracked: bool) -> Tensor<T> {
    let leaf = T::from_inner(tensor);
    if tracked { T::float_set_require_grad(leaf, true) } else { leaf }
}

/// How the backend holds truth values.
pub(super) fn bool_type<B: Backend>() -> BoolDType {
    B::Device::default().defaults().bool_dtype
}

fn checked(len: usize, shape: &[usize]) -> Result<Shape, TrainingError> {
    let expected = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if expected != Some(len) {
        return Err(TrainingError::data(format!("{len} numbers do not fill the shape {shape:?}")));
    }
    // A rank-0 tensor is held as one element of rank 1: burn's primitives have no scalars.
    Ok(if shape.is_empty() { Shape::from(vec![1]) } else { Shape::from(shape.to_vec()) })
}
