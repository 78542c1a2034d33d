//! Operators that move numbers and leave them as they are: reshaping, transposing, joining.
//! On integers that are known at compile time they fold; arithmetic on shapes is in `integers`.

use super::super::TrainingError;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Kind, MAX_INTEGERS, TensorRef, Value, whole};
use super::{Built, Kernel, elements};

pub(super) fn identity<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[])?;
    node.expect_inputs(1..=1)?;
    Ok(Built::Value(node.value(0)?.clone()))
}

/// Passes its input on, in training too: files are exported for inference, and a local run of few epochs on few samples
/// does without. (Dropout with a seed is a later version's.)
pub(super) fn dropout<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["ratio", "seed", "is_test"])?;
    Ok(Built::Value(Value::Tensor(node.tensor(0)?.clone())))
}

pub(super) fn flatten<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axis"])?;
    node.expect_inputs(1..=1)?;
    let x = node.any(0)?;
    let axis = match node.int("axis", 1)? {
        axis if axis == x.shape.len() as i64 => x.shape.len(),
        axis => node.axis(axis, x.shape.len())?,
    };
    let (outer, inner) = x.shape.split_at(axis);
    Ok(Built::reshaped(x, vec![elements(outer), elements(inner)]))
}

pub(super) fn reshape<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["allowzero"])?;
    node.expect_inputs(2..=2)?;
    let target = &node.integers(1)?.values;
    match node.value(0)? {
        Value::Integers(integers) => {
            let shape = resolve(node, &[integers.values.len()], target)?;
            if shape.len() > 1 {
                return Err(node.error("integers of more than one axis are not supported"));
            }
            Ok(Built::integers(integers.values.clone(), shape.is_empty()))
        }
        _ => {
            let x = node.any(0)?;
            Ok(Built::reshaped(x, resolve(node, &x.shape, target)?))
        }
    }
}

/// The shape that a Reshape asks for: 0 copies an axis (unless allowzero), one −1 takes the rest.
fn resolve(node: &Node<'_>, shape: &[usize], target: &[i64]) -> Result<Vec<usize>, TrainingError> {
    let refused = || node.error(format!("a tensor of shape {shape:?} cannot be reshaped to {target:?}"));
    let allow_zero = node.flag("allowzero", false)?;
    let mut resolved = Vec::with_capacity(target.len());
    let mut rest = None;
    for (axis, &dim) in target.iter().enumerate() {
        resolved.push(match dim {
            0 if !allow_zero => *shape.get(axis).ok_or_else(refused)?,
            -1 if rest.is_none() => {
                rest = Some(axis);
                1
            }
            dim => usize::try_from(dim).map_err(|_| refused())?,
        });
    }
    let total = elements(shape);
    let known = resolved.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(refused)?;
    if let Some(slot) = rest.and_then(|axis| resolved.get_mut(axis)) {
        *slot = total.checked_div(known).ok_or_else(refused)?;
    }
    if resolved.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) == Some(total) {
        Ok(resolved)
    } else {
        Err(refused())
    }
}

pub(super) fn transpose<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["perm"])?;
    node.expect_inputs(1..=1)?;
    let x = node.any(0)?;
    let rank = x.shape.len();
    let order: Vec<usize> = match node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(order) => order.iter().map(|&axis| node.axis(axis, rank)).collect::<Result<_, _>>()?,
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(node.error(format!("its perm {order:?} is no order of {rank} axes")));
    }
    let shape = order.iter().filter_map(|&axis| x.shape.get(axis).copied()).collect();
    Ok(Built::unary(x, shape, move |x| B::float_permute(x, &order)).of_kind(x.kind))
}

pub(super) fn squeeze<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axes"])?;
    node.expect_inputs(1..=2)?;
    let axes = node.axes()?;
    if let Value::Integers(integers) = node.value(0)? {
        return match (integers.values.len(), integers.scalar, axes.as_deref()) {
            (1, false, None | Some([0 | -1])) => Ok(Built::integers(integers.values.clone(), true)),
            _ => Err(node.error("only a list of one integer can be squeezed")),
        };
    }
    let x = node.any(0)?;
    let rank = x.shape.len();
    let removed = match axes {
        None => x.shape.iter().map(|&dim| dim == 1).collect(),
        Some(axes) => marked(node, &axes, rank)?,
    };
    if x.shape.iter().zip(&removed).any(|(&dim, &removed)| removed && dim != 1) {
        return Err(node.error(format!("it squeezes an axis of {:?} that is not 1", x.shape)));
    }
    let shape = x.shape.iter().zip(&removed).filter(|&(_, removed)| !removed).map(|(&dim, _)| dim).collect();
    Ok(Built::reshaped(x, shape))
}

pub(super) fn unsqueeze<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axes"])?;
    node.expect_inputs(1..=2)?;
    let axes = node.axes()?.ok_or_else(|| node.error("it has no axes"))?;
    if let Value::Integers(integers) = node.value(0)? {
        let dims = if integers.scalar { vec![] } else { vec![integers.values.len()] };
        let shape = unsqueezed(node, &axes, &dims)?;
        if shape.len() <= 1 {
            return Ok(Built::integers(integers.values.clone(), shape.is_empty()));
        }
        // Indices and masks: what has more axes is no shape.
        let values = whole(&integers.values).ok_or_else(|| node.error("its integers are too large for a tensor"))?;
        return Ok(Built::Constant { values, shape, kind: Kind::Integer });
    }
    let x = node.any(0)?;
    Ok(Built::reshaped(x, unsqueezed(node, &axes, &x.shape)?))
}

/// A shape with axes of size 1 inserted, which `axes` counts in the result.
fn unsqueezed(node: &Node<'_>, axes: &[i64], dims: &[usize]) -> Result<Vec<usize>, TrainingError> {
    let inserted = marked(node, axes, dims.len().saturating_add(axes.len()))?;
    let mut dims = dims.iter().copied();
    Ok(inserted.iter().map(|&inserted| if inserted { 1 } else { dims.next().unwrap_or(1) }).collect())
}

/// Which of `rank` axes a list names; refuses one that is named twice.
fn marked(node: &Node<'_>, axes: &[i64], rank: usize) -> Result<Vec<bool>, TrainingError> {
    let mut marked = vec![false; rank];
    for &axis in axes {
        let index = node.axis(axis, rank)?;
        if marked.get_mut(index).is_none_or(|marked| std::mem::replace(marked, true)) {
            return Err(node.error(format!("its axes {axes:?} name one twice")));
        }
    }
    Ok(marked)
}

pub(super) fn concat<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axis"])?;
    if let Value::Integers(_) = node.value(0)? {
        return concat_integers(node);
    }
    let inputs: Vec<TensorRef> =
        (0..node.input_count()).map(|index| node.any(index).cloned()).collect::<Result<_, _>>()?;
    let mut shape = inputs.first().map(|x| x.shape.clone()).unwrap_or_default();
    let axis = node.axis(node.int("axis", 1)?, shape.len())?;
    let mut total = 0usize;
    for input in &inputs {
        let same = input.shape.len() == shape.len()
            && input.shape.iter().zip(&shape).enumerate().all(|(index, (a, b))| index == axis || a == b);
        let size = input.shape.get(axis).copied().filter(|_| same);
        total = size.and_then(|size| total.checked_add(size)).ok_or_else(|| {
            node.error(format!("shapes {shape:?} and {:?} do not join along axis {axis}", input.shape))
        })?;
    }
    if let Some(dim) = shape.get_mut(axis) {
        *dim = total;
    }
    let kind = inputs.first().map_or(Kind::Float, |input| input.kind);
    if inputs.iter().any(|input| input.kind != kind) {
        return Err(node.error("its inputs are of different types"));
    }
    let kernel = Kernel::Variadic(Box::new(move |inputs| B::float_cat(inputs, axis)));
    Ok(Built::step(inputs, shape, kernel).of_kind(kind))
}

fn concat_integers<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    let mut values = Vec::new();
    for index in 0..node.input_count() {
        let integers = node.integers(index)?;
        if integers.scalar || values.len() + integers.values.len() > MAX_INTEGERS {
            return Err(node.error("its integers do not join into a short list"));
        }
        values.extend_from_slice(&integers.values);
    }
    Ok(Built::integers(values, false))
}
