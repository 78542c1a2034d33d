//! What a node shows under abuse: well-behaved callers beside slow readers, cancelled calls, half-open connections, oversized and
//! malformed messages, and models that come and go, against a real process. Its memory, descriptors and threads are sampled
//! each second; checks at the end decide. Callers are in `good`, abusers in `abuse`, raw connections in `wire`.

#[path = "soak/abuse.rs"]
mod abuse;
#[path = "soak/good.rs"]
mod good;
mod identities;
#[path = "soak/judge.rs"]
mod judge;
mod small_models;
mod watched;
#[path = "soak/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use judge::{Sample, Seen};
use serde_json::json;
use watched::Watched;
use wire::Doors;

/// Soak a standalone node in good requests and in abuse
#[derive(Debug, Parser)]
struct Arguments {
    /// How long it is abused
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Abusers of each kind
    #[arg(long, default_value_t = 3)]
    abusers: usize,
    /// Well-behaved callers over gRPC, and as many over REST
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// Over mutual TLS
    #[arg(long)]
    tls: bool,
    /// Greatest p99 of the good requests, in milliseconds
    #[arg(long, default_value_t = 250.0)]
    p99_ms: f64,
    /// Print JSON alone
    #[arg(long)]
    json: bool,
    /// The fedge program [default: the one built beside this]
    #[arg(long)]
    fedge: Option<PathBuf>,
}

/// Counts of what abusers did, by kind.
#[derive(Debug, Default)]
pub struct Counts {
    /// Times that each kind struck.
    pub strikes: [AtomicU64; abuse::KINDS.len()],
    /// Answers that an abuser should not have got.
    pub surprises: AtomicU64,
}

/// Longest time after the abusers have gone until nothing of them is left: threads of inference end after 10 s.
const SETTLE: Duration = Duration::from_secs(30);
/// Threads of the runtime for blocking work, which come and go by chance.
const SPARE_THREADS: u64 = 2;
/// Connections that are left open and silent while the node shuts down.
const LEFT_OPEN: usize = 16;
/// The node's own bound on its shutdown is 5 s; the rest is for a machine that does other things too.
const SHUTDOWN: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.seconds >= 1 && arguments.callers >= 1, "at least one second and one caller");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let passed = runtime.block_on(soak(&arguments))?;
    // Abusers may hang in what they do to the node.
    runtime.shutdown_background();
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn soak(arguments: &Arguments) -> anyhow::Result<bool> {
    let scratch = tempfile::tempdir()?;
    let (mut node, doors) = start(arguments, scratch.path())?;
    let doors = Arc::new(doors);
    // Every kind of good request once, so that what is made at first use is there.
    good::once(&doors).await.context("the first requests")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let baseline = Sample::of(&node)?;
    let (stop, stop_good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let callers = good::start(&doors, arguments.callers, &stop_good);
    let counts = Arc::new(Counts::default());
    let abusers = abuse::start(&doors, arguments.abusers, &stop, &counts);
    let changes = tokio::spawn(abuse::change_models(
        Arc::clone(&doors),
        scratch.path().join("models"),
        Arc::clone(&stop),
        Arc::clone(&counts),
    ));
    let samples = sample(&node, Duration::from_secs(arguments.seconds), arguments.json).await?;
    stop.store(true, Ordering::Relaxed);
    abuse::wait(abusers).await;
    let change = changes.await.context("the changes of models")?;
    stop_good.store(true, Ordering::Relaxed);
    let calls = good::finish(callers).await?;
    let (settled, after) = settle(&node, &baseline).await?;
    let answers = good::once(&doors).await.err().map(|error| format!("{error:#}"));
    let mut left = Vec::new();
    for kind in 0..LEFT_OPEN {
        left.push(abuse::left_open(&doors, kind).await?);
    }
    let shutdown = node.terminate(SHUTDOWN)?;
    drop(left);
    let seen = Seen {
        seconds: arguments.seconds,
        p99_ms: arguments.p99_ms,
        baseline,
        samples,
        after,
        settled,
        calls,
        answers,
        shutdown,
        changes: change,
        surprises: counts.surprises.load(Ordering::Relaxed),
    };
    let strikes: serde_json::Map<_, _> = abuse::KINDS
        .iter()
        .zip(&counts.strikes)
        .map(|(k, n)| ((*k).to_owned(), n.load(Ordering::Relaxed).into()))
        .collect();
    let (mut report, checks) = judge::report(&seen);
    report["tls"] = json!(arguments.tls);
    report["abuse"] = strikes.into();
    report["log_bytes"] = json!(std::fs::metadata(scratch.path().join("node.log"))?.len());
    println!("{}", if arguments.json { report.to_string() } else { format!("{report:#}") });
    let failed: Vec<&str> = checks.iter().filter(|check| !check.passed).map(|check| check.name).collect();
    eprintln!("{} checks, failed: {failed:?}", checks.len());
    Ok(failed.is_empty())
}

/// Samples once a second, for so long.
async fn sample(node: &Watched, time: Duration, quiet: bool) -> anyhow::Result<Vec<Sample>> {
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(1).min(time.saturating_sub(started.elapsed()))).await;
        let sample = Sample::of(node)?;
        if !quiet && samples.len() % 10 == 9 {
            eprintln!("{:4} s: {sample:?}", started.elapsed().as_secs());
        }
        samples.push(sample);
    }
    Ok(samples)
}

/// Waits until the descriptors and threads are as few as before; gives the time that took, none where it did not.
async fn settle(node: &Watched, baseline: &Sample) -> anyhow::Result<(Option<Duration>, Sample)> {
    let started = Instant::now();
    loop {
        let now = Sample::of(node)?;
        if now.descriptors <= baseline.descriptors && now.threads <= baseline.threads + SPARE_THREADS {
            return Ok((Some(started.elapsed()), now));
        }
        if started.elapsed() > SETTLE {
            return Ok((None, now));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn start(arguments: &Arguments, scratch: &Path) -> anyhow::Result<(Watched, Doors)> {
    let models = scratch.join("models");
    small_models::write_models(&models)?;
    abuse::write_spare(&models)?;
    let fedge = match &arguments.fedge {
        Some(fedge) => fedge.clone(),
        None => std::env::current_exe()?.parent().context("the benchmark has no folder")?.join("fedge-under-test"),
    };
    let mut command = Command::new(&fedge);
    command.args(["node", "run", "--standalone", "--poll-ms", "200"]);
    command.args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    command.arg("--model-repository").arg(&models);
    let identity = if arguments.tls {
        let (dir, operator) = identities::identities(&fedge, scratch, fedge_proto::identity::Role::Operator)?;
        command.arg("--dir").arg(dir);
        Some(operator)
    } else {
        command.arg("--plaintext");
        None
    };
    // Abuse fills a log: its size is reported, its lines are nobody's.
    command.stderr(std::fs::File::create(scratch.join("node.log"))?);
    let process = Watched::start(&mut command)?;
    let doors = Doors {
        grpc: process.word_after("inference ")?,
        http: process.word_after("http ")?,
        metrics: process.word_after("metrics ")?,
        identity,
    };
    Ok((process, doors))
}
