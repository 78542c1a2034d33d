//! Serving: a package becomes a checked, warmed-up runner, which answers the Open Inference Protocol.
//! Nothing here trains, fetches packages or decides who may call.

pub mod answer;
pub mod batching;
mod check;
mod classification;
pub mod convert;
pub mod describe;
mod engine;
pub mod executor;
pub mod health;
pub mod keep;
pub mod library;
mod lowering;
mod measure;
pub mod metrics;
pub mod prepare;
mod queue;
pub mod repository;
pub mod request;
pub mod rest;
pub mod service;
pub mod serving;
pub mod statistics;
#[cfg(test)]
mod swap_tests;
mod tensor_engine;
#[cfg(test)]
pub(crate) mod test_fixtures;
pub mod version_policy;

pub use answer::Inference;
pub use batching::BatchingOptions;
pub use check::LocalCheck;
pub use engine::{EngineError, EngineReport};
pub use executor::{Executor, ExecutorError, ExecutorOptions};
pub use keep::KeepPolicy;
pub use library::{Library, LibraryOptions};
pub use measure::{Measurement, Runnable, on_threads};
pub use prepare::{PrepareError, PrepareOptions, prepare};
pub use repository::{LookupError, ModelOptions, ModelRepository};
pub use request::RequestLimits;
pub use service::{InferenceService, ServiceOptions, service};
pub use serving::{Answer, Precision, Serving};
pub use version_policy::VersionPolicy;
