//! `fedge node`: join, run, status.
//! The node itself is the crate `node`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use fedge_node::config::{Config, DataFile, FILE_NAME};
use fedge_node::doors::Addresses;
use fedge_node::inference::LibraryOptions;
use fedge_node::inference::library::Control;
use fedge_node::run::{identity_directory, run};
use fedge_node::samples::file::BadRows;
use fedge_node::standalone::{self, Standalone};
use fedge_node::status::StatusFile;
use fedge_proto::identity::{Role, display_time};

use crate::{enrol, output, process};

const DEFAULT_FOLDER: &str = "fedge-node";

/// An edge node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Redeem a join token: makes the node's folder with its identity and a commented configuration
    Join(Join),
    /// Serve, learn, take part in rounds
    Run(Box<Run>),
    /// What a node is doing
    Status(Status),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Join(join) => join.run().await,
            Command::Run(run) => run.run().await,
            Command::Status(status) => status.run(),
        }
    }
}

/// Flags of `join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The coordinator's enrolment port, host:port
    #[arg(long, value_name = "HOST:PORT", env = "FEDGE_COORDINATOR")]
    coordinator: String,
    /// The join token
    #[arg(long, env = "FEDGE_TOKEN", hide_env_values = true)]
    token: String,
    /// The node's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_NODE_DIR")]
    dir: PathBuf,
    /// Replace an identity that is there
    #[arg(long)]
    force: bool,
}

impl Join {
    async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let directory = identity_directory(&self.dir);
        enrol::join(&self.token, &self.coordinator, &directory, Some(Role::Node), self.force).await?;
        let config = self.dir.join(FILE_NAME);
        if !config.exists() {
            std::fs::write(&config, Config::commented())
                .with_context(|| format!("cannot write {}", config.display()))?;
        }
        println!("Next: fedge node run --dir {}", self.dir.display());
        Ok(())
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The node's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_NODE_DIR")]
    dir: PathBuf,
    /// Serve the models of a folder, without a coordinator; --dir is then only where the identity is
    #[arg(long, requires = "model_repository")]
    standalone: bool,
    /// The folder: <model>/<version>/model.onnx, and <model>/model.toml for what is not the default
    #[arg(long, value_name = "DIR", requires = "standalone", env = "FEDGE_MODEL_REPOSITORY")]
    model_repository: Option<PathBuf>,
    /// Load models when asked to, not when the folder changes
    #[arg(long, requires = "standalone")]
    explicit: bool,
    /// How often the folder is looked at, in milliseconds; a change is taken once it has rested for as long
    #[arg(long, value_name = "MS", default_value_t = 1000, requires = "standalone", value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    poll_ms: u64,
    /// Where to serve gRPC; overrides inference.listen
    #[arg(long, alias = "grpc", value_name = "IP:PORT", env = "FEDGE_NODE_LISTEN")]
    listen: Option<String>,
    /// Where to serve the same over HTTP; overrides inference.http
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_NODE_HTTP")]
    http: Option<String>,
    /// Where to serve health and metrics in plaintext; overrides metrics.listen
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_NODE_METRICS")]
    metrics: Option<String>,
    /// Serve inference without TLS, on loopback only
    #[arg(long, env = "FEDGE_NODE_PLAINTEXT")]
    plaintext: bool,
    /// Labelled samples to learn from, for every model or MODEL=FILE: .csv, .parquet, .npz, IDX, or a folder with a folder of pictures
    /// for each class; repeat for more
    #[arg(long, value_name = "[MODEL=]FILE")]
    data: Vec<String>,
    /// Overrides training.threads
    #[arg(long, value_name = "N", env = "FEDGE_NODE_TRAINING_THREADS")]
    training_threads: Option<usize>,
    /// Overrides inference.keep
    #[arg(long, value_name = "SHARE", env = "FEDGE_NODE_KEEP")]
    keep: Option<f64>,
    /// Send traces of requests to this OpenTelemetry collector (OTLP/gRPC); overrides telemetry.otlp_endpoint
    #[arg(long, value_name = "http://HOST:PORT", env = "FEDGE_NODE_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Share of the requests that are traced where their traceparent does not decide; overrides telemetry.trace_ratio
    #[arg(long, value_name = "SHARE", env = "FEDGE_NODE_TRACE_RATIO")]
    trace_ratio: Option<f64>,
    /// End when standard input ends
    #[arg(long, hide = true)]
    end_with_input: bool,
}

impl Run {
    async fn run(self: Box<Self>) -> anyhow::Result<()> {
        process::log("info");
        let mut config = Config::load(&self.dir)?;
        if let Some(listen) = self.listen {
            config.inference.listen = listen;
        }
        config.inference.http = self.http.unwrap_or(config.inference.http);
        config.metrics.listen = self.metrics.unwrap_or(config.metrics.listen);
        config.inference.plaintext |= self.plaintext;
        config.inference.keep = self.keep.unwrap_or(config.inference.keep);
        config.training.threads = self.training_threads.unwrap_or(config.training.threads);
        config.telemetry.otlp_endpoint =
            self.otlp_endpoint.or_else(endpoint_of_the_machine).unwrap_or(config.telemetry.otlp_endpoint);
        config.telemetry.trace_ratio = self.trace_ratio.unwrap_or(config.telemetry.trace_ratio);
        config.data.extend(self.data.iter().map(|argument| data_file(argument)));
        config.check()?;
        if let Some(model_repository) = self.model_repository {
            let every = std::time::Duration::from_millis(self.poll_ms);
            let control = if self.explicit { Control::Explicit } else { Control::Poll(every) };
            let library =
                LibraryOptions { control, settle: every, loaded: process::release_memory, ..LibraryOptions::default() };
            return serve_standalone(&self.dir, config, Standalone { model_repository, library }, self.end_with_input)
                .await;
        }
        let ready = ready(&config);
        Ok(run(&self.dir, config, ready, process::asked_to_end(self.end_with_input)).await?)
    }
}

/// What OpenTelemetry's variable says for every program of a machine; a collector that a node can't reach does not stop it.
fn endpoint_of_the_machine() -> Option<String> {
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty())?;
    if endpoint.starts_with("http://") {
        return Some(endpoint);
    }
    tracing::warn!(
        endpoint,
        "no traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT: a node sends them to http://HOST:PORT"
    );
    None
}

async fn serve_standalone(
    dir: &std::path::Path,
    config: Config,
    standalone: Standalone,
    end_with_input: bool,
) -> anyhow::Result<()> {
    let ready = ready(&config);
    Ok(standalone::run(dir, config, standalone, ready, process::asked_to_end(end_with_input)).await?)
}

/// Says where the node listens.
fn ready(config: &Config) -> impl FnOnce(Addresses) + use<> {
    let transport = if config.inference.plaintext { "plaintext" } else { "mutual TLS" };
    move |at| {
        let mut line = format!("node ready: inference {} ({transport})", at.grpc);
        for (what, address) in [("http", at.http), ("metrics", at.metrics)] {
            if let Some(address) = address {
                line.push_str(&format!(", {what} {address}"));
            }
        }
        println!("{line}");
    }
}

/// `MODEL=FILE` or `FILE`; a path that exists is a path, whatever it contains.
fn data_file(argument: &str) -> DataFile {
    match argument.split_once('=') {
        Some((model, path)) if !std::path::Path::new(argument).exists() => {
            DataFile { model: Some(model.to_owned()), path: path.into(), bad_rows: BadRows::Stop }
        }
        _ => DataFile { model: None, path: argument.into(), bad_rows: BadRows::Stop },
    }
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The node's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_NODE_DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    fn run(self) -> anyhow::Result<()> {
        let identity = identity_directory(&self.dir).load()?;
        let file = StatusFile::of(&self.dir);
        let status = file.read().with_context(|| format!("cannot read the status in {}", self.dir.display()))?;
        let status = status.filter(|s| is_running(s.pid));
        if self.json {
            return output::json(&serde_json::json!({
                "identity": identity.id().to_string(),
                "certificate_until": display_time(identity.not_after()),
                "running": status.is_some(),
                "status": status,
            }));
        }
        println!("identity     {}", identity.id());
        println!("certificate  until {}", display_time(identity.not_after()));
        let Some(status) = status else {
            println!("process      not running (fedge node run --dir {})", self.dir.display());
            return Ok(());
        };
        println!("process      {}", status.pid);
        println!("inference    {} ({})", status.inference_address, status.transport);
        match (&status.connected, &status.last_error) {
            (true, _) => println!("coordinator  connected"),
            (false, Some(error)) => println!("coordinator  not reached: {error}"),
            (false, None) => println!("coordinator  connecting"),
        }
        println!("work         {}", status.work);
        if !status.resting.is_empty() {
            println!("training     rests: {}", status.resting);
        }
        for problem in &status.data_problems {
            println!("data         {problem}");
        }
        let mut table = output::table(&["model", "version", "precision", "training", "held out", "drift"], &[1, 3, 4]);
        for s in &status.serving {
            let precision = match (s.precision.as_str(), s.float_reason.as_str()) {
                ("", _) => "not served yet".to_owned(),
                (precision, "") => precision.to_owned(),
                (precision, reason) => format!("{precision}: {reason}"),
            };
            table.add_row([
                s.model.clone(),
                s.number.to_string(),
                precision,
                s.training_samples.to_string(),
                s.held_out_samples.to_string(),
                match (s.drift.as_str(), s.drift_alarms) {
                    ("", 0) => "none".to_owned(),
                    ("", alarms) => format!("none now, {alarms} before"),
                    (kind, _) => format!("{kind} changed"),
                },
            ]);
        }
        println!("{table}");
        Ok(())
    }
}

#[cfg(unix)]
fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

#[cfg(not(unix))]
fn is_running(_: u32) -> bool {
    true
}
