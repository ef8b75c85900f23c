//! Unix milliseconds as they stand in the file, and a clock that never goes back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds as UTC text, `2026-11-11T00:00:00.000Z`: sorted as text, and read by SQLite's own date functions.
pub(crate) fn to_text(at_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(at_ms) {
        Ok(at) => format!("{at:.3}"),
        // Checked terms and the system clock lie within four-digit years; anything else is shown as it is.
        Err(_) => at_ms.to_string(),
    }
}

/// The milliseconds that a text of [`to_text`]'s form, or any RFC 3339 time, stands for.
pub(crate) fn from_text(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_millisecond)
}

/// The system's clock, held still while it jumps back: a sale that closed does not open again.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    latest_ms: AtomicI64,
}

impl Clock {
    pub(crate) fn now_ms(&self) -> i64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
        let system = elapsed.map_or(0, |since| since.as_millis() as i64);
        let latest = self.latest_ms.load(Ordering::Relaxed);
        // Written once a millisecond at most, so that cores seldom fight over the line.
        if system > latest {
            self.latest_ms.fetch_max(system, Ordering::Relaxed);
        }
        system.max(latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_file() {
        for at_ms in [0, 1, 1_800_000_000_123, 253_370_764_799_999] {
            assert_eq!(from_text(&to_text(at_ms)), Some(at_ms));
        }
        assert_eq!(to_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(from_text("tomorrow"), None);
    }

    #[test]
    fn the_clock_never_goes_back() {
        let clock = Clock::default();
        let future = clock.now_ms() + 1_000_000;
        clock.latest_ms.store(future, Ordering::Relaxed);
        assert_eq!(clock.now_ms(), future);
    }
}
