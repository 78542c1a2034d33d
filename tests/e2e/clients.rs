//! What stock clients see: `fedge infer`, Python's tritonclient over mutual TLS, ONNX Runtime on the files we write.
//! Python comes from a virtual environment that the tests make; under CI its absence is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Coordinator, Node, digits, every, fedge, json, project, run, succeed, text, wait_for};

const PACKAGES: [&str; 4] =
    ["tritonclient[grpc,http]==2.73.0", "onnxruntime==1.32.0", "opentelemetry-proto==1.45.2", "numpy"];

/// Python with the stock clients; none where the machine can't have it (a failure when FEDGE_REQUIRE_PYTHON is set).
pub fn python() -> Option<PathBuf> {
    let required = std::env::var_os("FEDGE_REQUIRE_PYTHON").is_some();
    match make_environment() {
        Ok(python) => Some(python),
        Err(why) if required => panic!("Python's clients are required here: {why}"),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Whether there is curl; its absence is a failure where FEDGE_REQUIRE_PYTHON is set.
pub fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("FEDGE_REQUIRE_PYTHON").is_none(), "curl is required here");
        eprintln!("skipped: there is no curl");
    }
    found
}

fn make_environment() -> Result<PathBuf, String> {
    static MADE: std::sync::OnceLock<Result<PathBuf, String>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
        let python = folder.join("bin/python");
        let works = |python: &Path| {
            let check = Command::new(python)
                .args(["-c", "import tritonclient.grpc, tritonclient.http, onnxruntime, opentelemetry.proto, numpy"])
                .output();
            check.is_ok_and(|o| o.status.success())
        };
        if works(&python) {
            return Ok(python);
        }
        let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder).output();
        let made = made.map_err(|e| format!("python3: {e}"))?;
        if !made.status.success() {
            return Err(format!("python3 -m venv: {}", text(&made.stderr)));
        }
        let install = Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES).output();
        let install = install.map_err(|e| e.to_string())?;
        if install.status.success() && works(&python) {
            Ok(python)
        } else {
            Err(format!("pip: {}", text(&install.stderr)))
        }
    })
    .clone()
}

/// A coordinator and a node that serves digits after a few rounds alone.
fn trained_node() -> (Coordinator, Node) {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let node = Node::start(&coordinator, "edge", &every(&digits(), 2, 0));
    node.wait_until_serving(1);
    let id = coordinator.create_task(
        "model = \"digits\"\n[rounds]\ncount = 2\nmin_nodes = 1\n\
         [training]\nepochs = 8\nlearning_rate = 0.05\nmomentum = 0.9\n",
    );
    assert_eq!(coordinator.wait_for_end(&id)["state"], "finished");
    node.wait_until_serving(3);
    (coordinator, node)
}

#[test]
fn stock_clients_get_right_answers_from_a_trained_node() {
    let (coordinator, node) = trained_node();
    let client = coordinator.enrol("client", "client");

    // `fedge infer` on a row that the node did not see: row 2 of the digits is a 1.
    let unseen = coordinator.folder().join("unseen.csv");
    let rows = every(&digits(), 2, 1);
    let header: Vec<String> = (0..64).map(|i| format!("pixel{i}")).collect();
    std::fs::write(&unseen, format!("{},label\n{}\n", header.join(","), rows.join("\n"))).expect("rows");
    let mut ask = fedge();
    ask.args(["infer", "--model", "digits", "--node", &node.address, "--row", "1", "--identity"]).arg(&client);
    let printed = succeed(ask.arg("--file").arg(&unseen));
    assert!(printed.contains('%') && printed.contains("digits version 3, int8"), "{printed}");
    let answer = json(ask.arg("--json"));
    assert_eq!(answer["label"], rows[0].rsplit(',').next().expect("label"));
    assert!(answer["probability"].as_f64() > Some(0.5), "{answer}");

    let Some(python) = python() else { return };
    tritonclient(&python, &node, &client, &unseen);
    onnxruntime(&python, &coordinator, &node, &unseen);
}

/// Stock tritonclient over mutual TLS.
fn tritonclient(python: &Path, node: &Node, client: &Path, rows: &Path) {
    let output = run(Command::new(python)
        .arg(project("tests/parity/tritonclient_check.py"))
        .args([&node.address, "digits", "--expect-accuracy", "0.9", "--rows"])
        .arg(rows)
        .arg("--root-ca")
        .arg(client.join("ca.pem"))
        .arg("--key")
        .arg(client.join("identity.pem"))
        .arg("--cert")
        .arg(client.join("identity.pem")));
    assert!(output.status.success(), "{}\n{}\n{}", text(&output.stdout), text(&output.stderr), node.log());
}

/// ONNX Runtime loads the version that the coordinator wrote and the int8 file that the quantizer wrote, and agrees.
fn onnxruntime(python: &Path, coordinator: &Coordinator, node: &Node, rows: &Path) {
    let (float, int8) = (coordinator.folder().join("float.onnx"), coordinator.folder().join("int8.onnx"));
    succeed(coordinator.as_operator(&["model", "get", "digits"]).arg("--out").arg(&float));
    let quantize = ["model", "quantize", "--scale", "0.0625", "--samples"];
    succeed(fedge().args(quantize).arg(node.home.join("digits.csv")).arg("--out").arg(&int8).arg(&float));
    let mut check = Command::new(python);
    check.arg(project("tests/parity/onnxruntime_check.py")).arg(&float).arg(&int8).arg(rows);
    let output = run(&mut check);
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_label_sent_back_makes_the_answered_request_a_training_sample() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let node = Node::start(&coordinator, "edge", &every(&digits(), 16, 0));
    node.wait_until_serving(1);
    let count = || {
        let served = node.status()["status"]["serving"][0].clone();
        served["training_samples"].as_u64().unwrap_or(0) + served["held_out_samples"].as_u64().unwrap_or(0)
    };
    let before = count();
    let client = coordinator.enrol("client", "client");
    let rows = every(&digits(), 16, 3);
    let file = coordinator.folder().join("rows.csv");
    std::fs::write(&file, rows.join("\n")).expect("rows");
    for row in 1..=5 {
        let label = rows[row - 1].rsplit(',').next().expect("label");
        let stored = json(
            fedge()
                .args(["infer", "--json", "--model", "digits", "--node", &node.address, "--label", label, "--row"])
                .arg(row.to_string())
                .arg("--file")
                .arg(&file)
                .arg("--identity")
                .arg(&client),
        );
        assert_eq!(stored["stored_label"].to_string(), label);
    }
    wait_for("five new samples", || (count() == before + 5).then_some(()));
}
