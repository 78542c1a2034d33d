//! Compiles the nodes of an ONNX graph, in order, into the steps of a program.
//! Which nodes, and how the program runs, is `graph`'s matter; what one node becomes is decided in `ops`.

use std::collections::HashMap;
use std::sync::Arc;

use fedge_models::pb::{NodeProto, TensorProto};
use fedge_models::{ElementType, Model, ParameterClass};

use super::TrainingError;
use super::backend::{Precision, Tensor, tensor};
use super::engine::Engine;
use super::graph::{Mode, Program, Step};
use super::node::{self, Node};
use super::ops::{self, Built, Work, held};
use super::value::{Decoded, Kind, MAX_INTEGERS, Origin, TensorRef, Value, decode};

/// Highest rank of a computed tensor; without a limit a long chain of Unsqueeze would take quadratic memory.
const MAX_RANK: usize = 8;

/// Most inputs of one node; only Concat takes many.
const MAX_INPUTS: usize = 1024;

/// Operators whose operands meet element by element: where one is a tensor, integers that are known become one too.
const LIFTED: [&str; 15] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Where",
    "And",
    "Or",
    "Max",
    "Min",
    "Concat",
];

/// A program under construction.
pub(super) struct Compiler<'g, B: Engine> {
    opset: i64,
    batch: usize,
    mode: Mode,
    precision: Precision,
    initializers: HashMap<&'g str, &'g TensorProto>,
    values: HashMap<&'g str, Value>,
    input: usize,
    steps: Vec<Step<B>>,
    constants: Vec<(usize, Tensor<B>)>,
    slots: usize,
    elements: usize,
}

impl<'g, B: Engine> Compiler<'g, B> {
    pub(super) fn new(model: &'g Model, batch: usize, mode: Mode, precision: Precision) -> Compiler<'g, B> {
        let mut values = HashMap::new();
        let mut slots = 0;
        for (spec, _) in model.layout().exchanged() {
            let origin = match spec.class {
                ParameterClass::Statistic => Origin::Statistic,
                _ => Origin::Trainable,
            };
            values.insert(
                spec.name.as_str(),
                Value::Tensor(TensorRef {
                    slot: slots,
                    shape: spec.shape.clone(),
                    origin,
                    kind: Kind::Float,
                    known: None,
                }),
            );
            slots += 1;
        }
        let shape = std::iter::once(batch).chain(model.input().sample_shape()).collect();
        let origin = Origin::Computed { learned: false };
        let kind = if model.input().element == ElementType::Fp32 { Kind::Float } else { Kind::Integer };
        let input = TensorRef { slot: slots, shape, origin, kind, known: None };
        values.insert(model.input().name.as_str(), Value::Tensor(input));
        Compiler {
            opset: model.opset(),
            batch,
            mode,
            precision,
            initializers: model.graph().initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            values,
            input: slots,
            steps: Vec::new(),
            constants: Vec::new(),
            slots: slots + 1,
            elements: 0,
        }
    }

    pub(super) fn node(&mut self, proto: &'g NodeProto) -> Result<(), TrainingError> {
        let builder = match proto.domain.as_str() {
            "" | "ai.onnx" => ops::builder::<B>(&proto.op_type),
            _ => None,
        };
        let builder = builder.ok_or_else(|| node::error(proto, "training does not have this operator"))?;
        if proto.input.len() > MAX_INPUTS {
            return Err(node::error(proto, format!("it has {} inputs, above {MAX_INPUTS}", proto.input.len())));
        }
        let mut inputs = Vec::with_capacity(proto.input.len());
        for name in &proto.input {
            inputs.push(if name.is_empty() { None } else { Some(self.lookup(proto, name)?) });
        }
        let is_tensor = |value: &Option<Value>| matches!(value, Some(Value::Tensor(_)));
        if LIFTED.contains(&proto.op_type.as_str()) && inputs.iter().any(is_tensor) {
            for input in &mut inputs {
                if let Some(Value::Integers(integers)) = input {
                    let shape = if integers.scalar { vec![] } else { vec![integers.values.len()] };
                    let values = integers.values.iter().map(|&value| value as f32).collect();
                    *input = Some(Value::Tensor(self.constant(proto, values, shape, Kind::Integer)?));
                }
            }
        }
        let node = Node::new(proto, inputs, self.opset, self.mode == Mode::Train, self.elements);
        let built = builder(&node)?;
        self.elements = node.held();
        let values = match built {
            Built::Value(value) => vec![value],
            Built::Constant { values, shape, kind } => {
                ranked(proto, &shape)?;
                vec![Value::Tensor(self.constant(proto, values, shape, kind)?)]
            }
            Built::Step(work) => self.step(proto, work)?,
        };
        // Further outputs (a mask, indices, statistics) stay undefined: a node that reads one is refused above.
        for (name, value) in proto.output.iter().zip(values).filter(|(name, _)| !name.is_empty()) {
            self.values.insert(name, value);
        }
        Ok(())
    }

    fn lookup(&mut self, reader: &NodeProto, name: &'g str) -> Result<Value, TrainingError> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let Some(tensor) = self.initializers.get(name) else {
            return Err(node::error(
                reader,
                format!("no earlier node gives its input {name:?} in a form that training has"),
            ));
        };
        let value = match decode(tensor) {
            Decoded::Tensor { values, shape, kind } => Value::Tensor(self.constant(reader, values, shape, kind)?),
            Decoded::Empty => Value::Empty,
            Decoded::Integers(integers) => Value::Integers(integers),
            Decoded::Unusable(problem) => Value::Unusable(problem),
        };
        self.values.insert(name, value.clone());
        Ok(value)
    }

    fn constant(
        &mut self,
        reader: &NodeProto,
        values: Vec<f32>,
        shape: Vec<usize>,
        kind: Kind,
    ) -> Result<TensorRef, TrainingError> {
        self.elements = node::bounded(reader, self.elements, "a constant", &shape)?;
        let single = match values.as_slice() {
            [value] => Some(*value),
            _ => None,
        };
        let known = (values.len() <= MAX_INTEGERS).then(|| Arc::from(values.as_slice()));
        let slot = self.slots;
        self.constants.push((slot, tensor::<B>(values, &shape, self.precision)?));
        self.slots += 1;
        Ok(TensorRef { slot, shape, origin: Origin::Constant(single), kind, known })
    }

    fn step(&mut self, proto: &NodeProto, work: Work<B>) -> Result<Vec<Value>, TrainingError> {
        let Work { inputs, outputs, kernel } = work;
        let learned = inputs.iter().any(TensorRef::learned);
        let mut values = Vec::with_capacity(outputs.len());
        let mut places = Vec::with_capacity(outputs.len());
        for output in outputs {
            self.count(proto, &output.shape)?;
            let slot = self.slots;
            self.slots += 1;
            places.push((slot, held(&output.shape)));
            let learned = learned && output.kind == Kind::Float;
            let (shape, kind) = (output.shape, output.kind);
            values.push(Value::Tensor(TensorRef {
                slot,
                shape,
                origin: Origin::Computed { learned },
                kind,
                known: None,
            }));
        }
        self.steps.push(Step {
            kernel,
            inputs: inputs.iter().map(|input| (input.slot, false)).collect(),
            outputs: places,
            operator: proto.op_type.clone(),
            node: if proto.name.is_empty() {
                proto.output.first().cloned().unwrap_or_default()
            } else {
                proto.name.clone()
            },
        });
        Ok(values)
    }

    /// Counts a step's output in, and refuses shapes that training lacks.
    fn count(&mut self, proto: &NodeProto, shape: &[usize]) -> Result<(), TrainingError> {
        ranked(proto, shape)?;
        self.elements = node::bounded(proto, self.elements, "its output", shape)?;
        Ok(())
    }

    /// The program whose output this value is.
    pub(super) fn finish(mut self, output: &str, softmax_axis: Option<usize>) -> Result<Program<B>, TrainingError> {
        let Some(Value::Tensor(value)) = self.values.get(output) else {
            return Err(TrainingError::graph(format!("does not compute its output {output:?}")));
        };
        let (output, output_shape, learned) = (value.slot, value.shape.clone(), value.learned());
        mark_last_uses(&mut self.steps, output, self.slots);
        Ok(Program {
            steps: self.steps,
            constants: self.constants,
            slots: self.slots,
            input: self.input,
            output,
            output_shape,
            batch: self.batch,
            learned,
            softmax_axis,
        })
    }
}

/// A value is given away at its last use, so that memory is freed early and kernels may work in place.
fn mark_last_uses<B: Engine>(steps: &mut [Step<B>], output: usize, slots: usize) {
    let mut used = vec![false; slots];
    if let Some(used) = used.get_mut(output) {
        *used = true;
    }
    for step in steps.iter_mut().rev() {
        for (slot, last) in step.inputs.iter_mut().rev() {
            if let Some(used) = used.get_mut(*slot) {
                *last = !std::mem::replace(used, true);
            }
        }
    }
}

/// Refuses the shape of an output that has too many axes or no elements.
fn ranked(proto: &NodeProto, shape: &[usize]) -> Result<(), TrainingError> {
    if shape.len() <= MAX_RANK && !shape.contains(&0) {
        return Ok(());
    }
    let (first, axes) = (&shape[..shape.len().min(MAX_RANK)], shape.len());
    Err(node::error(proto, format!("its output of {axes} axes has the shape {first:?}, which training lacks")))
}
