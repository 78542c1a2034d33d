//! What holds single nodes back, and what a task trains of a model: a node outside its hours is not selected; a head travels alone.
//! When a budget rests, and what a training moves, is tested in the node.

use std::process::Command;

use crate::harness::{Coordinator, Node, digits, every, fail, json, text, wait_for};

/// The head alone; a round takes whoever is there.
const HEAD: &str = "model = \"digits\"\n[rounds]\ncount = 1\nmin_nodes = 1\n\
    [training]\nlearning_rate = 0.05\ntrained = [\"fc*\"]\n";
/// 128 · 48 + 48 and 48 · 10 + 10 values.
const HEAD_BYTES: u64 = 4 * (128 * 48 + 48 + 48 * 10 + 10);

/// A time of day, from now, by the clock that the node reads.
fn in_hours(hours: u32) -> String {
    let date = Command::new("date").args(["-d", &format!("+{hours} hours"), "+%H:%M"]).output().expect("date");
    text(&date.stdout).trim().to_owned()
}

#[test]
fn a_node_outside_its_hours_is_not_selected_and_only_what_is_trained_travels() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let rows = digits();
    let _day = Node::start(&coordinator, "day", &every(&rows, 4, 0));
    let mut night = Node::start(&coordinator, "night", &every(&rows, 4, 1));
    night.kill();
    let config = night.home.join("node.toml");
    let before = std::fs::read_to_string(&config).expect("node.toml");
    let hours = format!("hours = \"{}-{}\"", in_hours(2), in_hours(3));
    assert!(before.contains("hours = \"\""));
    std::fs::write(&config, before.replace("hours = \"\"", &hours)).expect("node.toml");
    night.restart();
    // As the coordinator knows them: who has samples, and who of them rests.
    let known = |night_rests: bool| {
        wait_for("nodes with samples", || {
            let nodes = json(&mut coordinator.as_operator(&["coordinator", "nodes", "--json"]));
            let ready = |id: &str, rests: bool| {
                nodes.as_array().expect("nodes").iter().any(|node| {
                    node["node"].as_str().is_some_and(|name| name.ends_with(id))
                        && node["resting"].as_str().is_some_and(|why| why.contains("training hours") == rests)
                        && node["serving"][0]["training_samples"].as_u64() > Some(0)
                })
            };
            (ready("day", false) && ready("night", night_rests)).then_some(())
        });
    };
    known(true);
    let rests = night.status()["status"]["resting"].as_str().unwrap_or_default().to_owned();
    assert!(rests.starts_with("outside its training hours"), "{rests}");

    let round = coordinator.wait_for_end(&coordinator.create_task(HEAD))["rounds"][0].clone();
    let nodes = round["nodes"].as_array().expect("nodes");
    let trained: Vec<&str> =
        nodes.iter().filter(|node| node["outcome"] == "trained").filter_map(|node| node["node"].as_str()).collect();
    assert_eq!((&round["outcome"], &trained[..]), (&"aggregated".into(), &["day"][..]), "{round}");
    assert_eq!(nodes.len(), 2, "a node that rests evaluates: {round}");
    assert_eq!(round["bytes_up"], HEAD_BYTES);

    night.kill();
    std::fs::write(&config, before).expect("node.toml");
    night.restart();
    known(false);
    let both = HEAD.replace("min_nodes = 1", "min_nodes = 2");
    let round = coordinator.wait_for_end(&coordinator.create_task(&both))["rounds"][0].clone();
    assert_eq!((&round["outcome"], &round["bytes_up"]), (&"aggregated".into(), &(2 * HEAD_BYTES).into()), "{round}");
}

#[test]
fn a_task_that_trains_what_the_model_does_not_have_is_refused_with_names_that_it_has() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let file = coordinator.folder().join("task.toml");
    std::fs::write(&file, HEAD.replace("fc*", "head.*")).expect("task file");
    let error = fail(coordinator.as_operator(&["task", "create"]).arg(file));
    assert!(error.contains("\"head.*\"") && error.contains("fc1.weight"), "{error}");
}
