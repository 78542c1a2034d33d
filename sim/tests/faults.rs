//! Rounds under faults: what must hold, over many seeds; what has to occur; and that planted bugs are found.
//! `FEDGE_SIM_SEEDS=100000` runs more seeds, `FEDGE_SIM_COVERAGE=1` prints what struck what.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fedge_sim::faults::invariants::Invariant;
use fedge_sim::faults::{Bug, command, run, sweep};

/// Seeds of the default run.
const SEEDS: u64 = 4_000;
/// Seeds within which a planted bug is found.
const BUDGET: u64 = 300;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[test]
fn whatever_goes_wrong_the_invariants_hold_and_everything_that_can_go_wrong_does() {
    let seeds = std::env::var("FEDGE_SIM_SEEDS").map_or(SEEDS, |text| text.parse().expect("FEDGE_SIM_SEEDS: a number"));
    let sweep = sweep(0..seeds, None, threads(), 5);
    if std::env::var_os("FEDGE_SIM_COVERAGE").is_some() {
        println!("{}", sweep.coverage.table());
    }
    assert!(sweep.violations.is_empty(), "\n{}", sweep.report(None));
    assert_eq!(sweep.seeds, seeds);
    // Fewer seeds than the default need not cover everything.
    if seeds >= SEEDS {
        let missing = sweep.coverage.missing();
        assert!(missing.is_empty(), "never occurred: {missing:?}");
    }
}

#[test]
fn a_seed_is_one_run_and_its_log_changes_nothing() {
    for seed in 0..20 {
        let (first, second) = (run(seed, None, false), run(seed, None, true));
        assert_eq!((first.hash, first.events, first.ended_ms), (second.hash, second.events, second.ended_ms));
        assert!(first.lines.is_empty() && !second.lines.is_empty());
    }
    let hashes: std::collections::BTreeSet<u64> = (0..20).map(|seed| run(seed, None, false).hash).collect();
    assert_eq!(hashes.len(), 20);
}

#[test]
fn every_planted_bug_is_found_by_the_invariant_that_it_breaks() {
    for (bug, invariant) in [
        (Bug::AcknowledgesBeforeRecording, Invariant::SavedBeforeSpoken),
        (Bug::FoldsTwice, Invariant::ReceiptsCountOnce),
        (Bug::LosesAResidual, Invariant::ResidualsAreConserved),
        (Bug::ReusesAnAssignment, Invariant::OneAnswer),
        (Bug::RoundClosesTwice, Invariant::RoundsCloseOnce),
        (Bug::ForgetsALateUpdate, Invariant::ReceiptsCountOnce),
        (Bug::ClockRunsBackward, Invariant::TimeRunsForward),
        (Bug::SkipsAFolderSync, Invariant::SavedBeforeSpoken),
    ] {
        let found =
            (0..BUDGET).find_map(|seed| run(seed, Some(bug), false).violation.map(|violation| (seed, violation)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} is not found within {BUDGET} seeds"));
        assert_eq!(violation.invariant, invariant, "{bug:?}: {violation}\n{}", command(seed, Some(bug)));
        println!("{bug:?}: seed {seed}, {violation}");
    }
}

#[test]
fn a_failing_seed_is_reported_with_the_command_that_shows_it() {
    let sweep = sweep(0..50, Some(Bug::SkipsAFolderSync), 1, 1);
    let seed = sweep.violations[0].0;
    let command =
        format!("cargo run --release -p fedge-sim --example faults -- --seed {seed} --bug SkipsAFolderSync --trace");
    assert!(sweep.report(Some(Bug::SkipsAFolderSync)).contains(&command));
    let shown = run(seed, Some(Bug::SkipsAFolderSync), true);
    assert!(shown.lines.last().unwrap().contains("VIOLATION SavedBeforeSpoken"));
}
