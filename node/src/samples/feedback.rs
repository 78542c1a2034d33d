//! The service `fedge.feedback.v1.Feedback`: labels for earlier answers, and whole labelled samples.
//! Who may call it is decided by the authorization table; what is kept is decided by `store`.

use std::sync::Arc;

use fedge_proto::feedback::class_label::Value;
use fedge_proto::feedback::feedback_server::{Feedback, FeedbackServer};
use fedge_proto::feedback::{AddReply, AddRequest, ClassLabel, LabelReply, LabelRequest};
use fedge_proto::identity::SpiffeId;
use tonic::{Request, Response, Status};

use super::{Added, SampleError, SampleId, SampleStore, file};
use crate::inference::{ModelRepository, Serving};

/// Largest request, in bytes.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Answers `Label` and `Add` for the models that the repository serves.
#[derive(Clone, Debug)]
pub struct FeedbackService {
    repository: Arc<ModelRepository>,
    samples: SampleStore,
}

/// The gRPC service, ready to be added to a server.
pub fn service(repository: Arc<ModelRepository>, samples: SampleStore) -> FeedbackServer<FeedbackService> {
    FeedbackServer::new(FeedbackService { repository, samples }).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl Feedback for FeedbackService {
    /// `INVALID_ARGUMENT`: malformed id, unknown or missing label. `NOT_FOUND`: unknown id. `FAILED_PRECONDITION`:
    /// expired, or labelled already.
    async fn label(&self, request: Request<LabelRequest>) -> Result<Response<LabelReply>, Status> {
        let caller = request.extensions().get::<SpiffeId>().cloned();
        let request = request.into_inner();
        let id: SampleId = request
            .sample_id
            .parse()
            .map_err(|error: super::id::ParseSampleIdError| Status::invalid_argument(format!("sample_id: {error}")))?;
        let (model, _) = self.samples.pending(&id).await.map_err(status)?;
        let index = class_index(&*self.serving(&model, caller.as_ref())?, request.label)?;
        self.samples.label_pending(&id, index).await.map_err(status)?;
        Ok(Response::new(LabelReply { index }))
    }

    /// `INVALID_ARGUMENT`: wrong number of values, NaN or infinity, unknown or missing label. `NOT_FOUND`: unknown model.
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddReply>, Status> {
        let caller = request.extensions().get::<SpiffeId>().cloned();
        let request = request.into_inner();
        let serving = self.serving(&request.model_name, caller.as_ref())?;
        let expected = serving.input().sample_len();
        if request.input.len() != expected {
            return Err(Status::invalid_argument(format!(
                "input: model {:?} takes {expected} values a sample (shape {:?}), but {} came",
                serving.manifest().name,
                serving.input().sample_shape(),
                request.input.len()
            )));
        }
        let index = class_index(&serving, request.label)?;
        let added = self.samples.add(&serving.manifest().name, &request.input, index).await.map_err(status)?;
        Ok(Response::new(AddReply { index, duplicate: added == Added::Duplicate }))
    }
}

impl FeedbackService {
    fn serving(&self, model: &str, caller: Option<&SpiffeId>) -> Result<Arc<Serving>, Status> {
        Ok(self.repository.find_for(model, "", caller)?.1)
    }
}

fn class_index(serving: &Serving, label: Option<ClassLabel>) -> Result<u32, Status> {
    let names = &serving.manifest().labels;
    let classes = serving.output().sample_len();
    let known = || file::known_labels(classes, names);
    match label.and_then(|label| label.value) {
        None => Err(Status::invalid_argument(format!("label: is missing; {}", known()))),
        Some(Value::Index(index)) if (index as usize) < classes => Ok(index),
        Some(Value::Index(index)) => {
            Err(Status::invalid_argument(format!("label: unknown index {index}; {}", known())))
        }
        Some(Value::Name(name)) => {
            names.iter().position(|known| *known == name).and_then(|index| u32::try_from(index).ok()).ok_or_else(|| {
                let name: String = name.chars().take(60).collect();
                Status::invalid_argument(format!("label: unknown name {name:?}; {}", known()))
            })
        }
    }
}

fn status(error: SampleError) -> Status {
    let message = error.to_string();
    match error {
        SampleError::UnknownId { .. } => Status::not_found(message),
        SampleError::Expired { .. } | SampleError::AlreadyLabelled { .. } => Status::failed_precondition(message),
        SampleError::NotFinite { .. } | SampleError::Empty | SampleError::TooLarge { .. } => {
            Status::invalid_argument(format!("input: {message}"))
        }
        SampleError::Corrupt { .. } | SampleError::Version { .. } | SampleError::Store { .. } => {
            // The message names a path of this machine: for its log, not for the caller.
            tracing::error!(%error, "the sample store failed");
            Status::internal("the node's sample store failed; its log says why")
        }
    }
}

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;
