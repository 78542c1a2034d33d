//! Files of samples: CSV, Parquet, .npz, IDX and pictures into rows of raw float32 values and their labels, read as hostile input.
//! The formats are in the submodules, what a label means to a model in `rows`; storing is `store`'s.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

mod csv;
mod folder;
mod gzip;
mod idx;
pub mod image;
mod npy;
mod npz;
mod parquet;
mod plain;
mod rows;
mod zip;

use folder::Folder;
use prost::bytes::Bytes;
use rows::Pieces;
pub(crate) use rows::known_labels;
pub use rows::{BadRows, LabelledRow, LabelledRows, RowLabel, RowTargets, Skipped};
use rows::{node_name, shorten};

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
/// - `.parquet`: the columns as in a `.csv` file; a list is as many values as it holds, bytes are an encoded picture.
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
        Format::Csv => whole_csv(path, csv::Labels::Required, None, options.bad_rows),
        Format::Parquet => whole_parquet(path, true, None, options),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, None, options.bad_rows),
        Format::Npy | Format::Json => Err(unlabelled(path, "holds inputs without labels")),
        Format::Picture => Err(unlabelled(path, "is one picture without a label")),
        Format::Idx => idx::read(path, options.bad_rows),
        Format::Folder => match folder::look(path, options.bad_rows)? {
            Folder::Idx(images) => idx::read(&images, options.bad_rows),
            Folder::Classes(classes) => {
                whole(path, options.bad_rows, |pieces| folder::read(path, classes, options.sample_shape, pieces))
            }
            Folder::Pictures(_) => Err(unlabelled(path, "holds pictures without classes")),
        },
    }
}

/// As [`read`], in pieces of about `most` values, so that the file may be larger than memory: CSV and Parquet files and
/// folders of pictures come so, all others as one piece. What a piece says of rows that were left out is about its own.
///
/// # Errors
/// As [`read`], and what `each` says.
pub fn read_pieces(
    path: &Path,
    options: &ReadOptions<'_>,
    most: usize,
    each: &mut dyn FnMut(LabelledRows) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let pieces = |each| Pieces::new(no_rows(path, options.bad_rows), most.min(MAX_VALUES / 2), each);
    match format(path)? {
        Format::Csv => watched(path, |file| {
            csv::read(path, BufReader::with_capacity(1 << 20, file), csv::Labels::Required, None, pieces(each))
        }),
        Format::Parquet => watched(path, |file| parquet::read(path, file, wanted(options, true, None), pieces(each))),
        Format::Folder => match folder::look(path, options.bad_rows)? {
            Folder::Classes(classes) => folder::read(path, classes, options.sample_shape, pieces(each)),
            Folder::Idx(_) | Folder::Pictures(_) => each(read(path, options)?),
        },
        _ => each(read(path, options)?),
    }
}

/// Whether a file's labels are one a row whatever the loss: all but .npz, whose arrays say more.
pub fn has_plain_labels(path: &Path) -> bool {
    !matches!(format(path), Ok(Format::Npz))
}

/// Whether [`read`] could read a file, as far as can be seen before its model is known: pictures are not decoded yet.
///
/// # Errors
/// As [`read`].
pub fn check(path: &Path, bad_rows: BadRows) -> Result<(), FileError> {
    if matches!(format(path)?, Format::Folder) && !matches!(folder::look(path, bad_rows)?, Folder::Idx(_)) {
        return Ok(());
    }
    if matches!(format(path)?, Format::Parquet) {
        let undecoded = parquet::Wanted { labels: true, node_column: None, sample_shape: None };
        let mut each = |_| Ok(());
        let pieces = Pieces::new(no_rows(path, bad_rows), MAX_VALUES / 2, &mut each);
        return watched(path, |file| parquet::read(path, file, undecoded, pieces));
    }
    read(path, &ReadOptions { sample_shape: &[], bad_rows }).map(drop)
}

/// As [`read`], and whose each row is: by the column or the .npz array of this name, which is no value then.
/// Data that was gathered by many hands comes so.
///
/// # Errors
/// As [`read`].
pub fn read_with_nodes(path: &Path, column: &str, options: &ReadOptions<'_>) -> Result<LabelledRows, FileError> {
    match format(path)? {
        Format::Csv => whole_csv(path, csv::Labels::Required, Some(column), options.bad_rows),
        Format::Parquet => whole_parquet(path, true, Some(column), options),
        Format::Npz => npz::read(path, &read_bytes(path)?, true, Some(column), options.bad_rows),
        Format::Npy | Format::Json | Format::Idx | Format::Folder | Format::Picture => Err(FileError::File {
            path: path.to_owned(),
            problem: format!("such files have no column {column:?}; say whose each row is in another way"),
        }),
    }
}

/// As [`read`], with targets of any shape: an .npz file's labels may have the shape `[rows, ...]`. `numbers`: targets are
/// numbers to come close to, floats of the .npz file or what a label column holds.
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
    let values = rows.numbers()?;
    Ok((rows, RowTargets::Values { values, shape: Vec::new() }))
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
        Format::Csv => whole_csv(path, csv::Labels::Optional { sample_len }, None, options.bad_rows)?,
        Format::Parquet => whole_parquet(path, false, None, &options)?,
        Format::Npz => npz::read(path, &read_bytes(path)?, false, None, options.bad_rows)?,
        Format::Npy => plain::read_npy(path, &read_bytes(path)?, sample_len)?,
        Format::Json => plain::read_json(path, &read_bytes(path)?, sample_len)?,
        Format::Picture => image::read(path, sample_shape)?,
        Format::Idx => idx::read_images(path)?,
        Format::Folder => match folder::look(path, options.bad_rows)? {
            Folder::Idx(images) => idx::read_images(&images)?,
            Folder::Classes(classes) => {
                whole(path, options.bad_rows, |pieces| folder::read(path, classes, sample_shape, pieces))?
            }
            Folder::Pictures(pictures) => {
                whole(path, options.bad_rows, |pieces| folder::read_inputs(path, pictures, sample_shape, pieces))?
            }
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
    Parquet,
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
        Some("parquet" | "pq") => Ok(Format::Parquet),
        Some("npz") => Ok(Format::Npz),
        Some("npy") => Ok(Format::Npy),
        Some("json") => Ok(Format::Json),
        _ if idx::is_named_so(path) => Ok(Format::Idx),
        _ if image::is_named_so(path) => Ok(Format::Picture),
        _ => Err(FileError::File {
            path: path.to_owned(),
            problem:
                "samples are read from .csv, .parquet, .npz and IDX files (...-ubyte, .idx, or these with .gz) and from folders \
                 of .png and .jpg pictures; give the file one of these endings"
                    .to_owned(),
        }),
    }
}

fn wanted<'a>(options: &'a ReadOptions<'_>, labels: bool, node_column: Option<&'a str>) -> parquet::Wanted<'a> {
    parquet::Wanted { labels, node_column, sample_shape: Some(options.sample_shape) }
}

fn no_rows(path: &Path, bad_rows: BadRows) -> LabelledRows {
    let mut rows = LabelledRows::new(path, Vec::new(), 0);
    rows.bad_rows = bad_rows;
    rows
}

/// All rows as one piece.
fn whole(
    path: &Path,
    bad_rows: BadRows,
    read: impl FnOnce(Pieces<'_>) -> Result<(), FileError>,
) -> Result<LabelledRows, FileError> {
    let mut all = no_rows(path, bad_rows);
    let mut each = |rows| {
        all = rows;
        Ok(())
    };
    read(Pieces::new(no_rows(path, bad_rows), usize::MAX, &mut each))?;
    Ok(all)
}

fn whole_csv(
    path: &Path,
    labels: csv::Labels,
    node_column: Option<&str>,
    bad_rows: BadRows,
) -> Result<LabelledRows, FileError> {
    let bytes = read_bytes(path)?;
    whole(path, bad_rows, |pieces| csv::read(path, bytes.as_slice(), labels, node_column, pieces))
}

fn whole_parquet(
    path: &Path,
    labels: bool,
    node_column: Option<&str>,
    options: &ReadOptions<'_>,
) -> Result<LabelledRows, FileError> {
    let bytes = Bytes::from(read_bytes(path)?);
    let wanted = wanted(options, labels, node_column);
    whole(path, options.bad_rows, |pieces| parquet::read(path, bytes, wanted, pieces))
}

/// Reads from a file that must not change meanwhile.
fn watched<T>(path: &Path, read: impl FnOnce(File) -> Result<T, FileError>) -> Result<T, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let file = open(path)?;
    let state = |metadata: std::fs::Metadata| (metadata.len(), metadata.modified().ok());
    let before = state(file.metadata().map_err(failed)?);
    let found = read(file.try_clone().map_err(failed)?);
    if state(file.metadata().map_err(failed)?) == before { found } else { Err(changed(path)) }
}

/// Opens a regular file.
fn open(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let problem = "is not a regular file; give a .csv, .parquet, .npz or IDX file".to_owned();
        return Err(FileError::File { path: path.to_owned(), problem });
    }
    File::open(path).map_err(failed)
}

fn changed(path: &Path) -> FileError {
    let problem = "changed while it was read; read it again when its writer is done".to_owned();
    FileError::File { path: path.to_owned(), problem }
}

fn unlabelled(path: &Path, what: &str) -> FileError {
    let problem = format!(
        "{what}; give labelled samples as .csv, .parquet, .npz or IDX files, or as a folder that holds a folder of pictures for \
         each class"
    );
    FileError::File { path: path.to_owned(), problem }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let mut file = open(path)?;
    let before = file.metadata().map_err(failed)?;
    let mut bytes = Vec::new();
    (&mut file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(format!("is larger than {MAX_FILE_BYTES} bytes; split it into several files")));
    }
    let after = file.metadata().map_err(failed)?;
    let same_time = before.modified().ok() == after.modified().ok();
    if !same_time || before.len() != after.len() || after.len() != bytes.len() as u64 {
        return Err(changed(path));
    }
    if bytes.is_empty() {
        return Err(refused("is empty; it needs at least one row".to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
