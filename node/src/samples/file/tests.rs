//! Tests of reading sample files: good ones in every accepted form, and hostile ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::inference::test_fixtures::{names, zoo};

fn write(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn csv(text: &str) -> Result<LabelledRows, FileError> {
    let (_directory, path) = write("rows.csv", text);
    read(&path, &ReadOptions::strict(&[]))
}

fn text(label: &str) -> RowLabel {
    RowLabel::Text(label.to_owned())
}

/// An array as numpy.save writes it.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    let len = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
}

/// An archive as numpy.savez writes it, uncompressed.
fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in arrays {
        let name = format!("{name}.npy");
        let sizes =
            [crc32fast::hash(content), content.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat();
        let name_len = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        let at = (file.len() as u32).to_le_bytes();
        file.extend([b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0", &sizes[..], &name_len, name.as_bytes(), content].concat());
        directory.extend([b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0", &sizes[..], &name_len].concat());
        directory.extend([&[0; 10][..], &at, name.as_bytes()].concat());
    }
    let count = (arrays.len() as u16).to_le_bytes();
    let place = [directory.len() as u32, file.len() as u32].map(u32::to_le_bytes).concat();
    file.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count, &count, &place, &[0; 2]].concat());
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read_npz(bytes: &[u8]) -> Result<LabelledRows, FileError> {
    let (_directory, path) = write("rows.npz", bytes);
    read(&path, &ReadOptions::strict(&[]))
}

#[test]
fn the_zoo_s_digits_are_read_whole() {
    let mut rows = read(&zoo("digits.csv"), &ReadOptions::strict(&[])).unwrap();
    assert_eq!((rows.len(), rows.sample_len, rows.labels.len()), (1797, 64, 1797));
    assert_eq!(rows.rows().next().unwrap()[2..6], [5.0, 13.0, 9.0, 1.0]);
    assert_eq!(rows.class_indices(64, 10, &names()).unwrap()[..5], [0, 1, 2, 3, 4]);
}

#[test]
fn a_header_is_optional_and_a_column_named_label_may_stand_anywhere() {
    let expected = (vec![1.0, 2.5, -3.0, 4e2], vec![text("cat"), text("7")]);
    for file in [
        "1,2.5,cat\n-3,4e2,7\n",
        "a,b,c\r\n1,2.5,cat\r\n-3,4e2,7\r\n",
        "\u{feff}Label,a,b\ncat,1,2.5\n7,-3,4e2\n",
        "0,label,1\n1, cat ,2.5\n-3,7,4e2",
    ] {
        let rows = csv(file).unwrap();
        assert_eq!((rows.inputs, rows.labels), expected, "{file}");
    }
}

#[test]
fn inputs_may_lack_labels_where_nothing_needs_them() {
    for (content, labels) in [("1,2\n3,4\n", 0), ("x,y\n1,2\n", 0), ("1,2,cat\n", 1), ("label,x,y\ncat,1,2\n", 1)] {
        let (_directory, path) = write("rows.csv", content);
        let rows = read_inputs(&path, &[2]).unwrap();
        assert_eq!((rows.sample_len, rows.labels.len()), (2, labels), "{content}");
    }
    let (_directory, path) = write("rows.csv", "1,2,3,4\n");
    let error = read_inputs(&path, &[2]).unwrap_err().to_string();
    assert!(error.contains("rows have 4 values, but the model takes 2"), "{error}");
}

#[test]
fn what_is_wrong_in_a_csv_file_is_told_with_row_and_column() {
    for (content, expected) in [
        ("1,2,0\n1,NaN,0\n", "row 2, column 2: \"NaN\" is not a finite"),
        ("a,b,label\n1,inf,0\n", "row 2, column 2 (\"b\"): \"inf\" is not a finite"),
        ("1,2,0\n1,1e39,0\n", "row 2, column 2: \"1e39\" is not a finite"),
        ("1,2,0\n1,x,0\n", "row 2, column 2: \"x\" is not a number"),
        ("1,2,0\n1,,0\n", "row 2, column 2: \"\" is not a number"),
        ("1,2,0\n1,0\n", "row 2: has 2 columns, but the first row has 3"),
        ("1,2,0\n1,2,3,0\n", "row 2: has 4 columns, but the first row has 3"),
        ("1,2,0\n1,2,\n", "row 2, column 3: the label is missing"),
        ("a,b,label\n", "holds no rows"),
        ("label\n0\n", "row 1: has a label but no values"),
        ("1,x,0\n", "row 1, column 2: \"x\" is not a number"),
        ("label,a,label\n", "more than one column"),
        ("", "is empty"),
    ] {
        let error = csv(content).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("rows.csv"), "{content:?}: {error}");
    }
    let (_directory, path) = write("rows.csv", b"1,2,0\n1,\xff,0\n");
    let error = read(&path, &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("row 2: cannot be read"), "{error}");
}

#[test]
fn a_label_is_a_class_name_or_an_index_and_others_are_told_with_their_row() {
    let names = ["cat".to_owned(), "dog".to_owned()];
    let mut rows = csv("a,label\n1,dog\n2,0\n3,1.0\n").unwrap();
    assert_eq!(rows.class_indices(1, 2, &names).unwrap(), [1, 0, 1]);
    for (content, label) in [("1,dog\n2,owl\n", "\"owl\""), ("1,dog\n2,2\n", "\"2\""), ("1,dog\n2,-1\n", "\"-1\"")] {
        let error = csv(content).unwrap().class_indices(1, 2, &names).unwrap_err().to_string();
        let expected = format!("row 2: unknown label {label}; known labels are cat, dog, or the class indices 0 to 1");
        assert!(error.ends_with(&expected), "{error}");
    }
    let error = csv("a,label\n1,5\n").unwrap().class_indices(1, 3, &[]).unwrap_err().to_string();
    assert!(error.contains("row 2: unknown label \"5\"; known labels are the class indices 0 to 2"), "{error}");
    assert!(csv("1,2,0\n").unwrap().into_samples(3, 2, &names).is_err(), "another width");
}

#[test]
fn arrays_of_every_accepted_type_are_read() {
    let x = npy("'<f4'", "(2, 1, 2)", &floats(&[1.0, 2.0, 3.0, 4.0]));
    for (descr, data) in [
        ("'<i8'", [3u64, 5].map(u64::to_le_bytes).concat()),
        ("'|u1'", vec![3, 5]),
        ("'<f8'", [3f64, 5.0].map(f64::to_le_bytes).concat()),
    ] {
        let rows = read_npz(&npz(&[("x", x.clone()), ("y", npy(descr, "(2,)", &data))])).unwrap();
        assert_eq!((rows.sample_len, &rows.inputs[..]), (2, &[1.0, 2.0, 3.0, 4.0][..]));
        assert_eq!(rows.labels, [RowLabel::Index(3), RowLabel::Index(5)], "{descr}");
    }
    let words: Vec<u8> = "cat\0owl\0".chars().flat_map(|letter| u32::from(letter).to_le_bytes()).collect();
    let rows = read_npz(&npz(&[("label", npy("'<U4'", "(2, 1)", &words)), ("data", x)])).unwrap();
    assert_eq!(rows.labels, [text("cat"), text("owl")]);
    let signed = npy("'<i2'", "(1, 2)", &[0xff, 0xff, 2, 0]);
    let rows = read_npz(&npz(&[("inputs", signed), ("y", npy("'|b1'", "(1,)", &[1]))])).unwrap();
    assert_eq!((&rows.inputs[..], &rows.labels[..]), (&[-1.0, 2.0][..], &[RowLabel::Index(1)][..]));
}

#[test]
fn numpy_s_own_compressed_file_with_a_column_major_array_is_read() {
    // numpy.savez_compressed(path, x=numpy.asfortranarray(numpy.arange(12.0).reshape(4, 3)), y=numpy.array([0, 1, 2, 1]))
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/samples/fixtures/savez_compressed.npz");
    let rows = read(&path, &ReadOptions::strict(&[])).unwrap();
    assert_eq!(rows.inputs, (0..12u8).map(f32::from).collect::<Vec<_>>());
    assert_eq!(rows.labels, [0, 1, 2, 1].map(RowLabel::Index));
}

#[test]
fn what_is_wrong_in_an_archive_is_told_with_the_array() {
    let x = || npy("'<f4'", "(2, 2)", &floats(&[1.0, 2.0, 3.0, 4.0]));
    let y = || npy("'|u1'", "(2,)", &[0, 1]);
    let f4 = |shape: &str, data: &[f32]| npy("'<f4'", shape, &floats(data));
    let nan = f4("(2, 2)", &[1.0, 2.0, f32::NAN, 4.0]);
    for (arrays, expected) in [
        (vec![("x", nan), ("y", y())], "row 2, column 1: array \"x\" holds NaN"),
        (vec![("y", y())], "lacks the array with the inputs"),
        (vec![("x", x())], "lacks the array with the labels"),
        (vec![("x", x()), ("data", x()), ("y", y())], "holds both \"x\" and \"data\""),
        (vec![("x", x()), ("y", npy("'|u1'", "(3,)", &[0, 1, 2]))], "but the inputs have 2 rows"),
        (vec![("x", x()), ("y", npy("'|i1'", "(2,)", &[0, 0xff]))], "row 2: array \"y\" holds the label -1"),
        (vec![("x", x()), ("y", f4("(2,)", &[0.0, 0.5]))], "row 2: array \"y\" holds the label 0.5"),
        (vec![("x", f4("(2,)", &[1.0, 2.0])), ("y", y())], "inputs need the shape [rows, ...]"),
        (vec![("x", f4("(0, 2)", &[])), ("y", y())], "is empty"),
        (vec![("x", f4("(2, 2)", &[1.0])), ("y", y())], "has 4 bytes of elements, but its shape [2, 2] needs 16"),
        (vec![("x", f4("(4294967296, 4294967296)", &[])), ("y", y())], "split the file"),
        (vec![("x", npy("'>f4'", "(1, 1)", &[0; 4])), ("y", y())], "big-endian"),
        (vec![("x", npy("'|O'", "(1, 1)", &[0; 8])), ("y", y())], "has elements of type \"|O\""),
        (vec![("x", npy("[('a', '<f4')]", "(1, 1)", &[0; 4])), ("y", y())], "structured"),
        (vec![("x", npy("'<f4'", &"(".repeat(2000), &[])), ("y", y())], "a shape that cannot be read"),
        (vec![("x", b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec()), ("y", y())], "above the limit"),
        (vec![("x", b"junk".to_vec()), ("y", y())], "is no NumPy array"),
    ] {
        let error = read_npz(&npz(&arrays)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("rows.npz"), "{expected}: {error}");
    }
}

#[test]
fn every_truncation_and_every_flipped_byte_of_an_archive_is_an_error_or_read_alike() {
    let x = npy("'<f4'", "(2, 2)", &floats(&[1.0, 2.0, 3.0, 4.0]));
    let good = npz(&[("x", x), ("y", npy("'|u1'", "(2,)", &[0, 1]))]);
    let expected = read_npz(&good).unwrap().inputs;
    for end in 0..good.len() {
        assert!(read_npz(&good[..end]).is_err(), "cut at {end}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        if let Ok(rows) = read_npz(&bad) {
            assert_eq!(rows.inputs, expected, "flipped at {at}");
        }
    }
}

#[test]
fn files_of_other_kinds_are_refused() {
    let (directory, path) = write("rows.txt", "1,2\n");
    assert!(read(&path, &ReadOptions::strict(&[])).unwrap_err().to_string().contains(".csv, .parquet, .npz and IDX"));
    assert!(matches!(read(&directory.path().join("none.csv"), &ReadOptions::strict(&[])), Err(FileError::Io { .. })));
    let folder = directory.path().join("folder.csv");
    std::fs::create_dir(&folder).unwrap();
    assert!(read(&folder, &ReadOptions::strict(&[])).unwrap_err().to_string().contains("a folder without IDX images"));
}

#[test]
fn a_named_column_or_array_says_whose_each_row_is() {
    let (_directory, path) = write("rows.csv", "a,node,label\n1,berlin,0\n2,oslo,1\n3,berlin,1\n");
    let rows = read_with_nodes(&path, "node", &ReadOptions::strict(&[])).unwrap();
    assert_eq!((rows.inputs.as_slice(), rows.sample_len), (&[1.0, 2.0, 3.0][..], 1));
    assert_eq!(rows.nodes, ["berlin", "oslo", "berlin"]);
    // Without a column named "label" the last one is it, but never the node's.
    let (_directory, path) = write("rows.csv", "a,b,node\n1,0,berlin\n");
    let rows = read_with_nodes(&path, "node", &ReadOptions::strict(&[])).unwrap();
    assert_eq!((rows.inputs.as_slice(), rows.labels.as_slice()), (&[1.0][..], &[text("0")][..]));
    let node = npy("'<i8'", "(2,)", &[4i64, -1].map(i64::to_le_bytes).concat());
    let arrays =
        [("x", npy("'<f4'", "(2, 1)", &floats(&[1.0, 2.0]))), ("y", npy("'|u1'", "(2,)", &[0, 1])), ("node", node)];
    let (_directory, path) = write("rows.npz", npz(&arrays));
    assert_eq!(read_with_nodes(&path, "node", &ReadOptions::strict(&[])).unwrap().nodes, ["4", "-1"]);
    assert!(read(&path, &ReadOptions::strict(&[])).unwrap().nodes.is_empty());
}

#[test]
fn rows_without_an_owner_are_refused_where_one_is_asked_for() {
    let refused = |content: &str| {
        let (_directory, path) = write("rows.csv", content);
        read_with_nodes(&path, "node", &ReadOptions::strict(&[])).unwrap_err().to_string()
    };
    assert!(refused("a,label\n1,0\n").contains("\"node\""));
    let error = refused("a,node,label\n1,berlin,0\n2,,1\n");
    assert!(error.contains("row 3, column 2 (\"node\")") && error.contains("missing"), "{error}");
    assert!(refused(&format!("a,node,label\n1,{},0\n", "x".repeat(65))).contains("64 characters"));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let (_directory, path) = write("rows.csv", "1,2,0\n".repeat(200_000));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all(b"3,4,1\n").unwrap();
            }
        });
        let refused = (0..200).any(|_| match read(&path, &ReadOptions::strict(&[])) {
            Ok(_) => false,
            Err(error) => error.to_string().contains("changed while it was read"),
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(refused);
    });
    assert!(read(&path, &ReadOptions::strict(&[])).is_ok(), "and read again when its writer is done");
}
