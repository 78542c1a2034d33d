//! Rounds: what a task is, how it goes on (`step` decides, `driver` persists and acts), what the wire says of it.
//! The arithmetic of aggregation lives in `aggregate`, durable state in `store`.

pub mod answers;
mod asynchronous;
pub mod base;
pub mod board;
pub mod convert;
mod delta;
pub mod download;
pub mod driver;
pub mod federation;
pub mod fold;
pub mod mint;
pub mod operations;
mod receive;
pub mod refusal;
pub mod running;
mod selection;
pub mod state;
mod status;
pub mod step;
pub mod task;
pub mod training;
pub mod upload;
