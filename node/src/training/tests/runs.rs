//! Whole training runs: what they reach, that they repeat, stop and report.
//! Numbers of single steps are compared in `parity`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::build::{Attribute, Builder, numbers};
use super::digits::{digits, model};
use crate::training::{
    Dataset, Optimizer, Outcome, Plan, Resources, TrainingError, Watch, evaluate, train, train_watched,
};

pub(super) fn plan() -> Plan {
    Plan { optimizer: Optimizer::sgd(0.05, 0.9, 0.0), epochs: 8, batch_size: 32, seed: 5, ..Plan::default() }
}

fn quiet(model: &fedge_models::Model, data: &Dataset, plan: &Plan) -> Outcome {
    train(model, data, plan, &|_| (), &AtomicBool::new(false)).unwrap()
}

#[test]
fn training_on_real_digits_reaches_95_percent_on_digits_it_never_saw() {
    let (model, training, held_out) = (model(), digits(|row| row % 5 != 0), digits(|row| row % 5 == 0));
    let before = evaluate(&model, &held_out).unwrap();
    assert!(before.accuracy() < 0.3, "{before:?}");
    let outcome = quiet(&model, &training, &plan());
    assert_eq!(outcome.examples, training.len() as u64);
    assert_eq!(outcome.steps, 8 * training.len().div_ceil(32) as u64);
    assert!(outcome.loss_last < outcome.loss_first / 2.0, "{} {}", outcome.loss_first, outcome.loss_last);
    let after = evaluate(&model.with_weights(&outcome.weights).unwrap(), &held_out).unwrap();
    println!("held out: {before:?} -> {after:?}");
    assert!(after.accuracy() >= 0.95, "{after:?}");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let (model, data) = (model(), digits(|row| row < 300));
    let run = |seed, threads| {
        quiet(
            &model,
            &data,
            &Plan { seed, resources: Resources { threads, ..Resources::default() }, epochs: 2, ..plan() },
        )
        .weights
    };
    assert_eq!(run(1, 1).values(), run(1, 1).values());
    assert_eq!(run(1, 2).values(), run(1, 2).values());
    assert_ne!(run(1, 1).values(), run(2, 1).values());
}

#[test]
fn the_last_partial_batch_is_trained_on_too() {
    let (model, data) = (model(), digits(|row| row < 33));
    let steps = AtomicU64::new(0);
    let report = |progress: crate::training::Progress| {
        assert_eq!((progress.epochs, progress.steps), (1, 2));
        steps.store(progress.step, Ordering::Relaxed);
    };
    let outcome = train(&model, &data, &Plan { epochs: 1, ..plan() }, &report, &AtomicBool::new(false)).unwrap();
    assert_eq!((outcome.steps, steps.into_inner()), (2, 2));
    // A batch larger than the data is one batch.
    assert_eq!(quiet(&model, &data, &Plan { epochs: 1, batch_size: 1000, ..plan() }).steps, 1);
}

#[test]
fn a_strong_proximal_term_keeps_the_weights_near_their_start() {
    let (model, data) = (model(), digits(|row| row < 200));
    let distance = |proximal_mu| {
        let optimizer = Optimizer::sgd(0.05, 0.0, 0.0);
        let outcome = quiet(&model, &data, &Plan { proximal_mu, optimizer, epochs: 3, ..plan() });
        let start = model.weights();
        outcome.weights.values().iter().zip(start.values()).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
    };
    assert!(distance(5.0) < 0.5 * distance(0.0));
}

#[test]
fn cancelling_stops_before_the_next_step() {
    let (model, data) = (model(), digits(|row| row < 320));
    let cancel = AtomicBool::new(false);
    let report = |progress: crate::training::Progress| {
        if progress.step == 3 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let error = train(&model, &data, &plan(), &report, &cancel).unwrap_err();
    assert!(matches!(error, TrainingError::Cancelled { steps: 3 }), "{error}");
}

#[test]
fn a_run_that_has_enough_ends_with_what_it_has_and_at_least_one_step() {
    let (model, data) = (model(), digits(|row| row < 320));
    let until = |steps: u64| {
        let asked = AtomicU64::new(0);
        let enough = || asked.fetch_add(1, Ordering::Relaxed) >= steps;
        train_watched(
            model.clone(),
            &data,
            &plan(),
            Watch { progress: &|_| (), cancel: &AtomicBool::new(false), enough: &enough, held_out: None },
        )
        .unwrap()
    };
    let (none, three, epoch) = (until(0), until(3), until(10));
    assert_eq!((none.steps, none.partial, three.steps, three.partial), (1, true, 3, true));
    assert_eq!((three.examples, three.loss_first), (320, three.loss_last));
    assert_ne!(none.weights, three.weights);
    // Ten steps are an epoch: where the second did not begin, the loss is the first one's.
    let whole = quiet(&model, &data, &Plan { epochs: 1, ..plan() });
    assert_eq!((epoch.weights, epoch.loss_last), (whole.weights, whole.loss_last));
    assert!(epoch.partial && !whole.partial, "of eight epochs, and of one");
}

#[test]
fn a_step_with_a_correction_moves_by_the_learning_rate_times_the_correction_more() {
    let (model, data) = (model(), digits(|row| row < 32));
    let optimizer = Optimizer::sgd(0.5, 0.0, 0.0);
    let plan = Plan { optimizer, epochs: 1, ..plan() };
    let correction: Vec<f32> = (0..model.layout().exchanged_len()).map(|index| (index % 7) as f32 - 3.0).collect();
    let plain = quiet(&model, &data, &plan).weights;
    let corrected = quiet(&model, &data, &Plan { correction: Some(correction.clone().into()), ..plan.clone() }).weights;
    for ((plain, corrected), correction) in plain.values().iter().zip(corrected.values()).zip(correction) {
        assert!((plain - 0.5 * correction - corrected).abs() < 1e-5, "{plain} {correction} {corrected}");
    }
    let short = Plan { correction: Some([0.0].into()), ..plan };
    let error = train(&model, &data, &short, &|_| (), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("correction") && error.contains("11482"), "{error}");
}

#[test]
fn a_run_that_diverges_says_so_and_names_the_step() {
    let (model, data) = (model(), digits(|row| row < 320));
    let optimizer = Optimizer::sgd(1e30, 0.0, 0.0);
    let error = train(&model, &data, &Plan { optimizer, ..plan() }, &|_| (), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, TrainingError::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("lower the learning rate"), "{error}");
}

#[test]
fn a_panic_in_the_callers_progress_is_an_error_and_training_works_again() {
    let (model, data) = (model(), digits(|row| row < 40));
    let error = train(&model, &data, &plan(), &|_| panic!("callback"), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(&error, TrainingError::Panicked { message } if message == "callback"), "{error}");
    quiet(&model, &data, &Plan { epochs: 1, ..plan() });
}

#[test]
fn training_updates_running_statistics_as_pytorch_does_and_evaluation_leaves_them() {
    let model = Builder::new(17, &[2])
        .floats("scale", &[2], vec![1.0, 2.0])
        .floats("bias", &[2], vec![0.0, 1.0])
        .floats("mean", &[2], vec![10.0, 0.0])
        .floats("variance", &[2], vec![4.0, 1.0])
        .node_with("BatchNormalization", "x scale bias mean variance", "y", &[("momentum", Attribute::Float(0.9))])
        .model("y");
    let inputs = vec![1.0, 5.0, 2.0, 5.0, 3.0, 8.0];
    let data = Dataset::new(inputs, vec![0, 1, 1], vec![2]).unwrap();
    let outcome = quiet(&model, &data, &Plan { epochs: 1, ..plan() });
    let near = |name: &str, expected: [f32; 2]| {
        let found = outcome.weights.tensor(name).unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {found:?}");
    };
    // Means 2 and 6; unbiased variances 1 and 3; a tenth of the way.
    near("mean", [0.9 * 10.0 + 0.1 * 2.0, 0.1 * 6.0]);
    near("variance", [0.9 * 4.0 + 0.1, 0.9 + 0.1 * 3.0]);
    assert_ne!(outcome.weights.tensor("scale"), model.weights().tensor("scale"));
    evaluate(&model, &data).unwrap();
}

#[test]
fn a_final_softmax_is_left_out_of_training() {
    let logits = || Builder::new(17, &[3]).parameter("w", &[3, 4]).node("MatMul", "x w", "logits");
    let data = Dataset::new(numbers(1, 30), (0..10).map(|n| n % 4).collect(), vec![3]).unwrap();
    let expected = quiet(&logits().model("logits"), &data, &plan());
    for operator in ["Softmax", "LogSoftmax"] {
        let model = logits().node_with(operator, "logits", "p", &[("axis", Attribute::Int(-1))]).model("p");
        let found = quiet(&model, &data, &plan());
        assert_eq!(found.weights.values(), expected.weights.values(), "{operator}");
    }
}

/// `cargo test --release -p fedge-node step_time -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check"]
fn step_time_of_the_demo_model() {
    let (model, data) = (model(), digits(|row| row < 1600));
    for threads in [1, 2] {
        let start = std::time::Instant::now();
        let outcome = quiet(
            &model,
            &data,
            &Plan { epochs: 20, resources: Resources { threads, ..Resources::default() }, ..plan() },
        );
        let step = start.elapsed().as_secs_f64() * 1e3 / outcome.steps as f64;
        println!("{threads} thread(s): {step:.3} ms a step over {} steps", outcome.steps);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!(
        "{}",
        status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS")).collect::<String>()
    );
}
