//! Tests of the IDX reader: MNIST's layout, its gzip form, folders, and hostile files.

use tempfile::TempDir;

use super::*;
use crate::samples::file::{self, ReadOptions};

/// An array of bytes as the format has it.
fn idx(kind: u8, shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|dim| dim.to_be_bytes()));
    bytes.extend(data);
    bytes
}

/// A gzip file of one stored block, with a name in its header.
fn gzipped(content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u16).to_le_bytes();
    let mut bytes = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
    bytes.extend(b"images\0\x01");
    bytes.extend([len[0], len[1], !len[0], !len[1]]);
    bytes.extend(content);
    bytes.extend(crc32fast::hash(content).to_le_bytes());
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn images() -> Vec<u8> {
    idx(8, &[2, 2, 3], &[0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255])
}

fn labels() -> Vec<u8> {
    idx(8, &[2], &[7, 3])
}

#[test]
fn images_and_the_labels_beside_them_are_rows_plain_or_compressed_by_file_or_by_folder() {
    for (image_name, image_bytes, label_name, label_bytes) in [
        ("train-images-idx3-ubyte", images(), "train-labels-idx1-ubyte", labels()),
        ("t10k-images-idx3-ubyte.gz", gzipped(&images()), "t10k-labels-idx1-ubyte.gz", gzipped(&labels())),
        ("train-images.idx3-ubyte.gz", gzipped(&images()), "train-labels.idx1-ubyte", labels()),
    ] {
        let folder = folder(&[(image_name, image_bytes), (label_name, label_bytes)]);
        for path in [folder.path().join(image_name), folder.path().to_owned()] {
            let rows = file::read(&path, &ReadOptions::strict(&[])).unwrap();
            assert_eq!((rows.len(), rows.sample_len), (2, 6), "{image_name}");
            assert_eq!(rows.rows().last().unwrap(), [250.0, 251.0, 252.0, 253.0, 254.0, 255.0]);
            assert_eq!(rows.labels, [RowLabel::Index(7), RowLabel::Index(3)]);
            assert_eq!(file::read_inputs(&path, &[6]).unwrap().inputs, rows.inputs);
        }
    }
}

#[test]
fn every_element_type_is_read_big_endian() {
    let values = |kind, data: &[u8]| parse(&idx(kind, &[1], data)).unwrap().1[0];
    assert_eq!(values(8, &[200]), 200.0);
    assert_eq!(values(9, &[0xff]), -1.0);
    assert_eq!(values(0x0b, &(-300i16).to_be_bytes()), -300.0);
    assert_eq!(values(0x0c, &70_000i32.to_be_bytes()), 70_000.0);
    assert_eq!(values(0x0d, &0.5f32.to_be_bytes()), 0.5);
    assert_eq!(values(0x0e, &0.25f64.to_be_bytes()), 0.25);
}

#[test]
fn a_folder_of_training_and_test_images_is_told_apart() {
    let both = [
        ("t10k-images-idx3-ubyte", images()),
        ("t10k-labels-idx1-ubyte", labels()),
        ("train-images-idx3-ubyte", images()),
        ("train-labels-idx1-ubyte", labels()),
    ];
    let folder = folder(&both);
    let (train, test) = file::train_and_test(folder.path()).unwrap();
    assert!(train.ends_with("train-images-idx3-ubyte") && test.ends_with("t10k-images-idx3-ubyte"));
    let error = file::read(folder.path(), &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("2 files of images") && error.contains("name one"), "{error}");
}

#[test]
fn damaged_files_and_missing_labels_are_refused_with_what_to_do() {
    let good = gzipped(&images());
    let mut wrong_checksum = good.clone();
    *wrong_checksum.last_mut().unwrap() = 0;
    let at = good.len() - 8;
    wrong_checksum[at] ^= 1;
    let mut huge = good.clone();
    let end = huge.len();
    huge[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, told) in [
        (idx(8, &[2, 2, 3], &[0; 11]), "needs 12"),
        (idx(8, &[u32::MAX, u32::MAX, 2], &[]), "more than"),
        (idx(8, &[0, 2, 2], &[]), "empty"),
        (idx(7, &[1, 1, 1], &[0]), "0x07"),
        (idx(8, &[2], &[1, 2]), "file of the images"),
        (idx(0x0d, &[1, 1, 1], &f32::NAN.to_be_bytes()), "row 1, column 1"),
        (images()[..9].to_vec(), "cut off"),
        (b"hello, hello".to_vec(), "does not begin"),
        (good[..12].to_vec(), "cut off"),
        (wrong_checksum, "checksum"),
        (huge, "above the limit"),
    ] {
        let folder = folder(&[("a-images-idx3-ubyte", bytes), ("a-labels-idx1-ubyte", labels())]);
        let error =
            file::read(&folder.path().join("a-images-idx3-ubyte"), &ReadOptions::strict(&[])).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("a-images-idx3-ubyte"), "{told}: {error}");
    }
    let lone = folder(&[("a-images-idx3-ubyte", images())]);
    let error = file::read(lone.path(), &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("a-labels-idx1-ubyte"), "{error}");
    let fewer = folder(&[("a-images-idx3-ubyte", images()), ("a-labels-idx1-ubyte", idx(8, &[1], &[4]))]);
    let error = file::read(fewer.path(), &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("holds 2 images"), "{error}");
    assert!(
        file::read(folder(&[]).path(), &ReadOptions::strict(&[]))
            .unwrap_err()
            .to_string()
            .contains("without IDX images")
    );
}

#[test]
fn any_cut_of_a_compressed_file_is_refused_and_never_panics() {
    let good = gzipped(&images());
    for length in 0..good.len() {
        assert!(gzip::decompress(&good[..length], MAX_CONTENT).is_err(), "cut at {length}");
    }
}
