//! One block of a delta: 32-bit differences, sorted by the significance of their bytes, compressed.
//! Reading the files and framing the blocks is in `model_delta`.
//!
//! Weights of two versions are close, and so are their bits read as integers, because float32 of one sign order as those
//! do. Their difference, its sign folded into the lowest bit, therefore has zeros above: 3 to 10 % fewer bytes than with
//! an exclusive or, which a carry fills with ones. It must be taken where a float32 begins, and in a file that is at any
//! byte; so each segment of a block has a phase, the offset of its first difference.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

use crate::planes;

/// Bytes with one phase: fewer than most tensors have, so that a segment seldom holds parts of two. Part of the format.
const SEGMENT_BYTES: usize = 4096;
/// One difference in so many is looked at to find a segment's phase.
const SAMPLED: usize = 16;
/// The lowest level: higher ones are slower and find nothing more in such data.
const LEVEL: i32 = 1;

/// The same bytes of both files.
#[derive(Default)]
pub(super) struct Block {
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
}

impl Block {
    pub(super) fn resize(&mut self, len: usize) {
        self.old.resize(len, 0);
        self.new.resize(len, 0);
    }
}

/// Most bytes that a block of `len` bytes packs into.
pub(super) fn most_packed(len: usize) -> usize {
    zstd::zstd_safe::compress_bound(len + len.div_ceil(SEGMENT_BYTES))
}

/// Packs blocks. Packed are, compressed together: the phase of each segment, a byte, and the differences of all segments,
/// sorted into four planes.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    differences: Vec<u8>,
    sorted: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> io::Result<Packer> {
        let [differences, sorted, packed] = [const { Vec::new() }; 3];
        Ok(Packer { compressor: Compressor::new(LEVEL)?, differences, sorted, packed })
    }

    pub(super) fn pack(&mut self, block: &Block) -> io::Result<&[u8]> {
        let len = block.new.len();
        self.sorted.clear();
        self.differences.resize(len, 0);
        let segments = block.old.chunks(SEGMENT_BYTES).zip(block.new.chunks(SEGMENT_BYTES));
        for ((old, new), differences) in segments.zip(self.differences.chunks_mut(SEGMENT_BYTES)) {
            let phase = find_phase(old, new);
            subtract(old, new, phase, differences);
            self.sorted.push(phase as u8);
        }
        let phases = self.sorted.len();
        self.sorted.resize(phases + len, 0);
        planes::split(&self.differences, self.sorted.get_mut(phases..).unwrap_or_default());
        self.packed.resize(most_packed(len), 0);
        let size = self.compressor.compress_to_buffer(&self.sorted, self.packed.as_mut_slice())?;
        Ok(self.packed.get(..size).unwrap_or_default())
    }
}

/// Undoes what a [`Packer`] does.
pub(super) struct Unpacker {
    decompressor: Decompressor<'static>,
    differences: Vec<u8>,
    sorted: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> io::Result<Unpacker> {
        let [differences, sorted] = [const { Vec::new() }; 2];
        Ok(Unpacker { decompressor: Decompressor::new()?, differences, sorted })
    }

    /// Fills `block.new` from `block.old`, which are of one length, and hostile bytes.
    pub(super) fn unpack(&mut self, packed: &[u8], block: &mut Block) -> Result<(), String> {
        let len = block.old.len();
        let phases = len.div_ceil(SEGMENT_BYTES);
        // What unfolds to more than its room is refused by the decompressor.
        self.sorted.resize(phases + len, 0);
        let unfolded = self.decompressor.decompress_to_buffer(packed, self.sorted.as_mut_slice());
        let unfolded = unfolded.map_err(|error| error.to_string())?;
        if unfolded != self.sorted.len() {
            return Err(format!("it unfolds to {unfolded} bytes, expected are {}", self.sorted.len()));
        }
        let (phases, sorted) = self.sorted.split_at(phases);
        if let Some(phase) = phases.iter().find(|phase| **phase > 3) {
            return Err(format!("a segment has the phase {phase}, but must have 0 to 3"));
        }
        self.differences.resize(len, 0);
        planes::join(sorted, &mut self.differences);
        let segments = block.old.chunks(SEGMENT_BYTES).zip(self.differences.chunks(SEGMENT_BYTES));
        for (((old, differences), new), phase) in segments.zip(block.new.chunks_mut(SEGMENT_BYTES)).zip(phases) {
            add(old, differences, usize::from(*phase), new);
        }
        Ok(())
    }
}

/// The phase, 0 to 3, with the fewest significant bits in a sample of the segment's differences.
fn find_phase(old: &[u8], new: &[u8]) -> usize {
    let bits = |phase: &usize| -> u32 {
        let (old, new) = (Parts::of(old, *phase), Parts::of(new, *phase));
        let pairs = old.words.iter().zip(new.words).step_by(SAMPLED);
        pairs.map(|(old, new)| 32 - difference(*old, *new).leading_zeros()).sum()
    };
    (0..4).min_by_key(bits).unwrap_or(0)
}

/// A segment, cut at its phase.
struct Parts<'s> {
    before: &'s [u8],
    words: &'s [[u8; 4]],
    after: &'s [u8],
}

impl Parts<'_> {
    fn of(segment: &[u8], phase: usize) -> Parts<'_> {
        let (before, rest) = segment.split_at(phase.min(segment.len()));
        let (words, after) = rest.as_chunks();
        Parts { before, words, after }
    }
}

/// Writes a segment's differences, then those of the bytes before and after its words.
fn subtract(old: &[u8], new: &[u8], phase: usize, differences: &mut [u8]) {
    let (old, new) = (Parts::of(old, phase), Parts::of(new, phase));
    let (words, rest) = differences.split_at_mut(new.words.len() * 4);
    for ((word, old), new) in words.as_chunks_mut().0.iter_mut().zip(old.words).zip(new.words) {
        *word = difference(*old, *new).to_le_bytes();
    }
    let pairs = old.before.iter().chain(old.after).zip(new.before.iter().chain(new.after));
    for (byte, (old, new)) in rest.iter_mut().zip(pairs) {
        *byte = old ^ new;
    }
}

/// Undoes [`subtract`].
fn add(old: &[u8], differences: &[u8], phase: usize, new: &mut [u8]) {
    let old = Parts::of(old, phase);
    let (differences, rest) = differences.split_at(old.words.len() * 4);
    let (before, new) = new.split_at_mut(old.before.len());
    let (words, after) = new.as_chunks_mut();
    for ((word, old), difference) in words.iter_mut().zip(old.words).zip(differences.as_chunks().0) {
        let folded = u32::from_le_bytes(*difference);
        let difference = folded >> 1 ^ (folded & 1).wrapping_neg();
        *word = u32::from_le_bytes(*old).wrapping_add(difference).to_le_bytes();
    }
    let bytes = before.iter_mut().chain(after).zip(old.before.iter().chain(old.after));
    for ((byte, old), difference) in bytes.zip(rest) {
        *byte = old ^ difference;
    }
}

/// The difference modulo 2^32, its sign in the lowest bit: 0, -1, 1, -2 become 0, 1, 2, 3.
fn difference(old: [u8; 4], new: [u8; 4]) -> u32 {
    let difference = u32::from_le_bytes(new).wrapping_sub(u32::from_le_bytes(old));
    difference << 1 ^ (difference as i32 >> 31) as u32
}
