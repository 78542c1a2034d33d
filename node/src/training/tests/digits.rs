//! The zoo's model and digits, for tests.
//! 1,797 real digits of 8×8 pixels; pixels / 16, as the demo's preprocessing says.

use fedge_models::Model;

use crate::training::Dataset;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/zoo/");

pub(super) fn model() -> Model {
    Model::from_path(format!("{ROOT}digits_cnn.onnx").as_ref()).unwrap()
}

/// The rows of the file that `keep` names by index.
pub(super) fn digits(keep: impl Fn(usize) -> bool) -> Dataset {
    let text = std::fs::read_to_string(format!("{ROOT}digits.csv")).unwrap();
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for (_, line) in text.lines().skip(1).enumerate().filter(|(row, _)| keep(*row)) {
        let numbers: Vec<f32> = line.split(',').map(|field| field.parse().unwrap()).collect();
        inputs.extend(numbers[..64].iter().map(|pixel| pixel / 16.0));
        labels.push(numbers[64] as u32);
    }
    Dataset::new(inputs, labels, vec![1, 8, 8]).unwrap()
}
