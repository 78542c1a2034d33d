//! Parquet files: which columns are a row's values, its label and its node. Values are numbers, lists of numbers, and
//! encoded pictures as public data sets carry them. The format itself is the `parquet` crate's: a file that was made to do so can
//! take much more memory than it says, since pages are decompressed whole.
//! What a label's text means to a model is resolved in the parent module.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::rows::Pieces;
use super::{FileError, LabelledRows, MAX_VALUES, RowLabel, image, shorten};

/// Most columns of a row.
const MAX_COLUMNS: usize = 1 << 16;
/// Most bytes that a row group's columns may take once they are decompressed, as the file itself says it.
const MAX_DECOMPRESSED: i64 = 1 << 30;

/// Which rows are wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Whether a row must have a label: the column named `label`, else the last one. Otherwise a row has one where a column
    /// is named so.
    pub labels: bool,
    /// The column that says whose each row is.
    pub node_column: Option<&'a str>,
    /// What pictures become; none: they are not decoded, and one value stands for each.
    pub sample_shape: Option<&'a [usize]>,
}

/// What the columns stand for.
struct Columns {
    names: Vec<String>,
    label: Option<usize>,
    node: Option<usize>,
}

/// Reads the file into pieces.
pub(super) fn read<R: ChunkReader + 'static>(
    path: &Path,
    content: R,
    wanted: Wanted<'_>,
    pieces: Pieces<'_>,
) -> Result<(), FileError> {
    // What the crate takes for impossible it meets with a panic, and a damaged file may hold it.
    let reading = AssertUnwindSafe(|| read_rows(path, content, wanted, pieces));
    catch_unwind(reading).unwrap_or_else(|_| Err(refused(path, "is a damaged Parquet file")))
}

fn read_rows<R: ChunkReader + 'static>(
    path: &Path,
    content: R,
    wanted: Wanted<'_>,
    mut pieces: Pieces<'_>,
) -> Result<(), FileError> {
    let unreadable = |problem: parquet::errors::ParquetError| {
        refused(path, format!("is no Parquet file, or a damaged one: {problem}"))
    };
    let file = SerializedFileReader::new(content).map_err(unreadable)?;
    let metadata = file.metadata();
    let sizes = 0..=MAX_DECOMPRESSED;
    if let Some(group) = metadata.row_groups().iter().find(|group| !sizes.contains(&group.total_byte_size())) {
        let problem = format!(
            "has a row group of {} bytes once it is decompressed, above the limit of {MAX_DECOMPRESSED}; write smaller ones",
            group.total_byte_size()
        );
        return Err(refused(path, problem));
    }
    let columns = columns(path, metadata.file_metadata().schema(), wanted)?;
    for (index, row) in file.get_row_iter(None).map_err(unreadable)?.enumerate() {
        let row = row.map_err(|problem| row_error(path, index, format!("cannot be read: {problem}")))?;
        pieces.take(index + 1, |rows| take(path, index, &columns, row, wanted, rows))?;
    }
    pieces.finish(refused(path, "holds no rows of samples; it needs at least one"))
}

fn columns(path: &Path, schema: &Type, wanted: Wanted<'_>) -> Result<Columns, FileError> {
    let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
    if names.len() > MAX_COLUMNS {
        return Err(refused(path, format!("has {} columns, above the limit of {MAX_COLUMNS}", names.len())));
    }
    let is_label = |name: &String| name.eq_ignore_ascii_case("label");
    if names.iter().filter(|name| is_label(name)).count() > 1 {
        return Err(refused(path, "names more than one column \"label\"; keep one"));
    }
    let node = wanted.node_column.map(|column| {
        names.iter().position(|name| name == column).ok_or_else(|| {
            refused(path, format!("has no column {column:?} that says whose each row is; {}", held(&names)))
        })
    });
    let node = node.transpose()?;
    let named = names.iter().position(is_label);
    // The last column, but for the one that names the node.
    let last = (0..names.len()).rev().find(|&column| node != Some(column));
    let label = if wanted.labels { named.or(last) } else { named };
    if names.len() == usize::from(label.is_some()) + usize::from(node.is_some()) {
        let problem = format!("has a label but no values: {}; give it at least one column of values", held(&names));
        return Err(refused(path, problem));
    }
    Ok(Columns { names, label, node })
}

/// The columns that there are, for messages.
fn held(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(10).map(|name| format!("{:?}", shorten(name))).collect();
    match names.len() {
        0 => "it holds no columns".to_owned(),
        len if len > shown.len() => format!("its columns are {} and {} more", shown.join(", "), len - shown.len()),
        _ => format!("its columns are {}", shown.join(", ")),
    }
}

fn take(
    path: &Path,
    index: usize,
    columns: &Columns,
    row: Row,
    wanted: Wanted<'_>,
    rows: &mut LabelledRows,
) -> Result<(), FileError> {
    let before = rows.inputs.len();
    for (column, (_, field)) in row.into_columns().into_iter().enumerate() {
        let wrong = |problem: String| FileError::Value {
            path: path.to_owned(),
            row: index + 1,
            column: match columns.names.get(column) {
                Some(name) => format!("{} ({:?})", column + 1, shorten(name)),
                None => (column + 1).to_string(),
            },
            problem,
        };
        if columns.label == Some(column) {
            rows.labels.push(label(&field).map_err(wrong)?);
        } else if columns.node == Some(column) {
            let text = match &field {
                Field::Str(text) => text.clone(),
                Field::Null => String::new(),
                other => other.to_string(),
            };
            rows.nodes.push(super::node_name(&text).map_err(|problem| wrong(problem.to_owned()))?);
        } else {
            values(&field, wanted.sample_shape, &mut rows.inputs).map_err(wrong)?;
        }
    }
    let width = rows.inputs.len() - before;
    match rows.sample_len {
        _ if width == 0 => Err(row_error(path, index, "holds no values".to_owned())),
        0 => {
            rows.sample_len = width;
            Ok(())
        }
        len if len == width => Ok(()),
        len => Err(row_error(path, index, format!("holds {width} values, but the first row holds {len}"))),
    }
}

/// Whole numbers from 0 are class indices; everything else is text, for the model's class names or as a number.
fn label(field: &Field) -> Result<RowLabel, String> {
    let index = match field {
        Field::Bool(value) => Some(u32::from(*value)),
        Field::Byte(value) => u32::try_from(*value).ok(),
        Field::Short(value) => u32::try_from(*value).ok(),
        Field::Int(value) => u32::try_from(*value).ok(),
        Field::Long(value) => u32::try_from(*value).ok(),
        Field::UByte(value) => Some(u32::from(*value)),
        Field::UShort(value) => Some(u32::from(*value)),
        Field::UInt(value) => Some(*value),
        Field::ULong(value) => u32::try_from(*value).ok(),
        Field::Null => return Err("the label is missing; give a class name or index".to_owned()),
        Field::Str(text) if text.is_empty() => {
            return Err("the label is missing; give a class name or index".to_owned());
        }
        Field::Str(text) => return Ok(RowLabel::Text(text.clone())),
        Field::Bytes(_) | Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => {
            return Err("is no label: labels are class names or indices, one a row".to_owned());
        }
        _ => None,
    };
    Ok(index.map_or_else(|| RowLabel::Text(field.to_string()), RowLabel::Index))
}

/// Adds a column's values of one row.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "models take float32")]
fn values(field: &Field, sample_shape: Option<&[usize]>, inputs: &mut Vec<f32>) -> Result<(), String> {
    let mut picture = |bytes: &[u8]| {
        match sample_shape {
            Some(shape) => inputs.extend(image::decode(bytes, shape)?),
            None => inputs.push(0.0),
        }
        Ok(())
    };
    let value = match field {
        Field::Bool(value) => f32::from(u8::from(*value)),
        Field::Byte(value) => f32::from(*value),
        Field::Short(value) => f32::from(*value),
        Field::Int(value) => *value as f32,
        Field::Long(value) => *value as f32,
        Field::UByte(value) => f32::from(*value),
        Field::UShort(value) => f32::from(*value),
        Field::UInt(value) => *value as f32,
        Field::ULong(value) => *value as f32,
        Field::Float16(value) => value.to_f32(),
        Field::Float(value) => *value,
        Field::Double(value) => *value as f32,
        Field::Decimal(_) => field.to_string().parse().map_err(|_| format!("{field} is not a number"))?,
        Field::ListInternal(list) => {
            if inputs.len().saturating_add(list.len()) > MAX_VALUES {
                return Err(format!("holds a list of {} numbers, above the limit", list.len()));
            }
            return list.elements().iter().try_for_each(|field| values(field, sample_shape, inputs));
        }
        Field::Bytes(bytes) => {
            return picture(bytes.data());
        }
        // A picture as public data sets carry it: its file's bytes and, beside them, its name.
        Field::Group(group) => {
            let bytes = group.get_column_iter().find_map(|(name, field)| match field {
                Field::Bytes(bytes) if name == "bytes" => Some(bytes),
                _ => None,
            });
            let bytes = bytes.ok_or("is a group without the bytes of a picture; give numbers, lists or pictures")?;
            return picture(bytes.data());
        }
        Field::Null => return Err("the value is missing; drop or repair the row".to_owned()),
        Field::Str(text) => return Err(format!("{:?} is text; values must be numbers", shorten(text))),
        other => return Err(format!("{other} is a date, a time or a map; values must be numbers")),
    };
    if !value.is_finite() {
        return Err(format!("{field} is not a finite float32; drop or repair the row"));
    }
    inputs.push(value);
    Ok(())
}

fn row_error(path: &Path, index: usize, problem: String) -> FileError {
    FileError::Row { path: path.to_owned(), row: index + 1, problem }
}

fn refused(path: &Path, problem: impl Into<String>) -> FileError {
    FileError::File { path: path.to_owned(), problem: problem.into() }
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
