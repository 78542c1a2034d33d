//! Drift detection: whether the inputs that a model answers, or how sure it is of its answers, have changed.
//! Decides without I/O and without a clock; `watch` feeds it from the serving path. What an alarm leads to is others'.
//!
//! The test: two-sample Kolmogorov-Smirnov between a reference and a sliding window (KSWIN: Raab, Heusinger, Schleif,
//! "Reactive Soft Prototype Computing for Concept Drift Streams", Neurocomputing 2020), one a feature with Bonferroni's
//! correction (Rabanser, Günnemann, Lipton, "Failing Loudly", NeurIPS 2019, section 3). Features of an input are very
//! sparse random projections (Li, Hastie, Church, KDD 2006); of an answer, the largest softmax probability.

mod ks;
mod watch;

use std::collections::VecDeque;

use rand::seq::index;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use watch::{DriftStatus, DriftWatch};

/// What is compared with what, and how sure an alarm must be.
#[derive(Clone, Debug, PartialEq)]
pub struct DriftOptions {
    /// Observations that the reference is made of: the first ones, and the first ones after a new version that an alarm
    /// preceded.
    pub reference: usize,
    /// Latest observations that are compared with it.
    pub window: usize,
    /// Random projections of an input.
    pub projections: usize,
    /// A comparison is made each time that so many observations came.
    pub every: usize,
    /// Probability of an alarm in one comparison where nothing changed, over all features together.
    pub level: f64,
    /// Seeds the projections.
    pub seed: u64,
}

impl Default for DriftOptions {
    /// 400 observations against the latest 100, each fifth time, 32 projections, at most one false alarm in a million
    /// comparisons.
    fn default() -> DriftOptions {
        DriftOptions { reference: 400, window: 100, projections: 32, every: 5, level: 1e-6, seed: 0 }
    }
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftKind {
    /// The inputs.
    Input,
    /// How sure the answers are.
    Confidence,
}

impl DriftKind {
    /// As it is written: `input` or `confidence`.
    pub fn name(self) -> &'static str {
        match self {
            DriftKind::Input => "input",
            DriftKind::Confidence => "confidence",
        }
    }
}

/// A change that was detected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftAlarm {
    /// What changed.
    pub kind: DriftKind,
    /// Greatest distance of the two empirical distributions over the features, 0 to 1.
    pub distance: f64,
    /// Distance above which there is an alarm.
    pub threshold: f64,
    /// Observations since the detector began.
    pub observation: u64,
    /// When, on the caller's clock.
    pub at_ms: u64,
}

/// Answers of older versions in a row that are taken for late ones: requests that were under way at a swap.
const LATE_ANSWERS: u32 = 1024;

/// Watches the answers of one model.
#[derive(Debug)]
pub struct Detector {
    options: DriftOptions,
    projections: Vec<Projection>,
    input_len: usize,
    inputs: Comparison,
    confidence: Comparison,
    version: u64,
    late: u32,
    observed: u64,
    alarm: Option<DriftAlarm>,
}

/// One random direction: the values with +1 and with -1 that are added up.
#[derive(Debug)]
struct Projection {
    plus: Vec<usize>,
    minus: Vec<usize>,
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(options: DriftOptions) -> Detector {
        Detector {
            inputs: Comparison::new(options.projections),
            confidence: Comparison::new(1),
            projections: Vec::new(),
            input_len: 0,
            version: 0,
            late: 0,
            observed: 0,
            alarm: None,
            options,
        }
    }

    /// The alarm that holds: from a change on, until a version comes that may have learnt from it.
    pub fn alarm(&self) -> Option<&DriftAlarm> {
        self.alarm.as_ref()
    }

    /// The version whose answers are watched; 0: none has answered.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Observations so far.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// Whether both references are full, so that a change can be seen.
    pub fn is_ready(&self) -> bool {
        self.inputs.is_full(&self.options) && self.confidence.is_full(&self.options)
    }

    /// Takes one answered input (raw, finite, any length) and how sure its answer was, 0 to 1, by this version of the
    /// model. Gives an alarm once for a change. Another version starts the reference of confidence anew, and after an
    /// alarm that of the inputs too: what it trained on is what is expected from then on. Late answers of an older version
    /// are left out.
    pub fn observe(&mut self, version: u64, input: &[f32], confidence: f32, now_ms: u64) -> Option<DriftAlarm> {
        if version < self.version && self.late < LATE_ANSWERS {
            self.late += 1;
            return None;
        }
        self.late = 0;
        if version != self.version {
            self.version = version;
            self.confidence = Comparison::new(1);
            if self.alarm.take().is_some() {
                self.inputs = Comparison::new(self.options.projections);
            }
        }
        if input.len() != self.input_len {
            self.input_len = input.len();
            self.projections = projections(input.len(), &self.options);
            self.inputs = Comparison::new(self.options.projections);
        }
        self.observed += 1;
        let features = self.projections.iter().map(|projection| projection.of(input)).collect();
        let confidence = if confidence.is_nan() { 0.0 } else { confidence };
        let tests = self.options.projections + 1;
        let far = [
            (DriftKind::Input, self.inputs.take(features, &self.options, tests)),
            (DriftKind::Confidence, self.confidence.take(vec![confidence], &self.options, tests)),
        ];
        if self.alarm.is_some() {
            return None;
        }
        let (kind, (distance, threshold)) = far.into_iter().find_map(|(kind, far)| Some((kind, far?)))?;
        self.alarm = Some(DriftAlarm { kind, distance, threshold, observation: self.observed, at_ms: now_ms });
        self.alarm
    }
}

impl Projection {
    fn of(&self, input: &[f32]) -> f32 {
        // In f64: inputs near the greatest float32 have a sum there too.
        let sum =
            |places: &[usize]| places.iter().filter_map(|&place| input.get(place)).map(|&v| f64::from(v)).sum::<f64>();
        (sum(&self.plus) - sum(&self.minus)).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
    }
}

/// Each of √n places of n with +1 or −1 by chance.
fn projections(len: usize, options: &DriftOptions) -> Vec<Projection> {
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let project = |_| {
        let places = index::sample(&mut random, len, len.isqrt().max(1).min(len));
        let (plus, minus) = places.into_iter().partition(|_| random.random::<bool>());
        Projection { plus, minus }
    };
    (0..options.projections).map(project).collect()
}

/// A reference and a window of the same features.
#[derive(Debug)]
struct Comparison {
    /// A feature each; sorted once it is full.
    reference: Vec<Vec<f32>>,
    window: VecDeque<Vec<f32>>,
    waited: usize,
}

impl Comparison {
    fn new(features: usize) -> Comparison {
        Comparison { reference: vec![Vec::new(); features], window: VecDeque::new(), waited: 0 }
    }

    fn is_full(&self, options: &DriftOptions) -> bool {
        self.reference.iter().all(|values| values.len() >= options.reference)
    }

    /// Takes one observation; gives the distance and the threshold where it is above.
    fn take(&mut self, features: Vec<f32>, options: &DriftOptions, tests: usize) -> Option<(f64, f64)> {
        if !self.is_full(options) {
            self.reference.iter_mut().zip(features).for_each(|(values, value)| values.push(value));
            if self.is_full(options) {
                self.reference.iter_mut().for_each(|values| values.sort_by(f32::total_cmp));
            }
            return None;
        }
        self.window.push_back(features);
        if self.window.len() > options.window {
            self.window.pop_front();
        }
        self.waited += 1;
        if self.window.len() < options.window || self.waited < options.every {
            return None;
        }
        self.waited = 0;
        let threshold = ks::threshold(options.level / tests as f64, options.reference, options.window);
        let distance = |(feature, reference): (usize, &Vec<f32>)| {
            let mut window: Vec<f32> = self.window.iter().filter_map(|one| one.get(feature)).copied().collect();
            window.sort_by(f32::total_cmp);
            ks::distance(reference, &window)
        };
        let farthest = self.reference.iter().enumerate().map(distance).fold(0.0, f64::max);
        (farthest > threshold).then_some((farthest, threshold))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
