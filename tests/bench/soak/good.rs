//! Callers that behave: gRPC and REST, with and without the binary extension, at a pace of their own. Every answer is looked at.
//! A failure of theirs fails the soak.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::small_models::request;
use crate::wire::{Doors, Stream, ask, post};

/// Pause between two requests of a caller.
const PACE: Duration = Duration::from_millis(4);
/// A caller opens a new connection after so many requests.
const A_CONNECTION: u64 = 500;

/// What good callers saw.
#[derive(Debug, Default)]
pub struct Calls {
    /// Nanoseconds of each answered request.
    pub latencies: Vec<u64>,
    /// Failed requests.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<String>,
}

/// A request for one of the two models over REST, as bytes of HTTP.
pub fn rest_request(model: &str, rows: usize) -> Vec<u8> {
    let message = request(model, rows);
    let (input, raw) = (&message.inputs[0], &message.raw_input_contents[0]);
    let json = format!(
        "{{\"inputs\":[{{\"name\":\"{}\",\"datatype\":\"FP32\",\"shape\":{:?},\"parameters\":{{\"binary_data_size\":{}}}}}]}}",
        input.name,
        input.shape,
        raw.len()
    );
    let headers = format!("Inference-Header-Content-Length: {}\r\n", json.len());
    post(&format!("/v2/models/{model}/infer"), &headers, &[json.as_bytes(), raw].concat())
}

/// Asks each model once in each way, and the health of all ports.
pub async fn once(doors: &Doors) -> anyhow::Result<()> {
    let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
    let mut rest = doors.rest().await?;
    for model in ["mlp", "cnn"] {
        over_grpc(&mut client, model).await?;
        over_rest(&mut *rest, &rest_request(model, 1)).await?;
    }
    let mut metrics = doors.open(&doors.metrics, b"http/1.1").await?;
    for path in ["/v2/health/ready", "/metrics"] {
        let (status, body) =
            ask(&mut *metrics, format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).await?;
        ensure!(status == 200, "{path} answers {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

async fn over_grpc(client: &mut GrpcInferenceServiceClient<Channel>, model: &str) -> anyhow::Result<()> {
    let reply = client.model_infer(request(model, 1)).await.with_context(|| format!("{model} over gRPC"))?.into_inner();
    let lengths: Vec<usize> = reply.raw_output_contents.iter().map(|raw| raw.len()).collect();
    ensure!(lengths == [40], "{model} over gRPC gives outputs of {lengths:?} bytes");
    Ok(())
}

async fn over_rest(stream: &mut dyn Stream, request: &[u8]) -> anyhow::Result<()> {
    let (status, body) = ask(stream, request).await?;
    ensure!(status == 200, "REST answers {status}: {}", String::from_utf8_lossy(&body));
    let reply: serde_json::Value = serde_json::from_slice(&body)?;
    let values = reply["outputs"][0]["data"].as_array().map_or(0, Vec::len);
    ensure!(values == 10, "REST gives {values} values: {reply}");
    Ok(())
}

/// Starts so many callers over gRPC and as many over REST.
pub fn start(doors: &Arc<Doors>, callers: usize, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<Calls>> {
    let one = |index: usize| {
        let (doors, stop) = (Arc::clone(doors), Arc::clone(stop));
        let model = if index.is_multiple_of(2) { "mlp" } else { "cnn" };
        tokio::spawn(async move { call(&doors, model, index >= callers, &stop).await })
    };
    (0..2 * callers).map(one).collect()
}

/// The sum of what they saw.
pub async fn finish(callers: Vec<JoinHandle<Calls>>) -> anyhow::Result<Calls> {
    let mut all = Calls::default();
    for caller in callers {
        let calls = caller.await?;
        all.latencies.extend(calls.latencies);
        all.failed += calls.failed;
        all.failures.extend(calls.failures);
    }
    all.latencies.sort_unstable();
    Ok(all)
}

async fn call(doors: &Doors, model: &str, rest: bool, stop: &AtomicBool) -> Calls {
    let mut calls = Calls::default();
    while !stop.load(Ordering::Relaxed) {
        let ended = if rest {
            rest_calls(doors, model, stop, &mut calls).await
        } else {
            grpc_calls(doors, model, stop, &mut calls).await
        };
        if let Err(error) = ended {
            calls.failed += 1;
            if calls.failures.len() < 5 {
                calls.failures.push(format!("{error:#}"));
            }
        }
    }
    calls
}

async fn grpc_calls(doors: &Doors, model: &str, stop: &AtomicBool, calls: &mut Calls) -> anyhow::Result<()> {
    let mut client = GrpcInferenceServiceClient::new(doors.channel().await?);
    for _ in 0..A_CONNECTION {
        let sent = Instant::now();
        over_grpc(&mut client, model).await?;
        note(calls, sent);
        tokio::time::sleep(PACE).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

async fn rest_calls(doors: &Doors, model: &str, stop: &AtomicBool, calls: &mut Calls) -> anyhow::Result<()> {
    let mut stream = doors.rest().await?;
    let request = rest_request(model, 1);
    for _ in 0..A_CONNECTION {
        let sent = Instant::now();
        over_rest(&mut *stream, &request).await?;
        note(calls, sent);
        tokio::time::sleep(PACE).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

fn note(calls: &mut Calls, sent: Instant) {
    calls.latencies.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
}
