//! Finds the range of each activation by running the float model on calibration samples, a few at a time.
//! Which activations are needed is `plan`'s choice; what a range means in integers is `numbers`.

use std::collections::{BTreeMap, HashMap};

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};

use super::{Calibration, QuantizeError};
use crate::float::FloatRunner;
use crate::pb::{ModelProto, ValueInfoProto};
use crate::{ModelError, TensorSignature};

/// Activations kept at a time, in elements: 64 MiB of float32.
const ELEMENTS_AT_ONCE: usize = 16 << 20;
/// Bins of a histogram; ONNX Runtime's percentile calibration uses the same number.
const BINS: usize = 2048;

/// The least and greatest value of each named activation, as `calibration` asks. Memory is bounded whatever the number of
/// samples; `model` is the float model and `input` its checked input.
pub(super) fn ranges(
    model: &ModelProto,
    input: &TensorSignature,
    names: &[String],
    samples: ArrayViewD<'_, f32>,
    calibration: Calibration,
) -> Result<BTreeMap<String, (f32, f32)>, QuantizeError> {
    let mut observer = Observer::new(model, input, names)?;
    let mut ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); names.len()];
    observer.each(samples.view(), |index, values| {
        for &value in values {
            if !value.is_finite() {
                return Err(QuantizeError::Calibration(format!(
                    "the activation {:?} is {value} on a calibration sample; the model diverged or the samples lack their preprocessing",
                    names[index]
                )));
            }
            ranges[index] = (ranges[index].0.min(value), ranges[index].1.max(value));
        }
        Ok(())
    })?;
    if let Calibration::Percentile(percentile) = calibration {
        let mut histograms = vec![[0u64; BINS]; names.len()];
        observer.each(samples, |index, values| {
            let (min, max) = ranges[index];
            let per_bin = (f64::from(max) - f64::from(min)) / BINS as f64;
            for &value in values {
                let bin = ((f64::from(value) - f64::from(min)) / per_bin) as usize;
                histograms[index][bin.min(BINS - 1)] += 1;
            }
            Ok(())
        })?;
        for (range, histogram) in ranges.iter_mut().zip(&histograms) {
            *range = percentile_range(*range, histogram, percentile);
        }
    }
    Ok(names.iter().cloned().zip(ranges).collect())
}

/// Cuts both tails so that together they hold at most the rest to `percentile` % of the values.
fn percentile_range((min, max): (f32, f32), histogram: &[u64], percentile: f32) -> (f32, f32) {
    let total: u64 = histogram.iter().sum();
    let tail = (total as f64 * (100.0 - f64::from(percentile)) / 200.0) as u64;
    let cut = |bins: &mut dyn Iterator<Item = &u64>| {
        let mut seen = 0;
        bins.take_while(|&&count| {
            seen += count;
            seen <= tail
        })
        .count()
    };
    let per_bin = (f64::from(max) - f64::from(min)) / histogram.len() as f64;
    let low = f64::from(min) + cut(&mut histogram.iter()) as f64 * per_bin;
    let high = f64::from(max) - cut(&mut histogram.iter().rev()) as f64 * per_bin;
    (low as f32, high.max(low) as f32)
}

/// The float model with activations as its outputs.
struct Observer {
    runner: FloatRunner,
    /// For each name, the index of its output; `None` = the model's own input.
    outputs: Vec<Option<usize>>,
    batch: usize,
}

impl Observer {
    fn new(model: &ModelProto, input: &TensorSignature, names: &[String]) -> Result<Observer, ModelError> {
        let mut model = model.clone();
        let mut outputs = Vec::with_capacity(names.len());
        if let Some(graph) = &mut model.graph {
            let mut listed: HashMap<String, usize> =
                graph.output.iter().enumerate().map(|(index, value)| (value.name.clone(), index)).collect();
            for name in names {
                outputs.push((*name != input.name).then(|| {
                    *listed.entry(name.clone()).or_insert_with(|| {
                        graph.output.push(ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() });
                        graph.output.len() - 1
                    })
                }));
            }
        }
        Ok(Observer { runner: FloatRunner::for_proto(model, input)?, outputs, batch: 1 })
    }

    /// Gives each activation's values to `visit`, batch by batch; the first batch of one tells how large the rest may be.
    fn each(
        &mut self,
        samples: ArrayViewD<'_, f32>,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let rows = samples.shape().first().copied().unwrap_or(0);
        let mut start = 0;
        while start < rows {
            let end = (start + self.batch).min(rows);
            let part = samples.slice_axis(Axis(0), Slice::from(start..end));
            let activations = self.runner.run_all(part.view())?;
            let input: ArrayD<f32> = part.as_standard_layout().into_owned();
            for (index, output) in self.outputs.iter().enumerate() {
                let array = output.map_or(Some(&input), |output| activations.get(output));
                let Some(array) = array else {
                    return Err(QuantizeError::Model("tract left out an activation".to_owned()));
                };
                visit(index, array.as_standard_layout().as_slice().unwrap_or_default())?;
            }
            let elements = activations.iter().map(ArrayD::len).sum::<usize>() / (end - start);
            self.batch = (ELEMENTS_AT_ONCE / elements.max(1)).clamp(1, 256);
            start = end;
        }
        Ok(())
    }
}
