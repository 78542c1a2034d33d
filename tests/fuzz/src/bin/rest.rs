//! libFuzzer on `fedge_fuzz::rest`. See README.md beside the seeds.

#![no_main]

use fedge_fuzz::guard::{Panics, end_at};

libfuzzer_sys::fuzz_target!(init: end_at(Panics::All), |bytes: &[u8]| fedge_fuzz::rest::answer(bytes));
