//! The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, its calls and their error codes.
//! Answers are made in `answer`, messages in `convert` and `describe`, work queued in `executor`.

use std::pin::Pin;
use std::sync::Arc;

use fedge_proto::identity::SpiffeId;
use fedge_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use fedge_proto::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use tokio_stream::{Stream, StreamExt};
use tonic::codec::CompressionEncoding;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::answer::{InferError, Inference};
use super::keep::KeepPolicy;
use super::library::{Library, LibraryError};
use super::repository::{LookupError, ModelRepository};
use super::request::{InferRequest, RequestLimits};
use super::{convert, describe};
use crate::calls::Call;
use crate::samples::SampleStore;

/// How the service works.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Which inputs are kept for a later label.
    pub keep: KeepPolicy,
    /// How large a request may be.
    pub limits: RequestLimits,
    /// Largest request message, in bytes, once it is decompressed.
    pub max_message_bytes: usize,
}

impl Default for ServiceOptions {
    /// All single samples are kept; 16 MiB a message.
    fn default() -> ServiceOptions {
        ServiceOptions { keep: KeepPolicy::Sampled(1.0), limits: RequestLimits::default(), max_message_bytes: 16 << 20 }
    }
}

/// Answers the protocol for the models of a repository.
#[derive(Clone, Debug)]
pub struct InferenceService {
    inference: Inference,
    library: Option<Arc<Library>>,
    options: ServiceOptions,
}

/// The gRPC service for the models of a repository, ready to be added to a server.
pub fn service(
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    options: ServiceOptions,
) -> GrpcInferenceServiceServer<InferenceService> {
    let inference = Inference::new(repository, Some(samples), options.keep, options.limits);
    InferenceService::new(inference, None, options).into_server()
}

impl InferenceService {
    /// Answers by `inference`. With a library, models can be loaded and unloaded.
    pub fn new(inference: Inference, library: Option<Arc<Library>>, options: ServiceOptions) -> InferenceService {
        InferenceService { inference, library, options }
    }

    /// Ready to be added to a server; gzip and deflate in both directions.
    pub fn into_server(self) -> GrpcInferenceServiceServer<InferenceService> {
        let max_message_bytes = self.options.max_message_bytes;
        let mut server = GrpcInferenceServiceServer::new(self).max_decoding_message_size(max_message_bytes);
        for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
            server = server.accept_compressed(encoding).send_compressed(encoding);
        }
        server
    }

    fn repository(&self) -> &ModelRepository {
        self.inference.repository()
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    type ModelStreamInferStream = Replies<ModelStreamInferResponse>;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.repository().ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let ready = match self.repository().get(&request.name, &request.version) {
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
            extensions: describe::EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let (caller, request) = caller_and_message(request);
        let serving = self.inference.lookup(&request.name, &request.version, caller.as_ref())?;
        let versions = self.repository().versions(&request.name);
        let numbers: Vec<u64> = versions.iter().map(|version| version.manifest().number).collect();
        Ok(Response::new(describe::metadata(&serving, &numbers)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let compressed = request.metadata().contains_key("grpc-encoding");
        let who = Who::of(request.extensions());
        let mut response = Response::new(answer(&self.inference, request.into_inner(), who).await?);
        if !compressed {
            // Many clients announce that they could read gzip; only those that send it are on a link where it pays.
            response.disable_compression();
        }
        Ok(response)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let inference = self.inference.clone();
        let compressed = request.metadata().contains_key("grpc-encoding");
        let who = Who::of(request.extensions());
        // One request of a stream at a time: its answers come in order, and a slow reader holds back its own requests alone.
        let replies = request.into_inner().then(move |message| {
            let (inference, who) = (inference.clone(), who.clone());
            async move {
                let message = message?;
                let id = message.id.clone();
                Ok(match answer(&inference, message, who).await {
                    Ok(response) => {
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    Err(status) => ModelStreamInferResponse {
                        error_message: status.message().to_owned(),
                        // Says which request it was.
                        infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                    },
                })
            }
        });
        let mut response: Response<Self::ModelStreamInferStream> = Response::new(Box::pin(replies));
        if !compressed {
            response.disable_compression();
        }
        Ok(response)
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let (caller, request) = caller_and_message(request);
        let serving = self.inference.lookup(&request.name, &request.version, caller.as_ref())?;
        let options = self.repository().options(&request.name).unwrap_or_default();
        let config = describe::config(&serving, &options, self.options.limits.max_batch);
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let (caller, request) = caller_and_message(request);
        let versions = match (request.name.as_str(), request.version.as_str()) {
            ("", _) => self.inference.served(caller.as_ref()),
            (name, "") => {
                self.inference.lookup(name, "", caller.as_ref())?;
                self.repository().versions(name)
            }
            (name, version) => vec![self.inference.lookup(name, version, caller.as_ref())?],
        };
        let model_stats = versions.iter().map(|serving| describe::statistics(serving)).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let (caller, request) = caller_and_message(request);
        only_repository(&request.repository_name)?;
        let mut index = self.repository().index();
        if let Some(library) = &self.library {
            index.extend(library.unloaded().await);
        }
        index.retain(|entry| entry.ready || !request.ready);
        index.retain(|entry| self.repository().admits(&entry.name, caller.as_ref()));
        index.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        Ok(Response::new(RepositoryIndexResponse { models: index.into_iter().map(describe::index_entry).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let request = request.into_inner();
        only_repository(&request.repository_name)?;
        if let Some(name) = request.parameters.keys().next() {
            let name: String = name.chars().take(80).collect();
            return Err(Status::invalid_argument(format!(
                "parameter {name:?}: a configuration or a file can't be sent along; put it into the model repository"
            )));
        }
        self.library()?.load(&request.model_name).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let request = request.into_inner();
        only_repository(&request.repository_name)?;
        self.library()?.unload(&request.model_name).await;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}

impl InferenceService {
    fn library(&self) -> Result<&Arc<Library>, Status> {
        self.library.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this node's models come from its coordinator: publish a version there, or run a standalone node",
            )
        })
    }
}

fn caller_and_message<T>(request: Request<T>) -> (Option<SpiffeId>, T) {
    (request.extensions().get().cloned(), request.into_inner())
}

/// Who asks, by which call.
#[derive(Clone)]
struct Who {
    caller: Option<SpiffeId>,
    call: Option<Call>,
}

impl Who {
    fn of(extensions: &Extensions) -> Who {
        Who { caller: extensions.get().cloned(), call: extensions.get().cloned() }
    }
}

async fn answer(inference: &Inference, message: ModelInferRequest, who: Who) -> Result<ModelInferResponse, Status> {
    let Who { caller, call } = who;
    let request = InferRequest { caller, call, ..convert::request(message).map_err(InferError::from)? };
    Ok(convert::response(inference.infer(request).await?))
}

fn only_repository(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Ok(());
    }
    Err(Status::invalid_argument("repository_name: this node has one repository without a name; leave it empty"))
}

impl From<LibraryError> for Status {
    fn from(error: LibraryError) -> Status {
        // As other servers answer a load that fails, whatever the reason.
        Status::internal(error.to_string())
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
