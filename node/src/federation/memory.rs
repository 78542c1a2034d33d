//! What a node remembers of a task from one update to the next: what its encoding lost, SCAFFOLD's own control variate, and
//! the layers that stay on it.
//! Valid memory alone: what the update on its way leaves behind lies beside it in `outbox` until its outcome is known.

use std::io::Write;
use std::path::{Path, PathBuf};

use fedge_models::{Digest, Model, ModelError, Weights};
use serde::{Deserialize, Serialize};

use super::record::{self, Draft, Record, RecordError, Synced};

const KIND: &str = "fedge memory 1";
/// Values of a piece of a file.
const PIECE_VALUES: usize = 1 << 16;

/// Whose memory: of one task on one layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Lineage.
    pub model: String,
    /// The task.
    pub task: String,
    /// Digest of the parameter layout, whose exchanged values are remembered.
    pub layout: Digest,
}

/// Parameters that were trained here and stay here.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// Their names, in the layout's order.
    pub names: Vec<String>,
    /// Their values, one after the other.
    pub values: Vec<f32>,
}

impl Own {
    /// Puts the values into the model that has these parameters. What is of another size is left out.
    ///
    /// # Errors
    /// [`ModelError`] where the model can't be written.
    pub fn put_into(&self, model: &Model) -> Result<Model, ModelError> {
        let own = model.layout().only(|spec| spec.is_exchanged() && self.names.contains(&spec.name))?;
        let mut values = model.weights().into_values();
        if own.exchanged_len() == self.values.len() {
            model.layout().scatter(&own, &self.values, &mut values);
        }
        model.with_weights(&Weights::new(model.layout().clone(), values)?)
    }
}

/// What an update leaves behind for the next one of its task. One value a parameter that travels, in the layout's order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Leftover<'a> {
    /// What the encoding lost, to be added to the next update before it is encoded.
    pub residual: Option<&'a [f32]>,
    /// SCAFFOLD's c_i.
    pub control: Option<&'a [f32]>,
    /// What stays here.
    pub own: Option<&'a Own>,
}

impl Leftover<'_> {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.residual.is_none() && self.control.is_none() && self.own.is_none()
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    key: Key,
    sha256: Digest,
    /// Values of residual and control, each.
    values: u64,
    residual: bool,
    control: bool,
    /// Values of the parameters that stay here, after those of the parts.
    #[serde(default, skip_serializing_if = "is_zero")]
    own_values: u64,
    /// Length of their names, a JSON list that comes last.
    #[serde(default, skip_serializing_if = "is_zero")]
    own_names_bytes: u64,
}

// serde gives a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The valid memories of a node, a folder: `<model>/<task>`.
#[derive(Debug, Clone)]
pub struct Memory {
    folder: PathBuf,
}

impl Memory {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`RecordError`] names the folder.
    pub fn open(folder: PathBuf) -> Result<Memory, RecordError> {
        std::fs::create_dir_all(&folder).map_err(RecordError::at("create", &folder))?;
        Ok(Memory { folder })
    }

    /// Adds what the task's last counted update lost; whether there was anything. A memory that is damaged or of another
    /// layout is left out, with a warning: an update without it is a good update still.
    ///
    /// # Errors
    /// [`RecordError`] where it can't be read.
    pub fn add_residual(&self, key: &Key, values: &mut [f32]) -> Result<bool, RecordError> {
        let Some(mut found) = self.find(key, Some(values.len()))?.filter(|f| f.header.residual) else {
            return Ok(false);
        };
        found.each(0, |index, lost| {
            if let Some(value) = values.get_mut(index) {
                *value += lost;
            }
        })?;
        Ok(true)
    }

    /// SCAFFOLD's c − c_i from c, or from zeros where there is none; without a memory c_i is zero. None: both are.
    ///
    /// # Errors
    /// As [`Memory::add_residual`].
    pub fn correction(&self, key: &Key, server: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, RecordError> {
        let expected = server.as_ref().map(Vec::len);
        let Some(mut found) = self.find(key, expected)?.filter(|f| f.header.control) else { return Ok(server) };
        let mut values = server.unwrap_or_else(|| vec![0.0; found.header.values as usize]);
        let part = u64::from(found.header.residual);
        found.each(part, |index, own| {
            if let Some(value) = values.get_mut(index) {
                *value -= own;
            }
        })?;
        Ok(Some(values))
    }

    /// What stays here of the task's model; none before its first update counted.
    ///
    /// # Errors
    /// As [`Memory::add_residual`].
    pub fn own(&self, key: &Key) -> Result<Option<Own>, RecordError> {
        let Some(mut found) = self.find(key, None)?.filter(|f| f.header.own_names_bytes > 0) else { return Ok(None) };
        let (start, len) = (found.header.shared_bytes(), found.header.own_values * 4);
        let mut values = Vec::new();
        found.look(start, len, |_, value| values.push(value))?;
        let mut text = Vec::new();
        found.record.pieces(start + len, found.header.own_names_bytes, |piece| text.extend_from_slice(piece))?;
        match serde_json::from_slice(&text) {
            Ok(names) => Ok(Some(Own { names, values })),
            Err(error) => {
                tracing::warn!(path = %self.path(key).display(), %error, "the layers that stayed here are lost");
                Ok(None)
            }
        }
    }

    /// What tells one record of [`Memory::own`] from another, without its values; none where there is none.
    pub fn own_digest(&self, key: &Key) -> Option<Digest> {
        let (_, header) = Record::open::<Header>(&self.path(key), KIND).ok()?;
        (header.key == *key && header.own_names_bytes > 0).then_some(header.sha256)
    }

    /// Writes what an update leaves behind into a folder, without a name: not valid yet.
    ///
    /// # Errors
    /// [`RecordError`], e.g. where the disk is full.
    pub fn draft(key: &Key, leftover: Leftover<'_>, folder: &Path) -> Result<Synced, RecordError> {
        let mut draft = Draft::new_in(folder)?;
        let failed = RecordError::at("write into", folder);
        let parts = [leftover.residual, leftover.control];
        for part in parts.into_iter().chain([leftover.own.map(|own| &own.values[..])]).flatten() {
            for piece in part.chunks(PIECE_VALUES) {
                let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
                draft.body().write_all(&bytes).map_err(&failed)?;
            }
        }
        let names = leftover.own.map(|own| serde_json::to_vec(&own.names)).transpose();
        let names = names.map_err(|error| failed(std::io::Error::other(error)))?.unwrap_or_default();
        draft.body().write_all(&names).map_err(&failed)?;
        let (finished, sha256, _) = draft.finish()?;
        let values = parts.into_iter().flatten().map(|part| part.len() as u64).next().unwrap_or_default();
        let (residual, control) = (leftover.residual.is_some(), leftover.control.is_some());
        let own_values = leftover.own.map_or(0, |own| own.values.len() as u64);
        let own_names_bytes = names.len() as u64;
        finished
            .head(KIND, &Header { key: key.clone(), sha256, values, residual, control, own_values, own_names_bytes })?
            .sync()
    }

    /// Makes a record that [`Memory::draft`] wrote and that was named `tentative` the valid memory of its task: renamed,
    /// lasting, and those of other tasks of its model removed. Nothing where the record is gone: then it is valid already.
    ///
    /// # Errors
    /// [`RecordError`]; the valid memory is then the one of before, and this can be tried again.
    pub fn keep(&self, key: &Key, tentative: &Path) -> Result<(), RecordError> {
        let (folder, path) = (self.folder.join(&key.model), self.path(key));
        if tentative.try_exists().map_err(RecordError::at("look for", tentative))? {
            if !folder.is_dir() {
                std::fs::create_dir_all(&folder).map_err(RecordError::at("create", &folder))?;
                record::sync_folder(&self.folder)?;
            }
            std::fs::rename(tentative, &path).map_err(RecordError::at("name", &path))?;
        }
        // Also where it was renamed before: a crash may have come before the sync.
        if folder.is_dir() {
            record::sync_folder(&folder)?;
        }
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for other in entries.map(|e| e.path()).filter(|other| *other != path) {
            if let Err(error) = record::remove(&other) {
                tracing::warn!(%error, "the memory of an earlier task stays behind");
            }
        }
        Ok(())
    }

    /// A task's memory, checked; of so many values, where that is known.
    fn find(&self, key: &Key, values: Option<usize>) -> Result<Option<Found>, RecordError> {
        let path = self.path(key);
        let open = || {
            let (mut record, header) = Record::open::<Header>(&path, KIND)?;
            let unfit = values.is_some_and(|values| values as u64 != header.values);
            let own = header.own_values.checked_mul(4).and_then(|own| own.checked_add(header.own_names_bytes));
            let bytes = own.and_then(|own| own.checked_add(header.shared_bytes()));
            if header.key != *key || unfit || Some(record.bytes) != bytes {
                return Err(RecordError::damaged(&path, "it is of another task, layout or size"));
            }
            record.verify(header.sha256)?;
            Ok(Found { record, header })
        };
        match open() {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) if error.is_damaged() => {
                tracing::warn!(%error, "what earlier updates left behind is lost");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(&key.model).join(&key.task)
    }
}

impl Header {
    /// Length of residual and control together; of a header that nobody wrote, more than any file has.
    fn shared_bytes(&self) -> u64 {
        let parts = u64::from(self.residual) + u64::from(self.control);
        self.values.saturating_mul(parts * 4)
    }
}

struct Found {
    record: Record,
    header: Header,
}

impl Found {
    /// Looks at the values of a part: the residual is the first one that is there.
    fn each(&mut self, part: u64, look: impl FnMut(usize, f32)) -> Result<(), RecordError> {
        let bytes = self.header.values * 4;
        self.look(part * bytes, bytes, look)
    }

    fn look(&mut self, start: u64, bytes: u64, mut look: impl FnMut(usize, f32)) -> Result<(), RecordError> {
        let mut index = 0;
        // A piece has a multiple of 4 bytes.
        self.record.pieces(start, bytes, |piece| {
            for value in piece.as_chunks::<4>().0 {
                look(index, f32::from_le_bytes(*value));
                index += 1;
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(task: &str) -> Key {
        Key { model: "digits".into(), task: task.into(), layout: Digest::of(b"layout") }
    }

    struct Room(tempfile::TempDir);

    impl Room {
        fn new() -> Room {
            Room(tempfile::tempdir().unwrap())
        }

        fn memory(&self) -> Memory {
            Memory::open(self.0.path().join("memory")).unwrap()
        }

        fn tentative(&self, key: &Key, leftover: Leftover<'_>) -> PathBuf {
            let path = self.0.path().join("tentative");
            Memory::draft(key, leftover, self.0.path()).unwrap().name(&path).unwrap();
            path
        }

        fn keep(&self, key: &Key, leftover: Leftover<'_>) {
            let path = self.tentative(key, leftover);
            self.memory().keep(key, &path).unwrap();
        }
    }

    fn residual(values: &[f32]) -> Leftover<'_> {
        Leftover { residual: Some(values), ..Leftover::default() }
    }

    #[test]
    fn what_was_kept_is_added_and_what_was_not_is_not() {
        let room = Room::new();
        let key = key("a");
        room.tentative(&key, residual(&[1.0, -2.0]));
        let mut values = [10.0, 20.0];
        assert!(!room.memory().add_residual(&key, &mut values).unwrap(), "tentative only");
        room.keep(&key, residual(&[1.0, -2.0]));
        assert!(room.memory().add_residual(&key, &mut values).unwrap());
        assert_eq!(values, [11.0, 18.0]);
        room.keep(&key, residual(&[0.5, 0.5]));
        assert!(room.memory().add_residual(&key, &mut values).unwrap());
        assert_eq!(values, [11.5, 18.5], "the newest alone");
    }

    #[test]
    fn both_parts_are_found_and_each_is_left_alone_where_it_is_not_there() {
        let room = Room::new();
        let key = key("a");
        room.keep(&key, Leftover { residual: Some(&[1.0, 2.0]), control: Some(&[3.0, 4.0]), own: None });
        let mut delta = [0.0, 0.0];
        assert!(room.memory().add_residual(&key, &mut delta).unwrap());
        let correction = |server: Option<Vec<f32>>| room.memory().correction(&key, server).unwrap();
        assert_eq!((delta, correction(Some(vec![10.0; 2]))), ([1.0, 2.0], Some(vec![7.0, 6.0])));
        assert_eq!(correction(None), Some(vec![-3.0, -4.0]), "the server's is zero");
        assert_eq!(correction(Some(vec![1.0])), Some(vec![1.0]), "of another size: not looked at");
        room.keep(&key, Leftover { control: Some(&[1.0, 1.0]), ..Leftover::default() });
        assert!(!room.memory().add_residual(&key, &mut delta).unwrap());
        assert_eq!(correction(Some(vec![7.0, 6.0])), Some(vec![6.0, 5.0]));
        room.keep(&key, residual(&[1.0, 2.0]));
        assert_eq!((correction(None), correction(Some(vec![1.0; 2]))), (None, Some(vec![1.0; 2])));
    }

    #[test]
    fn what_stays_is_found_beside_what_was_lost_and_goes_into_the_model() {
        let room = Room::new();
        let key = key("a");
        let model = Model::from_bytes(&include_bytes!("../../../models/zoo/digits_cnn.onnx")[..]).unwrap();
        let own = Own { names: vec!["fc2.bias".into()], values: (0u8..10).map(f32::from).collect() };
        assert_eq!(room.memory().own(&key).unwrap(), None);
        room.keep(&key, Leftover { residual: Some(&[1.0, 2.0]), control: None, own: Some(&own) });
        let found = room.memory().own(&key).unwrap().unwrap();
        assert_eq!(found, own);
        let mut values = [0.0, 0.0];
        assert!(room.memory().add_residual(&key, &mut values).unwrap() && values == [1.0, 2.0]);
        let changed = found.put_into(&model).unwrap();
        let (range, before) = (model.layout().range("fc2.bias").unwrap(), model.weights());
        for (index, value) in changed.weights().values().iter().enumerate() {
            let expected =
                if range.contains(&index) { own.values[index - range.start] } else { before.values()[index] };
            assert_eq!(*value, expected, "{index}");
        }
        let first = room.memory().own_digest(&key).unwrap();
        // As many as the normalizations of a large network.
        let many = Own {
            names: (0..500).map(|index| format!("features.{index}.running_mean")).collect(),
            values: vec![1.0; 500],
        };
        room.keep(&key, Leftover { own: Some(&many), ..Leftover::default() });
        assert_eq!(room.memory().own(&key).unwrap(), Some(many));
        assert_ne!(room.memory().own_digest(&key), Some(first));
        room.keep(&key, residual(&[1.0]));
        assert_eq!(room.memory().own(&key).unwrap(), None, "the newest alone");
        assert_eq!(room.memory().own_digest(&key), None);
    }

    #[test]
    fn keeping_twice_is_keeping_once_and_other_tasks_of_the_model_are_forgotten() {
        let room = Room::new();
        room.keep(&key("a"), residual(&[1.0]));
        let path = room.tentative(&key("b"), residual(&[2.0]));
        let memory = room.memory();
        assert!(memory.add_residual(&key("a"), &mut [0.0]).unwrap(), "until the first of another task is kept");
        memory.keep(&key("b"), &path).unwrap();
        memory.keep(&key("b"), &path).unwrap();
        assert!(memory.add_residual(&key("b"), &mut [0.0]).unwrap());
        assert!(!memory.add_residual(&key("a"), &mut [0.0]).unwrap());
    }

    #[test]
    fn a_memory_of_another_layout_or_a_damaged_one_is_left_out() {
        let room = Room::new();
        room.keep(&key("a"), residual(&[1.0]));
        let memory = room.memory();
        let other = Key { layout: Digest::of(b"other"), ..key("a") };
        assert!(!memory.add_residual(&other, &mut [0.0]).unwrap());
        assert!(!memory.add_residual(&key("a"), &mut [0.0, 0.0]).unwrap());
        let path = memory.path(&key("a"));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(!memory.add_residual(&key("a"), &mut [0.0]).unwrap());
        std::fs::write(&path, &bytes[..10]).unwrap();
        assert!(!memory.add_residual(&key("a"), &mut [0.0]).unwrap());
    }

    #[test]
    fn what_cannot_be_kept_leaves_the_valid_memory_and_says_where() {
        let room = Room::new();
        let memory = room.memory();
        room.keep(&key("a"), residual(&[1.0]));
        // A file where the folder of another model would be: nothing can be kept there.
        std::fs::write(room.0.path().join("memory/other"), b"").unwrap();
        let other = Key { model: "other".into(), ..key("a") };
        let path = room.tentative(&other, residual(&[2.0]));
        let error = memory.keep(&other, &path).unwrap_err().to_string();
        assert!(error.contains("other"), "{error}");
        assert!(path.exists() && memory.add_residual(&key("a"), &mut [0.0]).unwrap());
    }
}
