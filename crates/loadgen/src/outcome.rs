//! Classifies answers by status and body, and requests without an answer by cause.

use std::fmt;

/// The result of a request that got an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// A confirmation of a new unit.
    Won,
    /// A confirmation of the unit that the key already has.
    Repeat,
    /// The order of the key was cancelled or has expired.
    Ended,
    /// Not decided yet; the answer has the order's address.
    Pending,
    /// No unit is left.
    SoldOut,
    /// The buyer has as many units as the sale allows.
    LimitReached,
    /// The sale has not opened yet.
    NotOpen,
    /// The sale has closed.
    Closed,
    /// The key belongs to an attempt with other content.
    Mismatch,
    /// 503: retry later.
    Unavailable,
    /// Any other success, as other targets answer.
    Ok,
    /// Any other answer.
    Refused,
}

impl Outcome {
    pub const ALL: [Self; 12] = [
        Self::Won,
        Self::Repeat,
        Self::Ended,
        Self::Pending,
        Self::SoldOut,
        Self::LimitReached,
        Self::NotOpen,
        Self::Closed,
        Self::Mismatch,
        Self::Unavailable,
        Self::Ok,
        Self::Refused,
    ];

    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Repeat => "repeat",
            Self::Ended => "ended",
            Self::Pending => "pending",
            Self::SoldOut => "sold_out",
            Self::LimitReached => "limit_reached",
            Self::NotOpen => "not_open",
            Self::Closed => "closed",
            Self::Mismatch => "mismatch",
            Self::Unavailable => "unavailable",
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }

    pub(crate) fn of(status: u16, is_replay: bool, body: &[u8]) -> Self {
        match status {
            200 | 201 if body.starts_with(br#"{"result":"won""#) => {
                if is_replay {
                    Self::Repeat
                } else {
                    Self::Won
                }
            }
            200 if body.starts_with(br#"{"result":"sold_out""#) => Self::SoldOut,
            202 => Self::Pending,
            200..=299 => Self::Ok,
            409 if has(body, b"problem:sold-out") => Self::SoldOut,
            409 if has(body, b"problem:order-ended") => Self::Ended,
            409 if has(body, b"problem:limit-reached") => Self::LimitReached,
            403 if has(body, b"problem:not-open") => Self::NotOpen,
            410 if has(body, b"problem:closed") => Self::Closed,
            422 if has(body, b"problem:idempotency-key-reused") => Self::Mismatch,
            503 => Self::Unavailable,
            _ => Self::Refused,
        }
    }
}

fn has(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

/// Why a request has no answer. Except for `Connect`, it may still have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// No connection could be made; the request was not sent.
    Connect,
    /// The connection closed before the answer was complete.
    BrokenOff,
    /// No complete answer before the deadline.
    TimedOut,
    /// The answer was not HTTP/1.1, or exceeded the size limit.
    NotHttp,
}

impl Failure {
    pub const ALL: [Self; 4] = [
        Self::Connect,
        Self::BrokenOff,
        Self::TimedOut,
        Self::NotHttp,
    ];

    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::BrokenOff => "broken_off",
            Self::TimedOut => "timed_out",
            Self::NotHttp => "not_http",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified() {
        let won = br#"{"result":"won","order_id":"o","unit":7,"remaining":93}"#;
        assert_eq!(Outcome::of(200, false, won), Outcome::Won);
        assert_eq!(Outcome::of(201, true, won), Outcome::Repeat);
        assert_eq!(
            Outcome::of(200, false, br#"{"result":"sold_out"}"#),
            Outcome::SoldOut
        );
        let problem = br#"{"type":"urn:seckill:problem:limit-reached"}"#;
        assert_eq!(Outcome::of(409, false, problem), Outcome::LimitReached);
        let ended = br#"{"type":"urn:seckill:problem:order-ended"}"#;
        assert_eq!(Outcome::of(409, false, ended), Outcome::Ended);
        assert_eq!(Outcome::of(409, false, b"{}"), Outcome::Refused);
        assert_eq!(Outcome::of(200, false, b"hello"), Outcome::Ok);
        assert_eq!(Outcome::of(503, false, b""), Outcome::Unavailable);
    }
}
