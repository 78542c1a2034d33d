//! The two small models that serving is measured with, and version after version of them, as a model repository.
//! What serves them, and what is measured, is the matter of each benchmark.

use std::io;
use std::path::Path;

use fedge_models::{Model, Weights, pb};
use fedge_proto::inference::ModelInferRequest;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use prost::Message;

/// Widths of the MLP.
pub const WIDTHS: [usize; 4] = [784, 256, 128, 10];
const CNN: &[u8] = include_bytes!("../../models/zoo/mnist_cnn.onnx");

/// Writes `mlp` and `cnn` as a model repository.
pub fn write_models(folder: &Path) -> anyhow::Result<()> {
    for model in ["mlp", "cnn"] {
        let version = folder.join(model).join("1");
        std::fs::create_dir_all(&version)?;
        write_version(&version, model, 1)?;
    }
    // As if they had been there for long: a node reads what has rested.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    for model in ["mlp", "cnn"] {
        let path = folder.join(model).join("1").join("model.onnx");
        std::fs::File::options().write(true).open(path)?.set_modified(old)?;
    }
    Ok(())
}

/// Writes one version's file; versions differ in their weights.
pub fn write_version(folder: &Path, model: &str, number: u64) -> io::Result<()> {
    let onnx = if model == "mlp" { mlp(number) } else { CNN.to_vec() };
    let model = Model::from_bytes(onnx).map_err(io::Error::other)?;
    let factor = 1.0 + (number % 7) as f32 / 100.0;
    let values = model.weights().values().iter().map(|value| value * factor).collect();
    let weights = Weights::new(model.layout().clone(), values).map_err(io::Error::other)?;
    let model = model.with_weights(&weights).map_err(io::Error::other)?;
    std::fs::write(folder.join("model.onnx"), model.bytes())
}

/// Weights that need no randomness: small, of both signs, all different.
pub fn weights(rows: usize, columns: usize) -> Vec<f32> {
    let scale = 1.0 / (rows as f32).sqrt();
    (0..rows * columns).map(|index| scale * (((index * 7919) % 2003) as f32 / 1001.5 - 1.0)).collect()
}

/// 784-256-128-10 with Gemm and Relu; input `x`, output `y`.
fn mlp(_: u64) -> Vec<u8> {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let float = pb::tensor_proto::DataType::Float as i32;
    let value = |name: &str, width: usize| {
        let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
        let batch = dim(dimension::Value::DimParam("batch".to_owned()));
        let dims = vec![batch, dim(dimension::Value::DimValue(i64::try_from(width).unwrap_or(i64::MAX)))];
        let tensor = pb::type_proto::Tensor { elem_type: float, shape: Some(pb::TensorShapeProto { dim: dims }) };
        let kind = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..pb::TypeProto::default() };
        pb::ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..pb::ValueInfoProto::default() }
    };
    let tensor = |name: String, dims: &[usize], values: &[f32]| pb::TensorProto {
        name,
        dims: dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect(),
        data_type: float,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..pb::TensorProto::default()
    };
    let node = |operator: &str, input: Vec<String>, output: String| pb::NodeProto {
        op_type: operator.to_owned(),
        name: format!("the_{output}"),
        input,
        output: vec![output],
        ..pb::NodeProto::default()
    };
    let (mut nodes, mut initializers, mut last) = (Vec::new(), Vec::new(), "x".to_owned());
    for (layer, pair) in WIDTHS.windows(2).enumerate() {
        let (rows, columns) = (pair[0], pair[1]);
        initializers.push(tensor(format!("w{layer}"), &[rows, columns], &weights(rows, columns)));
        initializers.push(tensor(format!("b{layer}"), &[columns], &vec![0.01; columns]));
        let end = layer + 2 == WIDTHS.len();
        let output = if end { "y".to_owned() } else { format!("h{layer}") };
        nodes.push(node("Gemm", vec![last, format!("w{layer}"), format!("b{layer}")], output.clone()));
        last = output;
        if !end {
            nodes.push(node("Relu", vec![last], format!("r{layer}")));
            last = format!("r{layer}");
        }
    }
    let graph = pb::GraphProto {
        name: "mlp".to_owned(),
        node: nodes,
        initializer: initializers,
        input: vec![value("x", 784)],
        output: vec![value("y", 10)],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..pb::ModelProto::default() }
        .encode_to_vec()
}

/// A request of so many equal rows for one of the two models.
pub fn request(model: &str, rows: usize) -> ModelInferRequest {
    let sample: Vec<u8> = (0..784 * rows).flat_map(|index| ((index % 97) as f32 / 97.0).to_le_bytes()).collect();
    let batch = i64::try_from(rows).unwrap_or(i64::MAX);
    let (name, shape) = if model == "cnn" { ("pixels", vec![batch, 1, 28, 28]) } else { ("x", vec![batch, 784]) };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape,
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![sample.into()],
        ..ModelInferRequest::default()
    }
}
