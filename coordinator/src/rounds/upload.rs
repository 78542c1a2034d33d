//! One upload: begin, chunks into memory (a small update) or a spool file, verification, commit. A broken one goes on where
//! it stopped. Memory: some chunks. Whether an update counts is decided in `step`; its arithmetic is in `aggregate`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use fedge_proto::federation::{UploadReceipt, UploadRequest, upload_request::Part};
use fedge_proto::update::max_payload_bytes;
use tokio::sync::Semaphore;
use tonic::{Status, Streaming};

use super::answers::Answer;
use super::convert::{self, Begin};
use super::driver::Rounds;
use super::fold::{self, Payload};
use super::receive::{self, Received};
use super::refusal::UploadError;
use super::running::{UploadTerms, facts_of};
use super::state::{AssignmentId, TrainedUpdate};
use crate::store::spool::{Entry, ROW_BYTES};

/// Large updates that arrive at the same time.
const LARGE_AT_ONCE: usize = 16;

/// Receives uploads, one in flight a node.
#[derive(Debug)]
pub struct Uploads {
    rounds: Arc<Rounds>,
    in_flight: Mutex<BTreeSet<String>>,
    /// Places for large uploads: an active one holds some MiB of chunks.
    large: Semaphore,
}

impl Uploads {
    /// Uploads into these rounds.
    pub fn new(rounds: Arc<Rounds>) -> Uploads {
        Uploads { rounds, in_flight: Mutex::default(), large: Semaphore::new(LARGE_AT_ONCE) }
    }

    /// One upload of `node`.
    ///
    /// # Errors
    /// The refusal as a status; it is counted for its task.
    pub async fn receive(&self, node: &str, stream: Streaming<UploadRequest>) -> Result<UploadReceipt, Status> {
        let _slot = self.slot(node)?;
        let mut of = None;
        let result = self.run(node, stream, &mut of).await;
        if let (Err(error), Some((task_id, assignment))) = (&result, of) {
            tracing::warn!(%node, %error, "update refused");
            self.record(node, &task_id, assignment, error).await;
        }
        result.map_err(|e| e.status())
    }

    /// Counts a refusal; what will never be right is not waited for.
    async fn record(&self, node: &str, task_id: &str, assignment: AssignmentId, error: &UploadError) {
        if let Err(error) = self.rounds.store().count_refusal(task_id, error.slug()).await {
            tracing::error!(%error, "a refusal could not be counted");
        }
        if error.is_final() {
            let reason = format!("its update was refused: {error}");
            if let Err(error) = self.rounds.decline(node, assignment, reason).await {
                tracing::error!(%error, "a refusal could not be recorded");
            }
        }
    }

    /// Bytes that are here of an update that `node` was sending when its connection broke.
    pub async fn arrived(&self, node: &str, assignment: AssignmentId, sha256: [u8; 32]) -> u64 {
        match self.rounds.admission(node, assignment, None).await.0 {
            Answer::Open(_) => self.rounds.spool().arrived(&Entry { assignment: assignment.0, sha256 }),
            _ => 0,
        }
    }

    async fn run(
        &self,
        node: &str,
        mut stream: Streaming<UploadRequest>,
        of: &mut Option<(String, AssignmentId)>,
    ) -> Result<UploadReceipt, UploadError> {
        let Part::Begin(begin) = receive::next(&mut stream).await? else {
            return Err(UploadError::Protocol("an upload begins with `begin`".into()));
        };
        let begin = convert::begin(begin).map_err(UploadError::Protocol)?;
        let receipt = UploadReceipt {
            assignment_id: begin.assignment.0.to_vec(),
            sha256: begin.update.sha256.to_vec(),
            counted: true,
        };
        let (answer, task_id) = self.rounds.admission(node, begin.assignment, Some(begin.update.sha256)).await;
        *of = task_id.map(|id| (id, begin.assignment));
        let terms = match answer {
            Answer::Open(terms) => terms,
            Answer::Foreign => return Err(UploadError::Foreign(begin.assignment.to_string())),
            // The digest says what it is: there is no need to hear it again.
            Answer::Duplicate => return Ok(receipt),
            Answer::Stale(by) => return Err(UploadError::Stale(by)),
            Answer::Conflict | Answer::Closed | Answer::Noted => {
                return self.earlier(&begin).await.map(|()| receipt);
            }
        };
        check_terms(&begin, &terms)?;
        // Those who wait for a place are held back by their connection's window.
        let _place = match begin.update.bytes > ROW_BYTES {
            true => self.large.acquire().await.ok(),
            false => None,
        };
        let received = receive::receive(&mut stream, &begin, self.rounds.spool()).await?;
        let (update, payload) = self.verify(received, &begin, &terms).await?;
        match self.rounds.commit(node, begin.assignment, update, payload).await {
            Ok(Answer::Noted | Answer::Duplicate) => Ok(receipt),
            Ok(Answer::Foreign) => Err(UploadError::Foreign(begin.assignment.to_string())),
            Ok(Answer::Stale(by)) => Err(UploadError::Stale(by)),
            // An upload of before, whose connection broke while it waited to be recorded, may have counted by now, and its
            // round may be over: a node that heard "closed" would throw away what this update left behind.
            Ok(Answer::Conflict | Answer::Closed | Answer::Open(_)) => self.earlier(&begin).await.map(|()| receipt),
            Err(error) => Err(UploadError::Disk(error.to_string())),
        }
    }

    /// What came of an assignment that is not open: the same receipt for the same bytes.
    async fn earlier(&self, begin: &Begin) -> Result<(), UploadError> {
        let stored = self.rounds.store().update(begin.assignment).await;
        match stored.map_err(|e| UploadError::Disk(e.to_string()))? {
            Some(row) if row.sha256 == begin.update.sha256 => Ok(()),
            Some(_) => Err(UploadError::Conflict(begin.assignment.to_string())),
            None => Err(UploadError::Closed(begin.assignment.to_string())),
        }
    }

    /// Checks the values, then gives a spooled payload its lasting name.
    async fn verify(
        &self,
        received: Received,
        begin: &Begin,
        terms: &UploadTerms,
    ) -> Result<(TrainedUpdate, Payload), UploadError> {
        let (spool, mut update, terms) = (self.rounds.spool().clone(), begin.update.clone(), terms.clone());
        let entry = Entry { assignment: begin.assignment.0, sha256: update.sha256 };
        let is_small = matches!(received, Received::Row(_));
        let work = move || {
            let payload = received.payload();
            update.squared_norm = check_values(&payload, &update, &terms).inspect_err(|error| {
                if error.is_final() {
                    spool.discard(&entry);
                }
            })?;
            if let Received::File(mut file, _) = received {
                spool.finish(&entry, &mut file).map_err(|e| UploadError::Disk(e.to_string()))?;
                return Ok((update, Payload::File(spool.path(&entry))));
            }
            Ok((update, payload))
        };
        if is_small {
            return work();
        }
        tokio::task::spawn_blocking(work).await.map_err(|e| UploadError::Disk(e.to_string()))?
    }

    fn slot(&self, node: &str) -> Result<Slot<'_>, Status> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.insert(node.to_owned()) {
            Ok(Slot { uploads: self, node: node.to_owned() })
        } else {
            Err(UploadError::Busy(node.to_owned()).status())
        }
    }
}

/// Frees the node's place when its upload ends, however it ends.
struct Slot<'a> {
    uploads: &'a Uploads,
    node: String,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.uploads.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.node);
    }
}

fn check_terms(begin: &Begin, terms: &UploadTerms) -> Result<(), UploadError> {
    if begin.base != terms.base {
        return Err(UploadError::Base { got: begin.base, expected: terms.base });
    }
    if begin.layout != terms.layout {
        return Err(UploadError::Layout { got: begin.layout, expected: terms.layout });
    }
    if begin.coding != terms.form.coding {
        let (got, expected) = (format!("{:?}", begin.coding), format!("{:?}", terms.form.coding));
        return Err(UploadError::Coding { got, expected });
    }
    let (got, tensors) = (begin.update.bytes, &terms.form.tensors);
    let most = max_payload_bytes(&terms.form.coding, tensors);
    let exact = fedge_proto::update::exact_payload_bytes(&terms.form.coding, tensors);
    if got > most || exact.is_some_and(|exact| exact != got) {
        return Err(UploadError::Size { got, parameters: tensors.iter().sum(), expected: exact.unwrap_or(most) });
    }
    let plan = &terms.spec.training;
    let steps = u64::from(plan.epochs).saturating_mul(begin.update.examples.div_ceil(u64::from(plan.batch_size)));
    if begin.update.steps == 0 || begin.update.steps > steps {
        return Err(UploadError::Steps { got: begin.update.steps, most: steps });
    }
    if begin.update.partial && !terms.spec.strategy.client().accept_partial {
        return Err(UploadError::Partial(terms.spec.strategy.name()));
    }
    Ok(())
}

/// Checks every value, what the update would count, and its norm; gives the squared norm.
///
/// # Errors
/// [`UploadError`] says what is wrong with it.
pub fn check_values(payload: &Payload, update: &TrainedUpdate, terms: &UploadTerms) -> Result<f64, UploadError> {
    let facts = crate::aggregate::UpdateFacts { staleness: terms.staleness, ..facts_of(&terms.spec, update) };
    terms.spec.strategy.contribution(&facts)?;
    let squared_norm = fold::check(payload, &terms.form, &terms.scales)?;
    let (norm, most) = (squared_norm.sqrt(), terms.spec.updates.max_norm);
    if most > 0.0 && norm > most {
        return Err(UploadError::Norm { norm, most });
    }
    Ok(squared_norm)
}
