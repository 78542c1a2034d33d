//! `fedge simulate` as people type it: what it prints and writes, how it refuses bad input, how it ends early.
//! What experiments reach and that they repeat is tested in the crate `sim`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{fail, fedge, json, project, run, succeed, text};

const TASK: &str = "model = \"digits\"\n[rounds]\ncount = 2\n[training]\nlearning_rate = 0.05\n";

/// The command on the zoo's digits, with the task file in `folder`.
fn simulate(folder: &Path, task: &str) -> Command {
    let file = folder.join("task.toml");
    std::fs::write(&file, task).unwrap();
    let mut command = fedge();
    command.arg("simulate").arg(file).arg("--model").arg(project("models/zoo/digits_cnn.onnx"));
    command.args(["--scale", "0.0625"]).current_dir(folder);
    command
}

fn on_digits(folder: &Path) -> Command {
    let mut command = simulate(folder, TASK);
    command.arg("--data").arg(project("models/zoo/digits.csv"));
    command
}

#[test]
fn a_simulation_prints_its_table_and_writes_every_file_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = on_digits(folder.path());
    command.args(["--nodes", "5", "--split", "classes:4", "--csv", "a.csv", "--plot", "a.svg", "--out", "a.onnx"]);
    let printed = succeed(command.args(["--export-splits", "a.json"]));
    assert!(printed.starts_with("5 nodes (classes:4, seed 0)"), "{printed}");
    assert_eq!(printed.lines().filter(|line| line.contains(" kB")).count(), 3, "two rounds and a summary: {printed}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("a.csv").lines().count(), 4, "a header, the start, two rounds");
    assert!(read("a.svg").contains("held out on nodes"));
    succeed(fedge().args(["model", "check"]).arg(folder.path().join("a.onnx")));
    let splits: serde_json::Value = serde_json::from_str(&read("a.json")).unwrap();
    assert_eq!(splits["nodes"].as_array().map(Vec::len), Some(5));
    // The file of splits is an assignment: the same experiment, bit for bit.
    let again = json(on_digits(folder.path()).args(["--assignment", "a.json", "--json", "--out", "b.onnx"]));
    assert_eq!(again["rounds"].as_array().map(Vec::len), Some(3));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("a.onnx") == bytes("b.onnx"));
}

#[test]
fn bad_input_is_refused_by_file_row_and_flag_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("bad.csv"), format!("{}\n{}\n", "1,".repeat(64) + "3", "1,".repeat(64) + "11")).unwrap();
    let refused = |extra: &[&str], told: &[&str]| {
        let error = fail(on_digits(path).args(extra));
        assert!(told.iter().all(|word| error.contains(word)), "{extra:?}: {error}");
    };
    refused(&["--split", "classes:11"], &["classes:11", "10"]);
    refused(&["--plot", "a.pdf"], &["--plot a.pdf", ".svg"]);
    refused(&["--csv", "none/a.csv"], &["none/a.csv"]);
    refused(&["--out", "none/a.onnx"], &["none/a.onnx"]);
    refused(&["--test", "absent.csv"], &["absent.csv"]);
    refused(&["--test", "bad.csv"], &["bad.csv", "row 2", "11"]);
    refused(&["--node-column", "owner"], &["digits.csv", "owner"]);
    refused(&["--assignment", "task.toml"], &["task.toml", "--export-splits"]);
    refused(&["--threads", "0"], &["0 threads"]);
    refused(&["--nodes", "1"], &["rounds.min_nodes = 2"]);
    let error = fail(simulate(path, "model = \"m\"\nepochs = 1\n").arg("--data").arg(path.join("bad.csv")));
    assert!(error.contains("task.toml") && error.contains("epochs"), "{error}");
    for (flag, value) in [("--stragglers", "2"), ("--nodes", "0"), ("--split", "dirichlet:-1"), ("--held-out", "1")] {
        let output = run(on_digits(path).args([flag, value]));
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(flag), "{}", text(&output.stderr));
    }
}

#[test]
fn an_interrupt_ends_it_with_the_rounds_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = simulate(folder.path(), &TASK.replace("count = 2", "count = 100000"));
    command.arg("--data").arg(project("models/zoo/digits.csv")).args(["--csv", "a.csv", "--plot", "a.svg"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let second_round = lines.find(|line| line.as_ref().is_ok_and(|line| line.trim_start().starts_with("2 ")));
    assert!(second_round.is_some());
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("of 100000 rounds"), "{}", text(&output.stderr));
    assert!(rest.iter().any(|line| line.starts_with("Test accuracy")), "{rest:?}");
    assert!(std::fs::read_to_string(folder.path().join("a.svg")).unwrap().contains("</svg>"));
}

#[test]
fn fixed_vectors_need_no_data_and_run_fast() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = simulate(folder.path(), "model = \"digits\"\n[rounds]\ncount = 10\ncohort = 50\n");
    let printed = json(command.args(["--fixed-vector", "--nodes", "1000", "--json"]));
    assert_eq!(printed["rounds"][10]["trained"], 50);
}
