//! REST over mutual TLS by plain curl: who is let in, who may ask which model, who may load.
//! The same over gRPC is in `identities` and in the crates; REST's own answers are in `standalone`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clients::has_curl;
use crate::harness::{Coordinator, Process, fedge, free_ports, project, run, succeed, text, wait_for};

/// A standalone node with the identity of one that joined.
struct Node {
    coordinator: Coordinator,
    address: String,
    process: Process,
}

const INPUT: &str = r#"{"inputs":[{"name":"pixels","datatype":"FP32","shape":[1,1,8,8],"data":["#;

impl Node {
    fn start() -> Node {
        let coordinator = Coordinator::start();
        let home = coordinator.folder().join("edge");
        let token = coordinator.token("node", "edge");
        let join = ["node", "join", "--coordinator", &coordinator.enrolment(), "--token", &token, "--dir"];
        succeed(fedge().args(join).arg(&home));
        let models = coordinator.folder().join("models");
        for (name, settings) in [("digits", ""), ("private", "clients = [\"till-3\"]\n")] {
            std::fs::create_dir_all(models.join(name).join("1")).expect("folder");
            let onnx = models.join(name).join("1/model.onnx");
            std::fs::copy(project("models/zoo/digits_cnn.onnx"), onnx).expect("a copy");
            std::fs::write(models.join(name).join("model.toml"), settings).expect("settings");
        }
        let [grpc, http] = free_ports::<2>().map(|port| format!("127.0.0.1:{port}"));
        let mut command = fedge();
        command.args(["node", "run", "--standalone", "--poll-ms", "100", "--grpc", &grpc, "--http", &http]);
        command.arg("--model-repository").arg(&models).arg("--dir").arg(&home);
        let process = Process::start(&mut command, coordinator.folder().join("node.log"));
        Node { coordinator, address: http, process }
    }

    fn enrol(&self, role: &str, name: &str) -> PathBuf {
        self.coordinator.enrol(role, name)
    }

    /// Status and body; none where there is no connection.
    fn curl(&self, identity: Option<&Path>, path: &str, arguments: &[&str]) -> Option<(u16, String)> {
        let ca = self.coordinator.operator().join("ca.pem");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]).args(arguments);
        command.arg("--cacert").arg(ca);
        if let Some(identity) = identity {
            // One file holds the key and the chain.
            let pem = identity.join("identity.pem");
            command.arg("--cert").arg(&pem).arg("--key").arg(&pem);
        }
        let output = run(command.arg(format!("https://{}{path}", self.address)));
        if !output.status.success() {
            eprintln!("{path}: {}", text(&output.stderr));
            return None;
        }
        let printed = text(&output.stdout);
        let (body, code) = printed.rsplit_once('\n').expect("a status");
        Some((code.parse().expect("a number"), body.to_owned()))
    }

    /// The status, where there must be an answer.
    fn code(&self, identity: &Path, path: &str, arguments: &[&str]) -> u16 {
        let answer = self.curl(Some(identity), path, arguments);
        answer.unwrap_or_else(|| panic!("{path}: no answer\n{}", self.process.log())).0
    }
}

#[test]
fn curl_with_a_certificate_gets_answers_over_tls_and_without_one_no_connection() {
    if !has_curl() {
        return;
    }
    let node = Node::start();
    let (client, till) = (node.enrol("client", "client"), node.enrol("client", "till-3"));
    wait_for("the models", || (node.code(&client, "/v2/health/ready", &[]) == 200).then_some(()));
    assert_eq!(node.curl(None, "/v2/health/live", &[]), None, "no certificate, no connection");

    let values = vec!["4"; 64].join(",");
    let body = format!("{INPUT}{values}]}}]}}");
    for version in ["--http1.1", "--http2"] {
        let asked = node.curl(Some(&client), "/v2/models/digits/infer", &[version, "--json", &body]);
        let (code, answer) = asked.expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(
            (code, answer["outputs"][0]["shape"].clone()),
            (200, serde_json::json!([1, 10])),
            "{version}: {answer}"
        );
    }
    let ask_private = |who: &Path| node.code(who, "/v2/models/private/infer", &["--json", &body]);
    assert_eq!((ask_private(&client), ask_private(&till)), (403, 200), "a model of its own");

    let load = |who: &Path| node.code(who, "/v2/repository/models/digits/load", &["--json", "{}"]);
    let operator = node.coordinator.operator();
    assert_eq!((load(&client), load(&operator)), (403, 200), "only operators load");
    // The node's own identity is no caller's.
    let edge = node.coordinator.folder().join("edge/identity");
    assert_eq!(node.code(&edge, "/v2/models/digits/infer", &["--json", &body]), 403);
}

#[test]
fn a_certificate_of_another_authority_gets_no_connection_to_rest() {
    if !has_curl() {
        return;
    }
    let node = Node::start();
    let stranger = Coordinator::start();
    assert_eq!(node.curl(Some(&stranger.operator()), "/v2/health/live", &[]), None);
    assert_eq!(node.code(&node.coordinator.operator(), "/v2/health/live", &[]), 200);
}
