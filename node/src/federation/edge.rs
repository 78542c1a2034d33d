//! The device that a node is: versions served in int8, samples of its own, training by the graph interpreter.
//! When it trains or evaluates is decided elsewhere; one training is `local_training`'s, the arithmetic `training`'s and `inference`'s.

use std::sync::Arc;

use fedge_models::Package;

use super::budget::Budget;
use super::convert::Version;
use super::learner::{Client, Evaluated, Holdings, Job, Learner, Run};
use super::local_training::{self, Guard, rests};
use super::versions::Versions;
use crate::drift::DriftWatch;
use crate::inference::Serving;
use crate::samples::{Replay, Sample, SampleStore, TrainingDraw};
use crate::status::ServedModel;
use crate::training::{self, Dataset, Device, Loss, Objective, TrainingError};

/// Held-out samples that a trained model is judged by.
const LEAST_JUDGES: usize = 10;
const MOST_JUDGES: usize = 512;

/// A node's own part: what it serves and the samples that it holds.
#[derive(Debug)]
pub struct Edge {
    versions: Arc<Versions>,
    samples: SampleStore,
    drift: Option<DriftWatch>,
    options: EdgeOptions,
}

/// How a device trains.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// Which samples a training sees.
    pub replay: Replay,
    /// When, and how hard.
    pub budget: Budget,
    /// Largest loss on the held-out samples that a trained model may have, in multiples of what its base has; a model that
    /// got worse than that is not sent. 0: any.
    pub worst_loss: f32,
}

impl Edge {
    /// Trains and evaluates these versions on these samples; tells what `drift` saw.
    pub fn new(versions: Arc<Versions>, samples: SampleStore, drift: Option<DriftWatch>, options: EdgeOptions) -> Edge {
        Edge { versions, samples, drift, options }
    }

    /// The samples that tell whether a training made the model worse; none where there are too few to tell.
    async fn judges(&self, package: &Package) -> Result<Option<(Dataset, f32)>, String> {
        let worst = self.options.worst_loss;
        if worst == 0.0 {
            return Ok(None);
        }
        let samples = self.samples.held_out_spread(&package.manifest.name, MOST_JUDGES).await;
        let samples = samples.map_err(|e| e.to_string())?;
        if samples.len() < LEAST_JUDGES {
            return Ok(None);
        }
        Ok(Some((dataset(package, samples).map_err(|e| e.to_string())?, worst)))
    }
}

#[tonic::async_trait]
impl Learner for Edge {
    async fn holdings(&self) -> Holdings {
        let repository = self.versions.repository();
        let mut models = Vec::new();
        let drift = self.drift.as_ref().map(DriftWatch::status).unwrap_or_default();
        for model in repository.names() {
            let counts = match self.samples.counts(&model).await {
                Ok(counts) => counts,
                Err(error) => {
                    tracing::error!(%error, "the sample store can't be read");
                    continue;
                }
            };
            let current = repository.current(&model);
            let current = current.as_deref();
            let number = current.map_or(0, |s| s.manifest().number);
            let watched = drift.iter().find(|watched| watched.model == model);
            // What was seen of the version before says nothing of one that has not been asked yet.
            let alarm = watched.filter(|watched| watched.version == number).and_then(|watched| watched.alarm);
            models.push(ServedModel {
                number,
                digest: current.map(|s| s.manifest().digest),
                precision: current.map(|s| s.precision().name().to_owned()).unwrap_or_default(),
                float_reason: current.and_then(|s| s.float_reason()).unwrap_or_default().to_owned(),
                training_samples: counts.training,
                held_out_samples: counts.held_out,
                drift: alarm.map(|alarm| alarm.kind.name()).unwrap_or_default().to_owned(),
                drift_alarms: watched.map_or(0, |w| w.alarms),
                model,
            });
        }
        let resting = self.options.budget.rests_now().unwrap_or_default();
        Holdings { models, data_problems: self.versions.data_problems(), resting }
    }

    async fn serve(&self, client: &Client, version: &Version, int8_tolerance: f64) -> Result<(), String> {
        self.versions.serve(client, version, int8_tolerance).await.map(drop).map_err(|e| e.to_string())
    }

    async fn train(&self, client: &Client, base: &Version, run: Run) -> Result<Job, String> {
        if let Some(reason) = self.options.budget.rests_now() {
            return Err(rests(&reason));
        }
        let package = self.versions.package(client, base).await.map_err(|e| e.to_string())?;
        let name = base.manifest.name.clone();
        let draw = self.samples.draw_for_training(&name, self.options.replay, run.plan.seed).await;
        let TrainingDraw { samples, new, through } = draw.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no training samples for model {name:?}"));
        }
        tracing::info!(model = %name, new, replayed = samples.len() - new, "samples to train on");
        let guard = Guard { budget: self.options.budget.clone(), judge: self.judges(&package).await? };
        // Open from here on: newer versions may push it from the disk meanwhile.
        let file = self.versions.open(base).map_err(|e| e.to_string())?;
        let (store, executor) = (self.samples.clone(), tokio::runtime::Handle::current());
        Ok(Box::new(move || {
            let data = dataset(&package, samples).map_err(|e| e.to_string())?;
            let trained = local_training::train(package.model, file, &data, &run, &guard)?;
            // Off the executor, so that waiting holds nobody up. A mark that fails only makes samples new once more.
            if let Err(error) = executor.block_on(store.mark_trained(&name, through)) {
                tracing::warn!(%error, "what was trained on stays marked as new");
            }
            Ok(trained)
        }))
    }

    async fn evaluate(
        &self,
        client: &Client,
        version: &Version,
        objective: &Objective,
        int8_tolerance: f64,
    ) -> Result<Evaluated, String> {
        let serving = self.versions.serve(client, version, int8_tolerance).await.map_err(|e| e.to_string())?;
        let package = self.versions.package(client, version).await.map_err(|e| e.to_string())?;
        let package = self.versions.with_own(package).await.map_err(|e| e.to_string())?;
        let samples = self.samples.held_out_set(&version.manifest.name).await.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no held-out samples for model {:?}", version.manifest.name));
        }
        let objective = objective.clone();
        let work = move || evaluate(&package, &serving, &objective, samples);
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("evaluation was interrupted: {e}"))?
    }
}

/// Right answers are counted for cross-entropy alone: other outputs have no largest class.
fn evaluate(
    package: &Package,
    serving: &Serving,
    objective: &Objective,
    samples: Vec<Sample>,
) -> Result<Evaluated, String> {
    let classes = objective.loss == Loss::CrossEntropy;
    let correct_served = if classes { served_correctly(serving, &samples)? } else { 0 };
    let data = dataset(package, samples).map_err(|e| e.to_string())?;
    let float = training::evaluate_by(&package.model, &data, objective, Device::Cpu).map_err(|e| e.to_string())?;
    Ok(Evaluated {
        examples: float.examples,
        correct_float: if classes { float.correct } else { 0 },
        correct_served,
        loss: float.loss,
        precision: serving.precision().name().to_owned(),
    })
}

fn served_correctly(serving: &Serving, samples: &[Sample]) -> Result<u64, String> {
    let mut correct = 0;
    for batch in samples.chunks(64) {
        let inputs: Vec<f32> = batch.iter().flat_map(|s| s.input.iter().copied()).collect();
        let answer = serving.run(&inputs).map_err(|e| e.to_string())?;
        let classes = serving.output().sample_len().max(1);
        for (sample, logits) in batch.iter().zip(answer.values.chunks(classes)) {
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
            correct += u64::from(best == Some(sample.label as usize));
        }
    }
    Ok(correct)
}

/// The samples as training takes them: preprocessed, flat.
pub(super) fn dataset(package: &Package, samples: Vec<Sample>) -> Result<Dataset, TrainingError> {
    let shape = package.model.input().sample_shape();
    let labels = samples.iter().map(|s| s.label).collect();
    let mut inputs: Vec<f32> = samples.into_iter().flat_map(|s| s.input).collect();
    package.manifest.preprocessing.apply(&mut inputs, &shape);
    Dataset::new(inputs, labels, shape)
}
