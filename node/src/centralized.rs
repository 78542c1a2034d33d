//! Training and evaluating a file on this machine alone: a data file becomes a data set for the model.
//! The baseline for what a federation reaches, by the very code of its nodes; nothing of rounds or networks is here.

use std::path::Path;

use fedge_models::{Model, ModelError, Preprocessing};

use crate::samples::file::{self, FileError, RowTargets};
use crate::training::{Dataset, Loss, Targets, TrainingError};

/// Why a file does not make a data set for the model.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file was refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The preprocessing does not fit the model.
    #[error(transparent)]
    Preprocessing(#[from] ModelError),
    /// The numbers do not fit each other.
    #[error(transparent)]
    Training(#[from] TrainingError),
}

/// Reads a file of samples (see [`file::read`] and [`file::read_with_targets`]) for a model and a loss, and preprocesses
/// it. `labels` are the names of the classes in the order of the output; none: labels are class indices.
///
/// # Errors
/// [`DataError`] names the file, and the row or value where there is one.
pub fn dataset(
    model: &Model,
    path: &Path,
    preprocessing: &Preprocessing,
    labels: &[String],
    loss: Loss,
) -> Result<Dataset, DataError> {
    let shape = model.input().sample_shape();
    preprocessing.validate(&shape)?;
    let numbers = !matches!(loss, Loss::CrossEntropy | Loss::BinaryCrossEntropy);
    let floats = numbers || loss == Loss::BinaryCrossEntropy && path.extension().is_some_and(|ending| ending == "npz");
    let (rows, targets) = file::read_with_targets(path, floats)?;
    let targets = match targets {
        RowTargets::Labels => {
            // How many classes there are, training asks the graph; a name's index is below their number.
            let classes = if labels.is_empty() { u32::MAX as usize } else { labels.len() };
            let labels = rows.class_indices(model.input().sample_len(), classes, labels)?;
            Targets::Classes { labels, shape: Vec::new() }
        }
        RowTargets::Classes { labels, shape } => Targets::Classes { labels, shape },
        RowTargets::Values { values, shape } => Targets::Values { values, shape },
    };
    let mut inputs = rows.inputs;
    preprocessing.apply(&mut inputs, &shape);
    Ok(Dataset::with_targets(inputs, targets, shape)?)
}

/// Reads a file of samples whose labels, if it has any, are not looked at.
///
/// # Errors
/// As [`dataset`].
pub fn inputs(model: &Model, path: &Path, preprocessing: &Preprocessing) -> Result<Dataset, DataError> {
    let shape = model.input().sample_shape();
    preprocessing.validate(&shape)?;
    let rows = file::read_inputs(path, model.input().sample_len())?;
    let labels = vec![0; rows.len()];
    let mut inputs = rows.inputs;
    preprocessing.apply(&mut inputs, &shape);
    Ok(Dataset::new(inputs, labels, shape)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use ndarray::{Array1, Array2, Array3};
    use ndarray_npy::NpzWriter;

    use super::*;

    fn model() -> Model {
        Model::from_bytes(&include_bytes!("../../models/zoo/digits_cnn.onnx")[..]).unwrap()
    }

    fn file(name: &str, write: impl FnOnce(&mut NpzWriter<std::fs::File>)) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut npz = NpzWriter::new(std::fs::File::create(&path).unwrap());
        write(&mut npz);
        npz.finish().unwrap();
        (folder, path)
    }

    fn read(path: &Path, loss: Loss) -> Result<Dataset, DataError> {
        dataset(&model(), path, &Preprocessing { scale: 0.5, ..Preprocessing::default() }, &[], loss)
    }

    #[test]
    fn integers_are_classes_and_floats_are_numbers_where_the_loss_takes_them() {
        let images = Array2::from_elem((2, 64), 4.0f32);
        let (_folder, path) = file("d.npz", |npz| {
            npz.add_array("x", &images).unwrap();
            npz.add_array("y", &Array1::from(vec![3i64, 9])).unwrap();
        });
        let data = read(&path, Loss::CrossEntropy).unwrap();
        assert_eq!((data.labels(), data.sample_shape().to_vec()), (vec![3, 9], vec![1, 8, 8]));
        let (_folder, path) = file("d.npz", |npz| {
            npz.add_array("x", &images).unwrap();
            npz.add_array("y", &Array2::from_elem((2, 10), 0.25f32)).unwrap();
        });
        assert!(read(&path, Loss::CrossEntropy).is_err());
        assert_eq!(read(&path, Loss::MeanSquaredError).unwrap().len(), 2);
    }

    #[test]
    fn labels_of_any_shape_need_one_entry_a_row() {
        let write = |rows: usize| {
            file("d.npz", move |npz| {
                npz.add_array("x", &Array2::from_elem((2, 64), 4.0f32)).unwrap();
                npz.add_array("y", &Array3::from_elem((rows, 4, 4), 1i64)).unwrap();
            })
        };
        let (_folder, path) = write(2);
        assert_eq!(read(&path, Loss::CrossEntropy).unwrap().labels().len(), 32);
        let (_folder, path) = write(3);
        let error = read(&path, Loss::CrossEntropy).unwrap_err().to_string();
        assert!(error.contains("2 rows") && error.contains("[3, 4, 4]"), "{error}");
    }
}
