//! Which nodes are there, when they were heard of last, and what they say of themselves.
//! Who may be a node is decided by certificates; what nodes work on is decided in `rounds`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::wall_clock_ms;

/// What a node serves and holds for one lineage, by its last heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeServing {
    /// Lineage.
    pub model: String,
    /// Served version; 0 while none is.
    pub number: u64,
    /// "int8" or "float"; empty while none is served.
    pub precision: String,
    /// Why float, where int8 was wanted.
    pub float_reason: String,
    /// Labelled samples to train on.
    pub training_samples: u64,
    /// Labelled samples that are never trained on.
    pub held_out_samples: u64,
    /// What changed in its requests: "input" or "confidence"; empty: nothing that was seen.
    pub drift: String,
    /// Changes that were seen since it started.
    pub drift_alarms: u64,
}

/// A node's session.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    last_seen: Instant,
    /// Wall clock of the last message.
    pub last_seen_ms: i64,
    /// Name and version of its software.
    pub software: String,
    /// Where it serves inference, for operators' eyes.
    pub inference_address: String,
    /// What it serves.
    pub serving: Vec<NodeServing>,
    /// Why it does not train now; empty: it would.
    pub resting: String,
}

/// Nodes that said hello to this process.
#[derive(Debug)]
pub struct NodeRegistry {
    nodes: Mutex<BTreeMap<String, NodeEntry>>,
    liveness: Duration,
    /// After a restart, the nodes that tasks wait for, by lineage: they get one liveness period to come back.
    awaited: Mutex<BTreeMap<String, BTreeSet<String>>>,
    started: Instant,
}

impl NodeRegistry {
    /// A node counts as available for `liveness` after its last message.
    pub fn new(liveness: Duration) -> NodeRegistry {
        NodeRegistry {
            nodes: Mutex::new(BTreeMap::new()),
            liveness,
            awaited: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// A task of before the restart waits for these nodes.
    pub fn await_again(&self, model: &str, nodes: impl IntoIterator<Item = String>) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.entry(model.to_owned()).or_default().extend(nodes);
    }

    /// A node opened a session.
    pub fn hello(&self, node: &str, software: &str, inference_address: &str) {
        let mut nodes = self.lock();
        let before = nodes.remove(node);
        let (serving, resting) = before.map(|n| (n.serving, n.resting)).unwrap_or_default();
        let entry = NodeEntry {
            last_seen: Instant::now(),
            last_seen_ms: wall_clock_ms(),
            software: software.to_owned(),
            inference_address: inference_address.to_owned(),
            serving,
            resting,
        };
        nodes.insert(node.to_owned(), entry);
    }

    /// A node was heard of. False: it has to say hello first (the coordinator restarted).
    pub fn seen(&self, node: &str) -> bool {
        self.update(node, |_| {})
    }

    /// A node told what it serves, and why it rests, if it does. False: it has to say hello first.
    pub fn heartbeat(&self, node: &str, serving: Vec<NodeServing>, resting: String) -> bool {
        self.update(node, |entry| (entry.serving, entry.resting) = (serving, resting))
    }

    /// Nodes that are alive and have training samples for this lineage.
    pub fn available(&self, model: &str) -> BTreeSet<String> {
        let now = Instant::now();
        let mut available: BTreeSet<String> = self
            .lock()
            .iter()
            .filter(|(_, n)| self.alive(n, now))
            .filter(|(_, n)| n.serving.iter().any(|s| s.model == model && s.training_samples > 0))
            .map(|(id, _)| id.clone())
            .collect();
        if now.saturating_duration_since(self.started) < self.liveness {
            let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            available.extend(awaited.get(model).into_iter().flatten().cloned());
        }
        available
    }

    /// Living nodes that do not train now, by their own budgets. What they do already goes on.
    pub fn resting(&self) -> BTreeSet<String> {
        let now = Instant::now();
        let nodes = self.lock();
        let resting = nodes.iter().filter(|(_, node)| self.alive(node, now) && !node.resting.is_empty());
        resting.map(|(id, _)| id.clone()).collect()
    }

    /// Living nodes with training samples for this lineage that report drift, and the version that they serve.
    pub fn drifting(&self, model: &str) -> BTreeMap<String, u64> {
        let now = Instant::now();
        let nodes = self.lock();
        let alive = nodes.iter().filter(|(_, node)| self.alive(node, now));
        let served = alive.flat_map(|(id, node)| node.serving.iter().map(move |serving| (id, serving)));
        served
            .filter(|(_, s)| s.model == model && s.training_samples > 0 && !s.drift.is_empty())
            .map(|(id, s)| (id.clone(), s.number))
            .collect()
    }

    /// Every node with a session, and whether it is alive.
    pub fn list(&self) -> Vec<(String, NodeEntry, bool)> {
        let now = Instant::now();
        self.lock().iter().map(|(id, n)| (id.clone(), n.clone(), self.alive(n, now))).collect()
    }

    fn alive(&self, entry: &NodeEntry, now: Instant) -> bool {
        now.saturating_duration_since(entry.last_seen) < self.liveness
    }

    fn update(&self, node: &str, change: impl FnOnce(&mut NodeEntry)) -> bool {
        let mut nodes = self.lock();
        let Some(entry) = nodes.get_mut(node) else { return false };
        entry.last_seen = Instant::now();
        entry.last_seen_ms = wall_clock_ms();
        change(entry);
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeEntry>> {
        // The map is whole at every unlock, so a panic elsewhere does not spoil it.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving(samples: u64) -> Vec<NodeServing> {
        vec![NodeServing {
            model: "digits".into(),
            number: 1,
            precision: "int8".into(),
            float_reason: String::new(),
            training_samples: samples,
            held_out_samples: 3,
            drift: String::new(),
            drift_alarms: 0,
        }]
    }

    #[test]
    fn only_living_nodes_with_samples_for_the_model_are_available() {
        let registry = NodeRegistry::new(Duration::from_secs(60));
        assert!(!registry.heartbeat("a", serving(5), String::new()), "no hello yet");
        for node in ["a", "b"] {
            registry.hello(node, "fedge", "");
        }
        assert!(registry.heartbeat("a", serving(5), String::new()));
        assert!(registry.heartbeat("b", serving(0), String::new()));
        assert_eq!(registry.available("digits"), BTreeSet::from(["a".to_owned()]));
        assert_eq!(registry.available("other"), BTreeSet::new());
        let dead = NodeRegistry::new(Duration::ZERO);
        dead.hello("a", "fedge", "");
        dead.heartbeat("a", serving(5), String::new());
        assert_eq!(dead.available("digits"), BTreeSet::new());
    }

    #[test]
    fn drift_is_told_with_the_version_that_it_was_seen_of() {
        let registry = NodeRegistry::new(Duration::from_secs(60));
        for (node, drift) in [("a", "input"), ("b", "")] {
            registry.hello(node, "fedge", "");
            let serving = serving(5).into_iter().map(|s| NodeServing { number: 4, drift: drift.to_owned(), ..s });
            registry.heartbeat(node, serving.collect(), String::new());
        }
        assert_eq!(registry.drifting("digits"), BTreeMap::from([("a".to_owned(), 4)]));
        assert_eq!(registry.drifting("other"), BTreeMap::new());
    }

    #[test]
    fn after_a_restart_awaited_nodes_get_one_liveness_period_to_come_back() {
        let registry = NodeRegistry::new(Duration::from_secs(60));
        registry.await_again("digits", ["a".to_owned()]);
        assert_eq!(registry.available("digits"), BTreeSet::from(["a".to_owned()]));
        assert_eq!(registry.available("other"), BTreeSet::new());
        let later = NodeRegistry::new(Duration::ZERO);
        later.await_again("digits", ["a".to_owned()]);
        assert_eq!(later.available("digits"), BTreeSet::new());
    }

    #[test]
    fn a_new_hello_keeps_what_the_node_told_before() {
        let registry = NodeRegistry::new(Duration::from_secs(60));
        registry.hello("a", "fedge 1", "");
        registry.heartbeat("a", serving(5), String::new());
        registry.hello("a", "fedge 2", "host:8001");
        let (_, entry, alive) = registry.list().remove(0);
        assert!(alive);
        assert_eq!((entry.software.as_str(), entry.serving.len()), ("fedge 2", 1));
    }
}
