//! Constants of a graph: initializers and Constant nodes, read into the few types that quantized graphs use.
//! What they mean to an operator is decided by its recogniser.

use std::rc::Rc;

use fedge_models::pb::{NodeProto, TensorProto, tensor_proto::DataType};

use super::graph::Refusal;

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

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let size = match &self.data {
            Data::U8(_) | Data::I8(_) => 1,
            Data::F32(_) | Data::I32(_) => 4,
            Data::I64(_) => 8,
        };
        self.len().saturating_mul(size)
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

    /// Value number `index` of 8- and 32-bit integers.
    #[inline]
    fn code(&self, index: usize) -> Option<i64> {
        match &self.data {
            Data::U8(values) => values.get(index).copied().map(i64::from),
            Data::I8(values) => values.get(index).copied().map(i64::from),
            Data::I32(values) => values.get(index).copied().map(i64::from),
            _ => None,
        }
    }

    fn holds_codes(&self) -> bool {
        matches!(self.data, Data::U8(_) | Data::I8(_) | Data::I32(_))
    }
}

/// A dequantized constant: `(code - zero) × scale`. It shares the file's constants, which any number of nodes may read.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    codes: Rc<Constant>,
    scales: Rc<Constant>,
    zeros: Option<Rc<Constant>>,
    axis: usize,
}

impl Weights {
    /// Refused: other types than 8- and 32-bit integers and float32, and lists of other lengths than one or that of `axis`.
    pub(super) fn new(
        codes: Rc<Constant>,
        scales: Rc<Constant>,
        zeros: Option<Rc<Constant>>,
        axis: usize,
    ) -> Result<Weights, Refusal> {
        let count = scales.floats().ok_or("its scale is no float32")?.len();
        if !codes.holds_codes() {
            return Err("its constant is not 8 or 32 bits wide".to_owned());
        }
        if !zeros.as_ref().is_none_or(|zeros| zeros.holds_codes()) {
            return Err("its zero point has another type".to_owned());
        }
        let fits = count == 1 || codes.shape.get(axis) == Some(&count);
        if !fits || zeros.as_ref().is_some_and(|zeros| zeros.len() != count) {
            return Err("its scales do not fit its shape".to_owned());
        }
        let weights = Weights { codes, scales, zeros, axis };
        if !weights.scales().iter().all(|scale| scale.is_finite() && *scale > 0.0) {
            return Err("a scale is not a positive number".to_owned());
        }
        Ok(weights)
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.codes.shape
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.codes.len()
    }

    /// One, or one for each index of [`Weights::axis`].
    pub(super) fn scales(&self) -> &[f32] {
        self.scales.floats().unwrap_or_default()
    }

    /// Axis that several scales lie along.
    pub(super) fn axis(&self) -> usize {
        self.axis
    }

    /// Value number `index` in steps of scale number `channel`: without the zero point. 0 outside.
    #[inline]
    pub(super) fn steps(&self, index: usize, channel: usize) -> i64 {
        let zero = self.zeros.as_ref().map_or(Some(0), |zeros| zeros.code(if zeros.len() == 1 { 0 } else { channel }));
        self.codes.code(index).unwrap_or(0) - zero.unwrap_or(0)
    }

    /// The float values.
    pub(super) fn floats(&self) -> Vec<f32> {
        let inner: usize = self.shape().iter().skip(self.axis + 1).product::<usize>().max(1);
        let scales = self.scales();
        let of = |index: usize| if scales.len() > 1 { index / inner % scales.len() } else { 0 };
        (0..self.len()).map(|index| self.steps(index, of(index)) as f32 * scales[of(index)]).collect()
    }
}
