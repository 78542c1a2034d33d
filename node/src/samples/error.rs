//! What can go wrong with the sample store, said so that the reader can act on it.
//! Files that are read into it have errors of their own, in `file`.

use std::path::{Path, PathBuf};

use super::SampleId;

/// A sample that was refused, or a store that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The file is no sample store, or a damaged one. It is left as it is.
    #[error(
        "{}: the sample store is damaged or is no sample store ({problem}). Stop the node, move this file and its -wal \
         and -shm files aside (or restore a backup), and start again; nothing was deleted",
        path.display()
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// SQLite's message.
        problem: String,
    },
    /// The store was written by a newer program.
    #[error("{}: the sample store does not fit this version of fedge ({problem}); use the version that wrote it, or a newer one", path.display())]
    Version {
        /// The database file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The store could not be opened, read or written.
    #[error(
        "{}: cannot {action} the sample store: {source}; check that the directory exists, is writable and has free space",
        path.display()
    )]
    Store {
        /// The database file.
        path: PathBuf,
        /// What was tried, e.g. "open".
        action: &'static str,
        /// SQLite's or the operating system's answer.
        source: sqlx::Error,
    },
    /// An input holds NaN or an infinity.
    #[error("the sample's element {index} (from 0) is {value}; inputs must be finite numbers")]
    NotFinite {
        /// Position of the first such element, from 0.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// An input without elements.
    #[error("the sample is empty; send the values of one model input")]
    Empty,
    /// One sample is larger than the whole store may be.
    #[error(
        "the sample has {bytes} bytes, but the store holds at most {limit}; raise the store's size or send smaller samples"
    )]
    TooLarge {
        /// Size of the input, in bytes.
        bytes: u64,
        /// The most that the store holds, in bytes.
        limit: u64,
    },
    /// No answered request has this id, or it was so long ago that it is forgotten.
    #[error("sample id {id} is unknown; labels must cite the `fedge_sample_id` of a recent reply of this node")]
    UnknownId {
        /// The id that was cited.
        id: SampleId,
    },
    /// The request's input is no longer kept.
    #[error(
        "sample id {id} has expired: its input waited too long for a label, or newer ones took its place; send the whole sample instead"
    )]
    Expired {
        /// The id that was cited.
        id: SampleId,
    },
    /// The request was labelled before.
    #[error("sample id {id} is labelled already; send the whole sample to correct its label")]
    AlreadyLabelled {
        /// The id that was cited.
        id: SampleId,
    },
}

impl SampleError {
    /// Sorts SQLite's errors: damage is told apart from what a retry or more space may heal.
    pub(crate) fn from_sqlx(path: &Path, action: &'static str, source: sqlx::Error) -> SampleError {
        // SQLITE_CORRUPT and SQLITE_NOTADB (https://www.sqlite.org/rescode.html); extended codes keep them in the low byte.
        const DAMAGE: [i64; 2] = [11, 26];
        let code = source.as_database_error().and_then(|error| error.code()?.parse::<i64>().ok());
        match code {
            Some(code) if DAMAGE.contains(&(code & 0xff)) => {
                SampleError::Corrupt { path: path.to_owned(), problem: source.to_string() }
            }
            _ => SampleError::Store { path: path.to_owned(), action, source },
        }
    }

    /// A migration's error: the schema is newer, was altered, or the database itself failed.
    pub(crate) fn from_migration(path: &Path, error: sqlx::migrate::MigrateError) -> SampleError {
        use sqlx::migrate::MigrateError;
        match error {
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
                SampleError::from_sqlx(path, "migrate", source)
            }
            other => SampleError::Version { path: path.to_owned(), problem: other.to_string() },
        }
    }
}
