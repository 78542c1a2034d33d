//! Why an update was refused: the sentence, the gRPC status, the name under which it is counted, whether it is for good.
//! The checks themselves are in `upload`.

use fedge_models::Digest;
use fedge_proto::transfer::TransferError;
use tonic::Status;

use super::mint::MintError;
use crate::aggregate::AggregationError;

/// Why an update was refused. The round goes on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Not begin, chunks, commit.
    #[error("{0}")]
    Protocol(String),
    /// It broke on the way, or begins where less is here than the node believes: the same may be sent again.
    #[error("{0}; send it again")]
    Broken(String),
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
    /// Another coding.
    #[error("the update is written as {got}, the task wants {expected}")]
    Coding {
        /// The update's.
        got: String,
        /// The task's.
        expected: String,
    },
    /// Wrong size.
    #[error("the update has {got} bytes, {parameters} parameters need {expected} in the task's coding")]
    Size {
        /// Announced.
        got: u64,
        /// Exchanged parameters.
        parameters: usize,
        /// Needed, or at most possible.
        expected: u64,
    },
    /// Steps that the plan does not allow.
    #[error("the update took {got} steps, the plan allows 1 to {most}")]
    Steps {
        /// Claimed.
        got: u64,
        /// Epochs times batches.
        most: u64,
    },
    /// Partial work where whole work is wanted.
    #[error("training stopped at the deadline, and {0} does not take partial work")]
    Partial(&'static str),
    /// Too old for an asynchronous task.
    #[error("the version that was trained is {0} versions old, more than the task takes")]
    Stale(u64),
    /// Values that can't be decoded.
    #[error("the update can't be decoded: {0}")]
    Encoding(String),
    /// Too long a way.
    #[error("the update's norm is {norm:.3e}, the task takes at most {most:.3e} (updates.max_norm)")]
    Norm {
        /// L2 norm of the trainable values.
        norm: f64,
        /// The task's bound.
        most: f64,
    },
    /// The spool's quota.
    #[error("{0}; send it again later")]
    SpoolFull(String),
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
            UploadError::Broken(_) => "broken",
            UploadError::Closed(_) => "closed",
            UploadError::Foreign(_) => "foreign_assignment",
            UploadError::Conflict(_) => "conflict",
            UploadError::Base { .. } => "base_version",
            UploadError::Layout { .. } => "layout",
            UploadError::Coding { .. } => "coding",
            UploadError::Size { .. } => "size",
            UploadError::Steps { .. } => "steps",
            UploadError::Partial(_) => "partial",
            UploadError::Stale(_) => "stale",
            UploadError::Encoding(_) => "encoding",
            UploadError::Norm { .. } => "norm",
            UploadError::SpoolFull(_) => "spool_full",
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
    pub(super) fn is_final(&self) -> bool {
        match self {
            UploadError::Base { .. }
            | UploadError::Layout { .. }
            | UploadError::Coding { .. }
            | UploadError::Size { .. }
            | UploadError::Steps { .. }
            | UploadError::Partial(_)
            | UploadError::Stale(_)
            | UploadError::Encoding(_)
            | UploadError::Norm { .. }
            | UploadError::Values(_) => true,
            UploadError::Protocol(_)
            | UploadError::Broken(_)
            | UploadError::Closed(_)
            | UploadError::Foreign(_)
            | UploadError::Conflict(_)
            | UploadError::Transfer(_)
            | UploadError::SpoolFull(_)
            | UploadError::Busy(_)
            | UploadError::Disk(_) => false,
        }
    }

    pub(super) fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            UploadError::Closed(_) => Status::failed_precondition(text),
            UploadError::Foreign(_) => Status::permission_denied(text),
            UploadError::Conflict(_) => Status::already_exists(text),
            UploadError::Base { .. } | UploadError::Layout { .. } | UploadError::Stale(_) => {
                Status::failed_precondition(text)
            }
            UploadError::Busy(_) | UploadError::SpoolFull(_) => Status::resource_exhausted(text),
            UploadError::Disk(_) => Status::unavailable(text),
            UploadError::Transfer(_) | UploadError::Broken(_) => Status::data_loss(text),
            UploadError::Protocol(_)
            | UploadError::Coding { .. }
            | UploadError::Size { .. }
            | UploadError::Steps { .. }
            | UploadError::Partial(_)
            | UploadError::Encoding(_)
            | UploadError::Norm { .. }
            | UploadError::Values(_) => Status::invalid_argument(text),
        }
    }
}

impl From<MintError> for UploadError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Aggregation(error) => UploadError::Values(error),
            MintError::Update { problem, .. } => UploadError::Encoding(problem),
            other => UploadError::Disk(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn what_broke_on_the_way_may_be_sent_again_and_what_is_malformed_may_not() {
        let broken = UploadError::Broken("the upload ended without `commit`".into());
        assert_eq!((broken.status().code(), broken.is_final()), (Code::DataLoss, false));
        let malformed = UploadError::Protocol("a second `begin` within an upload".into());
        assert_eq!(malformed.status().code(), Code::InvalidArgument);
    }
}
