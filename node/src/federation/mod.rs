//! How a node takes part: enrolment and renewal of its identity, the work it is assigned, transfers.
//! Training itself lives in `training`, serving in `inference`.

pub mod budget;
pub mod convert;
pub mod download;
pub mod driver;
pub mod edge;
pub mod encoding;
pub mod enrol;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod fake;
pub mod learner;
pub mod local_training;
pub mod memory;
pub mod outbox;
pub mod pacing;
pub mod participant;
pub mod record;
pub mod renewal;
pub mod session;
pub mod shelf;
pub mod upload;
pub mod versions;
pub mod work;
