//! One version of a model, ready to answer: its manifest, what it runs in, and how it got there.
//! How it was made is in `prepare`; which version is current, `repository` knows.

use std::fmt;

use fedge_models::{Manifest, TensorSignature};

use super::EngineError;
use super::check::LocalCheck;
use super::engine::Engine;

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
    pub(super) input: TensorSignature,
    pub(super) output: TensorSignature,
    pub(super) engine: Engine,
}

impl Serving {
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

    /// The model's input; one sample has `input().sample_shape()`.
    pub fn input(&self) -> &TensorSignature {
        &self.input
    }

    /// The model's output; one sample gives `output().sample_shape()`.
    pub fn output(&self) -> &TensorSignature {
        &self.output
    }

    /// Preprocesses a copy of raw samples `[n, ...sample_shape]`, row-major, n >= 1, and runs them. Blocking; an error
    /// where the number of values fits no whole sample, or the engine fails or panics.
    pub fn run(&self, samples: &[f32]) -> Result<Answer, EngineError> {
        let values = run(&self.engine, &self.manifest, &self.input, samples)?;
        let mut shape = self.output.sample_shape();
        let len = self.output.sample_len().max(1);
        shape.insert(0, values.len() / len);
        Ok(Answer { shape, values })
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
    let mut prepared = samples.to_vec();
    manifest.preprocessing.apply(&mut prepared, &input.sample_shape());
    engine.run(&prepared)
}
