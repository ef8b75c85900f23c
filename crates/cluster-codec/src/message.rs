//! The claim message, version 2: written to the outbox by the gate and to the log by the relay, and
//! read by the recorder, which also reads version 1. Everything that does not match the format
//! exactly is rejected. No I/O.

use std::borrow::Cow;
use std::fmt::Write;

use seckill_sale::{
    Attempt, Buyer, ClaimedUnit, ClaimedUnits, IdempotencyKey, ItemNo, ORDER_UNITS_MAX, OrderId,
    SaleId, Unit,
};
use serde::Deserialize;

const VERSION: u32 = 2;
/// One unit of the sale's only item.
const SINGLE_UNIT_VERSION: u32 = 1;
/// The message type of a claim, also used as the CloudEvents type.
pub const CLAIM: &str = "seckill.claim";

/// A claim in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimMessage {
    pub sale_id: SaleId,
    pub epoch: u32,
    /// The gate's claim counter, which increases within an epoch.
    pub n: u64,
    pub order_id: OrderId,
    /// 1..=[`ORDER_UNITS_MAX`] units, in the order of the attempt's lines.
    pub units: ClaimedUnits,
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
struct Line {
    /// Version 1 has none.
    item: Option<ItemNo>,
    unit: u32,
    #[serde(rename = "gen")]
    generation: u32,
    /// The buyer's slot; `None` if the sale has no limit.
    slot: Option<u8>,
}

impl Line {
    fn claimed(&self, version: u32) -> Result<ClaimedUnit, NotAClaim> {
        let item = match (version, self.item) {
            (VERSION, Some(item)) => item,
            (SINGLE_UNIT_VERSION, None) => ItemNo::FIRST,
            _ => return Err(NotAClaim::Item(version)),
        };
        Ok(ClaimedUnit {
            item,
            unit: Unit {
                number: self.unit,
                generation: self.generation,
            },
            slot: self.slot,
        })
    }
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
    #[error(
        "the record has version {0}; this recorder supports versions {SINGLE_UNIT_VERSION} and {VERSION}"
    )]
    Version(u32),
    #[error("the record has type {0:?}, not {CLAIM:?}")]
    Kind(String),
    #[error("the record has {0} lines; a claim has 1 to {ORDER_UNITS_MAX}, and one in version 1")]
    Lines(usize),
    #[error(
        "lines have an item in version {VERSION} and none in version 1; the record has version {0}"
    )]
    Item(u32),
    #[error("the fingerprint is not 16 hexadecimal digits")]
    Fingerprint,
}

impl ClaimMessage {
    /// Parses a record of the log.
    pub fn read(record: &[u8]) -> Result<Self, NotAClaim> {
        let not_json = |error: serde_json::Error| NotAClaim::Json(error.to_string());
        let fields: Fields<'_> = serde_json::from_slice(record).map_err(not_json)?;
        let lines_max = match fields.v {
            VERSION => ORDER_UNITS_MAX as usize,
            SINGLE_UNIT_VERSION => 1,
            other => return Err(NotAClaim::Version(other)),
        };
        if fields.kind != CLAIM {
            return Err(NotAClaim::Kind(fields.kind.into_owned()));
        }
        if !(1..=lines_max).contains(&fields.lines.len()) {
            return Err(NotAClaim::Lines(fields.lines.len()));
        }
        let units = fields.lines.iter().map(|line| line.claimed(fields.v));
        let units = units.collect::<Result<_, _>>()?;
        Ok(Self {
            fingerprint: fingerprint(&fields.fingerprint).ok_or(NotAClaim::Fingerprint)?,
            sale_id: fields.sale_id,
            epoch: fields.epoch,
            n: fields.n,
            order_id: fields.order_id,
            units,
            buyer: fields.buyer,
            idem_key: fields.idem_key,
            at_ms: fields.at_ms,
        })
    }

    /// Serializes the claim as a record of the log, in the latest version.
    pub fn record(&self) -> String {
        let attempt = (&self.order_id, &self.buyer, self.idem_key.as_ref());
        let claim = OutboxClaim {
            order_id: self.order_id.clone(),
            part: part(attempt, self.fingerprint),
            n: self.n,
            units: self.units.clone(),
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
    /// 1..=[`ORDER_UNITS_MAX`] units.
    pub units: ClaimedUnits,
}

/// Builds the complete message of a claim.
pub fn whole(sale: &SaleId, epoch: u32, at_ms: i64, claim: &OutboxClaim) -> String {
    let OutboxClaim { part, n, units, .. } = claim;
    let mut text = String::with_capacity(part.len() + 128 + 48 * units.len());
    // Writing to a String cannot fail. Sale ids contain no characters that JSON escapes.
    let _ = write!(
        text,
        r#"{{"v":{VERSION},"type":"{CLAIM}","sale_id":"{sale}","epoch":{epoch},"n":{n},{part},"lines":["#
    );
    for (index, claimed) in units.iter().enumerate() {
        let ClaimedUnit { item, unit, slot } = claimed;
        let Unit { number, generation } = unit;
        let comma = if index == 0 { "" } else { "," };
        let item = item.get();
        let _ = write!(
            text,
            r#"{comma}{{"item":{item},"unit":{number},"gen":{generation},"slot":"#
        );
        let _ = match slot {
            Some(slot) => write!(text, "{slot}}}"),
            None => write!(text, "null}}"),
        };
    }
    let _ = write!(text, r#"],"at_ms":{at_ms}}}"#);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(item: u8, number: u32, generation: u32, slot: Option<u8>) -> ClaimedUnit {
        ClaimedUnit {
            item: ItemNo::new(item).unwrap(),
            unit: Unit { number, generation },
            slot,
        }
    }

    fn message(buyer: &str, units: &[ClaimedUnit]) -> (Attempt, String) {
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
            units: units.iter().copied().collect(),
        };
        let text = whole(&attempt.sale, 4, 1_000, &claim);
        (attempt, text)
    }

    #[test]
    fn the_recorder_reads_what_gate_and_relay_write() {
        let units = [claimed(1, 3, 2, Some(1)), claimed(64, 7, 1, None)];
        for buyer in ["ann", "a\"b\\", "王芳", "'; DROP TABLE seckill; --"] {
            for units in [&units[..], &units[..1]] {
                let (attempt, text) = message(buyer, units);
                let read = ClaimMessage::read(text.as_bytes()).unwrap();
                assert_eq!(read.buyer, attempt.buyer);
                assert_eq!(read.idem_key, attempt.key);
                assert_eq!((read.epoch, read.n, read.at_ms), (4, 9, 1_000));
                assert_eq!(&read.units[..], units);
                assert_eq!(read.fingerprint, attempt.fingerprint());
                assert_eq!(read.record(), text);
                assert_eq!(
                    order_id_of(&attempt_part(&read.order_id, &attempt)),
                    Some("abc")
                );
            }
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let (_, text) = message("ann", &[claimed(2, 3, 1, None), claimed(2, 4, 1, Some(9))]);
        let expected = r#"{"v":2,"type":"seckill.claim","sale_id":"phone","epoch":4,"n":9,"order_id":"abc","buyer":"ann","idem_key":"k\"1\\","fingerprint":"ab722bbb05874516","lines":[{"item":2,"unit":3,"gen":1,"slot":null},{"item":2,"unit":4,"gen":1,"slot":9}],"at_ms":1000}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn version_1_is_read_as_one_unit_of_the_first_item() {
        let text = r#"{"v":1,"type":"seckill.claim","sale_id":"phone","epoch":4,"n":9,"order_id":"abc","buyer":null,"idem_key":null,"fingerprint":"ab722bbb05874516","lines":[{"unit":3,"gen":2,"slot":1}],"at_ms":1000}"#;
        let read = ClaimMessage::read(text.as_bytes()).unwrap();
        assert_eq!(&read.units[..], [claimed(1, 3, 2, Some(1))]);
        assert!(read.record().starts_with(r#"{"v":2,"#));
        let refused = |from: &str, to: &str| {
            let text = text.replacen(from, to, 1);
            ClaimMessage::read(text.as_bytes()).unwrap_err()
        };
        let item = refused("{\"unit\"", "{\"item\":1,\"unit\"");
        assert_eq!(item, NotAClaim::Item(1));
        assert_eq!(refused("\"v\":1", "\"v\":2"), NotAClaim::Item(2));
        let line = "{\"unit\":3,\"gen\":2,\"slot\":1}";
        assert_eq!(refused(line, &[line; 2].join(",")), NotAClaim::Lines(2));
    }

    #[test]
    fn records_that_are_not_claims_are_rejected_with_a_reason() {
        let (_, text) = message("ann", &[claimed(1, 3, 2, Some(1))]);
        let refused = |from: &str, to: &str| {
            let text = text.replacen(from, to, 1);
            ClaimMessage::read(text.as_bytes()).unwrap_err()
        };
        assert_eq!(refused("\"v\":2", "\"v\":3"), NotAClaim::Version(3));
        assert!(matches!(refused(CLAIM, "other"), NotAClaim::Kind(_)));
        assert!(matches!(refused("{", "["), NotAClaim::Json(_)));
        assert!(matches!(refused("\"n\":9", "\"m\":9"), NotAClaim::Json(_)));
        for item in ["0", "65", "256", "-1"] {
            let no_item = refused("\"item\":1", &format!("\"item\":{item}"));
            assert!(matches!(no_item, NotAClaim::Json(_)), "{item}");
        }
        let line = "{\"item\":1,\"unit\":3,\"gen\":2,\"slot\":1}";
        assert_eq!(refused(line, ""), NotAClaim::Lines(0));
        assert_eq!(refused(line, &[line; 17].join(",")), NotAClaim::Lines(17));
        for record in [&b""[..], b"hello", b"{}", b"\xff\xfe", b"null"] {
            assert!(matches!(
                ClaimMessage::read(record),
                Err(NotAClaim::Json(_))
            ));
        }
    }
}
