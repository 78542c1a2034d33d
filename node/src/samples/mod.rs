//! The node's labelled samples: a durable bounded store, files that fill it, and labels that come back over gRPC.
//! Nothing here trains, serves or preprocesses: inputs are kept raw, as they were sent.

pub mod error;
pub mod feedback;
pub mod file;
pub mod held_out;
mod id;
mod pending;
pub mod replay;
mod retention;
pub mod store;

pub use error::SampleError;
pub use feedback::FeedbackService;
pub use file::{FileError, LabelledRows, RowLabel};
pub use id::SampleId;
pub use pending::Labelled;
pub use replay::{Replay, TrainingDraw};
pub use store::{Added, AddedMany, Counts, Limits, Sample, SampleStore};
