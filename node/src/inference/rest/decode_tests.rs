//! Tests of the decoder of HTTP bodies: lists, binary data, numbers of every type, and bytes at random.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::inference::test_fixtures::fuzz_cases;

fn decode(json: &str, binary: &[u8]) -> Result<InferRequest, Refused> {
    let body = Bytes::from([json.as_bytes(), binary].concat());
    request("m", "", &body, Some(json.len()))
}

fn data(json: &str) -> InputData {
    decode(json, b"").unwrap().inputs.remove(0).data
}

#[test]
fn nested_and_flat_lists_are_the_same_values() {
    for list in ["[[1,2],[3,4.5]]", "[1,2,3,4.5]"] {
        let json = format!("{{\"inputs\":[{{\"data\":{list},\"name\":\"x\",\"shape\":[2,2],\"datatype\":\"FP32\"}}]}}");
        let expected: Vec<u8> = [1.0f32, 2.0, 3.0, 4.5].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(data(&json), InputData::Values(Bytes::from(expected), "data"));
    }
}

#[test]
fn binary_data_is_taken_in_the_order_of_the_inputs() {
    let json = r#"{"id":"7","parameters":{"timeout":5,"binary_data_output":true},
        "inputs":[{"name":"a","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}},
                  {"name":"b","shape":[2],"datatype":"INT8","parameters":{"binary_data_size":2}}],
        "outputs":[{"name":"y","parameters":{"classification":3}},{"name":"z","parameters":{"binary_data":false}}]}"#;
    let request = decode(json, &[1, 2, 3]).unwrap();
    assert_eq!((request.id.as_str(), request.timeout), ("7", Some(Duration::from_micros(5))));
    assert_eq!(request.inputs[0].data, InputData::Raw(Bytes::from_static(&[1])));
    assert_eq!(request.inputs[1].data, InputData::Raw(Bytes::from_static(&[2, 3])));
    assert_eq!((request.outputs[0].classification, request.outputs[0].binary), (Some(3), Some(true)));
    assert_eq!(request.outputs[1].binary, Some(false));
    assert!(
        decode(json, &[1, 2]).unwrap_err().to_string().contains("\"b\": expected 2 bytes of binary data, but 1 came")
    );
    assert!(decode(json, &[1, 2, 3, 4]).unwrap_err().to_string().contains("1 bytes follow"));
}

#[test]
fn what_is_no_value_of_the_type_is_said() {
    for (list, datatype, expected) in [
        ("[300]", "INT8", "expected values of INT8, but 300 came"),
        ("[1.5]", "INT64", "1.5"),
        ("[-1]", "UINT64", "-1"),
        ("[true]", "FP32", "true"),
        ("[2]", "BOOL", "2"),
        ("[\"cat\"]", "FP32", "text"),
        ("[null]", "FP32", "null"),
    ] {
        let json =
            format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1],\"datatype\":\"{datatype}\",\"data\":{list}}}]}}");
        let InputData::Wrong(problem) = data(&json) else { panic!("{list} {datatype}") };
        assert!(problem.contains(expected), "{problem}");
    }
    let json = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551615]}]}"#;
    assert_eq!(data(json), InputData::Values(Bytes::from_static(&[255; 8]), "data"));
}

#[test]
fn what_is_no_request_is_refused() {
    for json in [
        "",
        "{}",
        "[]",
        "{\"inputs\":3}",
        "{\"inputs\":[{\"name\":\"x\"}]}",
        "{\"inputs\":[],\"parameters\":{\"timeout\":-1}}",
    ] {
        assert!(decode(json, b"").is_err(), "{json}");
    }
    let deep =
        format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1],\"datatype\":\"FP32\",\"data\":{}", "[".repeat(100_000));
    assert!(decode(&deep, b"").is_err());
    assert!(request("m", "", &Bytes::from_static(b"{}"), Some(3)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fuzz_cases(2000)))]
    #[test]
    fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), header in proptest::option::of(0..300usize)) {
        let _ = request("m", "", &Bytes::from(bytes), header);
    }

    #[test]
    fn a_damaged_body_never_panics(at in 0..150usize, byte in any::<u8>(), header in 100..160usize) {
        let mut body = br#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}0123456789abcdef"#.to_vec();
        if let Some(place) = body.get_mut(at) {
            *place = byte;
        }
        let _ = request("m", "", &Bytes::from(body), Some(header));
    }
}
