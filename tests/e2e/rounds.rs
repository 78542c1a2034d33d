//! Rounds over mutual TLS between real processes: the usual case, and processes that are killed in the middle.
//! Who may connect at all is tested in `identities`.

use crate::harness::{Coordinator, Node, digits, every, fedge, json, project, succeed, wait_for};

/// Short rounds for three nodes. After four epochs in all this model is just leaving its first plateau, where the last digits of sums
/// decide how far it is: on one processor 41 % of its answers were right, on another more than half. After eight it has left.
const QUICK: &str = "model = \"digits\"\n[rounds]\ncount = 2\nmin_nodes = 3\n\
    [training]\nepochs = 4\nlearning_rate = 0.05\nmomentum = 0.9\n";
/// One round that takes some seconds on every node.
const LONG: &str = "model = \"digits\"\n[rounds]\ncount = 1\nmin_nodes = 2\n\
    [training]\nepochs = 100\nlearning_rate = 0.01\nmomentum = 0.9\n";

fn fleet() -> (Coordinator, Vec<Node>) {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let rows = digits();
    let nodes = (0..3).map(|i| Node::start(&coordinator, &format!("node-{i}"), &every(&rows, 4, i))).collect();
    (coordinator, nodes)
}

fn wait_for_samples(nodes: &[Node]) {
    for node in nodes {
        wait_for("samples", || {
            let status = node.status();
            let served = &status["status"]["serving"][0];
            (served["precision"] == "int8" && served["training_samples"].as_u64() > Some(0)).then_some(())
        });
    }
}

#[test]
fn three_nodes_train_average_and_serve_each_version_in_int8() {
    let (coordinator, nodes) = fleet();
    wait_for_samples(&nodes);
    let id = coordinator.create_task(QUICK);
    let task = coordinator.wait_for_end(&id);
    assert_eq!(task["state"], "finished", "{task}");
    let rounds = task["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        assert_eq!(round["outcome"], "aggregated", "{round}");
        let trained: Vec<_> = round["nodes"].as_array().expect("nodes").iter().collect();
        assert_eq!(trained.len(), 3);
        assert!(trained.iter().all(|n| n["outcome"] == "trained" && n["precision"] == "int8"), "{round}");
        // An update is 11,482 f32 deltas; the three models that went out are whole ONNX files.
        assert_eq!(round["bytes_up"], 3 * 11_482 * 4);
        assert!(round["bytes_down"].as_u64() >= Some(3 * 11_482 * 4));
    }
    let (first, last) = (&rounds[0], &rounds[1]);
    assert!(last["loss"].as_f64() < first["loss"].as_f64(), "the loss falls: {first} {last}");
    let correct = last["correct_float"].as_u64().expect("correct") as f64;
    assert!(correct / last["evaluated_examples"].as_u64().expect("evaluated") as f64 > 0.5, "{last}");
    for node in &nodes {
        let served = node.wait_until_serving(3);
        assert_eq!(served["precision"], "int8");
    }
    let models = json(&mut coordinator.as_operator(&["model", "list", "--json"]));
    let numbers: Vec<_> = models.as_array().expect("models").iter().map(|m| &m["manifest"]["number"]).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn a_node_killed_in_mid_round_is_not_waited_for_and_the_round_goes_on() {
    let (coordinator, mut nodes) = fleet();
    wait_for_samples(&nodes);
    // A round that takes all three: from then on the coordinator knows that each is available.
    let first = coordinator.create_task(&QUICK.replace("count = 2", "count = 1"));
    assert_eq!(coordinator.wait_for_end(&first)["rounds"][0]["outcome"], "aggregated");
    let id = coordinator.create_task(LONG);
    wait_for("training", || {
        nodes[2].status()["status"]["work"].as_str().is_some_and(|w| w.starts_with("training")).then_some(())
    });
    nodes[2].kill();
    let task = coordinator.wait_for_end(&id);
    let round = &task["rounds"][0];
    assert_eq!(round["outcome"], "aggregated", "{task}");
    let outcomes: Vec<_> = round["nodes"].as_array().expect("nodes").iter().map(|n| &n["outcome"]).collect();
    assert_eq!(outcomes, ["trained", "trained", "lost"]);
    // The killed node comes back, and serves what the others made.
    nodes[2].restart();
    nodes[2].wait_until_serving(3);
}

#[test]
fn a_coordinator_killed_in_mid_round_resumes_it_and_the_updates_count_once() {
    let (mut coordinator, nodes) = fleet();
    wait_for_samples(&nodes);
    let id = coordinator.create_task(&LONG.replace("min_nodes = 2", "min_nodes = 3"));
    wait_for("training", || {
        nodes[0].status()["status"]["work"].as_str().is_some_and(|w| w.starts_with("training")).then_some(())
    });
    coordinator.restart();
    let task = coordinator.wait_for_end(&id);
    let rounds = task["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 1, "{task}");
    assert_eq!(rounds[0]["outcome"], "aggregated", "{task}");
    let trained = rounds[0]["nodes"].as_array().expect("nodes").iter().filter(|n| n["outcome"] == "trained");
    assert_eq!(trained.count(), 3, "{task}");
}

#[test]
fn a_cancelled_task_leaves_nothing_behind_and_the_next_one_on_another_name_of_the_file_runs() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    // The same file under a second name: a task must train the lineage that it names.
    let model = project("models/zoo/digits_cnn.onnx");
    succeed(coordinator.as_operator(&["model", "publish", "--name", "aaa", "--scale", "0.0625"]).arg(model));
    let nodes = [Node::start(&coordinator, "edge", &every(&digits(), 4, 0))];
    wait_for("samples", || {
        let status = nodes[0].status();
        let serving = status["status"]["serving"].as_array()?.clone();
        (serving.len() == 2 && serving.iter().all(|s| s["precision"] == "int8")).then_some(())
    });
    let endless = "model = \"digits\"\n[rounds]\ncount = 1000\nmin_nodes = 1\n[training]\nlearning_rate = 0.01\n";
    for pause_ms in [150, 320, 510] {
        let id = coordinator.create_task(endless);
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        let cancelled = json(&mut coordinator.as_operator(&["task", "cancel", "--json", &id]));
        assert_eq!(cancelled["state"], "cancelled");
    }
    let id = coordinator.create_task(&QUICK.replace("min_nodes = 3", "min_nodes = 1"));
    let task = coordinator.wait_for_end(&id);
    let outcomes: Vec<_> = task["rounds"].as_array().expect("rounds").iter().map(|r| &r["outcome"]).collect();
    assert_eq!(outcomes, ["aggregated", "aggregated"], "{task}");
    let spool = coordinator.home().join("store/spool");
    wait_for("an empty spool", || std::fs::read_dir(&spool).expect("spool").next().is_none().then_some(()));
}

#[test]
fn an_update_that_is_refused_for_good_is_not_waited_for() {
    let (coordinator, nodes) = fleet();
    wait_for_samples(&nodes);
    let id = coordinator.create_task(&QUICK.replace("count = 2", "count = 1").replace("0.05", "60.0"));
    let task = coordinator.wait_for_end(&id);
    assert_eq!(task["rounds"][0]["outcome"], "failed", "{task}");
    let reasons: Vec<_> = task["rounds"][0]["nodes"].as_array().expect("nodes").iter().map(|n| &n["outcome"]).collect();
    assert!(reasons.iter().any(|o| **o == "declined"), "{task}");
}

#[test]
fn a_node_without_its_coordinator_goes_on_serving_after_a_restart() {
    let mut coordinator = Coordinator::start();
    coordinator.publish_digits();
    let mut node = Node::start(&coordinator, "edge", &every(&digits(), 4, 0));
    wait_for_samples(std::slice::from_ref(&node));
    let client = coordinator.enrol("client", "client");
    coordinator.kill();
    node.restart();
    wait_for("a served model", || (node.status()["status"]["serving"][0]["number"] == 1).then_some(()));
    let answer = json(
        fedge()
            .args(["infer", "--json", "--model", "digits", "--node", &node.address, "--row", "5", "--file"])
            .arg(node.home.join("digits.csv"))
            .arg("--identity")
            .arg(client),
    );
    assert_eq!(answer["version"], "1");
    assert_eq!(answer["precision"], "int8");
}
