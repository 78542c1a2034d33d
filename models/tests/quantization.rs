//! Int8 models of this crate against ONNX Runtime's stored answers and against the float model's accuracy.
//! The fixtures come from tests/parity/int8_in_onnxruntime.py; arithmetic details are tested beside the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};

use fedge_models::float::FloatRunner;
use fedge_models::quantize::{Calibration, Options, QuantizeError, Role, quantize};
use fedge_models::{Model, ParameterClass};
use ndarray::{Array2, ArrayD, Axis};
use ndarray_npy::NpzReader;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn array(name: &str, key: &str) -> ArrayD<f32> {
    NpzReader::new(File::open(fixture(&format!("{name}.npz"))).unwrap()).unwrap().by_name(key).unwrap()
}

fn run(bytes: &[u8], inputs: &ArrayD<f32>) -> ArrayD<f32> {
    FloatRunner::new(&Model::from_bytes(bytes).unwrap()).unwrap().run(inputs.view()).unwrap()
}

/// One step of an 8-bit scale over these values.
fn step(values: &ArrayD<f32>) -> f32 {
    let least = values.iter().copied().fold(0.0, f32::min);
    (values.iter().copied().fold(0.0, f32::max) - least) / 255.0
}

fn largest_difference(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn classes(outputs: &ArrayD<f32>) -> Vec<usize> {
    let widest = |row: ndarray::ArrayViewD<'_, f32>| {
        row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(class, _)| class).unwrap()
    };
    outputs.axis_iter(Axis(0)).map(widest).collect()
}

#[test]
fn tract_gives_onnx_runtimes_answers_for_the_int8_files() {
    for name in ["digits_cnn_trained", "residual"] {
        let bytes = std::fs::read(fixture(&format!("{name}.int8.onnx"))).unwrap();
        let (inputs, expected) = (array(name, "inputs"), array(name, "int8"));
        let difference = largest_difference(&run(&bytes, &inputs), &expected);
        assert!(difference <= step(&expected), "{name}: {difference} against a step of {}", step(&expected));
    }
}

#[test]
fn tract_gives_onnx_runtimes_answers_for_the_float_files() {
    for name in ["digits_cnn_trained", "residual"] {
        let bytes = std::fs::read(fixture(&format!("{name}.onnx"))).unwrap();
        let difference = largest_difference(&run(&bytes, &array(name, "inputs")), &array(name, "float"));
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn int8_answers_stay_near_the_float_ones() {
    for name in ["digits_cnn_trained", "residual"] {
        let (int8, float) = (array(name, "int8"), array(name, "float"));
        let difference = largest_difference(&int8, &float);
        assert!(difference < 0.03 * 255.0 * step(&float), "{name}: {difference}");
    }
}

#[test]
fn spliced_weights_give_the_file_that_pythons_onnx_wrote_byte_for_byte() {
    // ONNX Runtime answered for that file (`float` in the fixture), so it loads what the splice writes.
    let untrained = Model::from_path(&Path::new(env!("CARGO_MANIFEST_DIR")).join("zoo/digits_cnn.onnx")).unwrap();
    let trained = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    assert_eq!(untrained.layout().digest(), trained.layout().digest());
    let spliced = untrained.with_weights(&trained.weights()).unwrap();
    assert_eq!(spliced.digest(), trained.digest());
}

#[test]
fn quantizing_again_gives_the_answers_of_the_stored_file() {
    for name in ["digits_cnn_trained", "residual"] {
        let model = Model::from_path(&fixture(&format!("{name}.onnx"))).unwrap();
        let quantized = quantize(&model, array(name, "calibration").view(), &Options::default()).unwrap();
        let expected = array(name, "int8");
        let difference = largest_difference(&run(&quantized.bytes, &array(name, "inputs")), &expected);
        assert!(difference <= step(&expected), "{name}: {difference} against a step of {}", step(&expected));
    }
}

#[test]
fn fifty_samples_of_three_classes_cost_at_most_one_point_of_accuracy() {
    let table = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("zoo/digits.csv")).unwrap();
    let rows: Vec<Vec<f32>> =
        table.lines().skip(1).map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect()).collect();
    let labels: Vec<usize> = rows.iter().map(|row| row[64] as usize).collect();
    let pixels = Array2::from_shape_fn((rows.len(), 64), |(row, column)| rows[row][column] / 16.0);
    let pixels = pixels.into_shape_with_order((rows.len(), 1, 8, 8)).unwrap().into_dyn();
    let model = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    let accuracy = |bytes: &[u8]| {
        let right = classes(&run(bytes, &pixels)).iter().zip(&labels).filter(|(found, label)| found == label).count();
        right as f64 / labels.len() as f64
    };
    let float = accuracy(model.bytes());
    assert!(float > 0.98, "{float}");
    for wanted in [[0, 1, 7], [2, 3, 4], [5, 6, 9], [1, 1, 1]] {
        let few: Vec<usize> = (0..labels.len()).filter(|&row| wanted.contains(&labels[row])).take(50).collect();
        let quantized = quantize(&model, pixels.select(Axis(0), &few).view(), &Options::default()).unwrap();
        let int8 = accuracy(&quantized.bytes);
        assert!(float - int8 <= 0.01, "calibrated on {wanted:?}: {int8} against {float}");
    }
}

#[test]
fn every_tensor_is_reported_and_nothing_of_the_digits_model_stays_in_float() {
    let model = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    let quantized = quantize(&model, array("digits_cnn_trained", "calibration").view(), &Options::default()).unwrap();
    assert_eq!(quantized.skipped, []);
    let roles = |role| quantized.tensors.iter().filter(|tensor| tensor.role == role).count();
    assert_eq!((roles(Role::Activation), roles(Role::Weight), roles(Role::Bias)), (7, 4, 4));
    let find = |name: &str| quantized.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!((find("relu").min, find("relu").zero_point), (0.0, 0));
    assert_eq!(find("relu").scale, find("max_pool2d").scale, "pooling keeps the scale");
    assert!(find("pixels").max >= 1.0);
    assert_eq!(find("fc1.weight").channels, 48);
    assert!(quantized.bytes.len() * 2 < model.bytes().len());
}

#[test]
fn an_int8_file_has_nothing_left_to_train_but_keeps_its_signature() {
    let model = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    let int8 = Model::from_path(&fixture("digits_cnn_trained.int8.onnx")).unwrap();
    assert_eq!((int8.input(), int8.output()), (model.input(), model.output()));
    assert!(int8.layout().parameters().iter().all(|spec| spec.class == ParameterClass::Constant));
    assert!(int8.untrainable().iter().any(|found| found.operator == "QuantizeLinear"));
}

#[test]
fn what_stays_in_float_is_reported_with_its_reason() {
    let model = Model::from_path(&fixture("residual.onnx")).unwrap();
    let quantized = quantize(&model, array("residual", "calibration").view(), &Options::default()).unwrap();
    let operators: Vec<&str> = quantized.skipped.iter().map(|skipped| skipped.operator.as_str()).collect();
    assert!(operators.contains(&"Add") && !operators.contains(&"BatchNormalization"), "{operators:?}");
    assert!(!operators.contains(&"Conv") && !operators.contains(&"MatMul"), "{operators:?}");
}

#[test]
fn each_calibration_and_reduced_weights_give_a_model_that_agrees_with_float() {
    let model = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    let (inputs, float) = (array("digits_cnn_trained", "inputs"), array("digits_cnn_trained", "float"));
    for calibration in [Calibration::MinMax, Calibration::Percentile(99.9), Calibration::Percentile(100.0)] {
        for reduce_range in [false, true] {
            let options = Options { calibration, reduce_range, ..Options::default() };
            let quantized = quantize(&model, inputs.view(), &options).unwrap();
            let found = classes(&run(&quantized.bytes, &inputs));
            let equal = found.iter().zip(classes(&float)).filter(|(found, float)| *found == float).count();
            assert!(equal >= 63, "{options:?}: {equal} of 64 agree");
        }
    }
}

#[test]
fn unfit_samples_options_and_models_are_refused_with_their_reason() {
    let model = Model::from_path(&fixture("digits_cnn_trained.onnx")).unwrap();
    let good = array("digits_cnn_trained", "inputs");
    let refused = |samples: &ArrayD<f32>, options: &Options, word: &str| {
        let error = quantize(&model, samples.view(), options).unwrap_err();
        assert!(matches!(error, QuantizeError::Calibration(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(&ArrayD::zeros(vec![0, 1, 8, 8]), &Options::default(), "at least 1");
    refused(&ArrayD::zeros(vec![4, 64]), &Options::default(), "[4, 64]");
    refused(&ArrayD::zeros(vec![]), &Options::default(), "[]");
    let mut damaged = good.clone();
    damaged[[2, 0, 3, 3]] = f32::NAN;
    refused(&damaged, &Options::default(), "sample 2");
    for percentile in [50.0, 101.0, f32::NAN] {
        refused(
            &good,
            &Options { calibration: Calibration::Percentile(percentile), ..Options::default() },
            "percentile",
        );
    }
    for margin in [-0.1, 1.5, f32::NAN] {
        refused(&good, &Options { margin, ..Options::default() }, "margin");
    }
    let int8 = Model::from_path(&fixture("digits_cnn_trained.int8.onnx")).unwrap();
    let error = quantize(&int8, good.view(), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("nothing to gain"), "{error}");
}
