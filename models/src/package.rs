//! A model's version on disk: `<name>/<number>/{model.onnx, manifest.json}`, checked when made and when read.
//! Which versions exist and which is served is decided by the coordinator's store and the node.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, ElementType, Model, ModelError, Preprocessing};

/// Version of the manifest's form.
pub const MANIFEST_SCHEMA: u32 = 1;

/// What a version of a model says about itself; JSON, unknown keys refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form: [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// The lineage: 1 to 64 characters of `a-z0-9._-`, not beginning with a dot.
    pub name: String,
    /// Version number, counted from 1.
    pub number: u64,
    /// SHA-256 of `model.onnx`.
    pub digest: Digest,
    /// Digest of the model's layout.
    pub layout: Digest,
    /// Name of each class, in the order of the output; empty where the output is no classification.
    pub labels: Vec<String>,
    /// What is done to raw samples.
    pub preprocessing: Preprocessing,
    /// Digest of the version that this one was trained from.
    pub parent: Option<Digest>,
    /// The task that made this version.
    pub task: Option<String>,
    /// The task's round that made this version, counted from 1.
    pub round: Option<u64>,
}

/// A model with its manifest; the two agree.
#[derive(Clone, Debug)]
pub struct Package {
    /// What the version says about itself.
    pub manifest: Manifest,
    /// The model.
    pub model: Model,
}

/// A version that was streamed to disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The manifest, with the digest of the model that was written.
    pub manifest: Manifest,
    /// Length of the model's file.
    pub bytes: u64,
    /// `<repository>/<name>/<number>`.
    pub directory: PathBuf,
}

impl Package {
    /// Pairs a manifest with its model. Refused: another schema, a bad name, number 0, digests that differ from the
    /// model's, labels that repeat or do not match the output's width, and preprocessing that does not fit the input.
    pub fn new(manifest: Manifest, model: Model) -> Result<Package, ModelError> {
        check(&manifest, &model)?;
        Ok(Package { manifest, model })
    }

    /// Writes `<repository>/<name>/<number>/` whole or not at all, and gives its path. An equal version that is there
    /// already is left as it is; another content under the same number is refused.
    pub fn write(&self, repository: &Path) -> Result<PathBuf, ModelError> {
        store::write(self, repository)
    }

    /// As [`Package::write`], without the model in memory: `model` writes it, and `manifest.digest` becomes the digest of
    /// what it wrote, whatever it was before. Where the version is there already, `model` runs all the same, to see
    /// whether it is an equal one.
    ///
    /// The name and number are checked here, the rest of the manifest when the version is read. It therefore comes from
    /// the manifest of a checked version of the same lineage, and the model from that version's
    /// [`Places::splice`](crate::Places::splice). Refused also: a model of more than 2 GiB, and whatever `model` refuses;
    /// nothing is left of the version then.
    pub fn write_streamed<E: From<ModelError>>(
        manifest: Manifest,
        repository: &Path,
        model: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Written, E> {
        store::write_streamed(manifest, repository, model, |_| Ok(()))
    }

    /// As [`Package::write_streamed`], with a last word: `accept` hears the digest of what `model` wrote before the version
    /// gets its name, and may refuse it.
    pub fn write_accepted<E: From<ModelError>>(
        manifest: Manifest,
        repository: &Path,
        model: impl FnOnce(&mut dyn Write) -> Result<(), E>,
        accept: impl FnOnce(Digest) -> Result<(), E>,
    ) -> Result<Written, E> {
        store::write_streamed(manifest, repository, model, accept)
    }

    /// As [`Package::write_streamed`], with a model's file that is whole already, on the same file system: it is moved into the
    /// version, synced, and not read. The caller has checked that its digest is `manifest.digest`.
    pub fn adopt(manifest: Manifest, repository: &Path, model: &Path) -> Result<PathBuf, ModelError> {
        store::adopt(manifest, repository, model)
    }

    /// Reads a version's directory and checks it as [`Package::new`] does.
    pub fn read(version_dir: &Path) -> Result<Package, ModelError> {
        store::read(version_dir)
    }
}

pub(crate) mod store;
mod write_behind;

pub use write_behind::WriteBehind;

fn check(manifest: &Manifest, model: &Model) -> Result<(), ModelError> {
    check_identity(manifest)?;
    check_digest(manifest, "model.onnx", manifest.digest, model.digest())?;
    check_digest(manifest, "the layout", manifest.layout, model.layout().digest())?;
    check_labels(manifest, model).map_err(|problem| refused(manifest, problem))?;
    if model.input().element != ElementType::Fp32 && manifest.preprocessing != Preprocessing::default() {
        let element = model.input().element.name();
        return Err(refused(
            manifest,
            format!("its model takes {element}, which no scale, mean or std may change; leave its preprocessing out"),
        ));
    }
    manifest.preprocessing.validate(&model.input().sample_shape())
}

/// What can be checked without the model.
fn check_identity(manifest: &Manifest) -> Result<(), ModelError> {
    if manifest.schema != MANIFEST_SCHEMA {
        return Err(refused(
            manifest,
            format!(
                "its manifest has the schema {}, but this fedge reads {MANIFEST_SCHEMA}; update fedge",
                manifest.schema
            ),
        ));
    }
    check_name(&manifest.name).map_err(|problem| refused(manifest, problem))?;
    if manifest.number == 0 {
        return Err(refused(manifest, "its version number is 0; versions count from 1".to_owned()));
    }
    Ok(())
}

fn refused(manifest: &Manifest, problem: String) -> ModelError {
    ModelError::Package { package: crate::error::shorten(&format!("{:?}", manifest.name)), problem }
}

fn check_digest(manifest: &Manifest, what: &str, stated: Digest, found: Digest) -> Result<(), ModelError> {
    if stated == found {
        return Ok(());
    }
    Err(refused(
        manifest,
        format!(
            "{what} has the digest {found}, but the manifest says {stated}; the files do not belong together or are damaged, so fetch them again"
        ),
    ))
}

fn check_labels(manifest: &Manifest, model: &Model) -> Result<(), String> {
    let labels = &manifest.labels;
    if labels.is_empty() {
        return Ok(());
    }
    let width = match model.output().dims.as_slice() {
        [_, width] => *width,
        dims => {
            return Err(format!(
                "it names classes, but the output's shape {dims:?} is not [batch, classes]; leave the labels empty"
            ));
        }
    };
    if let Some(width) = width.filter(|&width| width != labels.len()) {
        return Err(format!(
            "it names {} classes, but the model's output has {width}; name each class once",
            labels.len()
        ));
    }
    let mut seen = std::collections::HashSet::new();
    match labels.iter().find(|label| label.is_empty() || label.len() > 256 || !seen.insert(label.as_str())) {
        Some(label) => Err(format!("the label {:?} is empty, too long or given twice", crate::error::shorten(label))),
        None => Ok(()),
    }
}

/// A lineage's name is also a directory and part of a URL.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!(
        "its name {:?} is not 1 to 64 characters of a-z, 0-9, '.', '_' and '-' that begin with another one than '.'",
        crate::error::shorten(name)
    ))
}
