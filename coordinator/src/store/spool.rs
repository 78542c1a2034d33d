//! Remembers updates that wait for their round's close: one file each, under a quota, with the digest in its name.
//! Small updates are rows of the database instead; whether an update counts is decided in `rounds`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fedge_models::WriteBehind;

/// Updates up to this size are rows: they need no files, and share their commit's one sync.
pub const ROW_BYTES: u64 = 64 << 10;

const PART: &str = ".part";

/// Why the spool can't take an update.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The quota.
    #[error("the spool holds {used} of at most {quota} bytes (store.spool_max_bytes): the update waits")]
    Full {
        /// Bytes that are taken or promised.
        used: u64,
        /// The quota.
        quota: u64,
    },
    /// The disk.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// An update's place in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The assignment that it answers.
    pub assignment: [u8; 16],
    /// SHA-256 of its payload: another payload for the same assignment can't replace it.
    pub sha256: [u8; 32],
}

/// The folder of updates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    quota: u64,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    /// Bytes that each update takes, or will take when it has arrived.
    promised: BTreeMap<Entry, u64>,
    /// Updates that are over and that the disk did not let go yet: they take their place until it does.
    over: BTreeSet<Entry>,
}

impl Spool {
    /// The spool in `folder`, which exists. Keeps the files whose assignments are `known`, and removes all others: what a
    /// crash left behind. `quota`: bytes that all updates may take together.
    pub fn open(folder: PathBuf, quota: u64, known: &BTreeSet<[u8; 16]>) -> Spool {
        let mut places = Places::default();
        for file in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some(entry) = file.file_name().to_str().and_then(Entry::parse) else {
                remove(&file.path());
                continue;
            };
            *places.promised.entry(entry).or_default() += file.metadata().map_or(0, |m| m.len());
            if !known.contains(&entry.assignment) {
                places.over.insert(entry);
            }
        }
        let spool = Spool { folder, quota, places: Arc::default() };
        spool.sweep(&mut places);
        *spool.lock() = places;
        spool
    }

    /// Where a whole update lies.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(entry.name())
    }

    /// Where an update lies that has not arrived whole.
    pub fn part_path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(entry.name() + PART)
    }

    /// Bytes that are there of an update that has not arrived whole.
    pub fn arrived(&self, entry: &Entry) -> u64 {
        self.part_path(entry).metadata().map_or(0, |m| m.len())
    }

    /// Opens the unfinished file of an update of `bytes` bytes for reading and appending, and promises it its place. An
    /// earlier payload of the same assignment that was not finished goes.
    ///
    /// # Errors
    /// [`SpoolError::Full`], or the disk's error.
    pub fn begin(&self, entry: &Entry, bytes: u64) -> Result<File, SpoolError> {
        let path = self.part_path(entry);
        let mut places = self.lock();
        let others: Vec<Entry> = of(&places.promised, &entry.assignment).filter(|other| other != entry).collect();
        places.over.extend(others.into_iter().filter(|other| !self.path(other).exists()));
        places.over.remove(entry);
        self.sweep(&mut places);
        let promised = &mut places.promised;
        let used: u64 = promised.iter().filter(|(other, _)| *other != entry).map(|(_, bytes)| bytes).sum();
        if used.saturating_add(bytes) > self.quota {
            return Err(SpoolError::Full { used, quota: self.quota });
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|source| SpoolError::File { path, source })?;
        promised.insert(*entry, bytes);
        Ok(file)
    }

    /// Gives a verified update its lasting name; on disk when this returns.
    ///
    /// # Errors
    /// The disk's error; the unfinished file stays, unless it was its sync that failed: the kernel may take what it could
    /// not write for written, and another sync would succeed without it.
    pub fn finish(&self, entry: &Entry, file: &mut WriteBehind) -> Result<(), SpoolError> {
        let (part, path) = (self.part_path(entry), self.path(entry));
        let mut work = || -> io::Result<()> {
            fail::fail_point!("spool_before_sync");
            file.sync().inspect_err(|_| self.discard(entry))?;
            fail::fail_point!("spool_synced");
            fs::rename(&part, &path)?;
            fail::fail_point!("spool_renamed");
            File::open(&self.folder)?.sync_all()
        };
        work().map_err(|source| SpoolError::File { path: path.clone(), source })
    }

    /// Drops what arrived of an update that turned out to be wrong.
    pub fn discard(&self, entry: &Entry) {
        remove(&self.part_path(entry));
        if !self.path(entry).exists() {
            self.lock().promised.remove(entry);
        }
    }

    /// Removes everything of an assignment whose round is over.
    pub fn remove(&self, assignment: &[u8; 16]) {
        let mut places = self.lock();
        let entries: Vec<Entry> = of(&places.promised, assignment).collect();
        places.over.extend(entries);
        self.sweep(&mut places);
    }

    /// Removes what is over; what the disk does not let go is tried again the next time.
    fn sweep(&self, places: &mut Places) {
        let Places { promised, over } = places;
        over.retain(|entry| {
            let gone = [self.path(entry), self.part_path(entry)].iter().all(|path| remove(path));
            if gone {
                promised.remove(entry);
            }
            !gone
        });
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn name(&self) -> String {
        format!("{}-{}", hex::encode(self.assignment), hex::encode(self.sha256))
    }

    fn parse(name: &str) -> Option<Entry> {
        let (assignment, sha256) = name.strip_suffix(PART).unwrap_or(name).split_once('-')?;
        let mut entry = Entry { assignment: [0; 16], sha256: [0; 32] };
        hex::decode_to_slice(assignment, &mut entry.assignment).ok()?;
        hex::decode_to_slice(sha256, &mut entry.sha256).ok()?;
        Some(entry)
    }
}

fn of(promised: &BTreeMap<Entry, u64>, assignment: &[u8; 16]) -> impl Iterator<Item = Entry> {
    let (first, last) = ([0; 32], [255; 32]);
    let range = Entry { assignment: *assignment, sha256: first }..=Entry { assignment: *assignment, sha256: last };
    promised.range(range).map(|(entry, _)| *entry)
}

/// Whether it is gone.
fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a file of the spool could not be removed");
            false
        }
        _ => true,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entry(assignment: u8, sha256: u8) -> Entry {
        Entry { assignment: [assignment; 16], sha256: [sha256; 32] }
    }

    #[test]
    fn an_update_grows_over_several_connections_and_gets_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().to_owned(), 100, &BTreeSet::new());
        let (entry, other) = (entry(1, 2), entry(1, 3));
        spool.begin(&entry, 8).unwrap().write_all(b"half").unwrap();
        assert_eq!((spool.arrived(&entry), spool.arrived(&other)), (4, 0));
        let mut file = WriteBehind::new(spool.begin(&entry, 8).unwrap());
        file.write_all(b"more").unwrap();
        spool.finish(&entry, &mut file).unwrap();
        assert_eq!(fs::read(spool.path(&entry)).unwrap(), b"halfmore");
        spool.begin(&other, 8).unwrap();
        assert!(spool.path(&entry).exists(), "a whole update is not replaced by another");
        spool.remove(&entry.assignment);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_promised_counts_against_the_quota_until_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().to_owned(), 100, &BTreeSet::new());
        spool.begin(&entry(1, 1), 60).unwrap();
        assert!(matches!(spool.begin(&entry(2, 1), 60), Err(SpoolError::Full { used: 60, quota: 100 })));
        spool.begin(&entry(1, 1), 60).unwrap();
        spool.begin(&entry(1, 2), 70).unwrap();
        assert_eq!(spool.arrived(&entry(1, 1)), 0);
        spool.discard(&entry(1, 2));
        spool.begin(&entry(2, 1), 60).unwrap();
    }

    #[test]
    fn opening_keeps_known_assignments_and_sweeps_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().to_owned(), 100, &BTreeSet::new());
        for n in 1..=2 {
            spool.begin(&entry(n, 1), 8).unwrap().write_all(b"12345678").unwrap();
        }
        fs::write(folder.path().join("stray"), b"x").unwrap();
        let spool = Spool::open(folder.path().to_owned(), 10, &BTreeSet::from([[2; 16]]));
        assert_eq!((spool.arrived(&entry(1, 1)), spool.arrived(&entry(2, 1))), (0, 8));
        assert!(!folder.path().join("stray").exists());
        assert!(matches!(spool.begin(&entry(3, 1), 8), Err(SpoolError::Full { used: 8, .. })));
    }

    #[test]
    fn what_the_disk_does_not_let_go_takes_its_place_until_it_does() {
        let folder = tempfile::tempdir().unwrap();
        // A folder can't be removed as a file can.
        let stuck = folder.path().join(entry(1, 1).name());
        fs::create_dir(&stuck).unwrap();
        let bytes = stuck.metadata().unwrap().len();
        let spool = Spool::open(folder.path().to_owned(), bytes + 8, &BTreeSet::new());
        spool.begin(&entry(2, 1), 8).unwrap();
        assert!(matches!(spool.begin(&entry(3, 1), 8), Err(SpoolError::Full { .. })));
        fs::remove_dir(&stuck).unwrap();
        fs::write(&stuck, b"let go").unwrap();
        spool.begin(&entry(3, 1), 8).unwrap();
        assert!(!stuck.exists());
    }
}
