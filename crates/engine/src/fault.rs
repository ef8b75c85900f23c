//! Faults: why an engine could not carry out a request, and whether the request took effect.
//! A rejection is not a fault; it is a verdict.

use std::fmt;

/// Whether a request took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It took effect; only the response failed.
    Happened,
    /// It did not take effect, and never will.
    None,
    /// It may have taken effect. It must never be reported as a rejection.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Too many requests are waiting.
    Overloaded,
    /// The engine's state may be wrong, and is being rebuilt.
    Rebuilding,
    /// A store failed.
    Store,
    /// The engine is stopping.
    Stopping,
    /// There was no answer before the deadline.
    Deadline,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({effect})")]
pub struct Fault {
    pub effect: Effect,
    pub cause: Cause,
    /// For operators only: it may name files and servers.
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
            Self::Happened => "the request took effect",
            Self::None => "nothing was done",
            Self::Unknown => "it is unknown whether the request took effect",
        })
    }
}
