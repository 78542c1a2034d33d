//! Tests of training as a whole, on real digits and on small graphs built by hand.
//! Tests of one file's functions are at the end of that file.

mod bounds;
mod build;
mod cases;
mod digits;
#[cfg(feature = "wgpu")]
mod gpu;
mod integers;
mod more_cases;
mod operators;
mod parity;
mod refusals;
mod runs;
