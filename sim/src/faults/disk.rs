//! A virtual disk with the promises that POSIX makes and no more: contents last after a sync of the file, names after a
//! sync of their folder; a crash keeps any part of the rest. When it crashes or is full is decided in `env`.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// An assignment's id.
pub type Id = [u8; 16];

/// A file's name. An update of which an earlier payload lies there differs by its digest's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Coordinator: an update that has not arrived whole.
    Part(Id, [u8; 4]),
    /// Coordinator: a whole update.
    Spooled(Id, [u8; 4]),
    /// Coordinator: a version that is being written, of this lineage.
    VersionStage(u8, u64),
    /// Coordinator: a version.
    Version(u8, u64),
    /// Coordinator: what a strategy keeps, being written.
    KeptStage(u8, u64),
    /// Coordinator: what a task's strategy keeps beside a version.
    Kept(u8, u64),
    /// Node: a record that has no name yet.
    Draft(u32),
    /// Node: an update that is not answered.
    Update(Id),
    /// Node: what that update leaves behind.
    Leftover(Id),
    /// Node: the valid memory of a task.
    Memory(u8),
}

/// A folder: names are synced by folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// The coordinator's updates.
    Spool,
    /// The coordinator's versions.
    Versions,
    /// What strategies keep.
    Kept,
    /// The node's updates.
    Outbox,
    /// The node's valid memories.
    Memories,
}

impl Name {
    /// Where it lies.
    pub fn folder(&self) -> Folder {
        match self {
            Name::Part(..) | Name::Spooled(..) => Folder::Spool,
            Name::VersionStage(..) | Name::Version(..) => Folder::Versions,
            Name::KeptStage(..) | Name::Kept(..) => Folder::Kept,
            Name::Draft(_) | Name::Update(_) | Name::Leftover(_) => Folder::Outbox,
            Name::Memory(_) => Folder::Memories,
        }
    }
}

/// The disk of one host.
#[derive(Debug, Default)]
pub struct Disk {
    files: Vec<File>,
    /// As processes see it.
    names: BTreeMap<Name, usize>,
    /// As it is after a crash that keeps nothing that was not synced.
    lasting: BTreeMap<Name, usize>,
    pending: Vec<Change>,
}

#[derive(Debug, Default)]
struct File {
    seen: Vec<u8>,
    lasting: Vec<u8>,
    pending: Vec<Write>,
}

#[derive(Debug)]
enum Write {
    At(usize, Vec<u8>),
    Cut(usize),
}

/// A change of names that its folder's sync has not made last yet.
#[derive(Debug, Clone, Copy)]
enum Change {
    Named(Name, usize),
    Removed(Name),
    /// From, to. Both names may last, or the new one alone; never neither.
    Renamed(Name, Name, usize),
}

impl Disk {
    /// Makes an empty file, or leaves what is there.
    pub fn create(&mut self, name: Name) {
        if self.names.contains_key(&name) {
            return;
        }
        self.files.push(File::default());
        self.names.insert(name, self.files.len() - 1);
        self.pending.push(Change::Named(name, self.files.len() - 1));
    }

    /// Appends to a file. False: there is none.
    #[must_use]
    pub fn append(&mut self, name: Name, bytes: &[u8]) -> bool {
        let Some(file) = self.file(name) else { return false };
        file.pending.push(Write::At(file.seen.len(), bytes.to_vec()));
        file.seen.extend_from_slice(bytes);
        true
    }

    /// Cuts a file to a length that it has.
    pub fn cut(&mut self, name: Name, len: usize) {
        if let Some(file) = self.file(name)
            && file.seen.len() > len
        {
            file.seen.truncate(len);
            file.pending.push(Write::Cut(len));
        }
    }

    /// Makes a file's content last. False: there is no such file.
    #[must_use]
    pub fn sync(&mut self, name: Name) -> bool {
        let Some(file) = self.file(name) else { return false };
        for write in std::mem::take(&mut file.pending) {
            apply(&mut file.lasting, &write);
        }
        true
    }

    /// A sync that failed: what was to be written is marked clean and will not be written by another one.
    pub fn fail_sync(&mut self, name: Name) {
        if let Some(file) = self.file(name) {
            file.pending.clear();
        }
    }

    /// Renames, also over another file. False: there is no such file.
    #[must_use]
    pub fn rename(&mut self, from: Name, to: Name) -> bool {
        let Some(file) = self.names.remove(&from) else { return false };
        self.names.insert(to, file);
        self.pending.push(Change::Renamed(from, to, file));
        true
    }

    /// Removes a name. False: it was not there.
    pub fn remove(&mut self, name: Name) -> bool {
        let was_there = self.names.remove(&name).is_some();
        if was_there {
            self.pending.push(Change::Removed(name));
        }
        was_there
    }

    /// Makes a folder's names last.
    pub fn sync_folder(&mut self, folder: Folder) {
        let mut rest = Vec::new();
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Named(name, file) if name.folder() == folder => {
                    self.lasting.insert(name, file);
                }
                Change::Removed(name) if name.folder() == folder => {
                    self.lasting.remove(&name);
                }
                Change::Renamed(from, to, file) if from.folder() == folder || to.folder() == folder => {
                    self.lasting.insert(to, file);
                    if from.folder() == folder {
                        self.lasting.remove(&from);
                    } else {
                        rest.push(Change::Removed(from));
                    }
                }
                other => rest.push(other),
            }
        }
        self.pending = rest;
    }

    /// A file's content.
    pub fn read(&self, name: Name) -> Option<&[u8]> {
        self.names.get(&name).and_then(|file| self.files.get(*file)).map(|file| file.seen.as_slice())
    }

    /// What would be there of a file if the host crashed now and nothing was kept that was not synced.
    pub fn lasting(&self, name: Name) -> Option<&[u8]> {
        self.lasting.get(&name).and_then(|file| self.files.get(*file)).map(|file| file.lasting.as_slice())
    }

    /// Names in a folder, in order.
    pub fn list(&self, folder: Folder) -> Vec<Name> {
        self.names.keys().copied().filter(|name| name.folder() == folder).collect()
    }

    /// Bytes of all files of a folder.
    pub fn used(&self, folder: Folder) -> u64 {
        let files = self.names.iter().filter(|(name, _)| name.folder() == folder);
        files.filter_map(|(_, file)| self.files.get(*file)).map(|file| file.seen.len() as u64).sum()
    }

    /// The host crashes: of what was not synced, any part is kept. Writes are kept whole, torn or not at all, in any
    /// combination; names likewise.
    pub fn crash(&mut self, rng: &mut ChaCha8Rng) {
        for change in std::mem::take(&mut self.pending) {
            let luck = rng.random_range(0..4);
            match change {
                Change::Named(name, file) if luck >= 2 => {
                    self.lasting.insert(name, file);
                }
                Change::Removed(name) if luck >= 2 => {
                    self.lasting.remove(&name);
                }
                Change::Renamed(from, to, file) if luck >= 1 => {
                    self.lasting.insert(to, file);
                    if luck >= 2 {
                        self.lasting.remove(&from);
                    }
                }
                _ => {}
            }
        }
        self.names = self.lasting.clone();
        for file in &mut self.files {
            for write in std::mem::take(&mut file.pending) {
                match (rng.random_range(0..3), write) {
                    (0, write) => apply(&mut file.lasting, &write),
                    (1, Write::At(at, mut bytes)) => {
                        bytes.truncate(rng.random_range(0..=bytes.len()));
                        apply(&mut file.lasting, &Write::At(at, bytes));
                    }
                    _ => {}
                }
            }
            file.seen.clone_from(&file.lasting);
        }
    }

    fn file(&mut self, name: Name) -> Option<&mut File> {
        self.names.get(&name).and_then(|file| self.files.get_mut(*file))
    }
}

/// A write beyond the end leaves zeros in between.
fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Cut(len) => content.truncate(*len),
        Write::At(_, bytes) if bytes.is_empty() => {}
        Write::At(at, bytes) => {
            if content.len() < at + bytes.len() {
                content.resize(at + bytes.len(), 0);
            }
            if let Some(place) = content.get_mut(*at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    const FILE: Name = Name::Update([1; 16]);
    const OTHER: Name = Name::Update([2; 16]);

    type TwoFiles = (Option<Vec<u8>>, Option<Vec<u8>>);

    fn after_crashes(make: impl Fn(&mut Disk)) -> BTreeSet<TwoFiles> {
        let crash = |seed| {
            let mut disk = Disk::default();
            make(&mut disk);
            disk.crash(&mut ChaCha8Rng::seed_from_u64(seed));
            (disk.read(FILE).map(<[u8]>::to_vec), disk.read(OTHER).map(<[u8]>::to_vec))
        };
        (0..500).map(crash).collect()
    }

    #[test]
    fn what_was_synced_with_its_folder_outlives_every_crash() {
        let found = after_crashes(|disk| {
            disk.create(FILE);
            assert!(disk.append(FILE, b"abc") && disk.sync(FILE));
            disk.sync_folder(Folder::Outbox);
            disk.sync_folder(Folder::Memories);
        });
        assert_eq!(found, BTreeSet::from([(Some(b"abc".to_vec()), None)]));
    }

    #[test]
    fn of_what_was_not_synced_anything_may_be_left() {
        let found = after_crashes(|disk| {
            disk.create(FILE);
            assert!(disk.append(FILE, b"ab") && disk.append(FILE, b"cd"));
        });
        for content in [&b""[..], b"a", b"ab", b"abc", b"abcd", b"\0\0c", b"\0\0cd", b"a\0cd"] {
            assert!(found.contains(&(Some(content.to_vec()), None)), "{content:?}");
        }
        assert!(found.contains(&(None, None)));
    }

    #[test]
    fn a_name_without_its_folders_sync_may_be_gone_although_the_content_was_synced() {
        let found = after_crashes(|disk| {
            disk.create(FILE);
            assert!(disk.append(FILE, b"abc") && disk.sync(FILE));
        });
        assert_eq!(found, BTreeSet::from([(Some(b"abc".to_vec()), None), (None, None)]));
    }

    #[test]
    fn a_rename_leaves_the_old_name_or_the_new_one_or_both() {
        let found = after_crashes(|disk| {
            disk.create(FILE);
            assert!(disk.append(FILE, b"abc") && disk.sync(FILE));
            disk.sync_folder(Folder::Outbox);
            assert!(disk.rename(FILE, OTHER));
        });
        let whole = Some(b"abc".to_vec());
        assert_eq!(found, BTreeSet::from([(whole.clone(), None), (None, whole.clone()), (whole.clone(), whole)]));
    }

    #[test]
    fn after_a_failed_sync_another_one_does_not_save_what_was_to_be_written() {
        let mut disk = Disk::default();
        disk.create(FILE);
        assert!(disk.append(FILE, b"abc"));
        disk.fail_sync(FILE);
        assert!(disk.sync(FILE));
        disk.sync_folder(Folder::Outbox);
        assert_eq!((disk.read(FILE), disk.lasting(FILE)), (Some(&b"abc"[..]), Some(&b""[..])));
    }
}
