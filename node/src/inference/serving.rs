//! One version of a model, ready to answer: its manifest, what it runs in, and how it got there.
//! How it was made is in `prepare`; which version is current, `repository` knows.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fedge_models::{ElementType, Interface, Manifest, Preprocessing, TensorSignature};
use prost::bytes::Bytes;

use super::EngineError;
use super::check::LocalCheck;
use super::engine::Engine;
use super::prepare::MAX_SAMPLE_LEN;
use super::request::{Contract, Inputs, TensorData};
use super::statistics::Statistics;
use super::tensor_engine::TensorEngine;

/// What a served model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Quantized to int8 on the node's own samples.
    Int8,
    /// As published.
    Float,
}

impl Precision {
    /// As replies and metrics name it: `int8` or `float`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Int8 => "int8",
            Precision::Float => "float",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The outputs of one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `[n, ...]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A version of a model that is loaded, warmed up and checked. Send and Sync.
pub struct Serving {
    pub(super) manifest: Manifest,
    pub(super) precision: Precision,
    pub(super) float_reason: Option<String>,
    pub(super) check: Option<LocalCheck>,
    pub(super) inputs: Vec<TensorSignature>,
    pub(super) outputs: Vec<TensorSignature>,
    pub(super) batched: bool,
    pub(super) runner: Runner,
    pub(super) pace: Pace,
    pub(super) statistics: Statistics,
}

/// What a version runs in.
pub(super) enum Runner {
    /// One float32 input and output: samples, preprocessed by the manifest.
    Floats(Engine),
    /// Anything else.
    Tensors(TensorEngine),
}

/// How long a version takes, as measured when it was loaded and corrected while it runs.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds for one sample alone; 0: not measured.
    one_ns: AtomicU64,
    /// Whether a sample in a batch takes less than one alone.
    batching_pays: bool,
}

/// Samples of the batch that is timed against single ones.
const TIMED_BATCH: usize = 8;
/// A model that takes longer than this for one sample is not timed with a batch: loading would become slow.
const LONGEST_TIMED: Duration = Duration::from_millis(5);

impl Serving {
    /// A model that is only served: any inputs and outputs, loaded from `onnx` as it is. Blocking.
    pub fn of_tensors(manifest: Manifest, interface: Interface, onnx: &[u8]) -> Result<Serving, EngineError> {
        let engine = TensorEngine::load(onnx, &interface.inputs, &interface.outputs)?;
        let mut serving = Serving {
            manifest,
            precision: Precision::Float,
            float_reason: Some("served as it is: only models of one float32 input and output are quantized".to_owned()),
            check: None,
            batched: interface.is_batched(),
            inputs: interface.inputs,
            outputs: interface.outputs,
            runner: Runner::Tensors(engine),
            pace: Pace::default(),
            statistics: Statistics::default(),
        };
        // A dynamic dimension besides the batch could mean any size: such a model is warmed up by its first request.
        if serving.is_measurable() {
            let rows: &[usize] = if serving.batched { &[1, 3] } else { &[1] };
            for &rows in rows {
                let outputs = serving.infer(&serving.zeros(rows))?;
                // A first dimension that is open and counts no samples, such as a detector's boxes: requests must not share
                // a run.
                serving.batched &= outputs.iter().all(|output| output.shape.first() == Some(&rows));
            }
        } else {
            // Nothing shows that a row of the outputs is a sample.
            serving.batched = false;
        }
        Ok(serving.timed())
    }

    /// The package's manifest; its digest is that of the float model, whatever the precision.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it computes in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Why it is served in float; `None` for int8.
    pub fn float_reason(&self) -> Option<&str> {
        self.float_reason.as_deref()
    }

    /// How int8 did against float on the node's labelled samples; `None` where either was missing.
    pub fn check(&self) -> Option<&LocalCheck> {
        self.check.as_ref()
    }

    /// The model's first input, its only one in a federation; one sample has `input().sample_shape()`.
    pub fn input(&self) -> &TensorSignature {
        &self.inputs[0]
    }

    /// The model's first output, its only one in a federation; one sample gives `output().sample_shape()`.
    pub fn output(&self) -> &TensorSignature {
        &self.outputs[0]
    }

    /// Whether the first dimension of every tensor counts samples.
    pub fn is_batched(&self) -> bool {
        self.batched
    }

    /// What requests are checked against.
    pub fn contract(&self) -> Contract<'_> {
        Contract {
            inputs: &self.inputs,
            outputs: &self.outputs,
            batched: self.batched,
            floats: matches!(self.runner, Runner::Floats(_)),
        }
    }

    /// What it did so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Preprocesses a copy of raw samples `[n, ...sample_shape]`, row-major, n >= 1, and runs them. Blocking; an error
    /// where the number of values fits no whole sample, the model takes other inputs, or the engine fails or panics.
    pub fn run(&self, samples: &[f32]) -> Result<Answer, EngineError> {
        let Runner::Floats(engine) = &self.runner else {
            let problem = "it takes other inputs than one of float32".to_owned();
            return Err(EngineError { action: "run", problem });
        };
        let values = run(engine, &self.manifest, self.input(), samples)?;
        let mut shape = self.output().sample_shape();
        let len = self.output().sample_len().max(1);
        shape.insert(0, values.len() / len);
        Ok(Answer { shape, values })
    }

    /// Runs checked inputs; one tensor an output, in the model's order. Blocking; an error as [`Serving::run`] gives.
    pub fn infer(&self, inputs: &Inputs) -> Result<Vec<TensorData>, EngineError> {
        match (inputs, &self.runner) {
            (Inputs::Floats(samples), Runner::Floats(_)) => {
                let answer = self.run(samples)?;
                let bytes: Vec<u8> = answer.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Ok(vec![TensorData { element: ElementType::Fp32, shape: answer.shape, data: Bytes::from(bytes) }])
            }
            (Inputs::Tensors(tensors), Runner::Tensors(engine)) => engine.run(tensors),
            _ => Err(EngineError { action: "run", problem: "its inputs are of another kind".to_owned() }),
        }
    }

    /// How long these samples will take, roughly; `None` where nothing was measured.
    pub(super) fn expected(&self, rows: usize) -> Option<Duration> {
        let one = self.pace.one_ns.load(Ordering::Relaxed);
        // Where more than the batch is open, rows do not tell how long a request takes.
        (one > 0 && self.is_measurable()).then(|| Duration::from_nanos(one.saturating_mul(rows as u64)))
    }

    /// Whether requests should be put together where nobody configured it.
    pub(super) fn batching_pays(&self) -> bool {
        self.pace.batching_pays
    }

    /// A run of this many samples took so long: a sixteenth of the estimate is replaced. A run that something else
    /// interrupted counts as four times the estimate at most.
    pub(super) fn took(&self, rows: usize, time: Duration) {
        let one = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / (rows.max(1) as u64);
        let before = self.pace.one_ns.load(Ordering::Relaxed);
        let next = if before == 0 { one } else { before - before / 16 + one.min(before.saturating_mul(4)) / 16 };
        self.pace.one_ns.store(next.max(1), Ordering::Relaxed);
    }

    /// Measures one sample alone and, where that is quick, in a batch. The model has run before.
    pub(super) fn timed(mut self) -> Serving {
        let time = |rows: usize| {
            let inputs = self.zeros(rows);
            let runs = (0..3).map(|_| {
                let started = Instant::now();
                self.infer(&inputs).ok().map(|_| started.elapsed())
            });
            // The quickest: others were disturbed.
            runs.flatten().min()
        };
        let one = if self.is_measurable() { time(1) } else { None };
        let Some(one) = one else { return self };
        let batch = if self.batched && one < LONGEST_TIMED { time(TIMED_BATCH) } else { None };
        // A tenth better at least: putting together has its own price.
        let pays = batch.is_some_and(|batch| batch.mul_f64(1.1) < one * TIMED_BATCH as u32);
        self.pace = Pace { one_ns: AtomicU64::default(), batching_pays: pays };
        self.took(1, one);
        self
    }

    /// Whether a sample of zeros tells how long requests take: only the batch is open, and a sample fits into a request.
    fn is_measurable(&self) -> bool {
        let len = |input: &TensorSignature| {
            let mut dims = input.dims.iter().skip(usize::from(self.batched));
            dims.try_fold(1usize, |len, dim| len.checked_mul((*dim)?))
        };
        let all = self.inputs.iter().try_fold(0usize, |sum, input| sum.checked_add(len(input)?));
        all.is_some_and(|len| len <= MAX_SAMPLE_LEN)
    }

    fn zeros(&self, rows: usize) -> Inputs {
        if matches!(self.runner, Runner::Floats(_)) {
            return Inputs::Floats(vec![0.0; rows.saturating_mul(self.input().sample_len())]);
        }
        let tensor = |input: &TensorSignature| {
            let mut shape: Vec<usize> = input.dims.iter().map(|dim| dim.unwrap_or(1)).collect();
            if let (true, Some(first)) = (self.batched, shape.first_mut()) {
                *first = rows;
            }
            let bytes = shape.iter().product::<usize>().saturating_mul(input.element.size());
            TensorData { element: input.element, shape, data: Bytes::from(vec![0; bytes]) }
        };
        Inputs::Tensors(self.inputs.iter().map(tensor).collect())
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving")
            .field("name", &self.manifest.name)
            .field("number", &self.manifest.number)
            .field("precision", &self.precision)
            .field("float_reason", &self.float_reason)
            .finish_non_exhaustive()
    }
}

/// Preprocesses a copy of raw samples and runs it.
pub(super) fn run(
    engine: &Engine,
    manifest: &Manifest,
    input: &TensorSignature,
    samples: &[f32],
) -> Result<Vec<f32>, EngineError> {
    let mut prepared = Cow::Borrowed(samples);
    if manifest.preprocessing != Preprocessing::default() {
        manifest.preprocessing.apply(prepared.to_mut(), &input.sample_shape());
    }
    engine.run(&prepared)
}
