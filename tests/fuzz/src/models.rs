//! Tiny models that requests are aimed at, built field by field, and a node's answering part that serves them.
//! What is asked of them is `request`'s and `rest`'s.

use std::sync::{Arc, OnceLock};

use fedge_models::package::MANIFEST_SCHEMA;
use fedge_models::{Digest, Interface, Manifest, Model, Package, Preprocessing, pb};
use fedge_node::inference::{Inference, KeepPolicy, ModelRepository, PrepareOptions, RequestLimits, Serving, prepare};
use prost::Message;
use tokio::runtime::Runtime;

/// `float`: one float32 input `x` `[batch, 4]`, served in float with labels. `int8`: the same, quantized. `pair`: int64 `a` and `b`
/// `[batch, 2]`. `types`: an input and an output of each element type. `open`: two dimensions besides the batch are open.
pub const NAMES: [&str; 5] = ["float", "int8", "pair", "types", "open"];

/// Inputs of `types`, `[batch, 2]` each: their names are the protocol's, their numbers ONNX's.
pub const TYPES: [(&str, i32); 12] = [
    ("FP32", 1),
    ("UINT8", 2),
    ("INT8", 3),
    ("UINT16", 4),
    ("INT16", 5),
    ("INT32", 6),
    ("INT64", 7),
    ("BOOL", 9),
    ("FP16", 10),
    ("FP64", 11),
    ("UINT32", 12),
    ("UINT64", 13),
];

/// What answers, on a runtime of one thread.
pub struct Served {
    /// The answering part of a node.
    pub inference: Inference,
    /// Where its futures run.
    pub runtime: Runtime,
}

/// The models, loaded once.
pub fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let repository = Arc::new(ModelRepository::new());
        for name in NAMES {
            repository.swap(serving(name));
        }
        let inference = Inference::new(repository, None, KeepPolicy::Off, RequestLimits::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Served { inference, runtime }
    })
}

/// The file of one of the models.
pub fn file(name: &str) -> Vec<u8> {
    const FLOAT: i32 = 1;
    const INT64: i32 = 7;
    let batch = |width| vec![None, Some(width)];
    let (nodes, initializers, inputs, outputs) = match name {
        "pair" => (
            vec![node("Add", &["a", "b"], "sum"), node("Sub", &["a", "b"], "difference")],
            vec![],
            vec![value("a", INT64, &batch(2)), value("b", INT64, &batch(2))],
            vec![value("sum", INT64, &batch(2)), value("difference", INT64, &batch(2))],
        ),
        "types" => (
            TYPES.iter().map(|(name, _)| node("Identity", &[name], &format!("{name} out"))).collect(),
            vec![],
            TYPES.iter().map(|(name, kind)| value(name, *kind, &batch(2))).collect(),
            TYPES.iter().map(|(name, kind)| value(&format!("{name} out"), *kind, &batch(2))).collect(),
        ),
        "open" => {
            let dims = [None, None, None];
            let nodes = vec![node("Relu", &["x"], "y"), node("Transpose", &["x"], "z")];
            (nodes, vec![], vec![value("x", FLOAT, &dims)], vec![value("y", FLOAT, &dims), value("z", FLOAT, &dims)])
        }
        _ => (
            vec![node("Gemm", &["x", "w", "b"], "h"), node("Relu", &["h"], "y")],
            vec![floats("w", &[4, 3]), floats("b", &[3])],
            vec![value("x", FLOAT, &batch(4))],
            vec![value("y", FLOAT, &batch(3))],
        ),
    };
    let graph = pb::GraphProto {
        name: name.to_owned(),
        node: nodes,
        initializer: initializers,
        input: inputs,
        output: outputs,
        ..pb::GraphProto::default()
    };
    encode(graph)
}

/// A graph as a file.
pub fn encode(graph: pb::GraphProto) -> Vec<u8> {
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..pb::ModelProto::default() }
        .encode_to_vec()
}

/// Where a version comes from, for a file that no coordinator published.
pub fn manifest(name: &str, digest: Digest, layout: Digest) -> Manifest {
    Manifest {
        schema: MANIFEST_SCHEMA,
        name: name.to_owned(),
        number: 1,
        digest,
        layout,
        labels: Vec::new(),
        preprocessing: Preprocessing::default(),
        parent: None,
        task: None,
        round: None,
    }
}

fn serving(name: &str) -> Serving {
    let bytes = file(name);
    if !["float", "int8"].contains(&name) {
        let interface = Interface::from_bytes(&bytes).expect("an interface");
        let manifest = manifest(name, interface.digest, interface.layout);
        return Serving::of_tensors(manifest, interface, &bytes).expect("a model that loads");
    }
    let model = Model::from_bytes(bytes).expect("a model");
    let labels = ["cat", "dog", "owl"].map(str::to_owned).to_vec();
    let manifest = Manifest { labels, ..manifest(name, model.digest(), model.layout().digest()) };
    let package = Package::new(manifest, model).expect("a package");
    let calibration = if name == "int8" { vec![vec![-1.0, 0.0, 0.5, 1.0], vec![1.0; 4]] } else { Vec::new() };
    prepare(package, calibration, &[], &PrepareOptions::default()).expect("a model that serves")
}

/// A node without attributes.
pub fn node(operator: &str, inputs: &[&str], output: &str) -> pb::NodeProto {
    pb::NodeProto {
        op_type: operator.to_owned(),
        name: format!("the {output}"),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..pb::NodeProto::default()
    }
}

/// An initializer of values that differ.
pub fn floats(name: &str, dims: &[i64]) -> pb::TensorProto {
    let len: i64 = dims.iter().product();
    pb::TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: 1,
        raw_data: (0..len).flat_map(|index| (index as f32 / 4.0 - 1.0).to_le_bytes()).collect(),
        ..pb::TensorProto::default()
    }
}

/// An input or output; `None` is open.
pub fn value(name: &str, element: i32, dims: &[Option<i64>]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = |(axis, dim): (usize, &Option<i64>)| Dimension {
        value: Some(match dim {
            Some(size) => dimension::Value::DimValue(*size),
            None => dimension::Value::DimParam(format!("open{axis}")),
        }),
        ..Dimension::default()
    };
    let shape = pb::TensorShapeProto { dim: dims.iter().enumerate().map(dim).collect() };
    let tensor = pb::type_proto::Tensor { elem_type: element, shape: Some(shape) };
    let kind = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..pb::TypeProto::default() };
    pb::ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..pb::ValueInfoProto::default() }
}
