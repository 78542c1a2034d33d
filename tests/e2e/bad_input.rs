//! Bad input of each kind gets an error that says what, where and what to do, and loses nothing.
//! Rooms test their own inputs in depth; these are the ways in that people have.

use std::io::Write;

use crate::harness::{Coordinator, Node, digits, every, fail, fedge, json, project, run, succeed, text, wait_for};

#[test]
fn a_truncated_file_and_a_file_that_is_no_onnx_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = std::fs::read(project("models/zoo/digits_cnn.onnx")).expect("model");
    for (name, bytes) in [("half.onnx", &whole[..whole.len() / 2]), ("notes.onnx", b"not a model at all".as_slice())] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("file");
        let error = fail(fedge().args(["model", "check"]).arg(&path));
        assert!(error.contains(name), "{error}");
    }
    let error = fail(fedge().args(["model", "check", "missing.onnx"]));
    assert!(error.contains("missing.onnx"), "{error}");
}

#[test]
fn a_model_that_training_lacks_an_operator_for_is_refused_when_it_is_published() {
    let coordinator = Coordinator::start();
    let model = project("models/zoo/untrainable.onnx");
    let error = fail(fedge().args(["model", "check"]).arg(&model));
    assert!(error.contains("can't be trained"), "{error}");
    let error = fail(coordinator.as_operator(&["model", "publish", "--name", "x"]).arg(&model));
    assert!(error.contains("Sign") && error.contains("sign"), "{error}");
    let models = json(&mut coordinator.as_operator(&["model", "list", "--json"]));
    assert_eq!(models.as_array().map(Vec::len), Some(0), "nothing was stored");
}

#[test]
fn bad_samples_and_labels_are_refused_and_good_ones_are_kept() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let node = Node::start(&coordinator, "edge", &every(&digits(), 8, 0));
    node.wait_until_serving(1);
    let samples = || {
        let served = node.status()["status"]["serving"][0].clone();
        served["training_samples"].as_u64().unwrap_or(0) + served["held_out_samples"].as_u64().unwrap_or(0)
    };
    let before = samples();
    let client = coordinator.enrol("client", "client");
    let ask = |extra: &[&str]| {
        let mut command = fedge();
        command.args(["infer", "--model", "digits", "--node", &node.address, "--identity"]).arg(&client).args(extra);
        command
    };
    let error = fail(&mut ask(&["--values", "1,2,3"]));
    assert!(error.contains("3 values") && error.contains("64"), "{error}");
    let row = vec!["1.0"; 63].join(",");
    let error = fail(&mut ask(&["--values", &format!("{row},NaN")]));
    assert!(error.to_lowercase().contains("nan") || error.contains("finite"), "{error}");
    let good = format!("{row},1.0");
    let error = fail(&mut ask(&["--values", &good, "--label", "eleven"]));
    assert!(error.contains("eleven"), "{error}");
    let error = fail(&mut ask(&["--values", &good, "--label", "10"]));
    assert!(error.contains("10"), "{error}");
    let error = fail(
        fedge()
            .args(["infer", "--model", "letters", "--values", &good, "--node", &node.address, "--identity"])
            .arg(&client),
    );
    assert!(error.contains("letters") && error.contains("digits"), "{error}");
    let stored = json(&mut ask(&["--values", &good, "--label", "7", "--json"]));
    assert_eq!(stored["stored_label"], 7);
    wait_for("the new sample, and no other", || (samples() == before + 1).then_some(()));
}

#[test]
fn data_files_with_nan_or_unknown_labels_stop_the_node_with_row_and_column() {
    let coordinator = Coordinator::start();
    let home = coordinator.folder().join("edge");
    let token = coordinator.token("node", "edge");
    let join = ["node", "join", "--coordinator", &coordinator.enrolment(), "--token", &token, "--dir"];
    succeed(fedge().args(join).arg(&home));
    let mut rows = every(&digits(), 100, 0);
    rows[2] = rows[2].replacen("0,", "NaN,", 1);
    let path = home.join("bad.csv");
    std::fs::write(&path, rows.join("\n")).expect("file");
    let start = ["node", "run", "--listen", "127.0.0.1:0", "--dir"];
    let error = fail(fedge().args(start).arg(&home).arg("--data").arg(&path));
    assert!(error.contains("bad.csv") && error.contains("row 3"), "{error}");
    let error = fail(fedge().args(start).arg(&home).args(["--data", "absent.csv"]));
    assert!(error.contains("absent.csv"), "{error}");
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let coordinator = Coordinator::start();
    let error = fail(fedge().args(["coordinator", "run", "--dir"]).arg(coordinator.home()));
    assert!(error.contains("another coordinator runs"), "{error}");
    let taken = coordinator.ports[0].to_string();
    let second = coordinator.folder().join("second");
    succeed(fedge().args(["coordinator", "init", "--federation-port", &taken, "--dir"]).arg(&second));
    let error = fail(fedge().args(["coordinator", "run", "--dir"]).arg(&second));
    assert!(error.contains(&taken) && error.contains("another process"), "{error}");
    assert_eq!(error.matches("os error").count(), 1, "each cause is said once: {error}");
    let home = coordinator.folder().join("edge");
    let token = coordinator.token("node", "edge");
    let join = ["node", "join", "--coordinator", &coordinator.enrolment(), "--token", &token, "--dir"];
    succeed(fedge().args(join).arg(&home));
    let address = format!("127.0.0.1:{}", coordinator.ports[0]);
    let error = fail(fedge().args(["node", "run", "--listen", &address, "--dir"]).arg(&home));
    assert!(error.contains(&address) && error.contains("another process"), "{error}");
}

#[test]
fn a_folder_that_can_not_be_written_and_one_that_is_taken_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("file");
    std::fs::File::create(&file).and_then(|mut f| f.write_all(b"x")).expect("file");
    let error = fail(fedge().args(["coordinator", "init", "--dir"]).arg(file.join("below")));
    assert!(error.contains("file"), "{error}");
    let coordinator = Coordinator::start();
    let error = fail(fedge().args(["coordinator", "init", "--dir"]).arg(coordinator.home()));
    assert!(error.contains("already"), "{error}");
    let error = fail(fedge().args(["demo", "--dir"]).arg(coordinator.home()));
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn unknown_keys_are_errors_in_every_file() {
    let coordinator = Coordinator::start();
    let config = coordinator.home().join("coordinator.toml");
    let text_before = std::fs::read_to_string(&config).expect("config");
    std::fs::write(&config, format!("{text_before}\nlivness_ms = 3\n")).expect("config");
    let error = fail(fedge().args(["coordinator", "run", "--dir"]).arg(coordinator.home()));
    assert!(error.contains("livness_ms"), "{error}");
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("node.toml"), "[inference]\nlistn = \"x\"\n").expect("config");
    let error = fail(fedge().args(["node", "run", "--dir"]).arg(folder.path()));
    assert!(error.contains("listn"), "{error}");
    let task = folder.path().join("task.toml");
    std::fs::write(&task, "model = \"digits\"\nepochs = 3\n").expect("task");
    let error = fail(coordinator.as_operator(&["task", "create"]).arg(&task));
    assert!(error.contains("epochs"), "{error}");
    std::fs::write(&task, "model = \"digits\"\n").expect("task");
    let error = fail(coordinator.as_operator(&["task", "create"]).arg(&task));
    assert!(error.contains("fedge model publish"), "{error}");
}

#[test]
fn a_wrong_command_line_ends_with_status_2_and_the_usage() {
    let output = run(fedge().args(["node", "runn"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("run"), "{}", text(&output.stderr));
}
