//! Samples with their targets, already preprocessed, and their check against a model; sets may share one memory. The inputs of many
//! samples lie in a file (`inputs`).
//! Where samples come from and how they are kept is `samples`' matter.

mod inputs;

use std::sync::Arc;

use fedge_models::{ElementType, Model};

use super::TrainingError;
use inputs::Inputs;

/// What the outputs for some samples should be, sample after sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class indices.
    Classes {
        /// One a sample, or `shape`'s product of them.
        labels: Vec<u32>,
        /// Shape of one sample's labels; empty: one label.
        shape: Vec<usize>,
    },
    /// Numbers to come close to.
    Values {
        /// `shape`'s product of them a sample; finite.
        values: Vec<f32>,
        /// Shape of one sample's targets.
        shape: Vec<usize>,
    },
}

impl Targets {
    /// Shape of one sample's targets.
    pub(super) fn shape(&self) -> &[usize] {
        let (Targets::Classes { shape, .. } | Targets::Values { shape, .. }) = self;
        shape
    }

    /// The class indices; none where targets are numbers.
    pub(super) fn labels(&self) -> &[u32] {
        match self {
            Targets::Classes { labels, .. } => labels,
            Targets::Values { .. } => &[],
        }
    }

    /// Whether targets are numbers and not classes.
    pub(super) fn is_values(&self) -> bool {
        matches!(self, Targets::Values { .. })
    }

    /// Targets of the samples of these indices; indices past the end are left out.
    fn select(&self, rows: impl Iterator<Item = usize>) -> Targets {
        fn pick<T: Copy>(all: &[T], len: usize, rows: impl Iterator<Item = usize>) -> Vec<T> {
            let row = |row: usize| all.get(row.checked_mul(len)?..row.checked_mul(len)?.checked_add(len)?);
            rows.filter_map(row).flatten().copied().collect()
        }
        let len = self.shape().iter().product();
        match self {
            Targets::Classes { labels, shape } => {
                Targets::Classes { labels: pick(labels, len, rows), shape: shape.clone() }
            }
            Targets::Values { values, shape } => {
                Targets::Values { values: pick(values, len, rows), shape: shape.clone() }
            }
        }
    }
}

/// Samples with their targets, ready for the model's input. Clones and selections share the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    samples: Arc<Samples>,
    /// The samples of this set, by their place among the shared ones; `None`: all of them, in order.
    rows: Option<Arc<[u32]>>,
}

#[derive(Debug, PartialEq)]
struct Samples {
    /// `[samples, sample_len]`, row-major.
    inputs: Inputs,
    targets: Targets,
    count: usize,
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
        Dataset::with_targets(inputs, Targets::Classes { labels, shape: Vec::new() }, sample_shape)
    }

    /// As [`Dataset::new`], with any targets. Targets that are no finite number are refused too.
    pub fn with_targets(
        inputs: Vec<f32>,
        targets: Targets,
        sample_shape: Vec<usize>,
    ) -> Result<Dataset, TrainingError> {
        let sample_len = sample_len(&sample_shape)?;
        finite(&inputs, 0, sample_len, "number")?;
        Dataset::join(Inputs::Held(inputs), targets, sample_shape)
    }

    /// Inputs whose numbers are known to be finite.
    fn join(inputs: Inputs, targets: Targets, sample_shape: Vec<usize>) -> Result<Dataset, TrainingError> {
        let sample_len = sample_len(&sample_shape)?;
        let target_len = product(targets.shape()).ok_or_else(|| {
            TrainingError::data(format!("the targets' shape {:?} has no usable size", targets.shape()))
        })?;
        let given = match &targets {
            Targets::Classes { labels, .. } => labels.len(),
            Targets::Values { values, .. } => values.len(),
        };
        let count = given / target_len;
        if count == 0 {
            return Err(TrainingError::data("there are no samples; collect at least one"));
        }
        if given % target_len != 0 || count.checked_mul(sample_len) != Some(inputs.len()) {
            return Err(TrainingError::data(format!(
                "{} numbers do not make {count} samples of shape {sample_shape:?} ({sample_len} numbers each)",
                inputs.len(),
            )));
        }
        if let Targets::Values { values, .. } = &targets {
            finite(values, 0, target_len, "target")?;
        }
        let samples = Samples { inputs, targets, count, shape: sample_shape, len: sample_len };
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
        self.rows.as_ref().map_or(self.samples.count, |rows| rows.len())
    }

    /// Shape of one sample, without the batch.
    pub fn sample_shape(&self) -> &[usize] {
        &self.samples.shape
    }

    /// Class index of each sample, in order (of each position, where samples have several); none where targets are numbers.
    pub fn labels(&self) -> Vec<u32> {
        match &self.rows {
            None => self.samples.targets.labels().to_vec(),
            Some(_) => self.samples.targets.select((0..self.len()).map(|index| self.row(index))).labels().to_vec(),
        }
    }

    /// Shape of one sample's targets, and whether they are numbers.
    pub(super) fn target_form(&self) -> (&[usize], bool) {
        (self.samples.targets.shape(), self.samples.targets.is_values())
    }

    /// All samples, copied into one batch.
    pub(crate) fn whole(&self) -> Result<(Vec<f32>, Targets), TrainingError> {
        self.batch(&(0..self.len()).collect::<Vec<_>>())
    }

    /// The samples of these indices, copied into one batch; indices past the end are left out.
    ///
    /// # Errors
    /// The file of the inputs cannot be read.
    pub(super) fn batch(&self, indices: &[usize]) -> Result<(Vec<f32>, Targets), TrainingError> {
        let Samples { inputs: all, targets, len, count, .. } = &*self.samples;
        let rows = || indices.iter().map(|&index| self.row(index)).filter(|row| row < count);
        Ok((all.rows(rows(), *len)?, targets.select(rows())))
    }

    /// Where the sample of this index lies among the shared ones.
    fn row(&self, index: usize) -> usize {
        match &self.rows {
            None => index,
            Some(rows) => rows.get(index).map_or(usize::MAX, |&row| row as usize),
        }
    }

    /// Checks the samples against the model's input: their shape, and that its type holds their numbers.
    pub(super) fn check_input(&self, model: &Model) -> Result<(), TrainingError> {
        let input = model.input();
        let expected = input.sample_shape();
        if self.sample_shape() != expected {
            return Err(TrainingError::data(format!(
                "samples have the shape {:?}, but the model's input {:?} takes {expected:?}; bring them into that shape",
                self.sample_shape(),
                input.name
            )));
        }
        if input.element == ElementType::Fp32 {
            return Ok(());
        }
        const VALUES: usize = 1 << 20;
        let piece = (VALUES / self.samples.len).max(1);
        for first in (0..self.len()).step_by(piece) {
            let rows: Vec<usize> = (first..self.len().min(first + piece)).collect();
            let (inputs, _) = self.batch(&rows)?;
            if let Some((index, value)) = inputs.iter().enumerate().find(|(_, value)| !input.element.holds(**value)) {
                return Err(TrainingError::data(format!(
                    "sample {}, number {} is {value}, but the model's input {:?} takes {}; leave scaling out of its \
                     preprocessing, or correct the sample",
                    first + index / self.samples.len + 1,
                    index % self.samples.len + 1,
                    input.name,
                    input.element.name()
                )));
            }
        }
        Ok(())
    }

    /// Checks every label against the number of classes.
    pub(super) fn check_labels(&self, classes: usize) -> Result<(), TrainingError> {
        let labels = self.labels();
        let Some((index, label)) = labels.iter().enumerate().find(|(_, label)| **label as usize >= classes) else {
            return Ok(());
        };
        let sample = index / product(self.samples.targets.shape()).unwrap_or(1) + 1;
        Err(TrainingError::data(format!(
            "sample {sample} has the label {label}, but the model has {classes} classes (0 to {}); correct the label",
            classes.saturating_sub(1)
        )))
    }
}

/// Samples that come piece by piece; above some size their inputs go to a file.
pub(crate) struct Gathering {
    inputs: Inputs,
    targets: Option<Targets>,
    shape: Vec<usize>,
    /// Numbers that are held in memory, at most.
    held: usize,
}

impl Gathering {
    /// For samples of this shape; `held` numbers are held in memory at most, and the file is a temporary one.
    pub(crate) fn new(shape: Vec<usize>, held: usize) -> Gathering {
        Gathering { inputs: Inputs::Held(Vec::new()), targets: None, shape, held }
    }

    /// Adds samples and their targets, of the kind and shape of those before.
    ///
    /// # Errors
    /// As [`Dataset::with_targets`], and where the file can't be written.
    pub(crate) fn add(&mut self, inputs: Vec<f32>, targets: Targets) -> Result<(), TrainingError> {
        let len = sample_len(&self.shape)?;
        finite(&inputs, self.inputs.len() / len, len, "number")?;
        self.inputs.extend(inputs, self.held)?;
        match (&mut self.targets, targets) {
            (None, targets) => self.targets = Some(targets),
            (Some(Targets::Classes { labels, .. }), Targets::Classes { labels: more, .. }) => labels.extend(more),
            (Some(Targets::Values { values, .. }), Targets::Values { values: more, .. }) => values.extend(more),
            _ => return Err(TrainingError::data("targets are classes in one place and numbers in another")),
        }
        Ok(())
    }

    /// All of them as a data set.
    ///
    /// # Errors
    /// As [`Dataset::with_targets`].
    pub(crate) fn finish(self) -> Result<Dataset, TrainingError> {
        let targets = self.targets.unwrap_or(Targets::Classes { labels: Vec::new(), shape: Vec::new() });
        Dataset::join(self.inputs, targets, self.shape)
    }
}

/// Number of elements of a shape, at least 1; `None` where it is 0 or overflows.
fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).filter(|&len| len > 0)
}

fn sample_len(shape: &[usize]) -> Result<usize, TrainingError> {
    product(shape).ok_or_else(|| TrainingError::data(format!("the sample shape {shape:?} has no usable size")))
}

/// Refuses what is no finite number; `before`: samples that come before the first of these.
fn finite(values: &[f32], before: usize, len: usize, what: &str) -> Result<(), TrainingError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let (sample, element) = (before + index / len + 1, index % len + 1);
            Err(TrainingError::data(format!(
                "sample {sample}, {what} {element} is NaN or infinite; remove or repair that sample"
            )))
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
        assert_eq!(data.batch(&[2, 0]).unwrap(), (vec![5.0, 6.0, 1.0, 2.0], classes(&[9, 7])));
    }

    #[test]
    fn targets_of_any_shape_follow_their_samples() {
        let labels = Targets::Classes { labels: vec![1, 2, 3, 4], shape: vec![2] };
        let data = Dataset::with_targets(vec![0.5, 0.6], labels, vec![1]).unwrap();
        assert_eq!(data.batch(&[1]).unwrap().1, Targets::Classes { labels: vec![3, 4], shape: vec![2] });
        assert!(data.check_labels(4).unwrap_err().to_string().contains("sample 2 has the label 4"));
        let values = Targets::Values { values: vec![1.0, f32::NAN], shape: vec![1] };
        let error = Dataset::with_targets(vec![0.5, 0.6], values, vec![1]).unwrap_err().to_string();
        assert!(error.contains("sample 2, target 1"), "{error}");
        let ragged = Targets::Classes { labels: vec![1, 2, 3], shape: vec![2] };
        assert!(Dataset::with_targets(vec![0.5], ragged, vec![1]).is_err());
    }

    fn classes(labels: &[u32]) -> Targets {
        Targets::Classes { labels: labels.to_vec(), shape: vec![] }
    }

    #[test]
    fn a_selection_shares_the_samples_and_a_selection_of_it_counts_from_its_own_first() {
        let data = Dataset::new(vec![1.0, 2.0, 3.0, 4.0], vec![7, 8, 9, 10], vec![1]).unwrap();
        let part = data.select(Arc::from([3, 1, 1])).unwrap();
        assert_eq!((part.len(), part.labels()), (3, vec![10, 8, 8]));
        assert_eq!(part.batch(&[0, 1, 5]).unwrap(), (vec![4.0, 2.0], classes(&[10, 8])));
        assert!(Arc::ptr_eq(&part.samples, &data.samples));
        assert_eq!(part.select(Arc::from([0])).unwrap().whole().unwrap(), (vec![4.0], classes(&[10])));
        assert!(data.select(Arc::from([])).unwrap_err().to_string().contains("no samples"));
        assert!(part.select(Arc::from([3])).unwrap_err().to_string().contains("no sample 3"));
    }
}
