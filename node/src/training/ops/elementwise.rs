//! Operators that work element by element, with numpy's broadcasting where they take two tensors.
//! On integers that are known at compile time, Add, Sub, Mul and Div fold.

use burn::backend::{Backend, Scalar};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::node::Node;
use super::super::value::{Integers, Origin, TensorRef, Value};
use super::{Built, Kernel, reshape};

type Made<B> = Result<Built<B>, TrainingError>;

pub(super) fn relu<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::relu)
}

pub(super) fn sigmoid<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::sigmoid)
}

pub(super) fn tanh<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_tanh)
}

pub(super) fn erf<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_erf)
}

pub(super) fn sqrt<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_sqrt)
}

pub(super) fn exp<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_exp)
}

pub(super) fn log<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_log)
}

pub(super) fn neg<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_neg)
}

pub(super) fn abs<B: Backend>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_abs)
}

pub(super) fn leaky_relu<B: Backend>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["alpha"])?;
    let alpha = scalar(node.float("alpha", 0.01)?);
    map(node, move |x| B::leaky_relu(x, alpha))
}

/// Both forms of Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: x·Φ(x), and its tanh approximation.
pub(super) fn gelu<B: Backend>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["approximate"])?;
    match node.string("approximate", "none")? {
        "none" => map(node, B::gelu),
        "tanh" => map(node, tanh_gelu::<B>),
        other => Err(node.error(format!("its approximation {other:?} is unknown; use \"none\" or \"tanh\""))),
    }
}

fn tanh_gelu<B: Backend>(x: Tensor<B>) -> Tensor<B> {
    let cube = B::float_powf_scalar(x.clone(), Scalar::Float(3.0));
    let inner = B::float_add(x.clone(), B::float_mul_scalar(cube, Scalar::Float(0.044_715)));
    let inner = B::float_mul_scalar(inner, Scalar::Float((2.0 / std::f64::consts::PI).sqrt()));
    let gate = B::float_add_scalar(B::float_tanh(inner), Scalar::Float(1.0));
    B::float_mul(B::float_mul_scalar(x, Scalar::Float(0.5)), gate)
}

/// A constant exponent: the gradient with respect to an exponent is not defined for negative bases.
pub(super) fn pow<B: Backend>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let exponent = match node.value(1)? {
        Value::Tensor(TensorRef { origin: Origin::Constant(Some(exponent)), .. }) => f64::from(*exponent),
        Value::Integers(Integers { values, .. }) => match values.as_slice() {
            [exponent] => *exponent as f64,
            _ => return Err(node.error("its exponent must be a single number")),
        },
        _ => return Err(node.error("its exponent must be a constant single number")),
    };
    let x = node.tensor(0)?;
    Ok(Built::unary(x, x.shape.clone(), move |x| {
        if exponent == 0.0 {
            // burn gives untracked ones here; a gradient of zero keeps the tape whole.
            return B::float_add_scalar(B::float_mul_scalar(x, Scalar::Float(0.0)), Scalar::Float(1.0));
        }
        B::float_powf_scalar(x, Scalar::Float(exponent))
    }))
}

pub(super) fn clip<B: Backend>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["min", "max"])?;
    node.expect_inputs(1..=3)?;
    let x = node.tensor(0)?;
    let min = bound(node, 1, "min", f32::MIN)?;
    let max = bound(node, 2, "max", f32::MAX)?;
    if min > max {
        return Err(node.error(format!("its lower bound {min} is above its upper bound {max}")));
    }
    let (min, max) = (scalar(min), scalar(max));
    Ok(Built::unary(x, x.shape.clone(), move |x| B::float_clamp(x, min, max)))
}

/// A bound of Clip: an input since operator set 11, an attribute before.
fn bound(node: &Node<'_>, input: usize, attribute: &str, default: f32) -> Result<f32, TrainingError> {
    let bound = match node.optional_tensor(input)? {
        None => node.float(attribute, default)?,
        Some(TensorRef { origin: Origin::Constant(Some(bound)), .. }) => *bound,
        Some(_) => return Err(node.error(format!("its bound {attribute:?} must be a constant single number"))),
    };
    if bound.is_nan() { Err(node.error(format!("its bound {attribute:?} is NaN"))) } else { Ok(bound) }
}

pub(super) fn add<B: Backend>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_add, i64::checked_add)
}

pub(super) fn sub<B: Backend>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_sub, i64::checked_sub)
}

pub(super) fn mul<B: Backend>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_mul, i64::checked_mul)
}

pub(super) fn div<B: Backend>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_div, i64::checked_div)
}

fn arithmetic<B: Backend>(
    node: &Node<'_>,
    run: fn(Tensor<B>, Tensor<B>) -> Tensor<B>,
    fold: fn(i64, i64) -> Option<i64>,
) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    match (node.value(0)?, node.value(1)?) {
        (Value::Integers(a), Value::Integers(b)) => fold_integers(node, a, b, fold),
        _ => broadcast(node, node.tensor(0)?, node.tensor(1)?, run),
    }
}

fn fold_integers<B: Backend>(
    node: &Node<'_>,
    a: &Integers,
    b: &Integers,
    fold: fn(i64, i64) -> Option<i64>,
) -> Made<B> {
    let len = match (a.values.len(), b.values.len()) {
        (a, b) if a == b => a,
        (1, len) | (len, 1) => len,
        (a, b) => return Err(node.error(format!("lists of {a} and {b} integers do not combine"))),
    };
    let at = |integers: &Integers, index: usize| integers.values.get(index.min(integers.values.len() - 1)).copied();
    let values: Option<Vec<i64>> = (0..len).map(|index| fold(at(a, index)?, at(b, index)?)).collect();
    let values = values.ok_or_else(|| node.error("its integers overflow or divide by zero"))?;
    Ok(Built::integers(values, a.scalar && b.scalar))
}

/// Joins two tensors by numpy's rules. burn's primitives broadcast tensors of equal rank, so the lower rank is lifted.
fn broadcast<B: Backend>(
    node: &Node<'_>,
    a: &TensorRef,
    b: &TensorRef,
    run: fn(Tensor<B>, Tensor<B>) -> Tensor<B>,
) -> Made<B> {
    let shape = broadcast_shape(&a.shape, &b.shape)
        .ok_or_else(|| node.error(format!("shapes {:?} and {:?} do not broadcast", a.shape, b.shape)))?;
    let (lift_a, lift_b) = (lifted(&a.shape, shape.len()), lifted(&b.shape, shape.len()));
    let kernel =
        Kernel::Binary(Box::new(move |a, b| run(lift::<B>(a, lift_a.as_deref()), lift::<B>(b, lift_b.as_deref()))));
    Ok(Built::Step { inputs: vec![a.clone(), b.clone()], shape, kernel })
}

/// The shape that two broadcast to; `None` where they do not.
pub(super) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).and_then(|axis| shape.get(axis)).copied().unwrap_or(1)
    };
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (a, b) if a == b => Some(a),
            (1, dim) | (dim, 1) => Some(dim),
            _ => None,
        })
        .collect()
}

/// The shape with leading ones up to `rank`; `None` where it has that rank already.
pub(super) fn lifted(shape: &[usize], rank: usize) -> Option<Vec<usize>> {
    let missing = rank.checked_sub(shape.len()).filter(|&missing| missing > 0)?;
    Some(std::iter::repeat_n(1, missing).chain(shape.iter().copied()).collect())
}

pub(super) fn lift<B: Backend>(x: Tensor<B>, shape: Option<&[usize]>) -> Tensor<B> {
    match shape {
        Some(shape) => reshape::<B>(x, shape),
        None => x,
    }
}

/// A unary operator without attributes.
fn plain<B: Backend>(node: &Node<'_>, run: fn(Tensor<B>) -> Tensor<B>) -> Made<B> {
    node.expect_attributes(&[])?;
    map(node, run)
}

fn map<B: Backend>(node: &Node<'_>, run: impl Fn(Tensor<B>) -> Tensor<B> + Send + Sync + 'static) -> Made<B> {
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    Ok(Built::unary(x, x.shape.clone(), run))
}

fn scalar(value: f32) -> Scalar {
    Scalar::Float(f64::from(value))
}
