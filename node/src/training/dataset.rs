//! Labelled samples in memory, already preprocessed, and their check against a model; sets may share one memory.
//! Where samples come from and how they are kept is `samples`' matter.

use std::sync::Arc;

use fedge_models::Model;

use super::TrainingError;

/// Labelled samples for classification, ready for the model's input. Clones and selections share the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    samples: Arc<Samples>,
    /// The samples of this set, by their place among the shared ones; `None`: all of them, in order.
    rows: Option<Arc<[u32]>>,
}

#[derive(Debug, PartialEq)]
struct Samples {
    /// `[samples, sample_len]`, row-major.
    inputs: Vec<f32>,
    labels: Vec<u32>,
    shape: Vec<usize>,
    /// Product of `shape`, at least 1.
    len: usize,
}

impl Dataset {
    /// Joins `n` samples: `inputs` holds `n · sample_len` numbers, row-major, preprocessed; `labels` holds `n` class
    /// indices; `sample_shape` is one sample's shape without the batch.
    ///
    /// Refused: no samples, lengths that do not match, an empty sample shape's product of 0 or overflow, and NaN or
    /// infinity (with the sample's number). Labels are checked against the model's classes when the data is used.
    pub fn new(inputs: Vec<f32>, labels: Vec<u32>, sample_shape: Vec<usize>) -> Result<Dataset, TrainingError> {
        let sample_len = sample_shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|&len| len > 0)
            .ok_or_else(|| TrainingError::data(format!("the sample shape {sample_shape:?} has no usable size")))?;
        if labels.is_empty() {
            return Err(TrainingError::data("there are no samples; collect at least one"));
        }
        if labels.len().checked_mul(sample_len) != Some(inputs.len()) {
            return Err(TrainingError::data(format!(
                "{} numbers do not make {} samples of shape {sample_shape:?} ({sample_len} numbers each)",
                inputs.len(),
                labels.len()
            )));
        }
        if let Some(index) = inputs.iter().position(|value| !value.is_finite()) {
            let (sample, element) = (index / sample_len + 1, index % sample_len + 1);
            return Err(TrainingError::data(format!(
                "sample {sample}, number {element} is NaN or infinite; remove or repair that sample"
            )));
        }
        let samples = Samples { inputs, labels, shape: sample_shape, len: sample_len };
        Ok(Dataset { samples: Arc::new(samples), rows: None })
    }

    /// The samples of these indices, in this order, as a set of its own that shares this one's memory: a simulation
    /// gives thousands of nodes their parts of one data set so. No indices and indices past the end are refused.
    pub fn select(&self, rows: Arc<[u32]>) -> Result<Dataset, TrainingError> {
        if rows.is_empty() {
            return Err(TrainingError::data("there are no samples; collect at least one"));
        }
        if let Some(row) = rows.iter().find(|&&row| row as usize >= self.len()) {
            return Err(TrainingError::data(format!("there is no sample {row}; the last one is {}", self.len() - 1)));
        }
        let rows = match &self.rows {
            None => rows,
            Some(own) => rows.iter().filter_map(|&row| own.get(row as usize).copied()).collect(),
        };
        Ok(Dataset { samples: self.samples.clone(), rows: Some(rows) })
    }

    /// Number of samples, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(self.samples.labels.len(), |rows| rows.len())
    }

    /// Shape of one sample, without the batch.
    pub fn sample_shape(&self) -> &[usize] {
        &self.samples.shape
    }

    /// Class index of each sample, in order.
    pub fn labels(&self) -> Vec<u32> {
        match &self.rows {
            None => self.samples.labels.clone(),
            Some(rows) => rows.iter().filter_map(|&row| self.samples.labels.get(row as usize).copied()).collect(),
        }
    }

    /// All samples, copied into one batch.
    pub(super) fn whole(&self) -> (Vec<f32>, Vec<u32>) {
        self.batch(&(0..self.len()).collect::<Vec<_>>())
    }

    /// The samples of these indices, copied into one batch; indices past the end are left out.
    pub(super) fn batch(&self, indices: &[usize]) -> (Vec<f32>, Vec<u32>) {
        let Samples { inputs: all, labels: all_labels, len, .. } = &*self.samples;
        let mut inputs = Vec::with_capacity(indices.len() * len);
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            let row = match &self.rows {
                None => index,
                Some(rows) => rows.get(index).map_or(usize::MAX, |&row| row as usize),
            };
            let sample = row.checked_mul(*len).and_then(|start| all.get(start..start.checked_add(*len)?));
            if let (Some(label), Some(sample)) = (all_labels.get(row), sample) {
                inputs.extend_from_slice(sample);
                labels.push(*label);
            }
        }
        (inputs, labels)
    }

    /// Checks the samples' shape against the model's input.
    pub(super) fn check_shape(&self, model: &Model) -> Result<(), TrainingError> {
        let expected = model.input().sample_shape();
        if self.sample_shape() == expected {
            return Ok(());
        }
        Err(TrainingError::data(format!(
            "samples have the shape {:?}, but the model's input {:?} takes {expected:?}; bring them into that shape",
            self.sample_shape(),
            model.input().name
        )))
    }

    /// Checks every label against the number of classes.
    pub(super) fn check_labels(&self, classes: usize) -> Result<(), TrainingError> {
        let labels = self.labels();
        match labels.iter().enumerate().find(|(_, label)| **label as usize >= classes) {
            None => Ok(()),
            Some((index, label)) => Err(TrainingError::data(format!(
                "sample {} has the label {label}, but the model has {classes} classes (0 to {}); correct the label",
                index + 1,
                classes.saturating_sub(1)
            ))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_empty_ragged_or_not_finite_is_refused() {
        let refused = |inputs: Vec<f32>, labels: Vec<u32>, shape: Vec<usize>| {
            Dataset::new(inputs, labels, shape).unwrap_err().to_string()
        };
        assert!(refused(vec![], vec![], vec![2]).contains("no samples"));
        assert!(refused(vec![0.0; 5], vec![0, 1], vec![2]).contains("5 numbers do not make 2 samples"));
        assert!(refused(vec![0.0; 2], vec![0], vec![0]).contains("no usable size"));
        assert!(refused(vec![0.0; 2], vec![0], vec![usize::MAX, 4]).contains("no usable size"));
        assert!(refused(vec![0.0, 1.0, 2.0, f32::NAN], vec![0, 1], vec![2]).contains("sample 2, number 2"));
        assert!(refused(vec![f32::INFINITY, 1.0], vec![0], vec![2]).contains("sample 1, number 1"));
    }

    #[test]
    fn a_batch_holds_the_asked_samples_in_order() {
        let data = Dataset::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![7, 8, 9], vec![2]).unwrap();
        assert_eq!(data.batch(&[2, 0]), (vec![5.0, 6.0, 1.0, 2.0], vec![9, 7]));
    }

    #[test]
    fn a_selection_shares_the_samples_and_a_selection_of_it_counts_from_its_own_first() {
        let data = Dataset::new(vec![1.0, 2.0, 3.0, 4.0], vec![7, 8, 9, 10], vec![1]).unwrap();
        let part = data.select(Arc::from([3, 1, 1])).unwrap();
        assert_eq!((part.len(), part.labels()), (3, vec![10, 8, 8]));
        assert_eq!(part.batch(&[0, 1, 5]), (vec![4.0, 2.0], vec![10, 8]));
        assert!(Arc::ptr_eq(&part.samples, &data.samples));
        assert_eq!(part.select(Arc::from([0])).unwrap().whole(), (vec![4.0], vec![10]));
        assert!(data.select(Arc::from([])).unwrap_err().to_string().contains("no samples"));
        assert!(part.select(Arc::from([3])).unwrap_err().to_string().contains("no sample 3"));
    }
}
