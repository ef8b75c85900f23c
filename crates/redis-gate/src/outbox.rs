//! The outbox: a stream with one entry per batch of claims, which the relay reads and trims.
//! Reading is strict: an entry with unexpected content is a fault.

use redis::{Cmd, Value};
use seckill_cluster_codec::message::{self, OutboxClaim};
use seckill_engine::Fault;
use seckill_sale::{ClaimedUnit, ClaimedUnits, ItemNo, OrderId, SaleId, Unit};

use crate::gate::Gate;
use crate::keys::GateKeys;
use crate::reply::{self, GateReply};
use crate::stored::units_of;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    pub id: String,
    pub at_ms: i64,
    pub claims: Vec<OutboxClaim>,
}

/// An outbox entry to forward to the log, with its location.
#[derive(Debug, Clone)]
pub struct Offer {
    pub sale: SaleId,
    pub keys: GateKeys,
    pub epoch: u32,
    pub entry: OutboxEntry,
}

impl Gate {
    /// Removes entries from the outbox.
    pub async fn trim(
        &self,
        keys: &GateKeys,
        epoch: u32,
        entries: &[String],
    ) -> Result<GateReply<()>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(entries);
        };
        Ok(self.run("trim", keys, epoch, more).await?.map(|_| ()))
    }

    /// Returns up to `count` outbox entries that follow `after`. A missing outbox counts as empty.
    pub async fn outbox(
        &self,
        keys: &GateKeys,
        after: Option<&str>,
        count: usize,
    ) -> Result<Vec<OutboxEntry>, Fault> {
        let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        self.outbox_range(keys, &from, "+", count).await
    }

    pub async fn outbox_entry(
        &self,
        keys: &GateKeys,
        id: &str,
    ) -> Result<Option<OutboxEntry>, Fault> {
        Ok(self.outbox_range(keys, id, id, 1).await?.pop())
    }

    async fn outbox_range(
        &self,
        keys: &GateKeys,
        from: &str,
        to: &str,
        count: usize,
    ) -> Result<Vec<OutboxEntry>, Fault> {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(keys.outbox())
            .arg(from)
            .arg(to)
            .arg("COUNT")
            .arg(count);
        let value = self.redis.call(&command).await?;
        let Value::Array(entries) = &value else {
            return Err(reply::strange(&value));
        };
        let read: Option<Vec<OutboxEntry>> = entries.iter().map(entry).collect();
        read.ok_or_else(|| reply::strange(&value))
    }
}

fn entry(value: &Value) -> Option<OutboxEntry> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [id, Value::Array(fields)] = parts.as_slice() else {
        return None;
    };
    let mut fields = fields
        .chunks_exact(2)
        .map(|pair| Some((reply::text(&pair[0])?, reply::text(&pair[1])?)));
    let (_, at_ms) = fields.next()??;
    let id = reply::text(id)?;
    // The claims of a batch have consecutive numbers, and the entry id contains the last one.
    let last_n: u64 = id.split_once('-')?.1.parse().ok()?;
    let first_n = (last_n + 1).checked_sub(fields.len() as u64)?;
    let claims: Option<Vec<OutboxClaim>> = fields
        .zip(first_n..)
        .map(|(field, n)| claim(field?, n))
        .collect();
    Some(OutboxEntry {
        id: id.to_owned(),
        at_ms: at_ms.parse().ok()?,
        claims: claims?,
    })
}

fn claim((part, units): (&str, &str), n: u64) -> Option<OutboxClaim> {
    Some(OutboxClaim {
        order_id: OrderId::new(message::order_id_of(part)?).ok()?,
        part: part.to_owned(),
        n,
        units: units_of(units).or_else(|| of_version_1(units))?,
    })
}

/// The unit of an entry that a gate of version 1 wrote: number, generation and slot, which is 0 if
/// the sale has no limit.
fn of_version_1(text: &str) -> Option<ClaimedUnits> {
    let mut parts = text.split(':');
    let mut next = || parts.next()?.parse::<u32>().ok();
    let (number, generation, slot) = (next()?, next()?, next()?);
    let unit = ClaimedUnit {
        item: ItemNo::FIRST,
        unit: Unit { number, generation },
        slot: u8::try_from(slot).ok().filter(|slot| *slot > 0),
    };
    parts.next().is_none().then(|| [unit].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox_entry(id: &str, given: &[&str]) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let mut fields = vec![text("at"), text("5")];
        for (index, given) in given.iter().enumerate() {
            fields.push(text(&format!(r#""order_id":"id-{index}","buyer":"""#)));
            fields.push(text(given));
        }
        Value::Array(vec![text(id), Value::Array(fields)])
    }

    #[test]
    fn claims_are_numbered_up_to_the_number_of_their_entry() {
        let read = entry(&outbox_entry("4-9", &["7", "8@2,2/1@3", "3:5"])).unwrap();
        assert_eq!((read.id.as_str(), read.at_ms), ("4-9", 5));
        let claims = read.claims.iter().enumerate();
        let seen: Vec<_> = claims
            .map(|(index, claim)| {
                assert_eq!(claim.order_id.as_str(), format!("id-{index}"));
                let unit = claim.units[0];
                let (number, generation) = (unit.unit.number, unit.unit.generation);
                (claim.n, claim.units.len(), number, generation, unit.slot)
            })
            .collect();
        let expected = [
            (7, 1, 7, 1, None),
            (8, 2, 8, 1, Some(2)),
            (9, 1, 3, 5, None),
        ];
        assert_eq!(seen, expected);
    }

    /// An outbox that was not drained before the upgrade.
    #[test]
    fn entries_of_version_1_are_read() {
        let read = entry(&outbox_entry("4-2", &["9:7:1", "10:1:0"])).unwrap();
        let units: Vec<ClaimedUnit> = read.claims.iter().map(|claim| claim.units[0]).collect();
        let numbers = units
            .iter()
            .map(|unit| (unit.unit.number, unit.unit.generation, unit.slot));
        let expected = [(9, 7, Some(1)), (10, 1, None)];
        assert_eq!(numbers.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn malformed_entries_are_rejected() {
        for (id, given) in [
            ("4-9", ""),
            ("4-9", "9:7:1:1"),
            ("4-9", "9:7:"),
            ("4-9", "a:1"),
            ("4-x", "7"),
            ("4", "7"),
        ] {
            assert_eq!(entry(&outbox_entry(id, &[given])), None, "{id} {given}");
        }
        assert_eq!(entry(&outbox_entry("4-1", &["1", "2", "3"])), None);
        assert_eq!(entry(&Value::Nil), None);
    }
}
