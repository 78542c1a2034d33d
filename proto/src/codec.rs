//! The codec of every service: protobuf whose records are counted before any of them becomes memory.
//! What messages mean is not known here.

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Records in a message. An empty one takes two bytes on the wire and hundreds in memory: without this bound, a message of
/// 16 MiB becomes gigabytes before anybody can look at it. Numbers that are packed, as all encoders send them, are one record
/// a tensor.
const MAX_RECORDS: usize = 65_536;
/// `inputs` of a `ModelInferRequest` and `contents` of those, `outputs` of a response: what has records of its own. In messages
/// where this field is text or bytes, what looks like records in it is counted too, which refuses none that there are.
const NESTED_FIELD: u64 = 5;
/// How deep those are.
const NESTED_DEPTH: u32 = 2;

/// prost's encoding; messages of more than 65,536 records are refused.
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> BoundedCodec<T, U> {
        BoundedCodec(PhantomData)
    }
}

impl<T, U> fmt::Debug for BoundedCodec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundedCodec")
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if !fits(buffer.chunk()) {
            return Err(Status::resource_exhausted(format!(
                "the message has more than {MAX_RECORDS} records; send numbers packed or as raw bytes"
            )));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message has few enough records to be decoded. One that is malformed is the decoder's to refuse.
fn fits(message: &[u8]) -> bool {
    let mut left = MAX_RECORDS;
    count(message, NESTED_DEPTH, &mut left);
    left > 0
}

/// Takes the records of a message off what is `left`, up to the first that is malformed.
fn count(mut message: &[u8], depth: u32, left: &mut usize) {
    while !message.is_empty() && *left > 0 {
        let Some(tag) = varint(&mut message) else { return };
        *left -= 1;
        // The wire types of protobuf.
        let length = match tag & 7 {
            0 => {
                if varint(&mut message).is_none() {
                    return;
                }
                continue;
            }
            1 => 8,
            2 => match varint(&mut message) {
                Some(length) => length,
                None => return,
            },
            5 => 4,
            // Groups: no message of ours has any, but their fields are records.
            3 | 4 => continue,
            _ => return,
        };
        let Some((record, rest)) = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length))
        else {
            return;
        };
        if depth > 0 && tag & 7 == 2 && tag >> 3 == NESTED_FIELD {
            count(record, depth - 1, left);
        }
        message = rest;
    }
}

/// Reads a base-128 number of at most ten bytes.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in message.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(index).ok()?)?;
        if byte < 0x80 {
            *message = &message[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inference::model_infer_request::InferInputTensor;
    use crate::inference::{InferTensorContents, ModelInferRequest};

    fn request(inputs: usize, contents: Option<InferTensorContents>) -> Vec<u8> {
        let input = InferInputTensor { contents, ..InferInputTensor::default() };
        ModelInferRequest { inputs: vec![input; inputs], ..ModelInferRequest::default() }.encode_to_vec()
    }

    #[test]
    fn a_message_of_many_empty_records_is_refused_before_it_is_decoded() {
        assert!(fits(&request(256, None)));
        assert!(fits(&request(MAX_RECORDS - 1, None)));
        assert!(!fits(&request(MAX_RECORDS, None)));
        let empty = vec![prost::bytes::Bytes::new(); MAX_RECORDS];
        let strings = InferTensorContents { bytes_contents: empty, ..InferTensorContents::default() };
        assert!(!fits(&request(1, Some(strings))), "elements of a tensor count too");
        // Parameters of an input: entries of a map.
        let entries: Vec<u8> = [0x22, 0x00].repeat(MAX_RECORDS);
        let input: Vec<u8> = [vec![0x2a, 0x80, 0x80, 0x08], entries].concat();
        assert!(!fits(&input));
    }

    #[test]
    fn packed_numbers_are_one_record_however_many_they_are() {
        let numbers = InferTensorContents { fp32_contents: vec![1.0; 4 << 20], ..InferTensorContents::default() };
        assert!(fits(&request(1, Some(numbers))));
        let large =
            ModelInferRequest { raw_input_contents: vec![vec![0x2a; 16 << 20].into()], ..ModelInferRequest::default() };
        assert!(fits(&large.encode_to_vec()), "raw bytes are no records");
    }

    proptest! {
        #[test]
        fn anything_is_counted_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fits(&bytes);
        }

        #[test]
        fn numbers_are_read_as_prost_reads_them(value: u64) {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(value, &mut bytes);
            let mut rest = &bytes[..];
            prop_assert_eq!(varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
