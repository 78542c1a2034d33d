//! Comparisons, truth values, Where, and the larger or smaller of several tensors.
//! Truth values are held as 0 and 1; no gradient flows through them.

use burn::backend::{Scalar, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::{Tensor, bool_type};
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Integers, Kind, TensorRef, Value};
use super::elementwise::{at, broadcast, broadcast_shape, expand, fold_integers, over_all};
use super::{Built, Kernel, held};

type Made<B> = Result<Built<B>, TrainingError>;
type Mask<B> = burn::backend::tensor::BoolTensor<B>;

pub(super) fn equal<B: Engine>(node: &Node<'_>) -> Made<B> {
    compare(node, |a, b| B::float_equal(a, b, bool_type::<B>()), |a, b| a == b)
}

pub(super) fn greater<B: Engine>(node: &Node<'_>) -> Made<B> {
    compare(node, |a, b| B::float_greater(a, b, bool_type::<B>()), |a, b| a > b)
}

pub(super) fn greater_or_equal<B: Engine>(node: &Node<'_>) -> Made<B> {
    compare(node, |a, b| B::float_greater_equal(a, b, bool_type::<B>()), |a, b| a >= b)
}

pub(super) fn less<B: Engine>(node: &Node<'_>) -> Made<B> {
    compare(node, |a, b| B::float_lower(a, b, bool_type::<B>()), |a, b| a < b)
}

pub(super) fn less_or_equal<B: Engine>(node: &Node<'_>) -> Made<B> {
    compare(node, |a, b| B::float_lower_equal(a, b, bool_type::<B>()), |a, b| a <= b)
}

fn compare<B: Engine>(
    node: &Node<'_>,
    run: fn(Tensor<B>, Tensor<B>) -> Mask<B>,
    fold: fn(&i64, &i64) -> bool,
) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    if let (Value::Integers(a), Value::Integers(b)) = (node.value(0)?, node.value(1)?) {
        return fold_integers(node, a, b, move |a, b| Some(i64::from(fold(&a, &b))));
    }
    let (a, b) = (node.any(0)?, node.any(1)?);
    if a.kind != b.kind {
        return Err(node.error("its inputs are of different types"));
    }
    let built = broadcast(node, a, b, move |a: Tensor<B>, b: Tensor<B>| {
        // A mask broadcasts no better than a number: both sides are brought to one shape first.
        let shape: Vec<usize> = a.shape().iter().zip(b.shape().iter()).map(|(a, b)| *a.max(b)).collect();
        let dtype = a.dtype();
        B::bool_into_float(run(expand::<B>(a, &shape), expand::<B>(b, &shape)), dtype.into())
    })?;
    Ok(built.of_kind(Kind::Bool))
}

pub(super) fn not<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(1..=1)?;
    let x = node.condition(0)?;
    let one = Scalar::Float(1.0);
    Ok(Built::unary(x, x.shape.clone(), move |x| B::float_neg(B::float_sub_scalar(x, one))).of_kind(Kind::Bool))
}

pub(super) fn and<B: Engine>(node: &Node<'_>) -> Made<B> {
    both(node, |a, b| B::float_mul(a, b))
}

pub(super) fn or<B: Engine>(node: &Node<'_>) -> Made<B> {
    // a + b − ab is 1 where either is.
    both(node, |a: Tensor<B>, b: Tensor<B>| B::float_sub(B::float_add(a.clone(), b.clone()), B::float_mul(a, b)))
}

fn both<B: Engine>(node: &Node<'_>, run: fn(Tensor<B>, Tensor<B>) -> Tensor<B>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    Ok(broadcast(node, node.condition(0)?, node.condition(1)?, run)?.of_kind(Kind::Bool))
}

/// Where(condition, a, b): a where the condition holds, else b.
pub(super) fn where_<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(3..=3)?;
    if let (Value::Integers(condition), Value::Integers(a), Value::Integers(b)) =
        (node.value(0)?, node.value(1)?, node.value(2)?)
    {
        return where_integers(node, condition, a, b);
    }
    let (a, b) = (node.any(1)?, node.any(2)?);
    let condition = match node.any(0)? {
        // Truth values that were folded with integers.
        condition @ TensorRef { kind: Kind::Integer | Kind::Bool, .. } => condition,
        _ => return Err(node.error("its condition holds numbers, not truth values")),
    };
    if a.kind != b.kind {
        return Err(node.error("its inputs are of different types"));
    }
    let mismatch =
        || node.error(format!("shapes {:?}, {:?} and {:?} do not broadcast", condition.shape, a.shape, b.shape));
    let shape = broadcast_shape(&a.shape, &b.shape).ok_or_else(mismatch)?;
    let shape = broadcast_shape(&shape, &condition.shape).ok_or_else(mismatch)?;
    let (target, kind) = (held(&shape), a.kind);
    let inputs = vec![condition.clone(), a.clone(), b.clone()];
    let kernel = Kernel::Affine(Box::new(move |condition, a, b| {
        let mask = B::float_greater_elem(expand::<B>(condition, &target), Scalar::Float(0.5), bool_type::<B>());
        match b {
            Some(b) => B::float_mask_where(expand::<B>(b, &target), mask, expand::<B>(a, &target)),
            None => a,
        }
    }));
    Ok(Built::step(inputs, shape, kernel).of_kind(kind))
}

fn where_integers<B: Engine>(node: &Node<'_>, condition: &Integers, a: &Integers, b: &Integers) -> Made<B> {
    let len = [condition, a, b].map(|list| list.values.len()).into_iter().max().unwrap_or(0);
    let fits = [condition, a, b].iter().all(|list| list.values.len() == len || list.values.len() == 1);
    let pick = |index| if at(condition, index)? != 0 { at(a, index) } else { at(b, index) };
    let values: Option<Vec<i64>> = (0..len).map(pick).collect();
    let values = values.filter(|_| fits).ok_or_else(|| node.error("its lists of integers do not combine"))?;
    Ok(Built::integers(values, condition.scalar && a.scalar && b.scalar))
}

/// The largest of several tensors, element by element; of equal ones the first gets the gradient.
pub(super) fn max<B: Engine>(node: &Node<'_>) -> Made<B> {
    over_all(node, |inputs| {
        inputs.into_iter().reduce(|a: Tensor<B>, b: Tensor<B>| {
            let mask = B::float_greater(b.clone(), a.clone(), bool_type::<B>());
            B::float_mask_where(a, mask, b)
        })
    })
}

/// The smallest of several tensors, element by element; of equal ones the first gets the gradient.
pub(super) fn min<B: Engine>(node: &Node<'_>) -> Made<B> {
    over_all(node, |inputs| {
        inputs.into_iter().reduce(|a: Tensor<B>, b: Tensor<B>| {
            let mask = B::float_lower(b.clone(), a.clone(), bool_type::<B>());
            B::float_mask_where(a, mask, b)
        })
    })
}
