//! Folders: one of IDX files, or one of pictures with a folder for each class, whose sorted names are the classes.
//! A picture is decoded in `image`.

use std::path::{Path, PathBuf};

use super::rows::{BadRows, Pieces, RowLabel, index_in};
use super::{FileError, MAX_VALUES, idx, image, read_bytes};

/// Most pictures of a folder.
const MAX_PICTURES: usize = 1 << 20;
/// Pictures of kinds that are not read.
const OTHER_KINDS: [&str; 12] =
    ["gif", "bmp", "webp", "tif", "tiff", "heic", "heif", "avif", "jp2", "jxl", "ppm", "pgm"];
/// Most classes of a folder.
const MAX_CLASSES: usize = 1 << 16;

/// What a folder holds.
pub(super) enum Folder {
    /// The images of an IDX pair.
    Idx(PathBuf),
    /// A folder a class, sorted by name; the pictures of each, sorted.
    Classes(Vec<Class>),
    /// Pictures without classes, sorted.
    Pictures(Vec<PathBuf>),
}

/// One class of a folder.
pub(super) struct Class {
    name: String,
    pictures: Vec<PathBuf>,
}

/// Looks at a folder; no picture is decoded.
///
/// # Errors
/// [`FileError`]: neither IDX files nor pictures, or a class without a picture where bad rows stop the reading.
pub(super) fn look(folder: &Path, bad_rows: BadRows) -> Result<Folder, FileError> {
    let entries = entries(folder)?;
    let mut classes = Vec::new();
    for path in entries.iter().filter(|path| path.is_dir()) {
        if classes.len() == MAX_CLASSES {
            return Err(refused(folder, format!("has more than {MAX_CLASSES} folders; a folder is a class")));
        }
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.ok_or_else(|| refused(path, "has a name that is not UTF-8; rename the class".to_owned()))?;
        classes.push(Class { name, pictures: pictures(self::entries(path)?)? });
    }
    if classes.iter().all(|class| class.pictures.is_empty()) {
        let own = pictures(entries)?;
        return if own.is_empty() { idx::only_images(folder).map(Folder::Idx) } else { Ok(Folder::Pictures(own)) };
    }
    let empty = classes.iter().find(|class| class.pictures.is_empty());
    if let (Some(class), BadRows::Stop) = (empty, bad_rows) {
        return Err(empty_class(folder, class));
    }
    let total: usize = classes.iter().map(|class| class.pictures.len()).sum();
    if total > MAX_PICTURES {
        return Err(refused(folder, format!("holds {total} pictures, above the limit of {MAX_PICTURES}; split it")));
    }
    Ok(Folder::Classes(classes))
}

/// Reads the pictures of all classes, labelled by the name of their folder, into pieces.
///
/// # Errors
/// [`FileError`] names the picture.
pub(super) fn read(
    folder: &Path,
    classes: Vec<Class>,
    sample_shape: &[usize],
    mut pieces: Pieces<'_>,
) -> Result<(), FileError> {
    let names: Vec<String> = classes.iter().map(|class| class.name.clone()).collect();
    let empty: Vec<FileError> =
        classes.iter().filter(|class| class.pictures.is_empty()).map(|class| empty_class(folder, class)).collect();
    let labelled = |class: Class| {
        let Class { name, pictures } = class;
        pictures.into_iter().map(move |picture| (picture, Some(RowLabel::Text(name.clone()))))
    };
    empty.iter().for_each(|error| pieces.rows.skipped.add(error));
    let names = if names.iter().any(|name| index_in(name).is_none()) { names } else { Vec::new() };
    decode(folder, classes.into_iter().flat_map(labelled), &names, sample_shape, pieces)
}

/// Reads pictures without labels.
///
/// # Errors
/// [`FileError`] names the picture.
pub(super) fn read_inputs(
    folder: &Path,
    pictures: Vec<PathBuf>,
    sample_shape: &[usize],
    pieces: Pieces<'_>,
) -> Result<(), FileError> {
    decode(folder, pictures.into_iter().map(|picture| (picture, None)), &[], sample_shape, pieces)
}

fn decode(
    folder: &Path,
    pictures: impl Iterator<Item = (PathBuf, Option<RowLabel>)>,
    classes: &[String],
    sample_shape: &[usize],
    mut pieces: Pieces<'_>,
) -> Result<(), FileError> {
    let sample_len: usize = sample_shape.iter().product();
    for (path, label) in pictures {
        let rows = &mut pieces.rows;
        if rows.inputs.len().saturating_add(sample_len) > MAX_VALUES {
            let problem = format!(
                "holds more than {} pictures of the model's size, which is above the limit; split the folder",
                rows.len()
            );
            return Err(refused(folder, problem));
        }
        let decoded = read_bytes(&path)
            .and_then(|bytes| image::decode(&bytes, sample_shape).map_err(|problem| refused(&path, problem)));
        match decoded {
            Ok(values) => {
                rows.sample_len = sample_len;
                rows.inputs.extend(values);
                rows.labels.extend(label);
                if rows.classes.is_empty() {
                    rows.classes = classes.to_vec();
                }
                pieces.files.push(path);
                pieces.added()?;
            }
            Err(error) => pieces.refuse(error)?,
        }
    }
    pieces.finish(refused(folder, "holds no pictures".to_owned()))
}

/// The entries of a folder, sorted by name, without hidden ones.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |source| FileError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if found.len() == MAX_PICTURES {
            return Err(refused(folder, format!("has more than {MAX_PICTURES} entries; split it")));
        }
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The pictures among a folder's entries; other files are no samples, but a picture that can't be read is told.
fn pictures(entries: Vec<PathBuf>) -> Result<Vec<PathBuf>, FileError> {
    if let Some(other) = entries.iter().find(|path| image::has_ending(path, &OTHER_KINDS)) {
        let problem = "is a picture of a kind that is not read; convert it to PNG or JPEG".to_owned();
        return Err(refused(other, problem));
    }
    Ok(entries.into_iter().filter(|path| image::is_named_so(path) && !path.is_dir()).collect())
}

fn empty_class(folder: &Path, class: &Class) -> FileError {
    let problem = "holds no .png or .jpg picture; give the class at least one, or take its folder away";
    refused(&folder.join(&class.name), problem.to_owned())
}

fn refused(path: &Path, problem: String) -> FileError {
    FileError::File { path: path.to_owned(), problem }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
