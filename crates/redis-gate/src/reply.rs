//! Parses the replies of the gate's script. Parsing is strict: an unexpected reply is a fault,
//! never a verdict.

use redis::Value;
use seckill_engine::{Cause, Fault};
use seckill_sale::{OrderId, Unit};

/// Why the gate did nothing. Every refusal except `Epoch` requires a rebuild.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The gate has no state for the sale.
    Gone(String),
    /// A key has another type. It belongs to another application and must not be deleted.
    Type(String),
    /// Redis restarted or failed over.
    Run(String),
    /// The gate is in this other epoch.
    Epoch(u32),
    /// The gate is closed.
    Rebuilding,
    /// Another client modified the gate's keys.
    Drift(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(detail) => write!(f, "the gate has lost its state: {detail}"),
            Self::Type(detail) => write!(
                f,
                "a key of the gate has another type ({detail}); delete or rename it, or set cluster.key_prefix"
            ),
            Self::Run(detail) => f.write_str(detail),
            Self::Epoch(epoch) => write!(f, "the gate is in epoch {epoch}"),
            Self::Rebuilding => f.write_str("the gate is being rebuilt"),
            Self::Drift(detail) => write!(f, "another client modified the gate's keys: {detail}"),
        }
    }
}

/// The result of an operation. A refused operation had no effect.
pub type GateReply<T> = Result<T, Refusal>;

/// A summary of the gate's state, returned with each reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    pub epoch: u32,
    pub version: u64,
    /// Increases with each claim, release and change of terms.
    pub n: u64,
    pub free: u32,
    pub now_ms: i64,
    pub limit: Option<u32>,
    pub opens_at_ms: Option<i64>,
    pub closes_at_ms: Option<i64>,
}

/// The gate's decision on one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    Claimed {
        unit: Unit,
        slot: Option<u8>,
    },
    /// An earlier call with the same attempt made this claim, and its reply was lost.
    ClaimedBefore {
        unit: Unit,
    },
    Repeat {
        order_id: OrderId,
        unit: Unit,
    },
    Mismatch,
    Quantity,
    BuyerRequired,
    NotOpen,
    Closed,
    Limit,
    SoldOut,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub head: Head,
    /// The outbox entry of the new claims; empty if the batch made none.
    pub entry: String,
    /// One decision per attempt, in order.
    pub decided: Vec<Decided>,
}

/// Reads the status in the first element and returns the remaining elements.
pub(crate) fn read(value: Value) -> Result<GateReply<Vec<Value>>, Fault> {
    let Value::Array(mut parts) = value else {
        return Err(strange(&value));
    };
    if parts.is_empty() {
        return Err(strange(&Value::Array(parts)));
    }
    let rest = parts.split_off(1);
    let detail = || rest.first().and_then(text).unwrap_or_default().to_owned();
    Ok(match parts.first().and_then(text) {
        Some("OK") => Ok(rest),
        Some("GONE") => Err(Refusal::Gone(detail())),
        Some("TYPE") => Err(Refusal::Type(detail())),
        Some("RUN") => Err(Refusal::Run(detail())),
        Some("EPOCH") => Err(Refusal::Epoch(detail().parse().unwrap_or(0))),
        Some("REBUILD") => Err(Refusal::Rebuilding),
        Some("DRIFT") => Err(Refusal::Drift(detail())),
        _ => return Err(strange(&Value::Array(parts))),
    })
}

/// Parses the eight elements of the head and leaves the rest in `parts`.
pub(crate) fn head(parts: &mut Vec<Value>) -> Result<Head, Fault> {
    const HEAD_PARTS: usize = 8;
    if parts.len() < HEAD_PARTS {
        return Err(strange(&Value::Array(std::mem::take(parts))));
    }
    let rest = parts.split_off(HEAD_PARTS);
    let mut read = parts.iter().map(|part| text(part).unwrap_or_default());
    let mut next = || read.next().unwrap_or_default();
    let parsed = (|| {
        Some(Head {
            epoch: next().parse().ok()?,
            version: next().parse().ok()?,
            n: next().parse().ok()?,
            free: next().parse().ok()?,
            now_ms: next().parse().ok()?,
            limit: optional(next())?,
            opens_at_ms: optional(next())?,
            closes_at_ms: optional(next())?,
        })
    })();
    let Some(head) = parsed else {
        return Err(strange(&Value::Array(std::mem::take(parts))));
    };
    *parts = rest;
    Ok(head)
}

/// Parses the reply to `claim`, without its status.
pub(crate) fn claims(mut parts: Vec<Value>) -> Result<Claims, Fault> {
    let head = head(&mut parts)?;
    let (entry, verdicts) = match parts.as_slice() {
        [entry, verdicts] => (text(entry), text(verdicts)),
        _ => return Err(strange(&Value::Array(parts))),
    };
    let decided: Option<Vec<_>> =
        verdicts.and_then(|verdicts| verdicts.split(' ').map(verdict).collect());
    match (entry, decided) {
        (Some(entry), Some(decided)) => Ok(Claims {
            head,
            entry: entry.to_owned(),
            decided,
        }),
        _ => Err(strange(&Value::Array(parts))),
    }
}

fn verdict(said: &str) -> Option<Decided> {
    let mut rest = said.get(1..)?.splitn(3, ':');
    let mut unit = || {
        Some(Unit {
            number: rest.next()?.parse().ok()?,
            generation: rest.next()?.parse().ok()?,
        })
    };
    Some(match said.get(..1)? {
        "+" => {
            let unit = unit()?;
            let slot: u8 = rest.next()?.parse().ok()?;
            Decided::Claimed {
                unit,
                slot: (slot > 0).then_some(slot),
            }
        }
        "~" => Decided::ClaimedBefore { unit: unit()? },
        "=" => {
            let unit = unit()?;
            Decided::Repeat {
                order_id: OrderId::new(rest.next()?).ok()?,
                unit,
            }
        }
        "x" => Decided::Mismatch,
        "q" => Decided::Quantity,
        "b" => Decided::BuyerRequired,
        "n" => Decided::NotOpen,
        "d" => Decided::Closed,
        "l" => Decided::Limit,
        "s" => Decided::SoldOut,
        _ => return None,
    })
}

fn optional<T: std::str::FromStr>(text: &str) -> Option<Option<T>> {
    if text.is_empty() {
        return Some(None);
    }
    text.parse().ok().map(Some)
}

pub(crate) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// The fault for an unexpected reply. The effect of the command is unknown.
pub(crate) fn strange(value: &Value) -> Fault {
    const SHOWN_MAX_CHARS: usize = 200;
    let shown: String = format!("{value:?}").chars().take(SHOWN_MAX_CHARS).collect();
    Fault::unknown(
        Cause::Store,
        format!("unexpected reply from Redis: {shown}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_strictly() {
        let unit = Unit {
            number: 12,
            generation: 3,
        };
        let order_id = OrderId::new("A_b-c").unwrap();
        let claimed = |slot| Some(Decided::Claimed { unit, slot });
        assert_eq!(verdict("+12:3:0"), claimed(None));
        assert_eq!(verdict("+12:3:2"), claimed(Some(2)));
        assert_eq!(verdict("~12:3"), Some(Decided::ClaimedBefore { unit }));
        assert_eq!(
            verdict("=12:3:A_b-c"),
            Some(Decided::Repeat { order_id, unit })
        );
        assert_eq!(verdict("s"), Some(Decided::SoldOut));
        for bad in ["", "/", "+12", "+12:3", "+a:1:0", "?", "=1:1", "é"] {
            assert_eq!(verdict(bad), None, "{bad}");
        }
    }

    #[test]
    fn unexpected_replies_are_faults_of_unknown_effect() {
        for strange in [
            Value::Nil,
            Value::Int(1),
            Value::Array(vec![]),
            Value::Array(vec![Value::Nil]),
        ] {
            let fault = read(strange).map(|_| ()).unwrap_err();
            assert_eq!(fault.effect, seckill_engine::Effect::Unknown);
        }
        let epoch = Value::Array(vec![
            Value::BulkString(b"EPOCH".to_vec()),
            Value::BulkString(b"4".to_vec()),
        ]);
        assert_eq!(read(epoch).unwrap().unwrap_err(), Refusal::Epoch(4));
    }
}
