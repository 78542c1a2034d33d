//! The model versions on this node: fetched, kept as packages on disk, prepared and swapped in.
//! How a version is prepared and served lives in `inference`; which version to hold is the coordinator's word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fedge_models::{Manifest, Model, ModelError, Package};
use fedge_proto::federation::DownloadRequest;
use fedge_proto::federation::federation_client::FederationClient;
use fedge_proto::transfer::{Receiver, TransferError};
use tokio::sync::Mutex as AsyncMutex;
use tonic::Status;
use tonic::transport::Channel;

use super::convert::Version;
use crate::config::DataFile;
use crate::inference::{ModelRepository, PrepareError, PrepareOptions, Serving, prepare};
use crate::samples::{Sample, SampleError, SampleStore, file};

/// Samples that activation ranges are calibrated on, at most.
const CALIBRATION_SAMPLES: usize = 512;
/// Samples of the local check, at most.
const CHECK_SAMPLES: usize = 1024;
/// Versions of a lineage that stay on disk: the served one and the one before.
const KEPT_VERSIONS: usize = 2;
/// Largest model file that is fetched.
const MAX_MODEL_BYTES: u64 = 2 << 30;

/// Why a version can't be fetched or served. What served before goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The connection or the coordinator.
    #[error("fetching the model: {}", .0.message())]
    Call(Box<Status>),
    /// The file came damaged.
    #[error("fetching the model: {0}")]
    Transfer(#[from] TransferError),
    /// Too large.
    #[error("the model has {0} bytes, this node takes at most {MAX_MODEL_BYTES}")]
    TooLarge(u64),
    /// Not sound, or not writable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Not servable.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The sample store.
    #[error(transparent)]
    Samples(#[from] SampleError),
    /// A background task died.
    #[error("preparing the model was interrupted: {0}")]
    Interrupted(String),
}

impl From<Status> for VersionError {
    fn from(status: Status) -> Self {
        VersionError::Call(Box::new(status))
    }
}

/// The versions that this node holds.
#[derive(Debug)]
pub struct Versions {
    folder: PathBuf,
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    data: Vec<DataFile>,
    /// Files that are in the store, by lineage.
    ingested: AsyncMutex<BTreeMap<String, usize>>,
    /// One fetch at a time: serving, training and evaluating ask for the same version at once.
    fetching: AsyncMutex<()>,
    /// One preparation at a time: it takes memory and both of a small device's cores.
    preparing: AsyncMutex<()>,
    /// What was wrong with a data file, by path: said once, and in the status; serving goes on without it.
    data_problems: Mutex<BTreeMap<PathBuf, String>>,
    /// Training samples that a lineage had when its served version was prepared.
    prepared_with: Mutex<BTreeMap<String, u64>>,
}

impl Versions {
    /// Versions in `folder`, served by `repository`; `data` is read into `samples` once its lineage is known.
    pub fn new(
        folder: PathBuf,
        repository: Arc<ModelRepository>,
        samples: SampleStore,
        data: Vec<DataFile>,
    ) -> Versions {
        Versions {
            folder,
            repository,
            samples,
            data,
            ingested: AsyncMutex::default(),
            fetching: AsyncMutex::default(),
            preparing: AsyncMutex::default(),
            data_problems: Mutex::default(),
            prepared_with: Mutex::default(),
        }
    }

    /// What is being served.
    pub fn repository(&self) -> &ModelRepository {
        &self.repository
    }

    /// What is wrong with data files, a sentence each.
    pub fn data_problems(&self) -> Vec<String> {
        self.data_problems.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Serves the newest version on disk of each lineage, before the coordinator is reached.
    pub async fn restore(&self) {
        for (name, number) in newest_on_disk(&self.folder) {
            let restored = async {
                let package = Package::read(&self.version_folder(&name, number))?;
                self.ingest(&package).await?;
                self.prepare_and_swap(package, PrepareOptions::default()).await
            };
            if let Err(error) = restored.await {
                tracing::warn!(model = %name, version = number, %error, "a kept version can't be served; it is fetched again");
            }
        }
    }

    /// The package of a version: from disk, else fetched, checked and kept.
    ///
    /// # Errors
    /// [`VersionError`].
    pub async fn package(
        &self,
        client: &FederationClient<Channel>,
        version: &Version,
    ) -> Result<Package, VersionError> {
        let manifest = &version.manifest;
        let folder = self.version_folder(&manifest.name, manifest.number);
        let _one = self.fetching.lock().await;
        let interrupted = |e: tokio::task::JoinError| VersionError::Interrupted(e.to_string());
        let kept = tokio::task::spawn_blocking(move || Package::read(&folder)).await.map_err(interrupted)?;
        if let Ok(package) = kept
            && package.manifest == **manifest
        {
            return Ok(package);
        }
        let bytes = fetch(client.clone(), version).await?;
        let (manifest, repository) = (Manifest::clone(manifest), self.folder.clone());
        let work = move || -> Result<Package, VersionError> {
            let package = Package::new(manifest, Model::from_bytes(bytes)?)?;
            package.write(&repository)?;
            prune(&repository.join(&package.manifest.name), package.manifest.number);
            Ok(package)
        };
        tokio::task::spawn_blocking(work).await.map_err(interrupted)?
    }

    /// Serves a version, unless it is served already and nothing would change.
    ///
    /// # Errors
    /// [`VersionError`]; the version before goes on serving.
    pub async fn serve(
        &self,
        client: &FederationClient<Channel>,
        version: &Version,
        int8_tolerance: f64,
    ) -> Result<Arc<Serving>, VersionError> {
        let name = &version.manifest.name;
        self.repository.expect(name);
        let _one = self.preparing.lock().await;
        if let Some(current) = self.repository.current(name)
            && *current.manifest() == *version.manifest
            && !self.samples_came_since(name).await?
        {
            return Ok(current);
        }
        let package = self.package(client, version).await?;
        self.ingest(&package).await?;
        self.prepare_and_swap(package, PrepareOptions { int8_tolerance, ..PrepareOptions::default() }).await
    }

    /// A version that had to be served in float for want of samples can be quantized now.
    async fn samples_came_since(&self, name: &str) -> Result<bool, SampleError> {
        let before = self.prepared_with.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        Ok(before == Some(0) && self.samples.counts(name).await?.training > 0)
    }

    async fn prepare_and_swap(&self, package: Package, options: PrepareOptions) -> Result<Arc<Serving>, VersionError> {
        let name = package.manifest.name.clone();
        let calibration = self.samples.calibration_set(&name, CALIBRATION_SAMPLES).await?;
        let labelled = self.check_samples(&name).await?;
        let training = self.samples.counts(&name).await?.training;
        let work = move || prepare(package, calibration, &labelled, &options);
        let prepared = tokio::task::spawn_blocking(work).await;
        let serving = prepared.map_err(|e| VersionError::Interrupted(e.to_string()))??;
        self.prepared_with.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), training);
        self.repository.swap(serving);
        // What was swapped in a moment ago is there, unless the model was removed in between.
        let gone = || VersionError::Interrupted(format!("model {name} is not served any more"));
        self.repository.current(&name).ok_or_else(gone)
    }

    async fn check_samples(&self, name: &str) -> Result<Vec<Sample>, SampleError> {
        let mut samples = self.samples.held_out_set(name).await?;
        samples.truncate(CHECK_SAMPLES);
        if samples.len() < CHECK_SAMPLES {
            let training = self.samples.training_set(name).await?;
            let room = CHECK_SAMPLES - samples.len();
            samples.extend(training.into_iter().take(room));
        }
        Ok(samples)
    }

    /// Reads the configured data files of a lineage into the store, once.
    async fn ingest(&self, package: &Package) -> Result<(), VersionError> {
        let manifest = &package.manifest;
        let mut ingested = self.ingested.lock().await;
        let done = ingested.entry(manifest.name.clone()).or_default();
        let files: Vec<&DataFile> =
            self.data.iter().filter(|d| d.model.as_ref().is_none_or(|m| *m == manifest.name)).collect();
        for data in files.into_iter().skip(*done) {
            *done += 1;
            let (path, labels) = (data.path.clone(), manifest.labels.clone());
            let (sample_len, classes) = (package.model.input().sample_len(), package.model.output().sample_len());
            let read = move || file::read(&path)?.into_samples(sample_len, classes, &labels);
            let read = tokio::task::spawn_blocking(read).await.map_err(|e| VersionError::Interrupted(e.to_string()))?;
            match read {
                Ok(samples) => {
                    let added = self.samples.add_many(&manifest.name, samples).await?;
                    tracing::info!(file = %data.path.display(), model = %manifest.name, new = added.new, known = added.duplicates, "samples read");
                }
                // Serving comes first: a file that does not fit is no reason to serve nothing.
                Err(error) => {
                    tracing::error!(model = %manifest.name, %error, "a data file does not fit and is left out");
                    let mut problems = self.data_problems.lock().unwrap_or_else(PoisonError::into_inner);
                    problems.insert(data.path.clone(), format!("for model {:?}: {error}", manifest.name));
                }
            }
        }
        Ok(())
    }

    fn version_folder(&self, name: &str, number: u64) -> PathBuf {
        self.folder.join(name).join(number.to_string())
    }
}

async fn fetch(mut client: FederationClient<Channel>, version: &Version) -> Result<Vec<u8>, VersionError> {
    if version.size_bytes > MAX_MODEL_BYTES {
        return Err(VersionError::TooLarge(version.size_bytes));
    }
    let digest = version.manifest.digest;
    let request = DownloadRequest { digest: digest.as_bytes().to_vec(), offset: 0 };
    let mut stream = client.download(request).await?.into_inner();
    let mut receiver = Receiver::new(version.size_bytes);
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        receiver.accept(&chunk)?;
        bytes.extend_from_slice(&chunk.data);
    }
    receiver.finish(*digest.as_bytes())?;
    Ok(bytes)
}

fn newest_on_disk(folder: &Path) -> Vec<(String, u64)> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            numbers(&entry.path()).into_iter().max().map(|number| (name, number))
        })
        .collect()
}

/// Removes all but the newest versions of a lineage.
fn prune(lineage: &Path, newest: u64) {
    let mut numbers = numbers(lineage);
    numbers.retain(|n| *n <= newest);
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    for number in numbers.into_iter().skip(KEPT_VERSIONS) {
        let path = lineage.join(number.to_string());
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old version could not be removed");
        }
    }
}

fn numbers(lineage: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(lineage).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_versions_stay_and_older_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let lineage = folder.path().join("digits");
        for number in ["1", "2", "9", "10", "stray"] {
            std::fs::create_dir_all(lineage.join(number)).unwrap();
        }
        assert_eq!(newest_on_disk(folder.path()), [("digits".to_owned(), 10)]);
        prune(&lineage, 10);
        let mut left = numbers(&lineage);
        left.sort_unstable();
        assert_eq!(left, [9, 10]);
        assert!(lineage.join("stray").exists(), "what is not ours stays");
    }
}
