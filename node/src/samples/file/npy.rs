//! One NumPy array: its header, a Python dictionary of three known keys, and its elements.
//! Source: NumPy Enhancement Proposal 1 (A Simple File Format for NumPy Arrays), versions 1.0 to 3.0.

use ndarray::{ArrayD, IxDyn, ShapeBuilder};

use super::MAX_VALUES;

/// Longest header, in bytes: a shape has few dimensions.
const MAX_HEADER: usize = 4096;
/// Longest text of an element, in characters.
const MAX_TEXT: usize = 1024;

/// An array in row-major order.
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// Its elements, widened.
pub(super) enum Values {
    Float(Vec<f64>),
    Integer(Vec<i64>),
    Text(Vec<String>),
}

/// Reads one array. Problems say what is wrong, for the caller to add the names of file and array.
pub(super) fn parse(bytes: &[u8]) -> Result<Array, String> {
    let cut = || "is cut off; copy the file again".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("is no NumPy array")?;
    let (&[major, _minor], rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (header_len, rest) = match major {
        1 => rest.split_first_chunk().map(|(len, rest)| (usize::from(u16::from_le_bytes(*len)), rest)),
        2 | 3 => rest.split_first_chunk().map(|(len, rest)| (u32::from_le_bytes(*len) as usize, rest)),
        _ => return Err(format!("has the format version {major}; versions 1 to 3 are known")),
    }
    .ok_or_else(cut)?;
    if header_len > MAX_HEADER {
        return Err(format!("has a header of {header_len} bytes, above the limit of {MAX_HEADER}"));
    }
    let (header, data) = rest.split_at_checked(header_len).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is not text".to_owned())?;
    let element = Element::named(&quoted(header, "descr")?)?;
    let fortran = value_of(header, "fortran_order")?.starts_with("True");
    let shape = shape(header)?;
    let count = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&count| count <= MAX_VALUES)
        .ok_or_else(|| format!("has the shape {shape:?}, more than {MAX_VALUES} elements; split the file"))?;
    let expected = count.checked_mul(element.size).ok_or("has too many bytes")?;
    if data.len() != expected {
        return Err(format!("has {} bytes of elements, but its shape {shape:?} needs {expected}", data.len()));
    }
    let values = match element.kind {
        Kind::Float => Values::Float(reorder(elements(data, element.size, element.float()), &shape, fortran)?),
        Kind::Signed | Kind::Unsigned => {
            let values: Option<Vec<i64>> =
                data.chunks_exact(element.size).map(|bytes| element.integer(bytes)).collect();
            let values = values.ok_or("holds an integer above 2^63 - 1")?;
            Values::Integer(reorder(values, &shape, fortran)?)
        }
        Kind::Text => {
            let values: Option<Vec<String>> = data.chunks_exact(element.size.max(1)).map(text).collect();
            Values::Text(reorder(values.ok_or("holds text that is not Unicode")?, &shape, fortran)?)
        }
    };
    Ok(Array { shape, values })
}

enum Kind {
    Float,
    Signed,
    Unsigned,
    Text,
}

/// Type of the elements; always little-endian.
struct Element {
    kind: Kind,
    size: usize,
}

impl Element {
    /// From NumPy's name, e.g. `<f4`.
    fn named(name: &str) -> Result<Element, String> {
        let refused = || {
            format!(
                "has elements of type {:?}; use float32, float64, an integer, bool or text (save it with .astype(\"float32\"))",
                super::shorten(name)
            )
        };
        let mut characters = name.chars();
        let order = characters.next();
        let (kind, size) = (characters.next(), characters.as_str().parse::<usize>().map_err(|_| refused())?);
        if order == Some('>') && size > 1 {
            return Err(format!("has big-endian elements ({name:?}); save it with .astype(\"float32\")"));
        }
        match (kind, size) {
            (Some('f'), 4 | 8) => Ok(Element { kind: Kind::Float, size }),
            (Some('i'), 1 | 2 | 4 | 8) => Ok(Element { kind: Kind::Signed, size }),
            (Some('u'), 1 | 2 | 4 | 8) | (Some('b'), 1) => Ok(Element { kind: Kind::Unsigned, size }),
            (Some('U'), 1..=MAX_TEXT) => Ok(Element { kind: Kind::Text, size: size * 4 }),
            _ => Err(refused()),
        }
    }

    fn float(&self) -> fn(&[u8]) -> f64 {
        if self.size == 4 {
            |bytes| bytes.first_chunk().map_or(f64::NAN, |&bytes| f64::from(f32::from_le_bytes(bytes)))
        } else {
            |bytes| bytes.first_chunk().map_or(f64::NAN, |&bytes| f64::from_le_bytes(bytes))
        }
    }

    fn integer(&self, bytes: &[u8]) -> Option<i64> {
        let negative = matches!(self.kind, Kind::Signed) && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let value = i64::from_le_bytes(wide);
        (matches!(self.kind, Kind::Signed) || value >= 0).then_some(value)
    }
}

fn elements(data: &[u8], size: usize, read: fn(&[u8]) -> f64) -> Vec<f64> {
    data.chunks_exact(size).map(read).collect()
}

/// NumPy's fixed-width text: UTF-32, padded with zeros.
fn text(bytes: &[u8]) -> Option<String> {
    let codes = bytes.as_chunks().0.iter().map(|&chunk| u32::from_le_bytes(chunk));
    let text: String = codes.map(char::from_u32).collect::<Option<_>>()?;
    Some(text.trim_end_matches('\0').to_owned())
}

fn reorder<T: Clone>(values: Vec<T>, shape: &[usize], fortran: bool) -> Result<Vec<T>, String> {
    if !fortran || shape.len() < 2 {
        return Ok(values);
    }
    let array = ArrayD::from_shape_vec(IxDyn(shape).f(), values).map_err(|error| error.to_string())?;
    Ok(array.iter().cloned().collect())
}

/// What follows `'key':` in the header's dictionary.
fn value_of<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = format!("'{key}'");
    let after = header.find(&quoted).and_then(|at| header.get(at + quoted.len()..));
    after
        .and_then(|rest| rest.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .ok_or_else(|| format!("lacks {key:?} in its header"))
}

fn quoted(header: &str, key: &str) -> Result<String, String> {
    let value = value_of(header, key)?.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    value
        .map(|(text, _)| text.to_owned())
        .ok_or_else(|| "has structured or object elements; save a plain numeric array".to_owned())
}

fn shape(header: &str) -> Result<Vec<usize>, String> {
    let wrong = || "has a shape that cannot be read in its header".to_owned();
    let (inner, _) =
        value_of(header, "shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(wrong)?;
    inner
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.trim_end_matches('L').parse().map_err(|_| wrong()))
        .collect()
}
