//! Element types, names and dimensions of a model's input and output.
//! Which value is the input or output, `graph` decides.

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::error::shorten;
use crate::pb::{self, tensor_proto::DataType, tensor_shape_proto::dimension};

/// Most elements that one sample may have: 1 GiB as float32.
const MAX_SAMPLE_LEN: usize = 1 << 28;

/// Type of a tensor's elements; the variants are those of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum ElementType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

impl ElementType {
    /// All of them.
    pub const ALL: [ElementType; 13] = [
        ElementType::Bool,
        ElementType::Uint8,
        ElementType::Uint16,
        ElementType::Uint32,
        ElementType::Uint64,
        ElementType::Int8,
        ElementType::Int16,
        ElementType::Int32,
        ElementType::Int64,
        ElementType::Fp16,
        ElementType::Bf16,
        ElementType::Fp32,
        ElementType::Fp64,
    ];

    /// The type of this name in the Open Inference Protocol; `None` for `BYTES` and words that are no type.
    pub fn from_name(name: &str) -> Option<ElementType> {
        ElementType::ALL.into_iter().find(|element| element.name() == name)
    }

    /// The Open Inference Protocol's name, e.g. `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::Bool => "BOOL",
            ElementType::Uint8 => "UINT8",
            ElementType::Uint16 => "UINT16",
            ElementType::Uint32 => "UINT32",
            ElementType::Uint64 => "UINT64",
            ElementType::Int8 => "INT8",
            ElementType::Int16 => "INT16",
            ElementType::Int32 => "INT32",
            ElementType::Int64 => "INT64",
            ElementType::Fp16 => "FP16",
            ElementType::Bf16 => "BF16",
            ElementType::Fp32 => "FP32",
            ElementType::Fp64 => "FP64",
        }
    }

    /// Size of one element, in bytes.
    pub fn size(self) -> usize {
        match self {
            ElementType::Bool | ElementType::Uint8 | ElementType::Int8 => 1,
            ElementType::Uint16 | ElementType::Int16 | ElementType::Fp16 | ElementType::Bf16 => 2,
            ElementType::Uint32 | ElementType::Int32 | ElementType::Fp32 => 4,
            ElementType::Uint64 | ElementType::Int64 | ElementType::Fp64 => 8,
        }
    }

    /// Whether samples of this type are held as float32: float32 itself, and whole numbers that it holds exactly
    /// ([`ElementType::holds`]), which is what class, token and pixel values are.
    pub fn is_held_as_float(self) -> bool {
        self == ElementType::Fp32 || self.range().is_some()
    }

    /// Whether a float32 is a value of this type: any finite number for float32, a whole number within the type's range
    /// and below 2^24 for an integer. False for all other types.
    pub fn holds(self, value: f32) -> bool {
        match self.range() {
            Some((low, high)) => value.fract() == 0.0 && (low..=high).contains(&value),
            None => self == ElementType::Fp32 && value.is_finite(),
        }
    }

    /// The whole numbers of an integer type that float32 holds exactly, with all below them.
    fn range(self) -> Option<(f32, f32)> {
        const WHOLE: f32 = 16_777_215.0;
        Some(match self {
            ElementType::Uint8 => (0.0, 255.0),
            ElementType::Uint16 => (0.0, 65_535.0),
            ElementType::Uint32 | ElementType::Uint64 => (0.0, WHOLE),
            ElementType::Int8 => (-128.0, 127.0),
            ElementType::Int16 => (-32_768.0, 32_767.0),
            ElementType::Int32 | ElementType::Int64 => (-WHOLE, WHOLE),
            _ => return None,
        })
    }

    /// The type behind ONNX's `TensorProto.DataType` number; `None` for strings, complex and sub-byte types.
    pub fn from_onnx(data_type: i32) -> Option<ElementType> {
        Some(match DataType::try_from(data_type).ok()? {
            DataType::Bool => ElementType::Bool,
            DataType::Uint8 => ElementType::Uint8,
            DataType::Uint16 => ElementType::Uint16,
            DataType::Uint32 => ElementType::Uint32,
            DataType::Uint64 => ElementType::Uint64,
            DataType::Int8 => ElementType::Int8,
            DataType::Int16 => ElementType::Int16,
            DataType::Int32 => ElementType::Int32,
            DataType::Int64 => ElementType::Int64,
            DataType::Float16 => ElementType::Fp16,
            DataType::Bfloat16 => ElementType::Bf16,
            DataType::Float => ElementType::Fp32,
            DataType::Double => ElementType::Fp64,
            _ => return None,
        })
    }
}

/// Name, element type and dimensions of a graph's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSignature {
    /// The value's name in the graph.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Its dimensions; `None` = dynamic. The first is the batch.
    pub dims: Vec<Option<usize>>,
}

impl TensorSignature {
    /// Dimensions of one sample: all but the first. A checked model's input has them all known; a dynamic dimension
    /// of an output counts as 1.
    pub fn sample_shape(&self) -> Vec<usize> {
        self.dims.iter().skip(1).map(|dim| dim.unwrap_or(1)).collect()
    }

    /// Number of elements of one sample.
    pub fn sample_len(&self) -> usize {
        self.sample_shape().iter().product()
    }

    /// The batch size, where the file fixes one.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.dims.first().copied().flatten()
    }
}

/// Reads a graph input's or output's signature. `role` is "input" or "output"; an input must know every dimension but
/// the first.
pub(crate) fn read(value: &pb::ValueInfoProto, role: &str) -> Result<TensorSignature, ModelError> {
    let signature = read_open(value, role)?;
    let refused = |problem: String| ModelError::graph(format!("{role} {:?} {problem}", shorten(&value.name)));
    if signature.dims.is_empty() {
        return Err(refused("is a scalar; its first dimension must be the batch".to_owned()));
    }
    let unknown = signature.dims.iter().skip(1).position(Option::is_none);
    if let (Some(axis), "input") = (unknown, role) {
        return Err(refused(format!(
            "has a dynamic dimension {}; only the first (the batch) may be dynamic: export with a fixed sample shape",
            axis + 1
        )));
    }
    Ok(signature)
}

/// As [`read`], whatever the rank and wherever a dimension is dynamic: for models that are served, not trained.
pub(crate) fn read_open(value: &pb::ValueInfoProto, role: &str) -> Result<TensorSignature, ModelError> {
    let refused = |problem: String| ModelError::graph(format!("{role} {:?} {problem}", shorten(&value.name)));
    let Some(pb::type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(refused("is not a tensor; sequences, maps and optionals are not supported".to_owned()));
    };
    let element = ElementType::from_onnx(tensor.elem_type).ok_or_else(|| {
        let kind = match DataType::try_from(tensor.elem_type) {
            Ok(DataType::String) => "strings, which the engine does not run".to_owned(),
            _ => format!("the unsupported element type {}", tensor.elem_type),
        };
        refused(format!("has {kind}; use float32"))
    })?;
    let shape =
        tensor.shape.as_ref().ok_or_else(|| refused("has no shape; export the model with its shape".to_owned()))?;
    let mut dims = Vec::with_capacity(shape.dim.len());
    for dim in &shape.dim {
        dims.push(match dim.value {
            Some(dimension::Value::DimValue(size)) => Some(
                usize::try_from(size)
                    .ok()
                    .filter(|&size| size > 0)
                    .ok_or_else(|| refused(format!("has a dimension of {size}; dimensions must be at least 1")))?,
            ),
            Some(dimension::Value::DimParam(_)) | None => None,
        });
    }
    let len = dims.iter().skip(1).try_fold(1usize, |product, dim| product.checked_mul(dim.unwrap_or(1)));
    match len {
        Some(len) if len <= MAX_SAMPLE_LEN => Ok(TensorSignature { name: value.name.clone(), element, dims }),
        _ => Err(refused(format!("has samples of more than {MAX_SAMPLE_LEN} elements"))),
    }
}
