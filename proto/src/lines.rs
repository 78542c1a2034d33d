//! How many lines of one kind may go to the log, where strangers can cause them.
//! What the lines say is said where they are written.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many lines a second pass and counts the others.
#[derive(Debug)]
pub struct LineBudget {
    a_second: u32,
    state: Mutex<State>,
}

/// Of the running second.
#[derive(Debug)]
struct State {
    since: Option<Instant>,
    lines: u32,
    silent: u64,
}

impl LineBudget {
    /// For a `static` beside the lines.
    pub const fn new(a_second: u32) -> LineBudget {
        LineBudget { a_second, state: Mutex::new(State { since: None, lines: 0, silent: 0 }) }
    }

    /// Whether a line may be written now, and then how many were not since the last one.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (state.since, state.lines) = (Some(now), 0);
        }
        if state.lines == self.a_second {
            state.silent += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_a_bounded_number_of_lines_and_a_count_of_the_others() {
        let budget = LineBudget::new(50);
        let start = Instant::now();
        assert_eq!((0..1000).filter(|_| budget.admit(start).is_some()).count(), 50);
        assert_eq!(budget.admit(start + Duration::from_secs(1)), Some(950));
        assert_eq!(budget.admit(start + Duration::from_secs(1)), Some(0));
    }
}
