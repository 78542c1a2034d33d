//! Tests of `step`: rounds on a virtual clock, without a process or a file.
//! The driver's persistence is tested in `driver` and end to end.

use super::*;
use crate::rounds::state::AssignmentId;
use fedge_models::Digest;

fn spec(rounds: u64, min_nodes: usize) -> TaskSpec {
    TaskSpec::parse(&format!("model = \"m\"\n[rounds]\ncount = {rounds}\nmin_nodes = {min_nodes}\ndeadline_s = 10\n"))
        .unwrap()
}

fn names(nodes: &[&str]) -> BTreeSet<String> {
    nodes.iter().map(|n| (*n).to_owned()).collect()
}

fn version(number: u64) -> VersionRef {
    VersionRef { number, digest: Digest::of(&number.to_le_bytes()) }
}

fn update(examples: u64) -> TrainedUpdate {
    TrainedUpdate {
        examples,
        sha256: [examples as u8; 32],
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

/// Drives one task and remembers every effect.
struct Run {
    spec: TaskSpec,
    state: TaskState,
    effects: Vec<Effect>,
    available: BTreeSet<String>,
    resting: BTreeSet<String>,
    drifting: BTreeMap<String, u64>,
    now_ms: u64,
}

impl Run {
    fn new(spec: TaskSpec, nodes: &[&str]) -> Run {
        let state = TaskState::new("t1".into(), version(1));
        Run {
            spec,
            state,
            effects: vec![],
            available: names(nodes),
            resting: BTreeSet::new(),
            drifting: BTreeMap::new(),
            now_ms: 0,
        }
    }

    fn event(&mut self, event: Event) {
        let view =
            View { now_ms: self.now_ms, available: &self.available, resting: &self.resting, drifting: &self.drifting };
        let (state, effects) = step(&self.spec, self.state.clone(), &event, view);
        self.state = state;
        self.effects.extend(effects);
    }

    fn assignment(&self, node: &str) -> AssignmentId {
        let training = self.state.training_of(node).map(|(id, _)| id);
        training.or_else(|| self.state.evaluation_of(node)).unwrap()
    }

    fn train(&mut self, node: &str, examples: u64) {
        let id = self.assignment(node);
        self.event(Event::UpdateCommitted(id, update(examples)));
    }

    fn records(&self) -> Vec<&RoundRecord> {
        self.effects
            .iter()
            .filter_map(|e| match e {
                Effect::RecordRound(r) => Some(r),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn a_round_waits_for_the_minimum_then_trains_aggregates_evaluates_and_the_task_finishes() {
    let mut run = Run::new(spec(1, 2), &["a"]);
    run.event(Event::Tick);
    assert!(matches!(run.state.phase, Phase::Waiting { .. }));
    run.available = names(&["a", "b"]);
    run.event(Event::Tick);
    run.train("a", 3);
    assert!(run.effects.is_empty(), "waits for b");
    run.train("b", 5);
    let [Effect::Aggregate { accepted, base, .. }] = &run.effects[..] else { panic!("{:?}", run.effects) };
    assert_eq!(accepted.len(), 2);
    assert_eq!(base.number, 1);
    run.event(Event::Aggregated(version(2), None));
    let evaluation =
        Evaluation { examples: 4, correct_float: 4, correct_served: 3, loss: 0.1, precision: "int8".into() };
    let (a, b) = (run.assignment("a"), run.assignment("b"));
    run.event(Event::Evaluated(a, evaluation.clone()));
    run.event(Event::Evaluated(b, evaluation));
    assert_eq!(run.records()[0].outcome, RoundOutcome::Aggregated(version(2)));
    assert_eq!(run.state.phase, Phase::Ended { outcome: TaskOutcome::Finished });
    assert_eq!(run.effects.last(), Some(&Effect::Ended(TaskOutcome::Finished)));
}

#[test]
fn a_node_that_rests_gets_no_new_training_and_what_it_began_counts() {
    let spec = TaskSpec::parse("model = \"m\"\n[rounds]\ncount = 3\nmin_nodes = 2\nevaluate_every = 0\n").unwrap();
    let mut run = Run::new(spec, &["a", "b", "c"]);
    run.resting = names(&["b", "c"]);
    run.event(Event::Tick);
    assert!(matches!(run.state.phase, Phase::Waiting { .. }), "one of two");
    run.resting = names(&["c"]);
    run.event(Event::Tick);
    assert!(run.state.training_of("a").is_some() && run.state.training_of("c").is_none());
    run.resting = names(&["b", "c"]);
    run.train("a", 1);
    assert!(matches!(run.state.phase, Phase::Training { .. }), "b is waited for");
    run.train("b", 1);
    assert!(matches!(run.state.phase, Phase::Aggregating { .. }));
}

#[test]
fn a_task_that_waits_for_drift_begins_its_rounds_when_enough_nodes_report_it_of_the_newest_version() {
    let spec = TaskSpec::parse(
        "model = \"m\"\n[rounds]\ncount = 9\nmin_nodes = 2\nevaluate_every = 0\nstart = \"drift\"\ndrift_nodes = 2\n\
         drift_rounds = 2\n",
    );
    let mut run = Run::new(spec.unwrap(), &["a", "b"]);
    let waits = |run: &Run| matches!(run.state.phase, Phase::Waiting { .. });
    let round = |run: &mut Run, minted: u64| {
        run.train("a", 1);
        run.train("b", 1);
        run.event(Event::Aggregated(version(minted), None));
    };
    for drifting in [&[][..], &[("a", 1)], &[("a", 1), ("b", 0)]] {
        run.drifting = drifting.iter().map(|(node, number)| ((*node).to_owned(), *number)).collect();
        run.event(Event::Tick);
        assert!(waits(&run), "{drifting:?}");
    }
    run.drifting.insert("b".to_owned(), 1);
    // The nodes that would train are waited for as ever, and the drift is not forgotten.
    run.available = names(&["a"]);
    run.event(Event::Tick);
    assert!(waits(&run));
    run.available = names(&["a", "b"]);
    run.event(Event::Tick);
    round(&mut run, 2);
    assert!(!waits(&run), "the second round begins of itself");
    round(&mut run, 3);
    run.event(Event::Tick);
    assert!(waits(&run) && run.state.round == 2, "what was reported of version 1 asks for nothing more");
    run.drifting = [("a".to_owned(), 3), ("b".to_owned(), 3)].into();
    run.event(Event::Tick);
    assert_eq!((waits(&run), run.state.round), (false, 3));
}

#[test]
fn a_node_that_dies_is_not_waited_for_when_the_minimum_is_reached() {
    let mut run = Run::new(spec(1, 2), &["a", "b", "c"]);
    run.event(Event::Tick);
    run.train("a", 1);
    run.train("b", 1);
    assert!(run.effects.is_empty());
    run.available = names(&["a", "b"]);
    run.event(Event::Tick);
    assert!(matches!(run.effects[..], [Effect::Aggregate { .. }]));
}

#[test]
fn a_lost_node_that_returns_before_the_close_is_waited_for_again_and_counts() {
    let mut run = Run::new(spec(1, 2), &["a", "b"]);
    run.event(Event::Tick);
    let b = run.assignment("b");
    run.available = names(&["a"]);
    run.event(Event::Tick);
    run.train("a", 1);
    assert!(run.effects.is_empty(), "one update is below the minimum");
    assert_eq!(admit(&run.spec, &run.state, b, Some([9; 32])), Admission::Open);
    run.available = names(&["a", "b"]);
    run.event(Event::UpdateCommitted(b, update(2)));
    assert!(matches!(run.effects[..], [Effect::Aggregate { .. }]));
}

#[test]
fn below_its_minimum_a_round_fails_at_the_deadline_and_the_next_starts() {
    let mut run = Run::new(spec(2, 2), &["a", "b"]);
    run.event(Event::Tick);
    run.train("a", 1);
    run.now_ms = 10_000;
    run.event(Event::Tick);
    assert!(matches!(run.records()[0].outcome, RoundOutcome::Failed(_)));
    assert!(matches!(run.state.phase, Phase::Waiting { .. }), "a pause comes first");
    run.now_ms += PAUSE_AFTER_FAILURE_MS;
    run.event(Event::Tick);
    assert!(matches!(run.state.phase, Phase::Training { .. }));
    assert_eq!((run.state.round, run.state.base.number), (2, 1));
}

#[test]
fn an_update_counts_once_and_another_for_the_same_assignment_is_a_conflict() {
    let mut run = Run::new(spec(1, 2), &["a", "b"]);
    run.event(Event::Tick);
    let a = run.assignment("a");
    run.train("a", 7);
    assert_eq!(admit(&run.spec, &run.state, a, Some([7; 32])), Admission::Duplicate);
    assert_eq!(admit(&run.spec, &run.state, a, Some([8; 32])), Admission::Conflict);
    run.event(Event::UpdateCommitted(a, update(9)));
    run.train("b", 1);
    let Some(Effect::Aggregate { accepted, .. }) = run.effects.first() else { panic!() };
    assert_eq!(accepted.iter().filter(|id| **id == a).count(), 1);
    let Some(WorkStatus::Trained(kept)) = run.state.work(a).map(|w| &w.status) else { panic!() };
    assert_eq!(kept.examples, 7);
    let stranger = AssignmentId([1; 16]);
    assert_eq!(admit(&run.spec, &run.state, stranger, None), Admission::Closed);
}

#[test]
fn the_cohort_is_seeded_and_bounded() {
    let mut spec = spec(1, 2);
    spec.rounds.cohort = 3;
    let nodes: Vec<String> = (0..50).map(|i| format!("n{i:02}")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let cohort = |seed| {
        let mut spec = spec.clone();
        spec.rounds.seed = seed;
        let mut run = Run::new(spec, &nodes);
        run.event(Event::Tick);
        let Phase::Training { work, .. } = run.state.phase else { panic!() };
        work.values().map(|w| w.node.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(cohort(1).len(), 3);
    assert_eq!(cohort(1), cohort(1));
    assert_ne!(cohort(1), cohort(2));
}

#[test]
fn when_all_decline_the_round_fails_at_once_and_cancelling_ends_the_task() {
    let mut run = Run::new(spec(3, 1), &["a"]);
    run.event(Event::Tick);
    let a = run.assignment("a");
    run.event(Event::Declined(a, "no samples".into()));
    assert!(matches!(run.records()[0].outcome, RoundOutcome::Failed(_)));
    run.event(Event::Cancelled);
    assert_eq!(run.state.phase, Phase::Ended { outcome: TaskOutcome::Cancelled });
    run.event(Event::Tick);
    assert_eq!(run.state.phase, Phase::Ended { outcome: TaskOutcome::Cancelled });
}

#[test]
fn a_task_cancelled_during_evaluation_keeps_the_record_of_its_round() {
    let mut run = Run::new(spec(3, 1), &["a"]);
    run.event(Event::Tick);
    run.train("a", 1);
    run.event(Event::Aggregated(version(2), None));
    run.event(Event::Cancelled);
    assert_eq!(run.records()[0].outcome, RoundOutcome::Aggregated(version(2)));
    assert_eq!(run.effects.last(), Some(&Effect::Ended(TaskOutcome::Cancelled)));
}

#[test]
fn a_failed_aggregation_fails_the_round_and_keeps_the_base() {
    let mut run = Run::new(spec(1, 1), &["a"]);
    run.event(Event::Tick);
    run.train("a", 1);
    run.event(Event::AggregationFailed("overflow".into()));
    assert_eq!(run.records()[0].outcome, RoundOutcome::Failed("overflow".into()));
    assert_eq!(run.state.base, version(1));
}

#[test]
fn the_state_survives_its_own_serialisation() {
    let mut run = Run::new(spec(1, 1), &["a", "b"]);
    run.event(Event::Tick);
    run.train("a", 4);
    let text = serde_json::to_string(&run.state).unwrap();
    assert_eq!(serde_json::from_str::<TaskState>(&text).unwrap(), run.state);
}

#[test]
fn the_norm_of_an_update_survives_a_restart_to_its_last_bit() {
    // `serde_json` reads the first of these back as ...903.
    for norm in [0.022019386291503906, 0.1, f64::MAX, f64::MIN_POSITIVE, 0.0] {
        let stored = TrainedUpdate { squared_norm: norm, ..update(1) };
        let text = serde_json::to_string(&stored).unwrap();
        let read = serde_json::from_str::<TrainedUpdate>(&text).unwrap().squared_norm;
        assert_eq!(read.to_bits(), norm.to_bits(), "{text}");
    }
    // As it was stored before it was text.
    let text = serde_json::to_string(&update(1)).unwrap().replace("\"1\"", "0.25");
    assert_eq!(serde_json::from_str::<TrainedUpdate>(&text).unwrap().squared_norm, 0.25);
}

#[test]
fn an_over_selected_round_closes_with_the_wanted_number_and_records_the_rest_as_late() {
    let mut spec = spec(1, 2);
    spec.rounds.cohort = 2;
    spec.rounds.over_selection = 0.5;
    let mut run = Run::new(spec, &["a", "b", "c"]);
    run.event(Event::Tick);
    assert_eq!(run.state.cohort().unwrap().len(), 3);
    let c = run.assignment("c");
    run.train("a", 1);
    run.train("b", 1);
    assert!(matches!(run.effects[..], [Effect::Aggregate { .. }]));
    assert_eq!(admit(&run.spec, &run.state, c, None), Admission::Closed);
    run.event(Event::Aggregated(version(2), None));
    run.event(Event::Cancelled);
    assert_eq!(run.records()[0].work[&c].status, WorkStatus::Assigned);
}

#[test]
fn a_paused_task_finishes_its_round_and_begins_no_other_until_it_is_resumed() {
    let mut run = Run::new(spec(2, 1), &["a"]);
    run.event(Event::Tick);
    run.event(Event::Paused(true));
    run.train("a", 1);
    run.event(Event::AggregationFailed("x".into()));
    run.now_ms += PAUSE_AFTER_FAILURE_MS;
    run.event(Event::Tick);
    assert!(matches!(run.state.phase, Phase::Waiting { .. }));
    run.event(Event::Paused(false));
    assert!(matches!(run.state.phase, Phase::Training { .. }));
}

#[test]
fn evaluation_can_be_rarer_than_rounds_but_never_misses_the_last() {
    let mut spec = spec(3, 1);
    spec.rounds.evaluate_every = 2;
    let mut run = Run::new(spec, &["a"]);
    let mut evaluated = Vec::new();
    for round in 1..=3 {
        run.event(Event::Tick);
        run.train("a", 1);
        run.event(Event::Aggregated(version(round + 1), None));
        if let Some(id) = run.state.evaluation_of("a") {
            evaluated.push(round);
            run.event(Event::Declined(id, "nothing held out".into()));
        }
    }
    assert_eq!(evaluated, [2, 3]);
    assert_eq!(run.state.phase, Phase::Ended { outcome: TaskOutcome::Finished });
}
