//! Remembers: one SQLite database (WAL, full sync) and the files beside it.
//! What is written when is decided by the rounds' driver; a committed write has reached the disk.

mod migrate;
pub mod models;
pub mod spool;
pub mod tasks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// Why the store could not do something. Nothing acknowledged is lost by any of these.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database.
    #[error("the database {}: {what}: {source}", path.display())]
    Database {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// A background worker died.
    #[error("{0} was interrupted; try again")]
    Interrupted(&'static str),
    /// The database is of another version, or no database of ours.
    #[error("the database {}: {source}; restore it from a backup or move it away", path.display())]
    Migration {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// What is stored can't be read back.
    #[error("stored {what} is damaged: {reason}; restore the coordinator's folder from a backup")]
    Damaged {
        /// What.
        what: String,
        /// How.
        reason: String,
    },
}

/// The coordinator's durable state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    folder: PathBuf,
}

impl Store {
    /// Opens the store in `folder`, or makes it there, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] names the folder or file and the cause.
    pub async fn open(folder: &Path) -> Result<Store, StoreError> {
        for part in ["", "models", "spool", "state", "deltas"].map(|part| folder.join(part)) {
            std::fs::create_dir_all(&part).map_err(|source| StoreError::File {
                what: "cannot create the folder",
                path: part,
                source,
            })?;
        }
        let path = folder.join("coordinator.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Database { what: "cannot open it", path: path.clone(), source })?;
        sqlx::migrate!("./migrations").run(&pool).await.map_err(|source| StoreError::Migration { path, source })?;
        Ok(Store { pool, folder: folder.to_owned() })
    }

    /// The connection pool, for the registry's own tables.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Folder of the model repository, `<name>/<number>/model.onnx`.
    pub fn models_folder(&self) -> PathBuf {
        self.folder.join("models")
    }

    /// Folder of uploads that wait for their round's close.
    pub fn spool_folder(&self) -> PathBuf {
        self.folder.join("spool")
    }

    /// Where what a task's strategy keeps beside this version lies.
    pub fn server_state(&self, task_id: &str, version: u64) -> PathBuf {
        self.folder.join("state").join(format!("{task_id}-{version}"))
    }

    /// Folder of deltas between versions; everything in it can be made again.
    pub fn deltas_folder(&self) -> PathBuf {
        self.folder.join("deltas")
    }

    fn database(&self, what: &'static str) -> impl Fn(sqlx::Error) -> StoreError + use<> {
        let path = self.folder.join("coordinator.db");
        move |source| StoreError::Database { what, path: path.clone(), source }
    }
}

/// Wall clock, milliseconds since 1970: for records that people read, never for decisions.
pub fn wall_clock_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

fn damaged(what: impl Into<String>, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { what: what.into(), reason: reason.to_string() }
}
