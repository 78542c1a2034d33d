//! Contracts between rooms that no single crate can check.
//! Behaviour of running processes is tested in `e2e`.

// A test that can't go on fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod enrolment;
mod generated_code;
#[path = "../bench/model.rs"]
mod linear;
mod parties;
mod uploads;
#[path = "../bench/vector.rs"]
#[allow(dead_code)]
mod vector;
