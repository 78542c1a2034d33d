//! Model versions: a row each, and the package's files in the model repository.
//! Minting a version together with its round's state is in `tasks`.

use std::path::PathBuf;

use fedge_models::{Digest, Manifest, Package};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, damaged, wall_clock_ms};

/// A version as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRow {
    /// Lineage, number, digest, labels, preprocessing, origin.
    pub manifest: Manifest,
    /// The manifest as stored, JSON.
    pub manifest_json: String,
    /// Size of the ONNX file.
    pub size_bytes: u64,
    /// Wall clock.
    pub created_ms: i64,
}

impl ModelRow {
    /// The row of a package that is about to be stored.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the manifest can't be written as JSON.
    pub fn of(package: &Package) -> Result<ModelRow, StoreError> {
        ModelRow::of_manifest(&package.manifest, package.model.bytes().len() as u64)
    }

    /// The row of a version of which these are the manifest and the model's size.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the manifest can't be written as JSON.
    pub fn of_manifest(manifest: &Manifest, size_bytes: u64) -> Result<ModelRow, StoreError> {
        let manifest_json = serde_json::to_string(manifest).map_err(|e| damaged("manifest", e.to_string()))?;
        Ok(ModelRow { manifest: manifest.clone(), manifest_json, size_bytes, created_ms: wall_clock_ms() })
    }
}

pub(super) const INSERT: &str = "INSERT INTO models \
    (name, number, digest, size_bytes, manifest, task_id, round, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";

pub(super) async fn insert<'c>(
    executor: impl sqlx::Executor<'c, Database = sqlx::Sqlite>,
    row: &ModelRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT)
        .bind(&row.manifest.name)
        .bind(row.manifest.number as i64)
        .bind(row.manifest.digest.as_bytes().to_vec())
        .bind(row.size_bytes as i64)
        .bind(&row.manifest_json)
        .bind(&row.manifest.task)
        .bind(row.manifest.round.map(|r| r as i64))
        .bind(row.created_ms)
        .execute(executor)
        .await
        .map(|_| ())
}

impl Store {
    /// Writes a package's files into the model repository; writing the same again changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] with the package's own message.
    pub fn write_package(&self, package: &Package) -> Result<(), StoreError> {
        let folder = self.models_folder();
        package.write(&folder).map(|_| ()).map_err(|e| StoreError::File {
            what: "cannot write the model into",
            path: folder,
            source: std::io::Error::other(e.to_string()),
        })
    }

    /// A version's ONNX file.
    pub fn model_path(&self, name: &str, number: u64) -> PathBuf {
        self.models_folder().join(name).join(number.to_string()).join("model.onnx")
    }

    /// Removes the files of a version that has no row: a crash or a cancelled task left them between writing and
    /// recording. The database says what exists.
    ///
    /// # Errors
    /// [`StoreError`] when they can't be removed.
    pub async fn remove_unrecorded(&self, name: &str, number: u64) -> Result<(), StoreError> {
        if self.model(name, number).await?.is_some() {
            return Ok(());
        }
        let path = self.models_folder().join(name).join(number.to_string());
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::File { what: "cannot remove the leftover", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Adds a published version's row.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_model(&self, row: &ModelRow) -> Result<(), StoreError> {
        insert(&self.pool, row).await.map_err(self.database("recording a model version"))
    }

    /// Reads a version's package and checks it against its digest.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the version.
    pub fn read_package(&self, name: &str, number: u64) -> Result<Package, StoreError> {
        let folder = self.models_folder().join(name).join(number.to_string());
        Package::read(&folder).map_err(|e| damaged(format!("model {name} version {number}"), e))
    }

    /// All versions of all lineages, by name and number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn models(&self) -> Result<Vec<ModelRow>, StoreError> {
        let rows = sqlx::query("SELECT manifest, size_bytes, created_ms FROM models ORDER BY name, number")
            .fetch_all(&self.pool)
            .await
            .map_err(self.database("listing models"))?;
        rows.iter().map(read_row).collect()
    }

    /// The newest version of each lineage.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_models(&self) -> Result<Vec<ModelRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT manifest, size_bytes, created_ms FROM models AS m \
             WHERE number = (SELECT MAX(number) FROM models WHERE name = m.name) ORDER BY name",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(self.database("listing models"))?;
        rows.iter().map(read_row).collect()
    }

    /// One version; number 0 stands for the newest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn model(&self, name: &str, number: u64) -> Result<Option<ModelRow>, StoreError> {
        let row = sqlx::query(
            "SELECT manifest, size_bytes, created_ms FROM models \
             WHERE name = ?1 AND (number = ?2 OR ?2 = 0) ORDER BY number DESC LIMIT 1",
        )
        .bind(name)
        .bind(i64::try_from(number).unwrap_or(i64::MAX))
        .fetch_optional(&self.pool)
        .await
        .map_err(self.database("finding a model"))?;
        row.as_ref().map(read_row).transpose()
    }

    /// The version with this digest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn model_by_digest(&self, digest: Digest) -> Result<Option<ModelRow>, StoreError> {
        let row = sqlx::query("SELECT manifest, size_bytes, created_ms FROM models WHERE digest = ? LIMIT 1")
            .bind(digest.as_bytes().to_vec())
            .fetch_optional(&self.pool)
            .await
            .map_err(self.database("finding a model"))?;
        row.as_ref().map(read_row).transpose()
    }
}

fn read_row(row: &SqliteRow) -> Result<ModelRow, StoreError> {
    let read = || -> Result<(String, i64, i64), sqlx::Error> {
        Ok((row.try_get("manifest")?, row.try_get("size_bytes")?, row.try_get("created_ms")?))
    };
    let (manifest_json, size_bytes, created_ms) = read().map_err(|e| damaged("model row", e))?;
    let manifest = serde_json::from_str(&manifest_json).map_err(|e| damaged("manifest", e))?;
    Ok(ModelRow { manifest, manifest_json, size_bytes: size_bytes as u64, created_ms })
}
