//! The nodes of a simulation and their samples: one data set in memory, and for each node the rows that are its own.
//! How rows are dealt is in `split`; how fast a node is, in `systems`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fedge_models::{Model, Preprocessing};
use fedge_node::samples::file::{self, FileError, LabelledRows, ReadOptions};
use fedge_node::samples::held_out;
use fedge_node::training::{Dataset, TrainingError};

use super::random::{Purpose, stream};
use super::split::{self, Split, SplitError, TestPart};
use super::splits_file::{SplitsError, SplitsFile};

/// Most nodes of a simulation.
pub const MAX_NODES: usize = 100_000;

/// Where the samples come from and whose they become.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Labelled samples, as [`file::read`] takes them. A folder with MNIST's four files gives the test set too.
    pub data: PathBuf,
    /// Whose they are.
    pub partition: Partition,
    /// A test set of its own.
    pub test: Option<PathBuf>,
    /// Or a part of `data`.
    pub test_part: TestPart,
    /// The share of each node's samples that it does not train on but evaluates with, `0.0..1.0`; chosen by the hash of
    /// the input, as nodes do.
    pub held_out: f64,
    /// Names of the classes, in the order of the model's output; empty where labels are indices.
    pub labels: Vec<String>,
    /// What is done to raw samples.
    pub preprocessing: Preprocessing,
    /// Seed of the test part and of the split.
    pub seed: u64,
}

/// Whose the samples are.
#[derive(Debug, Clone, PartialEq)]
pub enum Partition {
    /// Dealt to `nodes` nodes, `1..=`[`MAX_NODES`].
    Dealt {
        /// How.
        split: Split,
        /// To how many.
        nodes: usize,
    },
    /// The CSV column or .npz array of this name says it.
    Column(String),
    /// A file that `--export-splits` wrote, or one of its form, says it; also which rows are held out and tested on.
    File(PathBuf),
}

/// A node and its rows of the data, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name, unlike all others.
    pub name: String,
    /// Rows that it trains on; without any it never takes part.
    pub train: Arc<[u32]>,
    /// Rows that it evaluates with.
    pub held_out: Arc<[u32]>,
}

/// All nodes, and the samples that they share.
#[derive(Debug, Clone)]
pub struct Population {
    /// By name.
    pub nodes: Vec<Node>,
    /// Every sample, preprocessed; nodes' rows count in it. `None` where no node trains on samples.
    pub data: Option<Dataset>,
    /// What global models are tested on.
    pub test: Option<Dataset>,
    /// The test part's rows of `data`; empty where the test set is a file of its own.
    pub test_rows: Vec<u32>,
}

/// Why there is no population.
#[derive(Debug, thiserror::Error)]
pub enum PopulationError {
    /// A file of samples.
    #[error(transparent)]
    File(#[from] FileError),
    /// The split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The file of splits.
    #[error(transparent)]
    Splits(#[from] SplitsError),
    /// The samples do not fit training.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The preprocessing does not fit the model.
    #[error(transparent)]
    Model(#[from] fedge_models::ModelError),
    /// Too many nodes or none.
    #[error("{0} nodes: a simulation has 1 to 100000")]
    Nodes(usize),
    /// Test data twice.
    #[error("{} holds a test set of its own; leave --test, --test-fraction and --test-last out", .0.display())]
    TwoTests(PathBuf),
}

impl Population {
    /// Reads the data and makes every node.
    ///
    /// # Errors
    /// [`PopulationError`] names the file and row, or the flag.
    pub fn load(recipe: &Recipe, model: &Model) -> Result<Population, PopulationError> {
        let (data, test) = sources(recipe)?;
        let shape = model.input().sample_shape();
        let reading = ReadOptions::strict(&shape);
        let mut rows = match &recipe.partition {
            Partition::Column(name) => file::read_with_nodes(&data, name, &reading)?,
            Partition::Dealt { .. } | Partition::File(_) => file::read(&data, &reading)?,
        };
        recipe.preprocessing.validate(&shape)?;
        let labels = class_indices(&mut rows, recipe, model)?;
        let (mut nodes, test_rows) = match &recipe.partition {
            Partition::File(path) => SplitsFile::read(path)?.check(path, labels.len())?,
            Partition::Dealt { split, nodes } => dealt(recipe, &rows, &labels, *split, *nodes)?,
            Partition::Column(_) => gathered(recipe, &rows, &labels)?,
        };
        if !(1..=MAX_NODES).contains(&nodes.len()) {
            return Err(PopulationError::Nodes(nodes.len()));
        }
        // The order of names is the order in which the coordinator sees nodes.
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let data = dataset(rows, labels, recipe, model)?;
        let test = match test {
            Some(path) => {
                let mut rows = file::read(&path, &reading)?;
                let labels = class_indices(&mut rows, recipe, model)?;
                Some(dataset(rows, labels, recipe, model)?)
            }
            None if test_rows.is_empty() => None,
            None => Some(data.select(test_rows.clone().into())?),
        };
        Ok(Population { nodes, data: Some(data), test, test_rows })
    }

    /// Nodes without samples: each says that it has `examples`, and only a trainer that needs none can train them.
    ///
    /// # Errors
    /// [`PopulationError::Nodes`].
    pub fn without_data(nodes: usize, examples: u32) -> Result<Population, PopulationError> {
        if !(1..=MAX_NODES).contains(&nodes) {
            return Err(PopulationError::Nodes(nodes));
        }
        let rows: Arc<[u32]> = (0..examples).collect();
        let node = |index| Node { name: name(index), train: rows.clone(), held_out: Arc::from([]) };
        Ok(Population { nodes: (0..nodes).map(node).collect(), data: None, test: None, test_rows: Vec::new() })
    }

    /// Number of nodes that have samples to train on.
    pub fn trainable(&self) -> usize {
        self.nodes.iter().filter(|node| !node.train.is_empty()).count()
    }
}

/// The files to read: the data, and the test set where it has one of its own.
fn sources(recipe: &Recipe) -> Result<(PathBuf, Option<PathBuf>), PopulationError> {
    let own_test = if recipe.data.is_dir() { file::train_and_test(&recipe.data) } else { None };
    match own_test {
        None => Ok((recipe.data.clone(), recipe.test.clone())),
        Some(_) if recipe.test.is_some() || recipe.test_part != TestPart::None => {
            Err(PopulationError::TwoTests(recipe.data.clone()))
        }
        Some((train, test)) => Ok((train, Some(test))),
    }
}

fn class_indices(rows: &mut LabelledRows, recipe: &Recipe, model: &Model) -> Result<Vec<u32>, PopulationError> {
    // Where the file leaves the width of the output open, training itself checks the labels.
    let width = model.output().dims.last().copied().flatten().unwrap_or(u32::MAX as usize);
    Ok(rows.class_indices(model.input().sample_len(), width, &recipe.labels)?)
}

fn dataset(rows: LabelledRows, labels: Vec<u32>, recipe: &Recipe, model: &Model) -> Result<Dataset, PopulationError> {
    let shape = model.input().sample_shape();
    let mut inputs = rows.inputs;
    recipe.preprocessing.apply(&mut inputs, &shape);
    Ok(Dataset::new(inputs, labels, shape)?)
}

fn dealt(
    recipe: &Recipe,
    rows: &LabelledRows,
    labels: &[u32],
    split: Split,
    nodes: usize,
) -> Result<(Vec<Node>, Vec<u32>), PopulationError> {
    if !(1..=MAX_NODES).contains(&nodes) {
        return Err(PopulationError::Nodes(nodes));
    }
    let (train, test) = split::take_test(labels, recipe.test_part, &mut stream(recipe.seed, Purpose::Test, 0, 0))?;
    let parts = split::deal(labels, &train, nodes, split, &mut stream(recipe.seed, Purpose::Split, 0, 0))?;
    let held = held_out_rows(rows, recipe.held_out);
    let nodes = parts.into_iter().enumerate().map(|(index, part)| node(name(index), part, &held)).collect();
    Ok((nodes, test))
}

fn gathered(recipe: &Recipe, rows: &LabelledRows, labels: &[u32]) -> Result<(Vec<Node>, Vec<u32>), PopulationError> {
    let (train, test) = split::take_test(labels, recipe.test_part, &mut stream(recipe.seed, Purpose::Test, 0, 0))?;
    let mut parts: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for row in train {
        if let Some(owner) = rows.nodes.get(row as usize) {
            parts.entry(owner).or_default().push(row);
        }
    }
    let held = held_out_rows(rows, recipe.held_out);
    Ok((parts.into_iter().map(|(owner, part)| node(owner.to_owned(), part, &held)).collect(), test))
}

/// Whether each row is held out, by its raw values; empty where none is.
fn held_out_rows(rows: &LabelledRows, share: f64) -> Vec<bool> {
    if share <= 0.0 { Vec::new() } else { rows.rows().map(|input| held_out::is_held_out(input, share)).collect() }
}

fn node(name: String, part: Vec<u32>, held_out: &[bool]) -> Node {
    let is_held_out = |row: &u32| held_out.get(*row as usize) == Some(&true);
    let (held_out, train): (Vec<u32>, Vec<u32>) = part.into_iter().partition(is_held_out);
    Node { name, train: train.into(), held_out: held_out.into() }
}

/// `node-00042`: as many digits for all, so that names sort as numbers do.
fn name(index: usize) -> String {
    format!("node-{index:05}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    fn zoo(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo").join(name)
    }

    fn model() -> Model {
        Model::from_path(&zoo("digits_cnn.onnx")).unwrap()
    }

    fn recipe(partition: Partition) -> Recipe {
        Recipe {
            data: zoo("digits.csv"),
            partition,
            test: None,
            test_part: TestPart::Share(0.2),
            held_out: 0.1,
            labels: Vec::new(),
            preprocessing: Preprocessing { scale: 0.0625, ..Preprocessing::default() },
            seed: 1,
        }
    }

    #[test]
    fn every_digit_is_trained_on_held_out_or_tested_on_and_only_once() {
        let population =
            Population::load(&recipe(Partition::Dealt { split: Split::Dirichlet(0.5), nodes: 10 }), &model()).unwrap();
        let mut all = population.test_rows.clone();
        for node in &population.nodes {
            all.extend(node.train.iter().chain(node.held_out.iter()));
        }
        let held_out: usize = population.nodes.iter().map(|node| node.held_out.len()).sum();
        assert!((100..190).contains(&held_out), "about a tenth of 1438: {held_out}");
        all.sort_unstable();
        assert_eq!(all, (0..1797).collect::<Vec<_>>());
        assert_eq!(population.test.unwrap().len(), population.test_rows.len());
    }

    #[test]
    fn a_column_of_the_data_names_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        let digits = std::fs::read_to_string(zoo("digits.csv")).unwrap();
        let owned = digits.lines().enumerate().map(|(row, line)| match row {
            0 => format!("writer,{line}\n"),
            _ => format!("{},{line}\n", ["zoe", "ada", "kim"][row % 3]),
        });
        std::fs::write(&path, owned.collect::<String>()).unwrap();
        let recipe = Recipe { data: path, ..recipe(Partition::Column("writer".into())) };
        let population = Population::load(&recipe, &model()).unwrap();
        let names: Vec<&str> = population.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["ada", "kim", "zoe"]);
        assert!(population.nodes[0].train.iter().all(|row| row % 3 == 0));
    }

    #[test]
    fn data_of_another_shape_and_too_many_nodes_are_refused() {
        let iid = |nodes| recipe(Partition::Dealt { split: Split::Iid, nodes });
        let error = Population::load(&iid(0), &model()).unwrap_err().to_string();
        assert!(error.contains("0 nodes"), "{error}");
        assert!(Population::load(&iid(MAX_NODES + 1), &model()).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        std::fs::write(&path, "1,2,3\n").unwrap();
        let error = Population::load(&Recipe { data: path, ..iid(2) }, &model()).unwrap_err().to_string();
        assert!(error.contains("rows.csv") && error.contains("takes 64"), "{error}");
    }

    #[test]
    fn more_nodes_than_samples_leave_some_without() {
        let population =
            Population::load(&recipe(Partition::Dealt { split: Split::Iid, nodes: 5000 }), &model()).unwrap();
        assert_eq!(population.nodes.len(), 5000);
        assert!(population.trainable() < 1500);
    }
}
