//! Tests of `prepare` on the demo's model and real digits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::check::argmax;
use super::super::test_fixtures::{PIXELS, digits, package, serving, tokens};
use super::*;

fn inputs(samples: &[Sample]) -> Vec<Vec<f32>> {
    samples.iter().map(|sample| sample.input.clone()).collect()
}

/// Digits labelled with what the float model says, so that float is always right.
fn labelled_by_float(float: &Serving, samples: &[Sample]) -> Vec<Sample> {
    let relabel = |sample: &Sample| {
        let class = argmax(&float.run(&sample.input).unwrap().values).unwrap();
        Sample { label: u32::try_from(class).unwrap(), ..sample.clone() }
    };
    samples.iter().map(relabel).collect()
}

#[test]
fn without_calibration_samples_float_is_served_with_the_reason() {
    let serving = serving(1);
    assert_eq!(serving.precision(), Precision::Float);
    assert_eq!(serving.float_reason(), Some("no calibration samples yet"));
    assert_eq!(serving.check(), None);
}

#[test]
fn float_serving_equals_the_float_runner_on_preprocessed_samples() {
    let (package, digits) = (package(3), digits());
    let raw: Vec<f32> = digits[..50].iter().flat_map(|sample| sample.input.clone()).collect();
    let mut prepared = raw.clone();
    package.manifest.preprocessing.apply(&mut prepared, &[1, 8, 8]);
    let runner = fedge_models::float::FloatRunner::new(&package.model).unwrap();
    let expected = runner.run(ArrayViewD::from_shape(IxDyn(&[50, 1, 8, 8]), &prepared).unwrap()).unwrap();

    let answer = serving(3).run(&raw).unwrap();
    assert_eq!(answer.shape, [50, 10]);
    for (value, expected) in answer.values.iter().zip(expected.iter()) {
        assert!((value - expected).abs() < 1e-5, "{value} {expected}");
    }
}

#[test]
fn int8_calibrated_on_real_digits_agrees_with_float() {
    let digits = digits();
    let float = serving(4);
    let labelled = labelled_by_float(&float, &digits[200..400]);
    let int8 = prepare(
        package(4),
        inputs(&digits[..200]),
        &labelled,
        &PrepareOptions { int8_tolerance: 0.1, ..PrepareOptions::default() },
    );
    let int8 = int8.unwrap();
    assert_eq!((int8.precision(), int8.float_reason()), (Precision::Int8, None));
    let check = int8.check().unwrap();
    assert_eq!((check.examples, check.float_correct, check.gained), (200, 200, 0));
    assert_eq!(check.int8_correct, check.agreed);
    assert!(check.agreement() > 0.9, "{check:?}");
    let (ours, theirs) = (int8.run(&digits[900].input).unwrap(), float.run(&digits[900].input).unwrap());
    assert_ne!(ours, theirs, "int8 rounds");
}

#[test]
fn int8_that_loses_too_much_on_local_samples_gives_way_to_float() {
    let digits = digits();
    let labelled = labelled_by_float(&serving(4), &digits[..200]);
    // Calibrated on nearly black pictures, the ranges are far too small for real ones.
    let dark: Vec<Vec<f32>> =
        digits[..50].iter().map(|sample| sample.input.iter().map(|pixel| pixel / 1000.0).collect()).collect();
    let serving = prepare(package(4), dark, &labelled, &PrepareOptions::default()).unwrap();
    assert_eq!(serving.precision(), Precision::Float);
    let reason = serving.float_reason().unwrap();
    assert!(reason.contains("of 200 local samples and float on 200"), "{reason}");
    assert!(serving.check().unwrap().int8_is_worse(0.01));
}

#[test]
fn samples_of_another_width_or_with_nan_are_refused_by_number() {
    let options = PrepareOptions::default();
    let error = prepare(package(1), vec![vec![0.0; PIXELS], vec![0.0; 63]], &[], &options).unwrap_err();
    assert!(error.to_string().contains("sample 1 has 63 values, but the model takes 64"), "{error}");
    let nan = Sample { input: vec![f32::NAN; PIXELS], label: 0 };
    let error = prepare(package(1), Vec::new(), &[nan], &options).unwrap_err();
    assert!(error.to_string().contains("sample 0 holds NaN"), "{error}");
}

#[test]
fn bytes_that_tract_cannot_load_are_an_error_and_no_panic() {
    let model = package(1).model;
    let mut bytes = model.bytes().to_vec();
    bytes.truncate(bytes.len() / 2);
    for bytes in [&bytes[..], &[], b"not onnx"] {
        let error = Engine::load(bytes, model.input(), model.output()).err().expect("it must be refused");
        assert_eq!(error.action, "load", "{error}");
    }
}

#[test]
fn a_batch_that_is_no_whole_number_of_samples_is_an_error() {
    let serving = serving(1);
    assert!(serving.run(&[0.0; PIXELS + 1]).is_err());
    assert!(serving.run(&[]).is_err());
}

#[test]
fn a_model_of_integers_serves_samples_and_tells_its_type() {
    let int64 = fedge_models::pb::tensor_proto::DataType::Int64 as i32;
    let bytes = tokens(int64);
    let model = fedge_models::Model::from_bytes(bytes).unwrap();
    let manifest = Manifest {
        digest: model.digest(),
        layout: model.layout().digest(),
        labels: Vec::new(),
        preprocessing: fedge_models::Preprocessing::default(),
        ..package(1).manifest
    };
    let package = Package::new(manifest, model).unwrap();
    // The last is none of the model's.
    let calibration = vec![vec![1.0, 2.0], vec![-3.0, 4.0], vec![0.5, 1.0]];
    let serving = prepare(package, calibration, &[], &PrepareOptions::default()).unwrap();
    assert_eq!(serving.contract().inputs[0].element.name(), "INT64");
    assert_eq!(serving.run(&[5.0, 16_777_215.0, -1.0, 0.0]).unwrap().values, [5.0, 16_777_215.0, -1.0, 0.0]);
    let error = serving.run(&[0.5, 1.0]).unwrap_err().to_string();
    assert!(error.contains("0.5 is no INT64"), "{error}");
}
