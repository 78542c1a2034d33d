//! Tests of the checks on tensors of several inputs; those of a single float input are among the service's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::super::test_fixtures::fuzz_cases;
use super::*;

fn signature(name: &str, element: ElementType, dims: &[Option<usize>]) -> TensorSignature {
    TensorSignature { name: name.to_owned(), element, dims: dims.to_vec() }
}

fn tensor(name: &str, datatype: &str, shape: &[i64], bytes: usize) -> InputTensor {
    let data = InputData::Raw(Bytes::from(vec![0; bytes]));
    InputTensor { name: name.to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), data }
}

fn two() -> [TensorSignature; 2] {
    [signature("ids", ElementType::Int64, &[None, None]), signature("mask", ElementType::Bool, &[None, Some(2)])]
}

fn checked(inputs: Vec<InputTensor>, batched: bool) -> Result<Batch, Refused> {
    let signatures = two();
    let contract = Contract { inputs: &signatures, outputs: &[], batched, floats: false };
    check(inputs, &contract, &RequestLimits::default())
}

#[test]
fn inputs_come_in_any_order_and_leave_in_the_models() {
    let batch = checked(vec![tensor("mask", "BOOL", &[3, 2], 6), tensor("ids", "INT64", &[3, 5], 120)], true).unwrap();
    let Inputs::Tensors(tensors) = batch.inputs else { panic!("tensors") };
    assert_eq!((batch.rows, tensors[0].shape.as_slice(), tensors[1].shape.as_slice()), (3, &[3, 5][..], &[3, 2][..]));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let ids = || tensor("ids", "INT64", &[3, 5], 120);
    let cases = [
        (vec![ids(), tensor("mask", "BOOL", &[2, 2], 4)], "\"mask\": expected 3 samples"),
        (vec![ids()], "\"mask\": is missing"),
        (vec![ids(), tensor("mask", "BOOL", &[3, 2], 5)], "\"mask\": expected 6 bytes"),
        (vec![ids(), tensor("mask", "UINT8", &[3, 2], 6)], "\"mask\": expected the datatype BOOL"),
        (vec![tensor("ids", "INT64", &[3, 0], 0), tensor("mask", "BOOL", &[3, 2], 6)], "\"ids\": expected the shape"),
        (vec![tensor("ids", "INT64", &[3, 1 << 40], 0)], "\"ids\": expected at most"),
        (vec![tensor("ids", "INT64", &[4000, i64::MAX], 0)], "\"ids\": expected at most"),
        (vec![tensor("other", "INT64", &[1], 8)], "the model's inputs are \"ids\", \"mask\""),
    ];
    for (inputs, expected) in cases {
        let error = checked(inputs, true).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let mut two = tensor("mask", "BOOL", &[1, 2], 2);
    two.data = InputData::Raw(Bytes::from_static(&[1, 2]));
    let error = checked(vec![tensor("ids", "INT64", &[1, 1], 8), two], true).unwrap_err().to_string();
    assert!(error.contains("expected bytes of 0 and 1, but element 1"), "{error}");
}

#[test]
fn integers_that_are_samples_are_held_as_floats() {
    let signatures = [signature("ids", ElementType::Int64, &[None, Some(3)])];
    let contract = Contract { inputs: &signatures, outputs: &[], batched: true, floats: true };
    let checked = |ids: [i64; 3]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let mut input = tensor("ids", "INT64", &[1, 3], 24);
        input.data = InputData::Raw(Bytes::from(bytes));
        check(vec![input], &contract, &RequestLimits::default())
    };
    let batch = checked([0, -7, 16_777_215]).unwrap();
    assert_eq!(batch.inputs, Inputs::Floats(vec![0.0, -7.0, 16_777_215.0]));
    for large in [16_777_216, 16_777_217, i64::MIN] {
        let error = checked([1, large, 2]).unwrap_err().to_string();
        assert!(error.contains("below 16777216") && error.contains("element 1"), "{error}");
    }
    let floats = check(vec![tensor("ids", "FP32", &[1, 3], 12)], &contract, &RequestLimits::default());
    assert!(floats.unwrap_err().to_string().contains("expected the datatype INT64"));
}

#[test]
fn a_classification_of_integers_is_refused() {
    let outputs = [signature("classes", ElementType::Int64, &[None])];
    let contract = Contract { inputs: &[], outputs: &outputs, batched: true, floats: false };
    let wanted = RequestedOutput { name: "classes".to_owned(), classification: Some(2), binary: None };
    assert!(requested_outputs(&[wanted], &contract).unwrap_err().to_string().contains("float32"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fuzz_cases(2000)))]
    #[test]
    fn no_shape_panics_or_passes_with_another_size(shape in proptest::collection::vec(any::<i64>(), 0..4), bytes in 0..64usize, batched in any::<bool>()) {
        let small: Vec<i64> = shape.iter().map(|dim| dim % 4).collect();
        for shape in [&shape, &small] {
            let inputs = vec![tensor("ids", "INT64", shape, bytes), tensor("mask", "BOOL", &[1, 2], 2)];
            if let Ok(batch) = checked(inputs, batched) {
                let Inputs::Tensors(tensors) = batch.inputs else { panic!("tensors") };
                assert_eq!(tensors[0].shape.iter().product::<usize>() * 8, tensors[0].data.len());
            }
        }
    }
}
