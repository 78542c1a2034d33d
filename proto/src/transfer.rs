//! Chunked transfer: a file as ordered pieces, each with its offset and CRC, checked against the digest of the whole.
//! What is transferred, and to which file, is the callers' matter.

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::model::Chunk;

/// Size of a piece.
pub const CHUNK_BYTES: usize = 1 << 20;
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
    hash: Sha256,
}

impl Receiver {
    /// Expects `announced` bytes in all.
    pub fn new(announced: u64) -> Receiver {
        Receiver { announced, received: 0, hash: Sha256::new() }
    }

    /// Bytes received so far.
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
        self.hash.update(&chunk.data);
        self.received = received;
        Ok(())
    }

    /// Checks the whole against its announced size and digest.
    ///
    /// # Errors
    /// [`TransferError::Size`] or [`TransferError::Digest`].
    pub fn finish(self, sha256: [u8; 32]) -> Result<(), TransferError> {
        if self.received != self.announced {
            return Err(TransferError::Size { got: self.received, announced: self.announced });
        }
        let got: [u8; 32] = self.hash.finalize().into();
        if got != sha256 {
            let (got, announced) = (hex::encode(got), hex::encode(sha256));
            return Err(TransferError::Digest { bytes: self.received, got, announced });
        }
        Ok(())
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
    fn a_whole_with_another_digest_is_refused() {
        let data = data();
        let mut receiver = Receiver::new(data.len() as u64);
        chunks(data, 0).for_each(|c| receiver.accept(&c).unwrap());
        assert!(matches!(receiver.finish([0; 32]), Err(TransferError::Digest { .. })));
    }
}
