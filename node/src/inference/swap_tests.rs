//! A thousand swaps under load: no request fails, and memory returns to its level. Long, so run by name:
//! `cargo test --release -p fedge-node --lib a_thousand_swaps -- --ignored --nocapture` (FEDGE_SWAPS sets another number).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::answer::Inference;
use super::keep::KeepPolicy;
use super::repository::ModelRepository;
use super::request::{InferRequest, InputData, InputTensor, RequestLimits};
use super::test_fixtures::{PIXELS, digits, package};
use super::{PrepareOptions, prepare};

/// Swaps after which memory is at its level.
const WARM_UP: usize = 50;
const CALLERS: usize = 32;
/// What the allocator may hold more of at one moment than at another with nothing more in use: 0.2 to 1.1 MiB were seen
/// (docs/benchmarks.md).
const FRAGMENTS_KIB: usize = 2048;

fn request() -> InferRequest {
    let data: Vec<u8> = (0..PIXELS).flat_map(|index| (index as f32 % 17.0).to_le_bytes()).collect();
    InferRequest {
        model: "digits".to_owned(),
        inputs: vec![InputTensor {
            name: "pixels".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 1, 8, 8],
            data: InputData::Raw(data.into()),
        }],
        ..InferRequest::default()
    }
}

/// Memory of the process's own. `VmRSS` counts pages of the program's code too, which come in when they are first run.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and measures the memory of its whole process: run it alone, by name"]
async fn a_thousand_swaps_under_load_fail_no_request_and_leave_no_memory_behind() {
    let swaps: usize = std::env::var("FEDGE_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let calibration: Vec<Vec<f32>> = digits()[..64].iter().map(|sample| sample.input.clone()).collect();
    let repository = Arc::new(ModelRepository::new());
    let inference = Inference::new(Arc::clone(&repository), None, KeepPolicy::Off, RequestLimits::default());
    let prepared = |number| prepare(package(number), calibration.clone(), &[], &PrepareOptions::default()).unwrap();
    repository.swap(prepared(1));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (inference, stop, answered) = (inference.clone(), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    inference.infer(request()).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut level = 0;
    for swap in 1..=swaps {
        let number = swap as u64 % 7 + 1;
        let next = tokio::task::spawn_blocking({
            let (package, calibration) = (package(number), calibration.clone());
            move || prepare(package, calibration, &[], &PrepareOptions::default()).unwrap()
        });
        repository.swap(next.await.unwrap());
        if swap == WARM_UP.min(swaps) {
            level = resident_kib();
        }
    }
    let end = resident_kib();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no request failed");
    }
    let answered = answered.load(Ordering::Relaxed);
    println!("{swaps} swaps, {answered} answers; {level} KiB after {WARM_UP} swaps, {end} KiB at the end");
    assert!(answered > swaps, "the load went on: {answered}");
    assert!(end <= level + FRAGMENTS_KIB, "{level} KiB after {WARM_UP} swaps, {end} KiB after {swaps}");
}
