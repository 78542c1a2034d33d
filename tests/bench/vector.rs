//! The fixed updates of the benchmarks: pseudo-random values that differ between nodes, and weights that differ too, so that
//! the mean proves that each node counted once. Both sides compute them from the node's name alone.

/// A number in -1..1 from a seed and an index (SplitMix64, Steele et al. 2014).
pub fn unit(seed: u64, index: u64) -> f32 {
    let mut z = seed.wrapping_mul(0xd129_42e7_45a5_1d5b).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// A node's seed, from its name.
pub fn seed(node: &str) -> u64 {
    // FNV-1a
    node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A node's delta of one parameter, at most 0.001.
pub fn delta(seed: u64, index: u64) -> f32 {
    unit(seed, index) * 1e-3
}

/// A node's weight in the mean, 1 to 1000.
pub fn examples(seed: u64) -> u64 {
    seed % 1000 + 1
}
