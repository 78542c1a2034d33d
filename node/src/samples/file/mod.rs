//! Files of samples: CSV, .npz, IDX and pictures into rows of raw float32 values and their labels, read as hostile input.
//! The formats are in the submodules, what a label means to a model in `rows`; storing is `store`'s.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

mod csv;
mod folder;
mod gzip;
mod idx;
pub mod image;
mod npy;
mod npz;
mod plain;
mod rows;
mod zip;

use folder::Folder;
pub(crate) use rows::known_labels;
pub use rows::{BadRows, LabelledRow, LabelledRows, RowLabel, RowTargets, Skipped};
use rows::{node_name, shorten, show};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most values that one file may hold: 256 MiB as float32.
pub const MAX_VALUES: usize = 64 << 20;

/// How a file is read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions<'a> {
    /// Shape of the model's samples, without the batch: what pictures become. Rows of numbers are not checked against it.
    pub sample_shape: &'a [usize],
    /// What becomes of rows that are wrong.
    pub bad_rows: BadRows,
}

impl ReadOptions<'_> {
    /// For a model with samples of this shape; the first row that is wrong is an error.
    pub fn strict(sample_shape: &[usize]) -> ReadOptions<'_> {
        ReadOptions { sample_shape, bad_rows: BadRows::Stop }
    }
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
/// - A folder of folders of `.png` and `.jpg` pictures: each folder is a class of its name.
///
/// # Errors
/// [`FileError`] names the file, and the row or picture.
pub fn read(path: &Path, options: &ReadOptions<'_>) -> Result<LabelledRows, FileError> {
    match format(path)? {
        Format::Csv => csv::read(path, read_bytes(path)?, csv::Labels::Required, None, options.bad_rows),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, None, options.bad_rows),
        Format::Npy | Format::Json => Err(unlabelled(path, "holds inputs without labels")),
        Format::Picture => Err(unlabelled(path, "is one picture without a label")),
        Format::Idx => idx::read(path, options.bad_rows),
        Format::Folder => match folder::look(path, options.bad_rows)? {
            Folder::Idx(images) => idx::read(&images, options.bad_rows),
            Folder::Classes(classes) => folder::read(path, classes, options),
            Folder::Pictures(_) => Err(unlabelled(path, "holds pictures without classes")),
        },
    }
}

/// Whether [`read`] could read a file, as far as can be seen before its model is known: pictures are not decoded yet.
///
/// # Errors
/// As [`read`].
pub fn check(path: &Path, bad_rows: BadRows) -> Result<(), FileError> {
    if matches!(format(path)?, Format::Folder) && !matches!(folder::look(path, bad_rows)?, Folder::Idx(_)) {
        return Ok(());
    }
    read(path, &ReadOptions { sample_shape: &[], bad_rows }).map(drop)
}

/// As [`read`], and whose each row is: by the CSV column or the .npz array of this name, which is no value then.
/// Data that was gathered by many hands comes so.
///
/// # Errors
/// As [`read`].
pub fn read_with_nodes(path: &Path, column: &str, options: &ReadOptions<'_>) -> Result<LabelledRows, FileError> {
    match format(path)? {
        Format::Csv => csv::read(path, read_bytes(path)?, csv::Labels::Required, Some(column), options.bad_rows),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, Some(column), options.bad_rows),
        Format::Npy | Format::Json | Format::Idx | Format::Folder | Format::Picture => Err(FileError::File {
            path: path.to_owned(),
            problem: format!("such files have no column {column:?}; say whose each row is in another way"),
        }),
    }
}

/// As [`read`], with targets of any shape: an .npz file's labels may have the shape `[rows, ...]`. `numbers`: targets are
/// numbers to come close to, floats of the .npz file or the text of a CSV file's label column.
///
/// # Errors
/// As [`read`]. Targets of any shape know no rows to leave out: there the first that is wrong is an error.
pub fn read_with_targets(
    path: &Path,
    numbers: bool,
    options: &ReadOptions<'_>,
) -> Result<(LabelledRows, RowTargets), FileError> {
    if matches!(format(path)?, Format::Npz) {
        return npz::read_targets(path, &read_bytes(path)?, numbers, options.bad_rows);
    }
    let mut rows = read(path, options)?;
    if !numbers {
        return Ok((rows, RowTargets::Labels));
    }
    let number = |label: &RowLabel| match label {
        RowLabel::Index(index) => Some(*index as f32),
        RowLabel::Text(text) => text.parse().ok().filter(|value: &f32| value.is_finite()),
    };
    let values: Vec<Option<f32>> = rows.labels.iter().map(number).collect();
    let problem = |row: usize| format!("the target {} is no finite number", show(&rows.labels[row]));
    let bad = (0..values.len()).filter(|&row| values[row].is_none());
    let bad: Vec<_> = bad.map(|row| (row, rows.row_error(row, problem(row)))).collect();
    rows.leave_out(bad)?;
    Ok((rows, RowTargets::Values { values: values.into_iter().flatten().collect(), shape: Vec::new() }))
}

/// Reads rows for samples of this shape that may lack labels (to ask a model, or to calibrate on): a CSV row is labelled
/// where it has a column named `label` or one column more than a sample has values. `.npy`, `.json`, a picture and a
/// folder of pictures hold inputs alone.
///
/// # Errors
/// [`FileError`] names the file, and the row or picture.
pub fn read_inputs(path: &Path, sample_shape: &[usize]) -> Result<LabelledRows, FileError> {
    let options = ReadOptions::strict(sample_shape);
    let sample_len = sample_shape.iter().product();
    let rows = match format(path)? {
        Format::Csv => {
            csv::read(path, read_bytes(path)?, csv::Labels::Optional { sample_len }, None, options.bad_rows)?
        }
        Format::Npz => npz::read(path, &read_bytes(path)?, false, None, options.bad_rows)?,
        Format::Npy => plain::read_npy(path, &read_bytes(path)?, sample_len)?,
        Format::Json => plain::read_json(path, &read_bytes(path)?, sample_len)?,
        Format::Picture => image::read(path, sample_shape)?,
        Format::Idx => idx::read_images(path)?,
        Format::Folder => match folder::look(path, options.bad_rows)? {
            Folder::Idx(images) => idx::read_images(&images)?,
            Folder::Classes(classes) => folder::read(path, classes, &options)?,
            Folder::Pictures(pictures) => folder::read_inputs(path, pictures, &options)?,
        },
    };
    rows.check_width(sample_len)?;
    Ok(rows)
}

/// The images of the training part and of the test part in a folder that holds both, named as MNIST's are
/// (`train-images...` and `t10k-images...` or `test-images...`); `None` where it is no such folder.
pub fn train_and_test(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    idx::train_and_test(folder)
}

enum Format {
    Csv,
    Npz,
    Npy,
    Json,
    Idx,
    Picture,
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
        _ if image::is_named_so(path) => Ok(Format::Picture),
        _ => Err(FileError::File {
            path: path.to_owned(),
            problem:
                "samples are read from .csv, .npz and IDX files (...-ubyte, .idx, or these with .gz) and from folders \
                 of .png and .jpg pictures; give the file one of these endings"
                    .to_owned(),
        }),
    }
}

fn unlabelled(path: &Path, what: &str) -> FileError {
    let problem = format!(
        "{what}; give labelled samples as .csv, .npz or IDX files, or as a folder that holds a folder of pictures for \
         each class"
    );
    FileError::File { path: path.to_owned(), problem }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file; give a .csv, .npz or IDX file".to_owned()));
    }
    let mut file = File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    let mut bytes = Vec::new();
    (&mut file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(format!("is larger than {MAX_FILE_BYTES} bytes; split it into several files")));
    }
    let after = file.metadata().map_err(failed)?;
    let same_time = before.modified().ok() == after.modified().ok();
    if !same_time || before.len() != after.len() || after.len() != bytes.len() as u64 {
        return Err(refused("changed while it was read; read it again when its writer is done".to_owned()));
    }
    if bytes.is_empty() {
        return Err(refused("is empty; it needs at least one row".to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
