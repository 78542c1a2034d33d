//! Whole experiments: what they reach, that they repeat bit for bit, what befalls nodes, and how they end.

use std::path::{Path, PathBuf};

use fedge_models::Preprocessing;

use super::population::{Partition, Recipe};
use super::split::{Split, TestPart};
use super::*;

static GO: AtomicBool = AtomicBool::new(false);

fn zoo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo").join(name)
}

fn digits(split: Split, nodes: usize, task: &str) -> Experiment {
    let model = Model::from_path(&zoo("digits_cnn.onnx")).unwrap();
    let recipe = Recipe {
        data: zoo("digits.csv"),
        partition: Partition::Dealt { split, nodes },
        test: None,
        test_part: TestPart::Share(0.2),
        held_out: 0.1,
        labels: Vec::new(),
        preprocessing: Preprocessing { scale: 0.0625, ..Preprocessing::default() },
        seed: 1,
    };
    Experiment {
        task: TaskSpec::parse(task).unwrap(),
        population: Population::load(&recipe, &model).unwrap(),
        model,
        systems: Systems::default(),
        trainer: Trainer::Real,
        evaluators: 4,
        test_every: 1,
        seed: 1,
        threads: 2,
    }
}

fn run(experiment: &Experiment) -> Finished {
    experiment.run(&mut |_| {}, &GO).unwrap()
}

const TASK: &str = "model = \"digits\"\n[rounds]\ncount = 8\n[training]\nepochs = 5\nlearning_rate = 0.05\n";

#[test]
fn ten_nodes_with_uneven_digits_learn_them_to_more_than_95_percent() {
    let mut told = Vec::new();
    let experiment = digits(Split::Dirichlet(0.5), 10, TASK);
    let observer = &mut |news: News<'_>| {
        if let News::Round(round) = news {
            told.push(round.clone());
        }
    };
    let finished = experiment.run(observer, &GO).unwrap();
    assert_eq!(told, finished.rounds);
    assert_eq!(finished.rounds.iter().map(|r| r.round).collect::<Vec<_>>(), (0..=8).collect::<Vec<_>>());
    let (first, last) = (finished.rounds[0].test.unwrap(), finished.rounds[8].test.unwrap());
    assert!(first.accuracy() < 0.3, "{first:?}");
    assert!(last.accuracy() > 0.95, "{last:?}");
    let round = &finished.rounds[8];
    assert_eq!((round.selected, round.trained, round.dropped, round.version), (10, 10, 0, 9));
    assert_eq!(round.bytes_up, 10 * 4 * 11_482);
    let size = experiment.model.bytes().len() as u64;
    // In the first round all ten fetch version 1; in each, four evaluate and fetch the new one early.
    assert_eq!(finished.rounds[1].bytes_down, (10 + 4) * size);
    assert_eq!(finished.rounds[2].bytes_down, (6 + 4) * size);
    assert!(round.held_out.unwrap().accuracy() > 0.9, "{round:?}");
    assert!(!finished.stopped);
}

#[test]
fn what_is_not_trained_does_not_travel_and_stays_as_it_was() {
    for strategy in ["\"fedavg\"", "\"scaffold\"", "\"fedadam\""] {
        let task = format!(
            "model = \"digits\"\nstrategy = {strategy}\n[rounds]\ncount = 2\n[training]\nepochs = 2\nmomentum = 0.0\n\
             learning_rate = 0.05\ntrained = [\"fc*\"]\n"
        );
        let experiment = digits(Split::Iid, 3, &task);
        let finished = run(&experiment);
        let (before, after) = (experiment.model.weights(), finished.model.weights());
        let mut moved = 0;
        for (spec, range) in experiment.model.layout().exchanged() {
            let same = before.values()[range.clone()] == after.values()[range.clone()];
            assert_ne!(same, spec.name.starts_with("fc"), "{strategy}: {}", spec.name);
            moved += if same { 0 } else { range.len() as u64 };
        }
        assert_eq!((finished.rounds[2].trained, finished.rounds[2].bytes_up), (3, 3 * 4 * moved), "{strategy}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads_and_another_seed_others() {
    let task = "model = \"digits\"\n[rounds]\ncount = 3\ncohort = 6\n[training]\nepochs = 2\nlearning_rate = 0.05\n";
    let result = |threads, seed| {
        let systems = Systems { speed_sigma: 1.0, dropouts: 0.2, ..Systems::default() };
        let experiment = Experiment { threads, seed, systems, ..digits(Split::Classes(3), 12, task) };
        let finished = run(&experiment);
        (finished.model.digest(), finished.rounds)
    };
    let one = result(1, 1);
    assert_eq!(one, result(2, 1));
    assert_eq!(one, result(7, 1));
    assert_ne!(one, result(2, 2));
}

#[test]
fn vanished_nodes_are_not_waited_for_and_stragglers_are_until_the_deadline() {
    let task = "model = \"digits\"\n[rounds]\ncount = 2\ndeadline_s = 100\n[training]\nepochs = 3\n";
    let vanishing = Systems { dropouts: 0.3, ..Systems::default() };
    let finished = run(&Experiment { systems: vanishing, ..digits(Split::Iid, 10, task) });
    let round = &finished.rounds[1];
    assert_eq!((round.trained, round.dropped), (7, 3));
    assert!(round.duration_ms < 20_000, "{round:?}");
    assert_eq!(finished.rounds[2].selected, 10, "they are back for the next round");
    let straggling = Systems { stragglers: 0.5, ..Systems::default() };
    let finished = run(&Experiment { systems: straggling, ..digits(Split::Iid, 10, task) });
    let round = &finished.rounds[1];
    assert_eq!((round.trained, round.dropped), (5, 5));
    assert!((100_000..110_000).contains(&round.duration_ms), "{round:?}");
}

#[test]
fn a_strategy_that_takes_partial_work_has_it_just_before_the_deadline() {
    let task =
        "model = \"digits\"\nstrategy = \"fedprox\"\n[rounds]\ncount = 1\ndeadline_s = 100\n[training]\nepochs = 4\n";
    let systems = Systems { stragglers: 0.5, ..Systems::default() };
    let round = &run(&Experiment { systems, ..digits(Split::Iid, 10, task) }).rounds[1];
    assert_eq!((round.trained, round.partial, round.dropped), (10, 5, 0));
    assert!(round.duration_ms >= 99_999);
}

#[test]
fn over_selection_closes_the_round_with_the_first_updates() {
    let task = "model = \"digits\"\n[rounds]\ncount = 2\ncohort = 5\nover_selection = 0.6\nevaluate_every = 2\n";
    let systems = Systems { speed_sigma: 1.0, ..Systems::default() };
    let finished = run(&Experiment { systems, ..digits(Split::Iid, 10, task) });
    let round = &finished.rounds[1];
    assert_eq!((round.selected, round.trained, round.dropped), (8, 5, 3));
    assert!(round.held_out.is_none() && finished.rounds[2].held_out.is_some());
}

#[test]
fn every_strategy_learns_on_virtual_nodes() {
    for (strategy, training) in [
        ("\"fedavgm\"", ""),
        ("\"fednova\"", ""),
        ("\"scaffold\"", "momentum = 0.0\n"),
        ("\"q-fedavg\"", "momentum = 0.0\n"),
        ("{ name = \"fedadam\", server_learning_rate = 0.02 }", ""),
        ("{ name = \"fedbuff\", buffer_size = 4 }", ""),
    ] {
        let task = format!(
            "model = \"digits\"\nstrategy = {strategy}\n[rounds]\ncount = 6\n[training]\nepochs = 5\n{training}learning_rate = 0.05\n"
        );
        let systems = Systems { speed_sigma: 0.5, ..Systems::default() };
        let experiment = Experiment { systems, ..digits(Split::Iid, 6, &task) };
        let finished = run(&experiment);
        assert_eq!(finished.rounds[6].failure, None, "{strategy}");
        let accuracy = finished.rounds[6].test.unwrap().accuracy();
        // The slowest of them, q-FedAvg, is at 54 %; the model begins at 10 %.
        assert!(accuracy > 0.45, "{strategy}: {accuracy}");
        let again = run(&Experiment { threads: 1, ..experiment });
        assert_eq!(again.model.digest(), finished.model.digest(), "{strategy}");
    }
}

#[test]
fn small_encodings_save_bytes_and_error_feedback_makes_up_for_what_they_lose() {
    let result = |updates: &str| {
        let task = format!("{TASK}[updates]\n{updates}\n");
        let finished = run(&digits(Split::Iid, 5, &task));
        // What it reached: at this rate single rounds fall by ten points and come back, whatever the encoding.
        let reached = finished.rounds.iter().map(|round| round.test.unwrap().accuracy()).fold(0.0, f64::max);
        (reached, finished.rounds[8].bytes_up)
    };
    let (plain, bytes) = result("encoding = \"f32\"");
    for (updates, share) in
        [("encoding = \"f16\"", 0.51), ("encoding = \"int8\"", 0.27), ("encoding = \"int8\"\nzstd = true", 0.26)]
    {
        let (accuracy, small) = result(updates);
        assert!((small as f64) < share * bytes as f64, "{updates}: {small} of {bytes}");
        assert!((accuracy - plain).abs() < 0.02, "{updates}: {accuracy} {plain}");
    }
    let (accuracy, small) = result("encoding = \"top_k\"\ntop_k = 0.1");
    assert!(accuracy > 0.8 && small < bytes / 4, "{accuracy} {small}");
}

#[test]
fn a_round_with_too_few_updates_fails_and_the_next_one_goes_on() {
    let task = "model = \"digits\"\n[rounds]\ncount = 2\nmin_nodes = 8\ndeadline_s = 60\n";
    let systems = Systems { stragglers: 0.5, ..Systems::default() };
    let finished = run(&Experiment { systems, ..digits(Split::Iid, 10, task) });
    assert!(finished.rounds[1].failure.as_ref().unwrap().contains("5 of at least 8"), "{:?}", finished.rounds[1]);
    assert_eq!((finished.rounds[2].version, finished.rounds.len()), (1, 3));
    assert_eq!(finished.model.digest(), digits(Split::Iid, 10, task).model.digest());
}

#[test]
fn a_training_that_diverges_is_declined_with_its_reason() {
    let task = "model = \"digits\"\n[rounds]\ncount = 1\n[training]\nlearning_rate = 100.0\nepochs = 3\n";
    let finished = run(&digits(Split::Iid, 3, task));
    assert_eq!(finished.rounds[1].trained, 0);
    assert!(finished.rounds[1].declined.as_ref().unwrap().contains("diverged"), "{:?}", finished.rounds[1]);
}

#[test]
fn a_stop_ends_it_with_what_there_is() {
    let experiment = digits(Split::Iid, 4, TASK);
    let stop = AtomicBool::new(false);
    let observer = &mut |news: News<'_>| {
        if matches!(news, News::Round(Round { round: 2, .. })) {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let finished = experiment.run(observer, &stop).unwrap();
    assert!(finished.stopped);
    assert_eq!(finished.rounds.len(), 3);
    assert_ne!(finished.model.digest(), experiment.model.digest());
}

#[test]
fn thousands_of_nodes_with_fixed_vectors_are_the_engines_work_alone() {
    let task = "model = \"digits\"\n[rounds]\ncount = 5\ncohort = 500\n";
    let experiment = Experiment {
        population: Population::without_data(20_000, 10).unwrap(),
        trainer: Trainer::FixedVector,
        ..digits(Split::Iid, 2, task)
    };
    let finished = run(&experiment);
    assert_eq!(finished.rounds[5].trained, 500);
    assert_eq!(finished.rounds[5].test, None);
    assert_eq!(finished.model.digest(), run(&experiment).model.digest());
    assert_ne!(finished.model.digest(), experiment.model.digest());
}

#[test]
fn what_can_not_run_is_refused_before_it_runs() {
    let refused = |experiment: Experiment| experiment.run(&mut |_| {}, &GO).unwrap_err().to_string();
    let task = "model = \"digits\"\n[rounds]\nmin_nodes = 5\n";
    assert!(refused(digits(Split::Iid, 4, task)).contains("rounds.min_nodes = 5, but 4 of the 4 nodes"));
    let population = Population::without_data(5, 1).unwrap();
    assert!(refused(Experiment { population, ..digits(Split::Iid, 4, TASK) }).contains("need data"));
    assert!(refused(Experiment { threads: 0, ..digits(Split::Iid, 4, TASK) }).contains("0 threads"));
    let systems = Systems { dropouts: 2.0, ..Systems::default() };
    assert!(refused(Experiment { systems, ..digits(Split::Iid, 4, TASK) }).contains("dropouts"));
    let model = Model::from_path(&zoo("untrainable.onnx")).unwrap();
    assert!(refused(Experiment { model, ..digits(Split::Iid, 4, TASK) }).contains("can't be trained"));
}
