//! Chunked transfer: a file as ordered pieces, each with its offset and CRC, checked against the digest of the whole.
//! What is transferred, and to which file, is the callers' matter.

use std::io::{self, Read};

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::model::Chunk;

/// Size of a piece.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Largest message that a server or a client of ours decodes: a chunk and its frame.
pub const MAX_MESSAGE_BYTES: usize = 2 << 20;

/// Why a transfer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// A piece is missing, repeated or out of order.
    #[error("a chunk starts at byte {got}, expected {expected}: chunks are missing, repeated or out of order")]
    Offset {
        /// Its offset.
        got: u64,
        /// Bytes received so far.
        expected: u64,
    },
    /// A piece changed on its way.
    #[error("the chunk at byte {offset} fails its CRC: it was damaged on its way")]
    Crc {
        /// Its offset.
        offset: u64,
    },
    /// A piece without data, or larger than allowed.
    #[error("the chunk at byte {offset} has {len} bytes, allowed are 1 to {CHUNK_BYTES}")]
    ChunkSize {
        /// Its offset.
        offset: u64,
        /// Its size.
        len: usize,
    },
    /// More bytes than announced.
    #[error("{got} bytes came, {announced} were announced")]
    Size {
        /// Bytes that came.
        got: u64,
        /// Bytes announced.
        announced: u64,
    },
    /// The whole is not what was announced.
    #[error("the SHA-256 of the {bytes} bytes received is {got}, announced was {announced}")]
    Digest {
        /// Bytes received.
        bytes: u64,
        /// Their digest, hex.
        got: String,
        /// The announced digest, hex.
        announced: String,
    },
}

/// Why a transfer can't go on with what is there of it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// What is there could not be read.
    #[error("the part that was received before cannot be read: {0}")]
    Read(#[source] io::Error),
    /// There is more than was announced: it belongs to something else.
    #[error("{got} bytes were received before, but {announced} are announced: begin anew")]
    Size {
        /// Bytes that are there, or some of them.
        got: u64,
        /// Bytes announced.
        announced: u64,
    },
}

/// Cuts bytes into chunks, beginning at `offset`. Cheap: the data is shared, not copied.
pub fn chunks(data: Bytes, offset: u64) -> impl Iterator<Item = Chunk> + Send + 'static {
    let len = data.len();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    (start..len).step_by(CHUNK_BYTES).map(move |at| {
        let piece = data.slice(at..(at + CHUNK_BYTES).min(len));
        Chunk { offset: at as u64, crc32: crc32fast::hash(&piece), data: piece }
    })
}

/// Checks pieces as they arrive.
#[derive(Debug)]
pub struct Receiver {
    announced: u64,
    received: u64,
    /// None where the whole has no digest of its own.
    hash: Option<Sha256>,
}

impl Receiver {
    /// Expects `announced` bytes in all.
    pub fn new(announced: u64) -> Receiver {
        Receiver { announced, received: 0, hash: Some(Sha256::new()) }
    }

    /// Expects `announced` bytes of which the first `received` are there, of a whole that has no digest of its own, such as a
    /// delta, which is checked by what it makes. It ends with [`Receiver::complete`].
    pub fn without_digest(announced: u64, received: u64) -> Receiver {
        Receiver { announced, received, hash: None }
    }

    /// Goes on with a transfer of `announced` bytes of which `already` gives the first, as a connection that dropped has
    /// left them; the next chunk then begins where they end. Reads them all, for the digest of the whole: about a second
    /// a gigabyte. Whether they are right, [`Receiver::finish`] says.
    ///
    /// # Errors
    /// [`ResumeError`] where they can't be read or are more than announced.
    pub fn resume(announced: u64, mut already: impl Read) -> Result<Receiver, ResumeError> {
        let mut receiver = Receiver::new(announced);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let len = match already.read(&mut buffer) {
                Ok(0) => return Ok(receiver),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ResumeError::Read(error)),
            };
            receiver.received += len as u64;
            if receiver.received > announced {
                return Err(ResumeError::Size { got: receiver.received, announced });
            }
            receiver.look(buffer.get(..len).unwrap_or_default());
        }
    }

    /// Bytes received so far, which is also the offset of the next chunk.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Accepts the next piece; the caller writes its data.
    ///
    /// # Errors
    /// [`TransferError`] if the piece is out of order, damaged, oversized or beyond what was announced.
    pub fn accept(&mut self, chunk: &Chunk) -> Result<(), TransferError> {
        if chunk.offset != self.received {
            return Err(TransferError::Offset { got: chunk.offset, expected: self.received });
        }
        let len = chunk.data.len();
        if len == 0 || len > CHUNK_BYTES {
            return Err(TransferError::ChunkSize { offset: chunk.offset, len });
        }
        let received = self.received + len as u64;
        if received > self.announced {
            return Err(TransferError::Size { got: received, announced: self.announced });
        }
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            return Err(TransferError::Crc { offset: chunk.offset });
        }
        self.look(&chunk.data);
        self.received = received;
        Ok(())
    }

    fn look(&mut self, data: &[u8]) {
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
    }

    /// Checks that everything came.
    ///
    /// # Errors
    /// [`TransferError::Size`].
    pub fn complete(&self) -> Result<(), TransferError> {
        if self.received == self.announced {
            return Ok(());
        }
        Err(TransferError::Size { got: self.received, announced: self.announced })
    }

    /// Checks the whole against its announced size and digest.
    ///
    /// # Errors
    /// [`TransferError::Size`] or [`TransferError::Digest`], the latter also of a receiver without a digest.
    pub fn finish(self, sha256: [u8; 32]) -> Result<(), TransferError> {
        self.complete()?;
        let got: Option<[u8; 32]> = self.hash.map(|hash| hash.finalize().into());
        if got == Some(sha256) {
            return Ok(());
        }
        let got = got.map_or_else(|| "not known".to_owned(), hex::encode);
        Err(TransferError::Digest { bytes: self.received, got, announced: hex::encode(sha256) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn data() -> Bytes {
        (0..CHUNK_BYTES * 2 + 17).map(|i| (i % 251) as u8).collect::<Vec<_>>().into()
    }

    fn digest(data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }

    #[test]
    fn chunks_arrive_in_order_and_make_the_whole_from_any_offset() {
        let data = data();
        let mut receiver = Receiver::new(data.len() as u64);
        let mut got = Vec::new();
        for chunk in chunks(data.clone(), 0) {
            receiver.accept(&chunk).unwrap();
            got.extend_from_slice(&chunk.data);
        }
        receiver.finish(digest(&data)).unwrap();
        assert_eq!(got, data);
        let rest: Vec<u8> = chunks(data.clone(), 100).flat_map(|c| c.data).collect();
        assert_eq!(rest, data[100..]);
        assert_eq!(chunks(data, u64::MAX).count(), 0);
    }

    #[test]
    fn a_transfer_goes_on_from_any_byte_where_it_broke_off() {
        let data = data();
        for already in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 5, data.len()] {
            let mut receiver = Receiver::resume(data.len() as u64, &data[..already]).unwrap();
            assert_eq!(receiver.received(), already as u64);
            let mut got = data[..already].to_vec();
            for chunk in chunks(data.clone(), receiver.received()) {
                receiver.accept(&chunk).unwrap();
                got.extend_from_slice(&chunk.data);
            }
            receiver.finish(digest(&data)).unwrap();
            assert_eq!(got, data);
        }
    }

    #[test]
    fn what_was_damaged_before_the_break_is_found_at_the_end() {
        let data = data();
        let mut half = data[..CHUNK_BYTES].to_vec();
        half[17] ^= 1;
        let mut receiver = Receiver::resume(data.len() as u64, &half[..]).unwrap();
        chunks(data.clone(), receiver.received()).for_each(|c| receiver.accept(&c).unwrap());
        assert!(matches!(receiver.finish(digest(&data)), Err(TransferError::Digest { .. })));
    }

    #[test]
    fn more_than_announced_and_an_unreadable_part_are_no_beginning() {
        let error = Receiver::resume(9, &b"ten bytes."[..]).unwrap_err().to_string();
        assert!(error.contains("10 bytes") && error.contains("begin anew"), "{error}");
        let error = Receiver::resume(u64::MAX, io::repeat(0).take(3).chain(Broken)).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    #[test]
    #[ignore = "a measurement, not a check"]
    fn speed_of_the_checks() {
        let data: Bytes = vec![7; 1 << 28].into();
        let rate = |name: &str, work: &mut dyn FnMut()| {
            let started = std::time::Instant::now();
            work();
            println!("{name}: {:.2} GB/s", data.len() as f64 / started.elapsed().as_secs_f64() / 1e9);
        };
        rate("CRC", &mut || assert_ne!(crc32fast::hash(&data), 0));
        rate("SHA-256", &mut || assert_ne!(digest(&data), [0; 32]));
        let pieces: Vec<Chunk> = chunks(data.clone(), 0).collect();
        let mut receiver = Receiver::new(data.len() as u64);
        rate("accepting chunks", &mut || pieces.iter().for_each(|chunk| receiver.accept(chunk).unwrap()));
        rate("resuming", &mut || assert_eq!(Receiver::resume(1 << 28, &data[..]).unwrap().received(), 1 << 28));
    }

    #[test]
    fn damaged_repeated_missing_surplus_and_oversized_chunks_are_refused() {
        let data = data();
        let pieces: Vec<Chunk> = chunks(data.clone(), 0).collect();
        let mut receiver = Receiver::new(data.len() as u64);
        assert!(matches!(receiver.accept(&pieces[1]), Err(TransferError::Offset { expected: 0, .. })));
        let damaged = Chunk { crc32: pieces[0].crc32 ^ 1, ..pieces[0].clone() };
        assert_eq!(receiver.accept(&damaged), Err(TransferError::Crc { offset: 0 }));
        receiver.accept(&pieces[0]).unwrap();
        assert!(matches!(receiver.accept(&pieces[0]), Err(TransferError::Offset { .. })));
        let oversized = Chunk { data: vec![0; CHUNK_BYTES + 1].into(), ..pieces[1].clone() };
        assert!(matches!(receiver.accept(&oversized), Err(TransferError::ChunkSize { .. })));
        assert!(matches!(receiver.finish(digest(&data)), Err(TransferError::Size { .. })));
        let mut short = Receiver::new(10);
        assert!(matches!(short.accept(&pieces[0]), Err(TransferError::Size { announced: 10, .. })));
    }

    #[test]
    fn a_whole_without_a_digest_is_checked_chunk_by_chunk_alone_and_never_passes_for_one_with() {
        let data = data();
        let mut receiver = Receiver::without_digest(data.len() as u64, 100);
        for chunk in chunks(data.clone(), 100) {
            assert!(receiver.complete().is_err());
            receiver.accept(&chunk).unwrap();
        }
        receiver.complete().unwrap();
        assert!(matches!(receiver.finish(digest(&data)), Err(TransferError::Digest { .. })));
    }

    #[test]
    fn a_whole_with_another_digest_is_refused() {
        let data = data();
        let mut receiver = Receiver::new(data.len() as u64);
        chunks(data, 0).for_each(|c| receiver.accept(&c).unwrap());
        assert!(matches!(receiver.finish([0; 32]), Err(TransferError::Digest { .. })));
    }
}
