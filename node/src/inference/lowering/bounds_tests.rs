//! Small files that would take far more memory or time than they have bytes: each is left to tract, or costs nothing.
//! What lowered programs compute is tested in `tests`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fedge_models::{ElementType, TensorSignature, pb};
use pb::attribute_proto::AttributeType;
use pb::tensor_proto::DataType;

use super::kernels::Isa;
use super::{NotLowered, Program, lower};

/// A quantized graph from `x` to `y`, node by node.
struct File {
    graph: pb::GraphProto,
    input: Vec<usize>,
}

impl File {
    /// With a sample of this shape; "q" holds its codes and "d" their values.
    fn new(input: &[usize]) -> File {
        let mut file = File { graph: pb::GraphProto::default(), input: input.to_vec() };
        file.constant("scale", DataType::Float, &[], 0.5f32.to_le_bytes().to_vec());
        file.constant("zero", DataType::Uint8, &[], vec![3]);
        file.node("QuantizeLinear", &["x", "scale", "zero"], "q");
        file.node("DequantizeLinear", &["q", "scale", "zero"], "d");
        file
    }

    fn constant(&mut self, name: &str, kind: DataType, dims: &[usize], raw_data: Vec<u8>) {
        self.graph.initializer.push(pb::TensorProto {
            name: name.to_owned(),
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: kind as i32,
            raw_data,
            ..Default::default()
        });
    }

    /// int8 weights of ones behind a DequantizeLinear.
    fn weights(&mut self, name: &str, dims: &[usize]) {
        let codes = format!("{name}_codes");
        self.constant(&codes, DataType::Int8, dims, vec![1; dims.iter().product()]);
        self.node("DequantizeLinear", &[&codes, "scale"], name);
    }

    fn node(&mut self, operator: &str, inputs: &[&str], output: &str) -> &mut pb::NodeProto {
        self.graph.node.push(pb::NodeProto {
            op_type: operator.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        });
        self.graph.node.last_mut().unwrap()
    }

    /// Quantizes a value and gives it back as `to`.
    fn quantized(&mut self, from: &str, to: &str) {
        let codes = format!("{to}_codes");
        self.node("QuantizeLinear", &[from, "scale", "zero"], &codes);
        self.node("DequantizeLinear", &[&codes, "scale", "zero"], to);
    }

    /// Lowers the file; "y" has this sample shape.
    fn lower(self, output: &[usize]) -> Result<Program, NotLowered> {
        let signature = |name: &str, shape: &[usize]| TensorSignature {
            name: name.to_owned(),
            element: ElementType::Fp32,
            dims: std::iter::once(None).chain(shape.iter().copied().map(Some)).collect(),
        };
        let opset_import = vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }];
        let proto = pb::ModelProto { opset_import, graph: Some(self.graph), ..Default::default() };
        lower(&proto, &signature("x", &self.input), &signature("y", output))
    }
}

fn ints(node: &mut pb::NodeProto, name: &str, ints: &[i64]) {
    let r#type = AttributeType::Ints as i32;
    node.attribute.push(pb::AttributeProto {
        name: name.to_owned(),
        r#type,
        ints: ints.to_vec(),
        ..Default::default()
    });
}

fn int(node: &mut pb::NodeProto, name: &str, i: i64) {
    let r#type = AttributeType::Int as i32;
    node.attribute.push(pb::AttributeProto { name: name.to_owned(), r#type, i, ..Default::default() });
}

fn refusal(program: Result<Program, NotLowered>) -> String {
    let why = program.err().unwrap();
    format!("{}: {}", why.operator, why.reason)
}

#[test]
fn one_weight_read_by_many_products_is_packed_a_few_times_and_not_without_end() {
    let chain = |readers: usize| {
        let mut file = File::new(&[1024]);
        file.weights("w", &[1024, 1024]);
        for reader in 0..readers {
            let from = if reader == 0 { "d".to_owned() } else { format!("d{reader}") };
            file.node("MatMul", &[&from, "w"], &format!("m{reader}"));
            file.quantized(&format!("m{reader}"), &format!("d{}", reader + 1));
        }
        file.node("Identity", &[&format!("d{readers}")], "y");
        file.lower(&[1024])
    };
    // 2 MiB each, or 1 where bytes are multiplied; the room is 64 MiB and four times the constants' 1 MiB.
    let each = if Isa::detect().multiplies_bytes() { 1 << 20 } else { 2 << 20 };
    assert!((20 * each..21 * each).contains(&chain(20).unwrap().weight_bytes()));
    let why = refusal(chain(40));
    assert!(why.contains("exceeds 4 times"), "{why}");
}

#[test]
fn one_waiting_product_read_by_many_is_bounded_as_are_groups_of_one_channel() {
    let mut file = File::new(&[1024]);
    file.weights("w", &[1024, 1024]);
    file.node("MatMul", &["d", "w"], "m");
    for reader in 0..40 {
        file.quantized("m", &format!("d{reader}"));
    }
    file.node("Identity", &["d0"], "y");
    assert!(refusal(file.lower(&[1024])).starts_with("QuantizeLinear: what is made of constants"));

    // A float result has no depthwise form: each channel would be padded to 16 columns.
    let channels = 1 << 19;
    let mut file = File::new(&[channels, 1, 1]);
    file.weights("w", &[channels, 1, 1, 1]);
    int(file.node("Conv", &["d", "w"], "y"), "group", channels as i64);
    assert!(refusal(file.lower(&[channels, 1, 1])).contains("made of constants"));
}

#[test]
fn a_constant_behind_many_dequantize_linears_is_shared() {
    let mut file = File::new(&[4]);
    file.constant("codes", DataType::Int8, &[1 << 20], vec![1; 1 << 20]);
    for reader in 0..50_000 {
        file.node("DequantizeLinear", &["codes", "scale"], &format!("w{reader}"));
    }
    file.node("Identity", &["d"], "y");
    file.lower(&[4]).unwrap();
}

#[test]
fn float_constants_that_many_nodes_quantize_are_bounded() {
    let mut file = File::new(&[4]);
    file.constant("floats", DataType::Float, &[1 << 20], vec![0; 4 << 20]);
    for reader in 0..200 {
        file.node("QuantizeLinear", &["floats", "scale", "zero"], &format!("w{reader}"));
    }
    file.node("Identity", &["d"], "y");
    assert!(refusal(file.lower(&[4])).starts_with("QuantizeLinear: what is made of constants"));
}

#[test]
fn values_that_live_together_are_bounded_in_all() {
    // Transposes of one large image, all of which a Concat reads.
    let side = 1 << 10;
    let mut file = File::new(&[1, side, side]);
    let pool = file.node("MaxPool", &["d"], "big");
    ints(pool, "kernel_shape", &[1, 1]);
    ints(pool, "pads", &[4096, 4096, 4096, 4096]);
    let names: Vec<String> = (0..60).map(|index| format!("t{index}")).collect();
    for name in &names {
        ints(file.node("Transpose", &["big"], name), "perm", &[0, 1, 3, 2]);
    }
    let parts: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &parts {
        let pool = file.node("MaxPool", &[name], &format!("small_{name}"));
        ints(pool, "kernel_shape", &[1, 1]);
        ints(pool, "strides", &[4096, 4096]);
    }
    let small: Vec<String> = parts.iter().map(|name| format!("small_{name}")).collect();
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    int(file.node("Concat", &small, "c"), "axis", 1);
    file.quantized("c", "y");
    let why = refusal(file.lower(&[60, 3, 3]));
    assert!(why.contains("bytes for its values"), "{why}");
}

#[test]
fn a_constant_of_one_element_that_adds_dimensions_is_left_to_tract() {
    let added = |dims: &[usize]| {
        let mut file = File::new(&[4]);
        file.constant("one", DataType::Float, dims, 1f32.to_le_bytes().to_vec());
        file.node("Add", &["d", "one"], "a");
        file.quantized("a", "y");
        file.lower(&[4])
    };
    for dims in [&[][..], &[1], &[1, 1]] {
        added(dims).unwrap();
    }
    assert!(refusal(added(&[1, 1, 1])).starts_with("Add"));
    let biased = |dims: &[usize]| {
        let mut file = File::new(&[4]);
        file.weights("w", &[4, 2]);
        file.constant("b", DataType::Float, dims, [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect());
        file.node("MatMul", &["d", "w"], "m");
        file.node("Add", &["m", "b"], "a");
        file.quantized("a", "y");
        file.lower(&[2])
    };
    for dims in [&[2][..], &[1, 2]] {
        biased(dims).unwrap();
    }
    assert!(refusal(biased(&[1, 1, 2])).starts_with("Add"));
}

#[test]
fn dimensions_without_end_are_refused() {
    let mut file = File::new(&[4]);
    for step in 0..40 {
        let from = if step == 0 { "d".to_owned() } else { format!("u{step}") };
        ints(file.node("Unsqueeze", &[&from], &format!("u{}", step + 1)), "axes", &[1]);
    }
    file.node("Identity", &["u40"], "y");
    assert!(refusal(file.lower(&[4])).contains("16 dimensions"));
    let mut file = File::new(&[4]);
    let axes: Vec<i64> = (1..200_000).collect();
    ints(file.node("Unsqueeze", &["d"], "y"), "axes", &axes);
    assert!(refusal(file.lower(&[4])).contains("16 dimensions"));
}
