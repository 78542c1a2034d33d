//! Tests of decoding pictures: sizes, channels, orientation, and files that are damaged or ask for too much.

use image::{ExtendedColorType, ImageEncoder};

use super::*;

pub(in crate::samples::file) fn png(width: u32, height: u32, colour: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, width, height, colour).unwrap();
    bytes
}

fn jpeg(width: u32, height: u32, pixels: &[u8], exif: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).unwrap();
    }
    encoder.write_image(pixels, width, height, ExtendedColorType::L8).unwrap();
    bytes
}

#[test]
fn a_picture_of_the_models_size_keeps_its_values_in_the_models_order() {
    let rgb = [10, 20, 30, 11, 21, 31];
    let bytes = png(2, 1, ExtendedColorType::Rgb8, &rgb);
    assert_eq!(decode(&bytes, &[3, 1, 2]).unwrap(), [10.0, 11.0, 20.0, 21.0, 30.0, 31.0]);
    assert_eq!(decode(&bytes, &[1, 2, 3]).unwrap().len(), 6, "one channel of 2 x 3");
    assert_eq!(decode(&png(2, 2, ExtendedColorType::L8, &[1, 2, 3, 4]), &[2, 2]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(decode(&png(2, 2, ExtendedColorType::L8, &[1, 2, 3, 4]), &[4]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let last = decode(&png(2, 2, ExtendedColorType::Rgb8, &[9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2]), &[2, 2, 3]).unwrap();
    assert_eq!(last, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 1.0, 2.0]);
}

#[test]
fn grey_is_the_luma_of_bt601_and_colour_of_grey_is_three_times_the_same() {
    // Pillow's convert("L") gives 76, 150, 29 for the pure colours.
    let pure = [255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255];
    let values = decode(&png(4, 1, ExtendedColorType::Rgb8, &pure), &[1, 1, 4]).unwrap();
    assert_eq!(values, [76.0, 150.0, 29.0, 255.0]);
    assert_eq!(decode(&png(1, 1, ExtendedColorType::L8, &[77]), &[3, 1, 1]).unwrap(), [77.0; 3]);
    assert_eq!(decode(&png(1, 1, ExtendedColorType::La8, &[77, 0]), &[1, 1, 1]).unwrap(), [77.0]);
}

#[test]
fn resizing_averages_what_it_makes_smaller() {
    let board: Vec<u8> = (0..64 * 64).map(|i| if (i / 64 + i) % 2 == 0 { 0 } else { 200 }).collect();
    let small = decode(&png(64, 64, ExtendedColorType::L8, &board), &[1, 8, 8]).unwrap();
    assert!(small.iter().all(|value| (95.0..=105.0).contains(value)), "{small:?}");
    let wide = decode(&png(1, 1, ExtendedColorType::L8, &[9]), &[1, 3, 5]).unwrap();
    assert_eq!(wide, [9.0; 15]);
}

#[test]
fn a_photograph_is_turned_as_its_exif_note_says() {
    // TIFF header, one entry: orientation (0x0112), a short, 6: turn it clockwise by a quarter.
    let exif = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec()].concat();
    let left_dark: Vec<u8> = (0..16 * 16).map(|i| if i % 16 < 8 { 0 } else { 255 }).collect();
    let as_is = decode(&jpeg(16, 16, &left_dark, None), &[1, 2, 2]).unwrap();
    assert!(as_is[0] < 60.0 && as_is[2] < 60.0 && as_is[1] > 200.0 && as_is[3] > 200.0, "{as_is:?}");
    let turned = decode(&jpeg(16, 16, &left_dark, Some(exif)), &[1, 2, 2]).unwrap();
    assert!(turned[0] < 60.0 && turned[1] < 60.0 && turned[2] > 200.0 && turned[3] > 200.0, "{turned:?}");
}

#[test]
fn a_picture_that_does_not_decode_says_so() {
    let whole = png(8, 8, ExtendedColorType::L8, &[5; 64]);
    let mut wrong_checksum = whole.clone();
    let at = wrong_checksum.len() - 20;
    wrong_checksum[at] ^= 0xff;
    let jpeg = jpeg(16, 16, &[3; 256], None);
    for bytes in [&whole[..whole.len() / 2], &wrong_checksum, &whole[..10], &jpeg[..jpeg.len() / 4]] {
        let error = decode(bytes, &[1, 8, 8]).unwrap_err();
        assert!(error.contains("does not decode") || error.contains("cannot be read"), "{error}");
    }
    for bytes in [&b"GIF89a\x01\0\x01\0"[..], b"hello", b""] {
        let error = decode(bytes, &[1, 8, 8]).unwrap_err();
        assert!(error.contains("neither a PNG nor a JPEG"), "{error}");
    }
}

#[test]
fn a_decompression_bomb_is_refused_before_it_takes_memory() {
    // A header that promises much, as a zlib stream of zeros could keep.
    let claim = |width: u32, height: u32| {
        let mut bytes = png(8, 8, ExtendedColorType::L8, &[0; 64]);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32fast::hash(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        bytes
    };
    for (width, height) in [(60_000, 60_000), (16_000, 16_000), (u32::MAX, 1), (0, 8)] {
        let started = std::time::Instant::now();
        let error = decode(&claim(width, height), &[1, 8, 8]).unwrap_err();
        assert!(started.elapsed().as_secs() < 20, "{error}");
    }
}

#[test]
fn a_shape_that_is_no_picture_is_told_with_the_shapes_that_are() {
    for shape in [&[2usize, 8, 8][..], &[63], &[1, 1, 8, 8], &[]] {
        let error = decode(&png(8, 8, ExtendedColorType::L8, &[0; 64]), shape).unwrap_err();
        assert!(error.contains("[height, width]"), "{error}");
    }
}
