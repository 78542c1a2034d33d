//! What a payload gives back, and what is refused. This file holds the helpers; the tests are beside it.

mod hostile;
mod lossless;
mod lossy;
mod speed;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

/// Lengths of the exchanged tensors of models/zoo/digits_cnn.onnx.
const DIGITS: [usize; 8] = [144, 16, 4608, 32, 6144, 48, 480, 10];

const SEED: [u8; 32] = [7; 32];

fn coding(encoding: Encoding, zstd: bool) -> Coding {
    Coding { encoding, top_k: 0.05, zstd }
}

fn codings() -> impl Iterator<Item = Coding> {
    [Encoding::F32, Encoding::F16, Encoding::Int8, Encoding::TopK]
        .into_iter()
        .flat_map(|encoding| [coding(encoding, false), coding(encoding, true)])
}

/// Values as updates have them: about normal, a deviation of 1e-3.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The sum of 12 uniform numbers (Irwin-Hall) has the variance 1.
    let mut uniform = move || (0..12).map(|_| random.next_u32() as f32 / 4_294_967_296.0).sum::<f32>() - 6.0;
    (0..len).map(|_| uniform() * 1e-3).collect()
}

fn decode(payload: &[u8], coding: &Coding, tensors: &[usize]) -> Result<Vec<f32>, DecodeError> {
    decode_in_pieces(payload, coding, tensors, 100_000)
}

fn decode_in_pieces(payload: &[u8], coding: &Coding, tensors: &[usize], piece: usize) -> Result<Vec<f32>, DecodeError> {
    let mut decoder = Decoder::new(payload, coding, tensors)?;
    let (mut values, mut out) = (Vec::new(), vec![0.0; piece]);
    loop {
        match decoder.read(&mut out)? {
            0 => return Ok(values),
            len => values.extend_from_slice(&out[..len]),
        }
    }
}

/// Encodes and decodes; gives the payload, what was decoded and what was lost.
fn around(values: &[f32], tensors: &[usize], coding: &Coding) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let mut residual = values.to_vec();
    let payload = encode(&mut residual, tensors, coding, SEED).unwrap();
    assert!(payload.len() as u64 <= max_payload_bytes(coding, tensors), "{coding:?}: {} bytes", payload.len());
    if let Some(exact) = exact_payload_bytes(coding, tensors) {
        assert_eq!(payload.len() as u64, exact, "{coding:?}");
    }
    let decoded = decode(&payload, coding, tensors).unwrap();
    (payload, decoded, residual)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
