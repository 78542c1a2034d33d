//! What is known of a call besides its message: its request id, its trace, how it ended; over gRPC and HTTP alike.
//! Who is calling is `fedge_proto`'s; what is answered, `inference`'s; where spans are sent, `traces`'.

mod layer;
mod log;
mod traces;

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, KeyValue};

pub use layer::{CallLayer, ErrorText};
pub use traces::{TraceError, Traces};

/// The header that carries a request's id in both directions.
pub const REQUEST_ID: &str = "x-request-id";
/// Longest id of a caller, in bytes; longer ones are replaced by one of ours.
const REQUEST_ID_MAX: usize = 128;

/// Names one request in the node's log: the caller's `x-request-id`, else one of the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// What the caller sent: 1 to 128 visible ASCII characters.
    Given(String),
    /// A number that no other request of this process has.
    Minted(u64),
}

impl RequestId {
    /// The caller's id, or a new one where there is none that could be logged as it is.
    fn of(headers: &HeaderMap) -> RequestId {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let fits =
            |id: &&str| (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        given.filter(fits).map_or_else(RequestId::mint, |id| RequestId::Given(id.to_owned()))
    }

    fn mint() -> RequestId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        RequestId::Minted(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two processes, or one before and after its restart, don't give the same ids.
        static PROCESS: LazyLock<u32> = LazyLock::new(rand::random);
        match self {
            RequestId::Given(id) => f.write_str(id),
            RequestId::Minted(number) => write!(f, "{:08x}-{number:x}", *PROCESS),
        }
    }
}

/// One call that is being answered; handlers find it in the request's extensions.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its name in the log.
    pub id: RequestId,
    /// The context of its span, where it is traced.
    trace: Option<Trace>,
}

#[derive(Clone, Debug)]
struct Trace {
    traces: Traces,
    context: Context,
}

impl Call {
    /// Adds what was learned while it was answered to its span.
    pub fn describe<const N: usize>(&self, attributes: impl FnOnce() -> [KeyValue; N]) {
        if let Some(trace) = &self.trace {
            trace.context.span().set_attributes(attributes());
        }
    }

    /// Adds a child span that ended `ago` and took `lasted`.
    pub fn stage(&self, name: &'static str, ago: Duration, lasted: Duration) {
        if let Some(Trace { traces, context }) = &self.trace {
            let end = SystemTime::now() - ago;
            traces.child(name, context, end - lasted, end);
        }
    }

    /// The id of its trace, in hexadecimal digits; empty where it is not traced.
    pub fn trace_id(&self) -> String {
        let id = |trace: &Trace| trace.context.span().span_context().trace_id().to_string();
        self.trace.as_ref().map(id).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
