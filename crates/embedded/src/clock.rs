//! The engine's clock: it never goes back within a process, and ignores spikes of the system clock.
//! It makes no decisions about sales; the rules take the time as a number.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A forward step of the system clock up to this size is followed at once, in milliseconds.
const STEP_MAX_MS: i64 = 1_000;
/// How long a larger forward step must last before it is followed, in milliseconds. Shorter steps
/// are spikes: following one would close sales that are still open.
const STEP_HOLD_MS: i64 = 10_000;
/// The lag above which the log reports that the engine's clock stands still, in milliseconds.
const LAG_REPORTED_MS: i64 = 1_000;

/// Unix milliseconds as UTC text, `2026-11-11T00:00:00.000Z`. The texts sort by time, and SQLite's
/// date functions can read them.
pub(crate) fn to_text(at_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(at_ms) {
        Ok(at) => format!("{at:.3}"),
        // Not reached: valid terms and the system clock have four-digit years.
        Err(_) => at_ms.to_string(),
    }
}

/// The Unix milliseconds of a text from [`to_text`], or of any other RFC 3339 time.
pub(crate) fn from_text(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_millisecond)
}

/// Unix milliseconds: the monotonic clock plus an offset that [`Clock::follow_system`] maintains.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The time since the system booted, at the start.
    started: Duration,
    /// Unix milliseconds at `started`, according to the system clock.
    offset_ms: AtomicI64,
    /// The latest time that was returned.
    latest_ms: AtomicI64,
    step: Mutex<Step>,
}

/// A forward step of the system clock that is not followed yet, and whether a lag was reported.
#[derive(Debug, Default)]
struct Step {
    since_ms: Option<i64>,
    lag_is_reported: bool,
}

/// What to log about the system clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Nothing,
    StepSeen { ahead_ms: i64 },
    StepFollowed { ahead_ms: i64 },
    StoodStill { lag_ms: i64 },
}

impl Default for Clock {
    fn default() -> Self {
        let system_ms = system_ms();
        Self {
            started: since_boot(),
            offset_ms: AtomicI64::new(system_ms),
            latest_ms: AtomicI64::new(system_ms),
            step: Mutex::default(),
        }
    }
}

fn system_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |since| since.as_millis() as i64)
}

/// Unlike `Instant`, it goes on while the machine is suspended.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.max(0).cast_unsigned(), now.tv_nsec as u32)
}

impl Clock {
    fn elapsed_ms(&self) -> i64 {
        since_boot().saturating_sub(self.started).as_millis() as i64
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.now_at(self.elapsed_ms())
    }

    fn now_at(&self, elapsed_ms: i64) -> i64 {
        let now = self.offset_ms.load(Ordering::Relaxed) + elapsed_ms;
        let latest = self.latest_ms.load(Ordering::Relaxed);
        // Written at most once per millisecond, so that cores rarely contend for the cache line.
        if now > latest {
            self.latest_ms.fetch_max(now, Ordering::Relaxed);
        }
        now.max(latest)
    }

    /// How far this clock is ahead of the system clock, in milliseconds. It stands still while it
    /// is ahead.
    pub(crate) fn lag_ms(&self) -> i64 {
        (self.latest_ms.load(Ordering::Relaxed) - system_ms()).max(0)
    }

    /// Follows the system clock, except for spikes. Must be called several times per second.
    pub(crate) fn follow_system(&self) {
        let elapsed_ms = self.elapsed_ms();
        match self.follow(system_ms(), elapsed_ms) {
            Notice::Nothing => {}
            Notice::StepSeen { ahead_ms } => tracing::warn!(
                ahead_ms,
                "the system clock jumped forward; it is followed if it stays there for {} s",
                STEP_HOLD_MS / 1_000
            ),
            Notice::StepFollowed { ahead_ms } => {
                tracing::warn!(ahead_ms, "following the system clock, which jumped forward");
            }
            Notice::StoodStill { lag_ms } => tracing::warn!(
                lag_ms,
                "the system clock was set back; the engine's clock waits for it to catch up"
            ),
        }
    }

    fn follow(&self, system_ms: i64, elapsed_ms: i64) -> Notice {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead_ms = system_ms - (self.offset_ms.load(Ordering::Relaxed) + elapsed_ms);
        if ahead_ms > STEP_MAX_MS {
            let Some(since_ms) = step.since_ms else {
                step.since_ms = Some(elapsed_ms);
                return Notice::StepSeen { ahead_ms };
            };
            if elapsed_ms - since_ms < STEP_HOLD_MS {
                return Notice::Nothing;
            }
            step.since_ms = None;
            self.offset_ms.fetch_add(ahead_ms, Ordering::Relaxed);
            return Notice::StepFollowed { ahead_ms };
        }
        step.since_ms = None;
        self.offset_ms.fetch_add(ahead_ms, Ordering::Relaxed);
        let lag_ms = self.latest_ms.load(Ordering::Relaxed) - system_ms;
        if lag_ms <= LAG_REPORTED_MS {
            step.lag_is_reported = false;
            return Notice::Nothing;
        }
        if std::mem::replace(&mut step.lag_is_reported, true) {
            return Notice::Nothing;
        }
        Notice::StoodStill { lag_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that started at 1,000,000 ms.
    fn clock() -> Clock {
        Clock {
            started: since_boot(),
            offset_ms: AtomicI64::new(1_000_000),
            latest_ms: AtomicI64::new(1_000_000),
            step: Mutex::default(),
        }
    }

    #[test]
    fn times_survive_conversion_to_text() {
        for at_ms in [0, 1, 1_800_000_000_123, 253_370_764_799_999] {
            assert_eq!(from_text(&to_text(at_ms)), Some(at_ms));
        }
        assert_eq!(to_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(from_text("tomorrow"), None);
    }

    #[test]
    fn after_a_step_back_the_clock_stands_still_until_the_system_catches_up() {
        let clock = clock();
        assert_eq!(clock.now_at(5_000), 1_005_000);
        let notice = clock.follow(1_000_000, 5_000);
        assert_eq!(notice, Notice::StoodStill { lag_ms: 5_000 });
        assert_eq!(clock.now_at(5_000), 1_005_000);
        assert_eq!(clock.follow(1_001_000, 6_000), Notice::Nothing);
        assert_eq!(clock.now_at(9_000), 1_005_000);
        assert_eq!(clock.now_at(10_500), 1_005_500);
    }

    #[test]
    fn a_spike_of_the_system_clock_is_ignored() {
        let clock = clock();
        let hour = 3_600_000;
        let seen = Notice::StepSeen { ahead_ms: hour };
        assert_eq!(clock.follow(1_001_000 + hour, 1_000), seen);
        assert_eq!(clock.now_at(1_000), 1_001_000);
        assert_eq!(clock.follow(1_010_000 + hour, 10_000), Notice::Nothing);
        assert_eq!(clock.follow(1_010_900, 10_900), Notice::Nothing);
        assert_eq!(clock.now_at(20_000), 1_020_000);
        // The hold starts over with the next step.
        assert_eq!(clock.follow(1_021_000 + hour, 21_000), seen);
        assert_eq!(clock.follow(1_030_000 + hour, 30_000), Notice::Nothing);
    }

    #[test]
    fn a_step_that_lasts_is_followed() {
        let clock = clock();
        let hour = 3_600_000;
        clock.follow(1_001_000 + hour, 1_000);
        let notice = clock.follow(1_011_000 + hour, 11_000);
        assert_eq!(notice, Notice::StepFollowed { ahead_ms: hour });
        assert_eq!(clock.now_at(11_000), 1_011_000 + hour);
        // Small corrections are followed at once.
        assert_eq!(clock.follow(1_012_300 + hour, 12_000), Notice::Nothing);
        assert_eq!(clock.now_at(12_000), 1_012_300 + hour);
    }
}
