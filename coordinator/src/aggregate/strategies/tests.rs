//! Every strategy against `fixtures/steps.json`: three rounds computed in numpy from the papers alone.
//! The script is `tests/parity/strategies.py`; what holds of all strategies is in `aggregate/tests.rs`.

use std::sync::Arc;

use fedge_models::{Layout, ParameterClass, ParameterSpec, Weights};
use serde::Deserialize;

use super::{StrategySpec, names};
use crate::aggregate::UpdateFacts;
use crate::aggregate::tests::{round, state};

#[derive(Deserialize)]
struct Fixture {
    tensors: Vec<Tensor>,
    population: usize,
    base: Vec<f32>,
    /// By round, node, value.
    deltas: Vec<Vec<Vec<f32>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    len: usize,
    class: ParameterClass,
}

#[derive(Deserialize)]
struct Case {
    strategy: StrategySpec,
    plan: Plan,
    nodes: Vec<Node>,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Plan {
    learning_rate: f32,
    momentum: f32,
    mu: f32,
}

#[derive(Deserialize)]
struct Node {
    examples: u64,
    steps: u64,
    loss: f32,
    staleness: u64,
}

#[derive(Deserialize)]
struct Round {
    weights: Vec<f64>,
    state: std::collections::BTreeMap<String, Vec<f64>>,
}

/// f32 keeps 6e-8 of a value, and a round rounds each weight and each array once; the integers' steps are 3.7e-9 for
/// weights here, halved at most. Three rounds of both stay below 3e-7, relative to values of about 1; what a small one
/// loses is relative to the step that was taken, below 1 as well.
const TOLERANCE: f64 = 3e-7;

fn layout(fixture: &Fixture) -> Arc<Layout> {
    let spec = |t: &Tensor| ParameterSpec { name: t.name.clone(), shape: vec![t.len], class: t.class };
    Arc::new(Layout::new(fixture.tensors.iter().map(spec).collect()).unwrap())
}

fn check_case(fixture: &Fixture, layout: &Arc<Layout>, case: &Case, size: usize) {
    let name = case.strategy.name();
    let len = layout.exchanged_len();
    let statistic = layout.range("mean").unwrap();
    let mut weights = Weights::new(layout.clone(), fixture.base.clone()).unwrap();
    let mut arrays = state(&case.strategy, len);
    for (number, (deltas, expected)) in fixture.deltas.iter().zip(&case.rounds).enumerate() {
        let updates: Vec<(UpdateFacts, Vec<f32>)> =
            case.nodes.iter().zip(deltas).map(|(n, d)| (facts(case, n), d.clone())).collect();
        let next = round(&case.strategy, &weights, &updates, fixture.population, &mut arrays, size).unwrap();
        for (index, (found, expected)) in next.iter().zip(&expected.weights).enumerate() {
            let wrong = (f64::from(*found) - expected).abs() / expected.abs().max(1.0);
            assert!(wrong <= TOLERANCE, "{name} round {number} value {index}: {found} instead of {expected}");
        }
        assert_eq!(expected.state.len(), arrays.len(), "{name}");
        for (array, declared) in arrays.iter().zip(case.strategy.strategy().state()) {
            let wanted = &expected.state[declared.name];
            for (index, (found, wanted)) in array.iter().zip(wanted).enumerate().filter(|(i, _)| !statistic.contains(i))
            {
                let wrong = (f64::from(*found) - wanted).abs() / wanted.abs().max(1e-2);
                assert!(
                    wrong <= 10.0 * TOLERANCE,
                    "{name} round {number} {}[{index}]: {found}, {wanted}",
                    declared.name
                );
            }
        }
        weights = Weights::new(layout.clone(), next).unwrap();
    }
}

fn facts(case: &Case, node: &Node) -> UpdateFacts {
    UpdateFacts {
        examples: node.examples,
        steps: node.steps,
        loss_base: case.strategy.client().loss_base.then_some(node.loss),
        staleness: node.staleness,
        squared_norm: 0.0,
        learning_rate: case.plan.learning_rate,
        momentum: case.plan.momentum,
        proximal_mu: case.plan.mu,
    }
}

#[test]
fn every_strategy_takes_the_steps_that_its_paper_gives() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/steps.json")).unwrap();
    let layout = layout(&fixture);
    for name in names() {
        assert!(fixture.cases.iter().any(|case| case.strategy.name() == name), "{name} has no case");
    }
    for case in &fixture.cases {
        assert_eq!(case.rounds.len(), 3);
        for size in [1, 5, 14] {
            check_case(&fixture, &layout, case, size);
        }
    }
}

#[test]
fn what_nodes_have_to_do_is_as_the_papers_say() {
    let spec = |name: &str| StrategySpec::new(name, toml::Table::new()).unwrap();
    for name in names() {
        let terms = spec(name).client();
        assert_eq!(terms.proximal_mu.is_some(), name == "fedprox", "{name}");
        assert_eq!(terms.accept_partial, ["fedprox", "fednova"].contains(&name), "{name}");
        assert_eq!((terms.control_variates, terms.plain_sgd), (name == "scaffold", name == "scaffold"), "{name}");
        assert_eq!(terms.loss_base, name == "q-fedavg", "{name}");
        assert_eq!(terms.asynchronous.is_some(), name == "fedbuff", "{name}");
    }
}
