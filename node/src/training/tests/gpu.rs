//! Training on the graphics processor gives what the CPU gives. A software Vulkan device will do (Mesa's lavapipe).

use std::sync::atomic::AtomicBool;

use fedge_models::Model;

use super::build::numbers;
use super::digits::{digits, model};
use super::operators::{FAMILIES, SAMPLES};
use super::runs::plan;
use crate::training::{
    Dataset, Device, GradientOptions, Loss, Optimizer, Plan, Resources, evaluate_by, gradients_of, outputs, train,
};

/// Whether there is one; where there must be, a missing one is a failure.
fn present() -> bool {
    match Device::Gpu.check() {
        Ok(name) => {
            println!("on {name}");
            true
        }
        Err(problem) if std::env::var_os("FEDGE_REQUIRE_GPU").is_some() => panic!("{problem}"),
        Err(problem) => {
            println!("not tested: {problem}");
            false
        }
    }
}

/// Largest difference, in parts of the largest of the expected numbers or of `least`.
fn apart(found: &[f64], expected: &[f64], least: f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(least, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0.0, |apart, (a, b)| if a == b { apart } else { (a - b).abs().max(apart) })
        / largest
}

/// How far gradients are from the CPU's in double precision, and outputs from its in single, in parts of the largest.
fn compare(model: &Model, data: &Dataset) -> Result<(f64, f64), String> {
    let on = |options: GradientOptions| {
        gradients_of(model, data, &Loss::CrossEntropy.into(), options).map_err(|problem| problem.to_string())
    };
    let (_, expected) = on(GradientOptions { double: true, ..GradientOptions::default() })?;
    let (_, found) = on(GradientOptions { device: Device::Gpu, ..GradientOptions::default() })?;
    let all = expected.values().flatten().fold(0.0f64, |largest, slope| largest.max(slope.abs()));
    let gradients = expected.iter().map(|(name, expected)| apart(&found[name], expected, 0.01 * all));
    let answers = |device| outputs(model, data, device).map_err(|problem| problem.to_string());
    let doubled = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    let (expected, found) = (answers(Device::Cpu)?, answers(Device::Gpu)?);
    assert_eq!(found.0, expected.0);
    Ok((gradients.fold(0.0, f64::max), apart(&doubled(found.1), &doubled(expected.1), 1.0)))
}

#[test]
fn every_operator_gives_on_the_gpu_what_it_gives_on_the_cpu() {
    if !present() {
        return;
    }
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for family in FAMILIES {
        family(&mut |case, model| {
            cases += 1;
            let sample = model.input().sample_shape();
            let inputs = numbers(17, SAMPLES * sample.iter().product::<usize>());
            let data = Dataset::new(inputs, vec![0, 1, 0], sample).unwrap();
            match compare(model, &data) {
                Ok((gradients, outputs)) if gradients <= 1e-4 && outputs <= 1e-5 => {}
                other => wrong.push(format!("{case}: {other:?}")),
            }
        });
    }
    println!("{cases} cases");
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
}

/// The same epoch on both devices, with every term of a step.
#[test]
fn a_run_on_the_gpu_ends_where_the_cpus_ends() {
    if !present() {
        return;
    }
    let (model, data, held_out) = (model(), digits(|row| row < 160), digits(|row| row >= 1500));
    let adam = Optimizer::Adam {
        learning_rate: 0.002,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-6,
        weight_decay: 0.01,
        decoupled: true,
    };
    let momentum = Optimizer::Sgd { learning_rate: 0.02, momentum: 0.9, weight_decay: 1e-4, nesterov: true };
    let expected = model.layout().exchanged_len();
    let corrected =
        Plan { optimizer: Optimizer::sgd(0.02, 0.0, 0.0), correction: Some(vec![0.01; expected].into()), ..plan() };
    for plan in [
        Plan { optimizer: momentum, proximal_mu: 0.1, clip_norm: 1.0, ..plan() },
        Plan { optimizer: adam, ..plan() },
        corrected,
    ] {
        let run = |device| {
            let resources = Resources { threads: 1, device };
            let plan = Plan { epochs: 1, batch_size: 48, resources, ..plan.clone() };
            train(&model, &data, &plan, &|_| (), &AtomicBool::new(false)).unwrap()
        };
        let (cpu, gpu) = (run(Device::Cpu), run(Device::Gpu));
        assert!((cpu.loss_last - gpu.loss_last).abs() < 1e-4, "{} {}", cpu.loss_last, gpu.loss_last);
        let moved = |outcome: &crate::training::Outcome| -> Vec<f64> {
            let start = model.weights();
            let pairs = outcome.weights.values().iter().zip(start.values());
            pairs.map(|(new, old)| f64::from(new - old)).collect()
        };
        let apart = apart(&moved(&gpu), &moved(&cpu), 1e-3);
        println!("{:?}: {apart:.1e} of the longest way", plan.optimizer);
        assert!(apart < 1e-2, "{:?}: {apart}", plan.optimizer);
        let trained = model.with_weights(&gpu.weights).unwrap();
        let judged = |device| evaluate_by(&trained, &held_out, &plan.objective, device).unwrap();
        assert_eq!(judged(Device::Cpu).correct, judged(Device::Gpu).correct);
    }
}

#[test]
fn double_precision_is_refused() {
    let options = GradientOptions { double: true, device: Device::Gpu, ..GradientOptions::default() };
    let error = gradients_of(&model(), &digits(|row| row < 4), &Loss::CrossEntropy.into(), options).unwrap_err();
    assert!(error.to_string().contains("no double precision"), "{error}");
}
