//! Tests of asynchronous tasks on a virtual clock.
//! What an update weighs is tested with the strategy.

use std::collections::BTreeMap;

use super::*;
use crate::rounds::state::{AssignmentId, TrainedUpdate, VersionRef};
use crate::rounds::step::{Event, admit, step};
use fedge_models::Digest;

fn spec(buffer: usize, more: &str) -> TaskSpec {
    let text = format!(
        "model = \"m\"\n[strategy]\nname = \"fedbuff\"\nbuffer_size = {buffer}\nmax_staleness = 1\n\
         [rounds]\ncount = 3\nmin_nodes = 1\ndeadline_s = 10\nevaluate_every = 0\n{more}"
    );
    TaskSpec::parse(&text).unwrap()
}

fn version(number: u64) -> VersionRef {
    VersionRef { number, digest: Digest::of(&number.to_le_bytes()) }
}

fn update() -> TrainedUpdate {
    TrainedUpdate {
        examples: 1,
        sha256: [1; 32],
        bytes: 4,
        steps: 1,
        loss_first: 2.0,
        loss_last: 1.0,
        duration_ms: 5,
        loss_base: None,
        partial: false,
        squared_norm: 1.0,
    }
}

struct Run {
    spec: TaskSpec,
    state: TaskState,
    effects: Vec<Effect>,
    available: BTreeSet<String>,
    now_ms: u64,
}

impl Run {
    fn new(spec: TaskSpec, nodes: &[&str]) -> Run {
        let available = nodes.iter().map(|n| (*n).to_owned()).collect();
        let state = TaskState::new("t".into(), version(1));
        let mut run = Run { spec, state, effects: vec![], available, now_ms: 0 };
        run.event(Event::Tick);
        run
    }

    fn event(&mut self, event: Event) {
        let view = View {
            now_ms: self.now_ms,
            available: &self.available,
            resting: &BTreeSet::new(),
            drifting: &BTreeMap::new(),
        };
        let (state, effects) = step(&self.spec, self.state.clone(), &event, view);
        self.state = state;
        self.effects.extend(effects);
    }

    fn assignment(&self, node: &str) -> AssignmentId {
        self.state.training_of(node).unwrap().0
    }

    fn train(&mut self, node: &str) {
        let id = self.assignment(node);
        self.event(Event::UpdateCommitted(id, update()));
    }

    fn mint(&mut self) {
        let next = version(self.state.base.number + 1);
        self.event(Event::Aggregated(next, None));
    }
}

#[test]
fn a_quick_node_trains_again_at_once_and_may_fill_the_buffer_alone() {
    let mut run = Run::new(spec(2, ""), &["quick", "slow"]);
    let first = run.assignment("quick");
    run.train("quick");
    assert_ne!(run.assignment("quick"), first);
    run.train("quick");
    let Some(Effect::Aggregate { accepted, .. }) = run.effects.last() else { panic!("{:?}", run.effects) };
    assert_eq!(accepted.len(), 2);
}

#[test]
fn what_was_begun_on_an_older_version_counts_in_the_next_buffer_until_it_is_too_stale() {
    let mut run = Run::new(spec(1, ""), &["quick", "slow", "slower"]);
    let (slow, slower) = (run.assignment("slow"), run.assignment("slower"));
    run.train("quick");
    assert_eq!(admit(&run.spec, &run.state, slow, None), Admission::Open, "also while the version is made");
    run.event(Event::UpdateCommitted(slow, update()));
    run.mint();
    let Some(Effect::Aggregate { accepted, .. }) = run.effects.last() else { panic!("{:?}", run.effects) };
    assert_eq!(accepted[..], [slow]);
    assert_eq!(staleness(&run.state, run.state.work(slow).unwrap()), 1);
    assert_eq!(admit(&run.spec, &run.state, slower, None), Admission::Stale(2), "it would count on version 3");
    run.now_ms += PAUSE_AFTER_FAILURE_MS;
    run.mint();
    assert_eq!(admit(&run.spec, &run.state, slower, None), Admission::Closed);
    assert_ne!(run.assignment("slower"), slower, "the node begins with the newest version instead");
}

#[test]
fn an_update_that_comes_while_a_version_is_made_is_one_version_older_when_it_counts() {
    let mut spec = spec(1, "");
    spec.strategy = crate::aggregate::strategies::StrategySpec::new(
        "fedbuff",
        toml::from_str("buffer_size = 1\nmax_staleness = 0\n").unwrap(),
    )
    .unwrap();
    let mut run = Run::new(spec, &["a", "b"]);
    let b = run.assignment("b");
    run.train("a");
    assert!(matches!(run.state.phase, Phase::Aggregating { .. }));
    // Taken, it would make the next buffer fail: no update of that age counts there.
    assert_eq!(admit(&run.spec, &run.state, b, None), Admission::Stale(1));
    run.event(Event::AggregationFailed("disk full".into()));
    assert_eq!(run.state.base.number, 1);
    run.now_ms += PAUSE_AFTER_FAILURE_MS;
    run.event(Event::Tick);
    assert_eq!(admit(&run.spec, &run.state, run.assignment("b"), None), Admission::Open);
}

#[test]
fn no_more_nodes_train_at_once_than_the_cohort_says() {
    let run = Run::new(spec(5, "cohort = 2\n"), &["a", "b", "c", "d"]);
    assert_eq!(run.state.assignments().count(), 2);
}

#[test]
fn an_assignment_that_is_overdue_or_declined_frees_its_node_after_a_pause() {
    let mut run = Run::new(spec(5, ""), &["a"]);
    let first = run.assignment("a");
    run.event(Event::Declined(first, "no samples".into()));
    assert!(run.state.training_of("a").is_none());
    run.now_ms = PAUSE_AFTER_FAILURE_MS;
    run.event(Event::Tick);
    let second = run.assignment("a");
    assert_ne!(second, first);
    run.now_ms += 10_000;
    run.event(Event::Tick);
    assert_ne!(run.assignment("a"), second);
    assert_eq!(admit(&run.spec, &run.state, second, None), Admission::Closed);
}

#[test]
fn the_task_ends_with_its_last_buffer_and_waits_for_nobody_then() {
    let mut run = Run::new(spec(1, ""), &["a", "b"]);
    for _ in 0..3 {
        run.train("a");
        run.mint();
    }
    assert!(matches!(run.state.phase, Phase::Ended { .. }), "{:?}", run.state.phase);
    assert!(run.state.assignments().next().is_none());
}
