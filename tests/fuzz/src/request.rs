//! A gRPC message of ModelInfer: decoded, converted, checked, answered by a tiny model, and written as a reply.
//! Framing, compression and the bound on a message's size are tonic's.

use fedge_node::inference::convert;
use fedge_proto::inference::{ModelInferRequest, ModelInferResponse};
use prost::Message;
use prost::bytes::Bytes;
use tonic::{Code, Status};

use crate::models::served;

/// Answers the message, if it is one. Nothing that comes from outside may be our fault.
///
/// # Panics
/// The answer blames the node, or is not what the protocol says.
pub fn answer(bytes: &[u8]) {
    let Ok(message) = ModelInferRequest::decode(Bytes::copy_from_slice(bytes)) else { return };
    let id = message.id.clone();
    let Ok(request) = convert::request(message) else { return };
    let served = served();
    match served.runtime.block_on(served.inference.infer(request)) {
        Ok(answer) => {
            let response = convert::response(answer);
            assert_eq!(response.id, id);
            check(&response);
            assert_eq!(ModelInferResponse::decode(&*response.encode_to_vec()).ok().as_ref(), Some(&response));
        }
        Err(error) => {
            let status = Status::from(error);
            assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{status}");
            assert!(status.message().len() < 8192, "a message of {} bytes", status.message().len());
        }
    }
}

/// As many raw buffers as outputs, each as long as its shape and type say.
fn check(response: &ModelInferResponse) {
    assert_eq!(response.outputs.len(), response.raw_output_contents.len());
    for (output, raw) in response.outputs.iter().zip(&response.raw_output_contents) {
        let size = match output.datatype.as_str() {
            "BOOL" | "INT8" | "UINT8" => 1,
            "INT16" | "UINT16" | "FP16" => 2,
            "INT32" | "UINT32" | "FP32" => 4,
            "INT64" | "UINT64" | "FP64" => 8,
            "BYTES" => continue,
            other => panic!("the datatype {other}"),
        };
        let elements: i64 = output.shape.iter().product();
        assert_eq!(usize::try_from(elements).ok().map(|elements| elements * size), Some(raw.len()), "{output:?}");
    }
}
