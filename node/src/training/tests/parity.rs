//! Equality with others: PyTorch's gradients and steps (fixture of tests/parity/gradients.py), tract's forward pass.
//! Operator by operator, `operators` checks the same against finite differences.

use std::collections::BTreeSet;
use std::io::Cursor;

use fedge_models::float::FloatRunner;
use fedge_models::{Model, operators};
use ndarray::{Array1, ArrayD, ArrayViewD};
use ndarray_npy::NpzReader;

use super::digits::{digits, model};
use crate::training::backend::{Cpu, Plain, Precision, tensor, to_f64};
use crate::training::graph::{Mode, Program};
use crate::training::parameters::Parameters;
use crate::training::trainer::Session;
use crate::training::{Dataset, Loss, Optimizer, Plan, gradients, ops};

type Fixture = NpzReader<Cursor<&'static [u8]>>;

fn fixture() -> Fixture {
    NpzReader::new(Cursor::new(&include_bytes!("../fixtures/digits_cnn.npz")[..])).unwrap()
}

fn array(fixture: &mut Fixture, name: &str) -> Vec<f32> {
    let array: ArrayD<f32> = fixture.by_name(name).unwrap();
    array.iter().copied().collect()
}

/// The fixture's batch of 32 digits.
fn batch(fixture: &mut Fixture) -> Dataset {
    let rows: Array1<i64> = fixture.by_name("rows").unwrap();
    let rows: BTreeSet<usize> = rows.iter().map(|&row| row as usize).collect();
    digits(|row| rows.contains(&row))
}

/// Logits by the interpreter with frozen statistics.
pub(super) fn forward(model: &Model, inputs: &[f32], samples: usize) -> Vec<f32> {
    let parameters = Parameters::<Cpu>::from_model(model).unwrap();
    let program =
        Program::<Plain>::compile(model, samples, Mode::Evaluate, Precision::Single, Some(Loss::CrossEntropy)).unwrap();
    let shape: Vec<usize> = std::iter::once(samples).chain(model.input().sample_shape()).collect();
    let input = tensor::<Plain>(inputs.to_vec(), &shape, Precision::Single).unwrap();
    let logits = program.run(&parameters.plain(), input, &mut Vec::new()).unwrap();
    to_f64::<Plain>(logits).unwrap().into_iter().map(|logit| logit as f32).collect()
}

/// The model's output by tract.
pub(super) fn by_tract(model: &Model, inputs: &[f32], samples: usize) -> Vec<f32> {
    let shape: Vec<usize> = std::iter::once(samples).chain(model.input().sample_shape()).collect();
    let input = ArrayViewD::from_shape(shape, inputs).unwrap();
    FloatRunner::new(model).unwrap().run(input).unwrap().iter().copied().collect()
}

#[test]
fn the_demo_models_gradients_are_pytorchs() {
    let mut fixture = fixture();
    let data = batch(&mut fixture);
    let (loss, found) = gradients(&model(), &data, Loss::CrossEntropy).unwrap();
    let expected_loss: Array1<f64> = fixture.by_name("loss").unwrap();
    assert!((f64::from(loss) - expected_loss[0]).abs() < 1e-5, "{loss} {expected_loss}");

    let largest = |values: &[f32]| values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let expected: Vec<_> = found.keys().map(|name| (name, array(&mut fixture, &format!("gradient/{name}")))).collect();
    assert_eq!(expected.len(), 8);
    let overall = expected.iter().fold(0.0f32, |max, (_, values)| max.max(largest(values)));
    for (name, expected) in &expected {
        let tolerance = 1e-4 * largest(expected).max(0.01 * overall);
        assert_eq!(found[*name].len(), expected.len(), "{name}");
        let difference = found[*name].iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        println!("{name}: largest difference {difference:e}, allowed {tolerance:e}");
        assert!(difference <= tolerance, "{name}: {difference} > {tolerance}");
    }
}

#[test]
fn three_sgd_steps_are_pytorchs_with_and_without_the_proximal_term() {
    let mut fixture = fixture();
    let data = batch(&mut fixture);
    let (inputs, targets) = data.batch(&(0..32).collect::<Vec<_>>()).unwrap();
    let model = model();
    for (prefix, proximal_mu) in [("sgd", 0.0), ("prox", 0.1)] {
        let plan = Plan { optimizer: Optimizer::sgd(0.05, 0.9, 1e-3), proximal_mu, ..Plan::default() };
        let mut session = Session::<Cpu>::new(model.clone(), &plan, 3).unwrap();
        for _ in 0..3 {
            session.step(inputs.clone(), &targets).unwrap();
        }
        let weights = session.into_weights().unwrap().unwrap();
        for (spec, _) in model.layout().exchanged() {
            let expected = array(&mut fixture, &format!("{prefix}/{}", spec.name));
            let found = weights.tensor(&spec.name).unwrap();
            let difference = found.iter().zip(&expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            assert!(difference < 2e-6, "{prefix} {}: {difference}", spec.name);
        }
    }
}

#[test]
fn the_proximal_fixture_differs_from_the_plain_one() {
    let mut fixture = fixture();
    assert_ne!(array(&mut fixture, "sgd/fc1.weight"), array(&mut fixture, "prox/fc1.weight"));
}

#[test]
fn the_forward_pass_gives_tracts_logits() {
    let (model, data) = (model(), digits(|row| row < 64));
    let found = forward(&model, &data.whole().unwrap().0, 64);
    let expected = by_tract(&model, &data.whole().unwrap().0, 64);
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn the_trainer_runs_every_operator_that_the_catalogue_calls_trainable() {
    let table: BTreeSet<&str> = ops::table::<Plain>().into_iter().map(|(name, _)| name).collect();
    assert_eq!(table.len(), ops::table::<Plain>().len(), "an operator is listed twice");
    let catalogue: BTreeSet<&str> =
        operators::catalogue().iter().filter(|operator| operator.trainable).map(|operator| operator.name).collect();
    let missing: Vec<_> = catalogue.difference(&table).collect();
    assert!(missing.is_empty(), "the trainer lacks {missing:?}");
    let more: Vec<_> = table.difference(&catalogue).collect();
    assert!(more.is_empty(), "the catalogue lacks {more:?}");
}
