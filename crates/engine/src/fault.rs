//! What an engine reports if it could not do what it was asked: always with whether it happened.
//! A rejection is not a fault; it is a verdict.

use std::fmt;

/// Whether what was asked for happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It happened; only the response failed.
    Happened,
    /// It did not happen and will not.
    None,
    /// It may have happened. Never to be reported as a rejection.
    Unknown,
}

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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({effect})")]
pub struct Fault {
    pub effect: Effect,
    pub cause: Cause,
    /// For operators: it may name files and servers.
    pub detail: String,
}

impl Fault {
    pub fn without_effect(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            effect: Effect::None,
            cause,
            detail: detail.into(),
        }
    }

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
