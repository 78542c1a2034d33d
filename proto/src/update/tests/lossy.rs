//! What half floats and 8-bit integers lose, and that it is no more and not in one direction.

use super::*;

#[test]
fn half_floats_are_the_nearest_and_ties_go_to_even() {
    // Beside 1, half floats lie 2^-10 apart; below 6.1e-5 they lie 2^-24 apart.
    let step = 2f32.powi(-10);
    let tiny = 2f32.powi(-24);
    let cases = [
        (1.0 + step * 0.5, 1.0),
        (1.0 + step * 1.5, 1.0 + step * 2.0),
        (1.0 + step * 0.51, 1.0 + step),
        (-1.0 - step * 0.5, -1.0),
        (tiny * 0.5, 0.0),
        (tiny * 1.5, tiny * 2.0),
        (65_519.0, 65_504.0),
        (1e6, 65_504.0),
        (-f32::MAX, -65_504.0),
    ];
    let values: Vec<f32> = cases.iter().map(|(value, _)| *value).collect();
    let (_, decoded, residual) = around(&values, &[cases.len()], &coding(Encoding::F16, false));
    assert_eq!(decoded, cases.map(|(_, nearest)| nearest));
    assert_eq!(residual[7], 1e6 - 65_504.0, "what is beyond the range waits for the next update");
}

#[test]
fn int8_is_a_quarter_of_float32_on_the_digits_model() {
    let (payload, _, _) = around(&normal(11_482, 1), &DIGITS, &coding(Encoding::Int8, false));
    let ratio = 11_482.0 * 4.0 / payload.len() as f64;
    assert!(ratio >= 3.9, "{ratio}");
}

#[test]
fn int8_rounds_to_a_neighbour_and_the_largest_value_is_exact() {
    let values = normal(5000, 5);
    let (_, decoded, _) = around(&values, &[5000], &coding(Encoding::Int8, false));
    for (block, decoded) in values.chunks(SCALED_VALUES).zip(decoded.chunks(SCALED_VALUES)) {
        let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (value, decoded) in block.iter().zip(decoded) {
            assert!((value - decoded).abs() < largest / 127.0 * 1.0001, "{value} became {decoded}");
            if value.abs() == largest {
                assert!((value - decoded).abs() <= largest * 1e-6, "{value} became {decoded}");
            }
        }
    }
}

/// The mean of n roundings has a deviation of at most half a step / sqrt(n).
#[test]
fn int8_is_unbiased() {
    const ROUNDS: u32 = 20_000;
    let values = [0.3f32, 0.99, 1e-3, -0.25, -63.7, 126.4, 127.0, 0.0];
    let mut sums = [0f64; 8];
    for round in 0..ROUNDS {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&round.to_le_bytes());
        let coding = coding(Encoding::Int8, false);
        let payload = encode(&mut values.clone(), &[8], &coding, seed).unwrap();
        for (sum, value) in sums.iter_mut().zip(decode(&payload, &coding, &[8]).unwrap()) {
            *sum += f64::from(value);
        }
    }
    for (value, sum) in values.iter().zip(sums) {
        let mean = sum / f64::from(ROUNDS);
        // A step is 1 here. Five deviations, and the resolution of the random numbers.
        let allowed = 5.0 * 0.5 / f64::from(ROUNDS).sqrt();
        assert!((mean - f64::from(*value)).abs() < allowed, "{value} became {mean} on the average");
    }
}

#[test]
fn rounding_depends_on_the_seed_and_on_nothing_else() {
    let encoded = |seed| encode(&mut normal(11_482, 6), &DIGITS, &coding(Encoding::Int8, false), seed).unwrap();
    assert_eq!(encoded(SEED), encoded(SEED));
    assert_ne!(encoded(SEED), encoded([8; 32]));
    // Two equal blocks are rounded by different numbers.
    let mut twice = [normal(1024, 7), normal(1024, 7)].concat();
    let payload = encode(&mut twice, &[2048], &coding(Encoding::Int8, false), SEED).unwrap();
    assert_ne!(payload[..1028], payload[1028..]);
}

#[test]
fn blocks_of_zeros_and_of_next_to_nothing_stay_in_the_residual() {
    for tiny in [0.0, 1e-45, 1e-39, 1e-33] {
        let (_, decoded, residual) = around(&[tiny, -tiny], &[2], &coding(Encoding::Int8, false));
        assert_eq!((decoded, residual), (vec![0.0, 0.0], vec![tiny, -tiny]));
    }
    let (_, decoded, _) = around(&[1e-31, 0.0], &[2], &coding(Encoding::Int8, false));
    assert!((decoded[0] - 1e-31).abs() < 1e-36, "{}", decoded[0]);
    let (_, decoded, _) = around(&[f32::MAX, -f32::MAX], &[2], &coding(Encoding::Int8, false));
    assert!(decoded[0] > 3.4e38 && decoded[1] < -3.4e38, "{decoded:?}");
}

#[test]
fn a_value_that_is_not_finite_is_named_and_the_update_left_as_it_was() {
    for encoding in [Encoding::F16, Encoding::Int8, Encoding::TopK] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0, bad, 2.0];
            let error = encode(&mut values, &[3], &coding(encoding, false), SEED).unwrap_err().to_string();
            assert!(error.contains("value 1"), "{error}");
            assert_eq!(bits(&values), bits(&[1.0, bad, 2.0]));
        }
    }
}

/// Error feedback (Karimireddy et al. 2019): the sum of what is decoded follows the sum of the updates, however coarse
/// the coding is.
#[test]
fn with_the_residual_added_to_the_next_update_nothing_is_lost_for_good() {
    for coding in codings() {
        let (mut residual, mut sent, mut meant) = (vec![0.0; 2000], vec![0f64; 2000], vec![0f64; 2000]);
        for round in 0..100 {
            for ((carried, update), meant) in residual.iter_mut().zip(normal(2000, round)).zip(&mut meant) {
                *carried += update + 1e-4;
                *meant += f64::from(update + 1e-4);
            }
            let payload = encode(&mut residual, &[2000], &coding, [round as u8; 32]).unwrap();
            for (sent, value) in sent.iter_mut().zip(decode(&payload, &coding, &[2000]).unwrap()) {
                *sent += f64::from(value);
            }
        }
        for ((sent, meant), waiting) in sent.iter().zip(&meant).zip(&residual) {
            assert!((sent + f64::from(*waiting) - meant).abs() < 1e-6, "{coding:?}: {sent} of {meant}");
        }
    }
}
