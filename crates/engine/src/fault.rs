//! What is said when an engine could not do what it was asked: always with whether it happened.
//! A definite no is no fault; it is a verdict.

use std::fmt;

/// Whether what was asked for happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It happened; only the answer went wrong.
    Happened,
    /// It did not happen and will not.
    None,
    /// It may have happened. Never to be reported as a no.
    Unknown,
}

/// Why it could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// More was waiting than the engine takes.
    Overloaded,
    /// The engine doubts its state and is rebuilding it.
    Rebuilding,
    /// A store failed.
    Store,
    /// The engine is stopping.
    Stopping,
    /// No answer within the deadline.
    Deadline,
}

/// A failure, with its effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({effect})")]
pub struct Fault {
    /// Whether what was asked for happened.
    pub effect: Effect,
    /// The kind of failure.
    pub cause: Cause,
    /// What went wrong, in words.
    pub detail: String,
}

impl Fault {
    /// A failure without effect.
    pub fn without_effect(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            effect: Effect::None,
            cause,
            detail: detail.into(),
        }
    }

    /// A failure after which nobody knows.
    pub fn unknown(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            effect: Effect::Unknown,
            cause,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Happened => "it happened",
            Self::None => "nothing was done",
            Self::Unknown => "whether it happened is unknown",
        })
    }
}
