//! Whole rounds through check, fold and close; and what the tests of this room share.
//! Each strategy against its paper is in `strategies/tests.rs`.

use std::sync::Arc;

use fedge_models::{Layout, ParameterClass, ParameterSpec, Weights};
use proptest::prelude::*;

use super::fixed_point::{Check, MAX_EXAMPLES, Scales, Sums};
use super::strategies::{StrategySpec, names};
use super::{AggregationError, Close, UpdateFacts};
use ParameterClass::{Statistic, Trainable};

/// Weights of one-dimensional tensors; the values of constants don't count.
pub(super) fn weights(tensors: &[(&str, &[f32], ParameterClass)]) -> Weights {
    let spec = |name: &str, len, class| ParameterSpec { name: name.to_owned(), shape: vec![len], class };
    let specs = tensors.iter().map(|(name, values, class)| spec(name, values.len(), *class)).collect();
    let exchanged = tensors.iter().filter(|(_, _, class)| *class != ParameterClass::Constant);
    let values = exchanged.flat_map(|(_, values, _)| values.iter().copied()).collect();
    Weights::new(Arc::new(Layout::new(specs).unwrap()), values).unwrap()
}

/// Facts that every strategy can use.
pub(super) fn facts() -> UpdateFacts {
    UpdateFacts {
        examples: 100,
        steps: 10,
        loss_base: Some(1.5),
        staleness: 0,
        squared_norm: 0.25,
        learning_rate: 0.1,
        momentum: 0.0,
        proximal_mu: 0.0,
    }
}

pub(super) fn spec(name: &str, options: &str) -> StrategySpec {
    StrategySpec::new(name, toml::from_str(options).unwrap()).unwrap()
}

/// The state arrays of a strategy before the first round.
pub(super) fn state(strategy: &StrategySpec, len: usize) -> Vec<Vec<f32>> {
    strategy.strategy().state().iter().map(|array| vec![array.initial; len]).collect()
}

/// One round, everything in pieces of `size`: the next values. The facts' norms are those that the check finds.
pub(super) fn round(
    strategy: &StrategySpec,
    base: &Weights,
    updates: &[(UpdateFacts, Vec<f32>)],
    population: usize,
    state: &mut [Vec<f32>],
    size: usize,
) -> Result<Vec<f32>, AggregationError> {
    let scales = Arc::new(Scales::for_base(base));
    let sums = Arc::new(Sums::new(scales.clone(), strategy.strategy().sums()));
    let mut all = Vec::new();
    for (facts, delta) in updates {
        let mut check = Check::new(scales.clone());
        delta.chunks(size).try_for_each(|piece| check.piece(piece))?;
        let facts = UpdateFacts { squared_norm: check.finish()?, ..*facts };
        let mut fold = sums.begin(&strategy.contribution(&facts)?)?;
        delta.chunks(size).try_for_each(|piece| fold.piece(piece))?;
        fold.finish()?;
        all.push(facts);
    }
    let close = Close::new(strategy, sums, &all, population)?;
    let mut next = Vec::new();
    for (index, base) in base.values().chunks(size).enumerate() {
        let range = index * size..index * size + base.len();
        let mut part: Vec<Vec<f32>> = state.iter().map(|array| array[range.clone()].to_vec()).collect();
        next.extend(close.piece(range.start, base, &mut part)?);
        for (array, part) in state.iter_mut().zip(part) {
            array[range.clone()].copy_from_slice(&part);
        }
    }
    Ok(next)
}

fn base() -> Weights {
    weights(&[
        ("w", &[0.5, -0.25, 1.5, 0.0], Trainable),
        ("mean", &[3.0, -2.0], Statistic),
        ("b", &[0.1; 3], Trainable),
    ])
}

/// Every strategy with options by which it is FedAvg where nodes are alike.
fn reduced() -> Vec<StrategySpec> {
    let plain =
        [("fedavg", ""), ("fedprox", ""), ("fednova", ""), ("scaffold", ""), ("fedbuff", ""), ("q-fedavg", "q = 0.0")];
    plain.iter().map(|(name, options)| spec(name, options)).chain([spec("fedavgm", "momentum = 0.0")]).collect()
}

/// Half an integer step is 3.7e-9 for `w`, 1.9e-9 for `b`, 3.8e-6 for the statistic; f32 adds 6e-8 of a value below 5.
fn assert_close(found: &[f32], expected: &[f32]) {
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        let tolerance = if (4..6).contains(&index) { 4.2e-6 } else { 3e-7 };
        assert!((a - b).abs() <= tolerance, "{found:?} {expected:?}");
    }
}

#[test]
fn fedavg_equals_the_hand_computed_weighted_mean() {
    // Two nodes, 1 and 3 examples, deltas 0.5 and -0.25 everywhere: (1·0.5 + 3·(-0.25)) / 4 = -0.0625, exactly.
    let updates = [(1, 0.5), (3, -0.25)].map(|(examples, delta)| (UpdateFacts { examples, ..facts() }, vec![delta; 9]));
    let next = round(&StrategySpec::default(), &base(), &updates, 2, &mut [], 4).unwrap();
    for (next, base) in next.iter().zip(base().values()) {
        assert_eq!(*next, base - 0.0625);
    }
}

#[test]
fn statistics_are_weighted_by_examples_whatever_the_strategy() {
    let node = |examples, steps, loss, delta: f32| {
        (UpdateFacts { examples, steps, loss_base: Some(loss), ..facts() }, vec![delta; 9])
    };
    let updates = [node(1, 50, 0.1, 0.5), node(3, 2, 3.0, -0.25)];
    for name in names() {
        let strategy = spec(name, "");
        let next = round(&strategy, &base(), &updates, 5, &mut state(&strategy, 9), 3).unwrap();
        assert_eq!(next[4..6], [3.0 - 0.0625, -2.0 - 0.0625], "{name}");
    }
}

#[test]
fn a_zero_update_from_everyone_changes_no_weight() {
    let updates = [(facts(), vec![0.0; 9]), (facts(), vec![0.0; 9])];
    for name in names() {
        let strategy = spec(name, "");
        let next = round(&strategy, &base(), &updates, 2, &mut state(&strategy, 9), 9).unwrap();
        assert_eq!(next, base().values(), "{name}");
    }
}

#[test]
fn a_server_step_out_of_range_is_refused_with_the_parameter() {
    let huge = weights(&[("w", &[1.0], Trainable), ("far", &[f32::MAX], Trainable)]);
    let updates = [(facts(), vec![0.0, f32::MAX / 2.0])];
    let strategy = spec("fedavgm", "server_learning_rate = 1000.0");
    let error = round(&strategy, &huge, &updates, 1, &mut state(&strategy, 2), 2).unwrap_err();
    assert_eq!(error, AggregationError::Diverged { parameter: "far".into() });
}

#[test]
fn stale_updates_count_in_asynchronous_strategies_only_and_up_to_their_bound() {
    let stale = |staleness| UpdateFacts { staleness, ..facts() };
    for name in names() {
        assert_eq!(spec(name, "").contribution(&stale(1)).is_ok(), name == "fedbuff", "{name}");
    }
    let strategy = spec("fedbuff", "max_staleness = 7");
    assert!(strategy.contribution(&stale(7)).is_ok());
    let error = strategy.contribution(&stale(8)).unwrap_err().to_string();
    assert!(error.contains("8 versions old") && error.contains("fedbuff"), "{error}");
}

#[test]
fn facts_that_no_node_can_have_are_refused_by_every_strategy() {
    let good = facts();
    let bad = [
        UpdateFacts { examples: 0, ..good },
        UpdateFacts { examples: MAX_EXAMPLES + 1, ..good },
        UpdateFacts { steps: 0, ..good },
        UpdateFacts { steps: u64::MAX, ..good },
        UpdateFacts { learning_rate: 0.0, ..good },
        UpdateFacts { learning_rate: f32::NAN, ..good },
        UpdateFacts { momentum: 1.0, ..good },
        UpdateFacts { proximal_mu: -1.0, ..good },
        UpdateFacts { squared_norm: f64::INFINITY, ..good },
    ];
    for name in names() {
        assert!(spec(name, "").contribution(&good).is_ok(), "{name}");
        for bad in &bad {
            assert!(spec(name, "").contribution(bad).is_err(), "{name} {bad:?}");
        }
    }
}

#[test]
fn scaffold_refuses_momentum_and_a_proximal_term() {
    for facts in [UpdateFacts { momentum: 0.9, ..facts() }, UpdateFacts { proximal_mu: 0.1, ..facts() }] {
        let error = spec("scaffold", "").contribution(&facts).unwrap_err().to_string();
        assert!(error.contains("training.momentum"), "{error}");
    }
}

#[test]
fn a_round_is_not_closed_with_other_updates_than_were_folded() {
    let scales = Arc::new(Scales::for_base(&base()));
    let strategy = StrategySpec::default();
    let sums = Arc::new(Sums::new(scales, 1));
    assert!(matches!(Close::new(&strategy, sums.clone(), &[], 1), Err(AggregationError::Empty)));
    let contribution = strategy.contribution(&facts()).unwrap();
    let mut fold = sums.begin(&contribution).unwrap();
    fold.piece(&[0.0; 8]).unwrap();
    let unfinished = |facts: &[UpdateFacts]| {
        matches!(Close::new(&strategy, sums.clone(), facts, 1), Err(AggregationError::Unfinished { .. }))
    };
    assert!(unfinished(&[facts()]));
    fold.piece(&[0.0]).unwrap();
    fold.finish().unwrap();
    assert!(unfinished(&[]) && unfinished(&[facts(), facts()]));
    let close = Close::new(&strategy, sums.clone(), &[facts()], 1).unwrap();
    assert!(close.piece(0, &[0.0; 9], &mut []).is_ok());
    assert!(close.piece(1, &[0.0; 9], &mut []).is_err());
    assert!(close.piece(usize::MAX, &[0.0; 9], &mut []).is_err());
    assert!(close.piece(0, &[0.0; 9], &mut [vec![0.0; 9]]).is_err());
    drop(sums.begin(&contribution).unwrap());
    assert!(unfinished(&[facts()]) && unfinished(&[facts(), facts()]));
}

#[test]
#[ignore = "a measurement of time: run it alone, with --release and --nocapture, on an idle machine"]
fn a_round_of_25_million_values_is_closed_within_half_a_second_on_one_core() {
    let (len, size) = (25_000_000, 1 << 16);
    let base = weights(&[("w", &vec![0.5; len], Trainable)]);
    let scales = Arc::new(Scales::for_base(&base));
    for name in names() {
        let strategy = spec(name, "");
        let sums = Arc::new(Sums::new(scales.clone(), strategy.strategy().sums()));
        let mut fold = sums.begin(&strategy.contribution(&facts()).unwrap()).unwrap();
        vec![0.001; len].chunks(size).for_each(|piece| fold.piece(piece).unwrap());
        fold.finish().unwrap();
        let (mut state, mut sum) = (state(&strategy, size), 0.0);
        let close = Close::new(&strategy, sums, &[facts()], 1).unwrap();
        let start = std::time::Instant::now();
        for (index, base) in base.values().chunks(size).enumerate() {
            state.iter_mut().for_each(|array| array.resize(base.len(), 0.0));
            sum += close.piece(index * size, base, &mut state).unwrap()[0];
        }
        let ms = start.elapsed().as_secs_f64() * 1e3;
        println!("{name}: 25 million values closed in {ms:.0} ms");
        assert!(sum > 0.0 && ms <= 500.0, "{name}: {ms:.0} ms");
    }
}

fn deltas() -> impl proptest::strategy::Strategy<Value = Vec<f32>> {
    prop::collection::vec(-2.0f32..2.0, 9)
}

proptest! {
    #[test]
    fn one_node_alone_gives_its_own_weights(
        delta in deltas(), examples in 1..=MAX_EXAMPLES, steps in 1u64..1000, loss in 0.01f32..10.0,
    ) {
        let updates = [(UpdateFacts { examples, steps, loss_base: Some(loss), ..facts() }, delta.clone())];
        let expected: Vec<f32> = base().values().iter().zip(&delta).map(|(w, d)| w + d).collect();
        for strategy in reduced() {
            let next = round(&strategy, &base(), &updates, 1, &mut state(&strategy, 9), 5).unwrap();
            assert_close(&next, &expected);
        }
    }

    #[test]
    fn nodes_that_are_alike_but_for_their_updates_are_averaged_by_every_strategy_that_reduces_to_fedavg(
        updates in prop::collection::vec(deltas(), 1..6), examples in 1..=MAX_EXAMPLES, loss in 0.01f32..10.0,
    ) {
        let alike = UpdateFacts { examples, loss_base: Some(loss), ..facts() };
        let updates: Vec<_> = updates.into_iter().map(|delta| (alike, delta)).collect();
        let expected = round(&StrategySpec::default(), &base(), &updates, 9, &mut [], 9).unwrap();
        for strategy in reduced() {
            let next = round(&strategy, &base(), &updates, 9, &mut state(&strategy, 9), 4).unwrap();
            assert_close(&next, &expected);
        }
    }

    #[test]
    fn the_pieces_of_a_round_change_no_bit(
        updates in prop::collection::vec((deltas(), 1..=MAX_EXAMPLES, 1u64..100, 0.01f32..10.0), 1..5),
        size in 1usize..9,
    ) {
        let updates: Vec<_> = updates
            .into_iter()
            .map(|(delta, examples, steps, loss)| {
                (UpdateFacts { examples, steps, loss_base: Some(loss), ..facts() }, delta)
            })
            .collect();
        for name in names() {
            let strategy = spec(name, "");
            let (mut whole_state, mut piece_state) = (state(&strategy, 9), state(&strategy, 9));
            let whole = round(&strategy, &base(), &updates, 9, &mut whole_state, 9).unwrap();
            let pieces = round(&strategy, &base(), &updates, 9, &mut piece_state, size).unwrap();
            prop_assert_eq!(whole, pieces);
            prop_assert_eq!(whole_state, piece_state);
        }
    }
}
