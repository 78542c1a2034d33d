//! An HTTP request of REST's infer through the very router of a node: compression, the binary extension, JSON, answer, reply.
//! Connections and the bytes of HTTP itself are hyper's.

use std::sync::OnceLock;

use axum::Router;
use axum::body::Body;
use fedge_node::inference::rest::{Rest, router};
use fedge_node::inference::{KeepPolicy, ServiceOptions};
use fedge_proto::authorization::AnonymousCallers;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::models::{NAMES, served};

const JSON_LENGTH: &str = "inference-header-content-length";

/// How an input begins: what is around the body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// Index in [`NAMES`]; beyond them an unknown model.
    pub model: u8,
    /// 1: gzip, 2: deflate, 3: another encoding; else none.
    pub encoding: u8,
    /// Whether the reply may be compressed.
    pub accepts_gzip: bool,
    /// `Inference-Header-Content-Length`.
    pub json_length: Option<u32>,
}

impl Head {
    const LEN: usize = 6;

    /// An input of the target.
    pub fn with_body(self, body: &[u8]) -> Vec<u8> {
        let flags = u8::from(self.json_length.is_some()) | u8::from(self.accepts_gzip) << 1 | self.encoding << 2;
        let length = self.json_length.unwrap_or(0).to_le_bytes();
        [&[flags, self.model][..], &length, body].concat()
    }

    fn read(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (head, body) = bytes.split_at_checked(Head::LEN)?;
        let [flags, model, length @ ..] = head else { return None };
        let length = u32::from_le_bytes(length.try_into().ok()?);
        let json_length = (flags & 1 == 1).then_some(length);
        Some((Head { model: *model, encoding: flags >> 2 & 3, accepts_gzip: flags & 2 == 2, json_length }, body))
    }
}

/// Sends the request and looks at the reply. Nothing that comes from outside may be our fault.
///
/// # Panics
/// The answer blames the node, or is not what the protocol says.
pub fn answer(bytes: &[u8]) {
    let Some((head, body)) = Head::read(bytes) else { return };
    let model = NAMES.get(usize::from(head.model)).copied().unwrap_or("unknown");
    let mut request = Request::post(format!("/v2/models/{model}/infer"));
    if let Some(length) = head.json_length {
        request = request.header(JSON_LENGTH, length);
    }
    if let Some(encoding) = ["gzip", "deflate", "br"].get(usize::from(head.encoding).wrapping_sub(1)) {
        request = request.header(header::CONTENT_ENCODING, *encoding);
    }
    if head.accepts_gzip {
        request = request.header(header::ACCEPT_ENCODING, "gzip");
    }
    let request = request.body(Body::from(body.to_vec())).expect("a request");
    served().runtime.block_on(async {
        let reply = node().clone().oneshot(request).await.expect("the router never fails");
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        assert_ne!(parts.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", String::from_utf8_lossy(&body));
        if parts.headers.contains_key(header::CONTENT_ENCODING) {
            return;
        }
        let length = parts.headers.get(JSON_LENGTH).map(|length| length.to_str().unwrap().parse().unwrap());
        let json: Value = serde_json::from_slice(&body[..length.unwrap_or(body.len())]).expect("JSON");
        assert_eq!(parts.status == StatusCode::OK, json.get("error").is_none(), "{json}");
    });
}

fn node() -> &'static Router {
    static NODE: OnceLock<Router> = OnceLock::new();
    NODE.get_or_init(|| {
        router(Rest {
            inference: served().inference.clone(),
            library: None,
            options: ServiceOptions { keep: KeepPolicy::Off, ..ServiceOptions::default() },
            anonymous: AnonymousCallers::LocalInference,
        })
    })
}
