//! The operators that training can run: one table from ONNX name to builder, split by family.
//! A builder checks a node once and gives a kernel; graphs, slots and lifetimes are `graph`'s matter.

use burn::backend::Shape;

use super::TrainingError;
use super::backend::Tensor;
use super::engine::Engine;
use super::node::Node;
use super::value::{Integers, Kind, TensorRef, Value};

mod activation;
mod blocks;
mod convolution;
mod einsum;
mod elementwise;
mod integers;
mod linear;
mod logic;
mod normalization;
mod pooling;
mod recurrent;
mod reduce;
mod resize;
mod select;
mod shape;
mod window;

pub(super) use normalization::{BatchNorm, BatchStatistics};

/// Checks a node and says how to run it.
pub(super) type Builder<B> = fn(&Node<'_>) -> Result<Built<B>, TrainingError>;

/// What a builder makes of a node.
pub(super) enum Built<B: Engine> {
    /// Work at run time.
    Step(Work<B>),
    /// Nothing: the output is this value.
    Value(Value),
    /// A constant of the file.
    Constant { values: Vec<f32>, shape: Vec<usize>, kind: Kind },
}

/// What a node does at run time.
pub(super) struct Work<B: Engine> {
    pub inputs: Vec<TensorRef>,
    pub outputs: Vec<Output>,
    pub kernel: Kernel<B>,
}

/// What is known of an output.
pub(super) struct Output {
    pub shape: Vec<usize>,
    pub kind: Kind,
}

/// The work of one node, by how many tensors it takes.
pub(super) enum Kernel<B: Engine> {
    Unary(UnaryWork<B>),
    Binary(BinaryWork<B>),
    /// Two operands and a bias that may be left out.
    Affine(AffineWork<B>),
    Variadic(VariadicWork<B>),
    /// Work that may meet numbers that it cannot take; it says what is wrong.
    Fallible(FallibleWork<B>),
    /// Several outputs.
    Many(ManyWork<B>),
    BatchNorm(BatchNorm),
}

type UnaryWork<B> = Box<dyn Fn(Tensor<B>) -> Tensor<B> + Send + Sync>;
type BinaryWork<B> = Box<dyn Fn(Tensor<B>, Tensor<B>) -> Tensor<B> + Send + Sync>;
type AffineWork<B> = Box<dyn Fn(Tensor<B>, Tensor<B>, Option<Tensor<B>>) -> Tensor<B> + Send + Sync>;
type FallibleWork<B> = Box<dyn Fn(Vec<Tensor<B>>) -> Result<Tensor<B>, String> + Send + Sync>;
type ManyWork<B> = Box<dyn Fn(Vec<Tensor<B>>) -> Vec<Tensor<B>> + Send + Sync>;
type VariadicWork<B> = Box<dyn Fn(Vec<Tensor<B>>) -> Tensor<B> + Send + Sync>;

/// The builder of an ONNX operator of the default domain; `None` where training lacks it.
pub(super) fn builder<B: Engine>(operator: &str) -> Option<Builder<B>> {
    table::<B>().into_iter().find(|(name, _)| *name == operator).map(|(_, builder)| builder)
}

/// Every operator that training knows.
pub(super) fn table<B: Engine>() -> [(&'static str, Builder<B>); 93] {
    [
        ("Relu", activation::relu),
        ("LeakyRelu", activation::leaky_relu),
        ("PRelu", activation::prelu),
        ("Elu", activation::elu),
        ("Selu", activation::selu),
        ("Sigmoid", activation::sigmoid),
        ("HardSigmoid", activation::hard_sigmoid),
        ("HardSwish", activation::hard_swish),
        ("Tanh", activation::tanh),
        ("Softplus", activation::softplus),
        ("Softsign", activation::softsign),
        ("Mish", activation::mish),
        ("Gelu", activation::gelu),
        ("Erf", elementwise::erf),
        ("Sqrt", elementwise::sqrt),
        ("Exp", elementwise::exp),
        ("Log", elementwise::log),
        ("Neg", elementwise::neg),
        ("Abs", elementwise::abs),
        ("Sin", elementwise::sin),
        ("Cos", elementwise::cos),
        ("Reciprocal", elementwise::reciprocal),
        ("Floor", elementwise::floor),
        ("Ceil", elementwise::ceil),
        ("Pow", elementwise::pow),
        ("Clip", elementwise::clip),
        ("Add", elementwise::add),
        ("Sub", elementwise::sub),
        ("Mul", elementwise::mul),
        ("Div", elementwise::div),
        ("Mod", elementwise::modulo),
        ("Sum", elementwise::sum),
        ("Mean", elementwise::mean),
        ("Max", logic::max),
        ("Min", logic::min),
        ("Equal", logic::equal),
        ("Greater", logic::greater),
        ("GreaterOrEqual", logic::greater_or_equal),
        ("Less", logic::less),
        ("LessOrEqual", logic::less_or_equal),
        ("Not", logic::not),
        ("And", logic::and),
        ("Or", logic::or),
        ("Where", logic::where_),
        ("MatMul", linear::matmul),
        ("Gemm", linear::gemm),
        ("Einsum", einsum::einsum),
        ("Conv", convolution::conv),
        ("ConvTranspose", convolution::conv_transpose),
        ("MaxPool", pooling::max_pool),
        ("AveragePool", pooling::average_pool),
        ("GlobalAveragePool", pooling::global_average_pool),
        ("GlobalMaxPool", pooling::global_max_pool),
        ("BatchNormalization", normalization::batch_norm),
        ("LayerNormalization", normalization::layer_norm),
        ("InstanceNormalization", normalization::instance_norm),
        ("GroupNormalization", normalization::group_norm),
        ("Softmax", normalization::softmax),
        ("LogSoftmax", normalization::log_softmax),
        ("LSTM", recurrent::lstm),
        ("GRU", recurrent::gru),
        ("Identity", shape::identity),
        ("Dropout", shape::dropout),
        ("Flatten", shape::flatten),
        ("Reshape", shape::reshape),
        ("Transpose", shape::transpose),
        ("Squeeze", shape::squeeze),
        ("Unsqueeze", shape::unsqueeze),
        ("Concat", shape::concat),
        ("Split", select::split),
        ("Slice", select::slice),
        ("Gather", select::gather),
        ("Pad", select::pad),
        ("Expand", select::expand_to),
        ("Tile", select::tile),
        ("DepthToSpace", blocks::depth_to_space),
        ("SpaceToDepth", blocks::space_to_depth),
        ("Resize", resize::resize),
        ("ReduceMean", reduce::mean),
        ("ReduceSum", reduce::sum),
        ("ReduceMax", reduce::max),
        ("ReduceMin", reduce::min),
        ("ReduceL1", reduce::l1),
        ("ReduceL2", reduce::l2),
        ("ReduceSumSquare", reduce::sum_square),
        ("ReduceLogSum", reduce::log_sum),
        ("ReduceLogSumExp", reduce::log_sum_exp),
        ("Constant", integers::constant),
        ("ConstantOfShape", integers::constant_of_shape),
        ("Shape", integers::shape),
        ("Size", integers::size),
        ("Range", integers::range),
        ("Cast", integers::cast),
    ]
}

impl<B: Engine> Built<B> {
    fn unary(x: &TensorRef, shape: Vec<usize>, run: impl Fn(Tensor<B>) -> Tensor<B> + Send + Sync + 'static) -> Self {
        Built::step(vec![x.clone()], shape, Kernel::Unary(Box::new(run)))
    }

    /// Work with one output of floats.
    fn step(inputs: Vec<TensorRef>, shape: Vec<usize>, kernel: Kernel<B>) -> Self {
        Built::Step(Work { inputs, outputs: vec![Output { shape, kind: Kind::Float }], kernel })
    }

    /// The same work, whose outputs are of this kind.
    fn of_kind(mut self, kind: Kind) -> Self {
        if let Built::Step(work) = &mut self {
            work.outputs.iter_mut().for_each(|output| output.kind = kind);
        }
        self
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
        Built::unary(x, shape, move |x| reshape::<B>(x, &target)).of_kind(x.kind)
    }
}

fn reshape<B: Engine>(x: Tensor<B>, shape: &[usize]) -> Tensor<B> {
    B::float_reshape(x, Shape::from(held(shape)))
}

/// A shape as it is held: burn's primitives have no scalars, so one is a list of one.
pub(super) fn held(shape: &[usize]) -> Vec<usize> {
    if shape.is_empty() { vec![1] } else { shape.to_vec() }
}

/// Number of elements of a shape that the compiler has checked.
fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}
