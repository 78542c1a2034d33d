//! From a request to its answer, whatever wire it came by: look the model up, check, run, keep the sample, count.
//! Messages are made in `convert` and `rest`; codes of errors are listed here, in one place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fedge_models::ElementType;
use fedge_proto::identity::SpiffeId;
use opentelemetry::KeyValue;
use prost::bytes::Bytes;
use tonic::Status;

use super::classification::classify;
use super::executor::ExecutorError;
use super::keep::{KeepPolicy, Keeper};
use super::repository::{LookupError, ModelRepository};
use super::request::{self, InferRequest, Inputs, OutputForm, Refused, RequestLimits, TensorData};
use super::serving::Serving;
use super::statistics::{Failure, Stages};
use crate::calls::Call;
use crate::drift::DriftWatch;
use crate::samples::{SampleId, SampleStore};

/// Answers requests for the models of a repository.
#[derive(Clone, Debug)]
pub struct Inference {
    repository: Arc<ModelRepository>,
    samples: Option<SampleStore>,
    keeper: Arc<Keeper>,
    limits: RequestLimits,
    drift: Option<DriftWatch>,
}

/// The reply to a request.
#[derive(Debug)]
pub struct Answer {
    /// The version that answered.
    pub serving: Arc<Serving>,
    /// The request's.
    pub id: String,
    /// The outputs, in the order that was asked for.
    pub outputs: Vec<OutputTensor>,
    /// By which a label for this request's input may come.
    pub sample_id: Option<SampleId>,
}

/// One output, ready for the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// Its name in the model.
    pub name: String,
    /// `FP32`, ..., `BYTES`.
    pub datatype: &'static str,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// Little-endian, row-major; BYTES with a length before each element.
    pub data: Bytes,
}

/// A value of a reply's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Text.
    Text(String),
    /// A number.
    Integer(i64),
}

/// Why a request got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// The model or version is not served.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The model is not for this caller.
    #[error("{caller} may not ask model {model:?}: its settings name the clients that may")]
    Denied {
        /// The model.
        model: String,
        /// Who asked.
        caller: String,
    },
    /// The request is wrong.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It was not run, or the run failed.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
}

impl Inference {
    /// Answers for this repository. `samples` is where inputs are kept, if the policy says so.
    pub fn new(
        repository: Arc<ModelRepository>,
        samples: Option<SampleStore>,
        keep: KeepPolicy,
        limits: RequestLimits,
    ) -> Inference {
        Inference { repository, samples, keeper: Arc::new(Keeper::new(keep)), limits, drift: None }
    }

    /// The same, with answered inputs watched for drift.
    pub fn watching(self, drift: Option<DriftWatch>) -> Inference {
        Inference { drift, ..self }
    }

    /// What watches for drift, if anything.
    pub fn drift(&self) -> Option<&DriftWatch> {
        self.drift.as_ref()
    }

    /// The models.
    pub fn repository(&self) -> &Arc<ModelRepository> {
        &self.repository
    }

    /// The version of a model, for a caller who asks about it. `version` is empty for the highest ready one.
    ///
    /// # Errors
    /// Not served, or not for this caller.
    pub fn lookup(&self, name: &str, version: &str, caller: Option<&SpiffeId>) -> Result<Arc<Serving>, InferError> {
        self.repository.find_for(name, version, caller).map(|(_, serving)| serving)
    }

    /// All served versions of the models that this caller may ask about.
    pub fn served(&self, caller: Option<&SpiffeId>) -> Vec<Arc<Serving>> {
        let names = self.repository.names().into_iter().filter(|name| self.repository.admits(name, caller));
        names.flat_map(|name| self.repository.versions(&name)).collect()
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn infer(&self, request: InferRequest) -> Result<Answer, InferError> {
        let came = Instant::now();
        let caller = request.caller.as_ref();
        let (slot, serving) = self.repository.find_for(&request.model, &request.version, caller)?;
        let statistics = serving.statistics();
        // Counts a request whose future is dropped before its answer.
        let mut counted = Counted { serving: &serving, came, failure: Some(Failure::Canceled) };
        let contract = serving.contract();
        let checked = request::requested_outputs(&request.outputs, &contract)
            .and_then(|wanted| Ok((wanted, request::check(request.inputs, &contract, &self.limits)?)));
        let (wanted, batch) = checked.inspect_err(|_| counted.failure = Some(Failure::Other))?;
        let rows = batch.rows;
        let done = slot.executor().run(&serving, batch, request.timeout, request.priority).await;
        let mut done = done.inspect_err(|error| counted.failure = Some(failure(error, &serving)))?;
        let formatted = Instant::now();
        let outputs = wanted.into_iter().map(|(index, form)| output(&serving, &done.outputs, index, form)).collect();
        let sample_id = match done.inputs {
            Inputs::Floats(values) if rows == 1 => self.learn_from(&serving, values, &done.outputs),
            _ => None,
        };
        done.stages.output += formatted.elapsed();
        let total = came.elapsed();
        statistics.answered(total, &done.stages);
        if let Some(call) = &request.call {
            trace(call, &serving, rows, total, &done.stages);
        }
        counted.failure = None;
        drop(counted);
        Ok(Answer { serving, id: request.id, outputs, sample_id })
    }

    /// Shows the input of an answered request to the drift detector, and keeps it if the policy wants it and there is room;
    /// never waits.
    fn learn_from(&self, serving: &Serving, input: Vec<f32>, outputs: &[TensorData]) -> Option<SampleId> {
        if self.drift.is_none() && self.samples.is_none() {
            return None;
        }
        let outputs = outputs.first().map(|output| floats(&output.data)).unwrap_or_default();
        let manifest = serving.manifest();
        if let Some(drift) = &self.drift {
            drift.observe(&manifest.name, manifest.number, &input, &outputs);
        }
        let samples = self.samples.as_ref()?;
        if !self.keeper.keeps(&outputs) {
            return None;
        }
        samples.try_keep_pending(&manifest.name, input)
    }
}

/// Says in the call's span what answered it, and adds its stages as children: they follow each other up to now.
fn trace(call: &Call, serving: &Serving, rows: usize, total: Duration, stages: &Stages) {
    let manifest = serving.manifest();
    call.describe(|| {
        [
            KeyValue::new("fedge.model.name", manifest.name.clone()),
            KeyValue::new("fedge.model.version", i64::try_from(manifest.number).unwrap_or(i64::MAX)),
            KeyValue::new("fedge.model.digest", manifest.digest.to_string()),
            KeyValue::new("fedge.model.precision", serving.precision().name()),
            KeyValue::new("fedge.batch.rows", i64::try_from(rows).unwrap_or(i64::MAX)),
        ]
    });
    let known = stages.queue + stages.input + stages.infer + stages.output;
    // What is left was spent on looking up and checking, before the queue.
    let mut ago = known.min(total);
    for (name, lasted) in [
        ("queue", stages.queue),
        ("compute_input", stages.input),
        ("compute_infer", stages.infer),
        ("compute_output", stages.output),
    ] {
        ago = ago.saturating_sub(lasted);
        call.stage(name, ago, lasted);
    }
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

/// Counts a failure when it is dropped, unless there is none.
struct Counted<'a> {
    serving: &'a Serving,
    came: Instant,
    failure: Option<Failure>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(failure) = self.failure {
            self.serving.statistics().failed(failure, self.came.elapsed());
        }
    }
}

fn failure(error: &ExecutorError, serving: &Serving) -> Failure {
    let (model, version) = (&serving.manifest().name, serving.manifest().number);
    match error {
        ExecutorError::Overloaded { .. } | ExecutorError::TimedOut { .. } | ExecutorError::Stopped => Failure::Rejected,
        ExecutorError::Engine(_) | ExecutorError::Panicked { .. } => {
            tracing::error!(%error, %model, version, "a request failed");
            Failure::Backend
        }
    }
}

fn output(serving: &Serving, outputs: &[TensorData], index: usize, form: OutputForm) -> OutputTensor {
    let name = serving.contract().outputs[index].name.clone();
    let data = &outputs[index];
    match form {
        OutputForm::Classification(k) if data.element == ElementType::Fp32 => {
            let rows = data.shape.first().copied().unwrap_or(1);
            classify(name, &floats(&data.data), rows, k, &serving.manifest().labels)
        }
        _ => OutputTensor {
            name,
            datatype: data.element.name(),
            shape: wire_shape(&data.shape),
            data: data.data.clone(),
        },
    }
}

pub(super) fn wire_shape(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
}

impl Answer {
    /// Where the answer comes from: digest, precision, round, and the sample's id.
    pub fn parameters(&self) -> Vec<(&'static str, Parameter)> {
        let manifest = self.serving.manifest();
        let mut parameters = vec![
            ("fedge_model_digest", Parameter::Text(manifest.digest.to_string())),
            ("fedge_precision", Parameter::Text(self.serving.precision().name().to_owned())),
        ];
        if let Some(id) = &self.sample_id {
            parameters.push(("fedge_sample_id", Parameter::Text(id.to_string())));
        }
        if let Some(round) = manifest.round.and_then(|round| i64::try_from(round).ok()) {
            parameters.push(("fedge_round", Parameter::Integer(round)));
        }
        parameters
    }
}

impl From<InferError> for Status {
    fn from(error: InferError) -> Status {
        match error {
            InferError::Lookup(error) => error.into(),
            InferError::Denied { .. } => Status::permission_denied(error.to_string()),
            InferError::Refused(error) => error.into(),
            InferError::Executor(error) => error.into(),
        }
    }
}

impl From<LookupError> for Status {
    fn from(error: LookupError) -> Status {
        let message = error.to_string();
        match error {
            LookupError::UnknownModel { .. } | LookupError::UnknownVersion { .. } => Status::not_found(message),
            LookupError::NotANumber { .. } => Status::invalid_argument(message),
            LookupError::NotReady { .. } => Status::unavailable(message),
        }
    }
}

impl From<Refused> for Status {
    fn from(error: Refused) -> Status {
        Status::invalid_argument(error.to_string())
    }
}

impl From<ExecutorError> for Status {
    fn from(error: ExecutorError) -> Status {
        let message = error.to_string();
        match error {
            ExecutorError::Overloaded { .. } => Status::resource_exhausted(message),
            ExecutorError::TimedOut { .. } => Status::deadline_exceeded(message),
            ExecutorError::Engine(_) => Status::internal(message),
            ExecutorError::Panicked { .. } => Status::internal("the model panicked; the node's log says why"),
            ExecutorError::Stopped => Status::unavailable(message),
        }
    }
}
