//! Tests of folders of pictures: classes by folder, and every way in which one can be wrong.

use std::path::Path;

use ::image::ExtendedColorType;
use tempfile::TempDir;

use super::super::image::tests::png;
use crate::samples::file::{self, BadRows, FileError, LabelledRows, ReadOptions};

const SHAPE: [usize; 3] = [1, 2, 2];

/// A folder with these files in it; each is a grey picture of one value.
fn folder(files: &[(&str, u8)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, value) in files {
        put(folder.path(), name, &png(2, 2, ExtendedColorType::L8, &[*value; 4]));
    }
    folder
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn read(folder: &TempDir, bad_rows: BadRows) -> Result<LabelledRows, FileError> {
    file::read(folder.path(), &ReadOptions { sample_shape: &SHAPE, bad_rows })
}

fn refusal(folder: &TempDir) -> String {
    read(folder, BadRows::Stop).unwrap_err().to_string()
}

#[test]
fn a_folder_is_a_class_and_the_sorted_names_are_the_classes() {
    let folder = folder(&[("dog/b.png", 2), ("dog/a.PNG", 1), ("cat/x.png", 3), ("cat/.hidden.png", 9)]);
    put(folder.path(), "cat/notes.txt", b"not a sample");
    put(folder.path(), "readme.md", b"nor this");
    let mut rows = read(&folder, BadRows::Stop).unwrap();
    let firsts: Vec<f32> = rows.rows().map(|row| row[0]).collect();
    assert_eq!(firsts, [3.0, 1.0, 2.0]);
    assert_eq!(rows.classes, ["cat", "dog"]);
    assert_eq!(rows.class_indices(4, 10, &[]).unwrap(), [0, 1, 1]);
    let names = ["dog", "bird", "cat"].map(str::to_owned);
    assert_eq!(rows.class_indices(4, 3, &names).unwrap(), [2, 0, 0], "the model's own names come first");
    assert_eq!(file::read_inputs(folder.path(), &SHAPE).unwrap().inputs, rows.inputs);
}

#[test]
fn folders_named_by_class_indices_are_those_classes_and_not_their_places() {
    let folder = folder(&[("10/a.png", 10), ("2/a.png", 2), ("0/a.png", 0)]);
    let mut rows = read(&folder, BadRows::Stop).unwrap();
    let labels = rows.class_indices(4, 11, &[]).unwrap();
    assert!(rows.rows().zip(labels).all(|(row, label)| row[0] == label as f32));
}

#[test]
fn a_node_refuses_classes_that_its_model_does_not_name() {
    // On another node the same place would be another class.
    let folder = folder(&[("dog/a.png", 1), ("cat/a.png", 2)]);
    let error = read(&folder, BadRows::Stop).unwrap().into_samples(4, 10, &[]).unwrap_err().to_string();
    assert!(error.contains("unknown label \"cat\"") && error.contains("a.png"), "{error}");
}

#[test]
fn a_picture_that_does_not_decode_is_named_or_left_out() {
    let folder = folder(&[("cat/a.png", 1), ("dog/b.png", 2)]);
    put(folder.path(), "cat/broken.jpg", b"\xff\xd8\xff\xe0 and nothing more");
    put(folder.path(), "dog/empty.png", b"");
    let error = refusal(&folder);
    assert!(error.contains("broken.jpg: does not decode"), "{error}");
    let rows = read(&folder, BadRows::Skip).unwrap();
    assert_eq!((rows.len(), rows.skipped.count, rows.labels.len()), (2, 2, 2));
    assert!(rows.skipped.first[1].contains("empty.png: is empty"), "{:?}", rows.skipped);
}

#[test]
fn an_empty_class_is_named_or_left_out() {
    let folder = folder(&[("cat/a.png", 1)]);
    std::fs::create_dir(folder.path().join("dog")).unwrap();
    let error = refusal(&folder);
    assert!(error.contains("dog: holds no .png or .jpg picture"), "{error}");
    let mut rows = read(&folder, BadRows::Skip).unwrap();
    assert_eq!((rows.skipped.count, rows.class_indices(4, 2, &[]).unwrap()), (1, vec![0]));
    assert_eq!(rows.classes, ["cat", "dog"], "an empty class keeps its place");
}

#[test]
fn labels_that_the_model_does_not_know_are_named_by_their_picture_or_left_out() {
    let folder = folder(&[("cat/a.png", 1), ("cow/b.png", 2)]);
    let names = ["cat".to_owned()];
    let error = read(&folder, BadRows::Stop).unwrap().class_indices(4, 1, &names).unwrap_err().to_string();
    assert!(error.contains("b.png") && error.contains("\"cow\"") && error.contains("cat"), "{error}");
    let mut rows = read(&folder, BadRows::Skip).unwrap();
    assert_eq!(rows.class_indices(4, 1, &names).unwrap(), [0]);
    assert_eq!((rows.inputs.clone(), rows.skipped.count), (vec![1.0; 4], 1));
}

#[test]
fn folders_without_samples_say_what_is_missing() {
    assert!(refusal(&folder(&[])).contains("without IDX images"));
    let unlabelled = folder(&[("a.png", 1), ("b.png", 2)]);
    assert!(refusal(&unlabelled).contains("pictures without classes"));
    assert_eq!(file::read_inputs(unlabelled.path(), &SHAPE).unwrap().len(), 2);
    let alone = file::read(&unlabelled.path().join("a.png"), &ReadOptions::strict(&SHAPE)).unwrap_err().to_string();
    assert!(alone.contains("one picture without a label"), "{alone}");
    assert_eq!(file::read_inputs(&unlabelled.path().join("b.png"), &SHAPE).unwrap().inputs, [2.0; 4]);
    let other = folder(&[("cat/a.png", 1), ("cat/b.webp", 2)]);
    assert!(refusal(&other).contains("b.webp: is a picture of a kind that is not read"));
}

#[test]
fn what_can_be_seen_without_the_model_is_checked_without_it() {
    let good = folder(&[("cat/a.png", 1)]);
    file::check(good.path(), BadRows::Stop).unwrap();
    std::fs::create_dir(good.path().join("dog")).unwrap();
    assert!(file::check(good.path(), BadRows::Stop).is_err());
    file::check(good.path(), BadRows::Skip).unwrap();
}
