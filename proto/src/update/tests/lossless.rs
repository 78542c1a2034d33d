//! What holds for every coding, and what float32 and the largest values keep exactly.

use proptest::prelude::*;

use super::*;

#[test]
fn float32_comes_back_bit_for_bit_and_nothing_is_lost() {
    let mut values = normal(11_482, 1);
    values[..5].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, f32::MAX, 1e-45]);
    for zstd in [false, true] {
        let (_, decoded, residual) = around(&values, &DIGITS, &coding(Encoding::F32, zstd));
        assert_eq!(bits(&decoded), bits(&values));
        assert!(residual.iter().all(|value| value.to_bits() == 0));
    }
}

#[test]
fn pieces_of_any_size_give_the_same_values() {
    let tensors = [70_000, 1, 0, 1025, 65_536];
    let values = normal(136_562, 2);
    for coding in codings() {
        let (payload, whole, _) = around(&values, &tensors, &coding);
        for piece in [1, 7, 1000, 65_536, 136_562, 200_000] {
            let pieces = decode_in_pieces(&payload, &coding, &tensors, piece).unwrap();
            assert_eq!(bits(&pieces), bits(&whole), "{coding:?} in pieces of {piece}");
        }
    }
}

#[test]
fn an_update_without_values_has_a_payload_too() {
    for coding in codings() {
        for tensors in [&[][..], &[0, 0]] {
            let (_, decoded, _) = around(&[], tensors, &coding);
            assert!(decoded.is_empty());
        }
    }
}

#[test]
fn the_largest_values_are_kept_exactly_and_the_others_wait() {
    let values = normal(200_000, 3);
    let mut magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    for zstd in [false, true] {
        let coding = coding(Encoding::TopK, zstd);
        let (_, decoded, residual) = around(&values, &[150_000, 50_000], &coding);
        let kept = decoded.iter().filter(|value| **value != 0.0).count();
        assert_eq!((kept, coding.kept(200_000)), (10_001, 10_001), "0.05 as a float32 is a little more");
        let smallest = decoded.iter().map(|value| value.abs()).filter(|value| *value > 0.0).fold(f32::MAX, f32::min);
        assert_eq!(smallest, magnitudes[200_000 - 10_001]);
        for ((value, decoded), residual) in values.iter().zip(&decoded).zip(&residual) {
            assert!((decoded == value && *residual == 0.0) || (*decoded == 0.0 && residual == value));
        }
    }
}

#[test]
fn of_equal_magnitudes_the_first_are_kept_and_zeros_never() {
    let coding = Coding { encoding: Encoding::TopK, top_k: 0.5, zstd: false };
    let (_, decoded, _) = around(&[1.0, -1.0, 2.0, 1.0, -1.0, 0.0], &[6], &coding);
    assert_eq!(decoded, [1.0, -1.0, 2.0, 0.0, 0.0, 0.0]);
    let (payload, decoded, _) = around(&[0.0, -0.0, 0.0, 3.0], &[4], &coding);
    assert_eq!(decoded, [0.0, 0.0, 0.0, 3.0]);
    assert_eq!(payload, [1, 0, 3, 0, 0, 64, 64], "one value, as gaps, after 3 others");
}

#[test]
fn places_are_written_as_bits_where_that_is_shorter() {
    for (share, bytes_a_place) in [(0.001f32, 2.1), (0.02, 1.1), (0.5, 0.25 + 0.01), (1.0, 0.126)] {
        let coding = Coding { encoding: Encoding::TopK, top_k: share, zstd: false };
        let (payload, decoded, _) = around(&normal(100_000, 4), &[100_000], &coding);
        let kept = decoded.iter().filter(|value| **value != 0.0).count();
        let places = payload.len() - kept * 4;
        assert!((places as f64) < kept as f64 * bytes_a_place, "{share}: {places} bytes for {kept} places");
    }
}

#[test]
fn a_layout_or_coding_that_does_not_fit_is_refused() {
    let plain = Coding::default();
    let error = encode(&mut [1.0, 2.0], &[3], &plain, SEED).unwrap_err().to_string();
    assert!(error.contains("2 values") && error.contains("have 3"), "{error}");
    for share in [0.0, -0.1, 1.5, f32::NAN] {
        let coding = Coding { encoding: Encoding::TopK, top_k: share, zstd: false };
        let error = encode(&mut [1.0], &[1], &coding, SEED).unwrap_err().to_string();
        assert!(error.contains("top_k"), "{error}");
        assert!(matches!(Decoder::new(&[][..], &coding, &[1]), Err(DecodeError::Coding(_))));
        Coding { encoding: Encoding::Int8, ..coding }.validate().unwrap();
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for coding in codings() {
        assert_eq!(coding.encoding.to_string().parse(), Ok(coding.encoding));
    }
    let error = "float\n".parse::<Encoding>().unwrap_err().to_string();
    assert!(error.contains("float\\n") && error.contains("int8"), "{error}");
}

proptest! {
    #[test]
    fn any_update_of_any_layout_is_decoded_to_what_it_was_less_the_residual(
        tensors in proptest::collection::vec(0usize..3000, 0..6),
        magnitude in -40i32..35,
        seed in any::<u64>(),
    ) {
        let scale = 10f32.powi(magnitude) * 1e3;
        let values: Vec<f32> = normal(tensors.iter().sum(), seed).iter().map(|value| value * scale).collect();
        for coding in codings() {
            let (_, decoded, residual) = around(&values, &tensors, &coding);
            prop_assert_eq!(decoded.len(), values.len());
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for ((value, decoded), residual) in values.iter().zip(&decoded).zip(&residual) {
                // The only roundings: of a residual below one step of int8, and beyond the range of half floats.
                let allowed = match coding.encoding {
                    Encoding::Int8 => largest / 127.0 * 6e-8,
                    Encoding::F16 if value.abs() > 131_008.0 => value.abs() * 6e-8,
                    _ => 0.0,
                };
                let difference = (f64::from(*decoded) + f64::from(*residual) - f64::from(*value)).abs();
                prop_assert!(difference <= f64::from(allowed), "{coding:?}: {value} became {decoded} and {residual}");
            }
        }
    }
}
