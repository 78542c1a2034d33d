//! One node of the graph as an operator's builder sees it: checked access to its inputs and attributes.
//! What an operator does with them is in `ops`.

use std::cell::Cell;

use fedge_models::pb::{AttributeProto, NodeProto, attribute_proto::AttributeType};

use super::TrainingError;
use super::value::{Integers, Kind, TensorRef, Value};

/// Most elements that all values of one step may have together: 2 GiB in single precision. The tape keeps them until
/// the backward pass, so this bounds a run's memory.
const MAX_STEP_ELEMENTS: usize = 1 << 29;

/// A node with its inputs looked up.
pub(super) struct Node<'g> {
    proto: &'g NodeProto,
    inputs: Vec<Option<Value>>,
    opset: i64,
    training: bool,
    /// Elements of all values up to here.
    held: Cell<usize>,
}

impl<'g> Node<'g> {
    /// `inputs` are the values of the node's inputs in order, `None` where one is left out; `held` elements come before it.
    pub(super) fn new(
        proto: &'g NodeProto,
        inputs: Vec<Option<Value>>,
        opset: i64,
        training: bool,
        held: usize,
    ) -> Node<'g> {
        Node { proto, inputs, opset, training, held: Cell::new(held) }
    }

    /// Counts in a value of this shape, which lives until the backward pass. Refused: more than a step may hold.
    pub(super) fn hold(&self, what: &str, shape: &[usize]) -> Result<(), TrainingError> {
        self.held.set(bounded(self.proto, self.held.get(), what, shape)?);
        Ok(())
    }

    /// Refuses a value of this shape, which is gone when the node is done, where it would exceed what a step may hold.
    pub(super) fn fits(&self, what: &str, shape: &[usize]) -> Result<(), TrainingError> {
        bounded(self.proto, self.held.get(), what, shape).map(|_| ())
    }

    /// Elements of all values up to here, this node's own included.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// ONNX's name of the operator.
    pub(super) fn operator(&self) -> &'g str {
        &self.proto.op_type
    }

    /// Version of the default operator set.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// Whether the graph is compiled for training steps (batch statistics) and not for evaluation.
    pub(super) fn training(&self) -> bool {
        self.training
    }

    /// An error that names this node.
    pub(super) fn error(&self, problem: impl Into<String>) -> TrainingError {
        error(self.proto, problem)
    }

    /// Refuses a count of inputs outside the range, so that no input is silently ignored.
    pub(super) fn expect_inputs(&self, counts: std::ops::RangeInclusive<usize>) -> Result<(), TrainingError> {
        let given = self.inputs.len();
        if counts.contains(&given) {
            return Ok(());
        }
        let (low, high) = (counts.start(), counts.end());
        Err(self.error(format!("it has {given} inputs, not {low} to {high}")))
    }

    /// Number of inputs, left-out ones included.
    pub(super) fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// An input that may be left out.
    pub(super) fn optional(&self, index: usize) -> Option<&Value> {
        self.inputs.get(index).and_then(Option::as_ref).filter(|value| !matches!(value, Value::Empty))
    }

    /// An input that must be there.
    pub(super) fn value(&self, index: usize) -> Result<&Value, TrainingError> {
        match self.optional(index) {
            Some(Value::Unusable(problem)) => {
                Err(self.error(format!("its input {:?} {problem}", self.input_name(index))))
            }
            Some(value) => Ok(value),
            None => Err(self.error(format!("its input {index} is missing"))),
        }
    }

    /// A float tensor that must be there.
    pub(super) fn tensor(&self, index: usize) -> Result<&TensorRef, TrainingError> {
        match self.value(index)? {
            Value::Tensor(tensor) if tensor.kind == Kind::Float => Ok(tensor),
            Value::Tensor(TensorRef { kind: Kind::Bool, .. }) => {
                Err(self.error(format!("its input {:?} holds truth values, not float32", self.input_name(index))))
            }
            _ => Err(self.error(format!("its input {:?} holds integers, not float32", self.input_name(index)))),
        }
    }

    /// A tensor of any kind that must be there.
    pub(super) fn any(&self, index: usize) -> Result<&TensorRef, TrainingError> {
        match self.value(index)? {
            Value::Tensor(tensor) => Ok(tensor),
            _ => {
                Err(self
                    .error(format!("its input {:?} is a short list of integers, not a tensor", self.input_name(index))))
            }
        }
    }

    /// Truth values that must be there.
    pub(super) fn condition(&self, index: usize) -> Result<&TensorRef, TrainingError> {
        match self.any(index)? {
            tensor if tensor.kind == Kind::Bool => Ok(tensor),
            _ => Err(self.error(format!("its input {:?} holds numbers, not truth values", self.input_name(index)))),
        }
    }

    /// A float tensor that may be left out.
    pub(super) fn optional_tensor(&self, index: usize) -> Result<Option<&TensorRef>, TrainingError> {
        self.optional(index).map(|_| self.tensor(index)).transpose()
    }

    /// Integers that must be known.
    pub(super) fn integers(&self, index: usize) -> Result<&Integers, TrainingError> {
        match self.value(index)? {
            Value::Integers(integers) => Ok(integers),
            _ => Err(self.error(format!(
                "its input {:?} must be integers that follow from the shapes, not computed numbers",
                self.input_name(index)
            ))),
        }
    }

    /// Number of outputs that the node names.
    pub(super) fn output_count(&self) -> usize {
        self.proto.output.len()
    }

    /// A list of texts; empty where it is not given.
    pub(super) fn strings(&self, name: &str) -> Result<Vec<String>, TrainingError> {
        let list = self.attribute(name, AttributeType::Strings)?.map_or(&[][..], |attribute| &attribute.strings);
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).ok();
        list.iter()
            .map(text)
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(format!("its attribute {name:?} is not text")))
    }

    /// Refuses attributes that this trainer does not know, so that none is silently ignored.
    pub(super) fn expect_attributes(&self, known: &[&str]) -> Result<(), TrainingError> {
        match self.proto.attribute.iter().find(|attribute| !known.contains(&attribute.name.as_str())) {
            None => Ok(()),
            Some(attribute) => Err(self.error(format!("its attribute {:?} is not supported", attribute.name))),
        }
    }

    /// An integer attribute, or its default.
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, TrainingError> {
        Ok(self.attribute(name, AttributeType::Int)?.map_or(default, |attribute| attribute.i))
    }

    /// An attribute that is 0 or 1, or its default.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, TrainingError> {
        match self.int(name, i64::from(default))? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(format!("its attribute {name:?} is {other}, not 0 or 1"))),
        }
    }

    /// A finite float attribute, or its default.
    pub(super) fn float(&self, name: &str, default: f32) -> Result<f32, TrainingError> {
        let value = self.attribute(name, AttributeType::Float)?.map_or(default, |attribute| attribute.f);
        if value.is_finite() { Ok(value) } else { Err(self.error(format!("its attribute {name:?} is {value}"))) }
    }

    /// A list of integers, if given.
    pub(super) fn ints(&self, name: &str) -> Result<Option<&'g [i64]>, TrainingError> {
        Ok(self.attribute(name, AttributeType::Ints)?.map(|attribute| attribute.ints.as_slice()))
    }

    /// A text attribute, or its default.
    pub(super) fn string(&self, name: &str, default: &'static str) -> Result<&'g str, TrainingError> {
        match self.attribute(name, AttributeType::String)? {
            None => Ok(default),
            Some(attribute) => {
                std::str::from_utf8(&attribute.s).map_err(|_| self.error(format!("its attribute {name:?} is not text")))
            }
        }
    }

    /// An attribute of the given type, if given.
    pub(super) fn attribute(
        &self,
        name: &str,
        kind: AttributeType,
    ) -> Result<Option<&'g AttributeProto>, TrainingError> {
        match self.proto.attribute.iter().find(|attribute| attribute.name == name) {
            Some(attribute) if attribute.r#type != kind as i32 => {
                Err(self.error(format!("its attribute {name:?} is not of type {}", kind.as_str_name())))
            }
            found => Ok(found),
        }
    }

    /// An axis counted from the front; negative ones count from the back, as everywhere in ONNX.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, TrainingError> {
        let signed_rank = rank as i64;
        if (-signed_rank..signed_rank).contains(&axis) {
            return Ok(axis.rem_euclid(signed_rank) as usize);
        }
        Err(self.error(format!("its axis {axis} is out of range for a tensor of rank {rank}")))
    }

    /// The axes of Squeeze, Unsqueeze and reductions: input 1 in newer operator sets, the attribute in older ones.
    pub(super) fn axes(&self) -> Result<Option<Vec<i64>>, TrainingError> {
        if self.optional(1).is_some() {
            return Ok(Some(self.integers(1)?.values.clone()));
        }
        Ok(self.ints("axes")?.map(<[i64]>::to_vec))
    }

    fn input_name(&self, index: usize) -> &str {
        self.proto.input.get(index).map_or("", String::as_str)
    }
}

/// The elements held with a value of this shape added to those before; an error that names the node where a step would hold
/// too many.
pub(super) fn bounded(proto: &NodeProto, held: usize, what: &str, shape: &[usize]) -> Result<usize, TrainingError> {
    let len = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let total = len.and_then(|len| held.checked_add(len)).filter(|&total| total <= MAX_STEP_ELEMENTS);
    total.ok_or_else(|| {
        let problem =
            format!("with {what} of shape {shape:?} a step exceeds {MAX_STEP_ELEMENTS} numbers; use a smaller batch");
        error(proto, problem)
    })
}

/// An error that names a node.
pub(super) fn error(proto: &NodeProto, problem: impl Into<String>) -> TrainingError {
    let node = if proto.name.is_empty() { proto.output.first() } else { Some(&proto.name) };
    TrainingError::Node {
        node: node.cloned().unwrap_or_default(),
        operator: proto.op_type.clone(),
        problem: problem.into(),
    }
}
