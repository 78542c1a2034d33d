//! The floor of serving: a bare tonic service that answers with the same arithmetic, naively.
//! It checks nothing, queues nothing and counts nothing: what a server costs above it is what serving well costs.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use fedge_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use fedge_proto::inference::model_infer_response::InferOutputTensor;
use fedge_proto::inference::*;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::small_models::{WIDTHS, weights};

/// Serves the MLP on a free port of loopback, until it is killed.
pub async fn serve(_: &Path) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("floor ready: {}", listener.local_addr()?);
    let layers = WIDTHS.windows(2).map(|pair| (pair[1], weights(pair[0], pair[1]))).collect();
    let service = GrpcInferenceServiceServer::new(Floor { layers: Arc::new(layers) });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
    server.serve_with_incoming(incoming).await.context("the floor")
}

struct Floor {
    /// Width and weights `[in, out]` of each layer.
    layers: Arc<Vec<(usize, Vec<f32>)>>,
}

impl Floor {
    fn run(&self, sample: &[f32]) -> Vec<f32> {
        let mut values = sample.to_vec();
        for (layer, (width, weights)) in self.layers.iter().enumerate() {
            let mut sums = vec![0.01f32; *width];
            for (value, row) in values.iter().zip(weights.chunks_exact(*width)) {
                sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += value * weight);
            }
            if layer + 1 < self.layers.len() {
                sums.iter_mut().for_each(|sum| *sum = sum.max(0.0));
            }
            values = sums;
        }
        values
    }
}

type Unanswered<T> = Result<Response<T>, Status>;

fn none<T>() -> Unanswered<T> {
    Err(Status::unimplemented("the floor only infers"))
}

#[tonic::async_trait]
impl GrpcInferenceService for Floor {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Unanswered<ModelInferResponse> {
        let request = request.into_inner();
        let raw = request.raw_input_contents.first().ok_or_else(|| Status::invalid_argument("no data"))?;
        let values: Vec<f32> = raw.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect();
        let mut outputs: Vec<u8> = Vec::new();
        for sample in values.chunks_exact(WIDTHS[0]) {
            outputs.extend(self.run(sample).iter().flat_map(|value| value.to_le_bytes()));
        }
        let rows = i64::try_from(values.len() / WIDTHS[0]).unwrap_or(i64::MAX);
        let shape = vec![rows, 10];
        let output =
            InferOutputTensor { name: "y".to_owned(), datatype: "FP32".to_owned(), shape, ..Default::default() };
        Ok(Response::new(ModelInferResponse {
            model_name: request.model_name,
            model_version: "1".to_owned(),
            id: request.id,
            outputs: vec![output],
            raw_output_contents: vec![outputs.into()],
            ..ModelInferResponse::default()
        }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Unanswered<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Unanswered<ServerLiveResponse> {
        none()
    }
    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Unanswered<ModelReadyResponse> {
        none()
    }
    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Unanswered<ServerMetadataResponse> {
        none()
    }
    async fn model_metadata(&self, _: Request<ModelMetadataRequest>) -> Unanswered<ModelMetadataResponse> {
        none()
    }
    async fn model_stream_infer(
        &self,
        _: Request<Streaming<ModelInferRequest>>,
    ) -> Unanswered<Self::ModelStreamInferStream> {
        none()
    }
    async fn model_config(&self, _: Request<ModelConfigRequest>) -> Unanswered<ModelConfigResponse> {
        none()
    }
    async fn model_statistics(&self, _: Request<ModelStatisticsRequest>) -> Unanswered<ModelStatisticsResponse> {
        none()
    }
    async fn repository_index(&self, _: Request<RepositoryIndexRequest>) -> Unanswered<RepositoryIndexResponse> {
        none()
    }
    async fn repository_model_load(
        &self,
        _: Request<RepositoryModelLoadRequest>,
    ) -> Unanswered<RepositoryModelLoadResponse> {
        none()
    }
    async fn repository_model_unload(
        &self,
        _: Request<RepositoryModelUnloadRequest>,
    ) -> Unanswered<RepositoryModelUnloadResponse> {
        none()
    }
}
