//! A model's version as its difference from another one of the same length, for nodes that hold that one.
//! Which versions those are, and whether the result has the right digest, is the callers' matter.

mod block;

use std::io::{self, Read, Seek, SeekFrom, Write};

use block::{Block, Packer, Unpacker};

/// Bytes of the files that are compared at a time. Part of the format.
const BLOCK_BYTES: usize = 1 << 20;
/// Marks a delta, and its format's version.
const MAGIC: [u8; 8] = *b"fdelta1\0";
/// Blocks of which [`estimate`] takes the size.
const SAMPLED_BLOCKS: u64 = 4;

/// Why a delta was not made or not applied.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Versions of one lineage have one length; these have not.
    #[error(
        "files of {old} and {new} bytes are not comparable: they are no versions of one lineage; fetch the file whole"
    )]
    NotComparable {
        /// Length of the old file.
        old: u64,
        /// Length of the new file.
        new: u64,
    },
    /// A file or the delta could not be read.
    #[error("{what} cannot be read: {source}")]
    Read {
        /// "the old file", "the new file" or "the delta".
        what: &'static str,
        /// The reader's answer.
        source: io::Error,
    },
    /// The result could not be written.
    #[error("the result cannot be written: {0}")]
    Write(#[source] io::Error),
    /// A file has another length than it is said to have.
    #[error("{what} has not the {expected} bytes that it should have")]
    Length {
        /// "the old file", "the new file".
        what: &'static str,
        /// The length that was expected.
        expected: u64,
    },
    /// The bytes are no delta, or one of another version of fedge.
    #[error("these bytes are no delta that this fedge knows; fetch the file whole")]
    Unknown,
    /// The delta ends too early, or goes on after its last block.
    #[error("the delta has not the length that it should have: {0}")]
    Cut(&'static str),
    /// A block of the delta is damaged.
    #[error("the delta's block for byte {at} is damaged: {problem}")]
    Block {
        /// Where its bytes begin in the file.
        at: u64,
        /// What is wrong.
        problem: String,
    },
    /// The compressor could not be set up: out of memory.
    #[error("the compressor cannot be set up: {0}")]
    Compressor(#[source] io::Error),
}

const OLD: &str = "the old file";
const NEW: &str = "the new file";
const DELTA: &str = "the delta";

/// Writes the delta that makes the new file of the old one, and gives the delta's length in bytes. Memory: 8 MiB.
///
/// Form: 8 bytes of magic, both lengths (u64, little-endian), then for each MiB of the files its packed length (u32) and
/// that many bytes; see `block` for what they hold.
///
/// # Errors
/// [`DeltaError::NotComparable`] where the lengths differ, [`DeltaError::Length`] where a file has another one, and what
/// the readers and the writer answer.
pub fn encode(
    mut old: impl Read,
    old_len: u64,
    mut new: impl Read,
    new_len: u64,
    mut out: impl Write,
) -> Result<u64, DeltaError> {
    if old_len != new_len {
        return Err(DeltaError::NotComparable { old: old_len, new: new_len });
    }
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&old_len.to_le_bytes());
    header.extend_from_slice(&new_len.to_le_bytes());
    out.write_all(&header).map_err(DeltaError::Write)?;
    let mut written = header.len() as u64;
    let mut packer = Packer::new().map_err(DeltaError::Compressor)?;
    let mut block = Block::default();
    for at in (0..new_len).step_by(BLOCK_BYTES) {
        block.resize(block_len(at, new_len));
        fill(&mut old, &mut block.old, OLD, old_len)?;
        fill(&mut new, &mut block.new, NEW, new_len)?;
        let packed = packer.pack(&block).map_err(|problem| damaged(at, &problem))?;
        out.write_all(&(packed.len() as u32).to_le_bytes()).map_err(DeltaError::Write)?;
        out.write_all(packed).map_err(DeltaError::Write)?;
        written += 4 + packed.len() as u64;
    }
    expect_end(&mut old, OLD, old_len)?;
    expect_end(&mut new, NEW, new_len)?;
    out.flush().map_err(DeltaError::Write)?;
    Ok(written)
}

/// Writes the new file from the old one and a hostile delta, and gives its length, which is the old one's. Memory: 8 MiB,
/// and no more bytes are written than the old file has, whatever the delta claims. The caller compares the digest of the
/// result with the one that it was promised.
///
/// # Errors
/// [`DeltaError`]; what was written until then is of no use.
pub fn apply(mut old: impl Read, mut delta: impl Read, mut out: impl Write) -> Result<u64, DeltaError> {
    let len = read_header(&mut delta)?;
    let mut unpacker = Unpacker::new().map_err(DeltaError::Compressor)?;
    let mut block = Block::default();
    let mut packed = Vec::new();
    for at in (0..len).step_by(BLOCK_BYTES) {
        block.resize(block_len(at, len));
        fill(&mut old, &mut block.old, OLD, len)?;
        let mut size = [0; 4];
        delta.read_exact(&mut size).map_err(cut)?;
        let size = u32::from_le_bytes(size) as usize;
        let most = block::most_packed(block.old.len());
        if size > most {
            return Err(damaged(at, &format!("it claims {size} bytes, where at most {most} are possible")));
        }
        packed.resize(size, 0);
        delta.read_exact(&mut packed).map_err(cut)?;
        unpacker.unpack(&packed, &mut block).map_err(|problem| damaged(at, &problem))?;
        out.write_all(&block.new).map_err(DeltaError::Write)?;
    }
    expect_end(&mut old, OLD, len)?;
    if !ends(&mut delta).map_err(|source| DeltaError::Read { what: DELTA, source })? {
        return Err(DeltaError::Cut("it goes on after its last block"));
    }
    out.flush().map_err(DeltaError::Write)?;
    Ok(len)
}

/// Guesses how large a delta is, as a share of the file: the ratio of a few blocks, evenly spread. From about 0.9 on it
/// is not worth its time. Takes some 10 ms, whatever the files' length.
///
/// # Errors
/// As [`encode`].
pub fn estimate(mut old: impl Read + Seek, mut new: impl Read + Seek) -> Result<f32, DeltaError> {
    let [old_len, new_len] = [length(&mut old, OLD)?, length(&mut new, NEW)?];
    if old_len != new_len {
        return Err(DeltaError::NotComparable { old: old_len, new: new_len });
    }
    let blocks = new_len.div_ceil(BLOCK_BYTES as u64);
    let samples = blocks.min(SAMPLED_BLOCKS);
    let mut packer = Packer::new().map_err(DeltaError::Compressor)?;
    let mut block = Block::default();
    let (mut raw, mut packed) = (0, 0);
    for sample in 0..samples {
        // The middle of the sample's share of the file.
        let at = (2 * sample + 1) * blocks / (2 * samples) * BLOCK_BYTES as u64;
        block.resize(block_len(at, new_len));
        seek(&mut old, at, OLD)?;
        fill(&mut old, &mut block.old, OLD, old_len)?;
        seek(&mut new, at, NEW)?;
        fill(&mut new, &mut block.new, NEW, new_len)?;
        packed += packer.pack(&block).map_err(|problem| damaged(at, &problem))?.len();
        raw += block.new.len();
    }
    Ok(if raw == 0 { 1.0 } else { packed as f32 / raw as f32 })
}

fn read_header(delta: &mut impl Read) -> Result<u64, DeltaError> {
    let [mut magic, mut old, mut new] = [[0; 8]; 3];
    delta.read_exact(&mut magic).map_err(cut)?;
    if magic != MAGIC {
        return Err(DeltaError::Unknown);
    }
    delta.read_exact(&mut old).map_err(cut)?;
    delta.read_exact(&mut new).map_err(cut)?;
    let [old, new] = [old, new].map(u64::from_le_bytes);
    if old != new {
        return Err(DeltaError::NotComparable { old, new });
    }
    Ok(new)
}

fn block_len(at: u64, len: u64) -> usize {
    (len - at).min(BLOCK_BYTES as u64) as usize
}

fn fill(file: &mut impl Read, bytes: &mut [u8], what: &'static str, expected: u64) -> Result<(), DeltaError> {
    file.read_exact(bytes).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => DeltaError::Length { what, expected },
        _ => DeltaError::Read { what, source },
    })
}

fn expect_end(file: &mut impl Read, what: &'static str, expected: u64) -> Result<(), DeltaError> {
    match ends(file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DeltaError::Length { what, expected }),
        Err(source) => Err(DeltaError::Read { what, source }),
    }
}

fn ends(reader: &mut impl Read) -> io::Result<bool> {
    loop {
        match reader.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|count| count == 0),
        }
    }
}

fn cut(source: io::Error) -> DeltaError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => DeltaError::Cut("it ends before its last block does"),
        _ => DeltaError::Read { what: DELTA, source },
    }
}

fn damaged(at: u64, problem: &dyn std::fmt::Display) -> DeltaError {
    DeltaError::Block { at, problem: problem.to_string() }
}

fn length(file: &mut impl Seek, what: &'static str) -> Result<u64, DeltaError> {
    file.seek(SeekFrom::End(0)).map_err(|source| DeltaError::Read { what, source })
}

fn seek(file: &mut impl Seek, at: u64, what: &'static str) -> Result<(), DeltaError> {
    file.seek(SeekFrom::Start(at)).map(drop).map_err(|source| DeltaError::Read { what, source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
