//! Updates that are persisted and not answered yet: the payload and what is said with it, one pair of files each.
//! A node sends these very bytes until the outcome is known, also after a restart.

use std::io::Write;
use std::path::{Path, PathBuf};

use fedge_models::Digest;
use serde::{Deserialize, Serialize};

use super::convert::AssignmentId;

/// What is said with an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Version of this format.
    pub schema: u32,
    /// The version that was trained.
    pub base: Digest,
    /// Digest of the parameter layout.
    pub layout: Digest,
    /// Digest of the payload.
    pub sha256: Digest,
    /// Samples trained on.
    pub examples: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the first local epoch.
    pub loss_first: f32,
    /// Mean loss of the last local epoch.
    pub loss_last: f32,
    /// Wall time of training.
    pub duration_ms: u64,
}

/// Version of [`Announcement`]'s format.
pub const SCHEMA: u32 = 1;

/// Why the outbox failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct OutboxError {
    what: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// The node's outbox, a folder.
#[derive(Debug, Clone)]
pub struct Outbox {
    folder: PathBuf,
}

impl Outbox {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`OutboxError`] names the folder.
    pub fn open(folder: PathBuf) -> Result<Outbox, OutboxError> {
        std::fs::create_dir_all(&folder).map_err(error("cannot create the folder", &folder))?;
        Ok(Outbox { folder })
    }

    /// Persists an update: on disk when this returns.
    ///
    /// # Errors
    /// [`OutboxError`]; nothing is found again then.
    pub fn put(&self, id: AssignmentId, announcement: &Announcement, payload: &[u8]) -> Result<(), OutboxError> {
        let text = serde_json::to_vec(announcement).map_err(|e| self.failed(std::io::Error::other(e)))?;
        self.write(&self.payload_path(id), payload)?;
        // The announcement comes last: where it is, the payload is whole.
        self.write(&self.announcement_path(id), &text)
    }

    /// Reads an update back.
    ///
    /// # Errors
    /// [`OutboxError`] names the file.
    pub fn get(&self, id: AssignmentId) -> Result<(Announcement, Vec<u8>), OutboxError> {
        let path = self.announcement_path(id);
        let text = std::fs::read(&path).map_err(error("cannot read", &path))?;
        let announcement: Announcement =
            serde_json::from_slice(&text).map_err(|e| error("cannot read", &path)(std::io::Error::other(e)))?;
        let path = self.payload_path(id);
        let payload = std::fs::read(&path).map_err(error("cannot read", &path))?;
        if announcement.schema != SCHEMA || Digest::of(&payload) != announcement.sha256 {
            let damaged = std::io::Error::other("it does not have the digest of its announcement");
            return Err(error("an update is damaged:", &path)(damaged));
        }
        Ok((announcement, payload))
    }

    /// Forgets an update.
    pub fn remove(&self, id: AssignmentId) {
        for path in [self.announcement_path(id), self.payload_path(id)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %e, "a sent update could not be removed");
                }
                _ => {}
            }
        }
    }

    /// Updates that were not answered before the last stop, the newest last.
    pub fn found(&self) -> Vec<AssignmentId> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut id = [0; 16];
            hex::decode_to_slice(name.strip_suffix(".json")?, &mut id).ok()?;
            let written = self.announcement_path(AssignmentId(id)).metadata().and_then(|m| m.modified()).ok();
            Some((written, AssignmentId(id)))
        });
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), OutboxError> {
        let write = || -> std::io::Result<()> {
            let mut staged = tempfile::NamedTempFile::new_in(&self.folder)?;
            staged.write_all(bytes)?;
            staged.as_file().sync_all()?;
            staged.persist(path)?;
            std::fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(error("cannot write", path))
    }

    fn failed(&self, source: std::io::Error) -> OutboxError {
        error("cannot write into", &self.folder)(source)
    }

    fn payload_path(&self, id: AssignmentId) -> PathBuf {
        self.folder.join(format!("{id}.update"))
    }

    fn announcement_path(&self, id: AssignmentId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

fn error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OutboxError + use<> {
    let path = path.to_owned();
    move |source| OutboxError { what, path, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn announcement(payload: &[u8]) -> Announcement {
        Announcement {
            schema: SCHEMA,
            base: Digest::of(b"base"),
            layout: Digest::of(b"layout"),
            sha256: Digest::of(payload),
            examples: 3,
            steps: 1,
            loss_first: 2.0,
            loss_last: 1.0,
            duration_ms: 4,
        }
    }

    #[test]
    fn an_update_is_found_and_read_again_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let id = AssignmentId([7; 16]);
        let outbox = Outbox::open(folder.path().join("outbox")).unwrap();
        assert!(outbox.found().is_empty());
        outbox.put(id, &announcement(b"payload"), b"payload").unwrap();
        let again = Outbox::open(folder.path().join("outbox")).unwrap();
        assert_eq!(again.found(), [id]);
        assert_eq!(again.get(id).unwrap(), (announcement(b"payload"), b"payload".to_vec()));
        again.remove(id);
        assert!(again.found().is_empty());
    }

    #[test]
    fn a_damaged_payload_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let id = AssignmentId([7; 16]);
        let outbox = Outbox::open(folder.path().to_owned()).unwrap();
        outbox.put(id, &announcement(b"payload"), b"payload").unwrap();
        std::fs::write(outbox.payload_path(id), b"payloaX").unwrap();
        assert!(outbox.get(id).unwrap_err().to_string().contains("damaged"));
    }
}
