//! What the interpreter asks of a backend beyond burn's own operations: those whose forward and backward pass on the CPU
//! are our own. How each meets tensors and the tape is in a file of its own here; the arithmetic is in `convolve`,
//! `normalize` and `maximum`. Another backend makes them of burn's operations (`composed`).

mod batch_norm;
mod clamp;
mod composed;
mod convolution;
mod max_pool;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::ops::{ActivationOps, BatchNormTrain, ConvOptions, FloatTensorOps};
use burn::backend::{Backend, DType, Element, Shape, TensorData};

use super::backend::{Plain, PlainTensor, Taped, Tensor};
use super::convolve::Sizes;
use super::number::Number;
use super::spare;

/// A backend of the interpreter.
pub(super) trait Engine: Backend {
    /// Convolution over two axes: x [n, c, h, w], weight [o, c / groups, kh, kw], bias [o]. The shapes fit each other.
    fn convolve(
        x: Tensor<Self>,
        weight: Tensor<Self>,
        bias: Option<Tensor<Self>>,
        options: &ConvOptions<2>,
    ) -> Tensor<Self> {
        Self::conv2d(x, weight, bias, options.clone())
    }

    /// Batch normalization by the batch's own statistics: x [n, c, ...], scale and bias [c].
    fn normalize(x: Tensor<Self>, scale: Tensor<Self>, bias: Tensor<Self>, epsilon: f64) -> Normalized<Self> {
        let BatchNormTrain { output, mean, variance } = Self::batch_norm_train(x, scale, bias, epsilon);
        Normalized { output, mean, variance }
    }

    /// The maximum of each window over two axes; x is [batch, channels, size], the result [batch, channels, out].
    fn max_pool(x: Tensor<Self>, sizes: &Sizes) -> Tensor<Self> {
        composed::max_pool::<Self>(x, sizes)
    }

    /// x between two bounds, low <= high. The gradient at a bound is 0, as that of PyTorch's ReLU6 and Hardtanh.
    fn clamp(x: Tensor<Self>, low: f32, high: f32) -> Tensor<Self> {
        composed::clamp::<Self>(x, low, high)
    }

    /// x where it is above 0, else 0.
    fn rectify(x: Tensor<Self>) -> Tensor<Self> {
        Self::relu(x)
    }

    /// x Φ(x), Φ being the normal distribution's (Hendrycks and Gimpel 2016).
    fn exact_gelu(x: Tensor<Self>) -> Tensor<Self> {
        composed::exact_gelu::<Self>(x)
    }
}

#[cfg(feature = "wgpu")]
impl Engine for burn_wgpu::Wgpu {}

#[cfg(feature = "wgpu")]
impl Engine for burn::backend::Autodiff<burn_wgpu::Wgpu> {}

/// What batch normalization gives.
pub(super) struct Normalized<B: Backend> {
    /// As x.
    pub output: Tensor<B>,
    /// The batch's mean, `[c]`; no gradient flows through it.
    pub mean: Tensor<B>,
    /// The batch's biased variance, `[c]`; likewise.
    pub variance: Tensor<B>,
}

impl Engine for Plain {
    fn convolve(
        x: PlainTensor,
        weight: PlainTensor,
        bias: Option<PlainTensor>,
        options: &ConvOptions<2>,
    ) -> PlainTensor {
        convolution::plain(x, weight, bias, options)
    }

    fn normalize(x: PlainTensor, scale: PlainTensor, bias: PlainTensor, epsilon: f64) -> Normalized<Plain> {
        batch_norm::plain(x, scale, bias, epsilon)
    }

    fn max_pool(x: PlainTensor, sizes: &Sizes) -> PlainTensor {
        max_pool::plain(x, sizes)
    }

    fn clamp(x: PlainTensor, low: f32, high: f32) -> PlainTensor {
        clamp::plain(x, low, high)
    }

    fn rectify(x: PlainTensor) -> PlainTensor {
        clamp::plain(x, 0.0, f32::INFINITY)
    }

    fn exact_gelu(x: PlainTensor) -> PlainTensor {
        Plain::gelu(x)
    }
}

impl Engine for Taped {
    fn convolve(
        x: Tensor<Taped>,
        weight: Tensor<Taped>,
        bias: Option<Tensor<Taped>>,
        options: &ConvOptions<2>,
    ) -> Tensor<Taped> {
        convolution::taped(x, weight, bias, options)
    }

    fn normalize(x: Tensor<Taped>, scale: Tensor<Taped>, bias: Tensor<Taped>, epsilon: f64) -> Normalized<Taped> {
        batch_norm::taped(x, scale, bias, epsilon)
    }

    fn max_pool(x: Tensor<Taped>, sizes: &Sizes) -> Tensor<Taped> {
        max_pool::taped(x, sizes)
    }

    fn clamp(x: Tensor<Taped>, low: f32, high: f32) -> Tensor<Taped> {
        clamp::taped(x, low, high)
    }

    fn rectify(x: Tensor<Taped>) -> Tensor<Taped> {
        clamp::taped(x, 0.0, f32::INFINITY)
    }

    fn exact_gelu(x: Tensor<Taped>) -> Tensor<Taped> {
        Taped::gelu(x)
    }
}

/// Passes gradients on to the parents that want one.
fn register<const N: usize>(gradients: &mut Gradients, found: [(Option<NodeId>, Option<PlainTensor>); N]) {
    for (node, gradient) in found {
        if let (Some(node), Some(gradient)) = (node, gradient) {
            gradients.register::<Plain>(node, gradient);
        }
    }
}

/// The tensor's numbers row-major and nothing else; if nobody else had the tensor, nobody else has these.
fn whole(tensor: PlainTensor) -> PlainTensor {
    tensor.to_contiguous()
}

/// Keeps the memory of tensors that no other operation needs.
fn done_with<const N: usize>(tensors: [PlainTensor; N]) {
    for tensor in tensors {
        match tensor.dtype() {
            DType::F64 => spare::give::<f64>(tensor),
            DType::F32 => spare::give::<f32>(tensor),
            _ => {}
        }
    }
}

/// A number that tensors hold.
trait Stored: Number + Element {
    /// A contiguous tensor's values; it holds this type.
    fn values(tensor: &PlainTensor) -> &[Self];
    /// As `values`; `None` where another has the tensor too.
    fn values_mut(tensor: &mut PlainTensor) -> Option<&mut [Self]>;
}

impl Stored for f32 {
    fn values(tensor: &PlainTensor) -> &[f32] {
        tensor.storage()
    }

    fn values_mut(tensor: &mut PlainTensor) -> Option<&mut [f32]> {
        tensor.try_storage_mut()
    }
}

impl Stored for f64 {
    fn values(tensor: &PlainTensor) -> &[f64] {
        tensor.storage()
    }

    fn values_mut(tensor: &mut PlainTensor) -> Option<&mut [f64]> {
        tensor.try_storage_mut()
    }
}

pub(super) fn from<T: Element>(values: Vec<T>, shape: Vec<usize>) -> PlainTensor {
    Plain::float_from_data(TensorData::new(values, Shape::from(shape)), &Default::default())
}
