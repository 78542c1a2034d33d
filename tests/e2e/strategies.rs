//! Every strategy and every encoding of updates, run by real nodes that really train: one fleet, one task after the other.
//! What each computes is tested with it.

use serde_json::Value;

use crate::harness::{Coordinator, Node, digits, every};

/// What each strategy needs beside its name.
const STRATEGIES: [(&str, &str, &str); 9] = [
    ("fedprox", "mu = 0.1", "momentum = 0.9"),
    ("fedavgm", "", "momentum = 0.9"),
    ("fedadagrad", "server_learning_rate = 0.01", "momentum = 0.9"),
    ("fedadam", "server_learning_rate = 0.01", "momentum = 0.9"),
    ("fedyogi", "server_learning_rate = 0.01", "momentum = 0.9"),
    ("fednova", "", "momentum = 0.9"),
    ("scaffold", "", "momentum = 0.0"),
    ("q-fedavg", "", "momentum = 0.9"),
    ("fedbuff", "buffer_size = 2", "momentum = 0.9"),
];

const ENCODINGS: [(&str, bool); 4] = [("f16", false), ("int8", false), ("int8", true), ("top_k", false)];

/// Runs a task to its end; gives it.
fn run(coordinator: &Coordinator, more: &str, momentum: &str, strategy: &str) -> Value {
    let file = format!(
        "model = \"digits\"\n[rounds]\ncount = 3\nmin_nodes = 3\nevaluate_every = 3\n{more}\n\
         [training]\nlearning_rate = 0.05\n{momentum}\n{strategy}"
    );
    let ended = coordinator.wait_for_end(&coordinator.create_task(&file));
    assert_eq!(ended["state"], "finished", "{ended}");
    let rounds = ended["rounds"].as_array().expect("rounds");
    assert!(rounds.iter().all(|round| round["outcome"] == "aggregated"), "{strategy}{more}: {ended}");
    // An asynchronous task may end while a node is at work for it: that update comes to a closed task, and nothing else is refused.
    let late = |reason: &String| reason == "closed" && strategy.contains("fedbuff");
    let refused = ended["refused"].as_object().expect("refusals");
    assert!(refused.keys().all(late), "{strategy}{more}: {refused:?}");
    ended
}

#[test]
fn each_strategy_and_each_encoding_trains_a_real_fleet() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let rows = digits();
    let nodes: Vec<Node> =
        (0..3).map(|n| Node::start(&coordinator, &format!("edge-{n}"), &every(&rows, 6, n))).collect();
    nodes.iter().for_each(|node| drop(node.wait_until_serving(1)));

    let plain = run(&coordinator, "", "momentum = 0.9", "");
    let bytes = plain["rounds"][1]["bytes_up"].as_u64().expect("bytes");
    for (encoding, zstd) in ENCODINGS {
        let more = format!("[updates]\nencoding = {encoding:?}\nzstd = {zstd}\ntop_k = 0.05\n");
        let ended = run(&coordinator, &more, "momentum = 0.9", "");
        let sent = ended["rounds"][1]["bytes_up"].as_u64().expect("bytes");
        let least = if encoding == "f16" { 1.99 } else { 3.9 };
        assert!(bytes as f64 / sent as f64 >= least, "{encoding}: {sent} bytes where f32 has {bytes}");
    }
    for (name, options, momentum) in STRATEGIES {
        let ended = run(&coordinator, "", momentum, &format!("[strategy]\nname = {name:?}\n{options}\n"));
        let last = &ended["rounds"][2];
        let examples = last["evaluated_examples"].as_u64().expect("examples");
        let right = last["correct_float"].as_u64().expect("right answers");
        // The model learned in the tasks before; no strategy may have thrown that away.
        assert!(right * 10 >= examples * 8, "{name}: {right} of {examples} right: {last}");
    }
}
