//! Tests of the sample store: what is kept, what goes, what survives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;

use tempfile::TempDir;

use super::super::SampleId;
use super::*;
use crate::inference::test_fixtures::digits;

async fn open(directory: &TempDir, limits: Limits) -> SampleStore {
    SampleStore::open(&directory.path().join("samples.db"), limits).await.unwrap()
}

fn input(seed: u32) -> Vec<f32> {
    (0..4).map(|index| (seed * 7 + index) as f32).collect()
}

fn pairs(samples: &[Sample]) -> Vec<(Vec<f32>, u32)> {
    samples.iter().map(|sample| (sample.input.clone(), sample.label)).collect()
}

#[tokio::test]
async fn the_same_input_counts_once_with_its_latest_label() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    assert_eq!(store.add("m", &[0.0, 1.0], 3).await.unwrap(), Added::New);
    assert_eq!(store.add("m", &[-0.0, 1.0], 3).await.unwrap(), Added::Duplicate);
    assert_eq!(store.add("m", &[0.0, 1.0], 4).await.unwrap(), Added::Relabelled);
    assert_eq!(store.add("other", &[0.0, 1.0], 4).await.unwrap(), Added::New);
    let all = [store.training_set("m").await.unwrap(), store.held_out_set("m").await.unwrap()].concat();
    assert_eq!(all, [Sample { input: vec![0.0, 1.0], label: 4 }]);
    let counts = store.counts("m").await.unwrap();
    assert_eq!(counts.training + counts.held_out, 1);
}

#[tokio::test]
async fn a_tenth_of_real_data_is_held_out_and_never_trained_on_and_all_survives_a_reopen() {
    let directory = TempDir::new().unwrap();
    let digits = digits();
    let store = open(&directory, Limits::default()).await;
    let added = store.add_many("digits", pairs(&digits)).await.unwrap();
    assert_eq!(added.new + added.duplicates + added.relabelled, 1797);
    let again = store.add_many("digits", pairs(&digits)).await.unwrap();
    assert_eq!((again.new, again.relabelled), (0, added.relabelled * 2), "ingesting a file twice changes nothing");
    let before = (store.training_set("digits").await.unwrap(), store.held_out_set("digits").await.unwrap());
    store.close().await;

    let store = open(&directory, Limits::default()).await;
    let (training, held_out) =
        (store.training_set("digits").await.unwrap(), store.held_out_set("digits").await.unwrap());
    assert_eq!((&training, &held_out), (&before.0, &before.1));
    let share = held_out.len() as f64 / added.new as f64;
    assert!((0.08..0.12).contains(&share), "{share}");
    let bits = |sample: &Sample| sample.input.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let kept_out: HashSet<_> = held_out.iter().map(bits).collect();
    assert!(training.iter().all(|sample| !kept_out.contains(&bits(sample))));
    let calibration = store.calibration_set("digits", 100).await.unwrap();
    assert_eq!(calibration.len(), 100);
    assert!(calibration.iter().all(|input| !kept_out.contains(&bits(&Sample { input: input.clone(), label: 0 }))));
    assert_eq!(
        store.counts("digits").await.unwrap(),
        Counts { training: training.len() as u64, held_out: held_out.len() as u64, pending: 0 }
    );
}

#[tokio::test]
async fn calibration_samples_are_spread_over_the_classes_and_filled_with_waiting_inputs() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    let many = (0..200).map(|seed| (input(seed), 0)).chain((200..220).map(|seed| (input(seed), 1))).collect();
    store.add_many("m", many).await.unwrap();
    let training = store.training_set("m").await.unwrap();
    let calibration = store.calibration_set("m", 20).await.unwrap();
    let of_rare = |input: &Vec<f32>| training.iter().any(|sample| sample.label == 1 && sample.input == *input);
    assert_eq!(calibration.iter().filter(|input| of_rare(input)).count(), 10);

    for seed in 1000..1020 {
        store.keep_pending("n", &input(seed)).await.unwrap();
    }
    let waiting = store.calibration_set("n", 100).await.unwrap();
    assert!((10..=20).contains(&waiting.len()), "all but the held-out ones: {}", waiting.len());
}

#[tokio::test]
async fn a_full_store_takes_from_the_most_frequent_class_and_what_stays_depends_on_no_order() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_samples: 30, ..Limits::default() };
    let mut kept = Vec::new();
    for (name, backwards) in [("a.db", false), ("b.db", true)] {
        let store = SampleStore::open(&directory.path().join(name), limits.clone()).await.unwrap();
        for seed in 0..10 {
            store.add("m", &input(seed), 1).await.unwrap();
        }
        let mut many: Vec<_> = (100..200).map(|seed| (input(seed), 2)).collect();
        if backwards {
            many.reverse();
        }
        for part in many.chunks(7) {
            store.add_many("m", part.to_vec()).await.unwrap();
        }
        store.add("m", &input(300), 3).await.unwrap();
        // Sent again, what was given up stays away.
        store.add_many("m", many).await.unwrap();
        let all = [store.training_set("m").await.unwrap(), store.held_out_set("m").await.unwrap()].concat();
        let of = |label| all.iter().filter(|sample| sample.label == label).count();
        assert_eq!((of(1), of(2), of(3)), (10, 19, 1));
        kept.push(all.iter().map(|sample| sample.input[0] as u32).collect::<std::collections::BTreeSet<_>>());
    }
    assert_eq!(kept[0], kept[1]);
}

#[tokio::test]
async fn a_full_class_is_a_uniform_sample_of_all_that_came() {
    // 4,000 inputs through a reservoir of 400: of each tenth of the stream a tenth stays. The number that stays of one
    // tenth has a standard deviation of 5.7 (hypergeometric), so 40 plus or minus 24 is more than four of them.
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits { max_samples: 400, ..Limits::default() }).await;
    for part in 0..40 {
        let many = (part * 100..(part + 1) * 100).map(|seed| (input(seed), 0)).collect();
        store.add_many("m", many).await.unwrap();
    }
    let all = [store.training_set("m").await.unwrap(), store.held_out_set("m").await.unwrap()].concat();
    let mut tenths = [0; 10];
    all.iter().for_each(|sample| tenths[sample.input[0] as usize / 7 / 400] += 1);
    assert_eq!(tenths.iter().sum::<i32>(), 400);
    assert!(tenths.iter().all(|count| (16..=64).contains(count)), "{tenths:?}");
}

#[tokio::test]
async fn a_store_of_the_first_version_is_migrated_with_all_that_it_holds() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("samples.db");
    std::fs::write(&path, include_bytes!("fixtures/store_v1.db")).unwrap();
    let store = SampleStore::open(&path, Limits { max_samples: 20, ..Limits::default() }).await.unwrap();
    let counts = store.counts("digits").await.unwrap();
    assert_eq!((counts.training + counts.held_out, counts.pending), (40, 1));
    let all = [store.training_set("digits").await.unwrap(), store.held_out_set("digits").await.unwrap()].concat();
    assert!(all.iter().all(|sample| sample.input[0] as u32 / 7 % 4 == sample.label));
    store.add("digits", &input(500), 7).await.unwrap();
    let counts = store.counts("digits").await.unwrap();
    assert_eq!(counts.training + counts.held_out, 20, "the bound holds from the next sample on");
    store.close().await;
    SampleStore::open(&path, Limits::default()).await.unwrap();
}

#[tokio::test]
async fn the_bound_in_bytes_holds_and_a_sample_above_it_is_refused() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits { max_bytes: 160, ..Limits::default() }).await;
    store.add_many("m", (0..50).map(|seed| (input(seed), seed % 3)).collect()).await.unwrap();
    let counts = store.counts("m").await.unwrap();
    assert_eq!(counts.training + counts.held_out, 10, "10 samples of 16 bytes");
    let error = store.add("m", &[0.0; 41], 0).await.unwrap_err();
    assert!(matches!(error, SampleError::TooLarge { bytes: 164, limit: 160 }), "{error}");
}

#[tokio::test]
async fn nan_infinity_and_nothing_are_refused_and_one_bad_sample_keeps_a_batch_out() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = store.add_many("m", vec![(vec![1.0, 2.0], 0), (vec![0.0, bad], 0)]).await.unwrap_err();
        assert!(error.to_string().contains("element 1 (from 0)"), "{error}");
        assert!(store.keep_pending("m", &[bad]).await.is_err());
        assert_eq!(store.try_keep_pending("m", vec![bad]), None);
    }
    assert!(matches!(store.add("m", &[], 0).await, Err(SampleError::Empty)));
    assert_eq!(store.counts("m").await.unwrap(), Counts::default());
}

#[tokio::test]
async fn a_label_by_id_makes_a_sample_once_even_right_after_the_answer() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    let id = store.try_keep_pending("m", input(1)).unwrap();
    assert_eq!(store.pending(&id).await.unwrap(), ("m".to_owned(), 4));
    assert_eq!(store.label_pending(&id, 5).await.unwrap().added, Added::New);
    assert!(matches!(store.label_pending(&id, 5).await, Err(SampleError::AlreadyLabelled { .. })));
    assert!(matches!(store.label_pending(&SampleId::mint(), 5).await, Err(SampleError::UnknownId { .. })));
    let all = [store.training_set("m").await.unwrap(), store.held_out_set("m").await.unwrap()].concat();
    assert_eq!(all, [Sample { input: input(1), label: 5 }]);
    assert_eq!(store.counts("m").await.unwrap().pending, 0);
}

#[tokio::test]
async fn of_two_labels_at_once_for_one_answer_one_wins() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    let id = store.keep_pending("m", &input(1)).await.unwrap();
    let (first, second) = tokio::join!(store.label_pending(&id, 1), store.label_pending(&id, 2));
    assert_eq!([&first, &second].iter().filter(|result| result.is_ok()).count(), 1, "{first:?} {second:?}");
    let lost = first.and(second).unwrap_err();
    assert!(matches!(lost, SampleError::AlreadyLabelled { .. }), "{lost}");
}

#[tokio::test]
async fn pending_inputs_are_bounded_and_the_oldest_goes_first() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits { max_pending: 3, ..Limits::default() }).await;
    let mut ids = Vec::new();
    for seed in 0..5 {
        ids.push(store.keep_pending("m", &input(seed)).await.unwrap());
    }
    assert_eq!(store.counts("m").await.unwrap().pending, 3);
    for old in &ids[..2] {
        assert!(matches!(store.label_pending(old, 0).await, Err(SampleError::Expired { .. })));
    }
    store.label_pending(&ids[2], 0).await.unwrap();
    for seed in 0..200 {
        store.keep_pending("m", &input(seed)).await.unwrap();
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM pending").fetch_one(&store.inner.pool).await.unwrap();
    assert!(rows <= 30, "{rows} rows");
    assert!(matches!(store.label_pending(&ids[2], 0).await, Err(SampleError::UnknownId { .. })), "long forgotten");
}

#[tokio::test]
async fn pending_inputs_expire_by_the_time_that_the_store_was_open() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { pending_ttl: Duration::from_secs(1), ..Limits::default() };
    let store = open(&directory, limits.clone()).await;
    let id = store.keep_pending("m", &input(1)).await.unwrap();
    store.close().await;
    tokio::time::sleep(Duration::from_millis(1300)).await;

    let store = open(&directory, limits).await;
    assert_eq!(store.counts("m").await.unwrap().pending, 1, "the time while it was closed does not count");
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(matches!(store.label_pending(&id, 0).await, Err(SampleError::Expired { .. })));
    assert_eq!(store.counts("m").await.unwrap().pending, 0);
}

#[tokio::test]
async fn a_full_queue_of_pending_inputs_never_waits() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory, Limits::default()).await;
    // Holding the turn to write keeps the writer task from emptying the queue.
    let turn = store.inner.begin().await.unwrap();
    let mut refused = 0;
    for seed in 0..2000 {
        refused += u32::from(store.try_keep_pending("m", input(seed)).is_none());
        tokio::task::yield_now().await;
    }
    assert!(refused > 1000, "{refused}");
    drop(turn);
    store.writer.flush().await;
    assert!(store.try_keep_pending("m", input(1)).is_some(), "and there is room again");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("samples.db");
    let garbage = vec![0x5a; 8192];
    std::fs::write(&path, &garbage).unwrap();
    let error = SampleStore::open(&path, Limits::default()).await.unwrap_err();
    assert!(matches!(error, SampleError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("move this file"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[tokio::test]
async fn damage_inside_the_database_is_told_as_such() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("samples.db");
    let store = open(&directory, Limits::default()).await;
    store.add_many("m", (0..2000).map(|seed| (input(seed), 0)).collect()).await.unwrap();
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let error = async { SampleStore::open(&path, Limits::default()).await?.training_set("m").await }.await.unwrap_err();
    assert!(matches!(error, SampleError::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap().len(), bytes.len());
}

#[tokio::test]
async fn a_missing_directory_is_an_error_that_says_what_to_check() {
    let directory = TempDir::new().unwrap();
    let error = SampleStore::open(&directory.path().join("no/samples.db"), Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("check that the directory exists"), "{error}");
}
