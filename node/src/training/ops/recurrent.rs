//! LSTM and GRU: their steps unrolled over time, each as plain tensor work, so that the tape differentiates them.
//! One direction is a list of steps; two are run one after the other and joined.

use burn::backend::{Scalar, Shape, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::Kind;
use super::select::range;
use super::{Built, Kernel, Output, Work, reshape};

/// Most steps of one sequence.
const MAX_STEPS: usize = 4096;

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Lstm,
    /// `linear_before_reset`: the reset gate acts on the recurrent product, as PyTorch's does.
    Gru {
        linear_before_reset: bool,
    },
}

/// What is known of a node when it is compiled.
struct Recurrence {
    cell: Cell,
    steps: usize,
    batch: usize,
    hidden: usize,
    /// Of each direction, whether it runs backwards.
    directions: Vec<bool>,
    /// Whether a bias, an initial hidden and an initial cell state are given.
    given: [bool; 3],
}

/// LSTM (Hochreiter and Schmidhuber 1997, with forget gates; ONNX's gates are in the order i, o, f, c).
pub(super) fn lstm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["direction", "hidden_size", "activations", "input_forget", "layout"])?;
    node.expect_inputs(3..=8)?;
    if node.flag("input_forget", false)? || node.optional(7).is_some() {
        return Err(node.error("training lacks coupled input and forget gates, and peepholes"));
    }
    activations(node, &["Sigmoid", "Tanh", "Tanh"])?;
    build(node, Cell::Lstm, 4)
}

/// GRU (Cho et al. 2014; ONNX's gates are in the order z, r, h).
pub(super) fn gru<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["direction", "hidden_size", "activations", "linear_before_reset", "layout"])?;
    node.expect_inputs(3..=6)?;
    activations(node, &["Sigmoid", "Tanh"])?;
    build(node, Cell::Gru { linear_before_reset: node.flag("linear_before_reset", false)? }, 3)
}

fn activations(node: &Node<'_>, usual: &[&str]) -> Result<(), TrainingError> {
    let given = node.strings("activations")?;
    match given.chunks(usual.len()).all(|given| given == usual) {
        true => Ok(()),
        false => Err(node.error(format!("its activations are {given:?}; training has {usual:?}"))),
    }
}

fn build<B: Engine>(node: &Node<'_>, cell: Cell, gates: usize) -> Result<Built<B>, TrainingError> {
    if node.int("layout", 0)? != 0 {
        return Err(node.error("training has layout 0 only: sequence, batch, features"));
    }
    if node.optional(4).is_some() {
        return Err(node.error("it has sequence_lens; pad sequences to one length, and export without it"));
    }
    let directions = match node.string("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(node.error(format!("its direction {other:?} is unknown"))),
    };
    let (x, w, r) = (node.tensor(0)?, node.tensor(1)?, node.tensor(2)?);
    let (&[steps, batch, features], &[count, rows, columns], &[_, _, hidden]) =
        (x.shape.as_slice(), w.shape.as_slice(), r.shape.as_slice())
    else {
        return Err(
            node.error(format!("shapes {:?}, {:?} and {:?} are no sequence and weights", x.shape, w.shape, r.shape))
        );
    };
    let fits = count == directions.len()
        && rows == gates * hidden
        && columns == features
        && r.shape == [count, rows, hidden]
        && node.int("hidden_size", hidden as i64)? == hidden as i64;
    if !fits || steps > MAX_STEPS {
        return Err(node.error(format!(
            "a sequence of shape {:?} and weights of shapes {:?} and {:?} do not fit, or it has more than {MAX_STEPS} steps",
            x.shape, w.shape, r.shape
        )));
    }
    let mut inputs = vec![x.clone(), w.clone(), r.clone()];
    let state = vec![count, batch, hidden];
    let mut given = [false; 3];
    for (place, (index, shape)) in
        [(3, vec![count, 2 * rows]), (5, state.clone()), (6, state.clone())].into_iter().enumerate()
    {
        if index == 6 && cell != Cell::Lstm {
            continue;
        }
        if let Some(tensor) = node.optional_tensor(index)? {
            if tensor.shape != shape {
                return Err(node.error(format!("its input {index} has the shape {:?}, not {shape:?}", tensor.shape)));
            }
            inputs.push(tensor.clone());
            if let Some(given) = given.get_mut(place) {
                *given = true;
            }
        }
    }
    let mut shapes = vec![vec![steps, count, batch, hidden], state.clone()];
    if cell == Cell::Lstm {
        shapes.push(state);
    }
    node.hold("its gates", &[steps, count, batch, rows])?;
    let recurrence = Recurrence { cell, steps, batch, hidden, directions, given };
    let outputs = shapes.into_iter().map(|shape| Output { shape, kind: Kind::Float }).collect();
    let kernel = Kernel::Many(Box::new(move |inputs| recurrence.run::<B>(inputs)));
    Ok(Built::Step(Work { inputs, outputs, kernel }))
}

/// The weights of one direction, ready for its steps.
struct Weights<B: Engine> {
    /// Input's share of the gates with its biases, [steps, batch, gates].
    gates: Tensor<B>,
    /// Recurrent weights, [hidden, gates].
    recurrent: Tensor<B>,
    /// Recurrent bias, [1, gates], where it is not part of `gates`.
    bias: Option<Tensor<B>>,
}

impl Recurrence {
    fn run<B: Engine>(&self, inputs: Vec<Tensor<B>>) -> Vec<Tensor<B>> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next();
        let (Some(x), Some(w), Some(r)) = (next(), next(), next()) else { return Vec::new() };
        let [bias, hidden, cell] = self.given.map(|given| if given { next() } else { None });
        let (mut all, mut last, mut cells) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &backwards) in self.directions.iter().enumerate() {
            let of = |tensor: &Tensor<B>| {
                let part = range::<B>(tensor.clone(), 0, index, index + 1);
                let shape = part.shape().to_vec();
                reshape::<B>(part, shape.get(1..).unwrap_or_default())
            };
            let weights = self.weights::<B>(x.clone(), of(&w), of(&r), bias.as_ref().map(of));
            let state = |given: &Option<Tensor<B>>| match given {
                Some(state) => of(state),
                None => {
                    let shape = Shape::from(vec![self.batch, self.hidden]);
                    B::float_zeros(shape, &B::Device::default(), x.dtype().into())
                }
            };
            let (outputs, h, c) = self.direction::<B>(weights, state(&hidden), state(&cell), backwards);
            let lift = |state| reshape::<B>(state, &[1, self.batch, self.hidden]);
            all.push(reshape::<B>(outputs, &[self.steps, 1, self.batch, self.hidden]));
            last.push(lift(h));
            cells.push(lift(c));
        }
        let join = |parts: Vec<Tensor<B>>, axis| if parts.len() == 1 { parts } else { vec![B::float_cat(parts, axis)] };
        let mut outputs = join(all, 1);
        outputs.extend(join(last, 0));
        if self.cell == Cell::Lstm {
            outputs.extend(join(cells, 0));
        }
        outputs
    }

    fn weights<B: Engine>(&self, x: Tensor<B>, w: Tensor<B>, r: Tensor<B>, bias: Option<Tensor<B>>) -> Weights<B> {
        let (rows, features) = (w.shape().first().copied().unwrap_or(1), x.shape().get(2).copied().unwrap_or(1));
        let flat = reshape::<B>(x, &[self.steps * self.batch, features]);
        let mut gates = B::float_matmul(flat, B::float_transpose(w));
        let mut separate = None;
        if let Some(bias) = bias {
            let half = |start: usize| reshape::<B>(range::<B>(bias.clone(), 0, start, start + rows), &[1, rows]);
            gates = B::float_add(gates, half(0));
            match self.cell {
                // The hidden gate's recurrent bias is inside the reset gate's product.
                Cell::Gru { .. } => separate = Some(half(rows)),
                Cell::Lstm => gates = B::float_add(gates, half(rows)),
            }
        }
        let gates = reshape::<B>(gates, &[self.steps, self.batch, rows]);
        Weights { gates, recurrent: B::float_transpose(r), bias: separate }
    }

    /// All hidden states, [steps, batch, hidden], and the last hidden and cell state.
    fn direction<B: Engine>(
        &self,
        weights: Weights<B>,
        mut hidden: Tensor<B>,
        mut cell: Tensor<B>,
        backwards: bool,
    ) -> (Tensor<B>, Tensor<B>, Tensor<B>) {
        let mut outputs = Vec::with_capacity(self.steps);
        for step in 0..self.steps {
            let step = if backwards { self.steps - 1 - step } else { step };
            let rows = weights.gates.shape().get(2).copied().unwrap_or(1);
            let gates = reshape::<B>(range::<B>(weights.gates.clone(), 0, step, step + 1), &[self.batch, rows]);
            match self.cell {
                Cell::Lstm => (hidden, cell) = self.lstm_step::<B>(&weights, gates, hidden, cell),
                Cell::Gru { linear_before_reset } => {
                    hidden = self.gru_step::<B>(&weights, gates, hidden, linear_before_reset);
                }
            }
            outputs.push(reshape::<B>(hidden.clone(), &[1, self.batch, self.hidden]));
        }
        if backwards {
            outputs.reverse();
        }
        let outputs = if outputs.len() == 1 { outputs.remove(0) } else { B::float_cat(outputs, 0) };
        (outputs, hidden, cell)
    }

    fn lstm_step<B: Engine>(
        &self,
        weights: &Weights<B>,
        gates: Tensor<B>,
        hidden: Tensor<B>,
        cell: Tensor<B>,
    ) -> (Tensor<B>, Tensor<B>) {
        let gates = B::float_add(gates, B::float_matmul(hidden, weights.recurrent.clone()));
        let gate = |index: usize| self.gate::<B>(gates.clone(), index);
        let (input, output, forget) = (B::sigmoid(gate(0)), B::sigmoid(gate(1)), B::sigmoid(gate(2)));
        let cell = B::float_add(B::float_mul(forget, cell), B::float_mul(input, B::float_tanh(gate(3))));
        (B::float_mul(output, B::float_tanh(cell.clone())), cell)
    }

    fn gru_step<B: Engine>(
        &self,
        weights: &Weights<B>,
        gates: Tensor<B>,
        hidden: Tensor<B>,
        linear: bool,
    ) -> Tensor<B> {
        let biased = |product: Tensor<B>, bias: Option<Tensor<B>>| match bias {
            Some(bias) => B::float_add(product, bias),
            None => product,
        };
        let product = biased(B::float_matmul(hidden.clone(), weights.recurrent.clone()), weights.bias.clone());
        let gate = |index: usize| self.gate::<B>(gates.clone(), index);
        let sum = |index: usize| B::float_add(gate(index), self.gate::<B>(product.clone(), index));
        let (update, reset) = (B::sigmoid(sum(0)), B::sigmoid(sum(1)));
        let inner = if linear {
            B::float_mul(reset, self.gate::<B>(product.clone(), 2))
        } else {
            let own = self.gate::<B>(weights.recurrent.clone(), 2);
            let bias = weights.bias.as_ref().map(|bias| self.gate::<B>(bias.clone(), 2));
            biased(B::float_matmul(B::float_mul(reset, hidden.clone()), own), bias)
        };
        let new = B::float_tanh(B::float_add(gate(2), inner));
        // (1 − z) h̃ + z h
        let rest = B::float_add_scalar(B::float_neg(update.clone()), Scalar::Float(1.0));
        B::float_add(B::float_mul(rest, new), B::float_mul(update, hidden))
    }

    /// One gate of all, [.., gates · hidden].
    fn gate<B: Engine>(&self, gates: Tensor<B>, index: usize) -> Tensor<B> {
        range::<B>(gates, 1, index * self.hidden, (index + 1) * self.hidden)
    }
}
