//! The claim message, version 1: written to the outbox by the gate and to the log by the relay, and
//! read by the recorder. Readers reject everything that does not match the format exactly. No I/O.

use std::borrow::Cow;
use std::fmt::Write;

use seckill_sale::{Attempt, Buyer, IdempotencyKey, OrderId, SaleId, Unit};
use serde::Deserialize;

const VERSION: u32 = 1;
/// The message type of a claim, also used as the CloudEvents type.
pub const CLAIM: &str = "seckill.claim";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub unit: u32,
    #[serde(rename = "gen")]
    pub generation: u32,
    /// The buyer's slot; `None` if the sale has no limit.
    pub slot: Option<u8>,
}

impl Line {
    pub fn unit(&self) -> Unit {
        Unit {
            number: self.unit,
            generation: self.generation,
        }
    }
}

/// A claim in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimMessage {
    pub sale_id: SaleId,
    pub epoch: u32,
    /// The gate's claim counter, which increases within an epoch.
    pub n: u64,
    pub order_id: OrderId,
    pub line: Line,
    /// Empty for the anonymous buyer.
    pub buyer: Buyer,
    pub idem_key: Option<IdempotencyKey>,
    /// Digest of the attempt's content.
    pub fingerprint: u64,
    /// When the gate made the claim, in Unix milliseconds.
    pub at_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    v: u32,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    sale_id: SaleId,
    epoch: u32,
    n: u64,
    order_id: OrderId,
    lines: Vec<Line>,
    buyer: Buyer,
    idem_key: Option<IdempotencyKey>,
    /// 16 hexadecimal digits.
    #[serde(borrow)]
    fingerprint: Cow<'a, str>,
    at_ms: i64,
}

/// Why a record is not a claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAClaim {
    #[error("the record is not a claim: {0}")]
    Json(String),
    #[error("the record has version {0}; this recorder supports version {VERSION}")]
    Version(u32),
    #[error("the record has type {0:?}, not {CLAIM:?}")]
    Kind(String),
    #[error("the record has {0} lines; a claim has one")]
    Lines(usize),
    #[error("the fingerprint is not 16 hexadecimal digits")]
    Fingerprint,
}

impl ClaimMessage {
    /// Parses a record of the log.
    pub fn read(record: &[u8]) -> Result<Self, NotAClaim> {
        let not_json = |error: serde_json::Error| NotAClaim::Json(error.to_string());
        let fields: Fields<'_> = serde_json::from_slice(record).map_err(not_json)?;
        if fields.v != VERSION {
            return Err(NotAClaim::Version(fields.v));
        }
        if fields.kind != CLAIM {
            return Err(NotAClaim::Kind(fields.kind.into_owned()));
        }
        let [line] = fields.lines[..] else {
            return Err(NotAClaim::Lines(fields.lines.len()));
        };
        Ok(Self {
            fingerprint: fingerprint(&fields.fingerprint).ok_or(NotAClaim::Fingerprint)?,
            sale_id: fields.sale_id,
            epoch: fields.epoch,
            n: fields.n,
            order_id: fields.order_id,
            line,
            buyer: fields.buyer,
            idem_key: fields.idem_key,
            at_ms: fields.at_ms,
        })
    }

    /// Serializes the claim as a record of the log.
    pub fn record(&self) -> String {
        let attempt = (&self.order_id, &self.buyer, self.idem_key.as_ref());
        let claim = OutboxClaim {
            order_id: self.order_id.clone(),
            part: part(attempt, self.fingerprint),
            n: self.n,
            line: self.line,
        };
        whole(&self.sale_id, self.epoch, self.at_ms, &claim)
    }
}

fn fingerprint(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// Formats a fingerprint as in the gate and the log: 16 hexadecimal digits.
pub fn fingerprint_text(fingerprint: u64) -> String {
    format!("{fingerprint:016x}")
}

/// The part of the message that is known before the gate decides. The gate stores it unchanged.
pub fn attempt_part(order_id: &OrderId, attempt: &Attempt) -> String {
    let named = (order_id, &attempt.buyer, attempt.key.as_ref());
    part(named, attempt.fingerprint())
}

fn part(
    (order_id, buyer, key): (&OrderId, &Buyer, Option<&IdempotencyKey>),
    fingerprint: u64,
) -> String {
    let mut part = String::with_capacity(160);
    // Order ids and fingerprints contain no characters that JSON escapes.
    let _ = write!(part, r#""order_id":"{order_id}","buyer":"#);
    push_json(&mut part, buyer.as_str());
    part.push_str(r#","idem_key":"#);
    match key {
        Some(key) => push_json(&mut part, key.as_str()),
        None => part.push_str("null"),
    }
    let _ = write!(part, r#","fingerprint":"{fingerprint:016x}""#);
    part
}

/// Appends a JSON string. Most strings need no escaping, which the fast path uses.
fn push_json(part: &mut String, text: &str) {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\');
    if text.bytes().all(is_plain) {
        part.push('"');
        part.push_str(text);
        part.push('"');
    } else {
        part.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// Extracts the order id from an attempt's part, which always starts with it.
pub fn order_id_of(part: &str) -> Option<&str> {
    let rest = part.strip_prefix(r#""order_id":""#)?;
    rest.split_once('"').map(|(id, _)| id)
}

/// One claim of an outbox entry: an attempt's part with the data that the gate adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxClaim {
    pub order_id: OrderId,
    pub part: String,
    pub n: u64,
    pub line: Line,
}

/// Builds the complete message of a claim.
pub fn whole(sale: &SaleId, epoch: u32, at_ms: i64, claim: &OutboxClaim) -> String {
    let OutboxClaim { part, n, line, .. } = claim;
    let slot = line.slot.map_or("null".into(), |slot| slot.to_string());
    format!(
        r#"{{"v":{VERSION},"type":"{CLAIM}","sale_id":"{sale}","epoch":{epoch},"n":{n},{part},"lines":[{{"unit":{},"gen":{},"slot":{slot}}}],"at_ms":{at_ms}}}"#,
        line.unit, line.generation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(buyer: &str) -> (Attempt, String) {
        let attempt = Attempt {
            buyer: Buyer::new(buyer).unwrap(),
            key: Some(IdempotencyKey::new("k\"1\\").unwrap()),
            ..Attempt::anonymous(SaleId::new("phone").unwrap())
        };
        let order_id = OrderId::new("abc").unwrap();
        let claim = OutboxClaim {
            part: attempt_part(&order_id, &attempt),
            order_id,
            n: 9,
            line: Line {
                unit: 3,
                generation: 2,
                slot: Some(1),
            },
        };
        let text = whole(&attempt.sale, 4, 1_000, &claim);
        (attempt, text)
    }

    #[test]
    fn the_recorder_reads_what_gate_and_relay_write() {
        for buyer in ["ann", "a\"b\\", "王芳", "'; DROP TABLE seckill; --"] {
            let (attempt, text) = message(buyer);
            let read = ClaimMessage::read(text.as_bytes()).unwrap();
            assert_eq!(read.buyer, attempt.buyer);
            assert_eq!(read.idem_key, attempt.key);
            assert_eq!((read.epoch, read.n, read.at_ms), (4, 9, 1_000));
            assert_eq!(
                read.line.unit(),
                Unit {
                    number: 3,
                    generation: 2
                }
            );
            assert_eq!(read.fingerprint, attempt.fingerprint());
            assert_eq!(read.record(), text);
            assert_eq!(
                order_id_of(&attempt_part(&read.order_id, &attempt)),
                Some("abc")
            );
        }
    }

    #[test]
    fn records_that_are_not_claims_are_rejected_with_a_reason() {
        let (_, text) = message("ann");
        let refused = |from: &str, to: &str| {
            let text = text.replacen(from, to, 1);
            ClaimMessage::read(text.as_bytes()).unwrap_err()
        };
        assert_eq!(refused("\"v\":1", "\"v\":2"), NotAClaim::Version(2));
        assert!(matches!(refused(CLAIM, "other"), NotAClaim::Kind(_)));
        assert!(matches!(refused("{", "["), NotAClaim::Json(_)));
        assert!(matches!(refused("\"n\":9", "\"m\":9"), NotAClaim::Json(_)));
        let two = refused(
            "[{\"unit\":3,\"gen\":2,\"slot\":1}",
            "[{\"unit\":3,\"gen\":2,\"slot\":1},{\"unit\":4,\"gen\":2,\"slot\":1}",
        );
        assert_eq!(two, NotAClaim::Lines(2));
        for record in [&b""[..], b"hello", b"{}", b"\xff\xfe", b"null"] {
            assert!(matches!(
                ClaimMessage::read(record),
                Err(NotAClaim::Json(_))
            ));
        }
    }
}
