//! What training refuses, and how it says so.
//! Ranges of the plan and lengths of the data are tested in `plan` and `dataset`.

use std::sync::atomic::AtomicBool;

use fedge_models::Model;

use super::build::{Attribute, Builder, numbers};
use super::digits::{digits, model};
use super::runs::plan;
use crate::training::{Dataset, Loss, Plan, TrainingError, evaluate, gradients, train};

/// The error of a run of a model on four samples of this many numbers, of class 0.
pub(super) fn refusal(model: &Model) -> TrainingError {
    let shape = model.input().sample_shape();
    let data = Dataset::new(numbers(1, 4 * shape.iter().product::<usize>()), vec![0; 4], shape).unwrap();
    train(model, &data, &plan(), &|_| (), &AtomicBool::new(false)).unwrap_err()
}

#[test]
fn a_label_out_of_range_is_refused_with_its_sample() {
    let data = Dataset::new(vec![0.5; 3 * 64], vec![0, 9, 10], vec![1, 8, 8]).unwrap();
    let expected = "sample 3 has the label 10, but the model has 10 classes (0 to 9)";
    let errors = [
        train(&model(), &data, &plan(), &|_| (), &AtomicBool::new(false)).unwrap_err(),
        evaluate(&model(), &data).unwrap_err(),
        gradients(&model(), &data, Loss::CrossEntropy).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn samples_of_another_shape_are_refused_with_both_shapes() {
    let data = Dataset::new(vec![0.5; 64], vec![0], vec![64]).unwrap();
    let error = train(&model(), &data, &plan(), &|_| (), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("[64]") && error.contains("[1, 8, 8]"), "{error}");
}

#[test]
fn a_plan_out_of_range_is_refused_before_anything_runs() {
    let error =
        train(&model(), &digits(|row| row < 4), &Plan { epochs: 0, ..plan() }, &|_| (), &AtomicBool::new(false));
    assert!(matches!(error, Err(TrainingError::Plan { field: "epochs", .. })));
}

#[test]
fn an_operator_that_training_lacks_is_named_with_its_node() {
    let model = Builder::new(17, &[4])
        .parameter("w", &[4])
        .node("Mul", "x w", "scaled")
        .node("ArgMax", "scaled", "y")
        .model("y");
    let error = refusal(&model);
    assert!(
        matches!(&error, TrainingError::Node { node, operator, .. } if node == "node_y" && operator == "ArgMax"),
        "{error}"
    );
}

#[test]
fn graphs_whose_shapes_do_not_fit_are_refused_by_node() {
    let start = || Builder::new(17, &[2, 3]).parameter("w", &[3, 4]).parameter("v", &[5]);
    let cases = [
        (start().node("MatMul", "w x", "y").flat("y"), "do not multiply"),
        (start().node("Add", "x v", "y").flat("y"), "do not broadcast"),
        (start().node("Gemm", "x w", "y").flat("y"), "do not multiply"),
        (start().node("Conv", "x w", "y").flat("y"), "does not fit"),
        (start().node_with("Softmax", "x", "y", &[("axis", Attribute::Int(3))]).flat("y"), "out of range"),
        (start().node_with("Transpose", "x", "y", &[("perm", Attribute::Ints(&[0, 1]))]).flat("y"), "no order"),
        (start().node("Concat", "x w", "y").flat("y"), "do not join"),
        (start().node_with("Relu", "x", "y", &[("alpha", Attribute::Float(1.0))]).flat("y"), "not supported"),
        (start().node_with("LeakyRelu", "x", "y", &[("alpha", Attribute::Int(1))]).flat("y"), "not of type FLOAT"),
    ];
    for (model, expected) in cases {
        let error = refusal(&model);
        assert!(matches!(error, TrainingError::Node { .. }) && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_reshape_that_bakes_in_another_batch_is_refused() {
    let model = Builder::new(17, &[2, 3])
        .parameter("w", &[3])
        .integers("shape", &[1, 6])
        .node("Mul", "x w", "scaled")
        .node("Reshape", "scaled shape", "y")
        .model("y");
    assert!(refusal(&model).to_string().contains("cannot be reshaped to [1, 6]"));
}

#[test]
fn windows_that_have_no_meaning_are_refused() {
    let pool = |attributes: &[(&str, Attribute)]| {
        Builder::new(17, &[1, 4, 4])
            .parameter("w", &[4])
            .node("Mul", "x w", "z")
            .node_with("MaxPool", "z", "y", attributes)
            .flat("y")
    };
    let cases = [
        (pool(&[("kernel_shape", Attribute::Ints(&[5, 5]))]), "does not fit"),
        (pool(&[("kernel_shape", Attribute::Ints(&[2, 0]))]), "out of range"),
        (pool(&[("kernel_shape", Attribute::Ints(&[2, 2])), ("strides", Attribute::Ints(&[0, 1]))]), "out of range"),
        (pool(&[("kernel_shape", Attribute::Ints(&[2, 2])), ("pads", Attribute::Ints(&[2, 2, 2, 2]))]), "as wide as"),
        (pool(&[("kernel_shape", Attribute::Ints(&[2]))]), "1 entries, not 2"),
        (pool(&[]), "no kernel_shape"),
    ];
    for (model, expected) in cases {
        let error = refusal(&model).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_step_that_would_take_too_much_memory_is_refused() {
    let big = Builder::new(17, &[1, 1 << 14]).parameter("w", &[1 << 15, 1]).node("Mul", "x w", "y").flat("y");
    let error = refusal(&big).to_string();
    assert!(error.contains("use a smaller batch"), "{error}");
}

#[test]
fn a_tensor_of_absurd_rank_is_refused() {
    let start = Builder::new(17, &[3]).parameter("w", &[3]).integers("axes", &[0]).node("Mul", "x w", "r0");
    let name = |n: usize| format!("r{n}");
    let model = (0..12)
        .fold(start, |builder, n| builder.node("Unsqueeze", &format!("{} axes", name(n)), &name(n + 1)))
        .flat(&name(12));
    assert!(refusal(&model).to_string().contains("which training lacks"));
}

#[test]
fn an_output_that_is_no_list_of_classes_or_learns_nothing_is_refused() {
    let ranked = Builder::new(17, &[2, 3]).parameter("w", &[3]).node("Mul", "x w", "y").model("y");
    assert!(refusal(&ranked).to_string().contains("one axis more"));
    let fixed = Builder::new(17, &[3]).parameter("w", &[3]).node("Mul", "x w", "z").node("Relu", "x", "y").model("y");
    assert!(refusal(&fixed).to_string().contains("no trainable parameter"));
}

#[test]
fn outputs_that_overflow_are_refused_in_an_evaluation() {
    let model = Builder::new(17, &[2]).floats("w", &[2], vec![3e38, 1.0]).node("Mul", "x w", "y").model("y");
    let data = Dataset::new(vec![1.0, 1.0, 100.0, 1.0], vec![0, 1], vec![2]).unwrap();
    let error = evaluate(&model, &data).unwrap_err();
    assert!(matches!(error, TrainingError::NotFinite { sample: 2 }), "{error}");
}
