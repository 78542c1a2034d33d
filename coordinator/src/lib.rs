//! The server: registry of nodes, rounds, aggregation, model versions, operators' interface.
//! It never sees a sample and never runs a model.

pub mod admin;
pub mod aggregate;
pub mod config;
pub mod init;
pub mod registry;
pub mod rounds;
pub mod server;
pub mod store;
