//! The seeds that are made: real requests and real files, from which a search starts. What a search found lies beside them as
//! files alone. Nothing here runs a target.

use std::collections::BTreeMap;
use std::io::Write;

use fedge_fuzz::models::{NAMES, TYPES, encode, file, floats, node, value};
use fedge_fuzz::rest::Head;
use fedge_models::pb;
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use fedge_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
use prost::Message;

type Seeds = Vec<(String, Vec<u8>)>;

fn tensor(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

fn message(model: &str, inputs: Vec<InferInputTensor>, raw: Vec<Vec<u8>>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs,
        raw_input_contents: raw.into_iter().map(Into::into).collect(),
        ..ModelInferRequest::default()
    }
}

fn four() -> Vec<u8> {
    [0.5f32, -1.0, 2.0, 0.25].iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn size(datatype: &str) -> usize {
    match datatype {
        "BOOL" | "INT8" | "UINT8" => 1,
        "INT16" | "UINT16" | "FP16" => 2,
        "INT64" | "UINT64" | "FP64" => 8,
        _ => 4,
    }
}

/// Messages of ModelInfer.
pub fn requests() -> Seeds {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let raw = message("float", vec![tensor("x", "FP32", &[1, 4])], vec![four()]);
    let asked = ModelInferRequest {
        id: "7".to_owned(),
        model_version: "1".to_owned(),
        parameters: BTreeMap::from([
            ("timeout".to_owned(), parameter(ParameterChoice::Int64Param(1_000_000))),
            ("priority".to_owned(), parameter(ParameterChoice::Uint64Param(1))),
        ]),
        outputs: vec![InferRequestedOutputTensor {
            name: "y".to_owned(),
            parameters: BTreeMap::from([("classification".to_owned(), parameter(ParameterChoice::Int64Param(2)))]),
        }],
        ..raw.clone()
    };
    let batch = message("int8", vec![tensor("x", "FP32", &[3, 4])], vec![four().repeat(3)]);
    let typed = |name: &str, values: &[i64]| InferInputTensor {
        contents: Some(InferTensorContents { int64_contents: values.to_vec(), ..InferTensorContents::default() }),
        ..tensor(name, "INT64", &[1, 2])
    };
    let pair = message("pair", vec![typed("a", &[5, 1 << 60]), typed("b", &[-1, 2])], vec![]);
    let types = TYPES.map(|(name, _)| tensor(name, name, &[1, 2]));
    let types = message("types", types.to_vec(), TYPES.map(|(name, _)| vec![1; 2 * size(name)]).to_vec());
    let every =
        TYPES.iter().map(|(name, _)| InferInputTensor { contents: contents(name), ..tensor(name, name, &[1, 2]) });
    let (half, others): (Vec<_>, Vec<_>) = every.partition(|tensor| tensor.datatype == "FP16");
    let open = message("open", vec![tensor("x", "FP32", &[1, 2, 2])], vec![four()]);
    let twice = message("float", vec![tensor("x", "FP32", &[1, 4]), tensor("x", "FP32", &[1, 4])], vec![four(); 2]);
    [
        ("raw", raw),
        ("asked", asked),
        ("batch", batch),
        ("pair", pair),
        ("types", types),
        ("open", open),
        ("refused_typed", message("types", [half, others].concat(), vec![])),
        ("refused_shape", message("int8", vec![tensor("x", "FP32", &[1 << 40, 1 << 40])], vec![four()])),
        ("refused_twice", twice),
        ("refused_model", message("unknown", vec![], vec![])),
    ]
    .map(|(name, message)| (name.to_owned(), message.encode_to_vec()))
    .to_vec()
}

/// Two values in the field of this type.
fn contents(datatype: &str) -> Option<InferTensorContents> {
    let mut contents = InferTensorContents::default();
    match datatype {
        "BOOL" => contents.bool_contents = vec![true, false],
        "INT8" | "INT16" | "INT32" => contents.int_contents = vec![-1, 100],
        "INT64" => contents.int64_contents = vec![-1, 1 << 40],
        "UINT8" | "UINT16" | "UINT32" => contents.uint_contents = vec![1, 200],
        "UINT64" => contents.uint64_contents = vec![1, 1 << 40],
        "FP32" => contents.fp32_contents = vec![1.5, -2.0],
        "FP64" => contents.fp64_contents = vec![1.5, -2.0],
        _ => return None,
    }
    Some(contents)
}

/// HTTP requests of infer.
pub fn bodies() -> Seeds {
    let plain = r#"{"id":"1","inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[[0.5,-1,2e0,0.25]]}]}"#;
    let asked = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[2,4],"data":[1,2,3,4,5,6,7,8]}],"parameters":{"timeout":1000000,
        "priority":1},"outputs":[{"name":"y","parameters":{"classification":2}}]}"#;
    let binary = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}],
        "parameters":{"binary_data_output":true}}"#;
    let pair = r#"{"inputs":[{"name":"b","datatype":"INT64","shape":[1,2],"parameters":{"binary_data_size":16}},{"name":"a",
        "datatype":"INT64","shape":[1,2],"data":[9007199254740993,-9223372036854775808]}],
        "outputs":[{"name":"sum","parameters":{"binary_data":true}},{"name":"difference","parameters":{"binary_data":false}}]}"#;
    let inputs: Vec<String> = TYPES
        .iter()
        .map(|(name, _)| {
            let data = if *name == "BOOL" { "[true,false]" } else { "[1,2]" };
            format!("{{\"name\":\"{name}\",\"datatype\":\"{name}\",\"shape\":[1,2],\"data\":{data}}}")
        })
        .collect();
    let types = format!("{{\"inputs\":[{}]}}", inputs.join(","));
    let open = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2,3],"data":[[[1,2,3],[4,5,6]]]}]}"#;
    let of = |name: &str| Head { model: index(name), ..Head::default() };
    let with_json = |head: Head, json: &str| Head { json_length: u32::try_from(json.len()).ok(), ..head };
    let deep = format!("{{\"inputs\":[{{\"name\":\"x\",\"data\":{}", "[".repeat(200));
    let mut gzip = flate2_of(plain.as_bytes());
    let packed = Head { encoding: 1, accepts_gzip: true, ..of("float") }.with_body(&gzip);
    gzip.truncate(gzip.len() / 2);
    let all = [binary.as_bytes(), &four()].concat();
    let both = [pair.as_bytes(), &[1; 16]].concat();
    [
        ("plain", of("float").with_body(plain.as_bytes())),
        ("asked", of("float").with_body(asked.as_bytes())),
        ("binary", with_json(of("int8"), binary).with_body(&all)),
        ("pair", with_json(of("pair"), pair).with_body(&both)),
        ("types", of("types").with_body(types.as_bytes())),
        ("open", of("open").with_body(open.as_bytes())),
        ("gzip", packed),
        ("refused_gzip", Head { encoding: 1, ..of("float") }.with_body(&gzip)),
        ("refused_deep", of("float").with_body(deep.as_bytes())),
        ("refused_length", Head { json_length: Some(u32::MAX), ..of("float") }.with_body(plain.as_bytes())),
        ("refused_model", Head { model: 200, ..Head::default() }.with_body(plain.as_bytes())),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}

fn index(name: &str) -> u8 {
    NAMES.iter().position(|known| *known == name).and_then(|index| u8::try_from(index).ok()).expect("a model")
}

fn flate2_of(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn integers(name: &str, values: &[i64]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: 7,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..pb::TensorProto::default()
    }
}

fn ints(mut node: pb::NodeProto, name: &str, values: &[i64]) -> pb::NodeProto {
    node.attribute.push(pb::AttributeProto {
        name: name.to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..pb::AttributeProto::default()
    });
    node
}

fn int(mut node: pb::NodeProto, name: &str, value: i64) -> pb::NodeProto {
    node.attribute.push(pb::AttributeProto {
        name: name.to_owned(),
        r#type: pb::attribute_proto::AttributeType::Int as i32,
        i: value,
        ..pb::AttributeProto::default()
    });
    node
}

/// From `x` `[batch, ...]` to `y` `[batch, ...]`, both float32.
fn graph(input: &[i64], output: &[i64], nodes: Vec<pb::NodeProto>, initializers: Vec<pb::TensorProto>) -> Vec<u8> {
    let dims = |dims: &[i64]| std::iter::once(None).chain(dims.iter().copied().map(Some)).collect::<Vec<_>>();
    encode(pb::GraphProto {
        name: "g".to_owned(),
        node: nodes,
        initializer: initializers,
        input: vec![value("x", 1, &dims(input))],
        output: vec![value("y", 1, &dims(output))],
        ..pb::GraphProto::default()
    })
}

/// ONNX files.
pub fn files() -> Seeds {
    let mut files: Seeds = NAMES.iter().filter(|name| **name != "int8").map(|n| ((*n).to_owned(), file(n))).collect();
    let conv = |inputs: &[&str], output: &str| {
        ints(ints(node("Conv", inputs, output), "pads", &[1; 4]), "kernel_shape", &[3; 2])
    };
    let normal = node("BatchNormalization", &["c", "scale", "bias", "mean", "var"], "n");
    let pool = ints(ints(node("MaxPool", &["r"], "p"), "kernel_shape", &[2; 2]), "strides", &[2; 2]);
    let mut variance = floats("var", &[2]);
    variance.raw_data = [1.0f32; 2].iter().flat_map(|value| value.to_le_bytes()).collect();
    let cnn = graph(
        &[1, 4, 4],
        &[3],
        vec![
            conv(&["x", "w"], "c"),
            normal,
            node("Relu", &["n"], "r"),
            pool,
            node("Flatten", &["p"], "f"),
            node("Gemm", &["f", "v", "b"], "y"),
        ],
        vec![
            floats("w", &[2, 1, 3, 3]),
            floats("scale", &[2]),
            floats("bias", &[2]),
            floats("mean", &[2]),
            variance,
            floats("v", &[8, 3]),
            floats("b", &[3]),
        ],
    );
    let residual = graph(
        &[2, 4, 4],
        &[2],
        vec![
            int(conv(&["x", "w"], "c"), "group", 2),
            node("Add", &["c", "x"], "s"),
            node("Sigmoid", &["s"], "t"),
            node("Mul", &["s", "t"], "m"),
            node("GlobalAveragePool", &["m"], "a"),
            node("Flatten", &["a"], "f"),
            int(node("Softmax", &["f"], "y"), "axis", -1),
        ],
        vec![floats("w", &[2, 1, 3, 3])],
    );
    let shapes = graph(
        &[2, 3],
        &[6],
        vec![
            node("Shape", &["x"], "s"),
            int(node("Gather", &["s", "zero"], "n"), "axis", 0),
            int(node("Concat", &["n", "rest"], "t"), "axis", 0),
            node("Reshape", &["x", "t"], "y"),
        ],
        vec![integers("zero", &[0]), integers("rest", &[-1])],
    );
    let attention = graph(
        &[3, 4],
        &[3, 4],
        vec![
            node("MatMul", &["x", "q"], "a"),
            ints(node("Transpose", &["x"], "k"), "perm", &[0, 2, 1]),
            node("MatMul", &["a", "k"], "l"),
            int(node("Softmax", &["l"], "p"), "axis", -1),
            node("MatMul", &["p", "x"], "o"),
            node("LayerNormalization", &["o", "scale", "bias"], "y"),
        ],
        vec![floats("q", &[4, 4]), floats("scale", &[4]), floats("bias", &[4])],
    );
    let grown = graph(
        &[2],
        &[2],
        vec![
            node("ConstantOfShape", &["big"], "z"),
            node("Expand", &["one", "big"], "e"),
            node("Add", &["z", "e"], "s"),
            node("ReduceMax", &["s"], "m"),
            node("Add", &["x", "m"], "y"),
        ],
        vec![integers("big", &[2, 3]), floats("one", &[1])],
    );
    let lstm = int(node("LSTM", &["x", "w", "r"], "h"), "hidden_size", 2);
    let recurrent = graph(
        &[3, 2],
        &[1, 3, 2],
        vec![lstm, node("Identity", &["h"], "y")],
        vec![floats("w", &[1, 8, 2]), floats("r", &[1, 8, 2])],
    );
    let made = [
        ("cnn", cnn),
        ("residual", residual),
        ("shapes", shapes),
        ("attention", attention),
        ("grown", grown),
        ("recurrent", recurrent),
    ];
    files.extend(made.map(|(name, bytes)| (name.to_owned(), bytes)));
    files
}
