//! Dynamic batching: which waiting requests run together, how their tensors are put together and taken apart.
//! It decides and computes; waiting and running are the executor's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::bytes::{Bytes, BytesMut};

use super::queue::{Job, State};
use super::request::{Inputs, TensorData};

/// How requests are put together. The terms are those of other model servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchingOptions {
    /// Samples of one run, at most; 1: never put together. `None`: up to 32 where it was seen to pay when the model was
    /// loaded.
    pub max_batch_size: Option<usize>,
    /// Sizes that are worth waiting for, ascending; empty: `max_batch_size`.
    pub preferred_batch_size: Vec<usize>,
    /// How long the first request waits for others while the model is busy. An idle model runs it at once.
    pub max_queue_delay: Duration,
}

/// Where nobody says how large a batch may be.
const DEFAULT_MAX_BATCH: usize = 32;

/// What a thread should do.
pub(super) enum Next {
    /// Run these together.
    Run(Vec<Job>),
    /// Look again after this time, or when something comes.
    Wait(Duration),
    /// Nobody waits.
    Nothing,
}

/// Takes the next jobs, dropping those that nobody waits for or that waited too long.
pub(super) fn next(state: &mut State, options: &BatchingOptions, now: Instant) -> Next {
    state.remove_abandoned();
    state.remove_expired(now);
    let Some(first) = state.iter().next() else { return Next::Nothing };
    let serving = Arc::clone(&first.serving);
    let limit = match options.max_batch_size {
        _ if !serving.is_batched() => 1,
        Some(limit) => limit,
        None if serving.batching_pays() => DEFAULT_MAX_BATCH,
        None => 1,
    };
    let cap = options.preferred_batch_size.iter().copied().filter(|size| *size <= limit).max().unwrap_or(limit);
    let (mut count, mut rows) = (0, 0);
    for job in state.iter() {
        if count > 0 && (rows + job.rows > cap || !fit(first, job)) {
            break;
        }
        count += 1;
        rows += job.rows;
    }
    let reached = rows >= cap || options.preferred_batch_size.contains(&rows);
    let waited = now.saturating_duration_since(first.since);
    // Alone on an idle model there is nothing to wait for; and what does not fit behind it will not fit later.
    if !reached && count == state.waiting() && state.running > 0 && waited < options.max_queue_delay {
        return Next::Wait(options.max_queue_delay - waited);
    }
    Next::Run(state.take(count))
}

/// Whether two requests can share a run: the same version, and alike dimensions but for the batch.
fn fit(first: &Job, other: &Job) -> bool {
    Arc::ptr_eq(&first.serving, &other.serving)
        && match (&first.inputs, &other.inputs) {
            (Inputs::Floats(_), Inputs::Floats(_)) => true,
            (Inputs::Tensors(first), Inputs::Tensors(other)) => {
                first.iter().zip(other).all(|(a, b)| a.shape.get(1..) == b.shape.get(1..))
            }
            _ => false,
        }
}

/// The inputs of jobs that fit each other, as one.
pub(super) fn merge(jobs: &[Job]) -> Option<Inputs> {
    let rows: usize = jobs.iter().map(|job| job.rows).sum();
    match &jobs.first()?.inputs {
        Inputs::Floats(first) => {
            let mut merged = Vec::with_capacity(first.len().saturating_mul(jobs.len()));
            for job in jobs {
                let Inputs::Floats(values) = &job.inputs else { return None };
                merged.extend_from_slice(values);
            }
            Some(Inputs::Floats(merged))
        }
        Inputs::Tensors(first) => {
            let mut merged = Vec::with_capacity(first.len());
            for (index, tensor) in first.iter().enumerate() {
                let mut data = BytesMut::new();
                for job in jobs {
                    let Inputs::Tensors(tensors) = &job.inputs else { return None };
                    data.extend_from_slice(&tensors.get(index)?.data);
                }
                let mut shape = tensor.shape.clone();
                *shape.first_mut()? = rows;
                merged.push(TensorData { element: tensor.element, shape, data: data.freeze() });
            }
            Some(Inputs::Tensors(merged))
        }
    }
}

/// The outputs of each part of a batch; none where an output has not a row a sample.
pub(super) fn split(outputs: &[TensorData], parts: impl Iterator<Item = usize>) -> Option<Vec<Vec<TensorData>>> {
    let rows = outputs.first()?.shape.first().copied()?;
    let mut split = Vec::new();
    let mut from = 0;
    for part in parts {
        let slice = |output: &TensorData| {
            if output.shape.first() != Some(&rows) {
                return None;
            }
            let row_bytes = output.data.len() / rows.max(1);
            let mut shape = output.shape.clone();
            *shape.first_mut()? = part;
            let bytes = from * row_bytes..(from + part) * row_bytes;
            output.data.get(bytes.clone())?;
            let data: Bytes = output.data.slice(bytes);
            Some(TensorData { element: output.element, shape, data })
        };
        split.push(outputs.iter().map(slice).collect::<Option<Vec<_>>>()?);
        from += part;
    }
    (from == rows).then_some(split)
}
