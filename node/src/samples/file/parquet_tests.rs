//! Files that pyarrow 26 and pandas wrote (`fixtures`), and damaged ones.

use std::path::PathBuf;

use super::super::{RowTargets, check, read, read_inputs, read_with_nodes, read_with_targets};
use super::*;
use crate::samples::file::{BadRows, ReadOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/samples/fixtures").join(name)
}

fn text(label: &str) -> RowLabel {
    RowLabel::Text(label.to_owned())
}

#[test]
fn a_table_of_pandas_is_read_as_csv_would_be() {
    // DataFrame({"a": float32, "b": int64, "c": bool, "device": str, "Label": str}).to_parquet(path, index=False)
    let path = fixture("table.parquet");
    let error = read(&path, &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("row 1, column 4 (\"device\")") && error.contains("\"n1\" is text"), "{error}");
    let rows = read_with_nodes(&path, "device", &ReadOptions::strict(&[])).unwrap();
    assert_eq!(rows.inputs, [0.5, 1.0, 1.0, 1.5, 2.0, 0.0, -2.0, 3.0, 1.0, 3.0, 4.0, 0.0]);
    assert_eq!(rows.labels, ["zero", "one", "zero", "two"].map(text));
    assert_eq!(rows.nodes, ["n1", "n2", "n1", "n2"]);
    let error = read_with_nodes(&path, "owner", &ReadOptions::strict(&[])).unwrap_err().to_string();
    assert!(error.contains("no column \"owner\"") && error.contains("\"device\""), "{error}");
}

#[test]
fn lists_are_as_many_values_and_the_last_column_is_the_label() {
    // Two row groups, zstd, pages of version 2.
    let path = fixture("lists_zstd.parquet");
    let rows = read(&path, &ReadOptions::strict(&[])).unwrap();
    assert_eq!((rows.sample_len, &rows.inputs[..]), (3, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]));
    assert_eq!(rows.labels, [RowLabel::Index(1), RowLabel::Index(0)]);
    let (_, targets) = read_with_targets(&path, true, &ReadOptions::strict(&[])).unwrap();
    assert_eq!(targets, RowTargets::Values { values: vec![1.0, 0.0], shape: vec![] });
    // Asked about a model of four values, all columns are inputs.
    assert_eq!(read_inputs(&path, &[4]).unwrap().inputs, [0.0, 1.0, 2.0, 1.0, 3.0, 4.0, 5.0, 0.0]);
    assert!(read_inputs(&path, &[3]).unwrap_err().to_string().contains("rows have 4 values"));
}

#[test]
fn pictures_become_samples_of_the_models_shape() {
    // struct<bytes: binary, path: string>, as the public data sets' hub writes them; gzip.
    let path = fixture("pictures.parquet");
    let rows = read(&path, &ReadOptions::strict(&[1, 3, 3])).unwrap();
    assert_eq!(rows.inputs, [[7.0; 9], [200.0; 9]].concat());
    assert_eq!(rows.labels, [RowLabel::Index(3), RowLabel::Index(1)]);
    // Before its model is known, none is decoded.
    check(&path, BadRows::Stop).unwrap();
    let error = read(&path, &ReadOptions::strict(&[5])).unwrap_err().to_string();
    assert!(error.contains("row 1, column 1 (\"image\")") && error.contains("is a picture"), "{error}");
}

#[test]
fn rows_that_are_wrong_stop_or_are_left_out() {
    use parquet::basic::Compression;
    use parquet::data_type::{DoubleType, Int32Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let schema = parse_message_type("message m { optional double a; optional int32 label; }").unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[1.0, f64::NAN, 3.0], Some(&[1, 1, 0, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[1, 0, 2], Some(&[1, 1, 1, 0]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("rows.parquet");
    std::fs::write(&path, bytes).unwrap();
    let read = |bad_rows| read(&path, &ReadOptions { sample_shape: &[], bad_rows });
    let error = read(BadRows::Stop).unwrap_err().to_string();
    assert!(error.contains("rows.parquet: row 2, column 1 (\"a\")") && error.contains("NaN"), "{error}");
    let rows = read(BadRows::Skip).unwrap();
    assert_eq!((&rows.inputs[..], &rows.labels[..]), (&[1.0][..], &[RowLabel::Index(1)][..]));
    assert_eq!(rows.skipped.count, 3);
    assert!(rows.skipped.first[1].contains("row 3, column 1 (\"a\"): the value is missing"), "{:?}", rows.skipped);
    assert!(rows.skipped.first[2].contains("row 4, column 2 (\"label\"): the label is missing"), "{:?}", rows.skipped);
}

/// Every cut and every flipped byte ends in rows or in an error.
#[test]
fn damaged_files_are_refused() {
    let whole = std::fs::read(fixture("lists_zstd.parquet")).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("damaged.parquet");
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x5a;
        for bytes in [&whole[..at.max(1)], &flipped] {
            std::fs::write(&path, bytes).unwrap();
            refused += usize::from(check(&path, BadRows::Stop).is_err());
        }
    }
    // A cut file is always refused: its footer lies at the end.
    assert!(refused >= whole.len(), "{refused} of {}", 2 * whole.len());
}
