//! Files of samples: CSV, .npz and IDX into rows of raw float32 values and their labels, read as hostile input.
//! The formats are in the submodules; what a label means to a model is resolved here, storing is `store`'s.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

mod csv;
mod gzip;
mod idx;
pub mod image;
mod npy;
mod npz;
mod plain;
mod zip;

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most values that one file may hold: 256 MiB as float32.
pub const MAX_VALUES: usize = 64 << 20;

/// A label as the file gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RowLabel {
    /// Text: the name of a class or, where no class has that name, a class index.
    Text(String),
    /// A class index.
    Index(u32),
}

/// What the outputs for a file's rows should be, where they are not one label a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowTargets {
    /// The rows' own labels say it.
    Labels,
    /// Class indices, `shape`'s product of them a row.
    Classes {
        /// All rows' indices, row after row.
        labels: Vec<u32>,
        /// Shape of one row's labels.
        shape: Vec<usize>,
    },
    /// Numbers, `shape`'s product of them a row; finite.
    Values {
        /// All rows' numbers, row after row.
        values: Vec<f32>,
        /// Shape of one row's numbers.
        shape: Vec<usize>,
    },
}

/// The rows of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRows {
    /// All rows' raw values, row after row: `[rows * sample_len]`, all finite.
    pub inputs: Vec<f32>,
    /// Number of values in a row, at least 1.
    pub sample_len: usize,
    /// One label a row, or none at all where [`read_inputs`] met a file without labels.
    pub labels: Vec<RowLabel>,
    /// Whose each row is, one a row, where [`read_with_nodes`] was asked for it; else none.
    pub nodes: Vec<String>,
    source: PathBuf,
    /// Position in the file of the first row, from 1.
    first_row: usize,
}

/// A file of samples that was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file could not be read.
    #[error("{}: cannot read the file: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The file as a whole is wrong.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// One row is wrong.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row, from 1; in a CSV file a header counts.
        row: usize,
        /// What is wrong and what to do.
        problem: String,
    },
    /// One value is wrong.
    #[error("{}: row {row}, column {column}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which row, from 1; in a CSV file a header counts.
        row: usize,
        /// Which column, from 1, and its name where it has one.
        column: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Reads labelled rows, by the file name's ending.
///
/// - `.csv`: comma-separated, an optional header; the column named `label`, else the last one, is the label and all
///   others are values.
/// - `.npz`: an array `x`, `inputs` or `data` of shape `[rows, ...]` and an array `y`, `labels` or `label` of shape
///   `[rows]` with integers or text.
/// - `...images...-ubyte` or `.idx`, plain or with `.gz` behind: MNIST's format; the labels are in the file beside it
///   that has `labels` and `idx1` in its name instead of `images` and `idx3`. A folder that holds one such pair is
///   read as well.
pub fn read(path: &Path) -> Result<LabelledRows, FileError> {
    match format(path)? {
        Format::Csv => csv::read(path, read_bytes(path)?, csv::Labels::Required, None),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, None),
        Format::Npy | Format::Json => Err(FileError::File {
            path: path.to_owned(),
            problem: "holds inputs without labels; give labelled samples as .csv, .npz or IDX files".to_owned(),
        }),
        Format::Idx => idx::read(path),
        Format::Folder => idx::read(&idx::only_images(path)?),
    }
}

/// As [`read`], and whose each row is: by the CSV column or the .npz array of this name, which is no value then.
/// Data that was gathered by many hands comes so.
pub fn read_with_nodes(path: &Path, column: &str) -> Result<LabelledRows, FileError> {
    match format(path)? {
        Format::Csv => csv::read(path, read_bytes(path)?, csv::Labels::Required, Some(column)),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, Some(column)),
        Format::Npy | Format::Json | Format::Idx | Format::Folder => Err(FileError::File {
            path: path.to_owned(),
            problem: format!("such files have no column {column:?}; say whose each row is in another way"),
        }),
    }
}

/// As [`read`], with targets of any shape: an .npz file's labels may have the shape `[rows, ...]`. `numbers`: targets are
/// numbers to come close to, floats of the .npz file or the text of a CSV file's label column.
pub fn read_with_targets(path: &Path, numbers: bool) -> Result<(LabelledRows, RowTargets), FileError> {
    if matches!(format(path)?, Format::Npz) {
        return npz::read_targets(path, &read_bytes(path)?, numbers);
    }
    let rows = read(path)?;
    if !numbers {
        return Ok((rows, RowTargets::Labels));
    }
    let number = |(row, label): (usize, &RowLabel)| match label {
        RowLabel::Index(index) => Ok(*index as f32),
        RowLabel::Text(text) => {
            text.parse().ok().filter(|value: &f32| value.is_finite()).ok_or_else(|| FileError::Row {
                path: path.to_owned(),
                row: rows.first_row + row,
                problem: format!("the target {} is no finite number", show(label)),
            })
        }
    };
    let values = rows.labels.iter().enumerate().map(number).collect::<Result<_, _>>()?;
    Ok((rows, RowTargets::Values { values, shape: Vec::new() }))
}

/// Reads rows of `sample_len` values that may lack labels (to ask a model, or to calibrate on): a CSV row is labelled
/// where it has a column named `label` or one column more than `sample_len`. `.npy` and `.json` hold inputs alone.
pub fn read_inputs(path: &Path, sample_len: usize) -> Result<LabelledRows, FileError> {
    let rows = match format(path)? {
        Format::Csv => csv::read(path, read_bytes(path)?, csv::Labels::Optional { sample_len }, None)?,
        Format::Npz => npz::read(path, &read_bytes(path)?, false, None)?,
        Format::Npy => plain::read_npy(path, &read_bytes(path)?, sample_len)?,
        Format::Json => plain::read_json(path, &read_bytes(path)?, sample_len)?,
        Format::Idx => idx::read_images(path)?,
        Format::Folder => idx::read_images(&idx::only_images(path)?)?,
    };
    rows.check_width(sample_len)?;
    Ok(rows)
}

/// The images of the training part and of the test part in a folder that holds both, named as MNIST's are
/// (`train-images...` and `t10k-images...` or `test-images...`); `None` where it is no such folder.
pub fn train_and_test(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    idx::train_and_test(folder)
}

impl LabelledRows {
    /// Rows without labels yet.
    fn new(source: &Path, inputs: Vec<f32>, sample_len: usize) -> LabelledRows {
        let (labels, nodes) = (Vec::new(), Vec::new());
        LabelledRows { inputs, sample_len, labels, nodes, source: source.to_owned(), first_row: 1 }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.inputs.len() / self.sample_len.max(1)
    }

    /// Whether there are none; a file without rows is refused, so never after reading.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// The values of each row.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.inputs.chunks_exact(self.sample_len.max(1))
    }

    /// Class indices of all rows for a model with samples of `sample_len` values and these class names, of which there
    /// are `classes` (names may be empty: then labels are indices). Errors name the row and the known labels.
    pub fn class_indices(&self, sample_len: usize, classes: usize, names: &[String]) -> Result<Vec<u32>, FileError> {
        self.check_width(sample_len)?;
        let by_name: HashMap<&str, usize> =
            names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let resolve = |(row, label): (usize, &RowLabel)| {
            let index = match label {
                RowLabel::Index(index) => Some(*index as usize),
                RowLabel::Text(text) => by_name.get(text.as_str()).copied().or_else(|| index_in(text)),
            };
            match index.filter(|&index| index < classes).and_then(|index| u32::try_from(index).ok()) {
                Some(index) => Ok(index),
                None => Err(FileError::Row {
                    path: self.source.clone(),
                    row: self.first_row + row,
                    problem: format!("unknown label {}; {}", show(label), known_labels(classes, names)),
                }),
            }
        };
        self.labels.iter().enumerate().map(resolve).collect()
    }

    /// The rows with their class indices, as `SampleStore::add_many` takes them; errors as
    /// [`LabelledRows::class_indices`].
    pub fn into_samples(
        self,
        sample_len: usize,
        classes: usize,
        names: &[String],
    ) -> Result<Vec<(Vec<f32>, u32)>, FileError> {
        let labels = self.class_indices(sample_len, classes, names)?;
        Ok(self.rows().map(<[f32]>::to_vec).zip(labels).collect())
    }

    fn check_width(&self, sample_len: usize) -> Result<(), FileError> {
        if self.sample_len == sample_len {
            return Ok(());
        }
        Err(FileError::File {
            path: self.source.clone(),
            problem: format!(
                "rows have {} values, but the model takes {sample_len}; give one column a value and one for the label",
                self.sample_len
            ),
        })
    }
}

/// What labels a model knows, for messages: "known labels are ...".
pub(crate) fn known_labels(classes: usize, names: &[String]) -> String {
    const SHOWN: usize = 20;
    let last = classes.saturating_sub(1);
    if names.is_empty() {
        return format!("known labels are the class indices 0 to {last}");
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("known labels are {}{more}, or the class indices 0 to {last}", shown.join(", "))
}

/// A class index written as text: `7`, or `7.0` as spreadsheets do.
fn index_in(text: &str) -> Option<usize> {
    let digits = text.strip_suffix(".0").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn show(label: &RowLabel) -> String {
    match label {
        RowLabel::Index(index) => index.to_string(),
        RowLabel::Text(text) => format!("{:?}", shorten(text)),
    }
}

/// Text from a file, cut to a length that fits a message.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("...".chars()).collect()
}

/// The name of a row's node, as the file gives it.
fn node_name(text: &str) -> Result<String, &'static str> {
    const LONGEST: usize = 64;
    match text.chars().count() {
        0 => Err("the node's name is missing; say whose the row is"),
        1..=LONGEST if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("the node's name has more than 64 characters or control characters; give a short name"),
    }
}

enum Format {
    Csv,
    Npz,
    Npy,
    Json,
    Idx,
    Folder,
}

fn format(path: &Path) -> Result<Format, FileError> {
    if path.is_dir() {
        return Ok(Format::Folder);
    }
    match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => Ok(Format::Csv),
        Some("npz") => Ok(Format::Npz),
        Some("npy") => Ok(Format::Npy),
        Some("json") => Ok(Format::Json),
        _ if idx::is_named_so(path) => Ok(Format::Idx),
        _ => Err(FileError::File {
            path: path.to_owned(),
            problem:
                "samples are read from .csv, .npz and IDX files (...-ubyte, .idx, or these with .gz); give the file \
                      one of these endings"
                    .to_owned(),
        }),
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file; give a .csv, .npz or IDX file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(format!("is larger than {MAX_FILE_BYTES} bytes; split it into several files")));
    }
    if bytes.is_empty() {
        return Err(refused("is empty; it needs at least one row".to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
