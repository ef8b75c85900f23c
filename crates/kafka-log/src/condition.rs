//! The condition of a connection or a component, for status pages. No I/O.

use std::sync::{Arc, Mutex};

/// The latest error reported by librdkafka, kept so that status pages can show why the log is
/// stalled.
#[derive(Debug, Clone, Default)]
pub struct LogCondition(Arc<Mutex<Option<String>>>);

impl LogCondition {
    /// The latest error since the last success.
    pub fn trouble(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub fn is_well(&self) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    pub fn fails(&self, why: String) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(why);
    }
}
