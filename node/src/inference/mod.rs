//! Serving: a package becomes a checked, warmed-up runner, which answers the Open Inference Protocol.
//! Nothing here trains, fetches packages or decides who may call.

mod check;
mod classification;
pub mod convert;
mod engine;
pub mod executor;
mod lowering;
mod measure;
pub mod prepare;
pub mod repository;
pub mod service;
pub mod serving;
#[cfg(test)]
pub(crate) mod test_fixtures;

pub use check::LocalCheck;
pub use engine::{EngineError, EngineReport};
pub use executor::{Executor, ExecutorError};
pub use measure::{Measurement, Runnable, on_threads};
pub use prepare::{PrepareError, PrepareOptions, prepare};
pub use repository::{LookupError, ModelRepository};
pub use service::{InferenceService, KeepPolicy, ServiceOptions, service};
pub use serving::{Answer, Precision, Serving};
