//! Compiles an ONNX graph into a checked program for one batch size, and runs it.
//! Each operator's own checks and work are in `ops`; gradients and steps are `trainer`'s.

use std::collections::HashMap;

use burn::backend::{Backend, TensorMetadata};
use fedge_models::pb::{NodeProto, TensorProto};
use fedge_models::{Model, ParameterClass};

use super::TrainingError;
use super::backend::{Precision, Tensor, tensor};
use super::node::{self, Node};
use super::ops::{self, BatchStatistics, Built, Kernel};
use super::value::{Decoded, Origin, TensorRef, Value, decode};

/// Most elements that all values of one step may have together: 2 GiB in single precision. The tape keeps them until
/// the backward pass, so this bounds a run's memory.
const MAX_STEP_ELEMENTS: usize = 1 << 29;

/// Highest rank of a computed tensor; without a limit a long chain of Unsqueeze would take quadratic memory.
const MAX_RANK: usize = 8;

/// Most inputs of one node; only Concat takes many.
const MAX_INPUTS: usize = 1024;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Training steps: batch normalization by the batch's statistics.
    Train,
    /// Answers: batch normalization by the running statistics.
    Evaluate,
}

/// A graph whose every shape is known, for one batch size. Nothing of the file is looked at again when it runs.
pub(super) struct Program<B: Backend> {
    steps: Vec<Step<B>>,
    /// Constants of the file and their slots.
    constants: Vec<(usize, Tensor<B>)>,
    slots: usize,
    input: usize,
    logits: usize,
    classes: usize,
}

/// One node that has work to do.
struct Step<B: Backend> {
    kernel: Kernel<B>,
    /// Slot of each input, and whether this is its last use.
    inputs: Vec<(usize, bool)>,
    output: usize,
    shape: Vec<usize>,
    operator: String,
    node: String,
}

impl<B: Backend> Program<B> {
    /// Compiles the part of the model's graph that leads to its logits: a Softmax or LogSoftmax at the end is left out.
    /// Every error of the graph is found here and names its node.
    pub(super) fn compile(
        model: &Model,
        batch: usize,
        mode: Mode,
        precision: Precision,
    ) -> Result<Program<B>, TrainingError> {
        let mut compiler = Compiler::new(model, batch, mode, precision);
        let producers = producers(model);
        let logits = logits_name(model, &producers);
        for index in needed_nodes(model, &producers, logits) {
            if let Some(proto) = model.graph().node.get(index) {
                compiler.node(proto)?;
            }
        }
        compiler.finish(logits, batch)
    }

    /// Number of classes: the logits' width.
    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// Runs forward: `parameters` in the layout's exchanged order, `input` of the compiled batch size. Gives the logits,
    /// `[batch, classes]`; in training the batch's statistics are pushed to `statistics`.
    pub(super) fn run(
        &self,
        parameters: &[Tensor<B>],
        input: Tensor<B>,
        statistics: &mut Vec<BatchStatistics<B>>,
    ) -> Result<Tensor<B>, TrainingError> {
        let mut values: Vec<Option<Tensor<B>>> = Vec::with_capacity(self.slots);
        values.extend(parameters.iter().cloned().map(Some));
        values.resize_with(self.slots, || None);
        for (slot, constant) in &self.constants {
            set::<B>(&mut values, *slot, constant.clone());
        }
        set::<B>(&mut values, self.input, input);
        for step in &self.steps {
            let output = step.run(&mut values, statistics)?;
            // Everything after this relies on the inferred shapes, and a backend that rounds otherwise must not pass.
            if output.shape()[..] != step.shape[..] {
                return Err(step.bug(format!("gave the shape {:?} where {:?} follows", output.shape(), step.shape)));
            }
            set::<B>(&mut values, step.output, output);
        }
        values
            .get_mut(self.logits)
            .and_then(Option::take)
            .ok_or_else(|| TrainingError::graph("lost its output; please report this with the model file"))
    }
}

impl<B: Backend> Step<B> {
    fn run(
        &self,
        values: &mut [Option<Tensor<B>>],
        statistics: &mut Vec<BatchStatistics<B>>,
    ) -> Result<Tensor<B>, TrainingError> {
        let mut inputs = self.inputs.iter().map(|&(slot, last)| {
            let value = values.get_mut(slot);
            let value = if last { value.and_then(Option::take) } else { value.and_then(|value| value.clone()) };
            value.ok_or_else(|| self.bug("reads a value that is gone".to_owned()))
        });
        let mut next = || inputs.next().unwrap_or_else(|| Err(self.bug("lacks an input".to_owned())));
        Ok(match &self.kernel {
            Kernel::Unary(run) => run(next()?),
            Kernel::Binary(run) => run(next()?, next()?),
            Kernel::Affine(run) => {
                let bias = self.inputs.len() > 2;
                run(next()?, next()?, if bias { Some(next()?) } else { None })
            }
            Kernel::Variadic(run) => run(inputs.collect::<Result<_, _>>()?),
            Kernel::BatchNorm(norm) => norm.run([next()?, next()?, next()?, next()?, next()?], statistics),
        })
    }

    fn bug(&self, problem: String) -> TrainingError {
        TrainingError::Node {
            node: self.node.clone(),
            operator: self.operator.clone(),
            problem: format!("it {problem}; please report this with the model file"),
        }
    }
}

fn set<B: Backend>(values: &mut [Option<Tensor<B>>], slot: usize, value: Tensor<B>) {
    if let Some(place) = values.get_mut(slot) {
        *place = Some(value);
    }
}

/// Which node gives each value.
fn producers(model: &Model) -> HashMap<&str, usize> {
    let outputs = model.graph().node.iter().enumerate().flat_map(|(index, node)| {
        node.output.iter().filter(|name| !name.is_empty()).map(move |name| (name.as_str(), index))
    });
    outputs.collect()
}

/// Name of the value that holds the logits: the graph's output, or what a final Softmax or LogSoftmax reads.
fn logits_name<'g>(model: &'g Model, producers: &HashMap<&str, usize>) -> &'g str {
    let nodes = &model.graph().node;
    let mut name = model.output().name.as_str();
    // Each turn moves to an earlier node of a sorted graph, and the count bounds a malformed one.
    for _ in 0..nodes.len() {
        let Some(node) = producers.get(name).and_then(|&index| nodes.get(index)) else { break };
        let Some(input) = node.input.first() else { break };
        match node.op_type.as_str() {
            "Identity" => name = input,
            "Softmax" | "LogSoftmax" if over_classes(node, model.opset()) => return input,
            _ => break,
        }
    }
    name
}

/// Whether a Softmax of the output, [batch, classes], sums over the classes.
fn over_classes(node: &NodeProto, opset: i64) -> bool {
    let default = if opset < 13 { 1 } else { -1 };
    let axis =
        node.attribute.iter().find(|attribute| attribute.name == "axis").map_or(default, |attribute| attribute.i);
    matches!(axis, 1 | -1)
}

/// Indices of the nodes that the value depends on, in file order.
fn needed_nodes(model: &Model, producers: &HashMap<&str, usize>, value: &str) -> Vec<usize> {
    let nodes = &model.graph().node;
    let mut needed = vec![false; nodes.len()];
    let mut pending: Vec<usize> = producers.get(value).copied().into_iter().collect();
    while let Some(index) = pending.pop() {
        let (Some(node), Some(seen)) = (nodes.get(index), needed.get_mut(index)) else { continue };
        if !std::mem::replace(seen, true) {
            pending.extend(node.input.iter().filter_map(|name| producers.get(name.as_str())));
        }
    }
    (0..nodes.len()).filter(|&index| needed.get(index) == Some(&true)).collect()
}

struct Compiler<'g, B: Backend> {
    opset: i64,
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

impl<'g, B: Backend> Compiler<'g, B> {
    fn new(model: &'g Model, batch: usize, mode: Mode, precision: Precision) -> Compiler<'g, B> {
        let mut values = HashMap::new();
        let mut slots = 0;
        for (spec, _) in model.layout().exchanged() {
            let origin = match spec.class {
                ParameterClass::Statistic => Origin::Statistic,
                _ => Origin::Trainable,
            };
            values.insert(
                spec.name.as_str(),
                Value::Tensor(TensorRef { slot: slots, shape: spec.shape.clone(), origin }),
            );
            slots += 1;
        }
        let shape = std::iter::once(batch).chain(model.input().sample_shape()).collect();
        let input = TensorRef { slot: slots, shape, origin: Origin::Computed { learned: false } };
        values.insert(model.input().name.as_str(), Value::Tensor(input));
        Compiler {
            opset: model.opset(),
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

    fn node(&mut self, proto: &'g NodeProto) -> Result<(), TrainingError> {
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
        let node = Node::new(proto, inputs, self.opset, self.mode == Mode::Train);
        let value = match builder(&node)? {
            Built::Value(value) => value,
            Built::Constant { values, shape } => Value::Tensor(self.constant(values, shape)?),
            Built::Step { inputs, shape, kernel } => Value::Tensor(self.step(proto, inputs, shape, kernel)?),
        };
        // Further outputs (a mask, indices, statistics) stay undefined: a node that reads one is refused above.
        if let Some(name) = proto.output.first() {
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
            Decoded::Floats { values, shape } => Value::Tensor(self.constant(values, shape)?),
            Decoded::Integers(integers) => Value::Integers(integers),
            Decoded::Unusable(problem) => Value::Unusable(problem),
        };
        self.values.insert(name, value.clone());
        Ok(value)
    }

    fn constant(&mut self, values: Vec<f32>, shape: Vec<usize>) -> Result<TensorRef, TrainingError> {
        let single = match values.as_slice() {
            [value] => Some(*value),
            _ => None,
        };
        let slot = self.slots;
        self.constants.push((slot, tensor::<B>(values, &shape, self.precision)?));
        self.slots += 1;
        Ok(TensorRef { slot, shape, origin: Origin::Constant(single) })
    }

    fn step(
        &mut self,
        proto: &NodeProto,
        inputs: Vec<TensorRef>,
        shape: Vec<usize>,
        kernel: Kernel<B>,
    ) -> Result<TensorRef, TrainingError> {
        if shape.is_empty() || shape.len() > MAX_RANK || shape.contains(&0) {
            return Err(node::error(proto, format!("its output has the shape {shape:?}, which training lacks")));
        }
        let total = shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .and_then(|len| self.elements.checked_add(len))
            .filter(|&total| total <= MAX_STEP_ELEMENTS);
        self.elements = total.ok_or_else(|| {
            node::error(
                proto,
                format!(
                    "with its output of shape {shape:?} a step exceeds {MAX_STEP_ELEMENTS} numbers; use a smaller batch"
                ),
            )
        })?;
        let learned = inputs.iter().any(TensorRef::learned);
        let slot = self.slots;
        self.slots += 1;
        self.steps.push(Step {
            kernel,
            inputs: inputs.iter().map(|input| (input.slot, false)).collect(),
            output: slot,
            shape: shape.clone(),
            operator: proto.op_type.clone(),
            node: if proto.name.is_empty() {
                proto.output.first().cloned().unwrap_or_default()
            } else {
                proto.name.clone()
            },
        });
        Ok(TensorRef { slot, shape, origin: Origin::Computed { learned } })
    }

    fn finish(mut self, logits: &str, batch: usize) -> Result<Program<B>, TrainingError> {
        let Some(Value::Tensor(output)) = self.values.get(logits) else {
            return Err(TrainingError::graph(format!("does not compute its output {logits:?}")));
        };
        let &[rows, classes] = output.shape.as_slice() else {
            return Err(TrainingError::graph(format!(
                "gives an output of shape {:?}; classification needs [batch, classes]",
                output.shape
            )));
        };
        if rows != batch {
            return Err(TrainingError::graph(format!(
                "gives {rows} answers to {batch} samples; export it with a dynamic batch"
            )));
        }
        if !matches!(output.origin, Origin::Computed { learned: true }) {
            return Err(TrainingError::graph("has an output that no trainable parameter takes part in"));
        }
        let logits = output.slot;
        mark_last_uses(&mut self.steps, logits, self.slots);
        Ok(Program {
            steps: self.steps,
            constants: self.constants,
            slots: self.slots,
            input: self.input,
            logits,
            classes,
        })
    }
}

/// A value is given away at its last use, so that memory is freed early and kernels may work in place.
fn mark_last_uses<B: Backend>(steps: &mut [Step<B>], logits: usize, slots: usize) {
    let mut used = vec![false; slots];
    if let Some(used) = used.get_mut(logits) {
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
