//! Folds external data, which exporters put into files beside the model, into one self-contained file.
//! Everything but the place of the values stays byte for byte as it was.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use prost::Message;

use crate::model::{MAX_FILE_BYTES, scan, tensor};
use crate::package::store::{io, read_bounded};
use crate::pb::TensorProto;
use crate::wire::{self, Value, WireError, fields};
use crate::{ElementType, ModelError};

/// Field numbers of onnx.proto.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_RAW_DATA: u32 = 9;
const TENSOR_EXTERNAL_DATA: u32 = 13;
const TENSOR_DATA_LOCATION: u32 = 14;

/// Reads an ONNX file of at most 2 GiB. External data of its initializers is folded in as raw data; a file without any
/// comes back as it is.
///
/// A location is relative to the model's directory and stays inside it: absolute paths, `..` and symbolic links that
/// lead outside are refused, as are ranges outside the data file, lengths that do not match the tensor's shape and
/// results of more than 2 GiB.
pub fn read_folded(path: &Path) -> Result<Vec<u8>, ModelError> {
    let bytes = read_bounded(path, MAX_FILE_BYTES)?;
    scan::check(&bytes)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fold(bytes, directory)
}

/// Folds the data that lies in `directory` into the scanned file `bytes`.
fn fold(bytes: Vec<u8>, directory: &Path) -> Result<Vec<u8>, ModelError> {
    let not_onnx = |problem: String| ModelError::NotOnnx { bytes: bytes.len(), problem };
    let places = crate::model::initializers(&bytes).map_err(|error| not_onnx(error.to_string()))?;
    let mut folded: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let mut total = bytes.len() as u64;
    for place in places {
        let message = bytes.get(place.clone()).unwrap_or_default();
        let header = TensorProto::decode(message).map_err(|error| not_onnx(error.to_string()))?;
        if !tensor::is_external(&header) {
            continue;
        }
        let values = External::of(&header)?.read(&header, directory, MAX_FILE_BYTES.saturating_sub(total))?;
        total += values.len() as u64;
        let new = rewrite_tensor(message, &values).map_err(|error| not_onnx(error.to_string()))?;
        folded.push((place, new));
    }
    if folded.is_empty() {
        return Ok(bytes);
    }
    rewrite_model(&bytes, &folded).map_err(|error| not_onnx(error.to_string()))
}

/// Where a tensor says that its values lie.
struct External {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl External {
    fn of(header: &TensorProto) -> Result<External, ModelError> {
        let refused = |problem: String| ModelError::tensor(&header.name, problem);
        let entry = |key: &str| header.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let number = |key: &str| {
            let parse = |text: &String| {
                text.parse::<u64>().map_err(|_| {
                    refused(format!(
                        "gives the external {key} {:?}, which is no number of bytes",
                        crate::error::shorten(text)
                    ))
                })
            };
            entry(key).map(parse).transpose()
        };
        let location =
            entry("location").ok_or_else(|| refused("says that its values are external, but not where".to_owned()))?;
        let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !Path::new(location).components().all(is_inside) {
            return Err(refused(format!(
                "keeps its values at {:?}; the location must be a file in the model's own directory",
                crate::error::shorten(location)
            )));
        }
        Ok(External { location: location.clone(), offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }

    /// Reads exactly the bytes that the tensor's type and shape ask for; more than `allowance` is refused.
    fn read(&self, header: &TensorProto, directory: &Path, allowance: u64) -> Result<Vec<u8>, ModelError> {
        let refused = |problem: String| ModelError::tensor(&header.name, problem);
        let expected = byte_length(header)?;
        if self.length.is_some_and(|length| length != expected) {
            return Err(refused(format!(
                "has the shape {:?}, which takes {expected} bytes, but its external length is {}",
                header.dims,
                self.length.unwrap_or(0)
            )));
        }
        if expected > allowance {
            return Err(ModelError::TooLarge {
                what: format!(
                    "the size in bytes of the model with tensor {:?} folded in",
                    crate::error::shorten(&header.name)
                ),
                size: (MAX_FILE_BYTES - allowance).saturating_add(expected),
                limit: MAX_FILE_BYTES,
            });
        }
        let path = self.resolve(header, directory)?;
        // Looked at before it is opened: opening a named pipe would wait for its writer.
        let metadata = std::fs::metadata(&path).map_err(io(&path, "read"))?;
        let end = self.offset.checked_add(expected);
        if !metadata.is_file() || end.is_none_or(|end| end > metadata.len()) {
            return Err(refused(format!(
                "keeps {expected} bytes from offset {} of {}, which has {}; copy the data file again",
                self.offset,
                path.display(),
                metadata.len()
            )));
        }
        let mut file = File::open(&path).map_err(io(&path, "open"))?;
        let mut values = Vec::new();
        file.seek(SeekFrom::Start(self.offset)).map_err(io(&path, "read"))?;
        file.take(expected).read_to_end(&mut values).map_err(io(&path, "read"))?;
        if values.len() as u64 != expected {
            return Err(refused(format!("found only {} of {expected} bytes in {}", values.len(), path.display())));
        }
        Ok(values)
    }

    /// The data file, with symbolic links followed only where they stay inside the model's directory.
    fn resolve(&self, header: &TensorProto, directory: &Path) -> Result<PathBuf, ModelError> {
        let root = directory.canonicalize().map_err(io(directory, "open"))?;
        let joined = root.join(&self.location);
        let path = joined.canonicalize().map_err(io(&joined, "open the external data"))?;
        if !path.starts_with(&root) {
            return Err(ModelError::tensor(
                &header.name,
                format!(
                    "keeps its values at {:?}, which leads outside the model's directory",
                    crate::error::shorten(&self.location)
                ),
            ));
        }
        Ok(path)
    }
}

fn byte_length(header: &TensorProto) -> Result<u64, ModelError> {
    let refused = |problem: String| ModelError::tensor(&header.name, problem);
    let element = ElementType::from_onnx(header.data_type)
        .ok_or_else(|| refused(format!("has the unsupported element type {}", header.data_type)))?;
    if !header.raw_data.is_empty() || !header.float_data.is_empty() {
        return Err(refused("has values both inside and outside the file; export it again".to_owned()));
    }
    tensor::shape(header)?
        .iter()
        .try_fold(element.size() as u64, |product, &dim| product.checked_mul(dim as u64))
        .ok_or_else(|| refused(format!("has the shape {:?}, whose size overflows", header.dims)))
}

/// The tensor's message with raw data in place of its external data; all other fields keep their bytes and order.
fn rewrite_tensor(message: &[u8], values: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + values.len() + 8);
    for field in fields(message, 0..message.len()) {
        let field = field?;
        if !matches!(field.number, TENSOR_EXTERNAL_DATA | TENSOR_DATA_LOCATION | TENSOR_RAW_DATA) {
            out.extend_from_slice(message.get(field.record).unwrap_or_default());
        }
    }
    wire::put_bytes(&mut out, TENSOR_RAW_DATA, values);
    Ok(out)
}

/// The file with the given initializers replaced; lengths around them are written anew.
fn rewrite_model(bytes: &[u8], folded: &[(Range<usize>, Vec<u8>)]) -> Result<Vec<u8>, WireError> {
    let mut folded = folded.iter().peekable();
    let mut out = Vec::with_capacity(bytes.len() + folded.clone().map(|(_, new)| new.len()).sum::<usize>());
    for field in fields(bytes, 0..bytes.len()) {
        let field = field?;
        if field.number != MODEL_GRAPH || field.value != Value::Bytes {
            out.extend_from_slice(bytes.get(field.record).unwrap_or_default());
            continue;
        }
        let mut graph = Vec::with_capacity(out.capacity());
        for part in fields(bytes, field.payload) {
            let part = part?;
            match folded.next_if(|(place, _)| part.number == GRAPH_INITIALIZER && *place == part.payload) {
                Some((_, new)) => wire::put_bytes(&mut graph, GRAPH_INITIALIZER, new),
                None => graph.extend_from_slice(bytes.get(part.record).unwrap_or_default()),
            }
        }
        wire::put_bytes(&mut out, MODEL_GRAPH, &graph);
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::float::FloatRunner;
    use crate::pb::StringStringEntryProto;
    use crate::testing;

    fn zoo() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("zoo")
    }

    #[test]
    fn a_folded_file_has_the_weights_and_answers_of_the_single_one() {
        let single = Model::from_path(&zoo().join("digits_cnn.onnx")).unwrap();
        let folded = Model::from_path(&zoo().join("digits_cnn_external.onnx")).unwrap();
        assert_eq!(folded.weights(), single.weights());
        assert_eq!(folded.layout().digest(), single.layout().digest());
        let input = ndarray::ArrayD::from_shape_fn(vec![3, 1, 8, 8], |index| {
            (index[0] * 7 + index[2] * index[3]) as f32 / 64.0
        });
        let [one, other] = [single, folded].map(|model| FloatRunner::new(&model).unwrap().run(input.view()).unwrap());
        assert_eq!(one, other);
    }

    #[test]
    fn bytes_without_their_data_file_are_refused_with_advice() {
        let bytes = std::fs::read(zoo().join("digits_cnn_external.onnx")).unwrap();
        let error = Model::from_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains("conv1.weight") && error.contains("another file"), "{error}");
    }

    /// The linear model with `w` outside, in a directory with 40 bytes of data.
    fn outside(entries: &[(&str, &str)]) -> (tempfile::TempDir, Result<Model, ModelError>) {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("model");
        std::fs::create_dir(&inside).unwrap();
        let values: Vec<u8> = (0..10).flat_map(|value| (value as f32).to_le_bytes()).collect();
        std::fs::write(inside.join("data"), &values).unwrap();
        std::fs::write(directory.path().join("secret"), &values).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        let mut graph = testing::linear();
        graph.initializer[0].raw_data.clear();
        graph.initializer[0].data_location = Some(1);
        let entry =
            |&(key, value): &(&str, &str)| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
        graph.initializer[0].external_data = entries.iter().map(entry).collect();
        std::fs::write(inside.join("model.onnx"), testing::bytes(graph)).unwrap();
        let model = Model::from_path(&inside.join("model.onnx"));
        (directory, model)
    }

    #[test]
    fn an_offset_is_honoured_and_the_rest_of_the_tensor_kept() {
        let (_directory, model) = outside(&[("location", "data"), ("offset", "8"), ("length", "24")]);
        let model = model.unwrap();
        assert_eq!(model.weights().tensor("w").unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(model.graph().initializer[0].dims, [2, 3]);
        outside(&[("location", "./data")]).1.unwrap();
    }

    #[test]
    fn locations_outside_the_directory_are_refused() {
        for location in ["../secret", "/etc/passwd", "link", "x/../../secret", "", "."] {
            let (_directory, model) = outside(&[("location", location)]);
            let error = model.unwrap_err().to_string();
            assert!(error.contains("\"w\"") || error.contains("model"), "{location}: {error}");
            assert!(!error.contains("root:"), "{error}");
        }
        assert!(outside(&[("offset", "0")]).1.unwrap_err().to_string().contains("but not where"));
    }

    #[test]
    fn ranges_outside_the_file_and_wrong_lengths_are_refused() {
        for (entries, word) in [
            ([("offset", "20"), ("length", "24")], "which has 40"),
            ([("offset", "18446744073709551615"), ("length", "24")], "which has 40"),
            ([("offset", "0"), ("length", "16")], "takes 24 bytes"),
            ([("offset", "-4"), ("length", "24")], "no number"),
            ([("offset", "0"), ("length", "many")], "no number"),
        ] {
            let error = outside(&[&[("location", "data")][..], &entries].concat()).1.unwrap_err().to_string();
            assert!(error.contains(word), "{entries:?}: {error}");
        }
        let error = outside(&[("location", "missing")]).1.unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("external data"), "{error}");
    }

    #[test]
    fn a_missing_model_and_a_directory_are_refused_by_name() {
        for path in [zoo().join("no_such.onnx"), zoo()] {
            let error = Model::from_path(&path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
