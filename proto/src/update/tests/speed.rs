//! How fast updates are encoded and decoded, and how small they get: figures for people, on one core.

use std::time::Instant;

use super::*;

#[test]
#[ignore = "a measurement, not a check"]
fn speed_and_size_of_every_coding() {
    const VALUES: usize = 25_000_000;
    let tensors = [1_000_000; 25];
    let values = normal(VALUES, 1);
    let mut out = vec![0.0; 1 << 18];
    println!("{:>6} {:>5} {:>12} {:>12} {:>8}", "coding", "zstd", "encode", "decode", "ratio");
    for coding in codings() {
        let mut delta = values.clone();
        let started = Instant::now();
        let payload = encode(&mut delta, &tensors, &coding, SEED).unwrap();
        let encoded = VALUES as f64 / started.elapsed().as_secs_f64() / 1e6;
        let started = Instant::now();
        let mut decoder = Decoder::new(&payload[..], &coding, &tensors).unwrap();
        while decoder.read(&mut out).unwrap() > 0 {}
        let decoded = VALUES as f64 / started.elapsed().as_secs_f64() / 1e6;
        let ratio = VALUES as f64 * 4.0 / payload.len() as f64;
        println!("{:>6} {:>5} {encoded:>8.0} M/s {decoded:>8.0} M/s {ratio:>8.2}", coding.encoding, coding.zstd);
    }
}
