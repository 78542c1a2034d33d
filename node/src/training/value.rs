//! What is known of a graph's value while it is compiled: a tensor's shape, or integers that are known already.
//! The numbers of a tensor exist at run time only, except a constant's.

use std::sync::Arc;

use fedge_models::pb::{TensorProto, tensor_proto::DataType};

/// Most integers of one value: they describe shapes, axes and indices, never data.
pub(super) const MAX_INTEGERS: usize = 64;

/// A value of the graph at compile time.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A tensor that exists at run time.
    Tensor(TensorRef),
    /// Integers that are known now, because shapes are fixed when a graph is compiled.
    Integers(Integers),
    /// A tensor without elements: an input that is left out, by some exporters' lights.
    Empty,
    /// Something that training cannot use; the text says why.
    Unusable(String),
}

/// What the numbers of a tensor stand for. Whatever it is, they are held as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    /// Whole numbers of at most [`MAX_WHOLE`]: indices and positions.
    Integer,
    /// 0 and 1.
    Bool,
}

/// Largest whole number up to which float32 holds each.
pub(super) const MAX_WHOLE: i64 = 1 << 24;

/// A tensor that a slot holds at run time.
#[derive(Clone, Debug)]
pub(super) struct TensorRef {
    /// Its place in the run's values.
    pub slot: usize,
    /// Its shape; empty for a scalar (held as one element of rank 1).
    pub shape: Vec<usize>,
    /// Where it comes from.
    pub origin: Origin,
    /// What its numbers stand for.
    pub kind: Kind,
    /// A short constant's numbers.
    pub known: Option<Arc<[f32]>>,
}

/// Where a tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Origin {
    /// The trainable parameter whose index is the slot.
    Trainable,
    /// The BatchNormalization statistic whose parameter index is the slot.
    Statistic,
    /// Part of the file; the number where it is a single one.
    Constant(Option<f32>),
    /// A node, or the graph's input; `learned` where a trainable parameter has a part in it.
    Computed { learned: bool },
}

impl TensorRef {
    /// Whether a gradient flows through it.
    pub(super) fn learned(&self) -> bool {
        matches!(self.origin, Origin::Trainable | Origin::Computed { learned: true })
    }
}

/// Integers of rank 0 or 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Integers {
    pub values: Vec<i64>,
    /// Rank 0: exactly one value.
    pub scalar: bool,
}

/// The content of a TensorProto.
pub(super) enum Decoded {
    Tensor { values: Vec<f32>, shape: Vec<usize>, kind: Kind },
    Empty,
    Integers(Integers),
    Unusable(String),
}

/// Decodes a tensor of the file. Its size is checked against its dimensions; nothing is trusted.
pub(super) fn decode(tensor: &TensorProto) -> Decoded {
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let len = dims.as_ref().and_then(|dims| dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)));
    let (Some(shape), Some(len)) = (dims, len) else {
        return Decoded::Unusable(format!("has the impossible shape {:?}", tensor.dims));
    };
    match DataType::try_from(tensor.data_type) {
        Ok(DataType::Int64 | DataType::Int32) if shape == [0] => {
            Decoded::Integers(Integers { values: Vec::new(), scalar: false })
        }
        Ok(_) if len == 0 => Decoded::Empty,
        Ok(DataType::Bool) => booleans(tensor, shape, len),
        Ok(DataType::Float) => floats(tensor, shape, len),
        Ok(kind @ (DataType::Int64 | DataType::Int32)) => integers(tensor, kind, &shape, len),
        Ok(kind) => Decoded::Unusable(format!("is of type {}; training uses float32", kind.as_str_name())),
        Err(_) => Decoded::Unusable(format!("is of the unknown type {}", tensor.data_type)),
    }
}

fn floats(tensor: &TensorProto, shape: Vec<usize>, len: usize) -> Decoded {
    let values: Vec<f32> = if tensor.raw_data.is_empty() {
        tensor.float_data.clone()
    } else {
        little_endian(&tensor.raw_data, f32::from_le_bytes)
    };
    if values.len() == len {
        Decoded::Tensor { values, shape, kind: Kind::Float }
    } else {
        Decoded::Unusable(format!("holds {} numbers for the shape {shape:?}", values.len()))
    }
}

fn integers(tensor: &TensorProto, kind: DataType, shape: &[usize], len: usize) -> Decoded {
    let values: Vec<i64> = match (kind, tensor.raw_data.is_empty()) {
        (DataType::Int64, true) => tensor.int64_data.clone(),
        (DataType::Int64, false) => little_endian(&tensor.raw_data, i64::from_le_bytes),
        (_, true) => tensor.int32_data.iter().copied().map(i64::from).collect(),
        (_, false) => little_endian(&tensor.raw_data, i32::from_le_bytes).into_iter().map(i64::from).collect(),
    };
    if values.len() != len {
        return Decoded::Unusable(format!("holds {} integers for the shape {shape:?}", values.len()));
    }
    if shape.len() <= 1 && len <= MAX_INTEGERS {
        return Decoded::Integers(Integers { values, scalar: shape.is_empty() });
    }
    match whole(&values) {
        Some(values) => Decoded::Tensor { values, shape: shape.to_vec(), kind: Kind::Integer },
        None => Decoded::Unusable(format!("holds integers above {MAX_WHOLE}; training takes them as indices alone")),
    }
}

/// Integers as floats, where all of them are held exactly.
pub(super) fn whole(values: &[i64]) -> Option<Vec<f32>> {
    values.iter().map(|value| (value.unsigned_abs() <= MAX_WHOLE as u64).then_some(*value as f32)).collect()
}

fn booleans(tensor: &TensorProto, shape: Vec<usize>, len: usize) -> Decoded {
    let values: Vec<f32> = if tensor.raw_data.is_empty() {
        tensor.int32_data.iter().map(|&value| f32::from(u8::from(value != 0))).collect()
    } else {
        tensor.raw_data.iter().map(|&value| f32::from(u8::from(value != 0))).collect()
    };
    if values.len() == len {
        Decoded::Tensor { values, shape, kind: Kind::Bool }
    } else {
        Decoded::Unusable(format!("holds {} truth values for the shape {shape:?}", values.len()))
    }
}

fn little_endian<const SIZE: usize, T>(bytes: &[u8], read: fn([u8; SIZE]) -> T) -> Vec<T> {
    bytes.as_chunks::<SIZE>().0.iter().copied().map(read).collect()
}
