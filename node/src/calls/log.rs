//! One line a call: answered ones at `debug`, the others at `info` or `error`, so many a second.
//! The fields are the same over gRPC and HTTP.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fedge_proto::tls::Peer;

use super::Call;

/// Lines about calls without an answer, a second; a flood of them shall not fill a device's disk.
const LINES_A_SECOND: u32 = 50;

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
        let Some(silent) = admit(Instant::now()) else { return };
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

/// Whether a line may be written now, and how many were not since the last one.
fn admit(now: Instant) -> Option<u64> {
    static BUDGET: Mutex<Budget> = Mutex::new(Budget { since: None, lines: 0, silent: 0 });
    BUDGET.lock().unwrap_or_else(std::sync::PoisonError::into_inner).admit(now)
}

/// Lines of the running second.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) since: Option<Instant>,
    pub(super) lines: u32,
    pub(super) silent: u64,
}

impl Budget {
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_A_SECOND {
            self.silent += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.silent))
    }
}
