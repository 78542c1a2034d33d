//! The model versions that this node serves: their packages read, samples read in, prepared and swapped in.
//! How a version is prepared lives in `inference`, how it comes in `shelf`; which one to hold is the coordinator's word.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fedge_models::{Digest, Manifest, ModelError, Package};
use tokio::sync::Mutex as AsyncMutex;

use super::convert::Version;
use super::learner::Client;
use super::memory::{Key, Memory};
use super::record::RecordError;
use super::shelf::{MODEL_FILE, Shelf, ShelfError};
use crate::config::DataFile;
use crate::inference::{ModelRepository, PrepareError, PrepareOptions, Serving, prepare};
use crate::samples::file::{self, ReadOptions};
use crate::samples::{Sample, SampleError, SampleStore};

/// Samples that activation ranges are calibrated on, at most.
const CALIBRATION_SAMPLES: usize = 512;
/// Samples of the local check, at most.
const CHECK_SAMPLES: usize = 1024;
/// Why a version can't be fetched or served. What served before goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// Not on disk.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Not sound.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Not servable.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// What stayed here.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The sample store.
    #[error(transparent)]
    Samples(#[from] SampleError),
    /// A background task died.
    #[error("preparing the model was interrupted: {0}")]
    Interrupted(String),
}

/// The versions that this node holds.
#[derive(Debug)]
pub struct Versions {
    shelf: Shelf,
    repository: Arc<ModelRepository>,
    samples: SampleStore,
    data: Vec<DataFile>,
    /// Layers that stay on this node.
    memory: Memory,
    /// Files that are in the store, by lineage.
    ingested: AsyncMutex<BTreeMap<String, usize>>,
    /// One preparation at a time: it takes memory and both of a small device's cores.
    preparing: AsyncMutex<()>,
    /// What was wrong with a data file, by path: said once, and in the status; serving goes on without it.
    data_problems: Mutex<BTreeMap<PathBuf, String>>,
    /// Training samples that a lineage had when its served version was prepared, and the layers of its own.
    prepared_with: Mutex<BTreeMap<String, (u64, Option<Digest>)>>,
}

impl Versions {
    /// Versions of this shelf, served by `repository` with the layers that `memory` has of their tasks; `data` is read into
    /// `samples` once its lineage is known.
    pub fn new(
        shelf: Shelf,
        repository: Arc<ModelRepository>,
        samples: SampleStore,
        data: Vec<DataFile>,
        memory: Memory,
    ) -> Versions {
        Versions {
            memory,
            shelf,
            repository,
            samples,
            data,
            ingested: AsyncMutex::default(),
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
        for (name, number) in self.shelf.newest() {
            let restored = async {
                let package = Package::read(&self.shelf.path(&name, number))?;
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
    pub async fn package(&self, client: &Client, version: &Version) -> Result<Package, VersionError> {
        match self.read(client, version).await {
            // Damaged since it came: fetched again. Where it never was sound, that fails as well.
            Err(VersionError::Model(error)) if !matches!(error, ModelError::Io { .. }) => {
                tracing::warn!(%error, "a kept version is of no use; it is fetched again");
                self.shelf.forget(version);
                self.read(client, version).await
            }
            read => read,
        }
    }

    /// The package with the layers that stayed here of the task that made it, if it has any.
    ///
    /// # Errors
    /// [`VersionError`].
    pub async fn with_own(&self, package: Package) -> Result<Package, VersionError> {
        let memory = self.memory.clone();
        let put = move || {
            let Some(key) = own_key(&package.manifest) else { return Ok(package) };
            Ok(match memory.own(&key)? {
                Some(own) => Package { model: own.put_into(&package.model)?, ..package },
                None => package,
            })
        };
        tokio::task::spawn_blocking(put).await.map_err(|e| VersionError::Interrupted(e.to_string()))?
    }

    /// The ONNX file of a version that is on disk.
    ///
    /// # Errors
    /// [`VersionError::Model`] where it is not.
    pub fn open(&self, version: &Version) -> Result<File, VersionError> {
        let manifest = &version.manifest;
        let path = self.shelf.path(&manifest.name, manifest.number).join(MODEL_FILE);
        Ok(File::open(&path).map_err(|source| ModelError::Io { path, action: "open", source })?)
    }

    async fn read(&self, client: &Client, version: &Version) -> Result<Package, VersionError> {
        let folder = self.shelf.hold(client, version).await?;
        let read = tokio::task::spawn_blocking(move || Package::read(&folder)).await;
        Ok(read.map_err(|e| VersionError::Interrupted(e.to_string()))??)
    }

    /// Serves a version, unless it is served already and nothing would change.
    ///
    /// # Errors
    /// [`VersionError`]; the version before goes on serving.
    pub async fn serve(
        &self,
        client: &Client,
        version: &Version,
        int8_tolerance: f64,
    ) -> Result<Arc<Serving>, VersionError> {
        let name = &version.manifest.name;
        self.repository.expect(name);
        let _one = self.preparing.lock().await;
        if let Some(current) = self.repository.current(name)
            && *current.manifest() == *version.manifest
            && !self.samples_came_since(name).await?
            && !self.own_changed_since(&version.manifest).await?
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
        Ok(before.is_some_and(|(samples, _)| samples == 0) && self.samples.counts(name).await?.training > 0)
    }

    /// A training that counted after the version was prepared left other layers here.
    async fn own_changed_since(&self, manifest: &Manifest) -> Result<bool, VersionError> {
        let own = self.own_digest(manifest).await?;
        let before = self.prepared_with.lock().unwrap_or_else(PoisonError::into_inner).get(&manifest.name).copied();
        Ok(before.is_some_and(|(_, before)| before != own))
    }

    async fn own_digest(&self, manifest: &Manifest) -> Result<Option<Digest>, VersionError> {
        let Some(key) = own_key(manifest) else { return Ok(None) };
        let memory = self.memory.clone();
        let read = tokio::task::spawn_blocking(move || memory.own_digest(&key)).await;
        read.map_err(|e| VersionError::Interrupted(e.to_string()))
    }

    async fn prepare_and_swap(&self, package: Package, options: PrepareOptions) -> Result<Arc<Serving>, VersionError> {
        // Read before the layers are: where they change in between, they are looked at once more.
        let own = self.own_digest(&package.manifest).await?;
        let package = self.with_own(package).await?;
        let name = package.manifest.name.clone();
        let calibration = self.samples.calibration_set(&name, CALIBRATION_SAMPLES).await?;
        let labelled = self.check_samples(&name).await?;
        let training = self.samples.counts(&name).await?.training;
        let work = move || prepare(package, calibration, &labelled, &options);
        let prepared = tokio::task::spawn_blocking(work).await;
        let serving = prepared.map_err(|e| VersionError::Interrupted(e.to_string()))??;
        self.prepared_with.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), (training, own));
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

    fn data_problem(&self, path: &Path, problem: String) {
        self.data_problems.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), problem);
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
            let (path, labels, bad_rows) = (data.path.clone(), manifest.labels.clone(), data.bad_rows);
            let (shape, classes) = (package.model.input().sample_shape(), package.model.output().sample_len());
            let element = package.model.input().element;
            let read = move || {
                let mut rows = file::read(&path, &ReadOptions { sample_shape: &shape, bad_rows })?;
                rows.leave_out_not_held(element)?;
                rows.into_samples(shape.iter().product(), classes, &labels)
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|e| VersionError::Interrupted(e.to_string()))?;
            match read {
                Ok((samples, skipped)) => {
                    if let Some(first) = skipped.first.first() {
                        let count = skipped.count;
                        tracing::warn!(model = %manifest.name, skipped = count, %first, "rows of a data file are left out");
                        let problem = format!("for model {:?}: {count} rows left out; {first}", manifest.name);
                        self.data_problem(&data.path, problem);
                    }
                    let added = self.samples.add_many(&manifest.name, samples).await?;
                    tracing::info!(file = %data.path.display(), model = %manifest.name, new = added.new, known = added.duplicates, "samples read");
                }
                // Serving comes first: a file that does not fit is no reason to serve nothing.
                Err(error) => {
                    tracing::error!(model = %manifest.name, %error, "a data file does not fit and is left out");
                    self.data_problem(&data.path, format!("for model {:?}: {error}", manifest.name));
                }
            }
        }
        Ok(())
    }
}

/// Where the layers lie that stayed here of the task that made a version; none of a version that was published.
fn own_key(manifest: &Manifest) -> Option<Key> {
    Some(Key { model: manifest.name.clone(), task: manifest.task.clone()?, layout: manifest.layout })
}
