//! NumPy archives: which arrays hold inputs and labels, and whether they fit each other.
//! The container is read in `zip`, one array in `npy`.

use std::path::Path;

use super::npy::{self, Array, Values};
use super::zip::{self, Entry};
use super::{BadRows, FileError, LabelledRows, RowLabel, RowTargets};

const INPUT_NAMES: [&str; 3] = ["x", "inputs", "data"];
const LABEL_NAMES: [&str; 3] = ["y", "labels", "label"];

/// Reads the file; the array named `node_array`, where one is asked for, says whose each row is.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    labels_required: bool,
    node_array: Option<&str>,
    bad_rows: BadRows,
) -> Result<LabelledRows, FileError> {
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let entries =
        zip::entries(bytes).map_err(|problem| refused(format!("is no .npz file, or a damaged one: {problem}")))?;
    let load = |entry: &Entry| -> Result<Array, FileError> {
        zip::content(bytes, entry)
            .and_then(|content| npy::parse(&content))
            .map_err(|problem| refused(format!("array {:?}: {problem}", super::shorten(&entry.name))))
    };
    let inputs = find(&entries, &INPUT_NAMES).map_err(refused)?;
    let labels = find(&entries, &LABEL_NAMES).map_err(refused)?;
    let inputs = inputs.ok_or_else(|| refused(missing("inputs", &INPUT_NAMES, &entries)))?;
    if labels.is_none() && labels_required {
        return Err(refused(missing("labels", &LABEL_NAMES, &entries)));
    }
    let mut rows = inputs_of(path, &inputs.name, load(inputs)?)?;
    rows.bad_rows = bad_rows;
    let mut bad = Vec::new();
    if let Some(entry) = labels {
        (rows.labels, bad) = labels_of(path, &entry.name, load(entry)?, rows.len())?;
    }
    if let Some(name) = node_array {
        let entry = find(&entries, &[name]).map_err(refused)?;
        let entry = entry.ok_or_else(|| refused(missing("nodes", &[name], &entries)))?;
        rows.nodes = nodes_of(path, name, load(entry)?, rows.len())?;
    }
    rows.leave_out(bad)?;
    rows.leave_out_not_finite(&format!("array {:?}", inputs.name))?;
    Ok(rows)
}

/// Reads the file with targets of any shape. `numbers`: floats are numbers to come close to, not class indices.
pub(super) fn read_targets(
    path: &Path,
    bytes: &[u8],
    numbers: bool,
    bad_rows: BadRows,
) -> Result<(LabelledRows, RowTargets), FileError> {
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let entries =
        zip::entries(bytes).map_err(|problem| refused(format!("is no .npz file, or a damaged one: {problem}")))?;
    let entry = find(&entries, &LABEL_NAMES).map_err(refused)?;
    let entry = entry.ok_or_else(|| refused(missing("labels", &LABEL_NAMES, &entries)))?;
    let array = zip::content(bytes, entry).and_then(|content| npy::parse(&content));
    let Array { shape, values } =
        array.map_err(|problem| refused(format!("array {:?}: {problem}", super::shorten(&entry.name))))?;
    let one_a_row = matches!(shape[..], [_] | [_, 1]);
    let targets = match values {
        Values::Float(values) if numbers => {
            #[allow(clippy::cast_possible_truncation, reason = "models give float32; an overflow is refused below")]
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(refused(format!("array {:?} holds NaN or infinity; drop or repair its rows", entry.name)));
            }
            RowTargets::Values { values, shape: shape.get(1..).unwrap_or_default().to_vec() }
        }
        Values::Integer(values) if !one_a_row => {
            let labels: Option<Vec<u32>> = values.iter().map(|&value| u32::try_from(value).ok()).collect();
            let labels = labels.ok_or_else(|| {
                refused(format!("array {:?} holds negative labels; labels are class indices from 0", entry.name))
            })?;
            RowTargets::Classes { labels, shape: shape.get(1..).unwrap_or_default().to_vec() }
        }
        _ => return Ok((read(path, bytes, true, None, bad_rows)?, RowTargets::Labels)),
    };
    let rows = read_inputs_alone(path, bytes)?;
    if shape.first() != Some(&rows.len()) {
        return Err(refused(format!(
            "array {:?} has the shape {shape:?}, but the inputs have {} rows; targets need one entry a row",
            entry.name,
            rows.len()
        )));
    }
    Ok((rows, targets))
}

/// The inputs, whatever the labels are.
fn read_inputs_alone(path: &Path, bytes: &[u8]) -> Result<LabelledRows, FileError> {
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let entries =
        zip::entries(bytes).map_err(|problem| refused(format!("is no .npz file, or a damaged one: {problem}")))?;
    let inputs = find(&entries, &INPUT_NAMES).map_err(refused)?;
    let inputs = inputs.ok_or_else(|| refused(missing("inputs", &INPUT_NAMES, &entries)))?;
    let array = zip::content(bytes, inputs).and_then(|content| npy::parse(&content));
    let array = array.map_err(|problem| refused(format!("array {:?}: {problem}", super::shorten(&inputs.name))))?;
    let mut rows = inputs_of(path, &inputs.name, array)?;
    rows.leave_out_not_finite(&format!("array {:?}", inputs.name))?;
    Ok(rows)
}

fn inputs_of(path: &Path, name: &str, array: Array) -> Result<LabelledRows, FileError> {
    let refused =
        |problem: String| FileError::File { path: path.to_owned(), problem: format!("array {name:?} {problem}") };
    let Some((&count, sample_shape)) = array.shape.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(refused(format!("has the shape {:?}; inputs need the shape [rows, ...]", array.shape)));
    };
    let sample_len: usize = sample_shape.iter().product();
    if count == 0 || sample_len == 0 {
        return Err(refused(format!("has the shape {:?}, so it is empty; it needs at least one row", array.shape)));
    }
    let values: Vec<f32> = match array.values {
        Values::Text(_) => return Err(refused("holds text; inputs must be numbers".to_owned())),
        #[allow(clippy::cast_possible_truncation, reason = "models take float32; an overflow is refused below")]
        Values::Float(values) => values.into_iter().map(|value| value as f32).collect(),
        #[allow(clippy::cast_precision_loss, reason = "models take float32")]
        Values::Integer(values) => values.into_iter().map(|value| value as f32).collect(),
    };
    Ok(LabelledRows::new(path, values, sample_len))
}

/// Whose each row is: numbers or text.
fn nodes_of(path: &Path, name: &str, array: Array, rows: usize) -> Result<Vec<String>, FileError> {
    let texts: Vec<String> = match (&array.shape[..], array.values) {
        ([count] | [count, 1], Values::Text(texts)) if *count == rows => texts,
        ([count] | [count, 1], Values::Integer(numbers)) if *count == rows => {
            numbers.iter().map(ToString::to_string).collect()
        }
        (shape, _) => {
            let problem = format!(
                "array {name:?} has the shape {shape:?} or holds fractions; it needs the shape [{rows}] and whole numbers \
                 or text, one for each row of the inputs"
            );
            return Err(FileError::File { path: path.to_owned(), problem });
        }
    };
    let checked = texts.iter().enumerate().map(|(row, text)| {
        super::node_name(text).map_err(|problem| FileError::Row {
            path: path.to_owned(),
            row: row + 1,
            problem: format!("array {name:?}: {problem}"),
        })
    });
    checked.collect()
}

/// The labels, and which of them can't be one.
#[allow(clippy::type_complexity, reason = "two lists of plain pairs")]
fn labels_of(
    path: &Path,
    name: &str,
    array: Array,
    rows: usize,
) -> Result<(Vec<RowLabel>, Vec<(usize, FileError)>), FileError> {
    let refused =
        |problem: String| FileError::File { path: path.to_owned(), problem: format!("array {name:?} {problem}") };
    if !matches!(&array.shape[..], [count] | [count, 1] if *count == rows) {
        return Err(refused(format!(
            "has the shape {:?}, but the inputs have {rows} rows; labels need the shape [{rows}]",
            array.shape
        )));
    }
    let row_error = |row: usize, value: String| FileError::Row {
        path: path.to_owned(),
        row: row + 1,
        problem: format!("array {name:?} holds the label {value}; labels are class indices from 0 or class names"),
    };
    let indices: Vec<Result<u32, String>> = match array.values {
        Values::Text(texts) => return Ok((texts.into_iter().map(RowLabel::Text).collect(), Vec::new())),
        Values::Integer(values) => {
            values.into_iter().map(|value| u32::try_from(value).map_err(|_| value.to_string())).collect()
        }
        Values::Float(values) => {
            let index = |value: f64| {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared right after")]
                let index = value as u32;
                if f64::from(index) == value { Ok(index) } else { Err(value.to_string()) }
            };
            values.into_iter().map(index).collect()
        }
    };
    let mut bad = Vec::new();
    let mut labels = Vec::with_capacity(indices.len());
    for (row, index) in indices.into_iter().enumerate() {
        labels.push(RowLabel::Index(index.as_ref().copied().unwrap_or_default()));
        if let Err(value) = index {
            bad.push((row, row_error(row, value)));
        }
    }
    Ok((labels, bad))
}

/// The one array among these names; two of them would leave it open which is meant.
fn find<'a>(entries: &'a [Entry], names: &[&str]) -> Result<Option<&'a Entry>, String> {
    let mut found = entries.iter().filter(|entry| names.contains(&entry.name.as_str()));
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => {
            Err(format!("holds both {:?} and {:?}; keep the one that is meant", first.name, second.name))
        }
        (first, _) => Ok(first),
    }
}

fn missing(what: &str, names: &[&str], entries: &[Entry]) -> String {
    let held: Vec<String> = entries.iter().take(10).map(|entry| format!("{:?}", super::shorten(&entry.name))).collect();
    format!(
        "lacks the array with the {what}: it must be named one of {names:?}, but the file holds {}",
        if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }
    )
}
