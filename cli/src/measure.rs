//! `fedge model bench` and `fedge model run`: a model file on this machine, outside of serving.
//! Loading, running and timing are `fedge_node::inference`'s; here flags are parsed and results printed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use fedge_models::Model;
use fedge_node::inference::{EngineReport, Runnable};

use crate::output;

/// Flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The ONNX file: float, QDQ, or ONNX Runtime's QOperator form
    file: PathBuf,
    /// Samples of each run
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Threads that one run may use
    #[arg(long, value_name = "T", default_value_t = 1)]
    threads: usize,
    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Run it in stock tract, for comparison
    #[arg(long)]
    stock: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.batch == 0 || self.threads == 0 || !(0.0..=3600.0).contains(&self.seconds) {
            bail!("--batch and --threads take at least 1, --seconds 0 to 3600");
        }
        let model = read(&self.file)?;
        let start = std::time::Instant::now();
        let runnable =
            if self.stock { Runnable::load_in_tract(&model)? } else { Runnable::load(&model, self.threads)? };
        let loaded = start.elapsed();
        drop(model);
        let time = Duration::from_secs_f64(self.seconds);
        let measured = fedge_node::inference::on_threads(self.threads, || runnable.measure(self.batch, time))??;
        let report = runnable.report();
        let peak = peak_memory();
        let (p50, p90) = (measured.quantile_ms(0.5), measured.quantile_ms(0.9));
        if self.json {
            return output::json(&serde_json::json!({
                "file": self.file, "batch": self.batch, "threads": self.threads, "runs": measured.seconds.len(),
                "p50_ms": p50, "p90_ms": p90, "cpu_ms": measured.cpu_seconds.map(|seconds| seconds * 1e3), "step_ms": measured.step_ms, "samples_per_second": measured.throughput(),
                "load_ms": loaded.as_secs_f64() * 1e3, "peak_memory_bytes": peak, "runner": report.runner,
                "kernels": report.kernels, "steps": report.steps, "weight_bytes": report.weight_bytes,
                "fallback": report.fallback.as_ref().map(|[operator, node, reason]| serde_json::json!({
                    "operator": operator, "node": node, "reason": reason,
                })),
            }));
        }
        println!("p50        {p50:.4} ms, p90 {p90:.4} ms, {} runs of {}", measured.seconds.len(), self.batch);
        println!("throughput {:.1} samples/s on {} threads", measured.throughput(), self.threads);
        println!("loading    {:.1} ms", loaded.as_secs_f64() * 1e3);
        println!("memory     {} at most", peak.map_or("unknown".into(), output::bytes));
        for (step, ms) in &measured.step_ms {
            println!("spent      {ms:.4} ms in {step}");
        }
        print_report(&report);
        Ok(())
    }
}

fn print_report(report: &EngineReport) {
    let kernels = if report.kernels.is_empty() { String::new() } else { format!(", {} kernels", report.kernels) };
    println!("runs in    {}{kernels}", report.runner);
    for (step, count) in &report.steps {
        println!("fused      {count} × {step}");
    }
    if let Some([operator, node, reason]) = &report.fallback {
        println!("not fused  {operator} {node:?} {reason}");
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The ONNX file: float, QDQ, or ONNX Runtime's QOperator form
    file: PathBuf,
    /// Preprocessed inputs, `x` of shape [n, ...], .npz
    #[arg(long, value_name = "IN.npz")]
    input: PathBuf,
    /// Where the outputs go, as `y` of shape [n, ...], .npz
    #[arg(long, value_name = "OUT.npz")]
    output: PathBuf,
    /// Run it in stock tract, for comparison
    #[arg(long)]
    stock: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Samples that run together.
const ROWS: usize = 64;

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let model = read(&self.file)?;
        let rows = fedge_node::samples::file::read_inputs(&self.input, &model.input().sample_shape())?;
        let runnable = if self.stock { Runnable::load_in_tract(&model)? } else { Runnable::load(&model, 1)? };
        let mut outputs = Vec::new();
        let rows: Vec<&[f32]> = rows.rows().collect();
        for part in rows.chunks(ROWS) {
            outputs.extend(runnable.run(&part.concat())?);
        }
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(runnable.output_shape().iter().copied()).collect();
        let array = ndarray::ArrayD::from_shape_vec(shape.clone(), outputs)?;
        let file = File::create(&self.output).with_context(|| format!("cannot write {}", self.output.display()))?;
        let mut npz = ndarray_npy::NpzWriter::new(file);
        npz.add_array("y", &array)?;
        npz.finish()?;
        let report = runnable.report();
        if self.json {
            return output::json(&serde_json::json!({
                "file": self.output, "shape": shape, "runner": report.runner, "kernels": report.kernels,
            }));
        }
        println!("{}: {shape:?}", self.output.display());
        print_report(&report);
        Ok(())
    }
}

/// Reads a model file; one in QOperator form is brought into QDQ form first.
fn read(path: &Path) -> anyhow::Result<Model> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).with_context(name)?;
    match fedge_models::quantize::to_qdq(&bytes).with_context(name)? {
        Some(qdq) => Model::from_bytes(qdq).with_context(name),
        None => Model::from_path(path).with_context(name),
    }
}

/// The most memory that this process held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
