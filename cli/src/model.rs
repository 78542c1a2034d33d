//! `fedge model`: check, inspect, quantize files; publish, list, fetch versions. `bench` and `run` are in `measure`.
//! What a sound model is, and how it is quantized, is the crate `models`' matter; training on this machine is `learn`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fedge_models::float::FloatRunner;
use fedge_models::{Model, ParameterClass, operators};
use fedge_proto::operators::ListModelsRequest;

use crate::operator::{OperatorFlags, refused};
use crate::preprocessing::PreprocessingFlags;
use crate::{output, process};

/// Model files and versions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Can this ONNX file be served, trained and quantized?
    Check(Check),
    /// What is in this ONNX file: signature, operators, parameters
    Inspect(Inspect),
    /// Quantize a float ONNX file to static int8 (QDQ), calibrated on samples
    #[cfg(feature = "node")]
    Quantize(Quantize),
    /// How quick is this ONNX file on this machine, and what runs it?
    #[cfg(feature = "node")]
    Bench(crate::measure::Bench),
    /// Run an ONNX file on inputs of an .npz file
    #[cfg(feature = "node")]
    Run(crate::measure::Run),
    /// Train an ONNX file on this machine, as a node would: the centralized baseline
    #[cfg(all(feature = "coordinator", feature = "node"))]
    Train(Box<crate::learn::Train>),
    /// How well does an ONNX file answer?
    #[cfg(all(feature = "coordinator", feature = "node"))]
    Evaluate(crate::learn::Evaluate),
    /// The trainer's gradients of a batch, to compare with another framework's
    #[cfg(all(feature = "coordinator", feature = "node"))]
    Gradients(crate::learn::Gradients),
    /// Give a model file to the coordinator as version 1 of a lineage
    Publish(Publish),
    /// Versions that the coordinator holds
    List(List),
    /// Fetch a version's ONNX file
    Get(Get),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        match self {
            Command::Check(check) => check.run(),
            Command::Inspect(inspect) => inspect.run(),
            #[cfg(feature = "node")]
            Command::Quantize(quantize) => quantize.run(),
            #[cfg(feature = "node")]
            Command::Bench(bench) => bench.run(),
            #[cfg(feature = "node")]
            Command::Run(run) => run.run(),
            #[cfg(all(feature = "coordinator", feature = "node"))]
            Command::Train(train) => train.run(),
            #[cfg(all(feature = "coordinator", feature = "node"))]
            Command::Evaluate(evaluate) => evaluate.run(),
            #[cfg(all(feature = "coordinator", feature = "node"))]
            Command::Gradients(gradients) => gradients.run(),
            Command::Publish(publish) => publish.run().await,
            Command::List(list) => list.run().await,
            Command::Get(get) => get.run().await,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Model> {
    Model::from_path(path).with_context(|| path.display().to_string())
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The ONNX file; external data beside it is read too
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(self) -> anyhow::Result<()> {
        let model = read(&self.file)?;
        FloatRunner::new(&model).with_context(|| format!("{} can't be served", self.file.display()))?;
        let untrainable = model.untrainable();
        let quantizable = model.opset() >= fedge_models::quantize::OLDEST_OPSET;
        if self.json {
            output::json(&serde_json::json!({
                "file": self.file, "digest": model.digest(), "served": true,
                "trainable": untrainable.is_empty(), "untrainable": untrainable, "quantizable": quantizable,
            }))?;
        } else {
            println!("served     yes");
            println!("trained    {}", if untrainable.is_empty() { "yes" } else { "no:" });
            for reason in &untrainable {
                println!("           - {reason}");
            }
            let opset = fedge_models::quantize::OLDEST_OPSET;
            println!(
                "quantized  {}",
                if quantizable { "yes".into() } else { format!("no: export it at opset {opset} or newer") }
            );
        }
        if !untrainable.is_empty() {
            bail!("{} can't be trained; the reasons are above", self.file.display());
        }
        Ok(())
    }
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The ONNX file; external data beside it is read too
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    fn run(self) -> anyhow::Result<()> {
        let model = read(&self.file)?;
        let layout = model.layout();
        let mut counts = std::collections::BTreeMap::<&str, usize>::new();
        for node in &model.graph().node {
            *counts.entry(node.op_type.as_str()).or_default() += 1;
        }
        let class = |c: ParameterClass| match c {
            ParameterClass::Trainable => "trainable",
            ParameterClass::Statistic => "statistic",
            ParameterClass::Constant => "constant",
        };
        if self.json {
            let parameters: Vec<_> = layout
                .parameters()
                .iter()
                .map(|p| serde_json::json!({ "name": p.name, "shape": p.shape, "class": class(p.class) }))
                .collect();
            let signature = |s: &fedge_models::TensorSignature| serde_json::json!({ "name": s.name, "datatype": s.element.name(), "shape": s.dims });
            return output::json(&serde_json::json!({
                "file": self.file, "bytes": model.bytes().len(), "digest": model.digest(), "opset": model.opset(),
                "input": signature(model.input()), "output": signature(model.output()), "operators": counts,
                "parameters": parameters, "layout": layout.digest(), "exchanged": layout.exchanged_len(),
            }));
        }
        let shape = |s: &fedge_models::TensorSignature| {
            let dims: Vec<String> = s.dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
            format!("{} {} [{}]", s.name, s.element.name(), dims.join(", "))
        };
        println!("digest     {}", model.digest());
        println!("size       {}, opset {}", output::bytes(model.bytes().len() as u64), model.opset());
        println!("input      {}", shape(model.input()));
        println!("output     {}", shape(model.output()));
        let counts: Vec<String> = counts
            .iter()
            .map(|(name, n)| match operators::find(name) {
                Some(operator) if operator.trainable => format!("{name} {n}"),
                _ => format!("{name} {n} (served only)"),
            })
            .collect();
        println!("operators  {}", counts.join(", "));
        println!("layout     {}", layout.digest());
        println!(
            "exchanged  {} parameters, {} an update",
            layout.exchanged_len(),
            output::bytes(layout.exchanged_len() as u64 * 4)
        );
        let mut table = output::table(&["parameter", "shape", "class"], &[]);
        for p in layout.parameters() {
            table.add_row([p.name.clone(), format!("{:?}", p.shape), class(p.class).to_owned()]);
        }
        println!("{table}");
        Ok(())
    }
}

/// Flags of `quantize`.
#[cfg(feature = "node")]
#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// The float ONNX file
    file: PathBuf,
    /// Samples to calibrate on, raw as the node would get them: .csv, .parquet, .npz, IDX or a folder of pictures
    #[arg(long, value_name = "FILE")]
    samples: PathBuf,
    /// Where the int8 file goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    preprocessing: PreprocessingFlags,
    /// Calibrate on the first N samples
    #[arg(long, value_name = "N", default_value_t = 512)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "node")]
impl Quantize {
    fn run(self) -> anyhow::Result<()> {
        use fedge_models::quantize::{Options, quantize};
        let model = read(&self.file)?;
        let shape = model.input().sample_shape();
        let preprocessing = self.preprocessing.preprocessing();
        preprocessing.validate(&shape)?;
        let rows = fedge_node::samples::file::read_inputs(&self.samples, &shape)?;
        let count = rows.len().min(self.limit);
        let mut inputs: Vec<f32> = rows.rows().take(count).flatten().copied().collect();
        preprocessing.apply(&mut inputs, &shape);
        let batch: Vec<usize> = std::iter::once(count).chain(shape).collect();
        let samples = ndarray::ArrayViewD::from_shape(batch, &inputs)?;
        let quantized = quantize(&model, samples, &Options::default())?;
        std::fs::write(&self.out, &quantized.bytes).with_context(|| format!("cannot write {}", self.out.display()))?;
        if self.json {
            return output::json(&serde_json::json!({
                "file": self.out, "bytes": quantized.bytes.len(), "samples": count,
                "tensors": quantized.tensors, "skipped": quantized.skipped,
            }));
        }
        let mut table =
            output::table(&["tensor", "role", "least", "greatest", "scale", "zero", "channels"], &[2, 3, 4, 5, 6]);
        for t in &quantized.tensors {
            table.add_row([
                t.name.clone(),
                format!("{:?}", t.role).to_lowercase(),
                format!("{:.4}", t.min),
                format!("{:.4}", t.max),
                format!("{:.3e}", t.scale),
                t.zero_point.to_string(),
                t.channels.to_string(),
            ]);
        }
        println!("{table}");
        for s in &quantized.skipped {
            println!("in float: {} {}: {}", s.operator, s.node, s.reason);
        }
        let (from, to) = (model.bytes().len() as u64, quantized.bytes.len() as u64);
        println!(
            "{}: {} (float {}), calibrated on {count} samples",
            self.out.display(),
            output::bytes(to),
            output::bytes(from)
        );
        Ok(())
    }
}

/// Flags of `publish`.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The ONNX file; external data beside it is folded in
    file: PathBuf,
    /// Name of the lineage, [a-z0-9._-]
    #[arg(long)]
    name: String,
    /// Class labels in the order of the output, comma-separated
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', conflicts_with = "labels_file")]
    labels: Vec<String>,
    /// Class labels, one a line
    #[arg(long, value_name = "FILE")]
    labels_file: Option<PathBuf>,
    /// Put a low-rank adapter (LoRA) beside each weight of a MatMul or Gemm whose name fits one of these patterns; a task
    /// trains the adapters alone with trained = ["*.lora_?"] and frozen_statistics = true
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    lora: Vec<String>,
    /// Rank of the adapters
    #[arg(long, value_name = "R", default_value_t = 8, requires = "lora")]
    lora_rank: usize,
    /// Seed of their first values
    #[arg(long, value_name = "N", default_value_t = 0, requires = "lora")]
    lora_seed: u64,
    #[command(flatten)]
    preprocessing: PreprocessingFlags,
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Publish {
    async fn run(self) -> anyhow::Result<()> {
        let (mut model, mut adapted) = (read(&self.file)?, Vec::new());
        if !self.lora.is_empty() {
            let with = fedge_models::lora::adapt(&model, &self.lora, self.lora_rank, self.lora_seed)?;
            (model, adapted) = (with.model, with.weights);
        }
        let labels = match &self.labels_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
            }
            None => self.labels,
        };
        let operator = self.operator.connect().await?;
        let version = operator.publish(&self.name, &model, labels, &self.preprocessing.preprocessing()).await?;
        if self.json {
            return output::json(&serde_json::json!({
                "name": version.name, "number": version.number, "digest": model.digest(), "bytes": version.size_bytes,
                "adapted": adapted,
            }));
        }
        if !adapted.is_empty() {
            let layout = model.layout();
            let is_part = |name: &str| name.ends_with(".lora_A") || name.ends_with(".lora_B");
            let parts = layout.exchanged().filter(|(spec, _)| is_part(&spec.name));
            let own: usize = parts.map(|(_, range)| range.len()).sum();
            println!(
                "Adapters of rank {} beside {}: {own} of {} values. Train them alone with \
                 trained = [\"*.lora_?\"] and frozen_statistics = true.",
                self.lora_rank,
                adapted.join(", "),
                layout.exchanged_len()
            );
        }
        println!("Published {} version {} ({}).", version.name, version.number, output::short_digest(&version.digest));
        Ok(())
    }
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let operator = self.operator.connect().await?;
        let reply = operator.client().list_models(ListModelsRequest {}).await.map_err(refused)?.into_inner();
        let mut rows = Vec::new();
        let mut table = output::table(&["model", "version", "digest", "size", "from", "made"], &[1, 3]);
        for summary in reply.models {
            let Some(version) = summary.version else { continue };
            let from = match summary.task_id.as_str() {
                "" => "published".to_owned(),
                task => format!("{task}, round {}", summary.round),
            };
            let manifest: serde_json::Value = serde_json::from_str(&version.manifest).unwrap_or_default();
            rows.push(serde_json::json!({
                "manifest": manifest, "bytes": version.size_bytes, "created_ms": summary.created_ms,
            }));
            table.add_row([
                version.name,
                version.number.to_string(),
                output::short_digest(&version.digest),
                output::bytes(version.size_bytes),
                from,
                output::ago(summary.created_ms),
            ]);
        }
        if self.json {
            output::json(&rows)
        } else {
            println!("{table}");
            Ok(())
        }
    }
}

/// Flags of `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Name of the lineage
    name: String,
    /// Version [default: the newest]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    version: u64,
    /// Where the ONNX file goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    operator: OperatorFlags,
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let (manifest, model) = self.operator.connect().await?.download(&self.name, self.version).await?;
        std::fs::write(&self.out, model.bytes()).with_context(|| format!("cannot write {}", self.out.display()))?;
        println!("{} version {} is in {}.", manifest.name, manifest.number, self.out.display());
        Ok(())
    }
}
