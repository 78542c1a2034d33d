//! The `classification` extension: an output as its k greatest values, each `value:index[:label]`.
//! Which outputs ask for it is read in `convert`.

use prost::bytes::{BufMut, BytesMut};

use super::answer::{OutputTensor, wire_shape};

/// The reply's tensor: BYTES `[batch, k]`, greatest first, the first of equals first; a length as
/// little-endian u32 before each element. `k` above the number of values counts as that number.
pub(super) fn classify(name: String, values: &[f32], rows: usize, k: usize, labels: &[String]) -> OutputTensor {
    let width = values.len() / rows.max(1);
    let k = k.min(width);
    let mut raw = BytesMut::new();
    for row in values.chunks_exact(width.max(1)) {
        let mut ranked: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
        ranked.sort_by(|(_, left), (_, right)| right.total_cmp(left));
        for (index, value) in ranked.into_iter().take(k) {
            let text = match labels.get(index) {
                Some(label) => format!("{value:.6}:{index}:{label}"),
                None => format!("{value:.6}:{index}"),
            };
            // A label has at most 256 bytes.
            raw.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
            raw.put_slice(text.as_bytes());
        }
    }
    OutputTensor { name, datatype: "BYTES", shape: wire_shape(&[rows, k]), data: raw.freeze() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_values_come_first_with_their_labels() {
        let labels = ["cat".to_owned(), "dog".to_owned(), "owl".to_owned()];
        let OutputTensor { datatype, shape, data: raw, .. } =
            classify("logits".to_owned(), &[0.5, 2.0, -1.0, 1.0, 1.0, 3.0], 2, 2, &labels);
        assert_eq!((datatype, &shape[..]), ("BYTES", &[2, 2][..]));
        let mut texts = Vec::new();
        let mut rest = &raw[..];
        while let Some((len, tail)) = rest.split_first_chunk() {
            let (text, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            texts.push(std::str::from_utf8(text).unwrap());
            rest = tail;
        }
        assert_eq!(texts, ["2.000000:1:dog", "0.500000:0:cat", "3.000000:2:owl", "1.000000:0:cat"]);
    }

    #[test]
    fn more_classes_than_there_are_gives_all_of_them_without_labels() {
        let OutputTensor { datatype, shape, data: raw, .. } = classify("logits".to_owned(), &[1.0, 2.0], 1, 9, &[]);
        assert_eq!((datatype, &shape[..]), ("BYTES", &[1, 2][..]));
        assert_eq!(&raw[4..], b"2.000000:1\x0a\0\0\x001.000000:0");
    }
}
