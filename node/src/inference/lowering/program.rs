//! A lowered program: steps over values, the buffers they share, and running any batch through them.
//! Which steps a graph becomes is `lower`'s; what a step computes is `steps`', and where values lie `buffers`'.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rayon::prelude::*;

use super::buffers::{self, Buffers, MAX_BYTES};
use super::graph::Refusal;
use super::kernels::elementwise::{self, Affine};
use super::kernels::{Isa, SLACK};
use super::steps::{
    AveragePool, Concat, Conv, Depthwise, MaxPool, Permute, Product, Sum, Winograd, conv, conv::Results, winograd,
};

/// Activations of the samples that run together stay about within this, so that their weights come from memory once for many.
const TOGETHER_BYTES: u64 = 10 << 20;
/// As [`TOGETHER_BYTES`], where products are so quick that activations have to stay in the second-level cache.
const TOGETHER_BYTES_QUICK: u64 = 2 << 20;
/// Most samples that run together.
const MOST_TOGETHER: u64 = 64;
/// Threads whose buffers are kept for the next batch.
const KEPT_STATES: usize = 16;

/// Names a value of the program; 0 is its input.
pub(super) type Id = usize;

/// A value: how much of it one sample has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// Elements a sample.
    pub len: usize,
    /// f32 instead of u8 codes.
    pub float: bool,
}

/// One operator with its operands.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// f32 to codes, and from `[channels, pixels]` to `[pixels, channels]` where given.
    Quantize { from: Id, affine: Affine, order: Option<(usize, usize)> },
    /// Codes to f32, in the same order.
    Dequantize { from: Id, affine: Affine },
    /// Convolution, Gemm or MatMul.
    Conv { from: Id, conv: Box<Conv> },
    /// 3 × 3 convolution with fewer products.
    Winograd { from: Id, conv: Box<Winograd> },
    /// Depthwise convolution.
    Depthwise { from: Id, conv: Box<Depthwise> },
    /// Greatest of windows.
    MaxPool { from: Id, pool: MaxPool },
    /// Mean of windows.
    AveragePool { from: Id, pool: AveragePool },
    /// Addition.
    Sum { a: Id, b: Id, sum: Sum },
    /// Multiplication.
    Product { a: Id, b: Id, product: Product },
    /// A function of one code.
    Table { from: Id, table: Box<[u8; 256]> },
    /// Concatenation.
    Concat { from: Vec<Id>, concat: Concat },
    /// Another order of the values.
    Permute { from: Id, permute: Permute },
    /// Softmax of f32 rows of this width.
    Softmax { from: Id, width: usize },
}

impl Step {
    /// Values that it reads.
    fn reads(&self) -> Vec<Id> {
        match self {
            Step::Sum { a, b, .. } | Step::Product { a, b, .. } => vec![*a, *b],
            Step::Concat { from, .. } => from.clone(),
            Step::Quantize { from, .. }
            | Step::Dequantize { from, .. }
            | Step::Conv { from, .. }
            | Step::Winograd { from, .. }
            | Step::Depthwise { from, .. }
            | Step::MaxPool { from, .. }
            | Step::AveragePool { from, .. }
            | Step::Table { from, .. }
            | Step::Permute { from, .. }
            | Step::Softmax { from, .. } => vec![*from],
        }
    }

    /// Bytes of packed weights.
    fn bytes(&self) -> usize {
        match self {
            Step::Conv { conv, .. } => conv.bytes(),
            Step::Winograd { conv, .. } => conv.bytes(),
            Step::Depthwise { conv, .. } => conv.bytes(),
            _ => 0,
        }
    }

    /// As reports name it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Step::Quantize { .. } => "quantize",
            Step::Dequantize { .. } => "dequantize",
            Step::Conv { .. } => "convolution",
            Step::Winograd { .. } => "convolution 3x3",
            Step::Depthwise { .. } => "depthwise convolution",
            Step::MaxPool { .. } => "max pool",
            Step::AveragePool { .. } => "average pool",
            Step::Sum { .. } => "add",
            Step::Product { .. } => "multiply",
            Step::Table { .. } => "table",
            Step::Concat { .. } => "concatenate",
            Step::Permute { .. } => "permute",
            Step::Softmax { .. } => "softmax",
        }
    }
}

/// A program that is ready to run. Send and Sync: each thread takes buffers of its own.
pub(crate) struct Program {
    /// Each step gives the value of its index plus one.
    steps: Vec<Step>,
    values: Vec<Value>,
    /// Buffer of each value but the input.
    places: Vec<usize>,
    /// Elements a sample of each buffer; its kind.
    buffers: Vec<Value>,
    output: Id,
    together: usize,
    /// So many may have buffers at a time.
    most_threads: usize,
    isa: Isa,
    states: Mutex<Vec<State>>,
}

/// One thread's buffers.
#[derive(Default)]
struct State {
    codes: Vec<Vec<u8>>,
    floats: Vec<Vec<f32>>,
    gathered: conv::Scratch,
    winograd: winograd::Scratch,
}

impl Program {
    /// `values[0]` is the f32 input, `output` an f32 value; step `i` gives value `i + 1`. Refused: values that together take
    /// more than [`MAX_BYTES`] for one sample.
    pub(super) fn new(steps: Vec<Step>, values: Vec<Value>, output: Id) -> Result<Program, Refusal> {
        let reads: Vec<Vec<Id>> = steps.iter().map(Step::reads).collect();
        let Buffers { places, buffers, bytes } = buffers::plan(&reads, &values, output)?;
        let isa = Isa::detect();
        let room = if isa.multiplies_bytes() { TOGETHER_BYTES_QUICK } else { TOGETHER_BYTES };
        let together = (room / bytes.max(1)).clamp(1, MOST_TOGETHER);
        let most_threads = usize::try_from(MAX_BYTES / (bytes * together).max(1)).unwrap_or(usize::MAX);
        let together = together as usize;
        let states = Mutex::default();
        Ok(Program { steps, values, places, buffers, output, together, most_threads, isa, states })
    }

    /// The same program on other kernels; for tests and comparisons.
    #[cfg(test)]
    pub(crate) fn with_isa(mut self, isa: Isa) -> Program {
        self.isa = isa;
        self
    }

    /// Which kernels run.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// The names of its steps, in order.
    pub(crate) fn step_names(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(Step::name)
    }

    /// Bytes of packed weights.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.steps.iter().map(Step::bytes).sum()
    }

    /// Elements of one sample's output.
    pub(crate) fn output_len(&self) -> usize {
        self.values[self.output].len
    }

    /// Runs `input`, any number of samples, on up to `threads` threads of the current rayon pool; appends the outputs. The
    /// buffers of all threads together stay within [`MAX_BYTES`].
    pub(crate) fn run(&self, input: &[f32], threads: usize, output: &mut Vec<f32>) {
        let (len, out_len) = (self.values[0].len.max(1), self.output_len());
        let rows = input.len() / len;
        let threads = if threads > self.most_threads { 1 } else { threads };
        let start = output.len();
        output.resize(start + rows * out_len, 0.0);
        let output = &mut output[start..];
        let together = self.together.min(rows.div_ceil(threads.max(1))).max(1);
        let part = |(input, output): (&[f32], &mut [f32])| {
            let mut state = self.states.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            self.run_together(input, input.len() / len, &mut state, output);
            let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
            if states.len() < KEPT_STATES {
                states.push(state);
            }
        };
        if threads <= 1 {
            input.chunks(together * len).zip(output.chunks_mut(together * out_len.max(1))).for_each(part);
        } else {
            let parts = input.par_chunks(together * len).zip(output.par_chunks_mut(together * out_len.max(1)));
            parts.with_max_len(1).for_each(part);
        }
    }

    /// Seconds that each kind of step takes for `input`, one thread.
    pub(crate) fn profile(&self, input: &[f32]) -> BTreeMap<&'static str, f64> {
        let len = self.values[0].len.max(1);
        let (mut state, mut seconds) = (State::default(), BTreeMap::new());
        for input in input
            .chunks_exact(self.together * len)
            .chain(input.chunks_exact(self.together * len).remainder().chunks_exact(len))
        {
            self.make_room(input.len() / len, &mut state);
            for (index, step) in self.steps.iter().enumerate() {
                let start = Instant::now();
                self.step(index, step, input, input.len() / len, &mut state);
                *seconds.entry(step.name()).or_insert(0.0) += start.elapsed().as_secs_f64();
            }
        }
        seconds
    }

    fn run_together(&self, input: &[f32], rows: usize, state: &mut State, output: &mut [f32]) {
        self.make_room(rows, state);
        for (index, step) in self.steps.iter().enumerate() {
            self.step(index, step, input, rows, state);
        }
        let result = if self.output == 0 { input } else { &state.floats[self.places[self.output]] };
        output.copy_from_slice(&result[..output.len()]);
    }

    fn make_room(&self, rows: usize, state: &mut State) {
        state.codes.resize_with(self.buffers.len(), Vec::new);
        state.floats.resize_with(self.buffers.len(), Vec::new);
        for (index, buffer) in self.buffers.iter().enumerate() {
            if buffer.float {
                grow(&mut state.floats[index], buffer.len * rows);
            } else {
                grow(&mut state.codes[index], buffer.len * rows + SLACK);
            }
        }
    }

    fn step(&self, index: usize, step: &Step, input: &[f32], rows: usize, state: &mut State) {
        let place = self.places[index + 1];
        let len = self.values[index + 1].len * rows;
        if self.values[index + 1].float {
            let mut y = std::mem::take(&mut state.floats[place]);
            self.float_step(step, input, rows, state, &mut y[..len]);
            state.floats[place] = y;
        } else {
            let mut y = std::mem::take(&mut state.codes[place]);
            self.code_step(step, input, rows, state, &mut y[..len]);
            state.codes[place] = y;
        }
    }

    /// A value's codes, with the slack behind them.
    fn codes<'s>(&self, state: &'s State, id: Id, rows: usize) -> &'s [u8] {
        &state.codes[self.places[id]][..self.values[id].len * rows + SLACK]
    }

    fn floats<'s>(&self, state: &'s State, input: &'s [f32], id: Id, rows: usize) -> &'s [f32] {
        let from = if id == 0 { input } else { &state.floats[self.places[id]] };
        &from[..self.values[id].len * rows]
    }

    fn float_step(&self, step: &Step, input: &[f32], rows: usize, state: &mut State, y: &mut [f32]) {
        match step {
            Step::Dequantize { from, affine } => {
                elementwise::dequantize(self.isa, self.codes(state, *from, rows), *affine, y);
            }
            Step::Conv { from, conv } => {
                let mut scratch = std::mem::take(&mut state.gathered);
                conv.run(self.isa, self.codes(state, *from, rows), rows, Results::Floats(y), &mut scratch);
                state.gathered = scratch;
            }
            Step::Permute { from, permute } => {
                let len = self.values[*from].len.max(1);
                let x = self.floats(state, input, *from, rows);
                x.chunks_exact(len).zip(y.chunks_exact_mut(len)).for_each(|(x, y)| permute.run(x, y));
            }
            Step::Softmax { from, width } => {
                y.copy_from_slice(self.floats(state, input, *from, rows));
                y.chunks_exact_mut((*width).max(1)).for_each(softmax);
            }
            // The other steps give codes: `lower` makes no such pair.
            _ => y.fill(f32::NAN),
        }
    }

    fn code_step(&self, step: &Step, input: &[f32], rows: usize, state: &mut State, y: &mut [u8]) {
        let isa = self.isa;
        match step {
            Step::Quantize { from, affine, order } => {
                let x = self.floats(state, input, *from, rows);
                match order {
                    None => elementwise::quantize(isa, x, affine.scale, affine.range(), y),
                    Some((channels, pixels)) => interleave(isa, x, *affine, *channels, *pixels, y),
                }
            }
            Step::Conv { from, conv } => {
                let mut scratch = std::mem::take(&mut state.gathered);
                conv.run(isa, self.codes(state, *from, rows), rows, Results::Codes(y), &mut scratch);
                state.gathered = scratch;
            }
            Step::Winograd { from, conv } => {
                let mut scratch = std::mem::take(&mut state.winograd);
                conv.run(isa, self.codes(state, *from, rows), rows, y, &mut scratch);
                state.winograd = scratch;
            }
            Step::Depthwise { from, conv } => {
                conv.run(isa, self.codes(state, *from, rows), rows, y);
            }
            Step::MaxPool { from, pool } => pool.run(isa, self.codes(state, *from, rows), rows, y),
            Step::AveragePool { from, pool } => pool.run(isa, self.codes(state, *from, rows), rows, y),
            Step::Sum { a, b, sum } => sum.run(isa, self.codes(state, *a, rows), self.codes(state, *b, rows), y),
            Step::Product { a, b, product } => {
                product.run(isa, self.codes(state, *a, rows), self.codes(state, *b, rows), y);
            }
            Step::Table { from, table } => elementwise::look_up(self.codes(state, *from, rows), table, y),
            Step::Concat { from, concat } => {
                for (part, id) in from.iter().enumerate() {
                    let x = &self.codes(state, *id, rows)[..self.values[*id].len * rows];
                    concat.run(part, x, y);
                }
            }
            Step::Permute { from, permute } => {
                let len = self.values[*from].len.max(1);
                let x = self.codes(state, *from, rows);
                x.chunks_exact(len).zip(y.chunks_exact_mut(len)).for_each(|(x, y)| permute.run(x, y));
            }
            // These give floats: `lower` makes no such pair.
            Step::Dequantize { .. } | Step::Softmax { .. } => y.fill(0),
        }
    }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Quantizes `[channels, pixels]` into `[pixels, channels]`, plane by plane.
fn interleave(isa: Isa, x: &[f32], affine: Affine, channels: usize, pixels: usize, y: &mut [u8]) {
    let mut plane = vec![0u8; pixels];
    for (x, y) in x.chunks_exact(channels * pixels).zip(y.chunks_exact_mut(channels * pixels)) {
        for (channel, x) in x.chunks_exact(pixels).enumerate() {
            elementwise::quantize(isa, x, affine.scale, affine.range(), &mut plane);
            for (y, code) in y[channel..].iter_mut().step_by(channels).zip(&plane) {
                *y = *code;
            }
        }
    }
}

/// `exp(x - max) / sum`, in place.
fn softmax(row: &mut [f32]) {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - greatest).exp();
        sum += *value;
    }
    for value in row {
        *value /= sum;
    }
}
