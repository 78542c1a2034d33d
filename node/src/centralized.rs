//! Training and evaluating a file on this machine alone: a data file becomes a data set for the model.
//! The baseline for what a federation reaches, by the very code of its nodes; nothing of rounds or networks is here.

use std::path::{Path, PathBuf};

use fedge_models::{Model, ModelError, Preprocessing};

use crate::samples::file::{self, BadRows, FileError, LabelledRows, ReadOptions, RowTargets, Skipped};
use crate::samples::held_out;
use crate::training::{Dataset, Gathering, Loss, Targets, TrainingError};

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
    /// The held-out share leaves one part empty.
    #[error(
        "{}: of {rows} samples, a held-out share of {share} leaves none {left}; give more samples or another share",
        path.display()
    )]
    Part {
        /// The file.
        path: PathBuf,
        /// Its samples.
        rows: usize,
        /// The share.
        share: f64,
        /// "to train on" or "to evaluate on".
        left: &'static str,
    },
}

/// Values of a file that are read at a time.
const PIECE: usize = 1 << 20;
/// Values of a data set that [`DataOptions::held_in_memory`] usually is: 256 MiB.
pub const HELD_IN_MEMORY: usize = 64 << 20;

/// How a file becomes data sets.
#[derive(Clone, Copy, Debug)]
pub struct DataOptions<'a> {
    /// What is done to raw values.
    pub preprocessing: &'a Preprocessing,
    /// Names of the classes in the order of the output; none: labels are class indices, or the sorted names of a folder
    /// of pictures.
    pub labels: &'a [String],
    /// What the targets are for.
    pub loss: Loss,
    /// What becomes of rows that are wrong.
    pub bad_rows: BadRows,
    /// Share that is held out, `0.0..1.0`, by [`held_out::is_held_out`] of the raw input, as a node's store does: no copy
    /// of a held-out sample is ever in the training part, whatever its label and its place in the file.
    pub held_out: f64,
    /// Most values that are held in memory: the preprocessed inputs of more lie in a temporary file.
    pub held_in_memory: usize,
}

/// The data sets of one file.
#[derive(Clone, Debug)]
pub struct Parts {
    /// All samples but those that are held out.
    pub training: Dataset,
    /// Those that are held out; none where the share is 0.
    pub held_out: Option<Dataset>,
    /// Rows that were left out.
    pub skipped: Skipped,
}

/// Reads a file of samples (see [`file::read`] and [`file::read_with_targets`]) for a model, preprocesses it and takes
/// its held-out part aside.
///
/// # Errors
/// [`DataError`] names the file, and the row or value where there is one.
pub fn datasets(model: &Model, path: &Path, options: &DataOptions<'_>) -> Result<Parts, DataError> {
    let shape = model.input().sample_shape();
    options.preprocessing.validate(&shape)?;
    let loss = options.loss;
    let numbers = !matches!(loss, Loss::CrossEntropy | Loss::BinaryCrossEntropy);
    let floats = numbers || loss == Loss::BinaryCrossEntropy && path.extension().is_some_and(|ending| ending == "npz");
    let reading = ReadOptions { sample_shape: &shape, bad_rows: options.bad_rows };
    let plain = file::has_plain_labels(path);
    let (mut training, mut held, mut skipped, mut count) = (Vec::new(), Vec::new(), Skipped::default(), 0usize);
    let mut gathering = Gathering::new(shape.clone(), options.held_in_memory);
    let mut take = |mut rows: LabelledRows, targets: RowTargets| -> Result<(), DataError> {
        let targets = match targets {
            RowTargets::Labels if plain && numbers => {
                rows.check_width(model.input().sample_len())?;
                Targets::Values { values: rows.numbers()?, shape: Vec::new() }
            }
            RowTargets::Labels => {
                // How many classes there are, training asks the graph; a name's index is below their number.
                let classes = if options.labels.is_empty() { u32::MAX as usize } else { options.labels.len() };
                let labels = rows.class_indices(model.input().sample_len(), classes, options.labels)?;
                Targets::Classes { labels, shape: Vec::new() }
            }
            RowTargets::Classes { labels, shape } => Targets::Classes { labels, shape },
            RowTargets::Values { values, shape } => Targets::Values { values, shape },
        };
        let first = u32::try_from(count + rows.len()).map(|_| count as u32);
        let first = first.map_err(|_| TrainingError::data(format!("{} holds too many samples", path.display())))?;
        if options.held_out > 0.0 {
            for (row, values) in (first..).zip(rows.rows()) {
                let part = if held_out::is_held_out(values, options.held_out) { &mut held } else { &mut training };
                part.push(row);
            }
        }
        count += rows.len();
        skipped.extend(rows.skipped);
        let mut inputs = rows.inputs;
        options.preprocessing.apply(&mut inputs, &shape);
        Ok(gathering.add(inputs, targets)?)
    };
    if plain {
        let mut problem = None;
        let each = &mut |rows| {
            take(rows, RowTargets::Labels).map_err(|error| {
                let said = FileError::File { path: path.to_owned(), problem: error.to_string() };
                problem = Some(error);
                said
            })
        };
        let read = file::read_pieces(path, &reading, PIECE, each);
        match problem {
            Some(error) => return Err(error),
            None => read?,
        }
    } else {
        let (rows, targets) = file::read_with_targets(path, floats, &reading)?;
        take(rows, targets)?;
    }
    if count == 0 {
        return Err(skipped.none_left(path).into());
    }
    let all = gathering.finish()?;
    if options.held_out <= 0.0 {
        return Ok(Parts { training: all, held_out: None, skipped });
    }
    let part = |rows: Vec<u32>, left| match rows.is_empty() {
        true => Err(DataError::Part { path: path.to_owned(), rows: count, share: options.held_out, left }),
        false => Ok(all.select(rows.into())?),
    };
    Ok(Parts { training: part(training, "to train on")?, held_out: Some(part(held, "to evaluate on")?), skipped })
}

/// Reads a file of samples whose labels, if it has any, are not looked at.
///
/// # Errors
/// As [`datasets`].
pub fn inputs(model: &Model, path: &Path, preprocessing: &Preprocessing) -> Result<Dataset, DataError> {
    let shape = model.input().sample_shape();
    preprocessing.validate(&shape)?;
    let rows = file::read_inputs(path, &shape)?;
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

    fn options(preprocessing: &Preprocessing) -> DataOptions<'_> {
        let (labels, bad_rows) = (&[], BadRows::Stop);
        let held_in_memory = HELD_IN_MEMORY;
        DataOptions { preprocessing, labels, loss: Loss::CrossEntropy, bad_rows, held_out: 0.0, held_in_memory }
    }

    fn read(path: &Path, loss: Loss) -> Result<Dataset, DataError> {
        let preprocessing = Preprocessing { scale: 0.5, ..Preprocessing::default() };
        Ok(datasets(&model(), path, &DataOptions { loss, ..options(&preprocessing) })?.training)
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
        // One integer a row is a class where the decisions are binary too: one of them is right.
        let (_folder, path) = file("d.npz", |npz| {
            npz.add_array("x", &images).unwrap();
            npz.add_array("y", &Array1::from(vec![3i64, 9])).unwrap();
        });
        assert_eq!(read(&path, Loss::BinaryCrossEntropy).unwrap().labels(), [3, 9]);
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

    #[test]
    fn a_copy_of_a_held_out_sample_is_never_trained_on_whatever_its_label_place_and_file() {
        let text = include_str!("../../models/zoo/digits.csv");
        let lines: Vec<&str> = text.lines().skip(1).take(600).collect();
        // Every sample three times: as it is, in reverse order, and with another label.
        let relabelled = |line: &&str| format!("{},{}", line.rsplit_once(',').unwrap().0, 3);
        let again = lines.iter().rev().map(|line| (*line).to_owned()).chain(lines.iter().map(relabelled));
        let all: Vec<String> = lines.iter().map(|line| (*line).to_owned()).chain(again).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        let preprocessing = Preprocessing::default();
        let parts = |lines: &[String], held_out: f64| {
            std::fs::write(&path, lines.join("\n")).unwrap();
            datasets(&model(), &path, &DataOptions { held_out, ..options(&preprocessing) })
        };
        let inputs = |data: &Dataset| -> std::collections::HashSet<Vec<u32>> {
            data.whole()
                .unwrap()
                .0
                .chunks(64)
                .map(|sample| sample.iter().map(|value| value.to_bits()).collect())
                .collect()
        };
        let thrice = parts(&all, 0.1).unwrap();
        let held = thrice.held_out.unwrap();
        assert!((100..=260).contains(&held.len()) && held.len() % 3 == 0, "{}", held.len());
        assert_eq!(thrice.training.len() + held.len(), 1800);
        assert!(inputs(&thrice.training).is_disjoint(&inputs(&held)));
        let once = parts(&all[600..1200], 0.1).unwrap();
        assert_eq!(inputs(&once.held_out.unwrap()), inputs(&held), "the same in any order");
        let error = parts(&all[..1], 0.5).unwrap_err().to_string();
        assert!(error.contains("leaves none"), "{error}");
    }

    #[test]
    fn more_samples_than_memory_holds_are_trained_on_from_a_file_with_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        // Several pieces: each of about a million values.
        let text = include_str!("../../models/zoo/digits.csv");
        let body: String = text.lines().skip(1).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, body.repeat(10)).unwrap();
        let preprocessing = Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() };
        let read = |held_in_memory| {
            datasets(&model(), &path, &DataOptions { held_out: 0.2, held_in_memory, ..options(&preprocessing) })
                .unwrap()
        };
        let (held, filed) = (read(HELD_IN_MEMORY), read(1000));
        assert_eq!((filed.training.len() + filed.held_out.as_ref().unwrap().len()), 17_970);
        assert_eq!(held.training.labels(), filed.training.labels());
        let plan = crate::training::Plan { batch_size: 256, seed: 3, ..Default::default() };
        let trained = |parts: &Parts| {
            let cancel = std::sync::atomic::AtomicBool::new(false);
            crate::training::train(&model(), &parts.training, &plan, &|_| (), &cancel).unwrap().weights
        };
        assert_eq!(trained(&held).values(), trained(&filed).values());
    }

    #[test]
    fn rows_that_are_wrong_stop_the_reading_or_are_left_out_and_counted() {
        let row = |value: &str, label: &str| format!("{value}{},{label}\n", ",1".repeat(63));
        let text = [row("1", "0"), row("nan", "1"), row("2", "seven"), row("3", "-1"), row("4", "9"), "5,6\n".into()];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        std::fs::write(&path, text.concat()).unwrap();
        let preprocessing = Preprocessing::default();
        let read = |bad_rows| datasets(&model(), &path, &DataOptions { bad_rows, ..options(&preprocessing) });
        let error = read(BadRows::Stop).unwrap_err().to_string();
        assert!(error.contains("d.csv: row 2, column 1"), "{error}");
        let parts = read(BadRows::Skip).unwrap();
        assert_eq!((parts.training.labels(), parts.skipped.count), (vec![0, 9], 4));
        let places: Vec<bool> = ["row 2,", "row 6:", "row 3:", "row 4:"]
            .iter()
            .map(|place| parts.skipped.first.iter().any(|sentence| sentence.contains(place)))
            .collect();
        assert_eq!(places, [true; 4], "{:?}", parts.skipped);
    }

    #[test]
    fn a_piece_may_lose_all_its_rows_while_the_file_keeps_some() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        let row = |label: &str| format!("{}{label}\n", "1,".repeat(64));
        // More than one piece of rows that are wrong, then some that are right.
        std::fs::write(&path, row("nobody").repeat(PIECE / 64 + 10) + &row("3").repeat(5)).unwrap();
        let preprocessing = Preprocessing::default();
        let read = || datasets(&model(), &path, &DataOptions { bad_rows: BadRows::Skip, ..options(&preprocessing) });
        let parts = read().unwrap();
        assert_eq!((parts.training.labels(), parts.skipped.count), (vec![3; 5], PIECE / 64 + 10));
        std::fs::write(&path, row("nobody").repeat(PIECE / 64 + 10)).unwrap();
        let error = read().unwrap_err().to_string();
        assert!(error.contains(&format!("all {} were left out", PIECE / 64 + 10)), "{error}");
    }

    #[test]
    fn digits_as_a_folder_of_pictures_are_the_samples_of_the_csv_file() {
        let text = include_str!("../../models/zoo/digits.csv");
        let folder = tempfile::tempdir().unwrap();
        let (csv, pictures) = (folder.path().join("d.csv"), folder.path().join("pictures"));
        let lines: Vec<&str> = text.lines().take(201).collect();
        std::fs::write(&csv, lines.join("\n")).unwrap();
        for (row, line) in lines.iter().skip(1).enumerate() {
            let (values, label) = line.rsplit_once(',').unwrap();
            // 0 to 16 becomes 0 to 240.
            let pixels: Vec<u8> = values.split(',').map(|v| (v.parse::<f32>().unwrap() * 15.0) as u8).collect();
            let class = pictures.join(label);
            std::fs::create_dir_all(&class).unwrap();
            image::GrayImage::from_raw(8, 8, pixels).unwrap().save(class.join(format!("{row}.png"))).unwrap();
        }
        let labels = crate::inference::test_fixtures::names();
        let read = |path: &Path, scale: f32| {
            let preprocessing = Preprocessing { scale, ..Preprocessing::default() };
            let data = datasets(&model(), path, &DataOptions { labels: &labels, ..options(&preprocessing) }).unwrap();
            let labels = data.training.labels();
            let rows = data.training.whole().unwrap().0.chunks(64).map(<[f32]>::to_vec).zip(labels).collect::<Vec<_>>();
            let key = |row: &(Vec<f32>, u32)| (row.1, row.0.iter().map(|v| (v * 16.0).round() as u32).collect());
            rows.iter().map(key).collect::<std::collections::BTreeSet<(u32, Vec<u32>)>>()
        };
        assert_eq!(read(&csv, 1.0 / 16.0), read(&pictures, 1.0 / 240.0));
    }
}
