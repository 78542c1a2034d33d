//! The work behind an assignment: training into a persisted update with what it leaves behind, evaluation into a report.
//! When it runs and what becomes of it is decided in `participant`; the training itself is a `Learner`'s.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fedge_proto::federation::EvaluationReport;
use fedge_proto::update::{Coding, Encoding};

use super::convert::{AssignmentId, Control, Terms, Version};
use super::download::Downloads;
use super::encoding;
use super::learner::{Client, Learner, Run, Trained};
use super::memory::{Key, Leftover, Memory};
use super::outbox::{Announcement, Outbox};
use super::pacing::Deadline;
use super::record::RecordError;
use crate::training::{Objective, Plan};

/// Largest weight that the coordinator takes.
const MAX_EXAMPLES: u64 = 1 << 20;

/// Everything that work needs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// Trains and evaluates.
    pub learner: Arc<dyn Learner>,
    /// Where updates go.
    pub outbox: Outbox,
    /// What counted updates left behind.
    pub memory: Memory,
    /// Fetches control variates.
    pub downloads: Arc<Downloads>,
}

/// A training assignment.
#[derive(Debug, Clone)]
pub struct Training {
    /// What the update answers.
    pub id: AssignmentId,
    /// Whose it is.
    pub task: String,
    /// What is trained.
    pub base: Version,
    /// How.
    pub plan: Plan,
    /// What is sent.
    pub terms: Terms,
    /// Until when.
    pub deadline: Deadline,
}

impl Workshop {
    /// Trains a version and persists the update.
    ///
    /// # Errors
    /// A sentence for the coordinator and the log; nothing of the update is left then.
    pub async fn train(&self, client: &Client, mut training: Training, cancel: Arc<AtomicBool>) -> Result<(), String> {
        let manifest = &training.base.manifest;
        let key = Key { model: manifest.name.clone(), task: training.task.clone(), layout: manifest.layout };
        if let Some(control) = training.terms.control {
            training.plan.correction = self.correction(client, &key, control).await?;
        }
        let own = match training.plan.local.is_empty() {
            true => None,
            false => {
                let (memory, key) = (self.memory.clone(), key.clone());
                let own = tokio::task::spawn_blocking(move || memory.own(&key)).await;
                own.map_err(|e| format!("reading was interrupted: {e}"))?.map_err(|e| e.to_string())?
            }
        };
        let run = Run {
            own,
            plan: training.plan.clone(),
            loss_base: training.terms.loss_base,
            until: training.terms.accept_partial.then(|| training.deadline.end_of_training()),
            cancel: cancel.clone(),
        };
        let job = self.learner.train(client, &training.base, run).await?;
        let (outbox, memory) = (self.outbox.clone(), self.memory.clone());
        // In one go, so that what was trained is held by one of few blocking threads, not by waiting tasks.
        let work = move || {
            let trained = job()?;
            if cancel.load(Ordering::Relaxed) {
                return Err("it was given up".to_owned());
            }
            let id = training.id;
            persist(&outbox, &memory, key, training, trained)?;
            // Given up while it was written: whoever gave it up looked for it before it was there.
            if cancel.load(Ordering::Relaxed) {
                outbox.discard(id);
            }
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("training was interrupted: {e}"))?
    }

    /// Evaluates a version by a loss.
    ///
    /// # Errors
    /// A sentence for the coordinator and the log.
    pub async fn evaluate(
        &self,
        client: &Client,
        id: AssignmentId,
        version: &Version,
        objective: &Objective,
        int8_tolerance: f64,
    ) -> Result<EvaluationReport, String> {
        let evaluated = self.learner.evaluate(client, version, objective, int8_tolerance).await?;
        Ok(EvaluationReport {
            assignment_id: id.0.to_vec(),
            examples: evaluated.examples,
            correct_float: evaluated.correct_float,
            correct_served: evaluated.correct_served,
            loss: evaluated.loss,
            precision: evaluated.precision,
        })
    }

    /// Makes what a counted update left behind valid and forgets the update. Blocks.
    ///
    /// # Errors
    /// [`RecordError`]: has to be done again before the next training of its task.
    pub fn keep(&self, id: AssignmentId) -> Result<(), RecordError> {
        self.outbox.keep(id, &self.memory)
    }

    /// SCAFFOLD's c − c_i; none where both are zero.
    async fn correction(&self, client: &Client, key: &Key, control: Control) -> Result<Option<Arc<[f32]>>, String> {
        let fetched = match control {
            Control::Zeros => None,
            Control::File { digest, size_bytes } => {
                let fetched = self.downloads.fetch(client, digest, size_bytes, None).await;
                Some(fetched.map_err(|e| format!("the task's control variate: {e}"))?)
            }
        };
        let (memory, key) = (self.memory.clone(), key.clone());
        let work = move || {
            let server = fetched.as_ref().map(|fetched| read_values(fetched.path())).transpose();
            let server = server.map_err(|e| format!("the task's control variate: {e}"))?;
            memory.correction(&key, server).map(|c| c.map(Arc::from)).map_err(|e| e.to_string())
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("reading was interrupted: {e}"))?
    }
}

fn read_values(path: &Path) -> std::io::Result<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// Encodes what was trained and puts it on disk with what it leaves behind.
fn persist(outbox: &Outbox, memory: &Memory, key: Key, training: Training, mut trained: Trained) -> Result<(), String> {
    let Training { id, plan, terms, base, .. } = training;
    let lossy = terms.coding.encoding != Encoding::F32;
    if lossy {
        memory.add_residual(&key, &mut trained.delta).map_err(|e| e.to_string())?;
    }
    let mut draft = outbox.draft().map_err(|e| e.to_string())?;
    let control = encoding::encode(&mut trained, &plan, &terms, id, draft.body()).map_err(|e| e.to_string())?;
    // From here on `delta` holds what was lost.
    let residual = lossy.then_some(&trained.delta[..]);
    let leftover = Leftover { residual, control: control.as_deref(), own: trained.own.as_ref() };
    let values = trained.delta.len();
    let announcement = Announcement {
        key,
        base: base.manifest.digest,
        coding: terms.coding,
        examples: trained.examples.min(MAX_EXAMPLES),
        metrics: trained.metrics,
    };
    let bytes = outbox.put(id, announcement, draft, leftover).map_err(|e| e.to_string())?;
    tracing::info!(assignment = %id, values, bytes, coding = %name(&terms.coding), "update ready");
    Ok(())
}

fn name(coding: &Coding) -> String {
    format!("{}{}", coding.encoding, if coding.zstd { "+zstd" } else { "" })
}

#[cfg(test)]
#[path = "work_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod tests;
