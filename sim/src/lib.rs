//! Many participants in one process on a virtual clock, driven by the coordinator's and the node's own logic.
//! Nothing is decided or computed here that they decide or compute themselves; no socket is opened.

pub mod experiment;
pub mod faults;
