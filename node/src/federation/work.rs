//! The work behind an assignment: training into a persisted update, evaluation into a report.
//! When it runs and what becomes of it is decided in `participant`; the arithmetic is `training`'s.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use fedge_models::{Digest, Package};
use fedge_proto::federation::EvaluationReport;
use fedge_proto::federation::federation_client::FederationClient;
use tonic::transport::Channel;

use super::convert::{AssignmentId, Version};
use super::outbox::{Announcement, Outbox, SCHEMA};
use super::versions::Versions;
use crate::inference::Serving;
use crate::samples::{Sample, SampleStore};
use crate::training::{self, Dataset, Plan, TrainingError};

/// Largest weight that the coordinator takes.
const MAX_EXAMPLES: u64 = 1 << 20;

/// Everything that work needs.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// Where versions come from.
    pub versions: Arc<Versions>,
    /// What is trained and evaluated on.
    pub samples: SampleStore,
    /// Where updates go.
    pub outbox: Outbox,
}

impl Workshop {
    /// Trains a version on the local samples and persists the update.
    ///
    /// # Errors
    /// A sentence for the coordinator and the log.
    pub async fn train(
        &self,
        client: &FederationClient<Channel>,
        id: AssignmentId,
        base: &Version,
        plan: Plan,
        cancel: Arc<AtomicBool>,
    ) -> Result<(), String> {
        let package = self.versions.package(client, base).await.map_err(|e| e.to_string())?;
        let samples = self.samples.training_set(&base.manifest.name).await.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no training samples for model {:?}", base.manifest.name));
        }
        let outbox = self.outbox.clone();
        let work = move || train(&package, samples, &plan, &cancel, |a, payload| outbox.put(id, &a, &payload));
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("training was interrupted: {e}"))?
    }

    /// Evaluates a version on the held-out samples: in float, and as this node serves it.
    ///
    /// # Errors
    /// A sentence for the coordinator and the log.
    pub async fn evaluate(
        &self,
        client: &FederationClient<Channel>,
        id: AssignmentId,
        version: &Version,
        int8_tolerance: f64,
    ) -> Result<EvaluationReport, String> {
        let serving = self.versions.serve(client, version, int8_tolerance).await.map_err(|e| e.to_string())?;
        let package = self.versions.package(client, version).await.map_err(|e| e.to_string())?;
        let samples = self.samples.held_out_set(&version.manifest.name).await.map_err(|e| e.to_string())?;
        if samples.is_empty() {
            return Err(format!("no held-out samples for model {:?}", version.manifest.name));
        }
        let work = move || evaluate(&package, &serving, samples, id);
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("evaluation was interrupted: {e}"))?
    }
}

fn train(
    package: &Package,
    samples: Vec<Sample>,
    plan: &Plan,
    cancel: &AtomicBool,
    keep: impl FnOnce(Announcement, Vec<u8>) -> Result<(), super::outbox::OutboxError>,
) -> Result<(), String> {
    let started = Instant::now();
    let data = dataset(package, samples).map_err(|e| e.to_string())?;
    let outcome = training::train(&package.model, &data, plan, &|_| {}, cancel).map_err(|e| e.to_string())?;
    let base = package.model.weights();
    let payload: Vec<u8> =
        outcome.weights.values().iter().zip(base.values()).flat_map(|(new, old)| (new - old).to_le_bytes()).collect();
    let announcement = Announcement {
        schema: SCHEMA,
        base: package.manifest.digest,
        layout: package.manifest.layout,
        sha256: Digest::of(&payload),
        examples: outcome.examples.min(MAX_EXAMPLES),
        steps: outcome.steps,
        loss_first: outcome.loss_first,
        loss_last: outcome.loss_last,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    keep(announcement, payload).map_err(|e| e.to_string())
}

fn evaluate(
    package: &Package,
    serving: &Serving,
    samples: Vec<Sample>,
    id: AssignmentId,
) -> Result<EvaluationReport, String> {
    let correct_served = served_correctly(serving, &samples)?;
    let data = dataset(package, samples).map_err(|e| e.to_string())?;
    let float = training::evaluate(&package.model, &data).map_err(|e| e.to_string())?;
    Ok(EvaluationReport {
        assignment_id: id.0.to_vec(),
        examples: float.examples,
        correct_float: float.correct,
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
