//! How a node takes part: enrolment and renewal of its identity, the work it is assigned, transfers.
//! Training itself lives in `training`, serving in `inference`.

pub mod convert;
pub mod driver;
pub mod enrol;
pub mod outbox;
pub mod participant;
pub mod renewal;
pub mod session;
pub mod versions;
pub mod work;
