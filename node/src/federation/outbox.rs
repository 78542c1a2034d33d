//! Updates that are persisted and not answered yet: what is said and the payload, one file each, and beside it what the
//! update leaves behind. A node sends these very bytes until the outcome is known, also after a restart.

use std::path::{Path, PathBuf};

use fedge_models::Digest;
use fedge_proto::update::{Coding, Encoding};
use serde::{Deserialize, Serialize};

use super::convert::AssignmentId;
use super::memory::{Key, Leftover, Memory};
use super::record::{self, Draft, Record, RecordError};

const KIND: &str = "fedge update 2";

/// What is said with an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Lineage, task and layout.
    pub key: Key,
    /// The version that was trained.
    pub base: Digest,
    /// How the payload is written.
    #[serde(with = "coding")]
    pub coding: Coding,
    /// Samples trained on.
    pub examples: u64,
    /// What training was like.
    pub metrics: Metrics,
}

/// What training was like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the first local epoch.
    pub loss_first: f32,
    /// Mean loss of the last local epoch.
    pub loss_last: f32,
    /// Mean loss of the base version, where it was asked for.
    pub loss_base: Option<f32>,
    /// Whether training stopped at the deadline.
    pub partial: bool,
    /// Wall time of training.
    pub duration_ms: u64,
}

/// A persisted update.
#[derive(Debug)]
pub struct Update {
    /// What is said with it.
    pub announcement: Announcement,
    /// Digest of the payload.
    pub sha256: Digest,
    /// The payload.
    pub payload: Record,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    announcement: Announcement,
    sha256: Digest,
    size_bytes: u64,
    /// Whether it leaves something behind.
    leftover: bool,
}

/// The node's outbox, a folder: `<assignment>.update`, and `<assignment>.memory` where it leaves something behind.
#[derive(Debug, Clone)]
pub struct Outbox {
    folder: PathBuf,
}

impl Outbox {
    /// Opens the folder, or makes it, and removes what a crash left half done.
    ///
    /// # Errors
    /// [`RecordError`] names the folder.
    pub fn open(folder: PathBuf) -> Result<Outbox, RecordError> {
        std::fs::create_dir_all(&folder).map_err(RecordError::at("create", &folder))?;
        let outbox = Outbox { folder };
        let found = outbox.found();
        let known = |path: &Path| found.iter().any(|id| *path == outbox.path(*id) || *path == outbox.memory_path(*id));
        let entries = std::fs::read_dir(&outbox.folder).into_iter().flatten().flatten();
        for path in entries.map(|e| e.path()).filter(|path| !known(path)) {
            tracing::info!(path = %path.display(), "removed what was never announced");
            outbox.forget(&path);
        }
        Ok(outbox)
    }

    /// A payload to be written, then [`put`](Outbox::put).
    ///
    /// # Errors
    /// [`RecordError`] names the folder.
    pub fn draft(&self) -> Result<Draft, RecordError> {
        Draft::new_in(&self.folder)
    }

    /// Persists an update and what it leaves behind: on disk when this returns, which is the payload's length.
    ///
    /// # Errors
    /// [`RecordError`], e.g. where the disk is full; nothing is found again then.
    pub fn put(
        &self,
        id: AssignmentId,
        announcement: Announcement,
        payload: Draft,
        leftover: Leftover<'_>,
    ) -> Result<u64, RecordError> {
        let key = announcement.key.clone();
        let (finished, sha256, size_bytes) = payload.finish()?;
        let header = Header { announcement, sha256, size_bytes, leftover: !leftover.is_empty() };
        // What it leaves behind comes first, and lasts before the update has a name: of names that were not synced a crash
        // may keep any, and an update that is found without the rest that it left would be taken for one that was kept.
        if header.leftover {
            Memory::draft(&key, leftover, &self.folder)?.name(&self.memory_path(id))?;
            record::sync_folder(&self.folder).inspect_err(|_| self.discard(id))?;
        }
        let announce = || {
            let written = finished.head(KIND, &header)?;
            fail::fail_point!("outbox_before_sync");
            let synced = written.sync()?;
            fail::fail_point!("outbox_synced");
            synced.name(&self.path(id))?;
            record::sync_folder(&self.folder)
        };
        announce().inspect_err(|_| self.discard(id))?;
        fail::fail_point!("outbox_written");
        Ok(size_bytes)
    }

    /// Reads an update back; its payload is not looked at.
    ///
    /// # Errors
    /// [`RecordError`] names the file.
    pub fn get(&self, id: AssignmentId) -> Result<Update, RecordError> {
        let path = self.path(id);
        let (payload, header) = Record::open::<Header>(&path, KIND)?;
        if payload.bytes != header.size_bytes {
            let problem = format!("its payload has {} bytes instead of {}", payload.bytes, header.size_bytes);
            return Err(RecordError::damaged(&path, &problem));
        }
        Ok(Update { announcement: header.announcement, sha256: header.sha256, payload })
    }

    /// The update was counted: what it left behind becomes valid, then it is forgotten. May be done again after a crash
    /// in between, and after it was done.
    ///
    /// # Errors
    /// [`RecordError`] where its memory can't be made valid. The update stays then, and this has to be done again before
    /// the next one of its task is trained.
    pub fn keep(&self, id: AssignmentId, memory: &Memory) -> Result<(), RecordError> {
        fail::fail_point!("counted_before_keep");
        match Record::open::<Header>(&self.path(id), KIND) {
            Ok((_, header)) if header.leftover => memory.keep(&header.announcement.key, &self.memory_path(id))?,
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error) if error.is_damaged() => {
                tracing::error!(%error, "a counted update was damaged since: what it left behind is lost");
            }
            Err(error) => return Err(error),
        }
        fail::fail_point!("kept_before_remove");
        self.discard(id);
        Ok(())
    }

    /// Forgets an update and what it would have left behind, in this order also on the disk: an update that comes back
    /// after a crash must not come back without the rest.
    pub fn discard(&self, id: AssignmentId) {
        self.forget(&self.path(id));
        let memory = self.memory_path(id);
        if memory.try_exists().unwrap_or(true) {
            if let Err(error) = record::sync_folder(&self.folder) {
                // Then the rest stays as well, until the next start.
                tracing::warn!(%error, "an update that is done stays behind");
                return;
            }
            self.forget(&memory);
        }
    }

    /// Updates that were not answered before the last stop, the newest last.
    pub fn found(&self) -> Vec<AssignmentId> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut id = [0; 16];
            hex::decode_to_slice(name.strip_suffix(".update")?, &mut id).ok()?;
            // The updates of an earlier version of fedge are not found: nobody waits for them any more.
            Record::open::<Header>(&entry.path(), KIND).ok()?;
            Some((entry.metadata().and_then(|m| m.modified()).ok(), AssignmentId(id)))
        });
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn forget(&self, path: &Path) {
        if let Err(error) = record::remove(path) {
            tracing::warn!(%error, "an update that is done stays behind");
        }
    }

    fn path(&self, id: AssignmentId) -> PathBuf {
        self.folder.join(format!("{id}.update"))
    }

    fn memory_path(&self, id: AssignmentId) -> PathBuf {
        self.folder.join(format!("{id}.memory"))
    }
}

/// [`Coding`] as it is written down.
mod coding {
    use super::{Coding, Encoding};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Text {
        encoding: String,
        top_k: f32,
        zstd: bool,
    }

    pub(super) fn serialize<S: Serializer>(coding: &Coding, to: S) -> Result<S::Ok, S::Error> {
        Text { encoding: coding.encoding.to_string(), top_k: coding.top_k, zstd: coding.zstd }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Coding, D::Error> {
        let Text { encoding, top_k, zstd } = Text::deserialize(from)?;
        let encoding: Encoding = encoding.parse().map_err(serde::de::Error::custom)?;
        Ok(Coding { encoding, top_k, zstd })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    pub(crate) fn announcement() -> Announcement {
        Announcement {
            key: Key { model: "digits".into(), task: "digits-1".into(), layout: Digest::of(b"layout") },
            base: Digest::of(b"base"),
            coding: Coding { encoding: Encoding::TopK, top_k: 0.1, zstd: true },
            examples: 3,
            metrics: Metrics {
                steps: 1,
                loss_first: 2.0,
                loss_last: 1.0,
                loss_base: Some(0.1),
                partial: true,
                duration_ms: 4,
            },
        }
    }

    pub(crate) fn put(outbox: &Outbox, id: AssignmentId, payload: &[u8], leftover: Leftover<'_>) {
        let mut draft = outbox.draft().unwrap();
        draft.body().write_all(payload).unwrap();
        assert_eq!(outbox.put(id, announcement(), draft, leftover).unwrap(), payload.len() as u64);
    }

    const ID: AssignmentId = AssignmentId([7; 16]);

    struct Room(tempfile::TempDir);

    impl Room {
        fn new() -> Room {
            Room(tempfile::tempdir().unwrap())
        }

        fn outbox(&self) -> Outbox {
            Outbox::open(self.0.path().join("outbox")).unwrap()
        }

        fn memory(&self) -> Memory {
            Memory::open(self.0.path().join("memory")).unwrap()
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.0.path().join("outbox")).unwrap().count()
        }

        /// What the next update of the task would get.
        fn remembered(&self) -> f32 {
            let mut value = [0.0];
            self.memory().add_residual(&announcement().key, &mut value).unwrap();
            value[0]
        }
    }

    fn residual(value: &[f32]) -> Leftover<'_> {
        Leftover { residual: Some(value), ..Leftover::default() }
    }

    #[test]
    fn an_update_is_found_and_read_again_until_it_is_discarded() {
        let room = Room::new();
        assert!(room.outbox().found().is_empty());
        put(&room.outbox(), ID, b"payload", residual(&[1.0]));
        let again = room.outbox();
        assert_eq!(again.found(), [ID]);
        let mut update = again.get(ID).unwrap();
        assert_eq!((&update.announcement, update.sha256), (&announcement(), Digest::of(b"payload")));
        update.payload.verify(update.sha256).unwrap();
        again.discard(ID);
        assert!(again.found().is_empty() && again.get(ID).unwrap_err().is_missing());
        assert_eq!((room.files(), room.remembered()), (0, 0.0));
    }

    #[test]
    fn a_counted_update_makes_its_memory_valid_and_is_forgotten_also_when_done_twice() {
        let room = Room::new();
        put(&room.outbox(), ID, b"payload", residual(&[1.5]));
        assert_eq!(room.remembered(), 0.0);
        for _ in 0..2 {
            room.outbox().keep(ID, &room.memory()).unwrap();
            assert_eq!((room.files(), room.remembered()), (0, 1.5));
        }
        // One without a memory leaves the valid one as it is.
        put(&room.outbox(), ID, b"payload", Leftover::default());
        room.outbox().keep(ID, &room.memory()).unwrap();
        assert_eq!(room.remembered(), 1.5);
    }

    #[test]
    fn a_crash_between_the_kept_memory_and_the_forgotten_update_changes_nothing() {
        let room = Room::new();
        put(&room.outbox(), ID, b"payload", residual(&[1.5]));
        let outbox = room.outbox();
        room.memory().keep(&announcement().key, &outbox.memory_path(ID)).unwrap();
        assert_eq!(room.outbox().found(), [ID], "it is sent again");
        room.outbox().keep(ID, &room.memory()).unwrap();
        assert_eq!((room.files(), room.remembered()), (0, 1.5));
    }

    #[test]
    fn what_was_not_announced_when_the_process_died_is_removed_at_the_next_start() {
        let room = Room::new();
        let outbox = room.outbox();
        put(&outbox, ID, b"payload", residual(&[1.5]));
        std::fs::remove_file(outbox.path(ID)).unwrap();
        std::fs::write(room.0.path().join("outbox/.tmpX"), b"half").unwrap();
        std::fs::write(room.0.path().join(format!("outbox/{ID}.json")), b"of an earlier version").unwrap();
        assert!(room.outbox().found().is_empty());
        assert_eq!(room.files(), 0);
    }

    #[test]
    fn a_memory_that_cannot_be_kept_keeps_the_update_too() {
        let room = Room::new();
        put(&room.outbox(), ID, b"payload", residual(&[1.5]));
        let memory = room.memory();
        let blocked = room.0.path().join("memory/digits");
        std::fs::write(&blocked, b"").unwrap();
        assert!(room.outbox().keep(ID, &memory).unwrap_err().to_string().contains("digits"));
        assert_eq!(room.outbox().found(), [ID]);
        std::fs::remove_file(blocked).unwrap();
        room.outbox().keep(ID, &memory).unwrap();
        assert_eq!(room.remembered(), 1.5);
    }

    #[test]
    fn an_update_that_cannot_be_written_leaves_nothing_and_an_error() {
        let room = Room::new();
        let outbox = room.outbox();
        let draft = outbox.draft().unwrap();
        // A folder in the update's place: its name can't be given.
        std::fs::create_dir(outbox.path(ID)).unwrap();
        let error = outbox.put(ID, announcement(), draft, residual(&[1.5])).unwrap_err().to_string();
        assert!(error.contains("name"), "{error}");
        assert_eq!(room.files(), 1, "the folder alone");
    }
}
