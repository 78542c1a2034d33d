//! A short soak: the benchmark's own checks hold for ten seconds of abuse, in plaintext and over mutual TLS.
//! What it does to a node is in `bench/soak`; docs/benchmarks.md has what the long one showed.

use std::process::Command;

use crate::harness::json;

fn soak(transport: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedge-bench-soak"));
    // How long good requests wait is for a quiet machine to say: here it is a bound for hangs.
    command.args(["--json", "--seconds", "10", "--abusers", "2", "--callers", "2", "--p99-ms", "5000"]).args(transport);
    let report = json(&mut command);
    assert!(report["good"]["answered"].as_u64() > Some(100), "{report}");
    let struck = report["abuse"].as_object().expect("kinds of abuse");
    assert!(struck.values().all(|count| count.as_u64() > Some(0)), "{report}");
}

#[test]
fn ten_seconds_of_abuse_leave_nothing_behind() {
    soak(&[]);
}

#[test]
fn ten_seconds_of_abuse_over_tls_leave_nothing_behind() {
    soak(&["--tls"]);
}
