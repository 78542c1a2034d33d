//! `fedge model train`, `evaluate` and `gradients`: training a file on this machine, by the very code that nodes run.
//! The work is in `node`; here flags become its inputs, and its results are printed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use fedge_coordinator::rounds::convert::training_plan_of;
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::Model;
use fedge_node::centralized::{self, DataOptions, HELD_IN_MEMORY, Parts};
use fedge_node::federation::convert;
use fedge_node::samples::file::BadRows;
use fedge_node::training::{self, Device, Evaluation, GradientOptions, Loss, Objective, Plan, Progress, Resources};

use crate::output;
use crate::preprocessing::PreprocessingFlags;

/// How a data file is read.
#[derive(Debug, Args)]
pub(crate) struct DataFlags {
    /// Class names in the order of the output, comma-separated [default: labels are class indices]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    labels: Vec<String>,
    #[command(flatten)]
    preprocessing: PreprocessingFlags,
    /// Where a row or picture is wrong: stop and name it, or leave it out and say so
    #[arg(long, value_enum, default_value = "stop")]
    bad_rows: BadRowsName,
}

/// What becomes of wrong rows, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum BadRowsName {
    Stop,
    Skip,
}

impl DataFlags {
    fn read(&self, model: &Model, path: &Path, objective: &Objective, held_out: f64) -> anyhow::Result<Parts> {
        let preprocessing = self.preprocessing.preprocessing();
        let bad_rows = match self.bad_rows {
            BadRowsName::Stop => BadRows::Stop,
            BadRowsName::Skip => BadRows::Skip,
        };
        let (labels, loss) = (&self.labels[..], objective.loss);
        let options = DataOptions {
            preprocessing: &preprocessing,
            labels,
            loss,
            bad_rows,
            held_out,
            held_in_memory: HELD_IN_MEMORY,
        };
        let parts = centralized::datasets(model, path, &options)?;
        for sentence in &parts.skipped.first {
            eprintln!("left out: {sentence}");
        }
        if parts.skipped.count > 0 {
            eprintln!("{}: {} rows left out", path.display(), parts.skipped.count);
        }
        Ok(parts)
    }
}

/// A share of samples that is held out.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to below 1".to_owned()),
    }
}

/// A loss on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum LossName {
    CrossEntropy,
    BinaryCrossEntropy,
    MeanSquaredError,
    MeanAbsoluteError,
    Huber,
}

impl LossName {
    fn objective(self) -> Objective {
        match self {
            LossName::CrossEntropy => Loss::CrossEntropy,
            LossName::BinaryCrossEntropy => Loss::BinaryCrossEntropy,
            LossName::MeanSquaredError => Loss::MeanSquaredError,
            LossName::MeanAbsoluteError => Loss::MeanAbsoluteError,
            LossName::Huber => Loss::Huber { delta: 1.0 },
        }
        .into()
    }
}

/// Flags of `train`.
#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The ONNX file
    file: PathBuf,
    /// Samples to train on: .csv, .parquet, .npz, IDX, a folder of IDX files, or a folder with a folder of pictures for each class
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// A task file, whose [training] table says how (docs/task.md) [default: its defaults]
    #[arg(long, value_name = "FILE")]
    task: Option<PathBuf>,
    /// Where the trained ONNX file goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Samples to evaluate on, before and after; never trained on
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Hold this share of --data out and evaluate on it: by the hash of each input, as nodes do (they hold out 0.1), so
    /// that no copy of a held-out sample is trained on
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share, conflicts_with = "test")]
    held_out: f64,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// What computes: cpu or gpu
    #[arg(long, default_value_t)]
    device: Device,
    #[command(flatten)]
    flags: DataFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Train {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let model = Model::from_path(&self.file).with_context(|| self.file.display().to_string())?;
        let device = self.device.check()?;
        let resources = Resources { threads: self.threads, device: self.device };
        let plan = plan(self.task.as_deref(), resources)?;
        let Parts { training: data, held_out, .. } =
            self.flags.read(&model, &self.data, &plan.objective, self.held_out)?;
        let test = match &self.test {
            Some(path) => Some(self.flags.read(&model, path, &plan.objective, 0.0)?.training),
            None => held_out,
        };
        let evaluate = |model: &Model| {
            test.as_ref().map(|data| training::evaluate_by(model, data, &plan.objective, self.device)).transpose()
        };
        let before = evaluate(&model)?;
        let epochs = Mutex::new(Vec::<Epoch>::new());
        let spinner = output::spinner();
        let report = |progress: Progress| {
            spinner.set_message(format!(
                "epoch {} of {}, step {} of {}, loss {:.4}",
                progress.epoch, progress.epochs, progress.step, progress.steps, progress.loss
            ));
            let mut epochs = epochs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if epochs.len() < progress.epoch as usize {
                epochs.push(Epoch::default());
            }
            if let Some(epoch) = epochs.last_mut() {
                epoch.add(progress.loss);
            }
        };
        let started = Instant::now();
        let outcome = training::train(&model, &data, &plan, &report, &AtomicBool::new(false))?;
        let seconds = started.elapsed().as_secs_f64();
        spinner.finish_and_clear();
        let trained = model.with_weights(&outcome.weights)?;
        let after = evaluate(&trained)?;
        std::fs::write(&self.out, trained.bytes()).with_context(|| format!("cannot write {}", self.out.display()))?;
        let losses: Vec<f64> =
            epochs.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).iter().map(Epoch::mean).collect();
        if self.json {
            return output::json(&serde_json::json!({
                "file": self.out, "digest": trained.digest(), "examples": outcome.examples, "steps": outcome.steps,
                "epoch_losses": losses, "seconds": seconds, "device": device,
                "test_before": before.map(evaluation_json), "test_after": after.map(evaluation_json),
            }));
        }
        for (index, loss) in losses.iter().enumerate() {
            println!("epoch {:>4}  loss {loss:.4}", index + 1);
        }
        for (when, evaluation) in [("before", before), ("after", after)] {
            if let Some(evaluation) = evaluation {
                println!("{when:<10}  {}", evaluation_line(&evaluation));
            }
        }
        let (out, examples, steps) = (self.out.display(), outcome.examples, outcome.steps);
        println!("{out}: {examples} examples, {steps} steps, {seconds:.1} s on {device}");
        Ok(())
    }
}

/// The plan of a task file, as a node would get it.
fn plan(task: Option<&Path>, resources: Resources) -> anyhow::Result<Plan> {
    let text = match task {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the task file {}", path.display()))?
        }
        None => "model = \"local\"".to_owned(),
    };
    let spec = TaskSpec::parse(&text)?;
    convert::plan(training_plan_of(&spec), &[], resources).map_err(anyhow::Error::msg)
}

/// The mean of an epoch's losses.
#[derive(Debug, Default)]
struct Epoch {
    sum: f64,
    steps: u64,
}

impl Epoch {
    fn add(&mut self, loss: f32) {
        self.sum += f64::from(loss);
        self.steps += 1;
    }

    fn mean(&self) -> f64 {
        self.sum / self.steps.max(1) as f64
    }
}

/// Flags of `evaluate`.
#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// The ONNX file
    file: PathBuf,
    /// Samples to ask about: .csv, .parquet, .npz, IDX, a folder of IDX files, or a folder with a folder of pictures for each class
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Ask about the held-out samples of --data alone: those that `train` with the same share does not train on
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    held_out: f64,
    /// What the answers are compared by
    #[arg(long, value_enum, default_value = "cross_entropy")]
    loss: LossName,
    /// Write the outputs too, as an .npz file with one array named as the graph's output; labels are not looked at then
    #[arg(long, value_name = "FILE")]
    outputs: Option<PathBuf>,
    /// What computes: cpu or gpu
    #[arg(long, default_value_t)]
    device: Device,
    #[command(flatten)]
    flags: DataFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let model = Model::from_path(&self.file).with_context(|| self.file.display().to_string())?;
        if let Some(path) = &self.outputs {
            let data = centralized::inputs(&model, &self.data, &self.flags.preprocessing.preprocessing())?;
            let (shape, values) = training::outputs(&model, &data, self.device)?;
            let array = ndarray::ArrayD::from_shape_vec(shape, values)?;
            return write(path, |npz| Ok(npz.add_array(model.output().name.as_str(), &array)?));
        }
        let objective = self.loss.objective();
        let parts = self.flags.read(&model, &self.data, &objective, self.held_out)?;
        let data = parts.held_out.unwrap_or(parts.training);
        let evaluation = training::evaluate_by(&model, &data, &objective, self.device)?;
        if self.json {
            return output::json(&evaluation_json(evaluation));
        }
        println!("{}", evaluation_line(&evaluation));
        Ok(())
    }
}

fn evaluation_json(evaluation: Evaluation) -> serde_json::Value {
    serde_json::json!({
        "examples": evaluation.examples, "loss": evaluation.loss,
        "accuracy": (evaluation.answers > 0).then(|| evaluation.accuracy()),
    })
}

fn evaluation_line(evaluation: &Evaluation) -> String {
    let accuracy = match evaluation.answers {
        0 => String::new(),
        answers => format!(", {} right", output::percent(evaluation.correct, answers)),
    };
    format!("loss {:.4}{accuracy}, {} examples", evaluation.loss, evaluation.examples)
}

/// Flags of `gradients`.
#[derive(Debug, Args)]
pub(crate) struct Gradients {
    /// The ONNX file
    file: PathBuf,
    /// The batch: .csv, .parquet, .npz (arrays x and y) or IDX
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// What is differentiated
    #[arg(long, value_enum, default_value = "cross_entropy")]
    loss: LossName,
    /// Where the gradients go: an .npz file with an array for each trainable initializer, named as it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What computes: cpu or gpu
    #[arg(long, default_value_t)]
    device: Device,
    /// Compute and write in float64; on the cpu alone
    #[arg(long)]
    double: bool,
    /// BatchNormalization uses its running statistics, and not the batch's
    #[arg(long)]
    frozen_statistics: bool,
    #[command(flatten)]
    flags: DataFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Gradients {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let model = Model::from_path(&self.file).with_context(|| self.file.display().to_string())?;
        let objective = self.loss.objective();
        let data = self.flags.read(&model, &self.data, &objective, 0.0)?.training;
        let options =
            GradientOptions { device: self.device, double: self.double, frozen_statistics: self.frozen_statistics };
        let (loss, gradients) = training::gradients_of(&model, &data, &objective, options)?;
        write(&self.out, |npz| {
            for (name, values) in &gradients {
                let shape = model.layout().parameter(name).map(|spec| spec.shape.clone()).unwrap_or_default();
                let array = ndarray::ArrayD::from_shape_vec(shape, values.clone())?;
                if self.double {
                    npz.add_array(name.as_str(), &array)?;
                } else {
                    npz.add_array(name.as_str(), &array.mapv(|value| value as f32))?;
                }
            }
            Ok(())
        })?;
        let norm = gradients.values().flatten().map(|slope| slope * slope).sum::<f64>().sqrt();
        if self.json {
            return output::json(&serde_json::json!({
                "file": self.out, "examples": data.len(), "parameters": gradients.len(), "loss": loss, "norm": norm,
            }));
        }
        println!(
            "{}: gradients of {} parameters over {} examples, loss {loss:.6}, norm {norm:.6}",
            self.out.display(),
            gradients.len(),
            data.len()
        );
        Ok(())
    }
}

/// Writes an .npz file.
fn write(
    path: &Path,
    fill: impl FnOnce(&mut ndarray_npy::NpzWriter<std::fs::File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut npz = ndarray_npy::NpzWriter::new(file);
    fill(&mut npz).with_context(|| format!("cannot write {}", path.display()))?;
    npz.finish().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
