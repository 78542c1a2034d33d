//! The floor of serving: a bare tonic service that answers with the same arithmetic, naively; and the models of both.
//! It checks nothing, queues nothing and counts nothing: what a server costs above it is what serving well costs.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use fedge_models::{Model, Weights, pb};
use fedge_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use fedge_proto::inference::model_infer_response::InferOutputTensor;
use fedge_proto::inference::*;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// Widths of the MLP.
const WIDTHS: [usize; 4] = [784, 256, 128, 10];
const CNN: &[u8] = include_bytes!("../../models/zoo/mnist_cnn.onnx");

/// Writes `mlp` and `cnn` as a model repository.
pub fn write_models(folder: &Path) -> anyhow::Result<()> {
    for model in ["mlp", "cnn"] {
        let version = folder.join(model).join("1");
        std::fs::create_dir_all(&version)?;
        write_version(&version, model, 1)?;
    }
    // As if they had been there for long: a node reads what has rested.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    for model in ["mlp", "cnn"] {
        let path = folder.join(model).join("1").join("model.onnx");
        std::fs::File::options().write(true).open(path)?.set_modified(old)?;
    }
    Ok(())
}

/// Writes one version's file; versions differ in their weights.
pub fn write_version(folder: &Path, model: &str, number: u64) -> io::Result<()> {
    let onnx = if model == "mlp" { mlp(number) } else { CNN.to_vec() };
    let model = Model::from_bytes(onnx).map_err(io::Error::other)?;
    let factor = 1.0 + (number % 7) as f32 / 100.0;
    let values = model.weights().values().iter().map(|value| value * factor).collect();
    let weights = Weights::new(model.layout().clone(), values).map_err(io::Error::other)?;
    let model = model.with_weights(&weights).map_err(io::Error::other)?;
    std::fs::write(folder.join("model.onnx"), model.bytes())
}

/// Weights that need no randomness: small, of both signs, all different.
fn weights(rows: usize, columns: usize) -> Vec<f32> {
    let scale = 1.0 / (rows as f32).sqrt();
    (0..rows * columns).map(|index| scale * (((index * 7919) % 2003) as f32 / 1001.5 - 1.0)).collect()
}

/// 784-256-128-10 with Gemm and Relu; input `x`, output `y`.
fn mlp(_: u64) -> Vec<u8> {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let float = pb::tensor_proto::DataType::Float as i32;
    let value = |name: &str, width: usize| {
        let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
        let batch = dim(dimension::Value::DimParam("batch".to_owned()));
        let dims = vec![batch, dim(dimension::Value::DimValue(i64::try_from(width).unwrap_or(i64::MAX)))];
        let tensor = pb::type_proto::Tensor { elem_type: float, shape: Some(pb::TensorShapeProto { dim: dims }) };
        let kind = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..pb::TypeProto::default() };
        pb::ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..pb::ValueInfoProto::default() }
    };
    let tensor = |name: String, dims: &[usize], values: &[f32]| pb::TensorProto {
        name,
        dims: dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect(),
        data_type: float,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..pb::TensorProto::default()
    };
    let node = |operator: &str, input: Vec<String>, output: String| pb::NodeProto {
        op_type: operator.to_owned(),
        name: format!("the_{output}"),
        input,
        output: vec![output],
        ..pb::NodeProto::default()
    };
    let (mut nodes, mut initializers, mut last) = (Vec::new(), Vec::new(), "x".to_owned());
    for (layer, pair) in WIDTHS.windows(2).enumerate() {
        let (rows, columns) = (pair[0], pair[1]);
        initializers.push(tensor(format!("w{layer}"), &[rows, columns], &weights(rows, columns)));
        initializers.push(tensor(format!("b{layer}"), &[columns], &vec![0.01; columns]));
        let end = layer + 2 == WIDTHS.len();
        let output = if end { "y".to_owned() } else { format!("h{layer}") };
        nodes.push(node("Gemm", vec![last, format!("w{layer}"), format!("b{layer}")], output.clone()));
        last = output;
        if !end {
            nodes.push(node("Relu", vec![last], format!("r{layer}")));
            last = format!("r{layer}");
        }
    }
    let graph = pb::GraphProto {
        name: "mlp".to_owned(),
        node: nodes,
        initializer: initializers,
        input: vec![value("x", 784)],
        output: vec![value("y", 10)],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..pb::ModelProto::default() }
        .encode_to_vec()
}

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
