//! Puts a file on disk while it is written, so that the sync at its end has little left to do.
//! What the file is called, and when it counts, is its owner's matter.

use std::fs::File;
use std::io::{self, Write};
use std::thread::{self, JoinHandle};

/// Bytes after which what was written is put on disk.
const STEP_BYTES: u64 = 16 << 20;

/// A file that is written to its end. Every 16 MiB a thread syncs what is there, while more is written; without it, a disk
/// that takes 500 MB/s would begin with a file of 100 MB when its last byte came.
#[derive(Debug)]
pub struct WriteBehind {
    file: File,
    /// Bytes written since the last sync began.
    dirty: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBehind {
    /// Goes on where the file stands.
    pub fn new(file: File) -> WriteBehind {
        WriteBehind { file, dirty: 0, running: None }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Everything is on disk when this returns.
    ///
    /// # Errors
    /// The disk's, also of an earlier sync: what could not be written then may be lost although a later one succeeds.
    pub fn sync(&mut self) -> io::Result<()> {
        self.settle()?;
        self.dirty = 0;
        self.file.sync_all()
    }

    fn begin_sync(&mut self) -> io::Result<()> {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.settle()?;
        let file = self.file.try_clone()?;
        // Without a thread the last sync has more to do.
        self.running = thread::Builder::new().name("write-behind".into()).spawn(move || file.sync_data()).ok();
        self.dirty = 0;
        Ok(())
    }

    /// Waits for the sync that is under way.
    fn settle(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs a file panicked")))
    }
}

impl Drop for WriteBehind {
    /// Nobody would hear of a sync that failed any more, and a later one may succeed: what it may have lost must not be gone
    /// on with.
    fn drop(&mut self) {
        if self.settle().is_err() {
            let _ = self.file.set_len(0);
        }
    }
}

impl Write for WriteBehind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.dirty += taken as u64;
        if self.dirty >= STEP_BYTES {
            self.begin_sync()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_in_pieces_of_any_size_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut behind = WriteBehind::new(File::create(&path).unwrap());
        let piece: Vec<u8> = (0..(5 << 20) + 3).map(|i| (i % 251) as u8).collect();
        let mut syncs = 0;
        for _ in 0..8 {
            behind.write_all(&piece).unwrap();
            syncs += usize::from(behind.dirty == 0);
        }
        behind.sync().unwrap();
        assert!(syncs >= 1 && behind.running.is_none() && behind.dirty == 0);
        assert!(std::fs::read(&path).unwrap() == piece.repeat(8));
    }

    #[test]
    fn a_sync_that_failed_before_is_not_forgotten() {
        let mut behind = WriteBehind::new(tempfile::tempfile().unwrap());
        behind.running = Some(thread::spawn(|| Err(io::ErrorKind::StorageFull.into())));
        assert_eq!(behind.sync().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_a_failed_sync_may_have_lost_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut behind = WriteBehind::new(File::create(&path).unwrap());
        behind.write_all(b"half of it").unwrap();
        behind.running = Some(thread::spawn(|| Err(io::ErrorKind::StorageFull.into())));
        drop(behind);
        assert_eq!(path.metadata().unwrap().len(), 0);
    }
}
