//! Pictures as samples: PNG and JPEG, decoded within bounds, turned upright, and brought to a model's size and channels.
//! Which pictures lie in a folder of classes is `folder`'s matter; scaling and normalising is the model's preprocessing.

use std::io::Cursor;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use super::{FileError, LabelledRows, read_bytes};

/// Longest side of a picture, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of a picture; as RGB they take three bytes each.
pub const MAX_PIXELS: u64 = 64 << 20;
/// Most bytes that decoding may take.
const MAX_DECODING_BYTES: u64 = 512 << 20;

/// How one sample holds a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// 1: grey, 3: red, green, blue.
    pub channels: usize,
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub width: u32,
    /// `[height, width, channels]` and not `[channels, height, width]`.
    pub channels_last: bool,
}

impl Frame {
    /// The frame that a sample of this shape (without the batch) is: `[channels, height, width]` with 1 or 3 channels,
    /// `[height, width, channels]` where only that fits, `[height, width]` in grey, or `[n]` for a grey square of n
    /// pixels, row after row. None: such a sample is no picture.
    pub fn of(sample_shape: &[usize]) -> Option<Frame> {
        let colours = |channels: usize| channels == 1 || channels == 3;
        let (channels, height, width, channels_last) = match *sample_shape {
            [channels, height, width] if colours(channels) => (channels, height, width, false),
            [height, width, channels] if colours(channels) => (channels, height, width, true),
            [height, width] => (1, height, width, false),
            [pixels] if pixels.isqrt().pow(2) == pixels => (1, pixels.isqrt(), pixels.isqrt(), false),
            _ => return None,
        };
        let side = |pixels: usize| u32::try_from(pixels).ok().filter(|side| (1..=MAX_SIDE).contains(side));
        Some(Frame { channels, height: side(height)?, width: side(width)?, channels_last })
    }
}

/// Whether a file's name says that it is a picture that is read here.
pub fn is_named_so(path: &Path) -> bool {
    has_ending(path, &["png", "jpg", "jpeg"])
}

pub(super) fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}

/// Decodes the bytes of a PNG or JPEG file into one raw sample of `sample_shape` (without the batch; see [`Frame::of`]):
/// 0 to 255 a value, in the shape's order. The picture is turned as its EXIF orientation says, stretched to the frame by
/// a triangle filter with antialiasing (what Pillow calls bilinear), without its alpha channel; grey is ITU-R BT.601's
/// luma. The bounds on its sides, its pixels and the decoder's memory are checked before it is decoded.
///
/// # Errors
/// A sentence that says what is wrong, for the caller to add the picture's name.
pub fn decode(bytes: &[u8], sample_shape: &[usize]) -> Result<Vec<f32>, String> {
    let frame = Frame::of(sample_shape).ok_or_else(|| {
        format!(
            "is a picture, but the model takes samples of the shape {sample_shape:?}; pictures fit [1 or 3, height, \
             width], [height, width, 1 or 3], [height, width] and a square as [height * width]"
        )
    })?;
    let decoded = decode_upright(bytes)?;
    Ok(fit(decoded, frame))
}

/// Reads one picture as the only row, without a label.
///
/// # Errors
/// [`FileError`] names the file.
pub fn read(path: &Path, sample_shape: &[usize]) -> Result<LabelledRows, FileError> {
    let sample = decode(&read_bytes(path)?, sample_shape)
        .map_err(|problem| FileError::File { path: path.to_owned(), problem })?;
    let sample_len = sample.len();
    Ok(LabelledRows::new(path, sample, sample_len))
}

fn decode_upright(bytes: &[u8]) -> Result<DynamicImage, String> {
    let damaged = |error: image::ImageError| format!("does not decode as a picture: {error}");
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format!("cannot be read as a picture: {error}"))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err("is neither a PNG nor a JPEG picture; convert it to one of them".to_owned());
    }
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_DECODING_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("has no pixels".to_owned());
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS || decoder.total_bytes() > MAX_DECODING_BYTES {
        return Err(format!("has {width} x {height} pixels, above the limit of {MAX_PIXELS}; make it smaller"));
    }
    // A damaged note on the orientation is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    Ok(decoded)
}

fn fit(decoded: DynamicImage, frame: Frame) -> Vec<f32> {
    let Frame { channels, height, width, channels_last } = frame;
    if channels == 1 {
        let picture = resized(grey(decoded), height, width);
        return picture.as_raw().iter().map(|&value| f32::from(value)).collect();
    }
    let picture = resized(decoded.into_rgb8(), height, width);
    let values = picture.as_raw();
    if channels_last {
        return values.iter().map(|&value| f32::from(value)).collect();
    }
    (0..channels).flat_map(|channel| values.iter().skip(channel).step_by(channels).map(|&v| f32::from(v))).collect()
}

fn resized<P: image::Pixel<Subpixel = u8> + 'static>(
    picture: image::ImageBuffer<P, Vec<u8>>,
    height: u32,
    width: u32,
) -> image::ImageBuffer<P, Vec<u8>> {
    if picture.dimensions() == (width, height) {
        return picture;
    }
    imageops::resize(&picture, width, height, FilterType::Triangle)
}

/// Grey by BT.601's weights, as the frameworks that models come from do; the decoder's own are BT.709's.
fn grey(decoded: DynamicImage) -> GrayImage {
    if !decoded.color().has_color() {
        return decoded.into_luma8();
    }
    let colour: RgbImage = decoded.into_rgb8();
    GrayImage::from_fn(colour.width(), colour.height(), |x, y| {
        let [red, green, blue] = colour.get_pixel(x, y).0.map(u32::from);
        let luma = (red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16;
        // The weights add up to 2^16.
        image::Luma([u8::try_from(luma).unwrap_or(u8::MAX)])
    })
}

#[cfg(test)]
#[path = "image_tests.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(super) mod tests;
