//! A model file outside of serving: loaded, run on given inputs, and timed, for `fedge model run` and `fedge model bench`.
//! Printing is the command line's; serving is `prepare`'s and `serving`'s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fedge_models::Model;

use super::engine::{Engine, EngineError, EngineReport};

/// Most timed runs of one measurement.
const MAX_RUNS: usize = 100_000;

/// A model file as the node would run it.
pub struct Runnable {
    engine: Engine,
    sample_len: usize,
    output_shape: Vec<usize>,
}

/// How long batches took.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Each run's wall time in seconds, sorted.
    pub seconds: Vec<f64>,
    /// Samples of each run.
    pub batch: usize,
    /// Seconds of processor time a run, of the calling thread alone, where the system tells: what a busy machine does
    /// not distort as much.
    pub cpu_seconds: Option<f64>,
    /// Milliseconds a run that each kind of step takes on one thread; empty for tract.
    pub step_ms: BTreeMap<&'static str, f64>,
}

impl Measurement {
    /// The quantile `q`, 0 to 1, of the runs' times in milliseconds.
    pub fn quantile_ms(&self, q: f64) -> f64 {
        let last = self.seconds.len().saturating_sub(1);
        self.seconds.get((q.clamp(0.0, 1.0) * last as f64).round() as usize).map_or(0.0, |seconds| seconds * 1e3)
    }

    /// Samples a second, over all runs.
    pub fn throughput(&self) -> f64 {
        let total: f64 = self.seconds.iter().sum();
        if total > 0.0 { (self.seconds.len() * self.batch) as f64 / total } else { 0.0 }
    }
}

impl Runnable {
    /// Loads a checked model with float32 input and output; one batch uses up to `threads` threads. Blocking.
    pub fn load(model: &Model, threads: usize) -> Result<Runnable, EngineError> {
        let engine = Engine::load(model.bytes(), model.input(), model.output())?.with_threads(threads);
        let (sample_len, output_shape) = (model.input().sample_len(), model.output().sample_shape());
        Ok(Runnable { engine, sample_len, output_shape })
    }

    /// Like [`Runnable::load`], but always stock tract.
    pub fn load_in_tract(model: &Model) -> Result<Runnable, EngineError> {
        let proto = prost::Message::decode(&**model.bytes())
            .map_err(|error: prost::DecodeError| EngineError { action: "load", problem: error.to_string() })?;
        let engine = Engine::tract(&proto, model.input(), model.output(), None, true)?;
        let (sample_len, output_shape) = (model.input().sample_len(), model.output().sample_shape());
        Ok(Runnable { engine, sample_len, output_shape })
    }

    /// What runs it, and why.
    pub fn report(&self) -> EngineReport {
        self.engine.report()
    }

    /// Shape of one sample's output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Runs samples `[n, ...]`, row-major, n >= 1; gives `[n, ...]` outputs. Blocking.
    pub fn run(&self, samples: &[f32]) -> Result<Vec<f32>, EngineError> {
        self.engine.run(samples)
    }

    /// Times runs of `batch` pseudo-random samples for about `time`, at least three, after a warm-up. Blocking.
    pub fn measure(&self, batch: usize, time: Duration) -> Result<Measurement, EngineError> {
        let batch = batch.max(1);
        let mut state = 1u32;
        let samples: Vec<f32> = (0..batch * self.sample_len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.engine.run(&samples)?;
        let step_ms = self.engine.profile(&samples);
        let (start, cpu) = (Instant::now(), thread_seconds());
        let mut seconds = Vec::new();
        while seconds.len() < 3 || (start.elapsed() < time && seconds.len() < MAX_RUNS) {
            let run = Instant::now();
            self.engine.run(&samples)?;
            seconds.push(run.elapsed().as_secs_f64());
        }
        let spent = thread_seconds().zip(cpu).map(|(now, before)| (now - before) / seconds.len() as f64);
        seconds.sort_by(f64::total_cmp);
        Ok(Measurement { seconds, batch, cpu_seconds: spent, step_ms })
    }
}

/// Processor time of the calling thread in seconds, as Linux counts it.
fn thread_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse::<f64>().ok().map(|nanoseconds| nanoseconds / 1e9)
}

/// Runs `work` in a pool of `threads` threads of its own.
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> Result<T, EngineError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| EngineError { action: "run", problem: error.to_string() })?;
    Ok(pool.install(work))
}
