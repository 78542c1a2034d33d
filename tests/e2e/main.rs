//! End to end: real processes, real TLS, real data; the program is driven by the commands that people type.
//! Contracts that need no process are in `contract`; single rooms are tested in their crates.

// A test that can't go on fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod bad_input;
mod budget;
mod clients;
mod disk;
mod drift;
mod harness;
mod identities;
mod kills;
#[path = "../bench/model.rs"]
mod linear;
mod partial;
mod rest_tls;
mod rounds;
mod simulate;
mod soak;
mod standalone;
mod strategies;
#[path = "../bench/vector.rs"]
#[allow(dead_code)]
mod vector;
