//! Tasks that move a part of a model: layers that stay on their node, adapters beside weights that stay as they are.
//! Which parameters those are, and that no others travel, is tested in the rooms.

use crate::harness::{Coordinator, Node, digits, every, fedge, json, project, succeed, wait_for};

fn task(local: &str) -> String {
    format!(
        "model = \"digits\"\n[rounds]\ncount = 8\nmin_nodes = 2\n[training]\nepochs = 4\nlearning_rate = 0.05\nlocal = {local}\n"
    )
}

/// The digits of these rows under other names.
fn renamed(rows: &[String]) -> Vec<String> {
    let rename = |row: &String| {
        let (pixels, label) = row.rsplit_once(',').expect("a label");
        format!("{pixels},{}", (label.trim().parse::<u32>().expect("a digit") + 5) % 10)
    };
    rows.iter().map(rename).collect()
}

/// Share of right answers of each node as it serves, by its own labels, after the last round.
fn accuracies(ended: &serde_json::Value) -> Vec<f64> {
    let last = ended["rounds"].as_array().expect("rounds").last().expect("a round").clone();
    assert_eq!(last["outcome"], "aggregated", "{last}");
    let share = |node: &serde_json::Value| {
        node["correct_served"].as_u64().expect("correct") as f64
            / node["evaluated_examples"].as_u64().expect("asked") as f64
    };
    last["nodes"].as_array().expect("nodes").iter().map(share).collect()
}

/// A version as the coordinator has it.
fn version(coordinator: &Coordinator, number: u64) -> fedge_models::Model {
    let file = coordinator.folder().join(format!("{number}.onnx"));
    let (number, out) = (number.to_string(), file.display().to_string());
    succeed(&mut coordinator.as_operator(&["model", "get", "digits", "--version", &number, "--out", &out]));
    fedge_models::Model::from_path(&file).expect("a model")
}

#[test]
fn nodes_that_disagree_on_names_learn_together_with_heads_of_their_own_and_keep_them_over_a_restart() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let rows = digits();
    let usual = Node::start(&coordinator, "usual", &every(&rows, 4, 0));
    let mut other = Node::start(&coordinator, "other", &renamed(&every(&rows, 4, 1)));
    usual.wait_until_serving(1);
    other.wait_until_serving(1);

    let ended = coordinator.wait_for_end(&coordinator.create_task(&task("[\"fc*\"]")));
    let own = accuracies(&ended);
    assert!(own.iter().all(|accuracy| *accuracy > 0.85), "{own:?}");
    // The convolutions alone travel, and the head of the file stays as it was published.
    let (first, ninth) = (version(&coordinator, 1), version(&coordinator, 9));
    let (before, after) = (first.weights(), ninth.weights());
    let mut travels = 0;
    for (spec, range) in first.layout().exchanged() {
        let same = before.values()[range.clone()] == after.values()[range.clone()];
        assert_eq!(same, spec.name.starts_with("fc"), "{}", spec.name);
        travels += if same { 0 } else { range.len() };
    }
    assert_eq!(ended["rounds"][0]["bytes_up"], 2 * 4 * travels);

    // What is served has the head in it, also after a restart.
    let client = coordinator.enrol("client", "client");
    let ask = |node: &Node, file: &std::path::Path| {
        let mut command = fedge();
        command.args(["infer", "--model", "digits", "--json", "--node", &node.address, "--identity"]);
        json(command.arg(&client).arg("--file").arg(file).args(["--row", "1"]))
    };
    let zero = rows.iter().find(|row| row.ends_with(",0")).expect("a zero");
    let file = coordinator.folder().join("zero.csv");
    std::fs::write(&file, format!("{zero}\n")).expect("a file");
    other.wait_until_serving(9);
    let before = ask(&other, &file);
    other.restart();
    other.wait_until_serving(9);
    let after = wait_for("the node again", || Some(ask(&other, &file)));
    assert_eq!((&before["class"], &after["class"]), (&5.into(), &5.into()), "{before} {after}");

    // With one head for both, they can't both be right.
    let shared = accuracies(&coordinator.wait_for_end(&coordinator.create_task(&task("[]"))));
    assert!(shared.iter().any(|accuracy| *accuracy < 0.7), "{shared:?}");
}

#[test]
fn adapters_learn_and_nothing_else_of_the_file_moves() {
    let coordinator = Coordinator::start();
    let model = project("models/zoo/digits_cnn.onnx");
    let mut publish = coordinator.as_operator(&["model", "publish", "--name", "digits", "--scale", "0.0625"]);
    publish.args(["--labels", "0,1,2,3,4,5,6,7,8,9", "--lora", "fc*", "--lora-rank", "8"]).arg(model);
    let told = succeed(&mut publish);
    assert!(told.contains("fc1.weight, fc2.weight") && told.contains("1872 of 13354"), "{told}");
    let rows = digits();
    let nodes =
        [Node::start(&coordinator, "a", &every(&rows, 4, 0)), Node::start(&coordinator, "b", &every(&rows, 4, 1))];
    nodes.iter().for_each(|node| drop(node.wait_until_serving(1)));
    let task = "model = \"digits\"\n[rounds]\ncount = 6\nmin_nodes = 2\n\
        [training]\nepochs = 5\nlearning_rate = 0.1\ntrained = [\"*.lora_?\"]\n";
    let ended = coordinator.wait_for_end(&coordinator.create_task(task));
    assert_eq!(ended["rounds"][0]["bytes_up"], 2 * 4 * 1872);
    let rounds = ended["rounds"].as_array().expect("rounds");
    let share = |round: &serde_json::Value| {
        round["correct_float"].as_u64().expect("right") as f64
            / round["evaluated_examples"].as_u64().expect("asked") as f64
    };
    let last = rounds.last().expect("a round");
    assert!(share(last) > 0.6, "adapters of random features: {last}");
    let (first, newest) = (version(&coordinator, 1), version(&coordinator, 7));
    let (before, after) = (first.weights(), newest.weights());
    for (spec, range) in first.layout().exchanged() {
        let same = before.values()[range.clone()] == after.values()[range];
        assert_ne!(same, spec.name.contains(".lora_"), "{}", spec.name);
    }
}
