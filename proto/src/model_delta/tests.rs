//! Deltas of real and made-up files: what comes back, what is refused, how small they get.

use std::io::Cursor;
use std::time::Instant;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

/// The demo's model; its tensors begin at bytes of all phases.
const DIGITS: &[u8] = include_bytes!("../../../models/zoo/digits_cnn.onnx");

/// Where the large tensors of that file lie: conv1.weight, conv2.weight, fc1.weight and fc2.weight.
fn tensors() -> Vec<std::ops::Range<usize>> {
    // Raw data is field 9 of a tensor, with its length as a varint of 2 or 3 bytes.
    let found =
        [(144, &[0xc0, 0x04][..]), (4608, &[0x80, 0x90, 0x01]), (6144, &[0x80, 0xc0, 0x01]), (480, &[0x80, 0x0f])];
    let place = |(values, length): (usize, &[u8])| {
        let head = [&[0x4a], length].concat();
        let start = DIGITS.windows(head.len()).position(|bytes| bytes == head).unwrap() + head.len();
        start..start + values * 4
    };
    found.into_iter().map(place).collect()
}

/// The file after a training step that changes each weight by about this share of its magnitude.
fn trained(file: &[u8], tensors: &[std::ops::Range<usize>], relative: f32) -> Vec<u8> {
    let mut new = file.to_vec();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for tensor in tensors {
        for value in new[tensor.clone()].as_chunks_mut::<4>().0 {
            let noise = (0..12).map(|_| random.next_u32() as f32 / 4_294_967_296.0).sum::<f32>() - 6.0;
            *value = (f32::from_le_bytes(*value) * (1.0 + noise * relative)).to_le_bytes();
        }
    }
    new
}

fn delta(old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut delta = Vec::new();
    let len = encode(old, old.len() as u64, new, new.len() as u64, &mut delta).unwrap();
    assert_eq!(len, delta.len() as u64);
    delta
}

fn applied(old: &[u8], delta: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let mut new = Vec::new();
    let len = apply(old, delta, &mut new)?;
    assert_eq!(len, new.len() as u64);
    Ok(new)
}

#[test]
fn a_trained_model_comes_back_and_takes_less_the_less_it_changed() {
    let mut sizes = Vec::new();
    for relative in [1e-2, 1e-3, 1e-4, 0.0] {
        let new = trained(DIGITS, &tensors(), relative);
        let delta = delta(DIGITS, &new);
        assert_eq!(applied(DIGITS, &delta).unwrap(), new);
        let guessed = estimate(Cursor::new(DIGITS), Cursor::new(&new)).unwrap();
        let share = delta.len() as f32 / new.len() as f32;
        println!("changes of {relative}: {share:.3} of the file, guessed {guessed:.3}");
        assert!((guessed - share).abs() < 0.01);
        sizes.push(delta.len());
    }
    assert!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
    assert!(sizes[1] < DIGITS.len() * 6 / 10, "{sizes:?}");
    assert!(sizes[3] < 100, "{sizes:?}");
}

#[test]
fn files_of_any_length_come_back_even_if_they_have_nothing_in_common() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for len in [0, 1, 3, 4, 5, 4095, 4097, 8191, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4099] {
        let [mut old, mut new] = [vec![0; len], vec![0; len]];
        random.fill_bytes(&mut old);
        random.fill_bytes(&mut new);
        let delta = delta(&old, &new);
        assert!(delta.len() <= len + len / 1000 + 200, "{len} became {}", delta.len());
        assert_eq!(applied(&old, &delta).unwrap(), new);
    }
}

#[test]
fn files_of_other_lengths_are_not_comparable() {
    let error = encode(&b"abc"[..], 3, &b"abcd"[..], 4, io::sink()).unwrap_err().to_string();
    assert!(error.contains("3 and 4 bytes") && error.contains("not comparable"), "{error}");
    assert!(matches!(estimate(Cursor::new(b"abc"), Cursor::new(b"")), Err(DeltaError::NotComparable { .. })));
    // Lengths that are not true.
    for (old, new) in [(&b"ab"[..], &b"abc"[..]), (b"abcd", b"abc"), (b"abc", b"ab"), (b"abc", b"abcd")] {
        assert!(matches!(encode(old, 3, new, 3, io::sink()), Err(DeltaError::Length { expected: 3, .. })));
    }
}

#[test]
fn a_delta_of_another_base_is_refused_by_length_or_gives_another_file() {
    let new = trained(DIGITS, &tensors(), 1e-3);
    let delta = delta(DIGITS, &new);
    for base in [&DIGITS[1..], &[DIGITS, b"!"].concat()] {
        let error = applied(base, &delta).unwrap_err().to_string();
        assert!(error.contains("the old file") && error.contains(&DIGITS.len().to_string()), "{error}");
    }
    assert_ne!(applied(&new, &delta).unwrap(), new, "that is what the digest is for");
}

#[test]
fn what_is_no_delta_or_cut_or_too_long_is_refused() {
    let whole = delta(DIGITS, &trained(DIGITS, &tensors(), 1e-3));
    for len in (0..whole.len()).step_by(97) {
        assert!(matches!(applied(DIGITS, &whole[..len]), Err(DeltaError::Cut(_))), "cut at {len}");
    }
    assert!(matches!(applied(DIGITS, &[&whole[..], b"!"].concat()), Err(DeltaError::Cut(_))));
    assert!(matches!(applied(DIGITS, DIGITS), Err(DeltaError::Unknown)));
    let mut lengths = whole.clone();
    lengths[8] ^= 1;
    assert!(matches!(applied(DIGITS, &lengths), Err(DeltaError::NotComparable { .. })));
}

#[test]
fn blocks_that_claim_or_unfold_to_too_much_are_refused() {
    let old = vec![0; 10_000];
    let framed = |size: u32, packed: &[u8]| {
        let len = 10_000u64.to_le_bytes();
        [&MAGIC[..], &len, &len, &size.to_le_bytes(), packed].concat()
    };
    let refused = |delta: &[u8]| applied(&old, delta).unwrap_err().to_string();
    assert!(refused(&framed(u32::MAX, b"")).contains("claims 4294967295 bytes"));
    for len in [10_002, 10_004, 1 << 26] {
        let packed = zstd::bulk::compress(&vec![0; len], 1).unwrap();
        let error = refused(&framed(packed.len() as u32, &packed));
        assert!(error.contains("block for byte 0"), "{error}");
    }
    let mut unfolded = vec![0; 10_003];
    let good = zstd::bulk::compress(&unfolded, 1).unwrap();
    assert_eq!(applied(&old, &framed(good.len() as u32, &good)).unwrap(), old);
    unfolded[2] = 4;
    let packed = zstd::bulk::compress(&unfolded, 1).unwrap();
    assert!(refused(&framed(packed.len() as u32, &packed)).contains("phase 4"));
}

#[test]
fn a_delta_that_claims_more_than_the_base_has_writes_no_more_than_the_base() {
    let len = (1u64 << 60).to_le_bytes();
    let packed = zstd::bulk::compress(&vec![0; BLOCK_BYTES + 256], 1).unwrap();
    let mut claims = [&MAGIC[..], &len, &len].concat();
    for _ in 0..10 {
        claims.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        claims.extend_from_slice(&packed);
    }
    let mut new = Vec::new();
    let old = vec![7; 2 * BLOCK_BYTES];
    assert!(matches!(apply(&old[..], &claims[..], &mut new), Err(DeltaError::Length { .. })));
    assert_eq!(new, old);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn damaged_deltas_never_panic(place in any::<prop::sample::Index>(), value in 1u8.., head in 0usize..32) {
        let mut delta = delta(&DIGITS[..9000], &trained(DIGITS, &tensors(), 1e-3)[..9000]);
        let len = delta.len();
        delta[place.index(len)] ^= value;
        let _ = applied(&DIGITS[..9000], &delta);
        delta[head] ^= value;
        let _ = applied(&DIGITS[..9000], &delta);
    }

    #[test]
    fn any_two_files_of_one_length_come_back(
        (old, new) in (0usize..20_000).prop_flat_map(|len| {
            let bytes = || proptest::collection::vec(any::<u8>(), len);
            (bytes(), bytes())
        })
    ) {
        prop_assert_eq!(applied(&old, &delta(&old, &new)).unwrap(), new);
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn speed_and_size_for_100_megabytes() {
    const LEN: usize = 100_000_000;
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut uniform = move || (0..12).map(|_| random.next_u32() as f32 / 4_294_967_296.0).sum::<f32>() - 6.0;
    // Weights begin at byte 3, as they may in a file.
    let weights: Vec<u8> = (0..LEN / 4).flat_map(|_| (uniform() * 0.05).to_le_bytes()).collect();
    let old = [b"...", &weights[..LEN - 4], b"."].concat();
    let place = 3..LEN - 1;
    for relative in [1e-2, 1e-3, 1e-4] {
        let new = trained(&old, std::slice::from_ref(&place), relative);
        let started = Instant::now();
        let guessed = estimate(Cursor::new(&old), Cursor::new(&new)).unwrap();
        let guess_ms = started.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let delta = delta(&old, &new);
        let encode_rate = LEN as f64 / started.elapsed().as_secs_f64() / 1e6;
        let mut out = Vec::with_capacity(LEN);
        let started = Instant::now();
        apply(&old[..], &delta[..], &mut out).unwrap();
        let apply_rate = LEN as f64 / started.elapsed().as_secs_f64() / 1e6;
        assert!(out == new);
        let share = delta.len() as f64 / LEN as f64;
        println!(
            "changes of {relative}: {share:.3} of the file, guessed {guessed:.3} in {guess_ms:.0} ms; encode \
             {encode_rate:.0} MB/s, apply {apply_rate:.0} MB/s"
        );
    }
}
