//! The operators' interface: models, tasks and nodes over gRPC.
//! It checks and translates; rounds and the store do the work.

mod publish;
mod service;

pub use service::OperatorsService;
