//! Small files whose steps would take far more memory than their outputs tell: each is refused before anything runs.
//! Other refusals are in `refusals`.

use fedge_models::Model;

use super::build::{Attribute, Builder};
use super::refusals::refusal;

/// What says that a step would be too large, and by which value.
fn refused(model: &Model, value: &str) {
    let error = refusal(model).to_string();
    assert!(error.contains(&format!("with {value} of shape [")), "{value}: {error}");
    assert!(error.contains("exceeds 536870912 numbers") && error.contains("node_"), "{error}");
}

/// A graph whose "z" is trained and has this shape.
fn start(shape: &[i64]) -> Builder {
    Builder::new(18, shape).parameter("w", &[1]).node("Mul", "x w", "z")
}

#[test]
fn an_image_that_is_first_enlarged_and_then_reduced_is_refused() {
    let resized = start(&[1, 2, 4096]).integers("sizes", &[1 << 16, 1]).node_with(
        "Resize",
        "z - - sizes",
        "y",
        &[("axes", Attribute::Ints(&[2, 3]))],
    );
    refused(&resized.flat("y"), "a value between two of its axes");
    let padded = start(&[1, 2, 4096]).integers("pads", &[0, 0, 30_000, 0, 0, 0, 30_000, -4095]);
    refused(&padded.node("Pad", "z pads", "y").flat("y"), "a value between two of its axes");
    let linear = start(&[1, 2, 4096]).integers("sizes", &[1 << 14]).node_with(
        "Resize",
        "z - - sizes",
        "y",
        &[("axes", Attribute::Ints(&[2])), ("mode", Attribute::Text("linear"))],
    );
    refused(&linear.flat("y"), "the upper neighbours");
}

#[test]
fn padding_that_the_output_does_not_show_is_refused() {
    let pooled = start(&[1, 64, 64]).node_with(
        "MaxPool",
        "z",
        "y",
        &[
            ("kernel_shape", Attribute::Ints(&[2, 2])),
            ("dilations", Attribute::Ints(&[20_000, 20_000])),
            ("pads", Attribute::Ints(&[20_000, 20_000, 20_000, 20_000])),
            ("strides", Attribute::Ints(&[65_536, 65_536])),
        ],
    );
    refused(&pooled.flat("y"), "its padded input");
    let cut = start(&[1, 16, 16]).parameter("v", &[1, 1, 1, 1]).node_with(
        "ConvTranspose",
        "z v",
        "y",
        &[("strides", Attribute::Ints(&[2000, 2000])), ("pads", Attribute::Ints(&[15_000, 15_000, 15_000, 15_000]))],
    );
    refused(&cut.flat("y"), "its output before its pads are cut off");
}

#[test]
fn windows_that_unfold_into_billions_of_numbers_are_refused() {
    let model = start(&[1, 512, 512]).parameter("v", &[1, 1, 256, 256]).node("Conv", "z v", "y").flat("y");
    refused(&model, "its unfolded windows");
}

#[test]
fn a_few_channels_of_large_images_in_whole_vectors_are_refused() {
    let model = start(&[1, 8192, 8192]).parameter("v", &[1, 1, 1, 1]).node("Conv", "z v", "y").flat("y");
    refused(&model, "its input in whole vectors");
}

#[test]
fn an_operand_that_is_repeated_for_a_large_batch_is_refused() {
    let model = start(&[1])
        .integers("target", &[4, 512, 2048, 1])
        .integers("lift", &[-1, 1, 1, 1])
        .parameter("v", &[1, 1, 2048, 2048])
        .node("Reshape", "z lift", "r")
        .node("Expand", "r target", "e")
        .node("MatMul", "v e", "y")
        .flat("y");
    refused(&model, "its first operand's gradient");
}

#[test]
fn constants_count_as_what_is_computed_does() {
    let model = start(&[1])
        .integers("target", &[4, (1 << 27) - (1 << 23)])
        .integers("size", &[1 << 26])
        .node("Expand", "z target", "e")
        .node("ReduceMax", "e", "a")
        .node("ConstantOfShape", "size", "c")
        .node("ReduceMax", "c", "b")
        .node("Add", "a b", "y")
        .model("y");
    refused(&model, "its output");
}

#[test]
fn a_number_that_is_repeated_a_million_times_is_no_list_of_tensors() {
    let model = start(&[1])
        .integers("times", &[1, 1 << 20])
        .node("Tile", "z times", "t")
        .node_with("ReduceMean", "t", "m", &[("keepdims", Attribute::Int(1))])
        .node("Add", "z m", "y")
        .model("y");
    let before = std::time::Instant::now();
    let data = crate::training::Dataset::new(vec![1.0, 2.0], vec![0, 0], vec![1]).unwrap();
    crate::training::evaluate(&model, &data).unwrap();
    assert!(before.elapsed().as_secs() < 30, "{:?}", before.elapsed());
}
