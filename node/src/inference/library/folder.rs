//! A model repository on disk: what is there, and when a change of it is whole.
//! It looks and decides; loading is the library's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Name of a model's settings in its folder.
pub const SETTINGS_FILE: &str = "model.toml";
/// Name of a version's file in its folder.
pub const MODEL_FILE: &str = "model.onnx";
/// Most models of a repository, and most versions of a model.
const MAX_ENTRIES: usize = 1000;
/// Most files of a version.
const MAX_FILES: usize = 64;

/// What tells a file from another one of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    name: String,
    len: u64,
    modified: SystemTime,
    inode: u64,
}

/// One model's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundModel {
    /// Its own files: settings, labels, samples.
    pub files: Vec<FileStamp>,
    /// The files of each version that has a `model.onnx`.
    pub versions: BTreeMap<u64, Vec<FileStamp>>,
}

/// All models, by name.
pub type Snapshot = BTreeMap<String, FoundModel>;

/// Looks at a repository. Names that begin with a dot are stages of somebody's copy; what else is no model is skipped.
///
/// # Errors
/// The repository can't be read.
pub fn scan(root: &Path) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot::new();
    for entry in fs::read_dir(root)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        // A model that goes away while it is looked at is no error.
        if is_model_name(&name)
            && entry.path().is_dir()
            && let Ok(model) = scan_model(&entry.path())
        {
            snapshot.insert(name, model);
        }
    }
    Ok(snapshot)
}

/// Looks at one model's folder.
///
/// # Errors
/// It can't be read.
pub fn scan_model(folder: &Path) -> io::Result<FoundModel> {
    let mut model = FoundModel { files: files(folder)?, versions: BTreeMap::new() };
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| Some((name, name.parse::<u64>().ok()?)));
        let Some((text, number)) = number else { continue };
        if number == 0 || number.to_string() != text || !entry.path().is_dir() {
            continue;
        }
        let files = files(&entry.path())?;
        if files.iter().any(|file| file.name == MODEL_FILE) {
            model.versions.insert(number, files);
        }
    }
    Ok(model)
}

/// 1 to 128 letters, digits, '.', '_' and '-', not beginning with a dot.
pub fn is_model_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

fn files(folder: &Path) -> io::Result<Vec<FileStamp>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let metadata = fs::metadata(entry.path())?;
        if metadata.is_file() && !name.starts_with('.') && files.len() < MAX_FILES {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push(FileStamp { name, len: metadata.len(), modified, inode: inode(&metadata) });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

/// Decides when a change is whole: when nothing of a model changed for a while, by two looks or by its files' own times.
#[derive(Debug)]
pub struct Settling {
    settle: Duration,
    applied: Snapshot,
    pending: BTreeMap<String, (Option<FoundModel>, Instant)>,
}

impl Settling {
    /// Nothing was applied yet.
    pub fn new(settle: Duration) -> Settling {
        Settling { settle, applied: Snapshot::new(), pending: BTreeMap::new() }
    }

    /// Models that differ from what was applied and have settled; `None`: gone. They count as applied from here on.
    pub fn observe(&mut self, now: Instant, clock: SystemTime, found: &Snapshot) -> Vec<(String, Option<FoundModel>)> {
        let names: Vec<String> = self.applied.keys().chain(found.keys()).cloned().collect();
        let mut settled = Vec::new();
        for name in names {
            let current = found.get(&name);
            if current == self.applied.get(&name) {
                self.pending.remove(&name);
                continue;
            }
            let since = match self.pending.get(&name) {
                Some((pending, since)) if pending.as_ref() == current => *since,
                _ => now,
            };
            let whole = now.saturating_duration_since(since) >= self.settle
                || current.is_some_and(|model| !modified_since(model, clock, self.settle));
            if whole {
                self.pending.remove(&name);
                self.set(&name, current.cloned());
                settled.push((name, current.cloned()));
            } else {
                self.pending.insert(name, (current.cloned(), since));
            }
        }
        settled
    }

    /// This state of a model was applied, whoever asked for it.
    pub fn set(&mut self, name: &str, model: Option<FoundModel>) {
        match model {
            Some(model) => self.applied.insert(name.to_owned(), model),
            None => self.applied.remove(name),
        };
    }
}

/// Whether a file changed within the last `settle`, or in the future of a clock that was set back.
fn modified_since(model: &FoundModel, clock: SystemTime, settle: Duration) -> bool {
    let mut files = model.files.iter().chain(model.versions.values().flatten());
    files.any(|file| clock.duration_since(file.modified).map_or(true, |age| age < settle))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    fn model(len: u64, modified: SystemTime) -> FoundModel {
        let file = FileStamp { name: MODEL_FILE.to_owned(), len, modified, inode: 1 };
        FoundModel { files: Vec::new(), versions: BTreeMap::from([(1, vec![file])]) }
    }

    #[test]
    fn a_file_that_grows_is_not_taken_before_it_rests() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut settling = Settling::new(SETTLE);
        for tenth in 0..20u32 {
            let after = SETTLE / 10 * tenth;
            let growing = Snapshot::from([("m".to_owned(), model(tenth.into(), clock + after))]);
            assert_eq!(settling.observe(now + after, clock + after, &growing), []);
        }
        let last = model(19, clock + SETTLE / 10 * 19);
        let whole = Snapshot::from([("m".to_owned(), last.clone())]);
        let at = |tenth: u32| SETTLE / 10 * tenth;
        assert_eq!(settling.observe(now + at(28), clock + at(28), &whole), []);
        assert_eq!(settling.observe(now + at(29), clock + at(29), &whole), [("m".to_owned(), Some(last))]);
        assert_eq!(settling.observe(now + at(40), clock + at(40), &whole), [], "once");
    }

    #[test]
    fn old_files_are_taken_at_the_first_look_and_gone_ones_given_up_after_a_while() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut settling = Settling::new(SETTLE);
        let old = model(5, clock - Duration::from_secs(60));
        let found = Snapshot::from([("m".to_owned(), old.clone())]);
        assert_eq!(settling.observe(now, clock, &found), [("m".to_owned(), Some(old))]);
        assert_eq!(settling.observe(now, clock, &Snapshot::new()), []);
        assert_eq!(settling.observe(now + SETTLE, clock + SETTLE, &Snapshot::new()), [("m".to_owned(), None)]);
    }

    #[test]
    fn only_versions_with_a_model_and_names_without_a_dot_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["m/1", "m/2", "m/02", "m/0", "m/x", ".stage/1"] {
            fs::create_dir_all(folder.path().join(version)).unwrap();
        }
        for version in ["m/1", "m/02", "m/0", "m/x", ".stage/1"] {
            fs::write(folder.path().join(version).join(MODEL_FILE), "x").unwrap();
        }
        let found = scan(folder.path()).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["m"]);
        assert_eq!(found["m"].versions.keys().collect::<Vec<_>>(), [&1]);
    }
}
