//! One upload: begin, chunks to a spool file, verification, commit. Memory: a chunk, then one update while it is checked.
//! Whether an update counts is decided in `step`; its arithmetic is in `aggregate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fedge_models::Digest;
use fedge_proto::federation::{UploadReceipt, UploadRequest, upload_request::Part};
use fedge_proto::transfer::{Receiver, TransferError};
use tokio::io::AsyncWriteExt;
use tonic::{Status, Streaming};

use super::convert::{self, Begin};
use super::driver::{Rounds, UploadAnswer};
use super::running::{UploadTerms, read_delta, spool_path};
use super::state::{AssignmentId, TrainedUpdate};
use crate::aggregate::AggregationError;
use crate::aggregate::fixed_point::Check;

/// Longest silence within an upload.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why an update was refused. The round goes on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Not begin, chunks, commit.
    #[error("{0}")]
    Protocol(String),
    /// No running round waits for it.
    #[error("no running round waits for assignment {0}: its round is over or it never was")]
    Closed(String),
    /// Another node's assignment.
    #[error("assignment {0} was given to another node")]
    Foreign(String),
    /// Another update was accepted.
    #[error("another update was already accepted for assignment {0}")]
    Conflict(String),
    /// Stale base.
    #[error("the update was trained on version {got}, the assignment is for {expected}")]
    Base {
        /// What was trained.
        got: Digest,
        /// What was assigned.
        expected: Digest,
    },
    /// Another layout.
    #[error("the update has parameter layout {got}, the model has {expected}")]
    Layout {
        /// The update's.
        got: Digest,
        /// The model's.
        expected: Digest,
    },
    /// Wrong size.
    #[error("the update has {got} bytes, {parameters} parameters need {expected}")]
    Size {
        /// Announced.
        got: u64,
        /// Exchanged parameters.
        parameters: usize,
        /// Needed.
        expected: u64,
    },
    /// Chunks.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Values.
    #[error(transparent)]
    Values(#[from] AggregationError),
    /// A second upload of the same node at the same time.
    #[error("node {0} already has an upload in flight: one at a time")]
    Busy(String),
    /// This side's disk.
    #[error("the coordinator could not keep the update: {0}; it is not acknowledged, send it again later")]
    Disk(String),
}

impl UploadError {
    /// Short name under which refusals are counted.
    pub fn slug(&self) -> &'static str {
        match self {
            UploadError::Protocol(_) => "protocol",
            UploadError::Closed(_) => "closed",
            UploadError::Foreign(_) => "foreign_assignment",
            UploadError::Conflict(_) => "conflict",
            UploadError::Base { .. } => "base_version",
            UploadError::Layout { .. } => "layout",
            UploadError::Size { .. } => "size",
            UploadError::Transfer(TransferError::Digest { .. }) => "digest",
            UploadError::Transfer(_) => "chunks",
            UploadError::Values(AggregationError::NotFinite { .. }) => "not_finite",
            UploadError::Values(AggregationError::OutOfRange { .. }) => "out_of_range",
            UploadError::Values(_) => "values",
            UploadError::Busy(_) => "busy",
            UploadError::Disk(_) => "disk",
        }
    }

    /// Whether the same node would send the same again: trained on something else, or to impossible values.
    fn is_final(&self) -> bool {
        matches!(
            self,
            UploadError::Base { .. } | UploadError::Layout { .. } | UploadError::Size { .. } | UploadError::Values(_)
        )
    }

    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            UploadError::Closed(_) => Status::failed_precondition(text),
            UploadError::Foreign(_) => Status::permission_denied(text),
            UploadError::Conflict(_) => Status::already_exists(text),
            UploadError::Base { .. } | UploadError::Layout { .. } => Status::failed_precondition(text),
            UploadError::Busy(_) => Status::resource_exhausted(text),
            UploadError::Disk(_) => Status::unavailable(text),
            UploadError::Transfer(_) => Status::data_loss(text),
            UploadError::Protocol(_) | UploadError::Size { .. } | UploadError::Values(_) => {
                Status::invalid_argument(text)
            }
        }
    }
}

/// Receives uploads, one in flight a node.
#[derive(Debug)]
pub struct Uploads {
    rounds: Arc<Rounds>,
    in_flight: Mutex<BTreeSet<String>>,
}

impl Uploads {
    /// Uploads into these rounds.
    pub fn new(rounds: Arc<Rounds>) -> Uploads {
        Uploads { rounds, in_flight: Mutex::default() }
    }

    /// One upload of `node`.
    ///
    /// # Errors
    /// The refusal as a status; it is counted for its task.
    pub async fn receive(&self, node: &str, stream: Streaming<UploadRequest>) -> Result<UploadReceipt, Status> {
        let _slot = self.slot(node)?;
        let mut admitted = None;
        let result = self.run(node, stream, &mut admitted).await;
        if let (Err(error), Some((task_id, assignment))) = (&result, admitted) {
            tracing::warn!(%node, %error, "update refused");
            let counted = self.rounds.store().count_refusal(&task_id, error.slug()).await;
            // What will never be right is not waited for.
            let declined = match error.is_final() {
                true => self.rounds.decline(node, assignment, format!("its update was refused: {error}")).await,
                false => Ok(true),
            };
            if let Err(error) = counted.and(declined) {
                tracing::error!(%error, "a refusal could not be recorded");
            }
        }
        result.map_err(|e| e.status())
    }

    async fn run(
        &self,
        node: &str,
        mut stream: Streaming<UploadRequest>,
        admitted: &mut Option<(String, AssignmentId)>,
    ) -> Result<UploadReceipt, UploadError> {
        let Part::Begin(begin) = next(&mut stream).await? else {
            return Err(UploadError::Protocol("an upload begins with `begin`".into()));
        };
        let begin = convert::begin(begin).map_err(UploadError::Protocol)?;
        let receipt = |sha256: [u8; 32], counted| UploadReceipt {
            assignment_id: begin.assignment.0.to_vec(),
            sha256: sha256.to_vec(),
            counted,
        };
        let terms = match self.rounds.admission(node, begin.assignment, None).await {
            UploadAnswer::Open(terms) => terms,
            UploadAnswer::Foreign => return Err(UploadError::Foreign(begin.assignment.to_string())),
            UploadAnswer::Duplicate | UploadAnswer::Conflict | UploadAnswer::Closed => {
                let sha256 = drain(&mut stream, begin.size_bytes).await?;
                return self.earlier(&begin, sha256).await.map(|counted| receipt(sha256, counted));
            }
        };
        *admitted = Some((terms.task_id.clone(), begin.assignment));
        check_terms(&begin, &terms)?;
        let (file, sha256) = self.spool(&mut stream, &begin).await?;
        let folder = self.rounds.store().spool_folder();
        let path = spool_path(&folder, begin.assignment, &sha256);
        verify(file, path.clone(), folder, terms).await?;
        let update = TrainedUpdate { sha256, bytes: begin.size_bytes, ..begin.update.clone() };
        let answer = self.rounds.commit(node, begin.assignment, update).await;
        let answer = answer.map_err(|e| UploadError::Disk(e.to_string()))?;
        if !matches!(answer, UploadAnswer::Open(_) | UploadAnswer::Duplicate) {
            let _ = std::fs::remove_file(&path);
        }
        match answer {
            UploadAnswer::Open(_) | UploadAnswer::Duplicate => Ok(receipt(sha256, true)),
            UploadAnswer::Foreign => Err(UploadError::Foreign(begin.assignment.to_string())),
            UploadAnswer::Conflict => Err(UploadError::Conflict(begin.assignment.to_string())),
            UploadAnswer::Closed => Err(UploadError::Closed(begin.assignment.to_string())),
        }
    }

    /// What came of an assignment that is not open: the same receipt for the same bytes.
    async fn earlier(&self, begin: &Begin, sha256: [u8; 32]) -> Result<bool, UploadError> {
        let stored = self.rounds.store().update(begin.assignment).await;
        match stored.map_err(|e| UploadError::Disk(e.to_string()))? {
            Some(row) if row.sha256 == sha256 => Ok(true),
            Some(_) => Err(UploadError::Conflict(begin.assignment.to_string())),
            None => Err(UploadError::Closed(begin.assignment.to_string())),
        }
    }

    async fn spool(
        &self,
        stream: &mut Streaming<UploadRequest>,
        begin: &Begin,
    ) -> Result<(tempfile::NamedTempFile, [u8; 32]), UploadError> {
        let disk = |e: std::io::Error| UploadError::Disk(e.to_string());
        let staged = tempfile::NamedTempFile::new_in(self.rounds.store().spool_folder()).map_err(disk)?;
        let mut file = tokio::fs::File::from_std(staged.reopen().map_err(disk)?);
        let mut receiver = Receiver::new(begin.size_bytes);
        loop {
            match next(stream).await? {
                Part::Begin(_) => return Err(UploadError::Protocol("a second `begin` within an upload".into())),
                Part::Chunk(chunk) => {
                    receiver.accept(&chunk)?;
                    file.write_all(&chunk.data).await.map_err(disk)?;
                }
                Part::Commit(commit) => {
                    let sha256 = convert::sha256(&commit.sha256).map_err(UploadError::Protocol)?;
                    receiver.finish(sha256)?;
                    file.sync_all().await.map_err(disk)?;
                    return Ok((staged, sha256));
                }
            }
        }
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
    let expected = terms.parameters as u64 * 4;
    if begin.size_bytes != expected {
        return Err(UploadError::Size { got: begin.size_bytes, parameters: terms.parameters, expected });
    }
    Ok(())
}

/// Checks the values, then gives the payload its lasting name.
async fn verify(
    staged: tempfile::NamedTempFile,
    path: PathBuf,
    folder: PathBuf,
    terms: UploadTerms,
) -> Result<(), UploadError> {
    let work = move || {
        let delta = read_delta(staged.path()).map_err(|e| UploadError::Disk(e.to_string()))?;
        let mut check = Check::new(terms.scales);
        check.piece(&delta)?;
        check.finish()?;
        staged.persist(&path).map_err(|e| UploadError::Disk(e.to_string()))?;
        sync_folder(&folder).map_err(|e| UploadError::Disk(e.to_string()))
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| UploadError::Disk(e.to_string()))?
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

async fn next(stream: &mut Streaming<UploadRequest>) -> Result<Part, UploadError> {
    let message = tokio::time::timeout(CHUNK_TIMEOUT, stream.message()).await;
    let message = message.map_err(|_| UploadError::Protocol("nothing came for 30 s: the upload is given up".into()))?;
    let message = message.map_err(|e| UploadError::Protocol(format!("the upload broke off: {}", e.message())))?;
    let part = message.and_then(|m| m.part);
    part.ok_or_else(|| UploadError::Protocol("the upload ended without `commit`".into()))
}

/// Reads an upload to its end without keeping it; gives the digest that it claims.
async fn drain(stream: &mut Streaming<UploadRequest>, announced: u64) -> Result<[u8; 32], UploadError> {
    let mut received = 0u64;
    loop {
        match next(stream).await? {
            Part::Begin(_) => return Err(UploadError::Protocol("a second `begin` within an upload".into())),
            Part::Chunk(chunk) => {
                received = received.saturating_add(chunk.data.len() as u64);
                if received > announced {
                    return Err(TransferError::Size { got: received, announced }.into());
                }
            }
            Part::Commit(commit) => return convert::sha256(&commit.sha256).map_err(UploadError::Protocol),
        }
    }
}
