//! The Open Inference Protocol: `inference.GRPCInferenceService`, its six calls and their error codes.
//! Tensors are checked in `convert`, versions looked up in `repository`, work queued in `executor`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use fedge_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_metadata_response::TensorMetadata;
use fedge_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use tonic::{Request, Response, Status};

use super::classification::classify;
use super::convert::{self, OutputForm, Refused, RequestLimits};
use super::executor::{Executor, ExecutorError};
use super::repository::{LookupError, ModelRepository};
use super::serving::{Answer, Serving};
use crate::samples::{SampleId, SampleStore};

/// Which inputs of answered requests are kept for a later label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepPolicy {
    /// None: replies carry no `fedge_sample_id`.
    Off,
    /// Of requests with a single sample, each with this probability, 0 to 1.
    Sampled(f64),
}

/// How the service works.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Which inputs are kept for a later label.
    pub keep: KeepPolicy,
    /// How large a request may be.
    pub limits: RequestLimits,
    /// Threads that run models, at least 1.
    pub threads: usize,
    /// Requests that may wait for a thread; more are answered `RESOURCE_EXHAUSTED` at once.
    pub max_waiting: usize,
    /// Largest request message, in bytes.
    pub max_message_bytes: usize,
}

impl Default for ServiceOptions {
    /// All single samples are kept; as many threads as the machine has cores; 256 may wait; 16 MiB a message.
    fn default() -> ServiceOptions {
        ServiceOptions {
            keep: KeepPolicy::Sampled(1.0),
            limits: RequestLimits::default(),
            threads: thread::available_parallelism().map_or(1, usize::from),
            max_waiting: 256,
            max_message_bytes: 16 << 20,
        }
    }
}

/// Answers the protocol for the models of a repository.
#[derive(Debug)]
pub struct InferenceService {
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    executor: Executor,
    options: ServiceOptions,
}

/// The gRPC service, ready to be added to a server. An error where the system refuses its threads.
pub fn service(
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    options: ServiceOptions,
) -> std::io::Result<GrpcInferenceServiceServer<InferenceService>> {
    let executor = Executor::new(options.threads, options.max_waiting)?;
    let max_message_bytes = options.max_message_bytes;
    let service = InferenceService { repository, samples, executor, options };
    Ok(GrpcInferenceServiceServer::new(service).max_decoding_message_size(max_message_bytes))
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.repository.ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let ready = match self.repository.get(&request.name, &request.version) {
            Ok(_) => true,
            Err(error @ LookupError::NotANumber { .. }) => return Err(error.into()),
            Err(_) => false,
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "fedge".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: vec!["classification".to_owned()],
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let serving = self.repository.get(&request.name, &request.version)?;
        let manifest = serving.manifest();
        let tensor = |signature: &fedge_models::TensorSignature| TensorMetadata {
            name: signature.name.clone(),
            datatype: signature.element.name().to_owned(),
            shape: convert::wire_dims(signature),
        };
        Ok(Response::new(ModelMetadataResponse {
            name: manifest.name.clone(),
            versions: vec![manifest.number.to_string()],
            platform: "onnx_tract".to_owned(),
            inputs: vec![tensor(serving.input())],
            outputs: vec![tensor(serving.output())],
            properties: BTreeMap::from([
                ("fedge_model_digest".to_owned(), manifest.digest.to_string()),
                ("fedge_precision".to_owned(), serving.precision().name().to_owned()),
                // A JSON array, in the order of the output.
                ("fedge_labels".to_owned(), serde_json::to_string(&manifest.labels).unwrap_or_default()),
            ]),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let request = request.into_inner();
        let serving = self.repository.get(&request.model_name, &request.model_version)?;
        let form = convert::requested_output(&request.outputs, serving.output())?;
        let batch = convert::samples(&request, serving.input(), &self.options.limits)?;
        let rows = batch.rows;
        let work = {
            let serving = Arc::clone(&serving);
            move || (serving.run(&batch.values), batch.values)
        };
        let (answer, values) = self.executor.run(work).await?;
        let answer = answer.map_err(|error| {
            let (model, version) = (&serving.manifest().name, serving.manifest().number);
            tracing::error!(%error, %model, version, "a request failed");
            Status::internal(error.to_string())
        })?;
        let sample_id = if rows == 1 { self.keep(&serving, values) } else { None };
        Ok(Response::new(reply(&serving, request.id, &answer, form, sample_id)))
    }
}

impl InferenceService {
    /// Keeps the input of an answered request, if the policy wants it and there is room; never waits.
    fn keep(&self, serving: &Serving, input: Vec<f32>) -> Option<SampleId> {
        match self.options.keep {
            KeepPolicy::Off => None,
            KeepPolicy::Sampled(probability) if rand::random::<f64>() >= probability => None,
            KeepPolicy::Sampled(_) => self.samples.try_keep_pending(&serving.manifest().name, input),
        }
    }
}

fn reply(
    serving: &Serving,
    id: String,
    answer: &Answer,
    form: OutputForm,
    sample_id: Option<SampleId>,
) -> ModelInferResponse {
    let manifest = serving.manifest();
    let name = &serving.output().name;
    let rows = answer.shape.first().copied().unwrap_or(0);
    let (tensor, raw) = match form {
        OutputForm::Values => convert::output_values(name, &answer.shape, &answer.values),
        OutputForm::Classification(k) => classify(name, &answer.values, rows, k, &manifest.labels),
    };
    let text = |text: String| InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) };
    let mut parameters = BTreeMap::from([
        ("fedge_model_digest".to_owned(), text(manifest.digest.to_string())),
        ("fedge_precision".to_owned(), text(serving.precision().name().to_owned())),
    ]);
    if let Some(id) = sample_id {
        parameters.insert("fedge_sample_id".to_owned(), text(id.to_string()));
    }
    if let Some(round) = manifest.round.and_then(|round| i64::try_from(round).ok()) {
        let round = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(round)) };
        parameters.insert("fedge_round".to_owned(), round);
    }
    ModelInferResponse {
        model_name: manifest.name.clone(),
        model_version: manifest.number.to_string(),
        id,
        parameters,
        outputs: vec![tensor],
        raw_output_contents: vec![raw],
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
            ExecutorError::Panicked { .. } => {
                tracing::error!(%error, "a request panicked");
                Status::internal("the model panicked; the node's log says why")
            }
            ExecutorError::Stopped => Status::unavailable(message),
        }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
