//! The demo's model and data, as the tests of `inference` and `samples` use them.
//! Nothing here is part of the node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use fedge_models::{ElementType, Manifest, Model, Package, Preprocessing, Weights, pb};
use prost::Message;

use super::{PrepareOptions, Serving, prepare};
use crate::samples::{Sample, file};

/// Values of one digit: 8 × 8 pixels.
pub(crate) const PIXELS: usize = 64;

pub(crate) fn zoo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo").join(file)
}

/// All 1,797 rows of the real data, raw.
pub(crate) fn digits() -> Vec<Sample> {
    let rows = file::read(&zoo("digits.csv"), &file::ReadOptions::strict(&[])).unwrap();
    let (samples, _) = rows.into_samples(PIXELS, 10, &names()).unwrap();
    samples.into_iter().map(|(input, label)| Sample { input, label }).collect()
}

pub(crate) fn names() -> Vec<String> {
    (0..10).map(|digit| format!("{digit}")).collect()
}

/// Version `number`: its weights are those of the file, each multiplied by `1 + (number - 1) / 4`, so that versions
/// answer differently.
pub(crate) fn package(number: u64) -> Package {
    let model = Model::from_path(&zoo("digits_cnn.onnx")).unwrap();
    let factor = 1.0 + (number as f32 - 1.0) / 4.0;
    let values = model.weights().values().iter().map(|value| value * factor).collect();
    let model = model.with_weights(&Weights::new(model.layout().clone(), values).unwrap()).unwrap();
    let manifest = Manifest {
        schema: 1,
        name: "digits".to_owned(),
        number,
        digest: model.digest(),
        layout: model.layout().digest(),
        labels: names(),
        preprocessing: Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() },
        parent: None,
        task: None,
        round: Some(number + 100),
    };
    Package::new(manifest, model).unwrap()
}

/// Version `number`, in float.
pub(crate) fn serving(number: u64) -> Serving {
    prepare(package(number), Vec::new(), &[], &PrepareOptions::default()).unwrap()
}

pub(crate) fn value_info(name: &str, element: i32, dims: &[Option<i64>]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = |dim: &Option<i64>| Dimension {
        value: Some(match dim {
            Some(size) => dimension::Value::DimValue(*size),
            None => dimension::Value::DimParam("batch".to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = pb::TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = pb::type_proto::Tensor { elem_type: element, shape: Some(shape) };
    let kind = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..pb::TypeProto::default() };
    pb::ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..pb::ValueInfoProto::default() }
}

fn onnx(nodes: &[(&str, &[&str], &str)], inputs: Vec<pb::ValueInfoProto>, outputs: Vec<pb::ValueInfoProto>) -> Vec<u8> {
    let node = |(operator, inputs, output): &(&str, &[&str], &str)| pb::NodeProto {
        op_type: (*operator).to_owned(),
        name: format!("the_{output}"),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![(*output).to_owned()],
        ..pb::NodeProto::default()
    };
    let graph = pb::GraphProto {
        name: "g".to_owned(),
        node: nodes.iter().map(node).collect(),
        input: inputs,
        output: outputs,
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..pb::ModelProto::default() }
        .encode_to_vec()
}

/// int64 `a` and `b` `[batch, 2]` give `sum` and `difference`.
pub(crate) fn two_inputs() -> Vec<u8> {
    let int64 = pb::tensor_proto::DataType::Int64 as i32;
    let value = |name| value_info(name, int64, &[None, Some(2)]);
    onnx(
        &[("Add", &["a", "b"], "sum"), ("Sub", &["a", "b"], "difference")],
        vec![value("a"), value("b")],
        vec![value("sum"), value("difference")],
    )
}

/// `x` `[batch, 2]` of a type, unchanged as `y`.
pub(crate) fn every_type(element: ElementType) -> Vec<u8> {
    let number = (1..32).find(|number| ElementType::from_onnx(*number) == Some(element)).unwrap();
    let value = |name| value_info(name, number, &[None, Some(2)]);
    onnx(&[("Identity", &["x"], "y")], vec![value("x")], vec![value("y")])
}

/// `x` `[batch, 2]` of a type of integers, cast to float32 as `y`.
pub(crate) fn tokens(element: i32) -> Vec<u8> {
    let float = pb::tensor_proto::DataType::Float as i32;
    let bytes = onnx(
        &[("Cast", &["x"], "y")],
        vec![value_info("x", element, &[None, Some(2)])],
        vec![value_info("y", float, &[None, Some(2)])],
    );
    let mut proto = pb::ModelProto::decode(&*bytes).unwrap();
    let kind = pb::attribute_proto::AttributeType::Int as i32;
    let to = pb::AttributeProto { name: "to".to_owned(), i: float.into(), r#type: kind, ..Default::default() };
    proto.graph.as_mut().unwrap().node[0].attribute.push(to);
    proto.encode_to_vec()
}

/// Cases of the tests that throw bytes at random at decoders and loaders: `FEDGE_FUZZ_CASES`, else `usual`. A million take
/// about a minute.
pub(crate) fn fuzz_cases(usual: u32) -> u32 {
    std::env::var("FEDGE_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
