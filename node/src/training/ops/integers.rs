//! Constants, and the integer arithmetic that exporters write around Reshape: it folds when the graph is compiled.
//! Add, Sub, Mul and Div of integers fold in `elementwise`; Concat and Unsqueeze in `shape`.

use burn::backend::{Scalar, TensorMetadata};
use fedge_models::pb::attribute_proto::AttributeType;
use fedge_models::pb::tensor_proto::DataType;

use super::super::TrainingError;
use super::super::backend::{Tensor, bool_type};
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Decoded, Integers, Kind, MAX_INTEGERS, TensorRef, Value, decode, whole};
use super::Built;

/// Most elements of a constant that a short node asks for.
const MAX_FILLED: usize = 1 << 26;

pub(super) fn constant<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["value", "value_float", "value_floats", "value_int", "value_ints"])?;
    node.expect_inputs(0..=0)?;
    if let Some(attribute) = node.attribute("value", AttributeType::Tensor)? {
        let tensor = attribute.t.as_ref().ok_or_else(|| node.error("its value is missing"))?;
        return match decode(tensor) {
            Decoded::Tensor { values, shape, kind } => Ok(Built::Constant { values, shape, kind }),
            Decoded::Empty => Ok(Built::Value(Value::Empty)),
            Decoded::Integers(integers) => Ok(Built::Value(Value::Integers(integers))),
            Decoded::Unusable(problem) => Ok(Built::Value(Value::Unusable(problem))),
        };
    }
    if let Some(attribute) = node.attribute("value_float", AttributeType::Float)? {
        return Ok(Built::Constant { values: vec![attribute.f], shape: vec![], kind: Kind::Float });
    }
    if let Some(attribute) = node.attribute("value_floats", AttributeType::Floats)? {
        return Ok(Built::Constant {
            values: attribute.floats.clone(),
            shape: vec![attribute.floats.len()],
            kind: Kind::Float,
        });
    }
    if let Some(attribute) = node.attribute("value_int", AttributeType::Int)? {
        return Ok(Built::integers(vec![attribute.i], true));
    }
    match node.ints("value_ints")? {
        Some(values) if values.len() <= MAX_INTEGERS => Ok(Built::integers(values.to_vec(), false)),
        Some(values) => Err(node.error(format!("it holds {} integers, above {MAX_INTEGERS}", values.len()))),
        None => Err(node.error("it has no value")),
    }
}

pub(super) fn shape<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["start", "end"])?;
    node.expect_inputs(1..=1)?;
    let dims: Vec<i64> = match node.value(0)? {
        Value::Integers(Integers { scalar: true, .. }) => vec![],
        Value::Integers(integers) => vec![integers.values.len() as i64],
        _ => node.any(0)?.shape.iter().map(|&dim| dim as i64).collect(),
    };
    let rank = dims.len() as i64;
    let clamp = |index: i64| (if index < 0 { index.saturating_add(rank) } else { index }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.int("start", 0)?), clamp(node.int("end", rank)?));
    Ok(Built::integers(dims.get(start..end).unwrap_or_default().to_vec(), false))
}

pub(super) fn gather<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["axis"])?;
    node.expect_inputs(2..=2)?;
    let (data, indices) = (only_integers(node)?, node.integers(1)?);
    node.axis(node.int("axis", 0)?, 1)?;
    let len = data.values.len() as i64;
    let pick = |&index: &i64| {
        let index = if index < 0 { index.saturating_add(len) } else { index };
        usize::try_from(index).ok().and_then(|index| data.values.get(index).copied())
    };
    let values: Option<Vec<i64>> = indices.values.iter().map(pick).collect();
    let values = values.ok_or_else(|| node.error(format!("an index is out of range for {len} integers")))?;
    Ok(Built::integers(values, indices.scalar))
}

pub(super) fn slice<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[])?;
    node.expect_inputs(3..=5)?;
    let data = only_integers(node)?;
    if node.optional(3).is_some() {
        for &axis in &node.integers(3)?.values {
            node.axis(axis, 1)?;
        }
    }
    let step = match node.optional(4) {
        None => 1,
        Some(_) => single(node, 4)?,
    };
    if step < 1 {
        return Err(node.error(format!("its step is {step}; training slices shapes forward only")));
    }
    let len = data.values.len() as i64;
    let clamp = |index: i64| (if index < 0 { index.saturating_add(len) } else { index }).clamp(0, len) as usize;
    let (start, end) = (clamp(single(node, 1)?), clamp(single(node, 2)?));
    let kept = data.values.get(start..end).unwrap_or_default();
    Ok(Built::integers(kept.iter().step_by(step as usize).copied().collect(), false))
}

/// Between floats, integers and truth values, all of which are held as floats. Floats lose their fraction.
pub(super) fn cast<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["to", "saturate", "round_mode"])?;
    node.expect_inputs(1..=1)?;
    let to = node.int("to", 0)?;
    let to = match i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok()) {
        Some(DataType::Float) => Kind::Float,
        Some(DataType::Int64 | DataType::Int32) => Kind::Integer,
        Some(DataType::Bool) => Kind::Bool,
        _ => return Err(node.error("training casts to float32, int64, int32 and bool only")),
    };
    if let Value::Integers(Integers { values, scalar }) = node.value(0)? {
        let shape = if *scalar { vec![] } else { vec![values.len()] };
        return match to {
            Kind::Float => {
                let values = values.iter().map(|&value| value as f32).collect();
                Ok(Built::Constant { values, shape, kind: Kind::Float })
            }
            Kind::Integer => Ok(Built::integers(values.clone(), *scalar)),
            Kind::Bool => Ok(Built::integers(values.iter().map(|&value| i64::from(value != 0)).collect(), *scalar)),
        };
    }
    let x = node.any(0)?;
    if let (Kind::Integer, Some(known), true) = (to, &x.known, x.shape.len() <= 1) {
        return Ok(Built::integers(known.iter().map(|value| value.trunc() as i64).collect(), x.shape.is_empty()));
    }
    match (x.kind, to) {
        (from, to) if from == to => Ok(Built::Value(Value::Tensor(x.clone()))),
        (Kind::Float, Kind::Integer) => Ok(Built::unary(x, x.shape.clone(), B::float_trunc).of_kind(to)),
        (Kind::Float | Kind::Integer, Kind::Bool) => {
            let run = |x: Tensor<B>| {
                let dtype = x.dtype();
                B::bool_into_float(B::float_not_equal_elem(x, Scalar::Float(0.0), bool_type::<B>()), dtype.into())
            };
            Ok(Built::unary(x, x.shape.clone(), run).of_kind(to))
        }
        // The same numbers, called otherwise.
        (_, to) => Ok(Built::Value(Value::Tensor(TensorRef { kind: to, ..x.clone() }))),
    }
}

/// A tensor of one value, as large as its input says.
pub(super) fn constant_of_shape<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["value"])?;
    node.expect_inputs(1..=1)?;
    let shape: Option<Vec<usize>> =
        node.integers(0)?.values.iter().map(|&dim| usize::try_from(dim).ok().filter(|&dim| dim > 0)).collect();
    let len = |shape: &[usize]| shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
    let sized = shape.and_then(|shape| Some((len(&shape).filter(|&len| len <= MAX_FILLED)?, shape)));
    let (len, shape) =
        sized.ok_or_else(|| node.error(format!("its shape is empty, negative or above {MAX_FILLED} elements")))?;
    node.fits("its output", &shape)?;
    let value = match node.attribute("value", AttributeType::Tensor)?.and_then(|attribute| attribute.t.as_ref()) {
        None => Decoded::Tensor { values: vec![0.0], shape: vec![1], kind: Kind::Float },
        Some(tensor) => decode(tensor),
    };
    match value {
        Decoded::Integers(Integers { values, .. }) => {
            let [value] = values.as_slice() else { return Err(node.error("its value is not a single one")) };
            if shape.len() <= 1 && len <= MAX_INTEGERS {
                return Ok(Built::integers(vec![*value; len], shape.is_empty()));
            }
            let value = whole(&[*value]).ok_or_else(|| node.error("its value is too large"))?;
            Ok(Built::Constant { values: value.repeat(len), shape, kind: Kind::Integer })
        }
        Decoded::Tensor { values, kind, .. } => {
            let [value] = values.as_slice() else { return Err(node.error("its value is not a single one")) };
            Ok(Built::Constant { values: vec![*value; len], shape, kind })
        }
        Decoded::Empty => Err(node.error("its value is not a single one")),
        Decoded::Unusable(problem) => Err(node.error(format!("its value {problem}"))),
    }
}

/// Whole numbers from a start to before a limit.
pub(super) fn range<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["stash_type"])?;
    node.expect_inputs(3..=3)?;
    let (start, limit, step) = (single(node, 0)?, single(node, 1)?, single(node, 2)?);
    let room = if step < 0 { start.checked_sub(limit) } else { limit.checked_sub(start) };
    let count = room.filter(|_| step != 0).map(|room| (room.max(0) as u64).div_ceil(step.unsigned_abs()));
    let count = count.filter(|&count| count > 0 && count <= MAX_FILLED as u64);
    let count =
        count.ok_or_else(|| node.error(format!("its range of {start} to {limit} by {step} is empty or too long")))?;
    node.fits("its output", &[count as usize])?;
    let values: Vec<i64> = (0..count as i64).map(|index| start + index * step).collect();
    if values.len() <= MAX_INTEGERS {
        return Ok(Built::integers(values, false));
    }
    let shape = vec![values.len()];
    let values = whole(&values).ok_or_else(|| node.error("its numbers are too large"))?;
    Ok(Built::Constant { values, shape, kind: Kind::Integer })
}

pub(super) fn size<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[])?;
    node.expect_inputs(1..=1)?;
    Ok(Built::integers(vec![node.any(0)?.shape.iter().product::<usize>() as i64], true))
}

/// Input 0 as a list of integers: training gathers from and slices shapes, not tensors.
fn only_integers<'n>(node: &'n Node<'_>) -> Result<&'n Integers, TrainingError> {
    match node.value(0)? {
        Value::Integers(integers) if !integers.scalar => Ok(integers),
        _ => Err(node.error("training runs it on shapes only, not on tensors")),
    }
}

/// An input that is exactly one integer.
fn single(node: &Node<'_>, input: usize) -> Result<i64, TrainingError> {
    match node.integers(input)?.values.as_slice() {
        [value] => Ok(*value),
        _ => Err(node.error(format!("its input {input} must be one integer"))),
    }
}
