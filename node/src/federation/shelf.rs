//! The model versions on a node's disk: fetched whole or as a delta against one that is there, checked, the newest kept.
//! What is done with them is the matter of `versions`; how bytes come is that of `download`.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedge_models::{Digest, Manifest, ModelError, Package};
use fedge_proto::model_delta::{self, DeltaError};
use tokio::sync::Mutex;

use super::convert::Version;
use super::download::{DownloadError, Downloads, Fetched, Form};
use super::learner::Client;

/// A version's model within its folder, as packages lay it out.
pub const MODEL_FILE: &str = "model.onnx";
/// Its manifest.
const MANIFEST_FILE: &str = "manifest.json";

/// Why a version is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It did not come.
    #[error("fetching the model: {0}")]
    Download(#[from] DownloadError),
    /// It can't be written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A delta does not make it.
    #[error("a delta does not apply: {0}")]
    Delta(#[from] DeltaError),
    /// What came is another file.
    #[error("what came has the digest {got} instead of {expected}")]
    Digest {
        /// Of what came.
        got: Digest,
        /// Of the version.
        expected: Digest,
    },
    /// A background task died.
    #[error("keeping the model was interrupted: {0}")]
    Interrupted(String),
}

/// Versions on disk, `<name>/<number>/{model.onnx, manifest.json}`.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    downloads: Arc<Downloads>,
    /// Versions of a lineage that stay.
    kept: usize,
    /// Serving, training and evaluating ask for the same version at once.
    one: Mutex<()>,
}

impl Shelf {
    /// Versions in `folder`, of each lineage the newest `kept`, at least 1.
    pub fn new(folder: PathBuf, downloads: Arc<Downloads>, kept: usize) -> Shelf {
        Shelf { folder, downloads, kept: kept.max(1), one: Mutex::default() }
    }

    /// Where a version lies, or would.
    pub fn path(&self, name: &str, number: u64) -> PathBuf {
        self.folder.join(name).join(number.to_string())
    }

    /// The newest version on disk of each lineage.
    pub fn newest(&self) -> Vec<(String, u64)> {
        let names = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let newest = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            numbers(&entry.path()).into_iter().max().map(|number| (name, number))
        });
        newest.collect()
    }

    /// The folder of a version that is on disk when this returns: fetched, unless it is there. That its bytes are those
    /// of its digest was checked when they came.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub async fn hold(&self, client: &Client, version: &Version) -> Result<PathBuf, ShelfError> {
        let _one = self.one.lock().await;
        let manifest = &version.manifest;
        let folder = self.path(&manifest.name, manifest.number);
        match read_manifest(&folder) {
            Some(kept) if kept == **manifest => return Ok(folder),
            // A version of another history, or one that is damaged: nobody asks for it any more.
            _ => remove(&folder),
        }
        if let Some(held) = self.held(manifest) {
            let fetched = self.fetch(client, version, Some(held.digest)).await?;
            match self.keep(version, fetched, Some(held)).await {
                Err(ShelfError::Delta(error)) => {
                    tracing::warn!(%error, model = %manifest.name, version = manifest.number, "fetched whole instead");
                }
                Err(error @ ShelfError::Digest { .. }) => {
                    tracing::warn!(%error, model = %manifest.name, version = manifest.number, "fetched whole instead");
                }
                kept => return kept,
            }
        }
        let fetched = self.fetch(client, version, None).await?;
        self.keep(version, fetched, None).await
    }

    /// Forgets a version that turned out to be of no use, so that it is fetched again.
    pub fn forget(&self, version: &Version) {
        remove(&self.path(&version.manifest.name, version.manifest.number));
    }

    async fn fetch(&self, client: &Client, version: &Version, held: Option<Digest>) -> Result<Fetched, DownloadError> {
        self.downloads.fetch(client, version.manifest.digest, version.size_bytes, held).await
    }

    /// The newest other version of the lineage.
    fn held(&self, wanted: &Manifest) -> Option<Held> {
        let mut numbers = numbers(&self.folder.join(&wanted.name));
        numbers.retain(|number| *number != wanted.number);
        let folder = self.path(&wanted.name, numbers.into_iter().max()?);
        let digest = read_manifest(&folder)?.digest;
        (digest != wanted.digest).then(|| Held { digest, model: folder.join(MODEL_FILE) })
    }

    async fn keep(&self, version: &Version, fetched: Fetched, held: Option<Held>) -> Result<PathBuf, ShelfError> {
        let (manifest, repository, kept) = (version.manifest.clone(), self.folder.clone(), self.kept);
        let work = move || {
            let folder = write(&manifest, &repository, &fetched, held.as_ref())?;
            prune(&repository.join(&manifest.name), manifest.number, kept);
            Ok(folder)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| ShelfError::Interrupted(e.to_string()))?
    }
}

/// A version that a delta may refer to.
struct Held {
    digest: Digest,
    model: PathBuf,
}

/// Writes the package: it is there with the right digest, or not at all.
fn write(
    manifest: &Manifest,
    repository: &Path,
    fetched: &Fetched,
    held: Option<&Held>,
) -> Result<PathBuf, ShelfError> {
    let (Form::Delta(_), Some(held)) = (fetched.form(), held) else {
        // Its digest was checked while it came.
        return Ok(Package::adopt(manifest.clone(), repository, fetched.path())?);
    };
    let open = |path: &Path| {
        let read = |source| ModelError::Io { path: path.to_owned(), action: "read", source };
        File::open(path).map(BufReader::new).map_err(read)
    };
    let apply = |out: &mut dyn Write| {
        model_delta::apply(open(&held.model)?, open(fetched.path())?, out)?;
        Ok(())
    };
    let expected = manifest.digest;
    let accept = |got| if got == expected { Ok(()) } else { Err(ShelfError::Digest { got, expected }) };
    Ok(Package::write_accepted(manifest.clone(), repository, apply, accept)?.directory)
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    serde_json::from_slice(&std::fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()
}

/// Removes all but the newest versions of a lineage.
fn prune(lineage: &Path, newest: u64, kept: usize) {
    let mut numbers = numbers(lineage);
    numbers.retain(|n| *n <= newest);
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.into_iter().skip(kept).for_each(|number| remove(&lineage.join(number.to_string())));
}

fn remove(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %folder.display(), %error, "an old version could not be removed");
        }
        _ => {}
    }
}

fn numbers(lineage: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(lineage).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
