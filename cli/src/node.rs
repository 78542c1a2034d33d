//! `fedge node`: join, run, status.
//! The node itself is the crate `node`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use fedge_node::config::{Config, DataFile, FILE_NAME};
use fedge_node::run::{identity_directory, run};
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
    /// Overrides inference.listen
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_NODE_LISTEN")]
    listen: Option<String>,
    /// Serve inference without TLS, on loopback only
    #[arg(long, env = "FEDGE_NODE_PLAINTEXT")]
    plaintext: bool,
    /// Labelled samples to learn from, .csv or .npz, for every model or MODEL=FILE; repeat for more
    #[arg(long, value_name = "[MODEL=]FILE")]
    data: Vec<String>,
    /// Overrides training.threads
    #[arg(long, value_name = "N", env = "FEDGE_NODE_TRAINING_THREADS")]
    training_threads: Option<usize>,
    /// Overrides inference.keep
    #[arg(long, value_name = "SHARE", env = "FEDGE_NODE_KEEP")]
    keep: Option<f64>,
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
        config.inference.plaintext |= self.plaintext;
        config.inference.keep = self.keep.unwrap_or(config.inference.keep);
        config.training.threads = self.training_threads.unwrap_or(config.training.threads);
        config.data.extend(self.data.iter().map(|argument| data_file(argument)));
        config.check()?;
        let transport = if config.inference.plaintext { "plaintext" } else { "mutual TLS" };
        let ready = |address| println!("node ready: inference {address} ({transport})");
        Ok(run(&self.dir, config, ready, process::asked_to_end(self.end_with_input)).await?)
    }
}

/// `MODEL=FILE` or `FILE`; a path that exists is a path, whatever it contains.
fn data_file(argument: &str) -> DataFile {
    match argument.split_once('=') {
        Some((model, path)) if !std::path::Path::new(argument).exists() => {
            DataFile { model: Some(model.to_owned()), path: path.into() }
        }
        _ => DataFile { model: None, path: argument.into() },
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
        for problem in &status.data_problems {
            println!("data         {problem}");
        }
        let mut table = output::table(&["model", "version", "precision", "training", "held out"], &[1, 3, 4]);
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
