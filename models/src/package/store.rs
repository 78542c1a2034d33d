//! A package's directory: staged, synced, renamed into place, synced again; read back with its digests checked.
//! What a valid package is, `package.rs` says.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{Manifest, Package};
use crate::model::MAX_FILE_BYTES;
use crate::{Digest, Model, ModelError};

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
    let moved =
        fill(package, &stage).and_then(|()| fs::rename(&stage, &version).map_err(io(&version, "move into place")));
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
    let bytes = read_bounded(&version_dir.join(MODEL_FILE), MAX_FILE_BYTES)?;
    // Before the file is parsed: a damaged file should be called damaged, whatever it now looks like.
    super::check_digest(&manifest, "model.onnx", manifest.digest, Digest::of(&bytes))?;
    Package::new(manifest, Model::from_bytes(bytes)?)
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
    // Looked at before it is opened: opening a named pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(io(path, "open"))?;
    if !metadata.is_file() {
        let source = std::io::Error::other("it is not a regular file");
        return Err(io(path, "read")(source));
    }
    let too_large =
        |size| ModelError::TooLarge { what: format!("the size of {} in bytes", path.display()), size, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let file = File::open(path).map_err(io(path, "open"))?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::package::MANIFEST_SCHEMA;
    use crate::{Preprocessing, testing};

    fn package() -> Package {
        let model = Model::from_bytes(testing::DIGITS).unwrap();
        Package::new(manifest(&model), model).unwrap()
    }

    fn manifest(model: &Model) -> Manifest {
        Manifest {
            schema: MANIFEST_SCHEMA,
            name: "digits".to_owned(),
            number: 1,
            digest: model.digest(),
            layout: model.layout().digest(),
            labels: (0..10).map(|digit| digit.to_string()).collect(),
            preprocessing: Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() },
            parent: None,
            task: None,
            round: None,
        }
    }

    #[test]
    fn a_written_package_is_read_again_equal_and_nothing_else_is_left() {
        let repository = tempfile::tempdir().unwrap();
        let package = package();
        let version = package.write(repository.path()).unwrap();
        assert_eq!(version, repository.path().join("digits/1"));
        let found = Package::read(&version).unwrap();
        assert_eq!(found.manifest, package.manifest);
        assert_eq!(found.model.bytes(), package.model.bytes());
        assert_eq!(fs::read_dir(repository.path().join("digits")).unwrap().count(), 1);
    }

    #[test]
    fn the_same_version_may_be_written_again_and_another_content_may_not() {
        let repository = tempfile::tempdir().unwrap();
        let mut package = package();
        package.write(repository.path()).unwrap();
        package.write(repository.path()).unwrap();
        package.manifest.labels[0] = "null".to_owned();
        let error = package.write(repository.path()).unwrap_err().to_string();
        assert!(error.contains("next number"), "{error}");
    }

    #[test]
    fn a_stage_left_by_a_crash_does_not_stop_the_next_writer() {
        let repository = tempfile::tempdir().unwrap();
        let stage = repository.path().join("digits").join(format!(".stage-1-{}", std::process::id()));
        fs::create_dir_all(&stage).unwrap();
        fs::write(stage.join(MODEL_FILE), b"half").unwrap();
        Package::read(&package().write(repository.path()).unwrap()).unwrap();
    }

    #[test]
    fn damaged_files_are_refused_and_named() {
        let repository = tempfile::tempdir().unwrap();
        let version = package().write(repository.path()).unwrap();
        let path = version.join(MODEL_FILE);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3000;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = Package::read(&version).unwrap_err().to_string();
        assert!(error.contains("digest"), "{error}");
        fs::write(version.join(MANIFEST_FILE), b"{\"schema\": 1, \"surprise\": 2}").unwrap();
        let error = Package::read(&version).unwrap_err().to_string();
        assert!(error.contains("surprise") && error.contains(MANIFEST_FILE), "{error}");
        fs::remove_file(version.join(MANIFEST_FILE)).unwrap();
        assert!(Package::read(&version).unwrap_err().to_string().contains(MANIFEST_FILE));
    }

    #[test]
    fn an_unwritable_repository_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = package().write(&file).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }

    #[test]
    fn a_manifest_that_does_not_fit_its_model_is_refused() {
        let model = Model::from_bytes(testing::DIGITS).unwrap();
        let refused = |change: &dyn Fn(&mut Manifest), word: &str| {
            let mut manifest = manifest(&model);
            change(&mut manifest);
            let error = Package::new(manifest, model.clone()).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(&|manifest| manifest.schema = 2, "update fedge");
        refused(&|manifest| manifest.number = 0, "count from 1");
        refused(&|manifest| manifest.digest = Digest::of(b"x"), "model.onnx");
        refused(&|manifest| manifest.layout = Digest::of(b"x"), "layout");
        refused(&|manifest| manifest.labels.truncate(9), "9 classes");
        refused(&|manifest| manifest.labels[1] = "0".to_owned(), "twice");
        refused(&|manifest| manifest.preprocessing.std = vec![0.0], "std");
        for name in ["", "..", ".hidden", "a/b", "Digits", "é", &"a".repeat(65)] {
            refused(&|manifest| manifest.name = name.to_owned(), "a-z");
        }
    }
}
