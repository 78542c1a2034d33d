//! What bytes from outside run through: requests over gRPC and REST, and ONNX files. `src/bin` lets libFuzzer search in it;
//! `tests/kept.rs` replays what was found. How to run both is in README.md; nothing of the product lives here.

// What can't be made ends the search.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod guard;
pub mod models;
pub mod onnx;
pub mod request;
pub mod rest;
