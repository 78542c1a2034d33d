//! Each optimizer's formula, and PyTorch's numbers, on plain numbers and on tensors.

use super::{Optimizer, Stepper, Store, Terms, tensors};
use crate::training::backend::{Plain, PlainTensor, Precision, tensor, to_f32};

fn on_cpu(values: &[f32]) -> PlainTensor {
    tensor::<Plain>(values.to_vec(), &[values.len()], Precision::Single).unwrap()
}

/// The rate's factor and the gradient at these values, or the end.
type Slopes<'a> = &'a mut dyn FnMut(&[f32]) -> Option<(f32, Vec<f32>)>;

/// Takes steps from these values, one for each gradient and factor of the rate, in place and by operations: the two agree.
fn stepped(
    (optimizer, proximal_mu): (Optimizer, f32),
    values: &[f32],
    (start, correction): (Option<&[f32]>, Option<&[f32]>),
    gradients: Slopes<'_>,
) -> Vec<f32> {
    let (mut in_place, mut by_operations) = (on_cpu(values), on_cpu(values));
    let (mut one, mut other) =
        (Stepper::<Plain>::new(optimizer, proximal_mu, 1), Stepper::<Plain>::new(optimizer, proximal_mu, 1));
    let (start, correction) = (start.map(on_cpu), correction.map(on_cpu));
    loop {
        let now = to_f32::<Plain>(in_place.clone()).unwrap();
        let operated = to_f32::<Plain>(by_operations.clone()).unwrap();
        assert!(now.iter().zip(&operated).all(|(a, b)| (a - b).abs() < 1e-6), "{now:?} in place, else {operated:?}");
        let Some((rate, gradient)) = gradients(&now) else { return now };
        let terms = || Terms { start: start.as_ref(), correction: correction.as_ref() };
        one.begin(rate);
        other.begin(rate);
        Plain::step(&mut one, 0, &mut in_place, on_cpu(&gradient), &terms());
        tensors::step::<Plain>(&other.now, &mut by_operations, on_cpu(&gradient), &mut other.moments[0], &terms());
    }
}

/// As [`stepped`], with these gradients.
fn sgd(
    momentum: f32,
    weight_decay: f32,
    proximal_mu: f32,
    values: &[f32],
    start: &[f32],
    slopes: &[&[f32]],
) -> Vec<f32> {
    let mut slopes = slopes.iter();
    let optimizer = (Optimizer::sgd(0.5, momentum, weight_decay), proximal_mu);
    stepped(optimizer, values, (Some(start), None), &mut |_| slopes.next().map(|slopes| (1.0, slopes.to_vec())))
}

#[test]
fn a_plain_step_moves_against_the_gradient_at_the_scheduled_rate() {
    let mut slopes = [(1.0, vec![2.0, 4.0]), (0.5, vec![2.0, 4.0])].into_iter();
    let optimizer = (Optimizer::sgd(0.5, 0.0, 0.0), 0.0);
    let values = stepped(optimizer, &[1.0, -2.0], (None, None), &mut |_| slopes.next());
    assert_eq!(values, [-0.5, -5.0]);
}

#[test]
fn momentum_adds_up_over_steps() {
    assert_eq!(sgd(0.5, 0.0, 0.0, &[0.0], &[0.0], &[&[1.0]]), [-0.5]);
    assert_eq!(sgd(0.5, 0.0, 0.0, &[0.0], &[0.0], &[&[1.0], &[1.0]]), [-1.25]);
}

#[test]
fn weight_decay_pulls_to_zero_and_the_proximal_term_to_the_start() {
    assert_eq!(sgd(0.0, 0.5, 0.0, &[4.0], &[2.0], &[&[0.0]]), [3.0]);
    assert_eq!(sgd(0.0, 0.0, 0.5, &[4.0], &[2.0], &[&[0.0]]), [3.5]);
}

#[test]
fn the_correction_is_added_to_the_gradient() {
    // y − η(g − c_i + c) = 1 − 0.5 · (2 − 0.5 + 4) and −1 − 0.5 · (1 − 3 + 1); the terms before it still count.
    let once = |slopes: &[f32]| {
        let mut slopes = Some((1.0, slopes.to_vec()));
        move |_: &[f32]| slopes.take()
    };
    let optimizer = (Optimizer::sgd(0.5, 0.0, 0.0), 0.0);
    let correction: &[f32] = &[3.5, -2.0];
    let values = stepped(optimizer, &[1.0, -1.0], (None, Some(correction)), &mut once(&[2.0, 1.0]));
    assert_eq!(values, [-1.75, -0.5]);
    let optimizer = (Optimizer::sgd(0.5, 0.0, 0.5), 0.5);
    let values = stepped(optimizer, &[4.0], (Some(&[2.0]), Some(&[-2.0])), &mut once(&[1.0]));
    assert_eq!(values, [3.0]);
}

/// Five steps on the gradients w², of torch 2.15 in float64.
#[test]
fn each_optimizer_steps_as_pytorchs_does() {
    let adam = |decoupled| Optimizer::Adam {
        learning_rate: 0.1,
        beta1: 0.8,
        beta2: 0.9,
        epsilon: 1e-3,
        weight_decay: 0.1,
        decoupled,
    };
    let nesterov = Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.1, nesterov: true };
    for (optimizer, expected) in
        [(nesterov, [0.011936, -1.015627]), (adam(false), [0.520609, -0.994137]), (adam(true), [0.486159, -0.962319])]
    {
        let mut steps = 0;
        let values = stepped((optimizer, 0.0), &[1.0, -0.5], (None, None), &mut |values| {
            steps += 1;
            (steps <= 5).then(|| (1.0, values.iter().map(|value| value * value).collect()))
        });
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{optimizer:?}: {values:?}");
    }
}

#[test]
fn clipping_keeps_the_direction_and_bounds_the_norm_over_all_parameters() {
    for (limit, factor) in [(2.5, 0.5), (10.0, 1.0)] {
        let gradients = || vec![Some(on_cpu(&[3.0, 0.0])), None, Some(on_cpu(&[-4.0]))];
        let (mut in_place, mut by_operations) = (gradients(), gradients());
        Plain::clip(&mut in_place, limit);
        tensors::clip::<Plain>(&mut by_operations, limit);
        for found in [in_place, by_operations] {
            let found: Vec<f32> = found.into_iter().flatten().flat_map(|one| to_f32::<Plain>(one).unwrap()).collect();
            let expected = [3.0, 0.0, -4.0].map(|slope| slope * factor);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{limit}: {found:?}");
        }
    }
}

#[test]
fn a_running_statistic_keeps_its_share_of_the_old_value() {
    fn followed(follow: impl Fn(&mut PlainTensor, PlainTensor)) -> Vec<f32> {
        let mut running = on_cpu(&[1.0, -2.0]);
        follow(&mut running, on_cpu(&[2.0, 4.0]));
        to_f32::<Plain>(running).unwrap()
    }
    // 0.75 · 1 + 0.25 · 2 · 2, and 0.75 · −2 + 0.25 · 2 · 4.
    assert_eq!(followed(|running, batch| Plain::follow(running, batch, 0.75, 2.0)), [1.75, 0.5]);
    assert_eq!(followed(|running, batch| tensors::follow::<Plain>(running, batch, 0.75, 2.0)), [1.75, 0.5]);
}
