//! Walks protobuf's wire format (protobuf.dev/programming-guides/encoding) and says where each field lies.
//! Knows nothing of ONNX; it exists because decoded types drop fields that they do not know.

use std::ops::Range;

/// The bytes stop being protobuf at this offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset}")]
pub(crate) struct WireError {
    pub offset: usize,
    pub problem: &'static str,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64,
    /// A message, string, bytes or packed numbers.
    Bytes,
    Fixed32,
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub number: u32,
    pub value: Value,
    /// The whole record, from its tag on.
    pub record: Range<usize>,
    /// The payload alone: after the tag, and after the length of a `Bytes` value.
    pub payload: Range<usize>,
}

/// Iterates over the fields of the message that lies in `range` of `bytes`. Fuses after an error.
pub(crate) struct Fields<'b> {
    bytes: &'b [u8],
    at: usize,
    end: usize,
}

/// The fields of a message; `range` is cut to the bytes at hand.
pub(crate) fn fields(bytes: &[u8], range: Range<usize>) -> Fields<'_> {
    let end = range.end.min(bytes.len());
    Fields { bytes, at: range.start.min(end), end }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.at = self.end;
        }
        Some(field)
    }
}

impl Fields<'_> {
    fn read(&mut self) -> Result<Field, WireError> {
        let start = self.at;
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&number| number > 0 && number < 1 << 29);
        let number = number.ok_or(WireError { offset: start, problem: "an impossible field number" })?;
        let after_tag = self.at;
        let (value, payload) = match key & 7 {
            0 => (Value::Varint(self.varint()?), after_tag..self.at),
            1 => (Value::Fixed64, self.skip(8)?),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length)
                    .map_err(|_| WireError { offset: after_tag, problem: "an impossible length" })?;
                (Value::Bytes, self.skip(length)?)
            }
            5 => (Value::Fixed32, self.skip(4)?),
            _ => return Err(WireError { offset: start, problem: "an unknown kind of field" }),
        };
        Ok(Field { number, value, record: start..self.at, payload })
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = match self.bytes.get(self.at) {
                Some(&byte) if self.at < self.end => byte,
                _ => return Err(WireError { offset: start, problem: "the data ends inside a number" }),
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError { offset: start, problem: "a number longer than 64 bits" })
    }

    fn skip(&mut self, length: usize) -> Result<Range<usize>, WireError> {
        let start = self.at;
        match start.checked_add(length) {
            Some(end) if end <= self.end => {
                self.at = end;
                Ok(start..end)
            }
            _ => Err(WireError { offset: start, problem: "the data ends inside a field" }),
        }
    }
}

/// Appends a number in protobuf's variable-length encoding.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field: a message, a string or bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, payload: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, payload.len() as u64);
    out.extend_from_slice(payload);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_encoding_guide_is_read() {
        // Field 1 = 150, field 2 = "testing": protobuf.dev, "Encoding".
        let bytes = b"\x08\x96\x01\x12\x07testing";
        let found: Vec<Field> = fields(bytes, 0..bytes.len()).collect::<Result<_, _>>().unwrap();
        assert_eq!(found[0], Field { number: 1, value: Value::Varint(150), record: 0..3, payload: 1..3 });
        assert_eq!(found[1], Field { number: 2, value: Value::Bytes, record: 3..12, payload: 5..12 });
    }

    #[test]
    fn a_written_field_is_read_again() {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 9, &[7; 300]);
        let field = fields(&bytes, 0..bytes.len()).next().unwrap().unwrap();
        assert_eq!((field.number, field.payload.len(), field.record.len()), (9, 300, 303));
    }

    #[test]
    fn a_length_past_the_end_is_refused_with_its_offset() {
        let error = fields(b"\x12\x07test", 0..6).next().unwrap().unwrap_err();
        assert_eq!(error.offset, 2);
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let bytes = [b"\x08".as_slice(), &[0xff; 9], b"\x02"].concat();
        assert!(fields(&bytes, 0..bytes.len()).next().unwrap().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut at = 0;
            for field in fields(&bytes, 0..bytes.len()) {
                let Ok(field) = field else { break };
                prop_assert_eq!(field.record.start, at);
                at = field.record.end;
            }
            prop_assert!(at <= bytes.len());
        }
    }
}
