//! The layer that every call passes first: gives it an id and a span, and says in the log how it ended.
//! It knows gRPC's and HTTP's ways of failing; handlers know of neither.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use axum::extract::MatchedPath;
use fedge_proto::tls::Peer;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Status as SpanStatus, TraceContextExt};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::log::{Grade, Outcome};
use super::{Call, REQUEST_ID, RequestId, Trace, Traces};

/// Why an HTTP request got no answer; put into the response's extensions by who refused it.
#[derive(Clone, Debug)]
pub struct ErrorText(pub String);

/// Names, traces and logs every call: `Server::builder().layer(...)`, before any other layer.
#[derive(Clone, Debug, Default)]
pub struct CallLayer {
    traces: Traces,
}

impl CallLayer {
    /// With these traces.
    pub fn new(traces: Traces) -> CallLayer {
        CallLayer { traces }
    }

    fn begin(&self, head: &Head, headers: &HeaderMap) -> Call {
        let id = RequestId::of(headers);
        let context = self.traces.start(headers, || head.method(), || head.attributes(&id));
        Call { id, trace: context.map(|context| Trace { traces: self.traces.clone(), context }) }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Called<S>;

    fn layer(&self, inner: S) -> Called<S> {
        Called { inner, layer: self.clone() }
    }
}

/// A service behind [`CallLayer`].
#[derive(Debug, Clone)]
pub struct Called<S> {
    inner: S,
    layer: CallLayer,
}

/// What the log and the span say of a request, whatever becomes of it.
struct Head {
    grpc: bool,
    verb: Method,
    uri: Uri,
    route: Option<MatchedPath>,
    peer: Option<Peer>,
}

impl Head {
    fn of<B>(request: &Request<B>) -> Head {
        let content = request.headers().get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        Head {
            grpc: content.is_some_and(|content| content.starts_with(b"application/grpc")),
            verb: request.method().clone(),
            uri: request.uri().clone(),
            route: request.extensions().get().cloned(),
            peer: request.extensions().get().cloned(),
        }
    }

    /// `package.Service/Method`, or `GET /v2/models/{model}`; of paths that there are not the verb alone: they name nothing.
    fn method(&self) -> String {
        match &self.route {
            _ if self.grpc => self.uri.path().trim_start_matches('/').chars().take(200).collect(),
            Some(route) => format!("{} {}", self.verb, route.as_str()),
            None => self.verb.to_string(),
        }
    }

    /// As OpenTelemetry's conventions for RPC and HTTP name them.
    fn attributes(&self, id: &RequestId) -> Vec<KeyValue> {
        let mut attributes = vec![KeyValue::new("fedge.request_id", id.to_string())];
        if let Some(peer) = &self.peer {
            attributes.push(KeyValue::new("network.peer.address", peer.address.ip().to_string()));
            if let Some(identity) = &peer.identity {
                attributes.push(KeyValue::new("fedge.caller", identity.to_string()));
            }
        }
        match self.uri.path().trim_start_matches('/').split_once('/') {
            Some((service, method)) if self.grpc => attributes.extend([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", method.to_owned()),
            ]),
            _ => {
                attributes.push(KeyValue::new("http.request.method", self.verb.to_string()));
                let route = self.route.as_ref().map(|route| route.as_str().to_owned());
                attributes.push(KeyValue::new("http.route", route.unwrap_or_default()));
            }
        }
        attributes
    }
}

impl<S, B, R> Service<Request<B>> for Called<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let came = Instant::now();
        let head = Head::of(&request);
        let call = self.layer.begin(&head, request.headers());
        request.extensions_mut().insert(call.clone());
        let answering = self.inner.call(request);
        Box::pin(async move {
            let mut response = answering.await?;
            let ending = Ending::of(head.grpc, &response);
            ending.tell(&head, &call, came);
            let named = matches!(call.id, RequestId::Given(_)) || ending.grade != Grade::Answered;
            if named && let Ok(id) = HeaderValue::try_from(call.id.to_string()) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            Ok(response)
        })
    }
}

/// How a response's head says that it ended. What a stream says later is in its messages.
struct Ending {
    grade: Grade,
    code: Ended,
    problem: String,
}

/// The protocol's word for it.
#[derive(Clone, Copy)]
enum Ended {
    Grpc(Code),
    Http(StatusCode),
}

impl Ended {
    fn attribute(self) -> KeyValue {
        match self {
            Ended::Grpc(code) => KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)),
            Ended::Http(status) => KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Grpc(code) => write!(f, "{code:?}"),
            Ended::Http(status) => write!(f, "{}", status.as_u16()),
        }
    }
}

impl Ending {
    fn of<R>(grpc: bool, response: &Response<R>) -> Ending {
        if grpc {
            // An error without a message before it comes in the head; else the call was answered.
            let status = Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok(""));
            let grade = match status.code() {
                Code::Ok => Grade::Answered,
                Code::Internal | Code::Unknown | Code::DataLoss => Grade::Failed,
                _ => Grade::Refused,
            };
            return Ending { grade, code: Ended::Grpc(status.code()), problem: status.message().to_owned() };
        }
        let status = response.status();
        let problem = response.extensions().get().map(|ErrorText(text)| text.clone()).unwrap_or_default();
        let grade = match status.as_u16() {
            500 => Grade::Failed,
            // A model that is not ready answers 400 without a word: that is an answer.
            400.. if !problem.is_empty() => Grade::Refused,
            _ => Grade::Answered,
        };
        Ending { grade, code: Ended::Http(status), problem }
    }

    fn tell(&self, head: &Head, call: &Call, came: Instant) {
        if let Some(trace) = &call.trace {
            let span = trace.context.span();
            span.set_attribute(self.code.attribute());
            if self.grade == Grade::Failed {
                // A server's span is an error for its own faults alone, say the conventions.
                span.set_status(SpanStatus::error(self.problem.clone()));
            }
            span.end();
        }
        let peer = head.peer.as_ref();
        let outcome = Outcome { call, peer, lasted: came.elapsed(), problem: &self.problem, grade: self.grade };
        outcome.log(|| head.method(), &self.code);
    }
}
