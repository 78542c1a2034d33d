//! Payloads that no node of ours sends.

use std::io::{self, Read};

use proptest::prelude::*;

use super::*;

fn refused(payload: &[u8], coding: &Coding, tensors: &[usize]) -> DecodeError {
    decode(payload, coding, tensors).map(|values| values.len()).unwrap_err()
}

#[test]
fn a_payload_cut_anywhere_is_truncated() {
    for coding in codings() {
        let (payload, _, _) = around(&normal(3000, 1), &[1000, 2000], &coding);
        for len in (0..payload.len()).step_by(61).chain([payload.len() - 1]) {
            let error = refused(&payload[..len], &coding, &[1000, 2000]);
            assert!(matches!(error, DecodeError::Truncated), "{coding:?} cut at {len}: {error}");
        }
    }
}

#[test]
fn bytes_after_the_last_value_are_refused_with_the_last_value() {
    for coding in codings() {
        let (mut payload, values, _) = around(&normal(3000, 1), &[1000, 2000], &coding);
        payload.push(0);
        let mut decoder = Decoder::new(&payload[..], &coding, &[1000, 2000]).unwrap();
        let mut out = vec![0.0; values.len()];
        let error = decoder.read(&mut out).unwrap_err();
        assert!(matches!(error, DecodeError::Trailing { values: 3000 }), "{coding:?}: {error}");
    }
}

#[test]
fn a_payload_for_another_number_of_values_is_refused() {
    // But for the largest values, which say nothing of the others: their layout is checked by its digest alone.
    for coding in codings().filter(|coding| coding.encoding != Encoding::TopK) {
        let (payload, _, _) = around(&normal(3000, 1), &[3000], &coding);
        for tensors in [&[2999][..], &[3001]] {
            let error = refused(&payload, &coding, tensors).to_string();
            assert!(error.contains("payload") || error.contains("block"), "{coding:?}: {error}");
        }
    }
}

#[test]
fn a_scale_that_is_no_length_is_refused_with_its_block() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let (mut payload, _, _) = around(&normal(3000, 1), &[3000], &coding(Encoding::Int8, false));
        payload[1028..1032].copy_from_slice(&scale.to_le_bytes());
        let error = refused(&payload, &coding(Encoding::Int8, false), &[3000]);
        assert!(matches!(error, DecodeError::Scale { first: 1024, .. }), "{error}");
    }
}

#[test]
fn every_fault_of_kept_values_has_a_name() {
    let value = 1f32.to_le_bytes();
    // 20 of 65,536 and 4 values: 1 may be kept, in a block of 65,536 and one of 4.
    let coding = Coding { encoding: Encoding::TopK, top_k: 1.0 / 65_540.0, zstd: false };
    let tensors = [65_540];
    let one = |places: &[u8]| [&[1][..], places, &value, &[0]].concat();
    assert_eq!(decode(&one(&[0, 0xff, 0xff, 0x03]), &coding, &tensors).unwrap()[65_535], 1.0);
    for (payload, expected) in [
        (vec![2], "claims 2 kept values, but at most 1"),
        (vec![1, 2], "unknown form 2"),
        (one(&[0, 0x80, 0x80, 0x04]), "keeps one at place 65536"),
        (one(&[0, 0xff, 0xff, 0x7f]), "keeps one at place 2097151"),
        (one(&[0, 0x80, 0x80, 0x80, 0x00]), "more than 3 bytes"),
        ([&[1, 0, 5][..], &value, &[1, 0, 0], &value].concat(), "at value 65536 claims 1 kept values, but at most 0"),
    ] {
        let error = refused(&payload, &coding, &tensors).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let coding = Coding { top_k: 1.0, ..coding };
    for (payload, expected) in [
        (vec![10], "claims 10 kept values, but at most 9"),
        (vec![2, 1, 0b111, 0], "bitmap marks 3"),
        (vec![1, 1, 0, 0b10], "has 9 values, but keeps one at place 9"),
        ([&[2, 0, 8, 0][..], &value, &value].concat(), "keeps one at place 9"),
    ] {
        let error = refused(&payload, &coding, &[9]).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_small_payload_that_unfolds_to_a_gibibyte_is_refused_without_unfolding_it() {
    let bomb = {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut io::repeat(0).take(1 << 30), &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    /// Counts what is taken of the payload.
    struct Counted<'b>(&'b [u8], usize);
    impl Read for Counted<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = self.0.read(into)?;
            self.1 += len;
            Ok(len)
        }
    }
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Int8, Encoding::TopK] {
        let mut counted = Counted(&bomb, 0);
        let mut decoder = Decoder::new(&mut counted, &coding(encoding, true), &DIGITS).unwrap();
        let error = decoder.read(&mut vec![0.0; 11_482]).unwrap_err();
        assert!(matches!(error, DecodeError::Trailing { .. }), "{encoding}: {error}");
        drop(decoder);
        assert!(counted.1 <= 1 << 17, "{encoding}: {} bytes were read", counted.1);
    }
}

#[test]
fn a_frame_that_demands_more_memory_than_ours_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    io::copy(&mut io::repeat(0).take(11_482 * 4), &mut encoder).unwrap();
    let error = refused(&encoder.finish().unwrap(), &coding(Encoding::F32, true), &DIGITS);
    assert!(matches!(error, DecodeError::Compression(_)), "{error}");
}

#[test]
fn a_second_frame_and_bytes_that_are_no_frame_are_refused() {
    let coding = coding(Encoding::F32, true);
    let (payload, _, _) = around(&normal(10, 1), &[10], &coding);
    let error = refused(&[&payload[..], &payload].concat(), &coding, &[20]);
    assert!(matches!(error, DecodeError::Truncated), "{error}");
    let error = refused(b"this is text, not zstd", &coding, &[20]);
    assert!(matches!(error, DecodeError::Compression(_)), "{error}");
}

#[test]
fn a_reader_that_fails_is_not_mistaken_for_a_bad_payload() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    for coding in codings() {
        let mut decoder = Decoder::new(Broken, &coding, &[10]).unwrap();
        let error = decoder.read(&mut [0.0; 10]).unwrap_err();
        assert!(matches!(error, DecodeError::Io(_)), "{coding:?}: {error}");
    }
}

#[test]
fn floats_that_are_not_finite_are_given_as_they_came() {
    let payload: Vec<u8> = [f32::NAN, f32::NEG_INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect();
    let values = decode(&payload, &Coding::default(), &[2]).unwrap();
    assert!(values[0].is_nan() && values[1] == f32::NEG_INFINITY);
    let values = decode(&[0x00, 0x7c, 0x01, 0x7e], &coding(Encoding::F16, false), &[2]).unwrap();
    assert!(values[0] == f32::INFINITY && values[1].is_nan());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn damaged_payloads_never_panic_and_never_give_more_values_than_the_layout_has(
        place in any::<prop::sample::Index>(),
        second in any::<prop::sample::Index>(),
        value in 1u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        for coding in codings() {
            let (mut payload, _, _) = around(&normal(3000, 1), &[1000, 2000], &coding);
            let len = payload.len();
            payload[place.index(len)] ^= value;
            payload[second.index(len.min(20))] ^= value.rotate_left(3);
            payload.truncate(len - cut.index(len) / 8);
            if let Ok(values) = decode_in_pieces(&payload, &coding, &[1000, 2000], 777) {
                prop_assert_eq!(values.len(), 3000);
            }
        }
    }

    #[test]
    fn bytes_at_random_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        for coding in codings() {
            let _ = decode_in_pieces(&payload, &coding, &[30, 10], 7);
        }
    }
}
