//! Replays every kept seed through the code that fuzzing searches: what was found once stays mended.
//! `cargo test -p fedge-fuzz -- --ignored` writes the seeds that are made here again.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod seeds;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fedge_fuzz::guard::Panics;
use fedge_fuzz::{onnx, request, rest};

/// The panic hook belongs to the process: one target at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Panics of the target that runs, also those that it caught.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target)
}

/// Runs each seed of the target; a panic that counts, caught or not, fails with the seed's name.
fn replay(target: &str, counted: Panics, run: fn(&[u8])) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seeds: Vec<PathBuf> =
        std::fs::read_dir(folder(target)).expect("seeds").map(|entry| entry.expect("a seed").path()).collect();
    seeds.sort();
    assert!(seeds.len() >= 10, "{} seeds", seeds.len());
    let usual = take_hook();
    set_hook(Box::new(move |panic| {
        if counted.counts(panic) {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
        }
    }));
    let mut failed = Vec::new();
    for seed in &seeds {
        let bytes = std::fs::read(seed).expect("a seed");
        let escaped = catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err();
        let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
        if escaped || !panics.is_empty() {
            failed.push(format!("{}: {panics:?}", seed.display()));
        }
    }
    set_hook(usual);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn no_kept_request_is_the_nodes_fault() {
    replay("request", Panics::All, request::answer);
}

#[test]
fn no_kept_body_of_http_is_the_nodes_fault() {
    replay("rest", Panics::All, rest::answer);
}

#[test]
fn no_kept_file_panics_outside_of_tract() {
    replay("onnx", Panics::AllButTract, onnx::load);
}

#[test]
fn the_seeds_of_requests_reach_an_answer() {
    use fedge_fuzz::models::served;
    use fedge_node::inference::convert;
    use prost::Message;
    for (name, message) in seeds::requests() {
        let message = fedge_proto::inference::ModelInferRequest::decode(&*message).expect("a message");
        let request = convert::request(message).expect("a request");
        let answered = served().runtime.block_on(served().inference.infer(request));
        assert_eq!(answered.is_ok(), !name.starts_with("refused"), "{name}: {answered:?}");
    }
}

#[test]
fn the_seeds_that_are_made_lie_where_the_search_looks() {
    for (target, made) in [("request", seeds::requests()), ("rest", seeds::bodies()), ("onnx", seeds::files())] {
        for (name, bytes) in made {
            assert_eq!(
                std::fs::read(folder(target).join(&name)).ok(),
                Some(bytes),
                "{target}/{name}: write them again"
            );
        }
    }
}

#[test]
#[ignore = "writes the seeds; run it after a change of them"]
fn write_the_seeds() {
    for (target, made) in [("request", seeds::requests()), ("rest", seeds::bodies()), ("onnx", seeds::files())] {
        for (name, bytes) in made {
            std::fs::write(folder(target).join(name), bytes).expect("a file");
        }
    }
}
