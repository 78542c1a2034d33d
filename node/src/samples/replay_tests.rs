//! Tests of replay: what a training draws, and what it is for: classes that arrive one after another.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use fedge_models::{Model, Preprocessing};
use tempfile::TempDir;

use super::*;
use crate::inference::test_fixtures::digits;
use crate::samples::Limits;
use crate::training::{self, Dataset, Optimizer, Plan};

async fn open(directory: &TempDir, limits: Limits) -> SampleStore {
    SampleStore::open(&directory.path().join("samples.db"), limits).await.unwrap()
}

#[tokio::test]
async fn a_draw_is_the_new_samples_and_a_balanced_part_of_the_old_ones() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    let some = |from: u32, count: u32, label: u32| (from..from + count).map(|i| (vec![i as f32], label)).collect();
    store.add_many("m", some(0, 200, 0)).await.unwrap();
    store.add_many("m", some(200, 40, 1)).await.unwrap();
    let first = store.draw_for_training("m", Replay::Ratio(1.0), 0).await.unwrap();
    assert_eq!(first.new, first.samples.len(), "all are new");
    assert_eq!(first, store.draw_for_training("m", Replay::Ratio(1.0), 0).await.unwrap(), "until one is marked");
    store.mark_trained("m", first.through).await.unwrap();
    let again = store.draw_for_training("m", Replay::Ratio(0.0), 0).await.unwrap();
    assert_eq!((again.new, again.samples.len()), (0, first.samples.len()), "where none is new, all are seen again");

    store.add_many("m", some(1000, 50, 2)).await.unwrap();
    let of = |draw: &TrainingDraw, label| draw.samples.iter().filter(|sample| sample.label == label).count();
    let draw = store.draw_for_training("m", Replay::Ratio(0.8), 7).await.unwrap();
    let (new, half) = (of(&draw, 2), draw.samples.len() - draw.new);
    assert_eq!((draw.new, half), (new, (new as f64 * 0.8).round() as usize));
    assert!(of(&draw, 0).abs_diff(of(&draw, 1)) <= 1, "{} {}", of(&draw, 0), of(&draw, 1));
    assert_eq!(draw, store.draw_for_training("m", Replay::Ratio(0.8), 7).await.unwrap());
    assert_ne!(draw, store.draw_for_training("m", Replay::Ratio(0.8), 8).await.unwrap());
    let alone = store.draw_for_training("m", Replay::Ratio(0.0), 0).await.unwrap();
    assert_eq!((alone.samples.len(), alone.new), (new, new));
    let all = store.draw_for_training("m", Replay::All, 0).await.unwrap();
    assert_eq!(all.samples.len(), store.training_set("m").await.unwrap().len());

    store.mark_trained("m", draw.through).await.unwrap();
    store.mark_trained("m", 3).await.unwrap();
    store.close().await;
    let store = open(&directory, Limits::default()).await;
    assert_eq!(store.draw_for_training("m", Replay::All, 0).await.unwrap().new, 0, "it lasts, and never goes back");
}

/// The digits' classes come one after another, each once; after each, the model is trained on what `replay` draws from
/// a store of 500 samples. Gives the accuracy over all classes of the test part, which is every fifth sample.
async fn one_class_after_another(replay: Replay, seed: u64) -> f64 {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits { max_samples: 500, ..Limits::default() }).await;
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/zoo/digits_cnn.onnx"));
    let mut model = Model::from_path(path).unwrap();
    let shape = model.input().sample_shape();
    let dataset = |samples: Vec<Sample>| {
        let labels = samples.iter().map(|sample| sample.label).collect();
        let mut inputs: Vec<f32> = samples.into_iter().flat_map(|sample| sample.input).collect();
        Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() }.apply(&mut inputs, &shape);
        Dataset::new(inputs, labels, shape.clone()).unwrap()
    };
    let (test, stream): (Vec<_>, Vec<_>) = digits().into_iter().enumerate().partition(|(index, _)| index % 5 == 0);
    for class in 0..10 {
        let arrived = stream.iter().map(|(_, sample)| sample).filter(|sample| sample.label == class);
        store.add_many("m", arrived.map(|s| (s.input.clone(), s.label)).collect()).await.unwrap();
        let draw = store.draw_for_training("m", replay, seed + u64::from(class)).await.unwrap();
        let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
        let optimizer =
            Optimizer::Adam { learning_rate: 0.002, beta1, beta2, epsilon, weight_decay: 0.0, decoupled: false };
        let plan = Plan { optimizer, epochs: 20, batch_size: 32, seed: seed + u64::from(class), ..Plan::default() };
        let outcome = training::train(&model, &dataset(draw.samples), &plan, &|_| {}, &AtomicBool::new(false)).unwrap();
        model = model.with_weights(&outcome.weights).unwrap();
        store.mark_trained("m", draw.through).await.unwrap();
    }
    training::evaluate(&model, &dataset(test.into_iter().map(|(_, sample)| sample).collect())).unwrap().accuracy()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_replay_classes_that_came_one_after_another_are_all_known_and_without_it_only_the_last() {
    // A single course hangs on how sums are rounded, the more the less is replayed: three each, the least first.
    let courses = async |replay| {
        let mut found = [0.0; 3];
        for (course, seed) in found.iter_mut().zip([0, 100, 200]) {
            *course = one_class_after_another(replay, seed).await;
        }
        found.sort_by(f64::total_cmp);
        found
    };
    let (none, one, four, all) = tokio::join!(
        courses(Replay::Ratio(0.0)),
        courses(Replay::Ratio(1.0)),
        courses(Replay::Ratio(4.0)),
        courses(Replay::All),
    );
    println!(
        "accuracy over all classes: no replay {none:.3?}, 1 to 1 {one:.3?}, 4 to 1 {four:.3?}, the whole store {all:.3?}"
    );
    assert!(none[2] < 0.3, "{none:?}");
    assert!(none[1] < one[1] && one[1] < four[1], "{none:?} {one:?} {four:?}");
    assert!(all[0] >= 0.9 && four[2] >= 0.9, "{all:?} {four:?}");
}
