//! Parses the replies of the gate's script. Parsing is strict: an unexpected reply is a fault,
//! never a verdict.

use redis::Value;
use seckill_cluster_codec::order_id;
use seckill_engine::{Cause, Fault};
use seckill_sale::{ClaimedUnits, Invalid, ItemRemaining, ItemUnits, OrderId, Rejection, Sale};
use smallvec::SmallVec;

use crate::asked::Asked;
use crate::stored::units_of;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    pub epoch: u32,
    pub version: u64,
    /// Increases with each claim, release and change of terms.
    pub n: u64,
    /// Of each item.
    pub free: SmallVec<[u32; 1]>,
    pub now_ms: i64,
    pub limit: Option<u32>,
    pub opens_at_ms: Option<i64>,
    pub closes_at_ms: Option<i64>,
}

impl Head {
    /// The free units of all items.
    pub fn remaining(&self) -> u32 {
        self.free.iter().sum()
    }
}

/// The gate's decision on one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    Claimed {
        units: ClaimedUnits,
    },
    /// An earlier call with the same attempt made this claim, and its reply was lost.
    ClaimedBefore {
        units: ItemUnits,
    },
    Repeat {
        order_id: OrderId,
        units: ItemUnits,
    },
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
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
            free: numbers(next())?,
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

/// Parses the reply to a `claim` of these attempts, without its status.
pub(crate) fn claims(mut parts: Vec<Value>, sale: &Sale, asked: &[Asked]) -> Result<Claims, Fault> {
    let head = head(&mut parts)?;
    let [entry, verdicts, Value::BulkString(repeated)] = parts.as_slice() else {
        return Err(strange(&Value::Array(parts)));
    };
    let verdicts = text(verdicts).unwrap_or_default().split(' ');
    let mut reader = VerdictReader {
        head: &head,
        sale,
        repeated,
    };
    let decided: Option<Vec<_>> = asked
        .iter()
        .zip(verdicts.clone())
        .map(|(asked, verdict)| reader.read(verdict, asked))
        .collect();
    let is_whole = verdicts.count() == asked.len() && reader.repeated.is_empty();
    match (text(entry), decided) {
        (Some(entry), Some(decided)) if is_whole => Ok(Claims {
            entry: entry.to_owned(),
            decided,
            head,
        }),
        _ => Err(strange(&Value::Array(parts))),
    }
}

struct VerdictReader<'a> {
    head: &'a Head,
    sale: &'a Sale,
    /// The order ids of the repeats to come.
    repeated: &'a [u8],
}

impl VerdictReader<'_> {
    fn read(&mut self, verdict: &str, asked: &Asked) -> Option<Decided> {
        let head = self.head;
        let (kind, rest) = verdict.split_at_checked(1)?;
        Some(match (kind, rest) {
            ("+", units) => Decided::Claimed {
                units: units_of(units)?,
            },
            ("~", units) => Decided::ClaimedBefore {
                units: item_units(&units_of(units)?),
            },
            ("=", units) => {
                let (id, others) = self.repeated.split_first_chunk()?;
                self.repeated = others;
                Decided::Repeat {
                    order_id: order_id::from_bytes(id),
                    units: item_units(&units_of(units)?),
                }
            }
            ("e", left) => {
                let remaining = remaining(self.sale, asked, &numbers(left)?)?;
                Decided::Rejected(Rejection::NotEnoughLeft { remaining })
            }
            ("x", "") => Decided::Mismatch,
            ("q", "") => Decided::Invalid(asked.lines.clone().err()?),
            ("b", "") => Decided::Invalid(Invalid::BuyerRequired),
            ("n", "") => Decided::Rejected(Rejection::NotOpen {
                opens_at_ms: head.opens_at_ms?,
            }),
            ("d", "") => Decided::Rejected(Rejection::Closed {
                closed_at_ms: head.closes_at_ms?,
            }),
            ("l", "") => Decided::Rejected(Rejection::LimitReached { limit: head.limit? }),
            ("s", "") => Decided::Rejected(Rejection::SoldOut),
            _ => return None,
        })
    }
}

/// The free units of each item that an attempt names.
fn remaining(sale: &Sale, asked: &Asked, left: &[u32]) -> Option<Box<[ItemRemaining]>> {
    let lines = asked.lines.as_ref().ok()?;
    if lines.len() != left.len() {
        return None;
    }
    let remaining = lines.iter().zip(left).map(|(&(item, _), &remaining)| {
        Some(ItemRemaining {
            item: sale.items.get(item.index())?.id.clone(),
            remaining,
        })
    });
    remaining.collect()
}

fn item_units(units: &ClaimedUnits) -> ItemUnits {
    units.iter().map(|unit| unit.item_unit()).collect()
}

fn numbers(text: &str) -> Option<SmallVec<[u32; 1]>> {
    text.split(',').map(|number| number.parse().ok()).collect()
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

pub(crate) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
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
    use seckill_cluster_codec::digest::Digester;
    use seckill_sale::{Attempt, ItemId, Line, Lines, NewItem, NewSale, SaleId};

    fn shirt() -> Sale {
        let item = |id: &str| NewItem {
            id: ItemId::new(id).unwrap(),
            title: String::new(),
            total: 5,
            price: None,
        };
        let new = NewSale {
            items: vec![item("S"), item("M")],
            ..NewSale::units(SaleId::new("shirt").unwrap(), 0)
        };
        new.validate().unwrap()
    }

    fn asked(items: &[&str]) -> Asked {
        let attempt = Attempt {
            lines: Lines::named(items.iter().map(|item| Line {
                item: ItemId::new(item).unwrap(),
                quantity: 1,
            })),
            ..Attempt::anonymous(SaleId::new("shirt").unwrap())
        };
        let digester = Digester::new(&[1; 16]);
        let id = order_id::from_bytes(&[3; 24]);
        Asked::new(id, attempt, &digester, &shirt()).unwrap()
    }

    fn decided(verdict: &str, items: &[&str], repeated: &[u8]) -> Option<Decided> {
        let head = Head {
            limit: Some(2),
            opens_at_ms: Some(5),
            ..Head::default()
        };
        let mut reader = VerdictReader {
            head: &head,
            sale: &shirt(),
            repeated,
        };
        reader.read(verdict, &asked(items))
    }

    #[test]
    fn verdicts_are_read_strictly() {
        let units = units_of("12:3@2,2/7").unwrap();
        let claimed = Decided::Claimed {
            units: units.clone(),
        };
        assert_eq!(decided("+12:3@2,2/7", &["S"], b""), Some(claimed));
        let units = item_units(&units);
        let before = Decided::ClaimedBefore {
            units: units.clone(),
        };
        assert_eq!(decided("~12:3@2,2/7", &["S"], b""), Some(before));
        let repeat = Decided::Repeat {
            order_id: order_id::from_bytes(&[7; 24]),
            units,
        };
        assert_eq!(decided("=12:3,2/7", &["S"], &[7; 30]), Some(repeat));
        let remaining = |item: &str, remaining| ItemRemaining {
            item: ItemId::new(item).unwrap(),
            remaining,
        };
        let short = Rejection::NotEnoughLeft {
            remaining: Box::new([remaining("M", 4), remaining("S", 0)]),
        };
        let short = Some(Decided::Rejected(short));
        assert_eq!(decided("e4,0", &["S", "M"], b""), short);
        let limit = Decided::Rejected(Rejection::LimitReached { limit: 2 });
        assert_eq!(decided("l", &["S"], b""), Some(limit));
        let missing = Invalid::NoSuchItem {
            item: ItemId::new("XL").unwrap(),
            items: ["S", "M"].map(|id| ItemId::new(id).unwrap()).into(),
        };
        assert_eq!(decided("q", &["XL"], b""), Some(Decided::Invalid(missing)));
        // No closing time, valid lines, no id of a repeat, too few items.
        for bad in ["d", "q", "=1", "e1", "", "/", "+", "+a", "?", "s1", "é"] {
            assert_eq!(decided(bad, &["S", "M"], b""), None, "{bad}");
        }
    }

    #[test]
    fn a_reply_has_one_verdict_for_each_attempt() {
        let reply = |verdicts: &str, repeated: &[u8]| {
            let head = ["4", "1", "9", "3,2", "1000", "", "", "", "4-9", verdicts];
            let text = |text: &&str| Value::BulkString(text.as_bytes().to_vec());
            let mut parts: Vec<Value> = head.iter().map(text).collect();
            parts.push(Value::BulkString(repeated.to_vec()));
            claims(parts, &shirt(), &[asked(&["S"]), asked(&["M"])])
        };
        let read = reply("=1 +2/4", &[7; 24]).unwrap();
        assert_eq!((read.head.remaining(), read.head.free.len()), (5, 2));
        assert_eq!((read.entry.as_str(), read.decided.len()), ("4-9", 2));
        for (verdicts, repeated) in [("+1", 0), ("+1 +2/4 s", 0), ("+1 s", 24), ("=1 s", 23)] {
            assert!(reply(verdicts, &[7; 24][..repeated]).is_err(), "{verdicts}");
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
