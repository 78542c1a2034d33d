//! MNIST's IDX format: a file of images and a file of labels beside it, each plain or compressed by gzip.
//! Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats".

use std::path::{Path, PathBuf};

use super::{BadRows, FileError, LabelledRows, MAX_VALUES, RowLabel, gzip, read_bytes};

/// Most bytes of a decompressed file: every value as a double, and a header.
const MAX_CONTENT: usize = MAX_VALUES * 8 + 64;
/// Most dimensions of an array.
const MAX_RANK: usize = 8;

/// Whether a file's name says that it is one of these.
pub(super) fn is_named_so(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with("ubyte") || name.ends_with(".idx") || name.ends_with(".idx3")
}

/// Images and the labels that lie beside them.
pub(super) fn read(images: &Path, bad_rows: BadRows) -> Result<LabelledRows, FileError> {
    let mut rows = match bad_rows {
        BadRows::Stop => read_images(images)?,
        BadRows::Skip => raw_images(images)?,
    };
    rows.bad_rows = bad_rows;
    let labels = labels_beside(images)?;
    let (shape, values) = array(&labels)?;
    let refused = |problem: String| FileError::File { path: labels.clone(), problem };
    if shape != [rows.len()] {
        return Err(refused(format!(
            "has the shape {shape:?}, but {} holds {} images; labels need the shape [{}]",
            images.display(),
            rows.len(),
            rows.len()
        )));
    }
    let mut bad = Vec::new();
    for (row, value) in values.into_iter().enumerate() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared right after")]
        let index = value as u32;
        rows.labels.push(RowLabel::Index(index));
        if index as f32 != value {
            let problem = format!("holds the label {value}; labels are class indices from 0");
            bad.push((row, FileError::Row { path: labels.clone(), row: row + 1, problem }));
        }
    }
    rows.leave_out(bad)?;
    rows.leave_out_not_finite("an image")?;
    Ok(rows)
}

/// Images alone.
pub(super) fn read_images(path: &Path) -> Result<LabelledRows, FileError> {
    let mut rows = raw_images(path)?;
    rows.leave_out_not_finite("an image")?;
    Ok(rows)
}

/// Images whose values may be NaN or infinite.
fn raw_images(path: &Path) -> Result<LabelledRows, FileError> {
    let (shape, values) = array(path)?;
    let refused = |problem: String| Err(FileError::File { path: path.to_owned(), problem });
    let Some((&count, sample)) = shape.split_first().filter(|(_, sample)| !sample.is_empty()) else {
        return refused(format!("has the shape {shape:?}: labels, it seems; give the file of the images"));
    };
    let sample_len: usize = sample.iter().product();
    if count == 0 || sample_len == 0 {
        return refused(format!("has the shape {shape:?}, so it is empty; it needs at least one image"));
    }
    Ok(LabelledRows::new(path, values, sample_len))
}

/// The images of a folder that holds one file of them.
pub(super) fn only_images(folder: &Path) -> Result<PathBuf, FileError> {
    let mut images = images_in(folder)?;
    match (images.pop(), images.is_empty()) {
        (Some(only), true) => Ok(only),
        (only, _) => Err(FileError::File {
            path: folder.to_owned(),
            problem: match only {
                None => "is a folder without IDX images (...images...-ubyte, or with .gz); name a file".to_owned(),
                Some(last) => format!(
                    "is a folder with {} files of images; name one of them, such as {}",
                    images.len() + 1,
                    last.display()
                ),
            },
        }),
    }
}

/// See [`super::train_and_test`].
pub(super) fn train_and_test(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut images = images_in(folder).ok().filter(|images| images.len() == 2)?.into_iter();
    let (first, second) = (images.next()?, images.next()?);
    let says = |path: &Path, words: &[&str]| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        words.iter().any(|word| name.contains(word))
    };
    const TEST: [&str; 2] = ["t10k", "test"];
    match (says(&first, &["train"]), says(&second, &["train"])) {
        (true, false) if says(&second, &TEST) => Some((first, second)),
        (false, true) if says(&first, &TEST) => Some((second, first)),
        _ => None,
    }
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |source| FileError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if name.contains("images") && is_named_so(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `train-images-idx3-ubyte.gz` → `train-labels-idx1-ubyte.gz`, or the same with or without `.gz`.
fn labels_beside(images: &Path) -> Result<PathBuf, FileError> {
    let name = images.file_name().unwrap_or_default().to_string_lossy();
    let labels = name.replacen("images", "labels", 1).replacen("idx3", "idx1", 1);
    let other = match labels.strip_suffix(".gz") {
        Some(plain) => plain.to_owned(),
        None => format!("{labels}.gz"),
    };
    let beside = |name: &str| images.with_file_name(name);
    match [&labels, &other].into_iter().find(|candidate| ***candidate != *name && beside(candidate).is_file()) {
        Some(found) => Ok(beside(found)),
        None => Err(FileError::File {
            path: images.to_owned(),
            problem: format!("has no labels beside it; put {labels:?} into the same folder"),
        }),
    }
}

/// One array: its shape and its elements, row-major.
fn array(path: &Path) -> Result<(Vec<usize>, Vec<f32>), FileError> {
    let bytes = read_bytes(path)?;
    let refused = |problem: String| FileError::File { path: path.to_owned(), problem };
    let content = match gzip::is_compressed(&bytes) {
        true => gzip::decompress(&bytes, MAX_CONTENT).map_err(refused)?,
        false => bytes,
    };
    parse(&content).map_err(refused)
}

/// Two zero bytes, the element's type, the rank, each dimension and the elements; everything is big-endian.
fn parse(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>), String> {
    let [0, 0, kind, rank, ..] = *bytes else {
        return Err("does not begin as an IDX file does (two zero bytes, type, rank); copy it again".to_owned());
    };
    let (rank, size) = (usize::from(rank), element_size(kind)?);
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(format!("has {rank} dimensions; 1 to {MAX_RANK} are read"));
    }
    let cut = || "is cut off; copy the file again".to_owned();
    let (dims, data) = bytes.get(4..).and_then(|rest| rest.split_at_checked(rank * 4)).ok_or_else(cut)?;
    let shape: Vec<usize> = dims.as_chunks::<4>().0.iter().map(|dim| u32::from_be_bytes(*dim) as usize).collect();
    let count = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&count| count <= MAX_VALUES)
        .ok_or_else(|| format!("has the shape {shape:?}, more than {MAX_VALUES} elements; split the file"))?;
    if data.len() != count * size {
        return Err(format!("has {} bytes of elements, but its shape {shape:?} needs {}", data.len(), count * size));
    }
    Ok((shape, data.chunks_exact(size).map(|element| value(kind, element)).collect()))
}

fn element_size(kind: u8) -> Result<usize, String> {
    match kind {
        0x08 | 0x09 => Ok(1),
        0x0b => Ok(2),
        0x0c | 0x0d => Ok(4),
        0x0e => Ok(8),
        _ => Err(format!("has elements of the type {kind:#04x}, which IDX does not define; copy the file again")),
    }
}

/// One element, big-endian; NaN where `element` is too short, which `parse` excludes.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "models take float32")]
fn value(kind: u8, element: &[u8]) -> f32 {
    match (kind, element) {
        (0x08, &[byte]) => f32::from(byte),
        (0x09, &[byte]) => f32::from(byte as i8),
        (0x0b, &[a, b]) => f32::from(i16::from_be_bytes([a, b])),
        (0x0c, &[a, b, c, d]) => i32::from_be_bytes([a, b, c, d]) as f32,
        (0x0d, &[a, b, c, d]) => f32::from_be_bytes([a, b, c, d]),
        (0x0e, &[a, b, c, d, e, f, g, h]) => f64::from_be_bytes([a, b, c, d, e, f, g, h]) as f32,
        _ => f32::NAN,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "idx_tests.rs"]
mod tests;
