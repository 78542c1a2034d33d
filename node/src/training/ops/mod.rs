//! The operators that training can run: one table from ONNX name to builder, split by family.
//! A builder checks a node once and gives a kernel; graphs, slots and lifetimes are `graph`'s matter.

use burn::backend::{Backend, Shape};

use super::TrainingError;
use super::backend::Tensor;
use super::node::Node;
use super::value::{Integers, TensorRef, Value};

mod convolution;
mod elementwise;
mod integers;
mod linear;
mod normalization;
mod pooling;
mod reduce;
mod shape;
mod window;

pub(super) use normalization::{BatchNorm, BatchStatistics, follow};

/// Checks a node and says how to run it.
pub(super) type Builder<B> = fn(&Node<'_>) -> Result<Built<B>, TrainingError>;

/// What a builder makes of a node.
pub(super) enum Built<B: Backend> {
    /// Work at run time.
    Step { inputs: Vec<TensorRef>, shape: Vec<usize>, kernel: Kernel<B> },
    /// Nothing: the output is this value.
    Value(Value),
    /// A constant of the file.
    Constant { values: Vec<f32>, shape: Vec<usize> },
}

/// The work of one node, by how many tensors it takes.
pub(super) enum Kernel<B: Backend> {
    Unary(UnaryWork<B>),
    Binary(BinaryWork<B>),
    /// Two operands and a bias that may be left out.
    Affine(AffineWork<B>),
    Variadic(VariadicWork<B>),
    BatchNorm(BatchNorm),
}

type UnaryWork<B> = Box<dyn Fn(Tensor<B>) -> Tensor<B> + Send + Sync>;
type BinaryWork<B> = Box<dyn Fn(Tensor<B>, Tensor<B>) -> Tensor<B> + Send + Sync>;
type AffineWork<B> = Box<dyn Fn(Tensor<B>, Tensor<B>, Option<Tensor<B>>) -> Tensor<B> + Send + Sync>;
type VariadicWork<B> = Box<dyn Fn(Vec<Tensor<B>>) -> Tensor<B> + Send + Sync>;

/// The builder of an ONNX operator of the default domain; `None` where training lacks it.
pub(super) fn builder<B: Backend>(operator: &str) -> Option<Builder<B>> {
    table::<B>().into_iter().find(|(name, _)| *name == operator).map(|(_, builder)| builder)
}

/// Every operator that training knows.
pub(super) fn table<B: Backend>() -> [(&'static str, Builder<B>); 41] {
    [
        ("Relu", elementwise::relu),
        ("LeakyRelu", elementwise::leaky_relu),
        ("Sigmoid", elementwise::sigmoid),
        ("Tanh", elementwise::tanh),
        ("Gelu", elementwise::gelu),
        ("Erf", elementwise::erf),
        ("Sqrt", elementwise::sqrt),
        ("Exp", elementwise::exp),
        ("Log", elementwise::log),
        ("Neg", elementwise::neg),
        ("Abs", elementwise::abs),
        ("Pow", elementwise::pow),
        ("Clip", elementwise::clip),
        ("Add", elementwise::add),
        ("Sub", elementwise::sub),
        ("Mul", elementwise::mul),
        ("Div", elementwise::div),
        ("MatMul", linear::matmul),
        ("Gemm", linear::gemm),
        ("Conv", convolution::conv),
        ("MaxPool", pooling::max_pool),
        ("AveragePool", pooling::average_pool),
        ("GlobalAveragePool", pooling::global_average_pool),
        ("BatchNormalization", normalization::batch_norm),
        ("Softmax", normalization::softmax),
        ("LogSoftmax", normalization::log_softmax),
        ("Identity", shape::identity),
        ("Dropout", shape::dropout),
        ("Flatten", shape::flatten),
        ("Reshape", shape::reshape),
        ("Transpose", shape::transpose),
        ("Squeeze", shape::squeeze),
        ("Unsqueeze", shape::unsqueeze),
        ("Concat", shape::concat),
        ("ReduceMean", reduce::mean),
        ("ReduceSum", reduce::sum),
        ("Constant", integers::constant),
        ("Shape", integers::shape),
        ("Gather", integers::gather),
        ("Slice", integers::slice),
        ("Cast", integers::cast),
    ]
}

impl<B: Backend> Built<B> {
    fn unary(x: &TensorRef, shape: Vec<usize>, run: impl Fn(Tensor<B>) -> Tensor<B> + Send + Sync + 'static) -> Self {
        Built::Step { inputs: vec![x.clone()], shape, kernel: Kernel::Unary(Box::new(run)) }
    }

    fn integers(values: Vec<i64>, scalar: bool) -> Self {
        Built::Value(Value::Integers(Integers { values, scalar }))
    }

    /// The same numbers in another shape of equal size.
    fn reshaped(x: &TensorRef, shape: Vec<usize>) -> Self {
        if x.shape == shape {
            return Built::Value(Value::Tensor(x.clone()));
        }
        let target = shape.clone();
        Built::unary(x, shape, move |x| reshape::<B>(x, &target))
    }
}

fn reshape<B: Backend>(x: Tensor<B>, shape: &[usize]) -> Tensor<B> {
    B::float_reshape(x, Shape::from(shape.to_vec()))
}

/// Number of elements of a shape that the compiler has checked.
fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}
