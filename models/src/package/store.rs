//! A package's directory: staged, synced, renamed into place, synced again; read back with its digests checked.
//! What a valid package is, `package.rs` says.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{Manifest, Package};
use crate::model::MAX_FILE_BYTES;
use crate::{Model, ModelError};

const MODEL_FILE: &str = "model.onnx";
const MANIFEST_FILE: &str = "manifest.json";
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

pub(super) fn write(package: &Package, repository: &Path) -> Result<PathBuf, ModelError> {
    super::check(&package.manifest, &package.model)?;
    let lineage = repository.join(&package.manifest.name);
    let version = lineage.join(package.manifest.number.to_string());
    if version.try_exists().map_err(io(&version, "look for"))? {
        return already_there(package, version);
    }
    fs::create_dir_all(&lineage).map_err(io(&lineage, "create"))?;
    // A leading dot keeps the stage from being taken for a version; the process id keeps two writers apart.
    let stage = lineage.join(format!(".stage-{}-{}", package.manifest.number, std::process::id()));
    if stage.try_exists().map_err(io(&stage, "look for"))? {
        fs::remove_dir_all(&stage).map_err(io(&stage, "remove"))?;
    }
    let moved = fill(package, &stage).and_then(|()| fs::rename(&stage, &version).map_err(io(&version, "move into place")));
    if let Err(error) = moved {
        // The first error is the one to report; a stage that stays behind is removed by the next writer.
        let _ = fs::remove_dir_all(&stage);
        return if version.is_dir() { already_there(package, version) } else { Err(error) };
    }
    sync_directory(&lineage)?;
    sync_directory(repository)?;
    Ok(version)
}

pub(super) fn read(version_dir: &Path) -> Result<Package, ModelError> {
    let path = version_dir.join(MANIFEST_FILE);
    let text = read_bounded(&path, MAX_MANIFEST_BYTES)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| ModelError::Package {
        package: path.display().to_string(),
        problem: format!("the manifest cannot be read: {error}; fetch or publish the version again"),
    })?;
    let model = Model::from_bytes(read_bounded(&version_dir.join(MODEL_FILE), MAX_FILE_BYTES)?)?;
    Package::new(manifest, model)
}

/// Writing the same version twice is no error: a retry after a crash must succeed.
fn already_there(package: &Package, version: PathBuf) -> Result<PathBuf, ModelError> {
    let found = read(&version)?;
    if found.manifest == package.manifest {
        return Ok(version);
    }
    Err(ModelError::Package {
        package: version.display().to_string(),
        problem: format!(
            "is there already with the digest {}; a version never changes, so publish under the next number",
            found.manifest.digest
        ),
    })
}

fn fill(package: &Package, stage: &Path) -> Result<(), ModelError> {
    fs::create_dir(stage).map_err(io(stage, "create"))?;
    let manifest = serde_json::to_vec_pretty(&package.manifest).map_err(|error| ModelError::Package {
        package: package.manifest.name.clone(),
        problem: format!("the manifest cannot be written: {error}"),
    })?;
    for (name, bytes) in [(MODEL_FILE, &**package.model.bytes()), (MANIFEST_FILE, manifest.as_slice())] {
        let path = stage.join(name);
        let mut file = File::create_new(&path).map_err(io(&path, "create"))?;
        file.write_all(bytes).map_err(io(&path, "write"))?;
        file.sync_all().map_err(io(&path, "sync"))?;
    }
    sync_directory(stage)
}

fn sync_directory(path: &Path) -> Result<(), ModelError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io(path, "sync"))
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let file = File::open(path).map_err(io(path, "open"))?;
    let metadata = file.metadata().map_err(io(path, "read"))?;
    if !metadata.is_file() {
        let source = std::io::Error::other("it is not a regular file");
        return Err(io(path, "read")(source));
    }
    let too_large = |size| ModelError::TooLarge { what: format!("the size of {} in bytes", path.display()), size, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Turns an I/O error into one that names the file.
pub(crate) fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> ModelError {
    move |source| ModelError::Io { path: path.to_owned(), action, source }
}
