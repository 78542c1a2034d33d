//! A standalone node as its users meet it: stock tritonclient over gRPC and HTTP, curl, and a folder that changes.
//! Semantics of single requests are tested in the node's crate; here real processes and real clients talk.

use std::path::{Path, PathBuf};
use std::process::Command;

use fedge_models::pb;
use prost::Message;

use crate::clients::{has_curl, python};
use crate::harness::{Process, fedge, free_ports, project, run, text, wait_for};

struct Standalone {
    folder: tempfile::TempDir,
    grpc: String,
    http: String,
    metrics: String,
    process: Process,
}

/// int64 `a` and `b` `[batch, 2]` give `sum` and `difference`.
fn pair() -> Vec<u8> {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let value = |name: &str| {
        let dim = vec![dim(dimension::Value::DimParam("batch".to_owned())), dim(dimension::Value::DimValue(2))];
        let elem_type = pb::tensor_proto::DataType::Int64 as i32;
        let tensor = pb::type_proto::Tensor { elem_type, shape: Some(pb::TensorShapeProto { dim }) };
        let value = Some(pb::type_proto::Value::TensorType(tensor));
        let kind = pb::TypeProto { value, ..pb::TypeProto::default() };
        pb::ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..pb::ValueInfoProto::default() }
    };
    let node = |operator: &str, output: &str| pb::NodeProto {
        op_type: operator.to_owned(),
        name: format!("the_{operator}"),
        input: vec!["a".to_owned(), "b".to_owned()],
        output: vec![output.to_owned()],
        ..pb::NodeProto::default()
    };
    let graph = pb::GraphProto {
        name: "pair".to_owned(),
        node: vec![node("Add", "sum"), node("Sub", "difference")],
        input: vec![value("a"), value("b")],
        output: vec![value("sum"), value("difference")],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..pb::ModelProto::default() }
        .encode_to_vec()
}

/// The demo's model with all weights scaled, so that versions answer differently.
fn digits(factor: f32) -> Vec<u8> {
    let model = fedge_models::Model::from_path(&project("models/zoo/digits_cnn.onnx")).expect("the zoo");
    let values = model.weights().values().iter().map(|value| value * factor).collect();
    let weights = fedge_models::Weights::new(model.layout().clone(), values).expect("as many");
    model.with_weights(&weights).expect("its own layout").bytes().to_vec()
}

fn put(root: &Path, model: &str, version: &str, onnx: &[u8]) -> PathBuf {
    let folder = root.join(model).join(version);
    std::fs::create_dir_all(&folder).expect("folder");
    let staged = folder.join(".model.onnx");
    std::fs::write(&staged, onnx).expect("a staged file");
    std::fs::rename(staged, folder.join("model.onnx")).expect("a rename");
    folder
}

impl Standalone {
    fn start() -> Standalone {
        Standalone::start_with(|_| {})
    }

    fn start_with(more: impl FnOnce(&mut Command)) -> Standalone {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("models");
        put(&root, "digits", "1", &digits(1.0));
        put(&root, "digits", "2", &digits(1.25));
        put(&root, "pair", "1", &pair());
        let settings = "labels = [\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]\n\
                        [version_policy]\nall = true\n[preprocessing]\nscale = 0.0625\n";
        std::fs::write(root.join("digits/model.toml"), settings).expect("settings");
        // Files are read once they have rested.
        std::thread::sleep(std::time::Duration::from_millis(150));
        let [grpc, http, metrics] = free_ports::<3>().map(|port| format!("127.0.0.1:{port}"));
        let mut command = fedge();
        command
            .args(["node", "run", "--standalone", "--plaintext", "--poll-ms", "100", "--model-repository"])
            .arg(&root);
        command.args(["--grpc", &grpc, "--http", &http, "--metrics", &metrics]);
        more(&mut command);
        let process = Process::start(&mut command, folder.path().join("node.log"));
        Standalone { folder, grpc, http, metrics, process }
    }

    /// curl's status and body.
    fn curl(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]).args(arguments);
        let output = run(command.arg(format!("http://{}{path}", self.http)));
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{path}: {}\n{}", text(&output.stderr), self.process.log());
        let (body, code) = printed.rsplit_once('\n').expect("a status");
        (code.parse().expect("a number"), body.to_owned())
    }
}

#[test]
fn stock_tritonclient_gets_every_row_of_the_semantics_from_a_standalone_node() {
    let node = Standalone::start();
    let Some(python) = python() else { return };
    let mut check = Command::new(python);
    check.arg(project("tests/parity/serving_check.py")).args([&node.grpc, &node.http, &node.metrics]);
    let output = run(&mut check);
    assert!(output.status.success(), "{}\n{}\n{}", text(&output.stdout), text(&output.stderr), node.process.log());
}

#[test]
fn a_collector_gets_the_spans_of_traced_requests_and_the_log_names_their_ids() {
    let Some(python) = python() else { return };
    let [port] = free_ports::<1>();
    let collector = format!("127.0.0.1:{port}");
    let node = Standalone::start_with(|command| {
        command.args(["--otlp-endpoint", &format!("http://{collector}"), "--trace-ratio", "0"]);
        command.env("FEDGE_LOG_FORMAT", "json").env("OTEL_BSP_SCHEDULE_DELAY", "200");
    });
    let mut check = Command::new(python);
    check.arg(project("tests/parity/otlp_check.py")).args([&collector, &node.grpc, &node.http]);
    let output = run(&mut check);
    assert!(output.status.success(), "{}\n{}\n{}", text(&output.stdout), text(&output.stderr), node.process.log());
    let log = node.process.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let refused: Vec<_> = lines.filter(|line| line["request_id"] == "order-66").collect();
    let [line] = &refused[..] else { panic!("one line for the refused request: {log}") };
    assert_eq!((&line["code"], &line["message"]), (&"InvalidArgument".into(), &"call refused".into()), "{line}");
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736", "{line}");
    assert!(line["problem"].as_str().is_some_and(|problem| problem.contains("pixels")), "{line}");
}

#[test]
fn curl_is_client_enough() {
    if !has_curl() {
        return;
    }
    let node = Standalone::start();
    for (path, code) in [
        ("/v2", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/digits", 200),
        ("/v2/models/digits/versions/1/ready", 200),
        ("/v2/models/letters/ready", 400),
        ("/v2/models/letters", 404),
        ("/v2/models/digits/versions/newest", 400),
        ("/v2/models/digits/infer", 405),
        ("/metrics", 404),
        ("/v1/models/digits", 404),
    ] {
        assert_eq!(node.curl(path, &[]).0, code, "{path}");
    }
    let infer = |body: &str| node.curl("/v2/models/pair/infer", &["--json", body]);
    let (code, answer) = infer(
        r#"{"id": "7", "inputs": [{"name": "a", "datatype": "INT64", "shape": [1, 2], "data": [[5, 9007199254740993]]},
            {"name": "b", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}], "outputs": [{"name": "sum"}]}"#,
    );
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((code, &answer["id"], &answer["outputs"][0]["name"]), (200, &"7".into(), &"sum".into()));
    assert_eq!(answer["outputs"][0]["data"], serde_json::json!([6, 9007199254740995i64]), "{answer}");
    for (body, expected) in [
        ("{", "no inference request"),
        (r#"{"inputs": []}"#, "\"a\": is missing"),
        (r#"{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1, 2], "data": [1.5, 2]}]}"#, "1.5"),
        (
            r#"{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1, 2], "data": [1]}]}"#,
            "expected 2 values in data",
        ),
    ] {
        let (code, answer) = infer(body);
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        let error = answer["error"].as_str().expect("an error");
        assert!(code == 400 && error.contains(expected), "{code} {error}");
    }
    // A page in a browser on this machine is no client of a port without certificates.
    for header in ["Origin: https://example.org", "Host: example.org:8000"] {
        let (code, answer) = node.curl("/v2/repository/models/digits/unload", &["--header", header, "--data", ""]);
        assert!(code == 403 && answer.contains("web pages"), "{header}: {code} {answer}");
    }
    assert_eq!(node.curl("/v2/models/digits/ready", &["--header", "Host: localhost:8000"]).0, 200);
    let large = node.folder.path().join("large");
    std::fs::write(&large, vec![b' '; 17 << 20]).expect("a large file");
    let (code, answer) = node.curl("/v2/models/pair/infer", &["--data-binary", &format!("@{}", large.display())]);
    assert!(code == 413 && answer.contains("16777216"), "{code} {answer}");
}

#[test]
fn a_folder_that_changes_changes_what_is_served() {
    let node = Standalone::start();
    let root = node.folder.path().join("models");
    let versions = || {
        let body = body_of(&format!("http://{}/v2/models/digits", node.http));
        serde_json::from_str::<serde_json::Value>(&body).ok().map(|answer| answer["versions"].clone())
    };
    assert_eq!(versions(), Some(serde_json::json!(["1", "2"])));
    put(&root, "digits", "3", &digits(1.5));
    wait_for("version 3", || (versions() == Some(serde_json::json!(["1", "2", "3"]))).then_some(()));
    put(&root, "digits", "4", &digits(1.0)[..9000]);
    wait_for("a word on version 4", || node.process.log().contains("version 4").then_some(()));
    assert_eq!(versions(), Some(serde_json::json!(["1", "2", "3"])), "a damaged file replaces nothing");
    std::fs::remove_dir_all(root.join("digits/1")).expect("removal");
    std::fs::remove_dir_all(root.join("digits/4")).expect("removal");
    wait_for("the end of version 1", || (versions() == Some(serde_json::json!(["2", "3"]))).then_some(()));
}

/// The body of a GET, by the plainest of clients.
fn body_of(url: &str) -> String {
    use std::io::{Read, Write};
    let (host, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
    let mut stream = std::net::TcpStream::connect(host).expect("a connection");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}
