//! One training on this device: from a model and samples to what is sent and what stays; held back by a budget, and judged.
//! Where model and samples come from is `edge`'s; the arithmetic is `training`'s.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fedge_models::{Exchange, Layout, Model, ModelError, ParameterClass};

use super::budget::Budget;
use super::learner::{Run, Trained};
use super::memory::Own;
use super::outbox::Metrics;
use super::pacing::Pace;
use crate::training::{self, Dataset, Evaluation, Loss, Objective, Plan, Watch};

/// Below this cross-entropy, in nats, a model is sure of itself, and multiples of its loss mean little; and below this
/// loss of other kinds, whose targets here are class indices or rows of one 1.
const SURE: f32 = 0.3;
const CLOSE: f32 = 0.01;
/// So often is looked whether training has to rest.
const LOOK: Duration = Duration::from_secs(5);
/// A rest is slept in pieces, after each of which is looked whether the work was given up.
const NAP: Duration = Duration::from_millis(50);

/// What is looked at while and after a training.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// When, and how hard, the device may train.
    pub budget: Budget,
    /// The held-out samples, and the largest loss on them, in multiples of the base's, that may be sent.
    pub judge: Option<(Dataset, f32)>,
}

/// Trains a model, whose file is `base`, on samples that are preprocessed, off the executor: what a node does, and what a
/// simulated one does. The model is given up as soon as training does not need it: a large one is then in memory as its
/// parameters alone.
///
/// # Errors
/// A sentence for the coordinator and the log: also where the device has to rest and partial work is of no use, and where
/// the trained model is worse than the guard allows.
pub fn train(model: Model, base: impl Read, data: &Dataset, run: &Run, guard: &Guard) -> Result<Trained, String> {
    let started = Instant::now();
    let model = match &run.own {
        Some(own) => {
            let with = own.put_into(&model).map_err(|e| e.to_string())?;
            drop(model);
            with
        }
        None => model,
    };
    let places = model.places().clone();
    let travels = places.exchanging(&run.plan.exchange()).map_err(|e| e.to_string())?;
    let travels = travels.layout();
    let mut plan = run.plan.clone();
    if let Some(correction) = &plan.correction {
        if correction.len() != travels.exchanged_len() {
            let (got, expected) = (correction.len(), travels.exchanged_len());
            return Err(format!("the task's control variate has {got} values; {expected} parameters travel in it"));
        }
        let mut whole = vec![0.0; places.layout().exchanged_len()];
        places.layout().scatter(travels, correction, &mut whole);
        plan.correction = Some(whole.into());
    }
    let loss_base = match run.loss_base {
        true => {
            let Plan { objective, resources, .. } = &run.plan;
            Some(training::evaluate_by(&model, data, objective, resources.device).map_err(|e| e.to_string())?.loss)
        }
        false => None,
    };
    let pacing = Pacing::new(run, &guard.budget);
    let held_out = guard.judge.as_ref().map(|(samples, _)| samples);
    let watch = Watch { progress: &|_| {}, cancel: &run.cancel, enough: &|| pacing.enough(), held_out };
    let outcome = training::train_watched(model, data, &plan, watch).map_err(|e| e.to_string())?;
    if let Some(reason) = pacing.rests.get().filter(|_| run.until.is_none()) {
        return Err(rests(reason));
    }
    if let (Some((_, worst)), Some((before, after))) = (&guard.judge, outcome.held_out)
        && let Some(problem) = worse(&plan.objective, before, after, *worst)
    {
        return Err(problem);
    }
    let mut delta = outcome.weights.into_values();
    let own = own(places.layout(), &run.plan.exchange(), &delta)?;
    let subtract = |first: usize, base: &[f32]| {
        let values = delta.get_mut(first..).unwrap_or_default();
        values.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
        Ok::<_, ModelError>(())
    };
    places.for_each_piece(base, subtract).map_err(|e| e.to_string())?;
    places.layout().gather(travels, &mut delta);
    let exchanged = || travels.exchanged();
    let statistics = exchanged().filter(|(spec, _)| spec.class == ParameterClass::Statistic);
    Ok(Trained {
        delta,
        tensors: exchanged().map(|(_, range)| range.len()).collect(),
        statistics: statistics.map(|(_, range)| range).collect(),
        examples: outcome.examples,
        own,
        metrics: Metrics {
            steps: outcome.steps,
            loss_first: outcome.loss_first,
            loss_last: outcome.loss_last,
            loss_base,
            partial: outcome.partial,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
    })
}

/// The trained values of what stays here; none where all that is trained travels.
fn own(layout: &Layout, exchange: &Exchange, values: &[f32]) -> Result<Option<Own>, String> {
    let staying = layout.staying(exchange).map_err(|e| e.to_string())?;
    if staying.exchanged_len() == 0 {
        return Ok(None);
    }
    let mut values = values.to_vec();
    layout.gather(&staying, &mut values);
    Ok(Some(Own { names: staying.exchanged().map(|(spec, _)| spec.name.clone()).collect(), values }))
}

/// What the coordinator is told of a device that rests.
pub(super) fn rests(reason: &str) -> String {
    format!("this device does not train now: {reason}")
}

/// Why a trained model is not to be used.
fn worse(objective: &Objective, before: Evaluation, after: Evaluation, worst: f32) -> Option<String> {
    let entropy = matches!(objective.loss, Loss::CrossEntropy | Loss::BinaryCrossEntropy);
    let least = if entropy { SURE } else { CLOSE };
    // Negated, so that a loss that is no number is worse.
    let fine = after.loss <= before.loss.max(least) * worst;
    (!fine).then(|| {
        format!(
            "training made the model worse on {} held-out samples: their loss went from {:.4} to {:.4}, allowed is {worst} times \
             the first (training.worst_loss)",
            after.examples, before.loss, after.loss
        )
    })
}

/// Holds a training back between its steps, and ends it in time.
struct Pacing<'a> {
    budget: &'a Budget,
    cancel: &'a AtomicBool,
    until: Option<Instant>,
    pace: Mutex<(Option<Pace>, Steps)>,
    /// Why it had to end before the plan did.
    rests: OnceLock<String>,
}

/// When the step that runs began, and when was looked last whether training has to rest.
struct Steps {
    began: Option<Instant>,
    looked: Option<Instant>,
}

impl<'a> Pacing<'a> {
    fn new(run: &'a Run, budget: &'a Budget) -> Pacing<'a> {
        let steps = Steps { began: None, looked: None };
        let pace = Mutex::new((run.until.map(Pace::new), steps));
        Pacing { budget, cancel: &run.cancel, until: run.until, pace, rests: OnceLock::new() }
    }

    /// Asked before each step: rests as long as the budget says for the step before.
    fn enough(&self) -> bool {
        // Whole at every unlock.
        let mut locked = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let (pace, steps) = &mut *locked;
        if let Some(began) = steps.began {
            let rested = Instant::now() + self.budget.rest_after(began.elapsed());
            let until = self.until.map_or(rested, |until| until.min(rested));
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                && !self.cancel.load(Ordering::Relaxed)
            {
                std::thread::sleep(left.min(NAP));
            }
        }
        if steps.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            steps.looked = Some(Instant::now());
            if let Some(reason) = self.budget.rests_now() {
                let _ = self.rests.set(reason);
            }
        }
        steps.began = Some(Instant::now());
        self.rests.get().is_some() || pace.as_mut().is_some_and(|pace| pace.enough(Instant::now()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use fedge_models::{Manifest, Package, Preprocessing, Selection};

    use super::super::edge::dataset;
    use super::*;
    use crate::samples::Sample;
    use crate::training::{Optimizer, Plan};

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/zoo/digits_cnn.onnx");

    fn package() -> Package {
        let model = Model::from_path(Path::new(MODEL)).unwrap();
        let manifest = Manifest {
            schema: 1,
            name: "digits".into(),
            number: 1,
            digest: model.digest(),
            layout: model.layout().digest(),
            labels: vec![],
            preprocessing: Preprocessing { scale: 0.5, ..Preprocessing::default() },
            parent: None,
            task: None,
            round: None,
        };
        Package::new(manifest, model).unwrap()
    }

    fn samples() -> Vec<Sample> {
        let sample = |i: u32| Sample { input: (0..64).map(|p| ((p * i) % 17) as f32).collect(), label: i % 10 };
        (1..=40).map(sample).collect()
    }

    fn run(until: Option<Instant>, loss_base: bool) -> Run {
        let plan =
            Plan { optimizer: Optimizer::sgd(0.1, 0.0, 0.0), epochs: 2, batch_size: 16, seed: 0, ..Plan::default() };
        Run { plan, loss_base, own: None, until, cancel: Arc::default() }
    }

    fn trained(run: &Run) -> Trained {
        let package = package();
        let data = dataset(&package, samples()).unwrap();
        train(package.model, std::fs::File::open(MODEL).unwrap(), &data, run, &Guard::default()).unwrap()
    }

    fn guarded(run: &Run, guard: &Guard) -> Result<Trained, String> {
        let package = package();
        let data = dataset(&package, samples()).unwrap();
        train(package.model, std::fs::File::open(MODEL).unwrap(), &data, run, guard)
    }

    #[test]
    fn a_model_that_training_made_worse_on_held_out_samples_is_not_sent() {
        // The same inputs with other labels: what is learned here is wrong there.
        let others = samples().into_iter().map(|s| Sample { label: (s.label + 5) % 10, ..s }).collect();
        let held_out = dataset(&package(), others).unwrap();
        let mut run = run(None, false);
        run.plan.epochs = 60;
        let judged = |worst| guarded(&run, &Guard { judge: Some((held_out.clone(), worst)), ..Guard::default() });
        let error = judged(1.5).unwrap_err();
        assert!(error.contains("40 held-out samples") && error.contains("training.worst_loss"), "{error}");
        assert!(judged(1e6).is_ok());
        let own = dataset(&package(), samples()).unwrap();
        assert!(guarded(&run, &Guard { judge: Some((own, 1.5)), ..Guard::default() }).is_ok());
    }

    #[test]
    fn a_training_that_may_compute_a_fifth_of_the_time_rests_four_times_as_long_after_each_step_and_gives_the_same() {
        let plain = run(None, false);
        let budget = Budget { share: 0.2, ..Budget::default() };
        let pacing = Pacing::new(&plain, &budget);
        assert!(!pacing.enough());
        std::thread::sleep(Duration::from_millis(20));
        let ended = Instant::now();
        assert!(!pacing.enough() && ended.elapsed() >= Duration::from_millis(80));
        let share = guarded(&plain, &Guard { budget, judge: None }).unwrap();
        assert_eq!(share.delta, trained(&plain).delta);
        // The least share sleeps no longer than until the end that the coordinator set.
        let until = Instant::now() + Duration::from_millis(50);
        let least = Budget { share: 0.01, ..Budget::default() };
        let run = self::run(Some(until), false);
        let pacing = Pacing::new(&run, &least);
        assert!(!pacing.enough());
        std::thread::sleep(Duration::from_secs(1));
        let ended = Instant::now();
        assert!(pacing.enough() && ended.elapsed() < Duration::from_secs(60), "not the 99 s of its share");
    }

    #[test]
    fn a_training_whose_hours_end_is_given_up_or_sent_as_far_as_it_came_where_that_is_of_use() {
        let in_hours = |hours: i64| {
            let time = jiff::Zoned::now().checked_add(jiff::Span::new().hours(hours)).unwrap();
            format!("{:02}:{:02}", time.hour(), time.minute())
        };
        let hours = Some(format!("{}-{}", in_hours(2), in_hours(3)).parse().unwrap());
        let guard = Guard { budget: Budget { hours, ..Budget::default() }, judge: None };
        let error = guarded(&run(None, false), &guard).unwrap_err();
        assert!(error.contains("does not train now") && error.contains("hours"), "{error}");
        let late = run(Some(Instant::now() + Duration::from_secs(600)), false);
        let partial = guarded(&late, &guard).unwrap();
        assert!(partial.metrics.partial && partial.metrics.steps == 1);
    }

    #[test]
    fn an_update_is_the_trained_weights_less_those_of_the_file() {
        let package = package();
        let data = dataset(&package, samples()).unwrap();
        let run = run(None, true);
        let outcome = training::train(&package.model, &data, &run.plan, &|_| {}, &run.cancel).unwrap();
        let base = package.model.weights();
        let expected: Vec<f32> =
            outcome.weights.values().iter().zip(base.values()).map(|(new, old)| new - old).collect();
        let found = trained(&run);
        assert_eq!((found.delta, found.examples, found.metrics.steps), (expected, 40, 6));
        assert_eq!((found.tensors.iter().sum::<usize>(), found.statistics.len()), (base.values().len(), 0));
        let before = training::evaluate(&package.model, &data).unwrap();
        assert_eq!((found.metrics.loss_base, found.metrics.partial), (Some(before.loss), false));
    }

    #[test]
    fn an_update_of_the_head_alone_holds_nothing_else_and_a_correction_finds_its_parameters() {
        let model = package().model;
        let mut run = run(None, false);
        let head = Selection::Named(["fc*".to_owned()].into());
        run.plan = Plan { trained: head, epochs: 1, batch_size: 40, ..run.plan };
        let plain = trained(&run);
        let travels = model.layout().exchanging(&run.plan.exchange()).unwrap();
        assert!(plain.delta.len() == travels.exchanged_len() && plain.delta.len() < model.layout().exchanged_len());
        assert_eq!(plain.tensors.iter().sum::<usize>(), plain.delta.len());
        // One step: each value moves by the rate times its own correction more.
        run.plan.correction = Some((0..plain.delta.len()).map(|index| (index % 7) as f32).collect());
        let corrected = trained(&run);
        for (index, (plain, corrected)) in plain.delta.iter().zip(&corrected.delta).enumerate() {
            let expected = plain - 0.1 * (index % 7) as f32;
            assert!((corrected - expected).abs() < 1e-5, "{index}: {corrected} {expected}");
        }
    }

    #[test]
    fn a_head_of_its_own_is_trained_stays_and_is_gone_on_from() {
        let mut run = run(None, false);
        run.plan.local = ["fc*".to_owned()].into();
        let first = trained(&run);
        let model = package().model;
        let own = first.own.unwrap();
        assert_eq!(own.names, ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
        assert_eq!(first.delta.len() + own.values.len(), model.layout().exchanged_len());
        // Together they are what one training of everything gives.
        let whole = trained(&self::run(None, false));
        let head = model.layout().staying(&run.plan.exchange()).unwrap();
        let mut expected = whole.delta.clone();
        model.layout().gather(&head, &mut expected);
        let mut base = model.weights().into_values();
        model.layout().gather(&head, &mut base);
        for ((own, base), moved) in own.values.iter().zip(&base).zip(&expected) {
            assert!((own - base - moved).abs() < 1e-6);
        }
        run.own = Some(own.clone());
        let second = trained(&run);
        assert!(second.own.unwrap() != own);
        assert!(second.metrics.loss_first < first.metrics.loss_first, "its head goes on from where it was");
    }

    #[test]
    fn without_time_there_is_one_step_and_with_enough_there_are_all() {
        let late = trained(&run(Some(Instant::now()), false));
        assert_eq!((late.metrics.steps, late.metrics.partial, late.metrics.loss_base), (1, true, None));
        assert!(late.delta.iter().any(|value| *value != 0.0));
        let early = trained(&run(Some(Instant::now() + Duration::from_secs(3600)), false));
        assert_eq!((early.metrics.steps, early.metrics.partial), (6, false));
    }
}
