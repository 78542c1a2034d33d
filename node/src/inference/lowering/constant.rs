//! Constants of a graph: initializers and Constant nodes, read into the few types that quantized graphs use.
//! What they mean to an operator is decided by its recogniser.

use fedge_models::pb::{NodeProto, TensorProto, tensor_proto::DataType};

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constant {
    pub shape: Vec<usize>,
    pub data: Data,
}

/// Its values, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    F32(Vec<f32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

impl Constant {
    /// `None` for other types, or values that do not fill the shape.
    pub(super) fn of_tensor(tensor: &TensorProto) -> Option<Constant> {
        let shape: Option<Vec<usize>> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let shape = shape?;
        let raw = &tensor.raw_data;
        let data = match DataType::try_from(tensor.data_type).ok()? {
            DataType::Float if raw.is_empty() => Data::F32(tensor.float_data.clone()),
            DataType::Float => Data::F32(raw.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            DataType::Uint8 if raw.is_empty() => Data::U8(tensor.int32_data.iter().map(|&value| value as u8).collect()),
            DataType::Uint8 => Data::U8(raw.clone()),
            DataType::Int8 if raw.is_empty() => Data::I8(tensor.int32_data.iter().map(|&value| value as i8).collect()),
            DataType::Int8 => Data::I8(raw.iter().map(|&byte| byte as i8).collect()),
            DataType::Int32 if raw.is_empty() => Data::I32(tensor.int32_data.clone()),
            DataType::Int32 => Data::I32(raw.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()),
            DataType::Int64 if raw.is_empty() => Data::I64(tensor.int64_data.clone()),
            DataType::Int64 => Data::I64(raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()),
            _ => return None,
        };
        let expected = shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim))?;
        let constant = Constant { shape, data };
        (constant.len() == expected).then_some(constant)
    }

    /// Of a Constant node.
    pub(super) fn of_node(node: &NodeProto) -> Option<Constant> {
        let attribute = node.attribute.first()?;
        match attribute.name.as_str() {
            "value" => Constant::of_tensor(attribute.t.as_ref()?),
            "value_float" => Some(Constant { shape: vec![], data: Data::F32(vec![attribute.f]) }),
            "value_int" => Some(Constant { shape: vec![], data: Data::I64(vec![attribute.i]) }),
            "value_floats" => {
                Some(Constant { shape: vec![attribute.floats.len()], data: Data::F32(attribute.floats.clone()) })
            }
            "value_ints" => {
                Some(Constant { shape: vec![attribute.ints.len()], data: Data::I64(attribute.ints.clone()) })
            }
            _ => None,
        }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        match &self.data {
            Data::F32(values) => values.len(),
            Data::U8(values) => values.len(),
            Data::I8(values) => values.len(),
            Data::I32(values) => values.len(),
            Data::I64(values) => values.len(),
        }
    }

    /// Float values.
    pub(super) fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The single value of an int64 list or the list itself.
    pub(super) fn i64s(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I64(values) => Some(values),
            _ => None,
        }
    }

    /// 8- and 32-bit integers.
    pub(super) fn codes(&self) -> Option<Vec<i32>> {
        match &self.data {
            Data::U8(values) => Some(values.iter().map(|&value| i32::from(value)).collect()),
            Data::I8(values) => Some(values.iter().map(|&value| i32::from(value)).collect()),
            Data::I32(values) => Some(values.clone()),
            _ => None,
        }
    }
}

/// A dequantized constant: `(code - zero) × scale`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weights {
    pub shape: Vec<usize>,
    pub codes: Vec<i32>,
    /// One, or one for each index of `axis`.
    pub scales: Vec<f32>,
    /// As many as scales.
    pub zeros: Vec<i32>,
    pub axis: usize,
}

impl Weights {
    /// The float values.
    pub(super) fn floats(&self) -> Vec<f32> {
        let inner: usize = self.shape.iter().skip(self.axis + 1).product::<usize>().max(1);
        let several = self.scales.len() > 1;
        let at = |index: usize| if several { index / inner % self.scales.len() } else { 0 };
        let codes = self.codes.iter().enumerate();
        codes
            .map(|(index, code)| (i64::from(*code) - i64::from(self.zeros[at(index)])) as f32 * self.scales[at(index)])
            .collect()
    }
}
