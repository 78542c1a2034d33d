//! What the simulated world knows of its nodes: who is there, how fast each is, which version it holds.
//! What they are asked to do is decided in `rounds::step`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rand::seq::SliceRandom;

use super::population::{Node, Population};
use super::random::{Purpose, stream};
use super::systems::Systems;
use super::work::Leftover;

/// All nodes at an instant.
pub(super) struct Fleet<'a> {
    nodes: &'a [Node],
    places: HashMap<&'a str, usize>,
    speeds: Vec<f64>,
    /// The version that each node fetched last; 0 before the first.
    holds: Vec<u64>,
    available: BTreeSet<String>,
    vanished: Vec<String>,
    /// Nodes with held-out samples.
    able: Vec<usize>,
    /// What nodes' last counted updates left behind, where they left anything.
    memories: HashMap<usize, Arc<Leftover>>,
}

impl<'a> Fleet<'a> {
    /// Everybody with samples to train on is there, and none holds a version.
    pub(super) fn new(population: &'a Population, systems: &Systems, seed: u64) -> Fleet<'a> {
        let nodes = population.nodes.as_slice();
        let trains = nodes.iter().filter(|node| !node.train.is_empty());
        let able = nodes.iter().enumerate().filter(|(_, node)| !node.train.is_empty() && !node.held_out.is_empty());
        Fleet {
            places: nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect(),
            speeds: systems.speeds(seed, nodes.len()),
            holds: vec![0; nodes.len()],
            available: trains.map(|node| node.name.clone()).collect(),
            vanished: Vec::new(),
            able: able.map(|(index, _)| index).collect(),
            memories: HashMap::new(),
            nodes,
        }
    }

    /// The coordinator's view: alive, with training samples.
    pub(super) fn available(&self) -> &BTreeSet<String> {
        &self.available
    }

    /// A node by name: its place, itself, its speed.
    pub(super) fn find(&self, name: &str) -> Option<(usize, &'a Node, f64)> {
        let place = *self.places.get(name)?;
        Some((place, self.nodes.get(place)?, *self.speeds.get(place)?))
    }

    /// A node fetches a version where it does not hold it: true if it has to.
    pub(super) fn fetch(&mut self, place: usize, version: u64) -> bool {
        self.holds.get_mut(place).is_some_and(|held| std::mem::replace(held, version) != version)
    }

    /// A node is gone.
    pub(super) fn vanish(&mut self, name: &str) {
        if self.available.remove(name) {
            self.vanished.push(name.to_owned());
        }
    }

    /// Everybody is back.
    pub(super) fn come_back(&mut self) {
        self.available.extend(self.vanished.drain(..));
    }

    /// What a node remembers.
    pub(super) fn memory(&self, place: usize) -> Option<Arc<Leftover>> {
        self.memories.get(&place).cloned()
    }

    /// What a node remembers from now on.
    pub(super) fn remember(&mut self, place: usize, leftover: Leftover) {
        self.memories.insert(place, Arc::new(leftover));
    }

    /// At most `count` nodes that evaluate after a round, drawn among those that are there and have held-out samples.
    pub(super) fn evaluators(&self, seed: u64, round: u64, count: usize) -> BTreeSet<String> {
        let names = |places: &[usize]| -> BTreeSet<String> {
            let nodes = places.iter().filter_map(|place| self.nodes.get(*place)).map(|node| &node.name);
            nodes.filter(|name| self.available.contains(*name)).cloned().collect()
        };
        if count >= self.able.len() {
            return names(&self.able);
        }
        let mut able = self.able.clone();
        let (drawn, _) = able.partial_shuffle(&mut stream(seed, Purpose::Evaluators, round, 0), count);
        names(drawn)
    }
}
