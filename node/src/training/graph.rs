//! A checked program for one batch size: which part of an ONNX graph it is, and how it runs.
//! It is made by `compile`; each operator's work is in `ops`; gradients and steps are `trainer`'s.

use std::collections::HashMap;

use burn::backend::TensorMetadata;
use fedge_models::Model;
use fedge_models::pb::NodeProto;

use super::backend::{Precision, Tensor};
use super::compile::Compiler;
use super::engine::Engine;
use super::ops::{BatchStatistics, Kernel};
use super::{Loss, TrainingError};

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Training steps: batch normalization by the batch's statistics.
    Train,
    /// Training steps with batch normalization by the running statistics, which stay as they are.
    Frozen,
    /// Answers: batch normalization by the running statistics.
    Evaluate,
}

/// A graph whose every shape is known, for one batch size. Nothing of the file is looked at again when it runs.
pub(super) struct Program<B: Engine> {
    pub(super) steps: Vec<Step<B>>,
    /// Constants of the file and their slots.
    pub(super) constants: Vec<(usize, Tensor<B>)>,
    pub(super) slots: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) output_shape: Vec<usize>,
    /// Samples of a run.
    pub(super) batch: usize,
    /// Whether a trainable parameter has a part in the output.
    pub(super) learned: bool,
    /// Axis of the Softmax that was left out at the end.
    pub(super) softmax_axis: Option<usize>,
}

/// One node that has work to do.
pub(super) struct Step<B: Engine> {
    pub(super) kernel: Kernel<B>,
    /// Slot of each input, and whether this is its last use.
    pub(super) inputs: Vec<(usize, bool)>,
    /// Slot of each output and its shape as it is held.
    pub(super) outputs: Vec<(usize, Vec<usize>)>,
    pub(super) operator: String,
    pub(super) node: String,
}

impl<B: Engine> Program<B> {
    /// Compiles the part of the model's graph that the loss is computed from: a Softmax or LogSoftmax at the end is left out
    /// for cross-entropy, a Sigmoid for binary cross-entropy. Without a loss, the whole. Every error of the graph is found
    /// here and names its node.
    pub(super) fn compile(
        model: &Model,
        batch: usize,
        mode: Mode,
        precision: Precision,
        loss: Option<Loss>,
    ) -> Result<Program<B>, TrainingError> {
        let mut compiler = Compiler::new(model, batch, mode, precision);
        let producers = producers(model);
        let (output, softmax_axis) = head(model, &producers, loss);
        for index in needed_nodes(model, &producers, output) {
            if let Some(proto) = model.graph().node.get(index) {
                compiler.node(proto)?;
            }
        }
        compiler.finish(output, softmax_axis)
    }

    /// Runs forward: `parameters` in the layout's exchanged order, `input` of the compiled batch size. Gives the output, of
    /// `output_shape`; in training the batch's statistics are pushed to `statistics`.
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
            let outputs = step.run(&mut values, statistics)?;
            if outputs.len() != step.outputs.len() {
                return Err(step.bug(format!("gave {} outputs, not {}", outputs.len(), step.outputs.len())));
            }
            for (output, (slot, shape)) in outputs.into_iter().zip(&step.outputs) {
                // Everything after this relies on the inferred shapes, and a backend that rounds otherwise must not pass.
                if output.shape()[..] != shape[..] {
                    return Err(step.bug(format!("gave the shape {:?} where {shape:?} follows", output.shape())));
                }
                set::<B>(&mut values, *slot, output);
            }
        }
        values
            .get_mut(self.output)
            .and_then(Option::take)
            .ok_or_else(|| TrainingError::graph("lost its output; please report this with the model file"))
    }
}

impl<B: Engine> Step<B> {
    fn run(
        &self,
        values: &mut [Option<Tensor<B>>],
        statistics: &mut Vec<BatchStatistics<B>>,
    ) -> Result<Vec<Tensor<B>>, TrainingError> {
        let mut inputs = self.inputs.iter().map(|&(slot, last)| {
            let value = values.get_mut(slot);
            let value = if last { value.and_then(Option::take) } else { value.and_then(|value| value.clone()) };
            value.ok_or_else(|| self.bug("reads a value that is gone".to_owned()))
        });
        let mut next = || inputs.next().unwrap_or_else(|| Err(self.bug("lacks an input".to_owned())));
        Ok(vec![match &self.kernel {
            Kernel::Unary(run) => run(next()?),
            Kernel::Binary(run) => run(next()?, next()?),
            Kernel::Affine(run) => {
                let bias = self.inputs.len() > 2;
                run(next()?, next()?, if bias { Some(next()?) } else { None })
            }
            Kernel::Variadic(run) => run(inputs.collect::<Result<_, _>>()?),
            Kernel::Fallible(run) => {
                run(inputs.collect::<Result<_, _>>()?).map_err(|problem| self.error(format!("it {problem}")))?
            }
            Kernel::Many(run) => return Ok(run(inputs.collect::<Result<_, _>>()?)),
            Kernel::BatchNorm(norm) => norm.run([next()?, next()?, next()?, next()?, next()?], statistics),
        }])
    }

    fn bug(&self, problem: String) -> TrainingError {
        self.error(format!("it {problem}; please report this with the model file"))
    }

    fn error(&self, problem: String) -> TrainingError {
        TrainingError::Node { node: self.node.clone(), operator: self.operator.clone(), problem }
    }
}

fn set<B: Engine>(values: &mut [Option<Tensor<B>>], slot: usize, value: Tensor<B>) {
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

/// Name of the value that the loss is computed from, and the axis of the Softmax that was left out behind it.
fn head<'g>(model: &'g Model, producers: &HashMap<&str, usize>, loss: Option<Loss>) -> (&'g str, Option<usize>) {
    let nodes = &model.graph().node;
    let whole = model.output().name.as_str();
    let mut name = whole;
    // Each turn moves to an earlier node of a sorted graph, and the count bounds a malformed one.
    for _ in 0..nodes.len() {
        let Some(node) = producers.get(name).and_then(|&index| nodes.get(index)) else { break };
        let Some(input) = node.input.first() else { break };
        match (node.op_type.as_str(), loss) {
            ("Identity", _) => name = input,
            ("Softmax" | "LogSoftmax", Some(Loss::CrossEntropy)) => {
                return match softmax_axis(node, model.opset(), model.output().dims.len()) {
                    Some(axis) => (input, Some(axis)),
                    None => (whole, None),
                };
            }
            ("Sigmoid", Some(Loss::BinaryCrossEntropy)) => return (input, None),
            _ => break,
        }
    }
    (whole, None)
}

/// The one axis that a Softmax of the output sums over; `None` where it sums over several.
fn softmax_axis(node: &NodeProto, opset: i64, rank: usize) -> Option<usize> {
    let default = if opset < 13 { 1 } else { -1 };
    let axis =
        node.attribute.iter().find(|attribute| attribute.name == "axis").map_or(default, |attribute| attribute.i);
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank && (opset >= 13 || axis + 1 == rank))
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
