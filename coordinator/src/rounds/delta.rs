//! Deltas between versions of a lineage, made once and kept as files as long as their newer version is the newest.
//! Their form is `proto`'s; a node that can't use one asks for the whole file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use fedge_models::Digest;
use fedge_proto::model_delta;
use tokio::sync::Mutex;

use crate::store::models::ModelRow;
use crate::store::{Store, StoreError};

/// Smaller files travel whole.
const SMALLEST: u64 = 64 << 10;
/// A delta pays when it saves at least so much of the file.
const WORTH: f64 = 0.9;

/// The deltas of all lineages.
#[derive(Debug, Default)]
pub struct Deltas {
    /// One is made at a time: it takes a core.
    making: Mutex<()>,
    /// Pairs that are not worth it.
    hopeless: Mutex<BTreeSet<(Digest, Digest)>>,
}

impl Deltas {
    /// The delta that makes `new` of the version `held`; none where the whole file is as good.
    ///
    /// # Errors
    /// [`StoreError`] when a file can't be read or written.
    pub async fn get(&self, store: &Store, held: Digest, new: &ModelRow) -> Result<Option<PathBuf>, StoreError> {
        let digest = new.manifest.digest;
        if new.size_bytes < SMALLEST || held == digest {
            return Ok(None);
        }
        let Some(old) = store.model_by_digest(held).await? else { return Ok(None) };
        let path = store.deltas_folder().join(format!("{}-{held}-{digest}", new.manifest.name));
        // Whoever waits here finds what the one before has made.
        let _one = self.making.lock().await;
        let mut hopeless = self.hopeless.lock().await;
        if old.manifest.name != new.manifest.name
            || old.size_bytes != new.size_bytes
            || hopeless.contains(&(held, digest))
        {
            return Ok(None);
        }
        if path.exists() {
            return Ok(Some(path));
        }
        let [from, to] = [&old, new].map(|row| store.model_path(&row.manifest.name, row.manifest.number));
        let (target, lineage) = (path.clone(), format!("{}-", new.manifest.name));
        let made = tokio::task::spawn_blocking(move || make(&from, &to, &target, &lineage, &digest));
        let made = made.await.map_err(|_| StoreError::Interrupted("making a delta"))?;
        if !made.map_err(|source| StoreError::File { what: "cannot write the delta", path: path.clone(), source })? {
            hopeless.insert((held, digest));
            return Ok(None);
        }
        Ok(Some(path))
    }
}

/// Makes the delta's file; false where it saves too little. Deltas to older versions of the lineage go.
fn make(
    from: &std::path::Path,
    to: &std::path::Path,
    target: &std::path::Path,
    lineage: &str,
    newest: &Digest,
) -> std::io::Result<bool> {
    let folder = target.parent().unwrap_or(std::path::Path::new("."));
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(lineage) && !name.ends_with(&newest.to_string()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    let open = |path| File::open(path).map(|file| BufReader::with_capacity(1 << 20, file));
    let estimate =
        model_delta::estimate(&mut File::open(from)?, &mut File::open(to)?).map_err(std::io::Error::other)?;
    if f64::from(estimate) > WORTH {
        return Ok(false);
    }
    // It can be made again: no sync.
    let mut staged = tempfile::NamedTempFile::new_in(folder)?;
    let [old, new] = [from, to].map(open);
    let bytes = to.metadata()?.len();
    let out = std::io::BufWriter::new(&mut staged);
    model_delta::encode(old?, bytes, new?, bytes, out).map_err(std::io::Error::other)?;
    staged.persist(target).map_err(|e| e.error)?;
    Ok(true)
}
