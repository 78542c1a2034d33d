//! The flags of `fedge simulate`, their ranges, and the experiment that they describe.
//! What an experiment does is the crate `sim`'s matter; printing is `table`'s and `plot`'s.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::Model;
use fedge_node::samples::{file, held_out};
use fedge_sim::experiment::population::{Partition, Population, Recipe};
use fedge_sim::experiment::split::{Split, TestPart};
use fedge_sim::experiment::systems::Systems;
use fedge_sim::experiment::{Experiment, Trainer};

use crate::preprocessing::PreprocessingFlags;

/// Share of the data that is the test set, where nothing else says what it is.
const TEST_SHARE: f64 = 0.2;
/// Samples that a node without data says it has.
const EXAMPLES: u32 = 100;

/// Flags of `simulate`.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// The task file, as `fedge task create` takes it
    pub(super) task: PathBuf,
    /// The ONNX file that is trained
    #[arg(long, value_name = "FILE.onnx")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    machines: MachineFlags,
    /// Seed of the split and the machines; the task file has seeds of its own for selection and training
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Trainings at a time [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Nodes that evaluate each version on their held-out samples, drawn anew each time; 0: none
    #[arg(long, value_name = "N", default_value_t = 100)]
    evaluators: usize,
    /// Ask the test set after every N rounds, and after the last
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    test_every: u64,
    /// Train nothing: each node sends a vector of its own, so that the engine's own speed shows
    #[arg(long, conflicts_with_all = ["data", "test", "test_fraction", "test_last", "node_column", "assignment"])]
    pub(super) fixed_vector: bool,
    #[command(flatten)]
    pub(super) output: OutputFlags,
}

/// What is trained on, and whose it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
struct DataFlags {
    /// Labelled samples: .csv, .npz, MNIST's images file, a folder with MNIST's files, or one with a folder of pictures for each
    /// class
    #[arg(long, value_name = "DATA", required_unless_present = "fixed_vector")]
    data: Option<PathBuf>,
    /// Class labels in the order of the model's output, comma-separated, where the data names them
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    labels: Vec<String>,
    #[command(flatten)]
    preprocessing: PreprocessingFlags,
    /// A test set of its own, in the same forms
    #[arg(long, value_name = "DATA")]
    test: Option<PathBuf>,
    /// Or this share of each class of the data, 0 for none [default: 0.2]
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["test", "test_last"], value_parser = part)]
    test_fraction: Option<f64>,
    /// Or the last N samples of the data
    #[arg(long, value_name = "N", conflicts_with = "test")]
    test_last: Option<usize>,
    /// Share of each node's samples that it evaluates with instead of training on them
    #[arg(long, value_name = "SHARE", default_value_t = held_out::SHARE, value_parser = part)]
    held_out: f64,
    /// Number of nodes, 1 to 100000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = nodes)]
    nodes: usize,
    /// How samples are dealt: iid, dirichlet:ALPHA, or classes:K (K classes a node)
    #[arg(long, default_value = "iid", value_parser = split)]
    split: Split,
    /// The data's own column (.csv) or array (.npz) of this name says whose each sample is
    #[arg(long, value_name = "NAME", conflicts_with_all = ["nodes", "split"])]
    node_column: Option<String>,
    /// A file says whose each sample is, as --export-splits writes it
    #[arg(long, value_name = "FILE.json",
        conflicts_with_all = ["nodes", "split", "node_column", "test_fraction", "test_last", "held_out"])]
    assignment: Option<PathBuf>,
}

/// Machines and network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machines")]
struct MachineFlags {
    /// Median training speed, samples a second
    #[arg(long, value_name = "SAMPLES", default_value_t = Systems::default().speed)]
    speed: f64,
    /// Spread of speeds: sigma of the log-normal distribution, 0: all equal
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0)]
    speed_sigma: f64,
    /// Share of a round's nodes that manage only a random part of their epochs by the deadline
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    stragglers: f64,
    /// Share of a round's nodes that vanish during it
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    dropouts: f64,
    /// Delay of each transfer, milliseconds
    #[arg(long, value_name = "MS", default_value_t = Systems::default().latency_ms)]
    latency_ms: u64,
    /// Speed of each node's link, Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = Systems::default().bandwidth / 125_000.0)]
    bandwidth_mbps: f64,
}

/// What is written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputFlags {
    /// A line for each round
    #[arg(long, value_name = "FILE.csv")]
    pub(super) csv: Option<PathBuf>,
    /// A picture of accuracy and loss by round, .svg or .png
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    /// The last version
    #[arg(long, value_name = "FILE.onnx")]
    pub(super) out: Option<PathBuf>,
    /// Which sample belongs to which node, for other programs
    #[arg(long, value_name = "FILE.json")]
    pub(super) export_splits: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(super) json: bool,
}

impl Simulate {
    /// Reads every file and makes the experiment.
    pub(super) fn experiment(&self) -> anyhow::Result<Experiment> {
        let text = std::fs::read_to_string(&self.task)
            .with_context(|| format!("cannot read the task file {}", self.task.display()))?;
        let task = TaskSpec::parse(&text).with_context(|| self.task.display().to_string())?;
        let model = Model::from_path(&self.model).with_context(|| self.model.display().to_string())?;
        let population = match &self.data.data {
            Some(data) => Population::load(&self.recipe(data), &model)?,
            None => Population::without_data(self.data.nodes, EXAMPLES)?,
        };
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Experiment {
            task,
            model,
            population,
            systems: self.systems(),
            trainer: if self.fixed_vector { Trainer::FixedVector } else { Trainer::Real },
            evaluators: self.evaluators,
            test_every: self.test_every,
            seed: self.seed,
            threads,
        })
    }

    /// How the data was divided, in words.
    pub(super) fn partition(&self) -> String {
        match (&self.data.node_column, &self.data.assignment) {
            (Some(column), _) => format!("by the column {column:?}"),
            (None, Some(path)) => format!("by {}", path.display()),
            (None, None) if self.fixed_vector => "fixed vectors".to_owned(),
            (None, None) => self.data.split.to_string(),
        }
    }

    fn recipe(&self, data: &Path) -> Recipe {
        let flags = &self.data;
        let partition = match (&flags.node_column, &flags.assignment) {
            (Some(column), _) => Partition::Column(column.clone()),
            (None, Some(path)) => Partition::File(path.clone()),
            (None, None) => Partition::Dealt { split: flags.split, nodes: flags.nodes },
        };
        let test_part = match (flags.test_fraction, flags.test_last, &flags.test) {
            (Some(share), _, _) => TestPart::Share(share),
            (None, Some(count), _) => TestPart::Last(count),
            (None, None, Some(_)) => TestPart::None,
            // A folder with both of MNIST's parts says itself what is tested on.
            (None, None, None) if file::train_and_test(data).is_some() => TestPart::None,
            (None, None, None) => TestPart::Share(TEST_SHARE),
        };
        Recipe {
            data: data.to_owned(),
            partition,
            test: flags.test.clone(),
            test_part,
            held_out: flags.held_out,
            labels: flags.labels.clone(),
            preprocessing: flags.preprocessing.preprocessing(),
            seed: self.seed,
        }
    }

    fn systems(&self) -> Systems {
        let flags = &self.machines;
        Systems {
            speed: flags.speed,
            speed_sigma: flags.speed_sigma,
            stragglers: flags.stragglers,
            dropouts: flags.dropouts,
            latency_ms: flags.latency_ms,
            bandwidth: flags.bandwidth_mbps * 125_000.0,
            ..Systems::default()
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a share from 0 to 1".to_owned()),
    }
}

/// A share that leaves something.
fn part(text: &str) -> Result<f64, String> {
    match share(text) {
        Ok(share) if share < 1.0 => Ok(share),
        _ => Err("give a share from 0 to below 1".to_owned()),
    }
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=fedge_sim::experiment::population::MAX_NODES).contains(&count) => Ok(count),
        _ => Err("give 1 to 100000".to_owned()),
    }
}

fn split(text: &str) -> Result<Split, String> {
    text.parse().map_err(|error: fedge_sim::experiment::split::SplitError| error.to_string())
}
