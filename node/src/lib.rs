//! The edge: serves a quantized model, keeps samples, trains locally, takes part in rounds.
//! Aggregation and everything that decides about a fleet live in the coordinator.

pub mod calls;
pub mod centralized;
pub mod config;
pub mod doors;
pub mod drift;
pub mod federation;
mod http;
pub mod inference;
pub mod run;
pub mod samples;
pub mod server;
pub mod standalone;
pub mod status;
pub mod training;
