//! Constants, and the integer arithmetic that exporters write around Reshape: it folds when the graph is compiled.
//! Add, Sub, Mul and Div of integers fold in `elementwise`; Concat and Unsqueeze in `shape`.

use burn::backend::Backend;
use fedge_models::pb::attribute_proto::AttributeType;
use fedge_models::pb::tensor_proto::DataType;

use super::super::TrainingError;
use super::super::node::Node;
use super::super::value::{Decoded, Integers, MAX_INTEGERS, Value, decode};
use super::Built;

pub(super) fn constant<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["value", "value_float", "value_floats", "value_int", "value_ints"])?;
    node.expect_inputs(0..=0)?;
    if let Some(attribute) = node.attribute("value", AttributeType::Tensor)? {
        let tensor = attribute.t.as_ref().ok_or_else(|| node.error("its value is missing"))?;
        return match decode(tensor) {
            Decoded::Floats { values, shape } => Ok(Built::Constant { values, shape }),
            Decoded::Integers(integers) => Ok(Built::Value(Value::Integers(integers))),
            Decoded::Unusable(problem) => Ok(Built::Value(Value::Unusable(problem))),
        };
    }
    if let Some(attribute) = node.attribute("value_float", AttributeType::Float)? {
        return Ok(Built::Constant { values: vec![attribute.f], shape: vec![] });
    }
    if let Some(attribute) = node.attribute("value_floats", AttributeType::Floats)? {
        return Ok(Built::Constant { values: attribute.floats.clone(), shape: vec![attribute.floats.len()] });
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

pub(super) fn shape<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["start", "end"])?;
    node.expect_inputs(1..=1)?;
    let dims: Vec<i64> = match node.value(0)? {
        Value::Integers(Integers { scalar: true, .. }) => vec![],
        Value::Integers(integers) => vec![integers.values.len() as i64],
        _ => node.tensor(0)?.shape.iter().map(|&dim| dim as i64).collect(),
    };
    let rank = dims.len() as i64;
    let clamp = |index: i64| (if index < 0 { index.saturating_add(rank) } else { index }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.int("start", 0)?), clamp(node.int("end", rank)?));
    Ok(Built::integers(dims.get(start..end).unwrap_or_default().to_vec(), false))
}

pub(super) fn gather<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
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

pub(super) fn slice<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
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

/// Float to float and integer to integer; integers hold every integer type's values.
pub(super) fn cast<B: Backend>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["to", "saturate"])?;
    node.expect_inputs(1..=1)?;
    let to = node.int("to", 0)?;
    let to = i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok());
    match (node.value(0)?, to) {
        (value @ Value::Tensor(_), Some(DataType::Float)) => Ok(Built::Value(value.clone())),
        (value @ Value::Integers(_), Some(DataType::Int64)) => Ok(Built::Value(value.clone())),
        (Value::Integers(integers), Some(DataType::Int32))
            if integers.values.iter().all(|&value| i32::try_from(value).is_ok()) =>
        {
            Ok(Built::Value(Value::Integers(integers.clone())))
        }
        (Value::Integers(Integers { values, scalar }), Some(DataType::Float)) => {
            let shape = if *scalar { vec![] } else { vec![values.len()] };
            Ok(Built::Constant { values: values.iter().map(|&value| value as f32).collect(), shape })
        }
        _ => Err(node.error("training casts float32 to float32 and shapes to int64, int32 or float32 only")),
    }
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
