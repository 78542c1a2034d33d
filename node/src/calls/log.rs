//! One line a call: answered ones at `debug`, the others at `info` or `error`, so many a second.
//! The fields are the same over gRPC and HTTP.

use std::fmt;
use std::time::{Duration, Instant};

use fedge_proto::lines::LineBudget;
use fedge_proto::tls::Peer;

use super::Call;

/// Lines about calls without an answer: a flood of them shall not fill a device's disk.
static UNANSWERED: LineBudget = LineBudget::new(50);

/// How a call ended.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) call: &'a Call,
    pub(super) peer: Option<&'a Peer>,
    pub(super) lasted: Duration,
    /// Why there is no answer; empty for an answer.
    pub(super) problem: &'a str,
    pub(super) grade: Grade,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grade {
    Answered,
    /// The caller's, or an overload.
    Refused,
    /// The node's.
    Failed,
}

/// What each line says.
macro_rules! line {
    ($level:ident, $outcome:expr, $method:expr, $code:expr, $text:literal) => {{
        let outcome = $outcome;
        tracing::$level!(
            request_id = %outcome.call.id,
            trace_id = outcome.call.trace_id(),
            caller = outcome.caller(),
            peer = outcome.peer.map(|peer| tracing::field::display(peer.address)),
            method = $method,
            code = %$code,
            duration_us = u64::try_from(outcome.lasted.as_micros()).unwrap_or(u64::MAX),
            problem = outcome.problem,
            $text
        );
    }};
}

impl Outcome<'_> {
    /// Writes the line, unless there were too many.
    pub(super) fn log(&self, method: impl Fn() -> String, code: &dyn fmt::Display) {
        if self.grade == Grade::Answered {
            line!(debug, self, method(), code, "call answered");
            return;
        }
        let Some(silent) = UNANSWERED.admit(Instant::now()) else { return };
        if silent > 0 {
            tracing::warn!(calls = silent, "calls without an answer that had no line of their own");
        }
        match self.grade {
            Grade::Failed => line!(error, self, method(), code, "call failed"),
            _ => line!(info, self, method(), code, "call refused"),
        }
    }

    fn caller(&self) -> Option<String> {
        self.peer.and_then(|peer| peer.identity.as_ref()).map(ToString::to_string)
    }
}
