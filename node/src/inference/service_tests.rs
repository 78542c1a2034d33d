//! Tests of the protocol against an in-process server: every row of its semantics.
//! Swaps under load and overload are in `service_load_tests`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fedge_proto::feedback::feedback_client::FeedbackClient;
use fedge_proto::feedback::{ClassLabel, LabelRequest, class_label};
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use fedge_proto::inference::model_metadata_response::TensorMetadata;
use fedge_proto::inference::{InferParameter, InferTensorContents};
use prost::bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::super::ExecutorOptions;
use super::super::test_fixtures::{PIXELS, digits, package, serving};
use super::*;
use crate::samples::{Limits, feedback};

type Client = GrpcInferenceServiceClient<Channel>;

struct Node {
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    channel: Channel,
    _directory: TempDir,
}

async fn start(options: ServiceOptions) -> Node {
    start_with(options, ExecutorOptions::default()).await
}

async fn start_with(options: ServiceOptions, executor: ExecutorOptions) -> Node {
    let directory = TempDir::new().unwrap();
    let samples = SampleStore::open(&directory.path().join("samples.db"), Limits::default()).await.unwrap();
    let repository = Arc::new(ModelRepository::with_options(executor));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .add_service(service(Arc::clone(&repository), samples.clone(), options))
        .add_service(feedback::service(Arc::clone(&repository), samples.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    Node { repository, samples, channel, _directory: directory }
}

/// A node that serves version 3 of `digits`.
async fn ready_node() -> (Node, Client) {
    let node = start(ServiceOptions::default()).await;
    node.repository.swap(serving(3));
    let client = Client::new(node.channel.clone());
    (node, client)
}

fn bytes(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn request(rows: i64, values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "digits".to_owned(),
        id: "request 7".to_owned(),
        inputs: vec![InferInputTensor {
            name: "pixels".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![rows, 1, 8, 8],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![bytes(values)],
        ..ModelInferRequest::default()
    }
}

fn one() -> ModelInferRequest {
    request(1, &[1.0; PIXELS])
}

fn with(change: impl FnOnce(&mut ModelInferRequest)) -> ModelInferRequest {
    let mut request = one();
    change(&mut request);
    request
}

fn typed(contents: InferTensorContents) -> ModelInferRequest {
    with(|request| {
        request.raw_input_contents.clear();
        request.inputs[0].contents = Some(contents);
    })
}

fn asking(name: &str, parameter: Option<ParameterChoice>) -> ModelInferRequest {
    let parameters =
        parameter.map(|choice| ("classification".to_owned(), InferParameter { parameter_choice: Some(choice) }));
    with(|request| {
        let parameters = parameters.into_iter().collect();
        request.outputs.push(InferRequestedOutputTensor { name: name.to_owned(), parameters });
    })
}

fn text(response: &ModelInferResponse, name: &str) -> String {
    match response.parameters.get(name).and_then(|parameter| parameter.parameter_choice.clone()) {
        Some(ParameterChoice::StringParam(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

fn values(response: &ModelInferResponse) -> Vec<f32> {
    response.raw_output_contents[0].as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

#[tokio::test]
async fn readiness_follows_the_models() {
    let node = start(ServiceOptions::default()).await;
    let mut client = Client::new(node.channel.clone());
    let ready =
        async |client: &mut Client| client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready;
    let model_ready = async |client: &mut Client, name: &str, version: &str| {
        let request = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        client.model_ready(request).await.map(|response| response.into_inner().ready)
    };
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(!ready(&mut client).await, "no model is known");
    node.repository.expect("digits");
    assert!(!ready(&mut client).await, "none is ready");
    assert!(!model_ready(&mut client, "digits", "").await.unwrap());
    assert_eq!(client.model_infer(one()).await.unwrap_err().code(), Code::Unavailable);

    node.repository.swap(serving(3));
    assert!(ready(&mut client).await);
    for (name, version, expected) in
        [("digits", "", true), ("digits", "3", true), ("digits", "2", false), ("letters", "", false)]
    {
        assert_eq!(model_ready(&mut client, name, version).await.unwrap(), expected, "{name} {version}");
    }
    assert_eq!(model_ready(&mut client, "digits", "v3").await.unwrap_err().code(), Code::InvalidArgument);
    node.repository.expect("letters");
    assert!(!ready(&mut client).await, "one of two is ready");
}

#[tokio::test]
async fn metadata_tells_names_types_shapes_and_the_version() {
    let (_node, mut client) = ready_node().await;
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((server.name.as_str(), server.version.as_str()), ("fedge", env!("CARGO_PKG_VERSION")));
    let metadata = async |client: &mut Client, name: &str, version: &str| {
        let request = ModelMetadataRequest { name: name.to_owned(), version: version.to_owned() };
        client.model_metadata(request).await.map(Response::into_inner)
    };
    let model = metadata(&mut client, "digits", "").await.unwrap();
    assert_eq!((model.platform.as_str(), &model.versions[..]), ("onnx_tract", &["3".to_owned()][..]));
    let tensor = |name: &str, shape: &[i64]| TensorMetadata {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
    };
    assert_eq!(model.inputs, [tensor("pixels", &[-1, 1, 8, 8])]);
    assert_eq!(model.outputs, [tensor("logits", &[-1, 10])]);
    for (name, version, code) in
        [("letters", "", Code::NotFound), ("digits", "2", Code::NotFound), ("digits", "x", Code::InvalidArgument)]
    {
        assert_eq!(metadata(&mut client, name, version).await.unwrap_err().code(), code, "{name} {version}");
    }
}

#[tokio::test]
async fn an_answer_is_raw_names_its_version_and_echoes_the_id() {
    let (_node, mut client) = ready_node().await;
    let digits = digits();
    let raw: Vec<f32> = digits[..3].iter().flat_map(|sample| sample.input.clone()).collect();
    let response = client.model_infer(request(3, &raw)).await.unwrap().into_inner();
    assert_eq!(response.outputs.len(), 1);
    assert_eq!((response.outputs[0].name.as_str(), response.outputs[0].datatype.as_str()), ("logits", "FP32"));
    assert_eq!((&response.outputs[0].shape[..], &response.outputs[0].contents), (&[3, 10][..], &None));
    assert_eq!(values(&response), serving(3).run(&raw).unwrap().values);
    assert_eq!((response.model_version.as_str(), response.id.as_str()), ("3", "request 7"));
    assert_eq!(text(&response, "fedge_model_digest"), package(3).manifest.digest.to_string());
    assert_eq!(text(&response, "fedge_precision"), "float");
    assert_eq!(response.parameters["fedge_round"].parameter_choice, Some(ParameterChoice::Int64Param(103)));
    assert!(!response.parameters.contains_key("fedge_sample_id"), "a batch is no sample");

    let contents = InferTensorContents { fp32_contents: digits[0].input.clone(), ..InferTensorContents::default() };
    let response = client.model_infer(typed(contents)).await.unwrap().into_inner();
    assert_eq!(values(&response), serving(3).run(&digits[0].input).unwrap().values);
    let response = client.model_infer(with(|request| request.model_version = "3".to_owned())).await.unwrap();
    assert_eq!(response.into_inner().model_version, "3");
}

#[tokio::test]
async fn a_classification_gives_the_greatest_values_with_labels() {
    let (_node, mut client) = ready_node().await;
    let response =
        client.model_infer(asking("logits", Some(ParameterChoice::Int64Param(2)))).await.unwrap().into_inner();
    assert_eq!((response.outputs[0].datatype.as_str(), &response.outputs[0].shape[..]), ("BYTES", &[1, 2][..]));
    let logits = serving(3).run(&[1.0; PIXELS]).unwrap().values;
    let best = super::super::check::argmax(&logits).unwrap();
    let expected = format!("{:.6}:{best}:{best}", logits[best]);
    let raw = &response.raw_output_contents[0];
    assert_eq!(raw[..4], (expected.len() as u32).to_le_bytes());
    assert_eq!(&raw[4..4 + expected.len()], expected.as_bytes());
}

#[tokio::test]
async fn what_is_not_served_is_not_found_and_a_version_must_be_a_number() {
    let (_node, mut client) = ready_node().await;
    for (name, version, code, expected) in [
        ("letters", "", Code::NotFound, "unknown model \"letters\"; this node knows \"digits\""),
        ("", "", Code::NotFound, "unknown model \"\""),
        ("digits", "2", Code::NotFound, "version 2 of model \"digits\" is not served; version 3 is"),
        ("digits", "99999999999999999999", Code::NotFound, "is not served; version 3 is"),
        ("digits", "latest", Code::InvalidArgument, "model version \"latest\" is not a number"),
        ("digits", "+3", Code::InvalidArgument, "is not a number"),
    ] {
        let request = with(|request| {
            request.model_name = name.to_owned();
            request.model_version = version.to_owned();
        });
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{name} {version}");
        assert!(status.message().contains(expected), "{}", status.message());
    }
}

#[tokio::test]
async fn each_wrong_tensor_is_an_invalid_argument_that_names_it() {
    let (node, mut client) = ready_node().await;
    let fp32 = |len: usize| InferTensorContents { fp32_contents: vec![1.0; len], ..InferTensorContents::default() };
    let shape = |dims: &[i64]| with(|request| request.inputs[0].shape = dims.to_vec());
    let cases = [
        (shape(&[1, 64]), "\"pixels\": expected 4 dimensions, [-1, 1, 8, 8], but 2 came: [1, 64]"),
        (shape(&[]), "\"pixels\": expected 4 dimensions"),
        (shape(&[1, 1, 8, 9]), "\"pixels\": expected the shape [-1, 1, 8, 8], but [1, 1, 8, 9] came"),
        (shape(&[1, 1, -8, 8]), "\"pixels\": expected the shape"),
        (shape(&[1 << 40, 1, 8, 8]), "\"pixels\": expected a batch of 1 to 4096 samples, but 1099511627776 came"),
        (shape(&[i64::MAX, 1, 8, 8]), "\"pixels\": expected a batch"),
        (shape(&[0, 1, 8, 8]), "\"pixels\": expected a batch of 1 to 4096 samples, but 0 came"),
        (shape(&[-1, 1, 8, 8]), "\"pixels\": expected a batch of 1 to 4096 samples, but -1 came"),
        (shape(&[4097, 1, 8, 8]), "\"pixels\": expected a batch of 1 to 4096 samples, but 4097 came"),
        (shape(&[2, 1, 8, 8]), "\"pixels\": expected 512 bytes of raw data (128 values of 4 bytes), but 256 came"),
        (
            with(|request| request.inputs[0].datatype = "INT64".to_owned()),
            "\"pixels\": expected the datatype FP32, but \"INT64\" came",
        ),
        (
            with(|request| request.inputs[0].name = "image".to_owned()),
            "input \"image\": is unknown; the model's input is \"pixels\"",
        ),
        (with(|request| request.inputs.push(request.inputs[0].clone())), "\"pixels\": came 2 times"),
        (with(|request| request.inputs.clear()), "\"pixels\": is missing"),
        (with(|request| request.raw_input_contents.clear()), "\"pixels\": its data is missing; expected 64 values"),
        (
            with(|request| request.raw_input_contents.push(Bytes::new())),
            "\"pixels\": expected one entry of raw_input_contents an input, so 1, but 2 came",
        ),
        (with(|request| request.inputs[0].contents = Some(fp32(64))), "\"pixels\": its data came both"),
        (typed(fp32(63)), "\"pixels\": expected 64 values in fp32_contents, but 63 came"),
        (
            typed(InferTensorContents { fp64_contents: vec![1.0; 64], ..InferTensorContents::default() }),
            "\"pixels\": expected its values in fp32_contents",
        ),
        (request(1, &[f32::NAN; PIXELS]), "\"pixels\": expected finite numbers, but element 0 (from 0) is NaN"),
        (request(1, &[f32::INFINITY; PIXELS]), "\"pixels\": expected finite numbers"),
        (asking("probabilities", None), "output \"probabilities\": is unknown; the model's output is \"logits\""),
        (asking("logits", Some(ParameterChoice::Int64Param(0))), "output \"logits\": its parameter \"classification\""),
        (asking("logits", Some(ParameterChoice::StringParam("2".to_owned()))), "output \"logits\": its parameter"),
    ];
    for (request, expected) in cases {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{expected}: {}", status.message());
        assert!(status.message().contains(expected), "expected {expected:?}, got {:?}", status.message());
    }
    let mut twice = asking("logits", None);
    twice.outputs.push(twice.outputs[0].clone());
    assert_eq!(client.model_infer(twice).await.unwrap_err().code(), Code::InvalidArgument);
    client.model_infer(one()).await.unwrap();
    assert!(node.repository.ready(), "and the server goes on");
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused() {
    let node = start(ServiceOptions { max_message_bytes: 1 << 16, ..ServiceOptions::default() }).await;
    node.repository.swap(serving(3));
    let mut client = Client::new(node.channel.clone());
    let status = client.model_infer(request(1000, &vec![1.0; 1000 * PIXELS])).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    client.model_infer(one()).await.unwrap();
}

#[tokio::test]
async fn a_label_for_an_answer_becomes_a_training_sample() {
    let (node, mut client) = ready_node().await;
    let mut feedback = FeedbackClient::new(node.channel.clone());
    let digits = digits();
    for sample in &digits[..20] {
        let response = client.model_infer(request(1, &sample.input)).await.unwrap().into_inner();
        let label = Some(ClassLabel { value: Some(class_label::Value::Name(sample.label.to_string())) });
        let request = LabelRequest { sample_id: text(&response, "fedge_sample_id"), label };
        assert_eq!(feedback.label(request).await.unwrap().into_inner().index, sample.label);
    }
    let kept = [node.samples.training_set("digits").await.unwrap(), node.samples.held_out_set("digits").await.unwrap()];
    let mut kept = kept.concat();
    let mut expected = digits[..20].to_vec();
    let by_bits =
        |sample: &crate::samples::Sample| sample.input.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    kept.sort_by_key(by_bits);
    expected.sort_by_key(by_bits);
    assert_eq!(kept, expected, "raw inputs, as they were sent");
}

#[tokio::test]
async fn the_policy_decides_whether_inputs_are_kept() {
    let node = start(ServiceOptions { keep: KeepPolicy::Off, ..ServiceOptions::default() }).await;
    node.repository.swap(serving(3));
    let response = Client::new(node.channel.clone()).model_infer(one()).await.unwrap().into_inner();
    assert!(!response.parameters.contains_key("fedge_sample_id"));
    assert_eq!(node.samples.counts("digits").await.unwrap().pending, 0);
}

#[path = "service_load_tests.rs"]
mod load;
