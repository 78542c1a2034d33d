//! Activations: functions of one tensor with a shape of their own (Relu's relatives, smooth gates), and PRelu.
//! Each is put together so that neither its value nor its gradient overflows where the function itself does not.

use burn::backend::Scalar;

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::Built;
use super::elementwise::{broadcast, map, plain, scalar};

type Made<B> = Result<Built<B>, TrainingError>;

pub(super) fn relu<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::rectify)
}

pub(super) fn sigmoid<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::sigmoid)
}

pub(super) fn tanh<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_tanh)
}

pub(super) fn leaky_relu<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["alpha"])?;
    let alpha = scalar(node.float("alpha", 0.01)?);
    map(node, move |x| B::leaky_relu(x, alpha))
}

/// Both forms of Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: x·Φ(x), and its tanh approximation.
pub(super) fn gelu<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["approximate"])?;
    match node.string("approximate", "none")? {
        "none" => map(node, B::exact_gelu),
        "tanh" => map(node, tanh_gelu::<B>),
        other => Err(node.error(format!("its approximation {other:?} is unknown; use \"none\" or \"tanh\""))),
    }
}

fn tanh_gelu<B: Engine>(x: Tensor<B>) -> Tensor<B> {
    let cube = B::float_powf_scalar(x.clone(), Scalar::Float(3.0));
    let inner = B::float_add(x.clone(), B::float_mul_scalar(cube, Scalar::Float(0.044_715)));
    let inner = B::float_mul_scalar(inner, Scalar::Float((2.0 / std::f64::consts::PI).sqrt()));
    let gate = B::float_add_scalar(B::float_tanh(inner), Scalar::Float(1.0));
    B::float_mul(B::float_mul_scalar(x, Scalar::Float(0.5)), gate)
}

/// x above 0, α(eˣ − 1) below (Clevert, Unterthiner, Hochreiter 2016).
pub(super) fn elu<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["alpha"])?;
    let alpha = scalar(node.float("alpha", 1.0)?);
    map(node, move |x: Tensor<B>| {
        B::float_add(B::relu(x.clone()), B::float_mul_scalar(exponential_below::<B>(x), alpha))
    })
}

/// γ times Elu, with the α and γ of Klambauer et al. 2017.
pub(super) fn selu<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["alpha", "gamma"])?;
    let alpha = scalar(node.float("alpha", 1.673_263_2)?);
    let gamma = scalar(node.float("gamma", 1.050_701)?);
    map(node, move |x: Tensor<B>| {
        let below = B::float_mul_scalar(exponential_below::<B>(x.clone()), alpha);
        B::float_mul_scalar(B::float_add(B::relu(x), below), gamma)
    })
}

/// e^min(x, 0) − 1, without an exponential of large numbers.
fn exponential_below<B: Engine>(x: Tensor<B>) -> Tensor<B> {
    let below = B::float_neg(B::relu(B::float_neg(x)));
    B::float_sub_scalar(B::float_exp(below), Scalar::Float(1.0))
}

/// log(1 + eˣ).
pub(super) fn softplus<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, soft_plus::<B>)
}

fn soft_plus<B: Engine>(x: Tensor<B>) -> Tensor<B> {
    B::float_neg(B::log_sigmoid(B::float_neg(x)))
}

/// x / (1 + |x|).
pub(super) fn softsign<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, |x: Tensor<B>| {
        let below = B::float_add_scalar(B::float_abs(x.clone()), Scalar::Float(1.0));
        B::float_div(x, below)
    })
}

/// x tanh(log(1 + eˣ)) (Misra 2019).
pub(super) fn mish<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, |x: Tensor<B>| B::float_mul(x.clone(), B::float_tanh(soft_plus::<B>(x))))
}

/// αx + β, held between 0 and 1.
pub(super) fn hard_sigmoid<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["alpha", "beta"])?;
    let (alpha, beta) = (scalar(node.float("alpha", 0.2)?), scalar(node.float("beta", 0.5)?));
    map(node, move |x: Tensor<B>| hard_gate::<B>(x, alpha, beta))
}

/// x times HardSigmoid of α = 1/6, β = 1/2 (Howard et al. 2019).
pub(super) fn hard_swish<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, |x: Tensor<B>| B::float_mul(x.clone(), hard_gate::<B>(x, Scalar::Float(1.0 / 6.0), Scalar::Float(0.5))))
}

fn hard_gate<B: Engine>(x: Tensor<B>, alpha: Scalar, beta: Scalar) -> Tensor<B> {
    let line = B::float_add_scalar(B::float_mul_scalar(x, alpha), beta);
    B::clamp(line, 0.0, 1.0)
}

/// x above 0, slope · x below, where the slope is learned (He et al. 2015).
pub(super) fn prelu<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let (x, slope) = (node.tensor(0)?, node.tensor(1)?);
    let built = broadcast(node, x, slope, |x: Tensor<B>, slope| {
        let below = B::float_mul(slope, B::relu(B::float_neg(x.clone())));
        B::float_sub(B::relu(x), below)
    })?;
    match &built {
        Built::Step(work) if work.outputs.first().is_some_and(|output| output.shape == x.shape) => Ok(built),
        _ => Err(node.error(format!("its slope of shape {:?} does not fit {:?}", slope.shape, x.shape))),
    }
}
