//! What a round costs: a real coordinator process and real node processes over mutual TLS, with a trainer that returns a
//! fixed vector and weight, so that nothing but rounds is measured. The result is checked against the mean computed here.

mod fleet;
mod model;
mod vector;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use fleet::{Coordinator, Process, Programs};
use serde_json::{Value, json};

/// The lineage under test.
pub const MODEL: &str = "bench";

/// Time federated rounds with trainers that return fixed vectors
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes of the fleet
    #[arg(long, default_value_t = 10)]
    nodes: usize,
    /// Nodes that share a process
    #[arg(long, default_value_t = 1)]
    nodes_per_process: usize,
    /// Size of the model's weights in bytes
    #[arg(long, default_value_t = 10_000_000)]
    model_bytes: usize,
    /// Rounds to run
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Encoding of the updates: f32, f16, int8 or top_k
    #[arg(long, default_value = "f32")]
    encoding: String,
    /// Compress updates with zstd
    #[arg(long)]
    zstd: bool,
    /// Where the coordinator's and (unless --node-dir says otherwise) the nodes' folders are made [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the nodes' folders are made: real nodes have disks of their own
    #[arg(long)]
    node_dir: Option<PathBuf>,
    /// The fedge program to measure [default: the one built beside this]
    #[arg(long)]
    fedge: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.nodes >= 1 && arguments.nodes_per_process >= 1 && arguments.rounds >= 1, "at least 1 of each");
    let scratch = tempfile::tempdir()?;
    let dir = arguments.dir.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&dir)?;
    let node_dir = arguments.node_dir.clone().unwrap_or_else(|| dir.clone());
    let sync_ms = sync_latency_ms(&dir)?;

    let coordinator = Coordinator::start(Programs::find(arguments.fedge.clone())?, &dir)?;
    let (bytes, parameters) = model::linear(arguments.model_bytes);
    let file = dir.join("bench.onnx");
    std::fs::write(&file, bytes)?;
    let path = file.to_str().context("the folder's name is not UTF-8")?;
    coordinator.command(&["model", "publish", path, "--name", MODEL], false)?;
    let published_peak = coordinator.process.memory("VmHWM")?;
    coordinator.process.reset_peak()?;

    let names: Vec<String> = (0..arguments.nodes).map(|i| format!("node-{i:04}")).collect();
    let mut processes = Vec::new();
    for (index, names) in names.chunks(arguments.nodes_per_process).enumerate() {
        let parent = node_dir.join(format!("nodes-{index:04}"));
        coordinator.enrol(names, &parent)?;
        processes.push(coordinator.start_nodes(&parent)?);
    }
    let connected = coordinator.wait_for_nodes(arguments.nodes)?;
    let idle: Vec<u64> = processes.iter().map(|p| p.memory("VmRSS")).collect::<Result<_, _>>()?;

    let before = cpu(&coordinator.process, &processes)?;
    let started = Instant::now();
    let task = run_task(&coordinator, &arguments, &dir)?;
    let wall = started.elapsed().as_secs_f64();
    let after = cpu(&coordinator.process, &processes)?;
    let error = check(&coordinator, &arguments, &names, parameters, &dir)?;

    let mut seconds: Vec<f64> =
        rounds(&task).iter().map(|r| r["duration_ms"].as_f64().unwrap_or(f64::NAN) / 1000.0).collect();
    seconds.sort_by(f64::total_cmp);
    let rounds = arguments.rounds as f64;
    let node_rounds = rounds * arguments.nodes as f64;
    let peaks: Vec<u64> = processes.iter().map(|p| p.memory("VmHWM")).collect::<Result<_, _>>()?;
    let coordinator_peak = coordinator.process.memory("VmHWM")?;
    let report = json!({
        "nodes": arguments.nodes, "nodes_per_process": arguments.nodes_per_process, "parameters": parameters,
        "model_bytes": parameters * 4, "encoding": arguments.encoding, "zstd": arguments.zstd, "rounds": arguments.rounds,
        "round_seconds_min": seconds.first(), "round_seconds_median": seconds.get(seconds.len() / 2),
        "round_seconds_max": seconds.last(), "wall_seconds_per_round": wall / rounds, "rounds_per_second": rounds / wall,
        "node_cpu_seconds_per_round": (after.1 - before.1) / node_rounds,
        "coordinator_cpu_seconds_per_round": (after.0 - before.0) / rounds,
        "coordinator_peak_bytes": coordinator_peak, "coordinator_peak_bytes_publishing": published_peak,
        "all_peak_bytes": coordinator_peak + peaks.iter().sum::<u64>(),
        "idle_process_bytes": idle.iter().max(), "connect_seconds": connected.as_secs_f64(),
        "bytes_up_per_round": mean(&task, "bytes_up"), "bytes_down_per_round": mean(&task, "bytes_down"),
        "disk_sync_ms": sync_ms, "largest_error": error,
    });
    if arguments.json {
        println!("{report}");
    } else {
        for (key, value) in report.as_object().into_iter().flatten() {
            println!("{key:<40} {value}");
        }
    }
    Ok(())
}

/// Creates the task and waits for its end.
fn run_task(coordinator: &Coordinator, arguments: &Arguments, dir: &std::path::Path) -> anyhow::Result<Value> {
    let file = dir.join("task.toml");
    std::fs::write(
        &file,
        format!(
            "model = {MODEL:?}\n[rounds]\ncount = {}\nmin_nodes = {}\nevaluate_every = 0\n\
             [updates]\nencoding = {:?}\nzstd = {}\n[training]\nbatch_size = 65536\n",
            arguments.rounds, arguments.nodes, arguments.encoding, arguments.zstd
        ),
    )?;
    let path = file.to_str().context("the folder's name is not UTF-8")?;
    let id = coordinator.operate(&["task", "create", path])?["id"].as_str().context("a task's id")?.to_owned();
    coordinator.command(&["task", "watch", &id], true)?;
    let task = coordinator.operate(&["task", "show", &id])?;
    let aggregated = rounds(&task).iter().filter(|r| r["outcome"] == "aggregated").count() as u64;
    ensure!(aggregated == arguments.rounds, "{aggregated} of {} rounds made a version: {task}", arguments.rounds);
    Ok(task)
}

/// Compares the last version with the first plus rounds times the weighted mean, both computed here; gives the largest
/// difference. A node that counted twice, or not at all, would move the mean by about 1e-3 / nodes everywhere.
fn check(
    coordinator: &Coordinator,
    arguments: &Arguments,
    names: &[String],
    parameters: usize,
    dir: &std::path::Path,
) -> anyhow::Result<f64> {
    let mut versions = Vec::new();
    for number in [1, arguments.rounds + 1] {
        let out = dir.join(format!("version-{number}.onnx"));
        let path = out.to_str().context("the folder's name is not UTF-8")?;
        coordinator.command(&["model", "get", MODEL, "--version", &number.to_string(), "--out", path], false)?;
        versions.push(fedge_models::Model::from_path(&out)?.weights());
    }
    let [first, last] = versions.as_slice() else { anyhow::bail!("two versions") };
    let seeds: Vec<u64> = names.iter().map(|name| vector::seed(name)).collect();
    let examples: u64 = seeds.iter().map(|seed| vector::examples(*seed)).sum();
    // A sample of the parameters of a large model tells as much.
    let step = (parameters / 100_000).max(1);
    let mut largest = 0f64;
    for index in (0..parameters).step_by(step) {
        let weighted = seeds.iter().map(|s| vector::examples(*s) as f64 * f64::from(vector::delta(*s, index as u64)));
        let mean = weighted.sum::<f64>() / examples as f64;
        let (first, last) = (first.values().get(index), last.values().get(index));
        let moved = f64::from(*last.context("a value")?) - f64::from(*first.context("a value")?);
        largest = largest.max((moved - mean * arguments.rounds as f64).abs());
    }
    let rounding = 1e-8 * arguments.rounds as f64;
    // What a lossy encoding loses stays on the node for its next update: at most one update's worth is missing at the end,
    // but for top-k, where a small value may wait from the first round on.
    let lossy = match arguments.encoding.as_str() {
        "f32" => 0.0,
        "top_k" => 1e-3 * arguments.rounds as f64,
        _ => 1e-3,
    };
    ensure!(largest <= rounding + lossy, "the aggregate is off by {largest:.2e}: some node did not count exactly once");
    Ok(largest)
}

fn cpu(coordinator: &Process, nodes: &[Process]) -> anyhow::Result<(f64, f64)> {
    let nodes = nodes.iter().map(Process::cpu_seconds).sum::<anyhow::Result<f64>>()?;
    Ok((coordinator.cpu_seconds()?, nodes))
}

fn rounds(task: &Value) -> &[Value] {
    task["rounds"].as_array().map_or(&[], Vec::as_slice)
}

fn mean(task: &Value, key: &str) -> f64 {
    let all = rounds(task);
    all.iter().filter_map(|r| r[key].as_f64()).sum::<f64>() / all.len().max(1) as f64
}

/// Median time in which this disk syncs 4 KiB: no acknowledged update is faster.
fn sync_latency_ms(dir: &std::path::Path) -> anyhow::Result<f64> {
    use std::io::Write;
    let mut file = tempfile::tempfile_in(dir)?;
    let mut times: Vec<f64> = (0..51)
        .map(|_| {
            file.write_all(&[0; 4096])?;
            let started = Instant::now();
            file.sync_data()?;
            Ok(started.elapsed().as_secs_f64() * 1000.0)
        })
        .collect::<std::io::Result<_>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
}
