//! Decides when training stops so that its update arrives in time. Pure: the time is passed in.
//! What is trained, and that it may be partial, is the plan's matter.

use std::time::{Duration, Instant};

/// Longest time that an assignment is believed to have; the coordinator's own bound is a week.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Least time that is left for the upload.
const LEAST_MARGIN: Duration = Duration::from_secs(1);

/// Until when an assignment can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    received: Instant,
    time: Duration,
}

impl Deadline {
    /// `time` is left, counted from when that was heard.
    pub fn new(received: Instant, time: Duration) -> Deadline {
        Deadline { received, time: time.min(LONGEST) }
    }

    /// When training has to end: a tenth of the time is for the upload, at least a second, but never more than half.
    pub fn end_of_training(&self) -> Instant {
        let margin = (self.time / 10).max(LEAST_MARGIN).min(self.time / 2);
        self.received + (self.time - margin)
    }
}

/// Watches how long steps take and says when there is no time for another.
#[derive(Debug)]
pub struct Pace {
    until: Instant,
    last: Option<Instant>,
    longest: Duration,
}

impl Pace {
    /// For steps that must end at `until`.
    pub fn new(until: Instant) -> Pace {
        Pace { until, last: None, longest: Duration::ZERO }
    }

    /// Asked before each step: whether a step that takes as long as the longest so far would end too late.
    pub fn enough(&mut self, now: Instant) -> bool {
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now.saturating_duration_since(last));
        }
        now + self.longest > self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_tenth_of_the_time_but_at_least_a_second_and_at_most_half_is_left_for_the_upload() {
        let now = Instant::now();
        for (time, training) in [(100.0, 90.0), (20.0, 18.0), (5.0, 4.0), (2.0, 1.0), (1.0, 0.5), (0.0, 0.0)] {
            let end = Deadline::new(now, seconds(time)).end_of_training();
            assert_eq!(end, now + seconds(training), "{time}");
        }
        let end = Deadline::new(now, Duration::MAX).end_of_training();
        assert_eq!(end, now + LONGEST - LONGEST / 10);
    }

    #[test]
    fn a_step_that_would_end_too_late_is_not_begun() {
        let now = Instant::now();
        let mut pace = Pace::new(now + seconds(10.0));
        // Steps of 1, 3 and 1 seconds: after 5 seconds one of 3 still fits, after 8 none does.
        let asked = [0.0, 1.0, 4.0, 5.0, 8.0].map(|at| pace.enough(now + seconds(at)));
        assert_eq!(asked, [false, false, false, false, true]);
        assert!(Pace::new(now).enough(now + seconds(0.1)), "no time was left at all");
    }
}
