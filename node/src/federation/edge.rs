//! The device that a node is: versions served in int8, samples of its own, training by the graph interpreter.
//! When it trains or evaluates is decided elsewhere; the arithmetic is `training`'s and `inference`'s.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fedge_models::{Model, ModelError, Package, ParameterClass};

use super::convert::Version;
use super::learner::{Client, Evaluated, Holdings, Job, Learner, Run, Trained};
use super::outbox::Metrics;
use super::pacing::Pace;
use super::versions::Versions;
use crate::drift::DriftWatch;
use crate::inference::Serving;
use crate::samples::{Replay, Sample, SampleStore, TrainingDraw};
use crate::status::ServedModel;
use crate::training::{self, Dataset, Loss, Objective, TrainingError};

/// A node's own part: what it serves and the samples that it holds.
#[derive(Debug)]
pub struct Edge {
    versions: Arc<Versions>,
    samples: SampleStore,
    replay: Replay,
    drift: Option<DriftWatch>,
}

impl Edge {
    /// Trains and evaluates these versions on these samples, of which a training sees what `replay` says; tells what
    /// `drift` saw.
    pub fn new(versions: Arc<Versions>, samples: SampleStore, replay: Replay, drift: Option<DriftWatch>) -> Edge {
        Edge { versions, samples, replay, drift }
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
        Holdings { models, data_problems: self.versions.data_problems() }
    }

    async fn serve(&self, client: &Client, version: &Version, int8_tolerance: f64) -> Result<(), String> {
        self.versions.serve(client, version, int8_tolerance).await.map(drop).map_err(|e| e.to_string())
    }

    async fn train(&self, client: &Client, base: &Version, run: Run) -> Result<Job, String> {
        let package = self.versions.package(client, base).await.map_err(|e| e.to_string())?;
        let name = base.manifest.name.clone();
        let draw = self.samples.draw_for_training(&name, self.replay, run.plan.seed).await;
        let TrainingDraw { samples, new, through } = draw.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no training samples for model {name:?}"));
        }
        tracing::info!(model = %name, new, replayed = samples.len() - new, "samples to train on");
        // Open from here on: newer versions may push it from the disk meanwhile.
        let file = self.versions.open(base).map_err(|e| e.to_string())?;
        let (store, executor) = (self.samples.clone(), tokio::runtime::Handle::current());
        Ok(Box::new(move || {
            let data = dataset(&package, samples).map_err(|e| e.to_string())?;
            let trained = train(package.model, file, &data, &run)?;
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
        let samples = self.samples.held_out_set(&version.manifest.name).await.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no held-out samples for model {:?}", version.manifest.name));
        }
        let objective = objective.clone();
        let work = move || evaluate(&package, &serving, &objective, samples);
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("evaluation was interrupted: {e}"))?
    }
}

/// Trains a model, whose file is `base`, on samples that are preprocessed, off the executor: what a node does, and what a
/// simulated one does. The model is given up as soon as training does not need it: a large one is then in memory as its
/// parameters alone.
///
/// # Errors
/// A sentence for the coordinator and the log.
pub fn train(model: Model, base: impl Read, data: &Dataset, run: &Run) -> Result<Trained, String> {
    let started = Instant::now();
    let places = model.places().clone();
    let loss_base = match run.loss_base {
        true => Some(training::evaluate_by(&model, data, &run.plan.objective).map_err(|e| e.to_string())?.loss),
        false => None,
    };
    let pace = run.until.map(|until| Mutex::new(Pace::new(until)));
    let enough = || pace.as_ref().is_some_and(|p| locked(p).enough(Instant::now()));
    let outcome =
        training::train_until(model, data, &run.plan, &|_| {}, &run.cancel, &enough).map_err(|e| e.to_string())?;
    let mut delta = outcome.weights.into_values();
    let subtract = |first: usize, base: &[f32]| {
        let values = delta.get_mut(first..).unwrap_or_default();
        values.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
        Ok::<_, ModelError>(())
    };
    places.for_each_piece(base, subtract).map_err(|e| e.to_string())?;
    let exchanged = || places.layout().exchanged();
    let statistics = exchanged().filter(|(spec, _)| spec.class == ParameterClass::Statistic);
    Ok(Trained {
        delta,
        tensors: exchanged().map(|(_, range)| range.len()).collect(),
        statistics: statistics.map(|(_, range)| range).collect(),
        examples: outcome.examples,
        metrics: Metrics {
            steps: outcome.steps,
            loss_first: outcome.loss_first,
            loss_last: outcome.loss_last,
            loss_base,
            partial: outcome.partial,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
    })
}

fn locked(pace: &Mutex<Pace>) -> std::sync::MutexGuard<'_, Pace> {
    // Whole at every unlock.
    pace.lock().unwrap_or_else(PoisonError::into_inner)
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
    let float = training::evaluate_by(&package.model, &data, objective).map_err(|e| e.to_string())?;
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
fn dataset(package: &Package, samples: Vec<Sample>) -> Result<Dataset, TrainingError> {
    let shape = package.model.input().sample_shape();
    let labels = samples.iter().map(|s| s.label).collect();
    let mut inputs: Vec<f32> = samples.into_iter().flat_map(|s| s.input).collect();
    package.manifest.preprocessing.apply(&mut inputs, &shape);
    Dataset::new(inputs, labels, shape)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use fedge_models::{Manifest, Preprocessing};

    use super::*;
    use crate::training::{Optimizer, Plan};

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/zoo/digits_cnn.onnx");

    fn package() -> Package {
        let model = Model::from_path(Path::new(MODEL)).unwrap();
        let manifest = Manifest {
            schema: 1,
            name: "digits".into(),
            number: 1,
            digest: model.digest(),
            layout: model.layout().digest(),
            labels: vec![],
            preprocessing: Preprocessing { scale: 0.5, ..Preprocessing::default() },
            parent: None,
            task: None,
            round: None,
        };
        Package::new(manifest, model).unwrap()
    }

    fn samples() -> Vec<Sample> {
        let sample = |i: u32| Sample { input: (0..64).map(|p| ((p * i) % 17) as f32).collect(), label: i % 10 };
        (1..=40).map(sample).collect()
    }

    fn run(until: Option<Instant>, loss_base: bool) -> Run {
        let plan =
            Plan { optimizer: Optimizer::sgd(0.1, 0.0, 0.0), epochs: 2, batch_size: 16, seed: 0, ..Plan::default() };
        Run { plan, loss_base, until, cancel: Arc::default() }
    }

    fn trained(run: &Run) -> Trained {
        let package = package();
        let data = dataset(&package, samples()).unwrap();
        train(package.model, std::fs::File::open(MODEL).unwrap(), &data, run).unwrap()
    }

    #[test]
    fn an_update_is_the_trained_weights_less_those_of_the_file() {
        let package = package();
        let data = dataset(&package, samples()).unwrap();
        let run = run(None, true);
        let outcome = training::train(&package.model, &data, &run.plan, &|_| {}, &run.cancel).unwrap();
        let base = package.model.weights();
        let expected: Vec<f32> =
            outcome.weights.values().iter().zip(base.values()).map(|(new, old)| new - old).collect();
        let found = trained(&run);
        assert_eq!((found.delta, found.examples, found.metrics.steps), (expected, 40, 6));
        assert_eq!((found.tensors.iter().sum::<usize>(), found.statistics.len()), (base.values().len(), 0));
        let before = training::evaluate(&package.model, &data).unwrap();
        assert_eq!((found.metrics.loss_base, found.metrics.partial), (Some(before.loss), false));
    }

    #[test]
    fn without_time_there_is_one_step_and_with_enough_there_are_all() {
        let late = trained(&run(Some(Instant::now()), false));
        assert_eq!((late.metrics.steps, late.metrics.partial, late.metrics.loss_base), (1, true, None));
        assert!(late.delta.iter().any(|value| *value != 0.0));
        let early = trained(&run(Some(Instant::now() + Duration::from_secs(3600)), false));
        assert_eq!((early.metrics.steps, early.metrics.partial), (6, false));
    }
}
