//! The system's clock. Only its own server compares these times with each other.

/// The time in Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
