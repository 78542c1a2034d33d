//! Inputs without labels: one NumPy array, or JSON numbers in lists. They are asked about, not learnt from.
//! Files with labels are read in `csv`, `npz` and `idx`.

use std::path::Path;

use serde_json::Value;

use super::npy::{self, Array, Values};
use super::{FileError, LabelledRows};

/// A `.npy` array of `[rows, ...]`, or of one sample without the leading dimension.
pub(super) fn read_npy(path: &Path, bytes: &[u8], sample_len: usize) -> Result<LabelledRows, FileError> {
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let Array { values, .. } = npy::parse(bytes).map_err(|problem| refused(format!("is no .npy file: {problem}")))?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "models take float32")]
    let values: Vec<f32> = match values {
        Values::Text(_) => return Err(refused("holds text; inputs must be numbers".to_owned())),
        Values::Float(values) => values.into_iter().map(|value| value as f32).collect(),
        Values::Integer(values) => values.into_iter().map(|value| value as f32).collect(),
    };
    rows(path, values, sample_len)
}

/// A `.json` file: numbers in lists, nested at will, or an object with such lists as its member `data`.
pub(super) fn read_json(path: &Path, bytes: &[u8], sample_len: usize) -> Result<LabelledRows, FileError> {
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refused(format!("is no JSON: {error}")))?;
    let lists = json.get("data").unwrap_or(&json);
    let mut values = Vec::new();
    flatten(lists, &mut values).map_err(refused)?;
    rows(path, values, sample_len)
}

/// Recursion ends where the parser's does: at 128 lists in each other.
fn flatten(json: &Value, values: &mut Vec<f32>) -> Result<(), String> {
    match json {
        Value::Array(list) => list.iter().try_for_each(|element| flatten(element, values)),
        Value::Number(number) => {
            #[allow(clippy::cast_possible_truncation, reason = "models take float32; an overflow is refused below")]
            values.push(number.as_f64().unwrap_or(f64::NAN) as f32);
            Ok(())
        }
        _ => Err("holds something else than numbers in lists".to_owned()),
    }
}

fn rows(path: &Path, values: Vec<f32>, sample_len: usize) -> Result<LabelledRows, FileError> {
    let refused = |problem: String| Err(FileError::File { path: path.to_owned(), problem });
    let len = sample_len.max(1);
    if values.is_empty() || !values.len().is_multiple_of(len) {
        return refused(format!("has {} values, which are no whole samples of {len}", values.len()));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return refused(format!("element {at} (from 0) is {}, which is not a finite float32", values[at]));
    }
    Ok(LabelledRows::new(path, values, len))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn json(text: &str, len: usize) -> Result<LabelledRows, FileError> {
        read_json(Path::new("x.json"), text.as_bytes(), len)
    }

    #[test]
    fn lists_of_any_depth_are_whole_samples() {
        let rows = json("[[[1, 2], [3, 4.5]], [[5, 6], [7, 8]]]", 4).unwrap();
        assert_eq!((rows.len(), rows.rows().nth(1).unwrap()), (2, &[5.0, 6.0, 7.0, 8.0][..]));
        assert_eq!(json("{\"data\": [1, 2]}", 2).unwrap().len(), 1);
        for (text, expected) in [
            ("[1, 2, 3]", "3 values"),
            ("[]", "0 values"),
            ("[\"a\"]", "numbers"),
            ("[1e39, 0]", "finite"),
            ("{", "JSON"),
        ] {
            let error = json(text, 2).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_array_of_one_sample_or_several_is_read() {
        for shape in [vec![2, 3], vec![6]] {
            let array = ndarray::ArrayD::from_shape_vec(shape, vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
            let mut bytes = std::io::Cursor::new(Vec::new());
            ndarray_npy::WriteNpyExt::write_npy(&array, &mut bytes).unwrap();
            let rows = read_npy(Path::new("x.npy"), bytes.get_ref(), 3).unwrap();
            assert_eq!(rows.rows().nth(1).unwrap(), [4.0, 5.0, 6.0]);
        }
        assert!(read_npy(Path::new("x.npy"), b"\x93NUMPY", 3).is_err());
    }
}
