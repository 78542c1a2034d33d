//! Feeds the detectors from the serving path without ever holding it up, and tells what they say.
//! The decision is the parent's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Detector, DriftAlarm, DriftOptions};

/// Observations that are taken at once at most, and refilled at this rate a second: a busy model is sampled.
const BURST: f64 = 1000.0;
const RATE: f64 = 100.0;
/// Models that are watched, at most.
const MAX_MODELS: usize = 1024;

/// One detector a model. Clones share them.
#[derive(Clone, Debug)]
pub struct DriftWatch {
    options: DriftOptions,
    started: Instant,
    models: Arc<Mutex<BTreeMap<String, Watched>>>,
}

#[derive(Debug)]
struct Watched {
    detector: Detector,
    alarms: u64,
    allowance: f64,
    refilled_ms: u64,
}

/// What a model's detector says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// The model.
    pub model: String,
    /// The version whose answers are watched.
    pub version: u64,
    /// Observations so far.
    pub observed: u64,
    /// Whether the references are full.
    pub ready: bool,
    /// Alarms so far.
    pub alarms: u64,
    /// The alarm that holds.
    pub alarm: Option<DriftAlarm>,
}

/// One number of a model's status.
type Reading = fn(&DriftStatus) -> u64;

impl DriftWatch {
    /// Watches with these options.
    pub fn new(options: DriftOptions) -> DriftWatch {
        DriftWatch { options, started: Instant::now(), models: Arc::default() }
    }

    /// Takes an answered input and the outputs of its answer, where there is room. Never waits.
    pub fn observe(&self, model: &str, version: u64, input: &[f32], outputs: &[f32]) {
        // Whoever looks at the moment costs one observation, and no reply waits.
        let Ok(mut models) = self.models.try_lock() else { return };
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !models.contains_key(model) {
            if models.len() >= MAX_MODELS {
                return;
            }
            let detector = Detector::new(self.options.clone());
            let watched = Watched { detector, alarms: 0, allowance: BURST, refilled_ms: now_ms };
            models.insert(model.to_owned(), watched);
        }
        let Some(watched) = models.get_mut(model) else { return };
        let elapsed_ms = now_ms.saturating_sub(watched.refilled_ms);
        watched.allowance = (watched.allowance + elapsed_ms as f64 / 1e3 * RATE).min(BURST);
        watched.refilled_ms = now_ms;
        if watched.allowance < 1.0 {
            return;
        }
        watched.allowance -= 1.0;
        if let Some(alarm) = watched.detector.observe(version, input, confidence(outputs), now_ms) {
            watched.alarms += 1;
            tracing::warn!(
                model,
                version,
                kind = alarm.kind.name(),
                distance = alarm.distance,
                threshold = alarm.threshold,
                observation = alarm.observation,
                "drift: what the model is asked has changed"
            );
        }
    }

    /// The detectors' series in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        let status = self.status();
        let series: [(&str, &str, &str, Reading); 3] = [
            ("fedge_drift_observations_total", "Answered inputs that were watched for drift", "counter", |s| {
                s.observed
            }),
            ("fedge_drift_alarms_total", "Changes of inputs or of confidence that were detected", "counter", |s| {
                s.alarms
            }),
            ("fedge_drift_detected", "1 from a detected change until the next version", "gauge", |s| {
                u64::from(s.alarm.is_some())
            }),
        ];
        let mut text = String::new();
        for (name, help, kind, value) in series {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            for one in &status {
                let model = one.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                text.push_str(&format!("{name}{{model=\"{model}\"}} {}\n", value(one)));
            }
        }
        text
    }

    /// What each model's detector says, by name.
    pub fn status(&self) -> Vec<DriftStatus> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |(model, watched): (&String, &Watched)| DriftStatus {
            model: model.clone(),
            version: watched.detector.version(),
            observed: watched.detector.observed(),
            ready: watched.detector.is_ready(),
            alarms: watched.alarms,
            alarm: watched.detector.alarm().copied(),
        };
        models.iter().map(status).collect()
    }
}

/// The largest softmax probability; 1 where there is no finite output.
fn confidence(outputs: &[f32]) -> f32 {
    let finite = || outputs.iter().copied().filter(|value| value.is_finite());
    let largest = finite().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = finite().map(|value| (value - largest).exp()).sum();
    if sum > 0.0 { 1.0 / sum } else { 1.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_model_is_sampled_and_a_change_is_told_once() {
        let options = DriftOptions { reference: 100, window: 50, ..DriftOptions::default() };
        let watch = DriftWatch::new(options);
        for i in 0..200 {
            watch.observe("m", 1, &[(i % 17) as f32, (i % 13) as f32], &[3.0, 0.0]);
        }
        for i in 0..5000 {
            watch.observe("m", 1, &[(i % 17) as f32 + 100.0, (i % 13) as f32], &[3.0, 0.0]);
        }
        let [status] = &watch.status()[..] else { panic!() };
        assert!((1000..2000).contains(&status.observed) && status.ready, "{status:?}");
        assert_eq!(status.alarms, 1);
        let text = watch.metrics();
        assert!(text.contains("fedge_drift_alarms_total{model=\"m\"} 1\n"), "{text}");
        assert!(text.contains("fedge_drift_detected{model=\"m\"} 1\n"), "{text}");
        assert!(status.alarm.unwrap().observation <= 260, "{status:?}");
        watch.observe("m", 2, &[0.0, 0.0], &[3.0, 0.0]);
    }

    #[test]
    fn confidence_is_the_largest_softmax_probability() {
        assert!((confidence(&[0.0, 0.0]) - 0.5).abs() < 1e-6);
        assert!((confidence(&[1000.0, 0.0]) - 1.0).abs() < 1e-6);
        assert_eq!(confidence(&[]), 1.0);
        assert_eq!(confidence(&[f32::NAN]), 1.0);
    }
}
