//! Each operator's gradient against finite differences in double precision, and its forward pass against tract.
//! The graphs are in `cases` and `more_cases`; an operator that the catalogue trains needs one there.

use std::collections::BTreeSet;

use fedge_models::{Model, operators};

use super::build::numbers;
use super::parity::{by_tract, forward};
use super::{cases, more_cases};
use crate::training::backend::{Cpu, Plain, Precision, tensor, to_f64};
use crate::training::graph::{Mode, Program};
use crate::training::loss::{Form, measure};
use crate::training::parameters::Parameters;
use crate::training::trainer::gradients_at;
use crate::training::{Dataset, Loss};

pub(super) const SAMPLES: usize = 3;

/// A family of cases: calls its argument with each.
type Family = fn(&mut dyn FnMut(&str, &Model));

/// Every family.
pub(super) const FAMILIES: [Family; 25] = [
    cases::elementwise_operators,
    cases::powers_with_a_constant_exponent,
    cases::arithmetic_broadcasts_either_side,
    cases::a_parameter_that_is_used_twice_gets_both_gradients,
    cases::matrix_products,
    cases::gemm_in_all_its_forms,
    cases::convolutions,
    cases::convolutions_over_one_axis,
    cases::pooling,
    cases::normalization,
    cases::operators_that_move_numbers,
    cases::reductions,
    cases::shape_arithmetic_as_older_exporters_write_it,
    more_cases::activations,
    more_cases::arithmetic_of_many,
    more_cases::logic,
    more_cases::selections,
    more_cases::resizing,
    more_cases::transposed_convolutions,
    more_cases::pools_of_every_padding,
    more_cases::layered_normalizations,
    more_cases::reductions_of_every_kind,
    more_cases::recurrent_networks,
    more_cases::sums_of_products,
    more_cases::constants_from_shapes,
];

/// Loss in double precision at flat parameter values, with batch statistics.
fn loss_at(model: &Model, values: &[f64], data: &Dataset) -> f64 {
    let parameters = Parameters::<Cpu>::from_f64(model.layout(), values).unwrap();
    let program =
        Program::<Plain>::compile(model, SAMPLES, Mode::Train, Precision::Double, Some(Loss::CrossEntropy)).unwrap();
    let shape: Vec<usize> = std::iter::once(SAMPLES).chain(model.input().sample_shape()).collect();
    let input = tensor::<Plain>(data.whole().unwrap().0, &shape, Precision::Double).unwrap();
    let logits = program.run(&parameters.plain(), input, &mut Vec::new()).unwrap();
    let form = Form::of(Loss::CrossEntropy, &program.output_shape, &[], false).unwrap();
    measure(&Loss::CrossEntropy.into(), form, &to_f64::<Plain>(logits).unwrap(), &data.whole().unwrap().1).loss
}

/// Compares every gradient with a central difference, and the forward pass with tract.
fn check(case: &str, model: &Model) {
    let sample_shape = model.input().sample_shape();
    let inputs = numbers(17, SAMPLES * sample_shape.iter().product::<usize>());
    let found = forward(model, &inputs, SAMPLES);
    let expected = by_tract(model, &inputs, SAMPLES);
    assert_eq!(found.len(), expected.len(), "{case}");
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 2e-5 * b.abs().max(1.0), "{case}: forward {a}, tract {b}");
    }

    let data = Dataset::new(inputs, vec![0, 1, 0], sample_shape).unwrap();
    let values: Vec<f64> = model.weights().values().iter().copied().map(f64::from).collect();
    let parameters = Parameters::<Cpu>::from_f64(model.layout(), &values).unwrap();
    let (_, gradients) =
        gradients_at(model, &parameters, &data, &Loss::CrossEntropy.into(), Mode::Train, Precision::Double).unwrap();
    let mut largest = 0.0f64;
    for (spec, range) in model.layout().exchanged() {
        let Some(gradient) = gradients.get(&spec.name) else { continue };
        for (index, gradient) in range.zip(gradient) {
            let moved = |delta: f64| {
                let mut values = values.clone();
                values[index] += delta;
                loss_at(model, &values, &data)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - gradient).abs() < 1e-7, "{case}: {} has the gradient {gradient}, not {slope}", spec.name);
            largest = largest.max(gradient.abs());
        }
    }
    assert!(largest > 1e-4, "{case}: no gradient flows");
    assert_eq!(model.untrainable(), [], "{case}: the catalogue refuses what training can do");
}

#[test]
fn elementwise_operators() {
    cases::elementwise_operators(&mut check);
}

#[test]
fn powers_with_a_constant_exponent() {
    cases::powers_with_a_constant_exponent(&mut check);
}

#[test]
fn arithmetic_broadcasts_either_side() {
    cases::arithmetic_broadcasts_either_side(&mut check);
}

#[test]
fn a_parameter_that_is_used_twice_gets_both_gradients() {
    cases::a_parameter_that_is_used_twice_gets_both_gradients(&mut check);
}

#[test]
fn matrix_products() {
    cases::matrix_products(&mut check);
}

#[test]
fn gemm_in_all_its_forms() {
    cases::gemm_in_all_its_forms(&mut check);
}

#[test]
fn convolutions() {
    cases::convolutions(&mut check);
}

#[test]
fn convolutions_over_one_axis() {
    cases::convolutions_over_one_axis(&mut check);
}

#[test]
fn pooling() {
    cases::pooling(&mut check);
}

#[test]
fn normalization() {
    cases::normalization(&mut check);
}

#[test]
fn operators_that_move_numbers() {
    cases::operators_that_move_numbers(&mut check);
}

#[test]
fn reductions() {
    cases::reductions(&mut check);
}

#[test]
fn shape_arithmetic_as_older_exporters_write_it() {
    cases::shape_arithmetic_as_older_exporters_write_it(&mut check);
}

#[test]
fn activations() {
    more_cases::activations(&mut check);
}

#[test]
fn arithmetic_of_many() {
    more_cases::arithmetic_of_many(&mut check);
}

#[test]
fn logic() {
    more_cases::logic(&mut check);
}

#[test]
fn selections() {
    more_cases::selections(&mut check);
}

#[test]
fn resizing() {
    more_cases::resizing(&mut check);
}

#[test]
fn transposed_convolutions() {
    more_cases::transposed_convolutions(&mut check);
}

#[test]
fn pools_of_every_padding() {
    more_cases::pools_of_every_padding(&mut check);
}

#[test]
fn layered_normalizations() {
    more_cases::layered_normalizations(&mut check);
}

#[test]
fn reductions_of_every_kind() {
    more_cases::reductions_of_every_kind(&mut check);
}

#[test]
fn recurrent_networks() {
    more_cases::recurrent_networks(&mut check);
}

#[test]
fn sums_of_products() {
    more_cases::sums_of_products(&mut check);
}

#[test]
fn constants_from_shapes() {
    more_cases::constants_from_shapes(&mut check);
}

#[test]
fn every_operator_that_the_catalogue_trains_has_a_case() {
    let mut seen = BTreeSet::new();
    for family in FAMILIES {
        family(&mut |_, model| seen.extend(model.graph().node.iter().map(|node| node.op_type.clone())));
    }
    let trained = operators::catalogue().iter().filter(|operator| operator.trainable);
    let missing: Vec<&str> = trained.map(|operator| operator.name).filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "no case has {missing:?}");
}
