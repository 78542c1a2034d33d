//! Decides when this device may train, and how hard: hours of the day, mains power, a share of the time.
//! What it is now is passed in; `now` alone looks at the clock and at the power supplies.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Where Linux lists power supplies.
const POWER_SUPPLIES: &str = "/sys/class/power_supply";
/// Longest step that is believed: a device that slept in the middle of one did not compute all the while.
const LONGEST_STEP: Duration = Duration::from_secs(600);

/// What holds training back on this device.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Share of the time in which training computes, above 0 and at most 1; it sleeps for the rest, between steps.
    pub share: f64,
    /// When training may run; none: always.
    pub hours: Option<Hours>,
    /// Only while the device does not run on its battery.
    pub mains_power: bool,
}

impl Default for Budget {
    /// Always, all of the time.
    fn default() -> Self {
        Budget { share: 1.0, hours: None, mains_power: false }
    }
}

/// What a budget looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Minutes since midnight, by the device's own time zone.
    pub minute: u16,
    /// Whether it runs on its battery.
    pub on_battery: bool,
}

impl Budget {
    /// Why training has to rest; none: it may run.
    pub fn rests(&self, now: Now) -> Option<String> {
        if let Some(hours) = self.hours.filter(|hours| !hours.contains(now.minute)) {
            return Some(format!("outside its training hours, {hours}"));
        }
        (self.mains_power && now.on_battery).then(|| "on battery".to_owned())
    }

    /// As [`Budget::rests`], now.
    pub fn rests_now(&self) -> Option<String> {
        self.rests(now())
    }

    /// How long to sleep after a step that took this long.
    pub fn rest_after(&self, step: Duration) -> Duration {
        let factor = 1.0 / self.share.clamp(0.01, 1.0) - 1.0;
        step.min(LONGEST_STEP).mul_f64(factor)
    }
}

/// A part of each day, from one minute to another; past midnight where it ends before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: u16,
    until: u16,
}

impl Hours {
    fn contains(self, minute: u16) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

impl FromStr for Hours {
    type Err = &'static str;

    /// Reads `HH:MM-HH:MM`.
    fn from_str(text: &str) -> Result<Hours, Self::Err> {
        let minute = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let number = |text: &str, below: u16| {
                let plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
                plain.then(|| text.parse::<u16>().ok()).flatten().filter(|number| *number < below)
            };
            Some(number(hour, 24)? * 60 + number(minute, 60)?)
        };
        let both = text.split_once('-').and_then(|(from, until)| Some((minute(from)?, minute(until)?)));
        let (from, until) = both.ok_or("two times of day, as in \"22:00-06:00\"")?;
        if from == until {
            return Err("two different times of day; leave it empty to train at any time");
        }
        Ok(Hours { from, until })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hours { from, until } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)
    }
}

fn now() -> Now {
    let time = jiff::Zoned::now();
    let minute = u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs());
    Now { minute, on_battery: on_battery(Path::new(POWER_SUPPLIES)) }
}

/// Whether a device with these power supplies runs on a battery: one discharges, and no other supply is on line. One
/// without batteries, or that does not say, runs on mains.
fn on_battery(supplies: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(supplies) else { return false };
    let (mut discharging, mut online) = (false, false);
    for supply in entries.flatten() {
        let read = |name: &str| std::fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        let is = |name: &str, value: &str| read(name).trim() == value;
        // A mouse's battery says nothing of the device.
        if is("scope", "Device") {
            continue;
        }
        match is("type", "Battery") || is("type", "UPS") {
            true => discharging |= is("status", "Discharging"),
            false => online |= is("online", "1"),
        }
    }
    discharging && !online
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(minute: u16) -> Now {
        Now { minute, on_battery: false }
    }

    #[test]
    fn hours_reach_past_midnight_and_end_before_their_last_minute() {
        let day = Budget { hours: Some("08:00-17:30".parse().unwrap()), ..Budget::default() };
        let night = Budget { hours: Some("22:00-6:00".parse().unwrap()), ..Budget::default() };
        for (minute, by_day, by_night) in
            [(0, false, true), (359, false, true), (360, false, false), (480, true, false), (1049, true, false)]
        {
            assert_eq!((day.rests(at(minute)).is_none(), night.rests(at(minute)).is_none()), (by_day, by_night));
        }
        assert_eq!(night.rests(at(1320)), None);
        assert_eq!(night.rests(at(1319)).unwrap(), "outside its training hours, 22:00-06:00");
    }

    #[test]
    fn what_is_no_part_of_a_day_is_refused() {
        for text in ["", "22:00", "22-06", "24:00-06:00", "22:60-06:00", "22:00-22:00", "+1:00-02:00", "1:00-2:000"] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_of_the_time_is_slept_away_between_steps() {
        let rest = |share| Budget { share, ..Budget::default() }.rest_after(Duration::from_millis(100)).as_millis();
        assert_eq!([rest(1.0), rest(0.5), rest(0.1)], [0, 100, 900]);
        let long = Budget { share: 0.01, ..Budget::default() }.rest_after(Duration::MAX);
        assert_eq!(long, LONGEST_STEP.mul_f64(99.0));
    }

    #[test]
    fn a_device_runs_on_battery_where_one_discharges_and_nothing_else_is_on_line() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let folder = folder.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(file, text)| std::fs::write(folder.join(file), format!("{text}\n")).unwrap());
        };
        assert!(!on_battery(&folder.path().join("none")) && !on_battery(folder.path()));
        supply("mouse", &[("type", "Battery"), ("status", "Discharging"), ("scope", "Device")]);
        assert!(!on_battery(folder.path()));
        supply("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        supply("AC", &[("type", "Mains"), ("online", "0")]);
        assert!(on_battery(folder.path()));
        let careful = Budget { mains_power: true, ..Budget::default() };
        assert_eq!(careful.rests(Now { minute: 0, on_battery: true }).unwrap(), "on battery");
        supply("AC", &[("online", "1")]);
        assert!(!on_battery(folder.path()));
    }
}
