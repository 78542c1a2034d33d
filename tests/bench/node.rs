//! Nodes for the benchmarks: real sessions, transfers, outboxes and memories over mutual TLS, with a trainer that returns a
//! fixed vector (`fixed`), so that a fleet costs what its rounds cost. They serve no inference and renew no certificate.

mod fixed;
#[path = "../kill_point.rs"]
mod kill_point;
mod vector;

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Parser;
use fedge_node::federation::download::Downloads;
use fedge_node::federation::driver;
use fedge_node::federation::memory::Memory;
use fedge_node::federation::outbox::Outbox;
use fedge_node::federation::session::Session;
use fedge_node::federation::shelf::Shelf;
use fedge_node::federation::work::Workshop;
use fedge_node::run::{identity_directory, lock};
use fedge_node::status::{NodeStatus, StatusFile};
use fedge_node::training::Resources;
use fedge_proto::identity::{Role, SharedIdentity};
use fedge_proto::tls::connect_lazy;
use fixed::{FixedVector, Layouts};
use tokio::task::JoinSet;

/// Take part in rounds with updates that are fixed vectors, as many nodes in one process
#[derive(Debug, Parser)]
struct Arguments {
    /// A node's folder with its identity; repeat for more nodes
    #[arg(long, value_name = "DIR")]
    dir: Vec<PathBuf>,
    /// A folder whose subfolders are nodes' folders
    #[arg(long, value_name = "PARENT")]
    dirs: Option<PathBuf>,
    /// Say that there are samples for this model before its first version has come; repeat for more
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Changes every node's vector
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads of the process that talk
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Threads of the process that read, encode and write
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
}

fn main() -> anyhow::Result<()> {
    kill_point::arm();
    let arguments = Arguments::parse();
    let filter = std::env::var("FEDGE_LOG").unwrap_or_else(|_| "warn".to_owned());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    // However many nodes there are, the threads are these.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads.into())
        .max_blocking_threads(arguments.workers.into())
        .enable_all()
        .build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut folders = arguments.dir.clone();
    if let Some(parent) = &arguments.dirs {
        let entries = std::fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))?;
        let paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
        folders.extend(paths.into_iter().filter(|path| identity_directory(path).exists()));
    }
    ensure!(!folders.is_empty(), "no node's folder was given: use --dir or --dirs");
    folders.sort_unstable();
    let layouts = Arc::new(Layouts::default());
    let (mut nodes, mut locks) = (JoinSet::new(), Vec::new());
    for folder in &folders {
        let (lock, session, workshop) =
            node(folder, &arguments, &layouts).with_context(|| folder.display().to_string())?;
        locks.push(lock);
        nodes.spawn(driver::run(session, workshop));
    }
    println!("{} bench nodes ready", folders.len());
    tokio::signal::ctrl_c().await?;
    Ok(())
}

fn node(folder: &Path, arguments: &Arguments, layouts: &Arc<Layouts>) -> anyhow::Result<(File, Session, Workshop)> {
    let lock = lock(folder)?;
    let directory = identity_directory(folder);
    let (identity, coordinator) = (directory.load()?, directory.connection()?);
    let name = identity.id().id().to_owned();
    let downloads = Arc::new(Downloads::open(folder.join("incoming"))?);
    // One version is enough for deltas.
    let shelf = Shelf::new(folder.join("models"), downloads.clone(), 1);
    let workshop = Workshop {
        learner: Arc::new(FixedVector::new(&name, arguments.seed, shelf, layouts.clone(), &arguments.model)),
        outbox: Outbox::open(folder.join("outbox"))?,
        memory: Memory::open(folder.join("memory"))?,
        downloads,
    };
    let status = NodeStatus {
        pid: std::process::id(),
        identity: identity.id().to_string(),
        inference_address: String::new(),
        transport: "none".into(),
        connected: false,
        last_error: None,
        work: "idle".into(),
        resting: String::new(),
        serving: Vec::new(),
        data_problems: Vec::new(),
    };
    let channel = connect_lazy(&coordinator.federation, &SharedIdentity::new(identity), Role::Coordinator)?;
    Ok((lock, Session::new(channel, String::new(), Resources::default(), status, StatusFile::of(folder)), workshop))
}
