//! A device whose training gives a fixed vector and weight, another one for each node: what the benchmarks' nodes are.
//! It fetches and keeps every version as a node does; the vector's numbers are in `vector`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fedge_models::{Digest, Package};
use fedge_node::federation::convert::Version;
use fedge_node::federation::learner::{Client, Evaluated, Holdings, Job, Learner, Run, Trained};
use fedge_node::federation::outbox::Metrics;
use fedge_node::federation::shelf::Shelf;
use fedge_node::status::ServedModel;
use fedge_node::training::Objective;

use crate::vector;

/// Lengths of the exchanged tensors of each layout that this process has met: a model is parsed once for all nodes.
#[derive(Debug, Default)]
pub struct Layouts(Mutex<BTreeMap<Digest, Arc<[usize]>>>);

impl Layouts {
    /// Blocks where the layout is new.
    fn tensors(&self, layout: Digest, version: &Path) -> Result<Arc<[usize]>, String> {
        // Held while the model is parsed: the nodes of a process begin their first round together.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensors) = known.get(&layout) {
            return Ok(tensors.clone());
        }
        let package = Package::read(version).map_err(|e| e.to_string())?;
        let tensors: Arc<[usize]> = package.model.layout().exchanged().map(|(_, range)| range.len()).collect();
        known.insert(layout, tensors.clone());
        Ok(tensors)
    }
}

/// A node of the benchmarks.
#[derive(Debug)]
pub struct FixedVector {
    seed: u64,
    examples: u64,
    shelf: Shelf,
    layouts: Arc<Layouts>,
    held: Mutex<BTreeMap<String, ServedModel>>,
}

impl FixedVector {
    /// The node of this name. It says that it has samples for `models`, and for what it is told to serve.
    pub fn new(name: &str, seed: u64, shelf: Shelf, layouts: Arc<Layouts>, models: &[String]) -> FixedVector {
        let own = vector::seed(name);
        let examples = vector::examples(own);
        let held = models.iter().map(|model| (model.clone(), holding(model, examples, None))).collect();
        FixedVector { seed: own.wrapping_add(seed), examples, shelf, layouts, held: Mutex::new(held) }
    }
}

#[tonic::async_trait]
impl Learner for FixedVector {
    async fn holdings(&self) -> Holdings {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Holdings { models: held.values().cloned().collect(), ..Holdings::default() }
    }

    async fn serve(&self, client: &Client, version: &Version, _: f64) -> Result<(), String> {
        self.shelf.hold(client, version).await.map_err(|e| e.to_string())?;
        let model = &version.manifest.name;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(model.clone(), holding(model, self.examples, Some(version)));
        Ok(())
    }

    async fn train(&self, client: &Client, base: &Version, run: Run) -> Result<Job, String> {
        let folder = self.shelf.hold(client, base).await.map_err(|e| e.to_string())?;
        let (layouts, layout, seed, examples) = (self.layouts.clone(), base.manifest.layout, self.seed, self.examples);
        Ok(Box::new(move || {
            let tensors = layouts.tensors(layout, &folder)?;
            let delta = (0..tensors.iter().sum::<usize>() as u64).map(|index| vector::delta(seed, index)).collect();
            let metrics = Metrics {
                steps: 1,
                loss_first: 1.0,
                loss_last: 1.0,
                loss_base: run.loss_base.then_some(1.0),
                partial: false,
                duration_ms: 0,
            };
            Ok(Trained { delta, tensors, statistics: Vec::new(), examples, own: None, metrics })
        }))
    }

    async fn evaluate(&self, _: &Client, _: &Version, _: &Objective, _: f64) -> Result<Evaluated, String> {
        Err("a node of the benchmarks evaluates nothing: set rounds.evaluate_every = 0".to_owned())
    }
}

fn holding(model: &str, examples: u64, version: Option<&Version>) -> ServedModel {
    ServedModel {
        model: model.to_owned(),
        number: version.map_or(0, |v| v.manifest.number),
        digest: version.map(|v| v.manifest.digest),
        precision: version.map_or("", |_| "float").to_owned(),
        float_reason: String::new(),
        training_samples: examples,
        held_out_samples: 0,
        drift: String::new(),
        drift_alarms: 0,
    }
}
