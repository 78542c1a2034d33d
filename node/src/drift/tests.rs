//! What the detector must show on real digits: shifts found soon, no alarm where nothing shifts, for five seeds.

use rand::RngExt;

use super::*;
use crate::inference::request::{InferRequest, InputData, InputTensor, RequestLimits};
use crate::inference::test_fixtures::{digits, serving};
use crate::inference::{Inference, KeepPolicy, ModelRepository};

const SHIFT_WITHIN: u64 = 200;

/// Each digit, and how sure the served model is of it.
fn asked(transform: impl Fn(&[f32]) -> Vec<f32>) -> Vec<(Vec<f32>, f32)> {
    let serving = serving(1);
    let inputs: Vec<Vec<f32>> = digits().iter().map(|sample| transform(&sample.input)).collect();
    let answer = |input: Vec<f32>| {
        let outputs = serving.run(&input).unwrap().values;
        let largest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = outputs.iter().map(|value| (value - largest).exp()).sum();
        (input, 1.0 / sum)
    };
    inputs.into_iter().map(answer).collect()
}

fn rotated(input: &[f32]) -> Vec<f32> {
    (0..64).map(|i| input[(7 - i % 8) * 8 + i / 8]).collect()
}

/// A detector that saw this many resampled digits, and the alarm that one of them gave.
fn after(plain: &[(Vec<f32>, f32)], count: usize, seed: u64) -> (Detector, ChaCha8Rng, Option<DriftAlarm>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut detector = Detector::new(DriftOptions { seed, ..DriftOptions::default() });
    let mut alarm = None;
    for now in 0..count {
        let (input, confidence) = &plain[random.random_range(0..plain.len())];
        alarm = alarm.or(detector.observe(1, input, *confidence, now as u64));
    }
    (detector, random, alarm)
}

#[test]
fn shifted_digits_are_detected_within_200_samples_and_10_000_unshifted_ones_give_no_alarm_for_five_seeds() {
    let plain = asked(<[f32]>::to_vec);
    let shifts = [("inverted", asked(|input| input.iter().map(|v| 16.0 - v).collect())), ("rotated", asked(rotated))];
    for seed in 0..5 {
        let (_, _, alarm) = after(&plain, 10_000, seed);
        assert_eq!(alarm, None, "seed {seed}");
        for (name, shifted) in &shifts {
            let (mut detector, mut random, _) = after(&plain, 1000, seed);
            let delay = (1..=SHIFT_WITHIN).find_map(|delay| {
                let (input, confidence) = &shifted[random.random_range(0..shifted.len())];
                detector.observe(1, input, *confidence, 1000 + delay).map(|alarm| (delay, alarm))
            });
            let (delay, alarm) = delay.unwrap_or_else(|| panic!("{name}, seed {seed}: not detected"));
            println!("seed {seed}, {name}: detected after {delay} samples, {alarm:?}");
            assert_eq!((alarm.at_ms, alarm.observation), (1000 + delay, 1000 + delay));
        }
    }
}

#[test]
fn answers_that_become_less_sure_are_detected_where_the_inputs_look_the_same() {
    let plain = asked(<[f32]>::to_vec);
    let (mut detector, mut random, alarm) = after(&plain, 1000, 3);
    assert_eq!(alarm, None);
    let alarm = (0..SHIFT_WITHIN).find_map(|now| {
        let (input, confidence) = &plain[random.random_range(0..plain.len())];
        detector.observe(1, input, confidence * random.random_range(0.3..0.9), now)
    });
    assert_eq!(alarm.unwrap().kind, DriftKind::Confidence);
}

#[test]
fn an_alarm_holds_until_another_version_and_then_the_new_inputs_are_expected() {
    let plain = asked(<[f32]>::to_vec);
    let (mut detector, mut random, _) = after(&plain, 600, 1);
    let mut shown = |detector: &mut Detector, version, count| {
        let draw = |_| {
            let (input, confidence) = &plain[random.random_range(0..plain.len())];
            detector.observe(version, &rotated(input), *confidence, 0)
        };
        (0..count).filter_map(draw).count()
    };
    assert_eq!(shown(&mut detector, 1, 500), 1, "told once");
    assert!(detector.alarm().is_some());
    assert_eq!(shown(&mut detector, 2, 2000), 0);
    assert!(detector.alarm().is_none() && detector.is_ready());
}

#[tokio::test]
async fn the_serving_path_shows_what_it_answers_and_the_change_is_in_the_status_and_the_metrics() {
    let repository = std::sync::Arc::new(ModelRepository::new());
    repository.swap(serving(1));
    let watch = DriftWatch::new(DriftOptions { reference: 200, ..DriftOptions::default() });
    let inference = Inference::new(repository, None, KeepPolicy::Off, RequestLimits::default()).watching(Some(watch));
    let ask = async |input: &[f32]| {
        let data: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (name, datatype, shape) = ("pixels".to_owned(), "FP32".to_owned(), vec![1, 1, 8, 8]);
        let inputs = vec![InputTensor { name, datatype, shape, data: InputData::Raw(data.into()) }];
        inference.infer(InferRequest { model: "digits".to_owned(), inputs, ..InferRequest::default() }).await.unwrap();
    };
    let digits = digits();
    for sample in &digits[..400] {
        ask(&sample.input).await;
    }
    let status = || inference.drift().unwrap().status();
    assert!(status()[0].ready && status()[0].alarms == 0 && status()[0].observed == 400, "{:?}", status());
    for sample in &digits[400..400 + SHIFT_WITHIN as usize] {
        ask(&rotated(&sample.input)).await;
    }
    let [told] = &status()[..] else { panic!() };
    assert_eq!((told.model.as_str(), told.alarms, told.alarm.unwrap().kind), ("digits", 1, DriftKind::Input));
    let text = inference.drift().unwrap().metrics();
    assert!(text.contains("fedge_drift_detected{model=\"digits\"} 1\n"), "{text}");
}

#[test]
fn values_at_the_ends_of_float32_and_a_confidence_that_is_none_are_observations_like_any() {
    let mut detector = Detector::new(DriftOptions::default());
    for now in 0..1000 {
        let value = if now % 3 == 0 { f32::MIN } else { f32::MAX };
        detector.observe(1, &[value; 64], f32::NAN, now);
    }
    assert!(detector.is_ready() && detector.observed() == 1000);
}

#[test]
fn late_answers_of_the_version_before_change_nothing_but_a_lasting_return_to_it_does() {
    let mut detector = Detector::new(DriftOptions { reference: 100, window: 50, ..DriftOptions::default() });
    for i in 0..400 {
        let shift = if i < 200 { 0.0 } else { 100.0 };
        detector.observe(1, &[(i % 17) as f32 + shift], 0.9, 0);
    }
    assert_eq!((detector.version(), detector.alarm().is_some()), (1, true));
    detector.observe(2, &[100.0], 0.9, 0);
    let observed = detector.observed();
    for _ in 0..LATE_ANSWERS {
        detector.observe(1, &[100.0], 0.9, 0);
    }
    assert_eq!((detector.version(), detector.alarm(), detector.observed()), (2, None, observed));
    detector.observe(1, &[100.0], 0.9, 0);
    assert_eq!(detector.version(), 1, "the fleet went back to it");
}
