//! Arithmetic that works element by element, with numpy's broadcasting where it takes several tensors.
//! On integers that are known at compile time, Add, Sub, Mul and Div fold. Activations are in `activation`.

use burn::backend::{Scalar, Shape, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Integers, Kind, Origin, TensorRef, Value};
use super::{Built, Kernel, held, reshape};

type Made<B> = Result<Built<B>, TrainingError>;

pub(super) fn erf<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_erf)
}

pub(super) fn sqrt<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_sqrt)
}

pub(super) fn exp<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_exp)
}

pub(super) fn log<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_log)
}

pub(super) fn neg<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_neg)
}

pub(super) fn abs<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_abs)
}

pub(super) fn sin<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_sin)
}

pub(super) fn cos<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_cos)
}

pub(super) fn reciprocal<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_recip)
}

pub(super) fn floor<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_floor)
}

pub(super) fn ceil<B: Engine>(node: &Node<'_>) -> Made<B> {
    plain(node, B::float_ceil)
}

/// A constant single exponent is a power of its own; other exponents have a gradient where the base is positive.
pub(super) fn pow<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let x = node.tensor(0)?;
    let exponent = match node.value(1)? {
        Value::Tensor(TensorRef { origin: Origin::Constant(Some(exponent)), shape, .. })
            if shape.len() <= x.shape.len() =>
        {
            f64::from(*exponent)
        }
        Value::Integers(Integers { values, .. }) => match values.as_slice() {
            [exponent] => *exponent as f64,
            _ => return Err(node.error("its exponent must be a single number or a tensor of floats")),
        },
        _ => return broadcast(node, x, node.tensor(1)?, B::float_powf),
    };
    Ok(Built::unary(x, x.shape.clone(), move |x| {
        if exponent == 0.0 {
            // burn gives untracked ones here; a gradient of zero keeps the tape whole.
            return B::float_add_scalar(B::float_mul_scalar(x, Scalar::Float(0.0)), Scalar::Float(1.0));
        }
        B::float_powf_scalar(x, Scalar::Float(exponent))
    }))
}

pub(super) fn clip<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["min", "max"])?;
    node.expect_inputs(1..=3)?;
    let x = node.tensor(0)?;
    let min = bound(node, 1, "min", f32::MIN)?;
    let max = bound(node, 2, "max", f32::MAX)?;
    // The upper bound is applied last, so it wins.
    let min = min.min(max);
    Ok(Built::unary(x, x.shape.clone(), move |x| B::clamp(x, min, max)))
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

pub(super) fn add<B: Engine>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_add, i64::checked_add)
}

pub(super) fn sub<B: Engine>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_sub, i64::checked_sub)
}

pub(super) fn mul<B: Engine>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_mul, i64::checked_mul)
}

pub(super) fn div<B: Engine>(node: &Node<'_>) -> Made<B> {
    arithmetic(node, B::float_div, i64::checked_div)
}

/// The remainder with the divisor's sign, or with `fmod` the dividend's, on integers that are known at compile time alone.
pub(super) fn modulo<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["fmod"])?;
    node.expect_inputs(2..=2)?;
    let truncated = node.flag("fmod", false)?;
    match (node.value(0)?, node.value(1)?) {
        (Value::Integers(a), Value::Integers(b)) => fold_integers(node, a, b, move |a, b| {
            let rest = a.checked_rem(b)?;
            Some(if !truncated && rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }),
        _ => Err(node.error("training has it on integers that follow from shapes only")),
    }
}

fn arithmetic<B: Engine>(
    node: &Node<'_>,
    run: fn(Tensor<B>, Tensor<B>) -> Tensor<B>,
    fold: fn(i64, i64) -> Option<i64>,
) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    match (node.value(0)?, node.value(1)?) {
        (Value::Integers(a), Value::Integers(b)) => fold_integers(node, a, b, fold),
        (Value::Tensor(a), Value::Tensor(b)) if a.kind == Kind::Integer && b.kind == Kind::Integer => {
            match node.operator() {
                "Div" => Err(node.error("training does not divide integers that are computed while it runs")),
                _ => Ok(broadcast(node, a, b, run)?.of_kind(Kind::Integer)),
            }
        }
        _ => broadcast(node, node.tensor(0)?, node.tensor(1)?, run),
    }
}

/// The sum of any number of tensors.
pub(super) fn sum<B: Engine>(node: &Node<'_>) -> Made<B> {
    over_all(node, |inputs| inputs.into_iter().reduce(B::float_add))
}

/// The mean of any number of tensors, element by element.
pub(super) fn mean<B: Engine>(node: &Node<'_>) -> Made<B> {
    over_all(node, |inputs| {
        let count = inputs.len() as f64;
        inputs.into_iter().reduce(B::float_add).map(|sum| B::float_mul_scalar(sum, Scalar::Float(1.0 / count)))
    })
}

/// Joins all inputs, brought to their common shape. `run` gets at least one.
pub(super) fn over_all<B: Engine>(node: &Node<'_>, run: fn(Vec<Tensor<B>>) -> Option<Tensor<B>>) -> Made<B> {
    node.expect_attributes(&[])?;
    let inputs: Vec<TensorRef> =
        (0..node.input_count()).map(|index| node.tensor(index).cloned()).collect::<Result<_, _>>()?;
    if inputs.is_empty() {
        return Err(node.error("it has no inputs"));
    }
    let mut shape = Vec::new();
    for input in &inputs {
        shape = broadcast_shape(&shape, &input.shape)
            .ok_or_else(|| node.error(format!("shapes {shape:?} and {:?} do not broadcast", input.shape)))?;
    }
    let target = held(&shape);
    let kernel = Kernel::Fallible(Box::new(move |inputs| {
        let inputs = inputs.into_iter().map(|x| expand::<B>(x, &target)).collect();
        run(inputs).ok_or_else(|| "has no inputs".to_owned())
    }));
    Ok(Built::step(inputs, shape, kernel))
}

/// A tensor repeated along its axes of 1 until it has this shape, which it broadcasts to.
pub(super) fn expand<B: Engine>(x: Tensor<B>, shape: &[usize]) -> Tensor<B> {
    let now = x.shape().to_vec();
    if now == shape {
        return x;
    }
    let x = lift::<B>(x, lifted(&now, shape.len()).as_deref());
    B::float_expand(x, Shape::from(shape.to_vec()))
}

pub(super) fn fold_integers<B: Engine>(
    node: &Node<'_>,
    a: &Integers,
    b: &Integers,
    fold: impl Fn(i64, i64) -> Option<i64>,
) -> Made<B> {
    let len = match (a.values.len(), b.values.len()) {
        (a, b) if a == b => a,
        (1, len) | (len, 1) => len,
        (a, b) => return Err(node.error(format!("lists of {a} and {b} integers do not combine"))),
    };
    let values: Option<Vec<i64>> = (0..len).map(|index| fold(at(a, index)?, at(b, index)?)).collect();
    let values = values.ok_or_else(|| node.error("its integers overflow or divide by zero"))?;
    Ok(Built::integers(values, a.scalar && b.scalar))
}

/// The value of an index in a list that may hold one for all.
pub(super) fn at(integers: &Integers, index: usize) -> Option<i64> {
    integers.values.get(index.min(integers.values.len().checked_sub(1)?)).copied()
}

/// Joins two tensors by numpy's rules. burn's primitives broadcast tensors of equal rank, so the lower rank is lifted.
pub(super) fn broadcast<B: Engine>(
    node: &Node<'_>,
    a: &TensorRef,
    b: &TensorRef,
    run: impl Fn(Tensor<B>, Tensor<B>) -> Tensor<B> + Send + Sync + 'static,
) -> Made<B> {
    let shape = broadcast_shape(&a.shape, &b.shape)
        .ok_or_else(|| node.error(format!("shapes {:?} and {:?} do not broadcast", a.shape, b.shape)))?;
    let (lift_a, lift_b) = (lifted(&a.shape, shape.len()), lifted(&b.shape, shape.len()));
    let kernel =
        Kernel::Binary(Box::new(move |a, b| run(lift::<B>(a, lift_a.as_deref()), lift::<B>(b, lift_b.as_deref()))));
    Ok(Built::step(vec![a.clone(), b.clone()], shape, kernel))
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

pub(super) fn lift<B: Engine>(x: Tensor<B>, shape: Option<&[usize]>) -> Tensor<B> {
    match shape {
        Some(shape) => reshape::<B>(x, shape),
        None => x,
    }
}

/// A unary operator without attributes.
pub(super) fn plain<B: Engine>(node: &Node<'_>, run: fn(Tensor<B>) -> Tensor<B>) -> Made<B> {
    node.expect_attributes(&[])?;
    map(node, run)
}

pub(super) fn map<B: Engine>(node: &Node<'_>, run: impl Fn(Tensor<B>) -> Tensor<B> + Send + Sync + 'static) -> Made<B> {
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    Ok(Built::unary(x, x.shape.clone(), run))
}

pub(super) fn scalar(value: f32) -> Scalar {
    Scalar::Float(f64::from(value))
}
