//! What serving costs: a closed loop of callers against a node, a bare tonic service with the same arithmetic, or any other
//! server of the Open Inference Protocol. Prints latencies, requests a second, server CPU a request and memory as JSON.

mod floor;
mod identities;
mod small_models;
mod watched;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use fedge_proto::identity::{Role, SharedIdentity};
use fedge_proto::inference::ServerReadyRequest;
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::tls;
use serde_json::{Value, json};
use tonic::transport::Channel;
use watched::Watched;

/// Time inference in a closed loop
#[derive(Debug, Parser)]
struct Arguments {
    /// What is measured: node, floor, or the host:port of another server
    #[arg(long, default_value = "node")]
    target: String,
    /// Processes of another server, with their children: for its CPU and memory
    #[arg(long)]
    pid: Vec<u32>,
    /// Model to ask: mlp or cnn
    #[arg(long, default_value = "mlp")]
    model: String,
    /// Callers at a time; each has a connection of its own
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    callers: Vec<usize>,
    /// Threads that the callers share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    client_threads: u16,
    /// Samples a request
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Seconds for each number of callers
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Mutual TLS (node only)
    #[arg(long)]
    tls: bool,
    /// Version swaps a second while it is measured (node only): the model's folder changes under load
    #[arg(long, default_value_t = 0.0)]
    swaps_per_second: f64,
    /// Write the two models here as a model repository, and end
    #[arg(long)]
    write_models: Option<PathBuf>,
    /// The fedge program to measure [default: the one built beside this]
    #[arg(long)]
    fedge: Option<PathBuf>,
    #[arg(long, hide = true)]
    serve_floor: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.write_models {
        return small_models::write_models(folder);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(models) = &arguments.serve_floor {
        return runtime.block_on(floor::serve(models));
    }
    let callers = arguments.callers.iter().all(|callers| *callers >= 1);
    ensure!(
        arguments.seconds > 0.0 && arguments.batch >= 1 && callers,
        "more than 0 seconds, at least 1 sample and caller"
    );
    runtime.block_on(measure(&arguments))
}

/// Where requests go.
struct Server {
    address: String,
    identity: Option<SharedIdentity>,
    process: Watched,
    models: Option<PathBuf>,
    _scratch: tempfile::TempDir,
}

impl Server {
    async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(match &self.identity {
            Some(identity) => tls::connect(&self.address, identity, Role::Node).await?,
            None => Channel::from_shared(format!("http://{}", self.address))?.tcp_nodelay(true).connect().await?,
        })
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let server = start(arguments)?;
    let ready_ms = wait_until_ready(&server, &arguments.model, started).await?;
    let memory_at_start = server.process.memory("VmRSS")?;
    let mut rows = Vec::new();
    for callers in &arguments.callers {
        load(&server, arguments, *callers, Duration::from_millis(500))?;
        rows.push(run(&server, arguments, *callers).await?);
    }
    let report = json!({
        "target": arguments.target, "model": arguments.model, "batch": arguments.batch, "tls": arguments.tls,
        "ready_ms": ready_ms, "rss_at_start": memory_at_start, "rss": server.process.memory("VmRSS")?,
        "peak_rss": server.process.memory("VmHWM")?, "runs": rows,
    });
    println!("{report}");
    Ok(())
}

async fn run(server: &Server, arguments: &Arguments, callers: usize) -> anyhow::Result<Value> {
    let swapping = server.models.clone().filter(|_| arguments.swaps_per_second > 0.0).map(|models| {
        let (model, pause) = (arguments.model.clone(), Duration::from_secs_f64(1.0 / arguments.swaps_per_second));
        tokio::spawn(async move { swap(&models, &model, pause).await })
    });
    let before = server.process.cpu_seconds()?;
    let started = Instant::now();
    let Load { mut latencies, failed } = load(server, arguments, callers, Duration::from_secs_f64(arguments.seconds))?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = server.process.cpu_seconds()? - before;
    if let Some(swapping) = swapping {
        swapping.abort();
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share).ceil() as usize;
        latencies.get(index.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1000.0
    };
    let answered = latencies.len();
    ensure!(answered > 0, "no request was answered");
    Ok(json!({
        "callers": callers, "requests": answered, "failed": failed,
        "requests_per_second": (answered as f64 / seconds).round(),
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
        "server_cpu_us_per_request": (cpu * 1e7 / answered as f64).round() / 10.0,
        "rss": server.process.memory("VmRSS")?,
    }))
}

/// Latencies in nanoseconds of all answered requests, and how many failed.
#[derive(Default)]
struct Load {
    latencies: Vec<u64>,
    failed: u64,
}

impl Load {
    fn add(mut self, other: Load) -> Load {
        self.latencies.extend(other.latencies);
        self.failed += other.failed;
        self
    }
}

/// Callers on threads whose runtimes share nothing: waking another thread for each reply would cost the callers, and by the
/// shared cores the server, more than the call.
fn load(server: &Server, arguments: &Arguments, callers: usize, time: Duration) -> anyhow::Result<Load> {
    let threads = usize::from(arguments.client_threads).clamp(1, callers);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|index| {
                let callers = callers / threads + usize::from(index < callers % threads);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    runtime.block_on(call(server, arguments, callers, time))
                })
            })
            .collect();
        started.into_iter().try_fold(Load::default(), |load, thread| {
            let done = thread.join().map_err(|_| anyhow::anyhow!("a thread of callers panicked"))?;
            Ok(load.add(done?))
        })
    })
}

/// The callers of one thread, each with a connection of its own.
async fn call(server: &Server, arguments: &Arguments, callers: usize, time: Duration) -> anyhow::Result<Load> {
    let mut channels = Vec::with_capacity(callers);
    for _ in 0..callers {
        channels.push(server.channel().await?);
    }
    let until = Instant::now() + time;
    let request = small_models::request(&arguments.model, arguments.batch);
    let tasks: Vec<_> = channels
        .into_iter()
        .map(|channel| {
            let (mut client, request) = (GrpcInferenceServiceClient::new(channel), request.clone());
            tokio::spawn(async move {
                let mut load = Load::default();
                while Instant::now() < until {
                    let sent = Instant::now();
                    match client.model_infer(request.clone()).await {
                        Ok(_) => load.latencies.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX)),
                        Err(status) if load.failed == 0 => {
                            eprintln!("a request failed: {status}");
                            load.failed += 1;
                        }
                        Err(_) => load.failed += 1,
                    }
                }
                load
            })
        })
        .collect();
    let mut load = Load::default();
    for task in tasks {
        load = load.add(task.await?);
    }
    Ok(load)
}

fn start(arguments: &Arguments) -> anyhow::Result<Server> {
    let scratch = tempfile::tempdir()?;
    let (folder, models) = (scratch.path().to_owned(), scratch.path().join("models"));
    let server = |address: &str, identity, process, models| Server {
        address: address.to_owned(),
        identity,
        process,
        models,
        _scratch: scratch,
    };
    let own = std::env::current_exe()?;
    if arguments.target == "floor" {
        small_models::write_models(&models)?;
        let mut command = Command::new(own);
        let process = Watched::start(command.arg("--serve-floor").arg(&models))?;
        let address = process.word_after("floor ready: ")?;
        return Ok(server(&address, None, process, None));
    }
    if arguments.target != "node" {
        return Ok(server(&arguments.target, None, Watched::of(&arguments.pid), None));
    }
    small_models::write_models(&models)?;
    let fedge = match &arguments.fedge {
        Some(fedge) => fedge.clone(),
        None => own.parent().context("the benchmark has no folder")?.join("fedge-under-test"),
    };
    let mut command = Command::new(&fedge);
    command.args(["node", "run", "--standalone", "--grpc", "127.0.0.1:0", "--poll-ms", "100", "--model-repository"]);
    command.arg(&models);
    let identity = if arguments.tls {
        let (dir, client) = identities::identities(&fedge, &folder, Role::Client)?;
        command.arg("--dir").arg(dir);
        Some(client)
    } else {
        command.arg("--plaintext");
        None
    };
    let process = Watched::start(&mut command)?;
    let address = process.word_after("node ready: inference ")?;
    Ok(server(&address, identity, process, Some(models)))
}

/// Milliseconds from the start of the process to its first answer that it is ready.
async fn wait_until_ready(server: &Server, model: &str, started: Instant) -> anyhow::Result<f64> {
    let deadline = started + Duration::from_secs(60);
    loop {
        if let Ok(channel) = server.channel().await {
            let mut client = GrpcInferenceServiceClient::new(channel);
            let ready = client.server_ready(ServerReadyRequest {}).await;
            let ready = ready.is_ok_and(|reply| reply.into_inner().ready);
            let begun = server.process.started.unwrap_or(started);
            if ready {
                let after = begun.elapsed();
                client.model_infer(small_models::request(model, 1)).await.context("the first request")?;
                return Ok((after.as_secs_f64() * 1e4).round() / 10.0);
            }
        }
        ensure!(Instant::now() < deadline, "not ready within a minute");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes version after version of the model, each by a rename, and removes those before the last two.
async fn swap(models: &Path, model: &str, pause: Duration) {
    let folder = models.join(model);
    for number in 2u64.. {
        tokio::time::sleep(pause).await;
        let (stage, place) = (folder.join(".stage"), folder.join(number.to_string()));
        let written = std::fs::create_dir_all(&stage)
            .and_then(|()| small_models::write_version(&stage, model, number))
            .and_then(|()| std::fs::rename(&stage, &place));
        if let Err(error) = written {
            eprintln!("no more swaps: {error}");
            return;
        }
        if number > 2 {
            let _ = std::fs::remove_dir_all(folder.join((number - 2).to_string()));
        }
    }
}
