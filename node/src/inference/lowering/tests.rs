//! Lowered operators and models against ONNX Runtime's answers and stock tract's.
//! Kernels and steps have tests of their own, beside them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Cursor;

use fedge_models::quantize::{Options, quantize, to_qdq};
use fedge_models::{Model, pb};
use ndarray::{Array1, ArrayD, ArrayViewD};
use ndarray_npy::NpzReader;
use prost::Message;

use super::kernels::Isa;
use super::{Program, lower};
use crate::inference::engine::Engine;
use crate::inference::test_fixtures::{PIXELS, digits, package};

/// Made by tests/parity/int8_operators.py.
const FIXTURE: &[u8] = include_bytes!("../fixtures/int8_operators.npz");

fn lowered(bytes: &[u8]) -> (Model, Result<Program, super::NotLowered>) {
    let bytes = to_qdq(bytes).unwrap().unwrap_or_else(|| bytes.to_vec());
    let model = Model::from_bytes(bytes).unwrap();
    let proto = pb::ModelProto::decode(&**model.bytes()).unwrap();
    let program = lower(&proto, model.input(), model.output());
    (model, program)
}

fn run(program: &Program, x: &[f32], threads: usize) -> Vec<f32> {
    let mut y = Vec::new();
    program.run(x, threads, &mut y);
    y
}

#[test]
fn every_operator_in_every_form_is_within_one_step_of_onnx_runtime_on_every_kernel() {
    let mut npz = NpzReader::new(Cursor::new(FIXTURE)).unwrap();
    let names: BTreeSet<String> =
        npz.names().unwrap().iter().filter_map(|name| Some(name.split_once(".model")?.0.to_owned())).collect();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for name in &names {
        let bytes: Array1<u8> = npz.by_name(&format!("{name}.model.npy")).unwrap();
        let x: ArrayD<f32> = npz.by_name(&format!("{name}.x.npy")).unwrap();
        let y: ArrayD<f32> = npz.by_name(&format!("{name}.y.npy")).unwrap();
        let step: Array1<f32> = npz.by_name(&format!("{name}.step.npy")).unwrap();
        let far = |output: &[f32]| {
            let apart = output.iter().zip(&y).map(|(a, b)| (a - b).abs() / step[0]).fold(0.0, f32::max);
            (output.len() != y.len() || apart > 1.001).then(|| format!("{name}: {apart} steps apart"))
        };
        let (model, program) = lowered(bytes.as_slice().unwrap());
        let mut program = match program {
            Ok(program) => program,
            // ONNX Runtime leaves the average over the float input in float, so tract runs the file.
            Err(_) if name.starts_with("mul.qop") => {
                let engine = Engine::load(model.bytes(), model.input(), model.output()).unwrap();
                assert_eq!(engine.report().fallback.unwrap()[0], "GlobalAveragePool", "{name}");
                wrong.extend(far(&engine.run(x.as_slice().unwrap()).unwrap()));
                continue;
            }
            Err(why) => {
                wrong.push(format!("{name}: {why:?}"));
                continue;
            }
        };
        let mut outputs = Vec::new();
        for isa in Isa::available() {
            program = program.with_isa(isa);
            outputs.push(run(&program, x.as_slice().unwrap(), 1));
        }
        wrong.extend(far(&outputs[0]));
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{name}: kernels differ");
        cases += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases >= 150, "only {cases} cases");
}

#[test]
fn our_own_int8_model_lowers_whole_and_agrees_with_stock_tract_at_any_batch() {
    let model = package(1).model;
    let rows: Vec<f32> = digits().iter().take(200).flat_map(|sample| sample.input.iter().map(|v| v / 16.0)).collect();
    let samples = ArrayViewD::from_shape(vec![200, 1, 8, 8], &rows).unwrap();
    let quantized = quantize(&model, samples, &Options::default()).unwrap();
    let (model, program) = lowered(&quantized.bytes);
    let program = program.unwrap();
    let proto = pb::ModelProto::decode(&**model.bytes()).unwrap();
    let stock = Engine::tract(&proto, model.input(), model.output(), None, true).unwrap().run(&rows).unwrap();
    let whole = run(&program, &rows, 1);
    let reach = stock.iter().fold(0f32, |reach, value| reach.max(value.abs()));
    let apart = whole.iter().zip(&stock).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= reach / 100.0, "{apart} of {reach}");
    for batch in [1, 3, 64, 200] {
        let parts: Vec<f32> = rows.chunks(batch * PIXELS).flat_map(|part| run(&program, part, 1)).collect();
        assert_eq!(parts, whole, "batches of {batch}");
    }
    assert_eq!(run(&program, &rows, 3), whole);
}

#[test]
fn a_float_model_and_an_unknown_operator_say_why_they_do_not_lower() {
    let model = package(1).model;
    let (_, program) = lowered(model.bytes());
    assert!(program.err().unwrap().reason.contains("nothing in the model is quantized"));
    let mut npz = NpzReader::new(Cursor::new(FIXTURE)).unwrap();
    let bytes: Array1<u8> = npz.by_name("conv.qdq.tensor.u8s8.model.npy").unwrap();
    let mut proto = pb::ModelProto::decode(bytes.as_slice().unwrap()).unwrap();
    let conv = proto.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type == "Conv").unwrap();
    conv.op_type = "ConvTranspose".to_owned();
    let why = lowered(&proto.encode_to_vec()).1.err().unwrap();
    assert_eq!(why.operator, "ConvTranspose");
}

#[test]
fn hostile_sizes_and_scales_are_refused_and_do_not_panic() {
    let mut npz = NpzReader::new(Cursor::new(FIXTURE)).unwrap();
    let bytes: Array1<u8> = npz.by_name("conv_strided_padded.qdq.channel.u8s8.model.npy").unwrap();
    let good = pb::ModelProto::decode(bytes.as_slice().unwrap()).unwrap();
    for (name, values) in [
        ("strides", vec![0, 1]),
        ("strides", vec![-1, 1]),
        ("strides", vec![1]),
        ("dilations", vec![1 << 40, 1]),
        ("pads", vec![1 << 40, 0, 0, 0]),
        ("pads", vec![1 << 20, 1 << 20, 1 << 20, 1 << 20]),
    ] {
        let mut proto = good.clone();
        let conv = proto.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type == "Conv").unwrap();
        conv.attribute.retain(|attribute| attribute.name != name);
        let ints = pb::AttributeProto { name: name.to_owned(), ints: values.clone(), ..Default::default() };
        conv.attribute.push(ints);
        // Reading the file refuses some of them already.
        if let Ok(model) = Model::from_bytes(proto.encode_to_vec()) {
            assert!(lowered(model.bytes()).1.is_err(), "{name} {values:?}");
        }
    }
    for scale in [0.0f32, f32::INFINITY, -1.0, 1e-45] {
        let mut proto = good.clone();
        let graph = proto.graph.as_mut().unwrap();
        let name = graph.node.iter().find(|node| node.op_type == "QuantizeLinear").unwrap().input[1].clone();
        let tensor = graph.initializer.iter_mut().find(|tensor| tensor.name == name).unwrap();
        tensor.raw_data.clear();
        tensor.float_data = vec![scale];
        if let Ok(model) = Model::from_bytes(proto.encode_to_vec()) {
            assert!(lowered(model.bytes()).1.is_err(), "{scale}");
        }
    }
}
