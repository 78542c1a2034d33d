//! What training costs inference on the same device: a real coordinator and a real node over mutual TLS, requests at a steady rate
//! whatever the answers do, in windows with and without a training task, one after the other. Prints the ratio of the p99.

#[allow(dead_code)]
mod fleet;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use fedge_proto::identity::{Role, SharedIdentity};
use fedge_proto::inference::ModelInferRequest;
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use fedge_proto::tls;
use fleet::{Coordinator, Process, Programs};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;

/// The lineage under test.
pub const MODEL: &str = "digits";
const PIXELS: usize = 64;
/// Latency that the issue of serving allows with training running, against without.
const WANTED: f64 = 2.0;

/// Time inference with and without training beside it
#[derive(Debug, Parser)]
struct Arguments {
    /// Windows of each kind; they alternate
    #[arg(long, default_value_t = 4)]
    windows: usize,
    /// Seconds a window
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Requests a second, sent on time whatever the answers do
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Connections that requests take turns on
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Passes over the node's samples in a round: few make many rounds, each with a new version, many make one long training
    #[arg(long, default_value_t = 5)]
    epochs: u32,
    /// Threads of the node's training
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The fedge program to measure [default: the one built beside this]
    #[arg(long)]
    fedge: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The requests of one window.
#[derive(Debug, Default)]
struct Window {
    /// Microseconds from when each request was due to its answer.
    latencies: Vec<u64>,
    failed: u64,
    /// CPU seconds of the node a second.
    cpu: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.windows >= 1 && arguments.connections >= 1, "at least one window and one connection");
    ensure!(arguments.seconds > 0.0 && arguments.rate > 0.0, "some seconds and some requests");
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let coordinator = Coordinator::start(Programs::find(arguments.fedge.clone())?, scratch.path())?;
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo");
    let onnx = zoo.join("digits_cnn.onnx");
    let onnx = onnx.to_str().context("the project's folder is not UTF-8")?;
    coordinator.command(&["model", "publish", onnx, "--name", MODEL, "--scale", "0.0625"], false)?;
    let (node, address) = start_node(&coordinator, scratch.path(), &zoo.join("digits.csv"), arguments.threads)?;
    coordinator.wait_for_nodes(1)?;
    let identity = SharedIdentity::new(coordinator.client("caller")?);
    let mut channels = Vec::new();
    for _ in 0..arguments.connections {
        channels.push(tls::connect(&address, &identity, Role::Node).await?);
    }
    window(arguments, &channels, &node, 2.0).await?;
    let (mut alone, mut beside, mut rounds) = (Vec::new(), Vec::new(), 0);
    for _ in 0..arguments.windows {
        alone.push(window(arguments, &channels, &node, arguments.seconds).await?);
        let task = Task::start(&coordinator, scratch.path(), arguments.epochs)?;
        wait_until_busy(&node).await?;
        beside.push(window(arguments, &channels, &node, arguments.seconds).await?);
        rounds += task.end(&coordinator)?;
        wait_until_idle(&node).await?;
    }
    report(arguments, alone, beside, rounds)
}

/// Joins and starts a node that holds all of the digits.
fn start_node(
    coordinator: &Coordinator,
    scratch: &Path,
    data: &Path,
    threads: usize,
) -> anyhow::Result<(Process, String)> {
    coordinator.enrol(&["edge".to_owned()], scratch)?;
    let address = format!("127.0.0.1:{}", std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    std::fs::write(scratch.join("edge/node.toml"), format!("[training]\nthreads = {threads}\n"))?;
    let mut command = Command::new(&coordinator.programs.fedge);
    command.args(["node", "run", "--listen", &address, "--dir"]).arg(scratch.join("edge"));
    command.arg("--data").arg(data);
    Ok((Process::start(&mut command, &scratch.join("edge.log"))?, address))
}

/// A task that goes on until it is ended.
struct Task(String);

impl Task {
    fn start(coordinator: &Coordinator, scratch: &Path, epochs: u32) -> anyhow::Result<Task> {
        let file = scratch.join("task.toml");
        let rounds = "[rounds]\ncount = 100000\nmin_nodes = 1\ndeadline_s = 3600\n";
        let training = format!("[training]\nepochs = {epochs}\nlearning_rate = 0.01\nmomentum = 0.9\n");
        std::fs::write(&file, format!("model = \"{MODEL}\"\n{rounds}{training}"))?;
        let file = file.to_str().context("the folder's name is not UTF-8")?;
        let created = coordinator.operate(&["task", "create", file])?;
        Ok(Task(created["id"].as_str().context("an id")?.to_owned()))
    }

    /// Rounds that it finished.
    fn end(self, coordinator: &Coordinator) -> anyhow::Result<usize> {
        let shown = coordinator.operate(&["task", "show", &self.0])?;
        coordinator.command(&["task", "cancel", &self.0], false)?;
        Ok(shown["rounds"].as_array().map_or(0, Vec::len))
    }
}

/// Share of a core that the node has used for half a second.
async fn busy(node: &Process) -> anyhow::Result<f64> {
    let before = node.cpu_seconds()?;
    sleep(Duration::from_millis(500)).await;
    Ok((node.cpu_seconds()? - before) / 0.5)
}

async fn wait_until_busy(node: &Process) -> anyhow::Result<()> {
    for _ in 0..60 {
        if busy(node).await? > 0.4 {
            return Ok(());
        }
    }
    anyhow::bail!("no training began within 30 s")
}

async fn wait_until_idle(node: &Process) -> anyhow::Result<()> {
    for _ in 0..120 {
        if busy(node).await? < 0.1 {
            return Ok(());
        }
    }
    anyhow::bail!("training went on for 60 s after its task was cancelled")
}

async fn window(arguments: &Arguments, channels: &[Channel], node: &Process, seconds: f64) -> anyhow::Result<Window> {
    let request = Arc::new(request());
    let (before, started) = (node.cpu_seconds()?, Instant::now());
    let mut calls = Vec::new();
    let count = (seconds * arguments.rate) as usize;
    for (index, channel) in (0..count).zip(channels.iter().cycle()) {
        let due = started + Duration::from_secs_f64(index as f64 / arguments.rate);
        sleep_until(due).await;
        let (mut client, request) = (GrpcInferenceServiceClient::new(channel.clone()), Arc::clone(&request));
        calls.push(tokio::spawn(async move {
            let answered = client.model_infer((*request).clone()).await;
            answered.map(|_| u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX))
        }));
    }
    let cpu = (node.cpu_seconds()? - before) / started.elapsed().as_secs_f64();
    let mut window = Window { cpu, ..Window::default() };
    for call in calls {
        match call.await? {
            Ok(latency) => window.latencies.push(latency),
            Err(status) => {
                eprintln!("a request failed: {status}");
                window.failed += 1;
            }
        }
    }
    window.latencies.sort_unstable();
    Ok(window)
}

fn request() -> ModelInferRequest {
    let sample: Vec<u8> = (0..PIXELS).flat_map(|index| ((index % 17) as f32).to_le_bytes()).collect();
    ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs: vec![InferInputTensor {
            name: "pixels".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 1, 8, 8],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![sample.into()],
        ..ModelInferRequest::default()
    }
}

fn at(latencies: &[u64], share: f64) -> u64 {
    let index = (latencies.len() as f64 * share).ceil() as usize;
    latencies.get(index.saturating_sub(1)).copied().unwrap_or_default()
}

/// All windows of a kind as one, and each.
fn summary(windows: &[Window]) -> (Value, u64, u64) {
    let mut all: Vec<u64> = windows.iter().flat_map(|window| window.latencies.iter().copied()).collect();
    all.sort_unstable();
    let each: Vec<Value> = windows
        .iter()
        .map(|w| json!({ "p50_us": at(&w.latencies, 0.5), "p99_us": at(&w.latencies, 0.99), "cpu": (w.cpu * 100.0).round() / 100.0 }))
        .collect();
    let failed: u64 = windows.iter().map(|window| window.failed).sum();
    let (p50, p99) = (at(&all, 0.5), at(&all, 0.99));
    let value = json!({
        "answered": all.len(), "failed": failed, "p50_us": p50, "p99_us": p99, "p999_us": at(&all, 0.999), "windows": each,
    });
    (value, p50, p99)
}

fn report(arguments: &Arguments, alone: Vec<Window>, beside: Vec<Window>, rounds: usize) -> anyhow::Result<()> {
    let ((without, p50_without, p99_without), (with, p50_with, p99_with)) = (summary(&alone), summary(&beside));
    let ratio = |a: u64, b: u64| (a as f64 / b.max(1) as f64 * 100.0).round() / 100.0;
    let report = json!({
        "rate": arguments.rate, "seconds": arguments.seconds, "epochs": arguments.epochs, "training_threads": arguments.threads,
        "rounds": rounds, "without_training": without, "with_training": with,
        "p50_ratio": ratio(p50_with, p50_without), "p99_ratio": ratio(p99_with, p99_without), "p99_ratio_wanted": WANTED,
    });
    println!("{}", if arguments.json { report.to_string() } else { format!("{report:#}") });
    Ok(())
}
