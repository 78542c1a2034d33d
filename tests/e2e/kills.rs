//! Kill -9 at every point where something is persisted, of the coordinator and of the nodes: the final model is, bit for bit,
//! that of the run that nobody disturbed. Nodes return fixed vectors, so that the accepted digests are the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Coordinator, Process, json, succeed, wait_for};

/// Where the coordinator persists: of large updates (files), of small ones (rows), of versions, of a strategy's state.
const COORDINATOR: [(&str, usize); 14] = [
    ("publish_written", LARGE),
    ("spool_chunk_written:2", LARGE),
    ("spool_before_sync:2", LARGE),
    ("spool_synced:2", LARGE),
    ("spool_renamed:3", LARGE),
    ("step_before_save:3", LARGE),
    ("step_before_commit:4", LARGE),
    ("step_saved:4", LARGE),
    ("mint_model_written:2", LARGE),
    ("mint_state_synced:2", LARGE),
    ("mint_state_written:1", LARGE),
    ("step_before_save:4", SMALL),
    ("step_before_commit:3", SMALL),
    ("step_saved:3", SMALL),
];

/// Two chunks an update.
pub const LARGE: usize = 1_500_000;
/// Updates that are rows.
const SMALL: usize = 40_000;
/// The nodes, and whose process each is in.
const NODES: [(&str, &str); 3] = [("edge-a", "nodes"), ("edge-b", "nodes"), ("edge-c", "late")];
pub const TASK: &str = "model = \"bench\"\n[strategy]\nname = \"fedavgm\"\n[rounds]\ncount = 3\nmin_nodes = 3\n\
                    evaluate_every = 0\n[training]\nbatch_size = 65536\n";

/// A coordinator and three nodes with fixed vectors, in two processes.
pub struct Fleet {
    pub coordinator: Coordinator,
    nodes: BTreeMap<&'static str, Process>,
    size: usize,
}

impl Fleet {
    fn start(size: usize) -> Fleet {
        let mut fleet = Fleet::join(Coordinator::start(), size);
        fleet.start_nodes();
        fleet
    }

    /// The nodes have joined and do not run yet.
    pub fn join(coordinator: Coordinator, size: usize) -> Fleet {
        for (name, process) in NODES {
            let token = coordinator.token("node", name);
            let home = coordinator.folder().join(process).join(name);
            let join = ["node", "join", "--coordinator", &coordinator.enrolment(), "--token", &token, "--dir"];
            succeed(crate::harness::fedge().args(join).arg(home));
        }
        Fleet { coordinator, nodes: BTreeMap::new(), size }
    }

    pub fn start_nodes(&mut self) {
        self.start_nodes_of("nodes", None);
        self.start_nodes_of("late", None);
    }

    /// Starts one process again; it dies at the point, if one is given.
    pub fn start_nodes_of(&mut self, process: &'static str, point: Option<&str>) {
        drop(self.nodes.remove(process));
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedge-bench-node"));
        command.env("FEDGE_LOG", "info").envs(point.map(|point| ("FEDGE_KILL_AT", point)));
        command.arg("--dirs").arg(self.coordinator.folder().join(process)).args(["--model", "bench"]);
        let log = self.coordinator.folder().join(format!("{process}.log"));
        self.nodes.insert(process, Process::start(&mut command, log));
    }

    pub fn publish(&self) -> std::process::Output {
        let file = self.coordinator.folder().join("bench.onnx");
        std::fs::write(&file, crate::linear::linear(self.size).0).expect("a model");
        let mut command = self.coordinator.as_operator(&["model", "publish", "--name", "bench"]);
        crate::harness::run(command.arg(file))
    }

    /// Digest of the newest version when the task has ended.
    pub fn outcome(&self, task: &str) -> String {
        let ended = self.coordinator.wait_for_end(task);
        assert_eq!(ended["state"], "finished", "{ended}\n{}", self.log());
        assert_eq!(ended["newest_version"], 4, "each of three rounds made one version: {ended}");
        let rounds = ended["rounds"].as_array().expect("rounds");
        for round in rounds {
            let trained = round["nodes"].as_array().expect("nodes").iter().filter(|n| n["outcome"] == "trained");
            assert_eq!(trained.count(), NODES.len(), "{round}");
        }
        let models = json(&mut self.coordinator.as_operator(&["model", "list", "--json"]));
        let newest = models.as_array().expect("models").iter().find(|m| m["number"] == 4).cloned();
        leftovers(&self.coordinator.home().join("store"));
        newest.expect("version 4")["digest"].as_str().expect("a digest").to_owned()
    }

    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.coordinator.folder().join(name)).unwrap_or_default();
        ["coordinator.log", "nodes.log", "late.log"].map(read).join("\n")
    }

    /// The run that nobody disturbs.
    pub fn undisturbed(size: usize) -> String {
        let fleet = Fleet::start(size);
        assert!(fleet.publish().status.success());
        let task = fleet.coordinator.create_task(TASK);
        fleet.outcome(&task)
    }
}

/// When a task has ended, nothing waits in the spool.
fn leftovers(store: &Path) {
    wait_for("an empty spool", || {
        let entries = std::fs::read_dir(store.join("spool")).expect("the spool").count();
        (entries == 0).then_some(())
    });
}

#[test]
fn a_coordinator_killed_at_any_persist_point_ends_with_the_very_same_model() {
    let expected = [LARGE, SMALL].map(|size| (size, Fleet::undisturbed(size)));
    for (point, size) in COORDINATOR {
        let mut fleet = Fleet::start(size);
        if point.starts_with("publish") {
            fleet.coordinator.restart_to_die_at(point);
            assert!(!fleet.publish().status.success());
            fleet.coordinator.wait_until_dead(point);
            fleet.coordinator.restart();
            assert!(fleet.publish().status.success(), "what a crash left of the first attempt is in nobody's way");
        } else {
            assert!(fleet.publish().status.success());
            fleet.coordinator.restart_to_die_at(point);
        }
        let task = fleet.coordinator.create_task(TASK);
        if !point.starts_with("publish") {
            fleet.coordinator.wait_until_dead(point);
            fleet.coordinator.restart();
        }
        let (_, expected) = expected.iter().find(|(s, _)| *s == size).expect("a size");
        assert_eq!(&fleet.outcome(&task), expected, "{point}");
    }
}

/// Where a node persists.
const NODE: [&str; 5] =
    ["outbox_before_sync", "outbox_synced", "outbox_written:2", "counted_before_keep:2", "kept_before_remove:2"];

#[test]
fn a_node_killed_at_any_persist_point_sends_its_update_once_and_the_model_is_the_same() {
    let expected = Fleet::undisturbed(LARGE);
    for point in NODE {
        let mut fleet = Fleet::start(LARGE);
        fleet.start_nodes_of("nodes", Some(point));
        assert!(fleet.publish().status.success());
        let task = fleet.coordinator.create_task(TASK);
        fleet.nodes.get_mut("nodes").expect("a process").wait_until_dead(point);
        fleet.start_nodes_of("nodes", None);
        assert_eq!(fleet.outcome(&task), expected, "{point}");
        let task: Value = fleet.coordinator.task(&task);
        assert_eq!(task["refused"], serde_json::json!({}), "{point}: resent bytes are the same bytes");
    }
}
