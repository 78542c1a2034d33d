//! Spans to an OpenTelemetry collector, over OTLP/gRPC, in the background; what a collector can't take is dropped.
//! Which spans there are is decided in `layer` and by who answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanBuilder, SpanKind, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanProcessor};

/// For one batch of spans to reach the collector.
const EXPORT_TIME: Duration = Duration::from_secs(5);
/// For the last spans at shutdown.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Why traces can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Not an address that spans can be sent to.
    #[error("telemetry.otlp_endpoint = {endpoint:?}: {problem}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Where spans go; none are made without a collector.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Sender>>);

#[derive(Debug)]
struct Sender {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// No traces.
    pub fn off() -> Traces {
        Traces(None)
    }

    /// To the collector at `endpoint` (`http://HOST:4317`): the share `ratio` (0..=1) of those requests whose `traceparent` does
    /// not decide, under `instance` as `service.instance.id`. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and
    /// `OTEL_EXPORTER_OTLP_HEADERS` hold. An empty endpoint: no traces. Needs a runtime.
    ///
    /// # Errors
    /// [`TraceError`]: not an address, or one of TLS, which needs a collector beside the node.
    pub fn to(endpoint: &str, ratio: f64, instance: &str) -> Result<Traces, TraceError> {
        if endpoint.is_empty() {
            return Ok(Traces::off());
        }
        let refuse = |problem: String| TraceError::Endpoint { endpoint: endpoint.to_owned(), problem };
        if !endpoint.starts_with("http://") {
            return Err(refuse(
                "expected http://HOST:PORT, in plaintext: a collector beside the node takes it on".to_owned(),
            ));
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIME).build();
        let exporter = exporter.map_err(|error| refuse(error.to_string()))?;
        Ok(Traces::by(BatchSpanProcessor::builder(exporter).build(), ratio, instance))
    }

    pub(super) fn by(processor: impl SpanProcessor + 'static, ratio: f64, instance: &str) -> Traces {
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("fedge-node");
        }
        let resource = resource.with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource.build())
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("fedge");
        Traces(Some(Arc::new(Sender { provider, tracer })))
    }

    /// Starts the span of a call, below the caller's (`traceparent`, `tracestate`: W3C Trace Context). None where it is not
    /// traced.
    pub(super) fn start(
        &self,
        headers: &HeaderMap,
        name: impl FnOnce() -> String,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Option<Context> {
        let Sender { tracer, .. } = self.0.as_deref()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let span = SpanBuilder::from_name(name()).with_kind(SpanKind::Server).with_attributes(attributes());
        let context = parent.with_span(tracer.build_with_context(span, &parent));
        context.span().is_recording().then_some(context)
    }

    pub(super) fn child(&self, name: &'static str, parent: &Context, start: SystemTime, end: SystemTime) {
        if let Some(Sender { tracer, .. }) = self.0.as_deref() {
            let span = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(start);
            let child = parent.with_span(tracer.build_with_context(span, parent));
            child.span().end_with_timestamp(end);
        }
    }

    /// Sends what waits; nothing is traced from here on. Blocks for at most two seconds.
    pub fn finish(&self) {
        if let Some(Sender { provider, .. }) = self.0.as_deref()
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIME)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
