//! Comma-separated files: which row is a header, which column the label or the node, and every other field a number.
//! What a label's text means to a model is resolved in the parent module.

use std::io::{BufRead, Read};
use std::path::Path;

use super::rows::Pieces;
use super::{FileError, LabelledRows, MAX_FILE_BYTES, RowLabel, shorten};

/// Most columns of a row.
const MAX_COLUMNS: usize = 1 << 20;

/// Whether rows must have a label.
#[derive(Clone, Copy)]
pub(super) enum Labels {
    /// The column named `label`, else the last one.
    Required,
    /// The column named `label`, else the one after `sample_len` values, else none.
    Optional { sample_len: usize },
}

/// What the first record says about all of them.
struct Columns {
    names: Option<Vec<String>>,
    count: usize,
    label: Option<usize>,
    node: Option<usize>,
}

/// Reads the file into pieces; the column named `node_column`, where one is asked for, says whose each row is.
pub(super) fn read(
    path: &Path,
    mut content: impl BufRead,
    labels: Labels,
    node_column: Option<&str>,
    mut pieces: Pieces<'_>,
) -> Result<(), FileError> {
    let file_error = |problem: String| FileError::File { path: path.to_owned(), problem };
    // Spreadsheets begin UTF-8 files with a byte order mark.
    let mark = content.fill_buf().map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    if mark.starts_with(b"\xef\xbb\xbf") {
        content.consume(3);
    }
    let content = Bounded { content, left: MAX_FILE_BYTES };
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(content);
    let mut record = csv::StringRecord::new();
    let mut columns: Option<Columns> = None;
    let mut row = 0;
    loop {
        row += 1;
        reader.get_mut().left = MAX_FILE_BYTES;
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                if error.is_io_error() {
                    return Err(file_error(format!("cannot be read: {error}")));
                }
                let problem = format!("cannot be read as comma-separated UTF-8 text: {}", without_position(&error));
                pieces.refuse(FileError::Row { path: path.to_owned(), row, problem })?;
                continue;
            }
        }
        let known = match &columns {
            Some(known) => known,
            None => {
                let found = first_record(path, &record, labels, node_column)?;
                pieces.rows.sample_len =
                    found.count - usize::from(found.label.is_some()) - usize::from(found.node.is_some());
                let is_header = found.names.is_some();
                let found = columns.insert(found);
                if is_header {
                    continue;
                }
                found
            }
        };
        pieces.take(row, |rows| take(path, row, known, &record, rows))?;
    }
    pieces.finish(file_error("holds no rows of samples; it needs at least one".to_owned()))
}

/// Content of which a record may take some: one without an end would fill the memory.
struct Bounded<R> {
    content: R,
    /// Bytes that may be read until the record has to end.
    left: u64,
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::Error::other(format!(
                "a row of more than {MAX_FILE_BYTES} bytes; is a quote left open?"
            )));
        }
        let read = self.content.read(to)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

fn first_record(
    path: &Path,
    record: &csv::StringRecord,
    labels: Labels,
    node_column: Option<&str>,
) -> Result<Columns, FileError> {
    let count = record.len();
    let refused = |problem: String| FileError::Row { path: path.to_owned(), row: 1, problem };
    if count > MAX_COLUMNS {
        return Err(refused(format!("has {count} columns, above the limit of {MAX_COLUMNS}")));
    }
    let named = |field: &str| field.eq_ignore_ascii_case("label");
    let numbers = record.iter().filter(|field| field.parse::<f32>().is_ok()).count();
    let named_node = |field: &str| node_column.is_some_and(|column| field == column);
    let is_header = record.iter().any(|field| named(field) || named_node(field)) || (numbers == 0 && count > 1);
    let named_label = record.iter().position(named);
    if record.iter().filter(|field| named(field)).count() > 1 {
        return Err(refused("names more than one column \"label\"; keep one".to_owned()));
    }
    let node = record.iter().position(named_node);
    if let (Some(column), None) = (node_column, node) {
        return Err(refused(format!(
            "names no column {column:?} that says whose each row is; give the file a header with one"
        )));
    }
    // The last column, but for the one that names the node.
    let last = (0..count).rev().find(|&column| node != Some(column));
    let label = match labels {
        Labels::Required => named_label.or(last),
        Labels::Optional { sample_len } => named_label.or((count == sample_len + 1).then_some(sample_len)),
    };
    if count - usize::from(label.is_some()) - usize::from(node.is_some()) == 0 {
        return Err(refused(
            "has a label but no values; give one column a value and a last one, or one named \"label\", for the label"
                .to_owned(),
        ));
    }
    let names = is_header.then(|| record.iter().map(shorten).collect());
    Ok(Columns { names, count, label, node })
}

fn take(
    path: &Path,
    row: usize,
    columns: &Columns,
    record: &csv::StringRecord,
    rows: &mut LabelledRows,
) -> Result<(), FileError> {
    let refused = |problem: String| FileError::Row { path: path.to_owned(), row, problem };
    if record.len() != columns.count {
        return Err(refused(format!("has {} columns, but the first row has {}", record.len(), columns.count)));
    }
    for (column, field) in record.iter().enumerate() {
        let wrong = |problem: String| FileError::Value {
            path: path.to_owned(),
            row,
            column: match columns.names.as_ref().and_then(|names| names.get(column)) {
                Some(name) => format!("{} ({name:?})", column + 1),
                None => (column + 1).to_string(),
            },
            problem,
        };
        if columns.label == Some(column) {
            if field.is_empty() {
                return Err(wrong("the label is missing; give a class name or index".to_owned()));
            }
            rows.labels.push(RowLabel::Text(field.to_owned()));
            continue;
        }
        if columns.node == Some(column) {
            rows.nodes.push(super::node_name(field).map_err(|problem| wrong(problem.to_owned()))?);
            continue;
        }
        let value: f32 = field.parse().map_err(|_| wrong(format!("{:?} is not a number", shorten(field))))?;
        if !value.is_finite() {
            return Err(wrong(format!("{:?} is not a finite float32; drop or repair the row", shorten(field))));
        }
        rows.inputs.push(value);
    }
    Ok(())
}

/// The reader's message names bytes and records counted from 0; ours names the row.
fn without_position(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => err.to_string(),
        _ => error.to_string(),
    }
}
