//! Records: files of a JSON header and a body, whole on disk or not there. Written, synced once, then named.
//! What they hold is the matter of `outbox` and `memory`.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedge_models::{Digest, HashingWriter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Bytes of the header: a line that names the kind, JSON, spaces to the end. The body begins after it.
pub const HEADER_BYTES: u64 = 4096;

/// Size of one read of a body.
const PIECE_BYTES: usize = 1 << 18;

/// Why a record could not be written, read or moved.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RecordError {
    /// For `map_err`: what was tried, with which file.
    pub fn at(action: &'static str, path: &Path) -> impl Fn(io::Error) -> RecordError + use<> {
        let path = path.to_owned();
        move |source| RecordError { action, path: path.clone(), source }
    }

    /// A record that is there and is none.
    pub fn damaged(path: &Path, problem: &str) -> RecordError {
        RecordError::at("use", path)(io::Error::new(io::ErrorKind::InvalidData, problem))
    }

    /// Whether it is there, and no record or not the one that it should be. Reading it again does not help.
    pub fn is_damaged(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    }

    /// Whether the file is just not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// A record that is being written: its body first, its header when the body is known. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    body: HashingWriter<BufWriter<NamedTempFile>>,
}

impl Draft {
    /// Begins a record that will lie in this folder.
    ///
    /// # Errors
    /// [`RecordError`] names the folder.
    pub fn new_in(folder: &Path) -> Result<Draft, RecordError> {
        let begin = || {
            let mut file = NamedTempFile::new_in(folder)?;
            file.seek(SeekFrom::Start(HEADER_BYTES))?;
            Ok(file)
        };
        let file = begin().map_err(RecordError::at("write into", folder))?;
        Ok(Draft { body: HashingWriter::new(BufWriter::with_capacity(PIECE_BYTES, file)) })
    }

    /// Where the body is written to.
    pub fn body(&mut self) -> &mut impl Write {
        &mut self.body
    }

    /// The body is complete: its digest and its length.
    ///
    /// # Errors
    /// [`RecordError`], e.g. where the disk is full.
    pub fn finish(self) -> Result<(Finished, Digest, u64), RecordError> {
        let (buffered, digest, bytes) = self.body.finish();
        let path = buffered.get_ref().path().to_owned();
        let file = buffered.into_inner().map_err(|e| RecordError::at("write", &path)(e.into_error()))?;
        Ok((Finished { file }, digest, bytes))
    }
}

/// A record with its body, without its header.
#[derive(Debug)]
pub struct Finished {
    file: NamedTempFile,
}

impl Finished {
    /// Writes the header. `kind` is one line without its end.
    ///
    /// # Errors
    /// [`RecordError`]; also a header that is too long.
    pub fn head<H: Serialize>(mut self, kind: &str, header: &H) -> Result<Written, RecordError> {
        let failed = RecordError::at("write", self.file.path());
        let text = serde_json::to_string(header).map_err(|e| failed(e.into()))?;
        let mut block = format!("{kind}\n{text}").into_bytes();
        if block.len() as u64 >= HEADER_BYTES {
            return Err(failed(io::Error::other(format!("its header has {} bytes", block.len()))));
        }
        block.resize(HEADER_BYTES as usize - 1, b' ');
        block.push(b'\n');
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&block)
        };
        write().map_err(&failed)?;
        Ok(Written { file: self.file })
    }
}

/// A record that is complete and not on disk yet.
#[derive(Debug)]
pub struct Written {
    file: NamedTempFile,
}

impl Written {
    /// Puts it on disk.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn sync(self) -> Result<Synced, RecordError> {
        self.file.as_file().sync_all().map_err(RecordError::at("sync", self.file.path()))?;
        Ok(Synced { file: self.file })
    }
}

/// A record that is whole on disk and has no name yet.
#[derive(Debug)]
pub struct Synced {
    file: NamedTempFile,
}

impl Synced {
    /// Gives the record its name. It lasts once its folder is synced.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn name(self, path: &Path) -> Result<(), RecordError> {
        self.file.persist(path).map(drop).map_err(|e| RecordError::at("name", path)(e.error))
    }
}

/// A record that is read.
#[derive(Debug)]
pub struct Record {
    file: File,
    path: PathBuf,
    /// Length of the body in bytes.
    pub bytes: u64,
}

impl Record {
    /// Opens a record of this kind; it stands at its body.
    ///
    /// # Errors
    /// [`RecordError`]: not there, of another kind, or with a header that does not parse.
    pub fn open<H: DeserializeOwned>(path: &Path, kind: &str) -> Result<(Record, H), RecordError> {
        let failed = RecordError::at("read", path);
        let mut file = File::open(path).map_err(&failed)?;
        let bytes = file.metadata().map_err(&failed)?.len();
        let mut block = vec![0; HEADER_BYTES as usize];
        file.read_exact(&mut block).map_err(&failed)?;
        let text = block.strip_prefix(kind.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n"));
        let text = text.ok_or_else(|| RecordError::damaged(path, &format!("it is no {kind:?}")))?;
        let header = serde_json::from_slice(text).map_err(|e| RecordError::damaged(path, &e.to_string()))?;
        Ok((Record { file, path: path.to_owned(), bytes: bytes - HEADER_BYTES }, header))
    }

    /// Gives the body from a byte on to `look`, in pieces of 256 KiB; it stands at the end afterwards.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn pieces(&mut self, from: u64, len: u64, mut look: impl FnMut(&[u8])) -> Result<(), RecordError> {
        let failed = RecordError::at("read", &self.path);
        self.file.seek(SeekFrom::Start(HEADER_BYTES + from)).map_err(&failed)?;
        let (mut buffer, mut left) = (vec![0; PIECE_BYTES], len);
        while left > 0 {
            let piece = buffer.get_mut(..left.min(PIECE_BYTES as u64) as usize).unwrap_or_default();
            self.file.read_exact(piece).map_err(&failed)?;
            look(piece);
            left -= piece.len() as u64;
        }
        Ok(())
    }

    /// Checks the body against its digest.
    ///
    /// # Errors
    /// [`RecordError`] where it has another one.
    pub fn verify(&mut self, digest: Digest) -> Result<(), RecordError> {
        let mut hash = HashingWriter::new(io::sink());
        // A sink takes everything.
        self.pieces(0, self.bytes, |piece| _ = hash.write_all(piece))?;
        if hash.finish().1 != digest {
            return Err(RecordError::damaged(&self.path, "its body has another digest than its header says"));
        }
        Ok(())
    }

    /// The open file, at this byte of the body.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn into_file(mut self, from: u64) -> Result<File, RecordError> {
        self.file.seek(SeekFrom::Start(HEADER_BYTES + from)).map_err(RecordError::at("read", &self.path))?;
        Ok(self.file)
    }
}

/// Makes names in a folder last.
///
/// # Errors
/// [`RecordError`].
pub fn sync_folder(folder: &Path) -> Result<(), RecordError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(RecordError::at("sync", folder))
}

/// Removes a file. One that is not there is no failure.
///
/// # Errors
/// [`RecordError`].
pub fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RecordError::at("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KIND: &str = "fedge test 1";

    fn write(folder: &Path, body: &[u8]) -> (PathBuf, Digest) {
        let mut draft = Draft::new_in(folder).unwrap();
        draft.body().write_all(body).unwrap();
        let (finished, digest, bytes) = draft.finish().unwrap();
        assert_eq!((digest, bytes), (Digest::of(body), body.len() as u64));
        let path = folder.join("record");
        finished.head(KIND, &vec!["a", "b"]).unwrap().sync().unwrap().name(&path).unwrap();
        (path, digest)
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_draft_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let body: Vec<u8> = (0..PIECE_BYTES + 7).map(|i| (i % 251) as u8).collect();
        let (path, digest) = write(folder.path(), &body);
        let (mut record, header) = Record::open::<Vec<String>>(&path, KIND).unwrap();
        assert_eq!((header, record.bytes), (vec!["a".to_owned(), "b".to_owned()], body.len() as u64));
        record.verify(digest).unwrap();
        let mut got = Vec::new();
        record.pieces(5, record.bytes - 5, |piece| got.extend_from_slice(piece)).unwrap();
        assert_eq!(got, body[5..]);
        drop(Draft::new_in(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_kind_a_cut_and_a_changed_body_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, digest) = write(folder.path(), b"body");
        let error = Record::open::<Vec<String>>(&path, "fedge test 2").unwrap_err().to_string();
        assert!(error.contains("fedge test 2") && error.contains("record"), "{error}");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (mut record, _) = Record::open::<Vec<String>>(&path, KIND).unwrap();
        assert!(record.verify(digest).unwrap_err().to_string().contains("digest"));
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert!(Record::open::<Vec<String>>(&path, KIND).is_err());
        assert!(Record::open::<Vec<String>>(&folder.path().join("none"), KIND).unwrap_err().is_missing());
    }
}
