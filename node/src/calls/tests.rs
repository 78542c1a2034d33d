use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use opentelemetry::trace::{SpanId, Status as SpanStatus, TraceId};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SimpleSpanProcessor, SpanData, SpanExporter};
use tonic::Status;
use tower::{Layer, Service, service_fn};

use super::*;

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

fn headers(id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(REQUEST_ID, http::HeaderValue::from_bytes(id.as_bytes()).unwrap());
    headers
}

/// Sends a gRPC call through the layer to a handler that adds a stage and answers with `status`.
async fn call(traces: &Traces, given: &[(&str, &str)], status: Status) -> Response<()> {
    let handler = service_fn(move |request: Request<()>| {
        let status = status.clone();
        async move {
            let call: &Call = request.extensions().get().unwrap();
            call.describe(|| [KeyValue::new("fedge.model.name", "digits")]);
            call.stage("compute_infer", Duration::from_millis(1), Duration::from_millis(2));
            let mut response = Response::new(());
            if status.code() != tonic::Code::Ok {
                status.add_header(response.headers_mut()).unwrap();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut request = Request::post("/inference.GRPCInferenceService/ModelInfer");
    request = request.header("content-type", "application/grpc");
    for (name, value) in given {
        request = request.header(*name, *value);
    }
    CallLayer::new(traces.clone()).layer(handler).call(request.body(()).unwrap()).await.unwrap()
}

#[test]
fn a_callers_id_is_kept_where_it_can_be_logged_and_replaced_where_not() {
    assert_eq!(RequestId::of(&headers("till-7/42")).to_string(), "till-7/42");
    for unfit in ["", "two words", "zwölf", &"x".repeat(129)] {
        let id = RequestId::of(&headers(unfit));
        assert!(matches!(id, RequestId::Minted(_)), "{unfit:?}: {id}");
    }
    let (one, two) = (RequestId::of(&HeaderMap::new()).to_string(), RequestId::of(&HeaderMap::new()).to_string());
    assert_ne!(one, two);
    assert!(RequestId::of(&headers(&one)).to_string() == one, "ours can be sent again");
}

#[tokio::test]
async fn a_call_without_an_answer_says_its_id_and_one_with_a_given_id_always_does() {
    let off = Traces::off();
    let named = |response: &Response<()>| response.headers().contains_key(REQUEST_ID);
    assert!(!named(&call(&off, &[], Status::ok("")).await));
    assert!(named(&call(&off, &[], Status::not_found("no such model")).await));
    let answered = call(&off, &[(REQUEST_ID, "a-1")], Status::ok("")).await;
    assert_eq!(answered.headers()[REQUEST_ID], "a-1");
    assert_eq!(answered.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_traced_call_is_a_child_of_the_callers_span_and_its_stages_are_its_children() {
    let kept = Kept::default();
    let traces = Traces::by(SimpleSpanProcessor::new(kept.clone()), 0.0, "test");
    let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call(&traces, &[("traceparent", sampled)], Status::ok("")).await;
    let spans = std::mem::take(&mut *kept.0.lock().unwrap());
    let [stage, server] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(server.name, "inference.GRPCInferenceService/ModelInfer");
    assert_eq!(server.span_context.trace_id(), TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap());
    assert_eq!(server.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    let attribute =
        |key: &str| server.attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.to_string());
    assert_eq!(attribute("rpc.grpc.status_code").as_deref(), Some("0"));
    assert_eq!(attribute("fedge.model.name").as_deref(), Some("digits"));
    assert_eq!((stage.name.as_ref(), stage.parent_span_id), ("compute_infer", server.span_context.span_id()));
    assert_eq!(stage.end_time.duration_since(stage.start_time).unwrap(), Duration::from_millis(2));

    // The caller's decision against it holds, and so does the ratio where it says nothing.
    call(&traces, &[("traceparent", &sampled.replace("-01", "-00"))], Status::ok("")).await;
    call(&traces, &[("traceparent", "not-a-trace")], Status::ok("")).await;
    assert!(kept.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_the_nodes_own_faults_are_errors_of_its_spans() {
    let kept = Kept::default();
    let traces = Traces::by(SimpleSpanProcessor::new(kept.clone()), 1.0, "test");
    for (status, error) in [(Status::invalid_argument("shape"), false), (Status::internal("it panicked"), true)] {
        call(&traces, &[], status).await;
        let spans = std::mem::take(&mut *kept.0.lock().unwrap());
        assert_eq!(spans.len(), 2);
        assert_eq!(matches!(&spans[1].status, SpanStatus::Error { .. }), error);
    }
}

#[tokio::test]
async fn an_endpoint_that_no_collector_can_have_is_refused_by_name() {
    for endpoint in ["localhost:4317", "https://collector:4317", "http://"] {
        let error = Traces::to(endpoint, 1.0, "test").unwrap_err().to_string();
        assert!(error.contains("telemetry.otlp_endpoint") && error.contains(endpoint), "{error}");
    }
    Traces::to("", 1.0, "test").unwrap();
}
