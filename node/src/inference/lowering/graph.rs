//! Walks an ONNX graph in QDQ form and builds a program from it, node by node; the first operator that it does not know ends
//! the walk. Families of operators are in `linear`, `mixing` and `moving`; how a waiting result is stored is in `emit`.

use std::collections::HashMap;
use std::rc::Rc;

use fedge_models::pb::{AttributeProto, GraphProto, NodeProto};

use super::constant::{Constant, Data, Weights};
use super::kernels::elementwise::Affine;
use super::program::{Id, Program, Step, Value};
use super::value::{Known, Pending, Tensor};

/// Most elements of one sample of any value: 1 GiB as f32.
pub(super) const MAX_LEN: usize = 1 << 28;

/// What may be made of constants, by the bytes of the constants themselves: 8-bit weights are packed as 16-bit ones, and 3 × 3
/// kernels as 4 × 4 ones.
const EXPANSION: usize = 4;
/// What may be made of constants in any case, in bytes: small groups of channels are padded.
const FREE_ROOM: usize = 64 << 20;

/// Why a node does not lower.
pub(super) type Refusal = String;

/// A program under construction.
pub(super) struct Builder {
    pub known: HashMap<String, Known>,
    pub steps: Vec<Step>,
    pub values: Vec<Value>,
    pub opset: i64,
    /// Bytes that may still be made of constants. A short file can read one constant any number of times.
    room: usize,
}

/// A node that does not lower, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotLowered {
    /// Its operator.
    pub operator: String,
    /// Its name, or that of its first output.
    pub node: String,
    /// What is in the way.
    pub reason: String,
}

/// Builds the program of a whole graph whose f32 input has the given name and sample shape.
pub(super) fn build(
    graph: &GraphProto,
    opset: i64,
    input: &str,
    shape: Vec<usize>,
    output: &str,
) -> Result<Program, NotLowered> {
    let mut builder = Builder { known: HashMap::new(), steps: Vec::new(), values: Vec::new(), opset, room: FREE_ROOM };
    for tensor in &graph.initializer {
        if let Some(constant) = Constant::of_tensor(tensor) {
            let known = builder.of_file(constant);
            builder.known.insert(tensor.name.clone(), known);
        }
    }
    let x = Tensor { id: 0, shape, order: None };
    builder.values.push(Value { len: x.len(), float: true });
    builder.known.insert(input.to_owned(), Known::Float(x));
    let mut readers: HashMap<&str, usize> = HashMap::from([(output, 1)]);
    for name in graph.node.iter().flat_map(|node| &node.input) {
        *readers.entry(name).or_default() += 1;
    }
    for node in &graph.node {
        let refused = |reason| {
            let first = node.output.first();
            let name = if node.name.is_empty() { first.cloned().unwrap_or_default() } else { node.name.clone() };
            NotLowered { operator: node.op_type.clone(), node: name, reason }
        };
        let result = builder.node(node).map_err(refused)?;
        if let Some(output) = node.output.first() {
            builder.known.insert(output.clone(), result);
        }
        // What nobody reads any more goes at once: unpacked weights would double the memory that loading takes.
        for name in &node.input {
            if let Some(count) = readers.get_mut(name.as_str()) {
                *count -= 1;
                if *count == 0 {
                    builder.known.remove(name);
                }
            }
        }
    }
    let refused = |reason| NotLowered { operator: "output".to_owned(), node: output.to_owned(), reason };
    let result = builder.known.get(output).cloned().ok_or_else(|| refused("nothing gives it".to_owned()))?;
    let result = builder.float(result).and_then(|tensor| builder.plain(tensor)).map_err(refused)?;
    Program::new(builder.steps, builder.values, result.id).map_err(refused)
}

impl Builder {
    fn node(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        match node.op_type.as_str() {
            "Constant" => Constant::of_node(node).map(|c| self.of_file(c)).ok_or_else(|| "has another type".into()),
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            "Conv" => self.conv(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "Relu" | "Clip" | "HardSwish" | "HardSigmoid" | "Sigmoid" | "Tanh" | "LeakyRelu" | "Elu" | "Abs"
            | "Neg" | "Exp" | "Sqrt" | "Softplus" => self.function(node),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node),
            "Concat" => self.concat(node),
            "MaxPool" => self.max_pool(node),
            "AveragePool" => self.average_pool(node),
            "GlobalAveragePool" | "ReduceMean" => self.global_average(node),
            "Softmax" => self.softmax(node),
            "Identity" | "Dropout" => self.get(node, 0),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Transpose" => self.transpose(node),
            _ => Err("has no integer form here".to_owned()),
        }
    }

    /// A constant that the file holds.
    fn of_file(&mut self, constant: Constant) -> Known {
        self.room = self.room.saturating_add(constant.bytes().saturating_mul(EXPANSION));
        Known::Constant(Rc::new(constant))
    }

    /// Takes the bytes of what is about to be made of constants.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        let refused =
            || format!("what is made of constants exceeds {EXPANSION} times their size and {FREE_ROOM} bytes");
        self.room = self.room.checked_sub(bytes).ok_or_else(refused)?;
        Ok(())
    }

    /// Input number `index` of a node.
    pub(super) fn get(&self, node: &NodeProto, index: usize) -> Result<Known, Refusal> {
        let name = node.input.get(index).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("lacks its input {index}"))?;
        self.known.get(name).cloned().ok_or_else(|| format!("reads {name:.60?}, a constant of another type or unknown"))
    }

    /// Input number `index`, if the node has it.
    pub(super) fn optional(&self, node: &NodeProto, index: usize) -> Result<Option<Known>, Refusal> {
        match node.input.get(index).filter(|name| !name.is_empty()) {
            Some(_) => self.get(node, index).map(Some),
            None => Ok(None),
        }
    }

    /// Input number `index`, dequantized codes.
    pub(super) fn real(&self, node: &NodeProto, index: usize) -> Result<(Tensor, Affine), Refusal> {
        match self.get(node, index)? {
            Known::Real(tensor, affine) => Ok((tensor, affine)),
            _ => Err(format!("its input {index} is not quantized")),
        }
    }

    /// Adds a step, whose result has `len` elements a sample.
    pub(super) fn push(&mut self, step: Step, len: usize, float: bool) -> Result<Id, Refusal> {
        if len > MAX_LEN {
            return Err(format!("gives {len} values a sample, more than {MAX_LEN}"));
        }
        self.reserve(size_of::<Step>() + size_of::<Value>())?;
        self.steps.push(step);
        self.values.push(Value { len, float });
        Ok(self.steps.len())
    }

    fn quantize(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let (affine, signed) = self.scalar_affine(node)?;
        match self.get(node, 0)? {
            Known::Pending(pending) => Ok(Known::Codes(self.store(pending, affine)?, signed)),
            Known::Float(tensor) => {
                let (channels, pixels) = tensor.image();
                let image = tensor.shape.len() > 1 && channels > 1 && pixels > 1 && tensor.order.is_none();
                let order = image.then_some((channels, pixels));
                let id = self.push(Step::Quantize { from: tensor.id, affine, order }, tensor.len(), false)?;
                Ok(Known::Codes(Tensor { id, order: order.or(tensor.order), ..tensor }, signed))
            }
            Known::Real(tensor, from) => Ok(Known::Codes(self.recode(tensor, from, affine)?, signed)),
            Known::Constant(constant) => {
                self.reserve(constant.len())?;
                quantize_constant(&constant, affine, signed)
            }
            _ => Err("quantizes what is no float".to_owned()),
        }
    }

    fn dequantize(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        match self.get(node, 0)? {
            Known::Codes(tensor, signed) => {
                let (affine, other) = self.scalar_affine(node)?;
                if other == signed { Ok(Known::Real(tensor, affine)) } else { Err("mixes signed and unsigned".into()) }
            }
            Known::Constant(constant) => {
                let Known::Constant(scales) = self.get(node, 1)? else {
                    return Err("its scale is not constant".to_owned());
                };
                let zeros = match self.optional(node, 2)? {
                    None => None,
                    Some(Known::Constant(zeros)) => Some(zeros),
                    Some(_) => return Err("its zero point is not constant".to_owned()),
                };
                let rank = constant.shape.len();
                let axis = int(node, "axis", 1);
                let axis = if axis < 0 { axis + rank as i64 } else { axis };
                let axis = usize::try_from(axis).map_err(|_| "its axis is out of range")?;
                if int(node, "block_size", 0) != 0 {
                    return Err("its scales do not fit its shape".to_owned());
                }
                // Nothing is copied, but each of them is looked at.
                self.reserve(scales.len())?;
                Ok(Known::Weights(Rc::new(Weights::new(constant, scales, zeros, axis)?)))
            }
            _ => Err("its input is not quantized".to_owned()),
        }
    }

    /// Scale and zero point of an activation, in u8 codes, and whether they are signed in the file.
    fn scalar_affine(&self, node: &NodeProto) -> Result<(Affine, bool), Refusal> {
        let scale = match self.get(node, 1)? {
            Known::Constant(scale) => scale.floats().filter(|scale| scale.len() == 1).map(|scale| scale[0]),
            _ => None,
        };
        let scale = scale.ok_or("its scale is not one constant float32")?;
        if !(scale.is_normal() && scale > 0.0) {
            return Err(format!("its scale is {scale}"));
        }
        let (zero, signed) = match self.optional(node, 2)? {
            None if int(node, "output_dtype", 0) != 0 => return Err("quantizes to another type".to_owned()),
            None => (0, false),
            Some(Known::Constant(zero)) => match &zero.data {
                Data::U8(zero) if zero.len() == 1 => (i32::from(zero[0]), false),
                Data::I8(zero) if zero.len() == 1 => (i32::from(zero[0]) + 128, true),
                _ => return Err("its zero point is not one 8-bit constant".to_owned()),
            },
            Some(_) => return Err("its zero point is not constant".to_owned()),
        };
        Ok((Affine { scale, zero }, signed))
    }
}

fn quantize_constant(constant: &Constant, affine: Affine, signed: bool) -> Result<Known, Refusal> {
    let floats = constant.floats().ok_or("quantizes a constant that is no float32")?;
    let codes = floats.iter().map(|value| super::kernels::code(value / affine.scale, affine.range()));
    let data = if signed {
        Data::I8(codes.map(|code| code.wrapping_sub(128) as i8).collect())
    } else {
        Data::U8(codes.collect())
    };
    Ok(Known::Constant(Rc::new(Constant { shape: constant.shape.clone(), data })))
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i)
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |attribute| attribute.f)
}

/// Empty where the attribute is missing.
pub(super) fn ints<'n>(node: &'n NodeProto, name: &str) -> &'n [i64] {
    attribute(node, name).map_or(&[], |attribute| &attribute.ints)
}

/// Empty where the attribute is missing.
pub(super) fn text<'n>(node: &'n NodeProto, name: &str) -> &'n [u8] {
    attribute(node, name).map_or(&[], |attribute| &attribute.s)
}

/// Intersects a waiting result's bounds with new ones.
pub(super) fn clamp(pending: &mut Pending, low: f32, high: f32) {
    pending.low = pending.low.max(low).min(high);
    pending.high = pending.high.max(low).min(high);
}
