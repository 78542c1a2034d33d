//! Rounds: what a task is, how it goes on (`step` decides, `driver` persists and acts), what the wire says of it.
//! The arithmetic of aggregation lives in `aggregate`, durable state in `store`.

mod asynchronous;
pub mod board;
pub mod convert;
pub mod driver;
pub mod federation;
pub mod running;
mod selection;
pub mod state;
mod status;
pub mod step;
pub mod task;
pub mod upload;
