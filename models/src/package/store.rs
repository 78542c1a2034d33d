//! A package's directory: staged, synced, renamed into place, synced again; read back with its digests checked.
//! What a valid package is, `package.rs` says.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{Manifest, Package, WriteBehind, Written};
use crate::model::MAX_FILE_BYTES;
use crate::{Digest, HashingWriter, Model, ModelError};

const MODEL_FILE: &str = "model.onnx";
const MANIFEST_FILE: &str = "manifest.json";
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

pub(super) fn write(package: &Package, repository: &Path) -> Result<PathBuf, ModelError> {
    super::check(&package.manifest, &package.model)?;
    let model = |out: &mut dyn Write| out.write_all(package.model.bytes()).map_err(io(repository, "write"));
    Ok(write_streamed(package.manifest.clone(), repository, model, |_| Ok(()))?.directory)
}

pub(super) fn write_streamed<E: From<ModelError>>(
    manifest: Manifest,
    repository: &Path,
    model: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    accept: impl FnOnce(Digest) -> Result<(), E>,
) -> Result<Written, E> {
    let write = |to: Option<&Path>| {
        let create = |path| File::create_new(path).map(WriteBehind::new).map_err(io(path, "create"));
        let mut file = to.map(create).transpose()?;
        let inner: &mut dyn Write = match &mut file {
            Some(file) => file,
            None => &mut std::io::sink(),
        };
        let mut hash = HashingWriter::new(Bounded { inner, left: MAX_FILE_BYTES });
        model(&mut hash)?;
        let (_, digest, bytes) = hash.finish();
        accept(digest)?;
        if let (Some(file), Some(path)) = (&mut file, to) {
            file.sync().map_err(io(path, "sync"))?;
        }
        Ok((digest, bytes))
    };
    place(manifest, repository, write)
}

pub(super) fn adopt(manifest: Manifest, repository: &Path, model: &Path) -> Result<PathBuf, ModelError> {
    let digest = manifest.digest;
    let take = |to: Option<&Path>| {
        let bytes = open_bounded(model, MAX_FILE_BYTES)?.1;
        match to {
            Some(path) => {
                fs::rename(model, path).map_err(io(model, "move"))?;
                File::open(path).and_then(|file| file.sync_all()).map_err(io(path, "sync"))?;
            }
            None => fs::remove_file(model).map_err(io(model, "remove"))?,
        }
        Ok((digest, bytes))
    };
    Ok(place(manifest, repository, take)?.directory)
}

/// Stages a version, syncs it and renames it into place. `model` puts the model's file on disk at the path that it is
/// given, or nowhere where the version is there already, and says what digest and length it has.
fn place<E: From<ModelError>>(
    mut manifest: Manifest,
    repository: &Path,
    model: impl FnOnce(Option<&Path>) -> Result<(Digest, u64), E>,
) -> Result<Written, E> {
    super::check_identity(&manifest)?;
    let lineage = repository.join(&manifest.name);
    let directory = lineage.join(manifest.number.to_string());
    if directory.try_exists().map_err(io(&directory, "look for"))? {
        let (digest, bytes) = model(None)?;
        manifest.digest = digest;
        already_there(&manifest, &directory)?;
        return Ok(Written { manifest, bytes, directory });
    }
    fs::create_dir_all(&lineage).map_err(io(&lineage, "create"))?;
    // A leading dot keeps the stage from being taken for a version; the process id keeps two writers apart.
    let stage = lineage.join(format!(".stage-{}-{}", manifest.number, std::process::id()));
    if stage.try_exists().map_err(io(&stage, "look for"))? {
        fs::remove_dir_all(&stage).map_err(io(&stage, "remove"))?;
    }
    let bytes = match fill(&stage, &mut manifest, model) {
        Ok(bytes) => bytes,
        Err(error) => {
            discard(&stage);
            return Err(error);
        }
    };
    if let Err(error) = fs::rename(&stage, &directory) {
        discard(&stage);
        // Another writer may have been quicker.
        if !directory.is_dir() {
            return Err(io(&directory, "move into place")(error).into());
        }
        already_there(&manifest, &directory)?;
        return Ok(Written { manifest, bytes, directory });
    }
    sync_directory(&lineage)?;
    sync_directory(repository)?;
    Ok(Written { manifest, bytes, directory })
}

pub(super) fn read(version_dir: &Path) -> Result<Package, ModelError> {
    let manifest = read_manifest(version_dir)?;
    let bytes = read_bounded(&version_dir.join(MODEL_FILE), MAX_FILE_BYTES)?;
    // Before the file is parsed: a damaged file should be called damaged, whatever it now looks like.
    super::check_digest(&manifest, "model.onnx", manifest.digest, Digest::of(&bytes))?;
    Package::new(manifest, Model::from_bytes(bytes)?)
}

fn read_manifest(version_dir: &Path) -> Result<Manifest, ModelError> {
    let path = version_dir.join(MANIFEST_FILE);
    let text = read_bounded(&path, MAX_MANIFEST_BYTES)?;
    serde_json::from_slice(&text).map_err(|error| ModelError::Package {
        package: path.display().to_string(),
        problem: format!("the manifest cannot be read: {error}; fetch or publish the version again"),
    })
}

/// Writing the same version twice is no error: a retry after a crash must succeed.
fn already_there(manifest: &Manifest, directory: &Path) -> Result<(), ModelError> {
    let found = read_manifest(directory)?;
    if found != *manifest {
        return Err(ModelError::Package {
            package: directory.display().to_string(),
            problem: format!(
                "is there already with the digest {}; a version never changes, so publish under the next number",
                found.digest
            ),
        });
    }
    let path = directory.join(MODEL_FILE);
    let mut hash = HashingWriter::new(std::io::sink());
    let mut file = open_bounded(&path, MAX_FILE_BYTES)?.0;
    std::io::copy(&mut file, &mut hash).map_err(io(&path, "read"))?;
    super::check_digest(&found, "model.onnx", found.digest, hash.finish().1)
}

/// Puts both files into the new directory `stage` and syncs them; gives the model's length.
fn fill<E: From<ModelError>>(
    stage: &Path,
    manifest: &mut Manifest,
    model: impl FnOnce(Option<&Path>) -> Result<(Digest, u64), E>,
) -> Result<u64, E> {
    fs::create_dir(stage).map_err(io(stage, "create"))?;
    let path = stage.join(MODEL_FILE);
    let (digest, bytes) = model(Some(&path))?;
    manifest.digest = digest;

    let text = serde_json::to_vec_pretty(manifest).map_err(|error| ModelError::Package {
        package: manifest.name.clone(),
        problem: format!("the manifest cannot be written: {error}"),
    })?;
    let path = stage.join(MANIFEST_FILE);
    let mut file = File::create_new(&path).map_err(io(&path, "create"))?;
    file.write_all(&text).map_err(io(&path, "write"))?;
    file.sync_all().map_err(io(&path, "sync"))?;
    sync_directory(stage)?;
    Ok(bytes)
}

/// The error that made the stage useless is the one to report; a stage that stays behind is removed by the next writer.
fn discard(stage: &Path) {
    let _ = fs::remove_dir_all(stage);
}

/// Refuses to take more bytes than a model's file may have.
struct Bounded<W> {
    inner: W,
    left: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(std::io::Error::other(format!("the model is larger than {MAX_FILE_BYTES} bytes")));
        }
        let taken = self.inner.write(bytes)?;
        self.left -= taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn sync_directory(path: &Path) -> Result<(), ModelError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io(path, "sync"))
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let (file, len) = open_bounded(path, limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(path, bytes.len() as u64, limit));
    }
    Ok(bytes)
}

/// Opens a regular file of at most `limit` bytes, and says how many it has.
fn open_bounded(path: &Path, limit: u64) -> Result<(File, u64), ModelError> {
    // Looked at before it is opened: opening a named pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(io(path, "open"))?;
    if !metadata.is_file() {
        let source = std::io::Error::other("it is not a regular file");
        return Err(io(path, "read")(source));
    }
    if metadata.len() > limit {
        return Err(too_large(path, metadata.len(), limit));
    }
    Ok((File::open(path).map_err(io(path, "open"))?, metadata.len()))
}

fn too_large(path: &Path, size: u64, limit: u64) -> ModelError {
    ModelError::TooLarge { what: format!("the size of {} in bytes", path.display()), size, limit }
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

    /// Streams the second version of the digits model, all of whose weights are halved.
    fn stream_second(repository: &Path, factor: f32) -> Result<Written, ModelError> {
        let base = package();
        let manifest = Manifest { number: 2, parent: Some(base.manifest.digest), ..base.manifest.clone() };
        Package::write_streamed(manifest, repository, |out| {
            base.model.places().splice(testing::DIGITS, out, |_, old, new| {
                new.extend(old.iter().map(|value| value * factor));
                Ok(())
            })
        })
    }

    #[test]
    fn a_streamed_version_is_the_one_that_is_made_in_memory_byte_for_byte() {
        let [streamed, whole] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let base = package();
        let values = base.model.weights().values().iter().map(|value| value * 0.5).collect();
        let weights = crate::Weights::new(base.model.layout().clone(), values).unwrap();
        let model = base.model.with_weights(&weights).unwrap();
        let (digest, parent) = (model.digest(), Some(base.manifest.digest));
        let manifest = Manifest { number: 2, digest, parent, ..base.manifest.clone() };
        let expected = Package::new(manifest, model).unwrap();
        let directory = expected.write(whole.path()).unwrap();

        let written = stream_second(streamed.path(), 0.5).unwrap();
        assert_eq!(written.manifest, expected.manifest);
        assert_eq!(written.bytes, testing::DIGITS.len() as u64);
        assert_eq!(written.directory, streamed.path().join("digits/2"));
        for name in [MODEL_FILE, MANIFEST_FILE] {
            assert_eq!(fs::read(written.directory.join(name)).unwrap(), fs::read(directory.join(name)).unwrap());
        }
        Package::read(&written.directory).unwrap();
        assert_eq!(fs::read_dir(streamed.path().join("digits")).unwrap().count(), 1, "no stage is left");
    }

    #[test]
    fn the_same_version_may_be_streamed_again_and_another_content_may_not() {
        let repository = tempfile::tempdir().unwrap();
        let written = stream_second(repository.path(), 0.5).unwrap();
        assert_eq!(stream_second(repository.path(), 0.5).unwrap(), written);
        let error = stream_second(repository.path(), 0.25).unwrap_err().to_string();
        assert!(error.contains("next number"), "{error}");
        let path = written.directory.join(MODEL_FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20_000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = stream_second(repository.path(), 0.5).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_stream_that_breaks_leaves_nothing_of_its_version() {
        let repository = tempfile::tempdir().unwrap();
        let error = Package::write_streamed(package().manifest, repository.path(), |out| {
            out.write_all(b"half a model").unwrap();
            Err(ModelError::graph("came to no end"))
        });
        assert!(error.unwrap_err().to_string().contains("came to no end"));
        assert_eq!(fs::read_dir(repository.path().join("digits")).unwrap().count(), 0);
        stream_second(repository.path(), f32::NAN).unwrap_err();
        assert_eq!(fs::read_dir(repository.path().join("digits")).unwrap().count(), 0);
        for (name, number) in [("..", 1), ("digits", 0)] {
            let manifest = Manifest { name: name.to_owned(), number, ..package().manifest };
            let model = |_: &mut dyn Write| panic!("a bad manifest was not refused before the model is made");
            Package::write_streamed::<ModelError>(manifest, repository.path(), model).unwrap_err();
        }
    }

    #[test]
    fn a_model_of_more_bytes_than_can_be_read_again_is_not_written() {
        let mut out = Bounded { inner: Vec::new(), left: 4 };
        out.write_all(b"abc").unwrap();
        let error = out.write_all(b"de").unwrap_err().to_string();
        assert!(error.contains(&MAX_FILE_BYTES.to_string()), "{error}");
        assert_eq!(out.inner, b"abc");
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
