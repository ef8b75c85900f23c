//! The rows of orders and sales: written, read, and checked against what was written.
//! The text of a row's immutable part has a checksum, since SQLite does not notice a flipped byte inside a value.

use std::hash::Hasher;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use seckill_sale::{
    Buyer, IdempotencyKey, Order, OrderFacts, OrderId, OrderState, Sale, SaleId, Slots, Unit,
};
use siphasher::sip::SipHasher13;

use super::clock;

const INSERT_ORDER: &str = "INSERT INTO seckill (date, order_id, sale, unit, generation, buyer, state, slot, idem_key, \
     fingerprint, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'reserved', ?7, ?8, ?9, ?10)";
const ORDER_COLUMNS: &str = "id, date, order_id, sale, unit, generation, buyer, state, slot, idem_key, fingerprint, checksum";

/// A row of `seckill`, borrowed from where it was read or is about to be written from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderRow<'a> {
    pub(crate) date: &'a str,
    pub(crate) order_id: &'a str,
    pub(crate) sale: &'a str,
    pub(crate) unit: Unit,
    pub(crate) buyer: &'a str,
    pub(crate) slot: Option<u8>,
    pub(crate) key: Option<&'a str>,
    pub(crate) fingerprint: Option<u64>,
}

/// A row as it was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRow<'a> {
    pub(crate) id: i64,
    pub(crate) row: OrderRow<'a>,
    pub(crate) state: Option<OrderState>,
    pub(crate) intact: bool,
}

impl OrderRow<'_> {
    /// SipHash-1-3 with a zero key over the immutable columns, each text behind its length. Stored, so it stays the same
    /// for ever.
    fn checksum(&self) -> i64 {
        let mut hasher = SipHasher13::new();
        let texts = [self.date, self.order_id, self.sale, self.buyer];
        for text in texts.into_iter().chain(self.key) {
            hasher.write(&(text.len() as u32).to_le_bytes());
            hasher.write(text.as_bytes());
        }
        hasher.write(&self.unit.number.to_le_bytes());
        hasher.write(&self.unit.generation.to_le_bytes());
        hasher.write(&self.fingerprint.unwrap_or(0).to_le_bytes());
        hasher.finish() as i64
    }
}

/// The statement that stores claims, prepared once for a batch.
pub(crate) struct InsertOrder<'conn>(CachedStatement<'conn>);

impl<'conn> InsertOrder<'conn> {
    pub(crate) fn prepare(conn: &'conn Connection) -> rusqlite::Result<Self> {
        conn.prepare_cached(INSERT_ORDER).map(Self)
    }

    pub(crate) fn insert(&mut self, row: &OrderRow<'_>) -> rusqlite::Result<()> {
        self.0.execute(params![
            row.date,
            row.order_id,
            row.sale,
            row.unit.number,
            row.unit.generation,
            row.buyer,
            row.slot,
            row.key,
            row.fingerprint.map(|print| print as i64),
            row.checksum(),
        ])?;
        Ok(())
    }
}

/// Calls `each` with every order in the order of ids, or with those of one sale.
pub(crate) fn each_order<E: From<rusqlite::Error>>(
    conn: &Connection,
    sale: Option<&SaleId>,
    mut each: impl FnMut(&StoredRow<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let condition = if sale.is_some() {
        "WHERE sale = ?1"
    } else {
        "WHERE ?1 IS NULL"
    };
    let query = format!("SELECT {ORDER_COLUMNS} FROM seckill {condition} ORDER BY id");
    let mut statement = conn.prepare(&query)?;
    let mut rows = statement.query([sale.map(SaleId::as_str)])?;
    while let Some(row) = rows.next()? {
        each(&stored(row)?)?;
    }
    Ok(())
}

fn stored<'a>(row: &'a Row<'_>) -> rusqlite::Result<StoredRow<'a>> {
    let text = |index| row.get_ref(index).and_then(|value| Ok(value.as_str()?));
    let order = OrderRow {
        date: text(1)?,
        order_id: text(2)?,
        sale: text(3)?,
        unit: Unit {
            number: row.get(4)?,
            generation: row.get(5)?,
        },
        buyer: text(6)?,
        slot: row.get(8)?,
        key: row.get_ref(9)?.as_str_or_null()?,
        fingerprint: row.get::<_, Option<i64>>(10)?.map(|print| print as u64),
    };
    Ok(StoredRow {
        id: row.get(0)?,
        state: OrderState::from_word(text(7)?),
        intact: row.get::<_, i64>(11)? == order.checksum(),
        row: order,
    })
}

impl StoredRow<'_> {
    pub(crate) fn facts(&self) -> OrderFacts<'_> {
        OrderFacts {
            order_id: self.row.order_id,
            sale: self.row.sale,
            unit: self.row.unit,
            buyer: self.row.buyer,
            key: self.row.key,
            state: self.state,
            intact: self.intact,
        }
    }

    /// The order, or what in the row is no order's.
    pub(crate) fn order(&self) -> Result<Order, String> {
        let bad = |what: &dyn std::fmt::Display| format!("row {}: {what}", self.id);
        let row = &self.row;
        if !self.intact {
            return Err(bad(&"it is not what was written, its checksum differs"));
        }
        let buyer = if row.buyer.is_empty() {
            Ok(Buyer::anonymous())
        } else {
            Buyer::new(row.buyer)
        };
        Ok(Order {
            order_id: OrderId::new(row.order_id).map_err(|e| bad(&e))?,
            sale: SaleId::new(row.sale).map_err(|e| bad(&e))?,
            unit: row.unit,
            buyer: buyer.map_err(|e| bad(&e))?,
            idempotency_key: row
                .key
                .map(IdempotencyKey::new)
                .transpose()
                .map_err(|e| bad(&e))?,
            state: self
                .state
                .ok_or_else(|| bad(&"its state is no state of an order"))?,
            date: row.date.to_owned(),
        })
    }
}

/// An order with the slot that its buyer has for it.
pub(crate) type OrderAndSlot = (Order, Option<u8>);

/// The order with this id; the text of the inner error says what is wrong with its row.
pub(crate) fn order_by_id(
    conn: &Connection,
    order_id: &str,
) -> rusqlite::Result<Option<Result<OrderAndSlot, String>>> {
    let query = format!("SELECT {ORDER_COLUMNS} FROM seckill WHERE order_id = ?1");
    let mut statement = conn.prepare_cached(&query)?;
    let read = |row: &Row<'_>| {
        let found = stored(row)?;
        Ok(found.order().map(|order| (order, found.row.slot)))
    };
    statement.query_row([order_id], read).optional()
}

/// Sets an order's state and counts the change.
pub(crate) fn set_state(
    conn: &Connection,
    order_id: &OrderId,
    state: OrderState,
) -> rusqlite::Result<()> {
    let update = "UPDATE seckill SET state = ?2, version = version + 1 WHERE order_id = ?1";
    conn.prepare_cached(update)?
        .execute([order_id.as_str(), state.as_str()])?;
    Ok(())
}

/// The most active orders that one named buyer of the sale has.
pub(crate) fn most_held(conn: &Connection, sale: &SaleId) -> rusqlite::Result<u32> {
    let query = "SELECT coalesce(max(held), 0) FROM (SELECT count(*) AS held FROM seckill \
         WHERE sale = ?1 AND buyer <> '' AND state IN ('reserved', 'paid') GROUP BY buyer)";
    conn.query_row(query, [sale.as_str()], |row| row.get(0))
}

/// Gives the active orders of each named buyer the slots 1, 2, 3 …, or takes all slots away.
pub(crate) fn renumber_slots(
    conn: &Connection,
    sale: &SaleId,
    limited: bool,
) -> rusqlite::Result<()> {
    conn.execute(
        "UPDATE seckill SET slot = NULL WHERE sale = ?1 AND slot IS NOT NULL",
        [sale.as_str()],
    )?;
    if limited {
        let update = "UPDATE seckill SET slot = numbered.slot FROM (SELECT id, row_number() OVER (PARTITION BY buyer \
             ORDER BY id) AS slot FROM seckill WHERE sale = ?1 AND buyer <> '' AND state IN ('reserved', 'paid')) \
             AS numbered WHERE seckill.id = numbered.id";
        conn.execute(update, [sale.as_str()])?;
    }
    Ok(())
}

/// Calls `each` with every named buyer of the sale that ever had an order, and the slots of the active ones.
pub(crate) fn each_buyer(
    conn: &Connection,
    sale: &SaleId,
    mut each: impl FnMut(&str, Slots),
) -> rusqlite::Result<()> {
    let query = "SELECT buyer, CASE WHEN state IN ('reserved', 'paid') THEN slot END FROM seckill \
         WHERE sale = ?1 AND buyer <> '' ORDER BY buyer";
    let mut statement = conn.prepare(query)?;
    let mut rows = statement.query([sale.as_str()])?;
    let mut current: Option<(String, Slots)> = None;
    while let Some(row) = rows.next()? {
        let buyer = row.get_ref(0)?.as_str()?;
        let slot: Option<u8> = row.get(1)?;
        if let Some((name, slots)) = &current
            && name != buyer
        {
            each(name, *slots);
            current = None;
        }
        let (_, slots) = current.get_or_insert_with(|| (buyer.to_owned(), Slots::default()));
        if let Some(slot) = slot {
            *slots = slots.with(slot).unwrap_or(*slots);
        }
    }
    if let Some((name, slots)) = &current {
        each(name, *slots);
    }
    Ok(())
}

/// Stores a new sale, or the changed terms of one.
pub(crate) fn put_sale(conn: &Connection, sale: &Sale) -> rusqlite::Result<()> {
    let put = "INSERT OR REPLACE INTO seckill_sale (id, title, total, buyer_limit, opens_at, closes_at, version) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    conn.prepare_cached(put)?.execute(params![
        sale.id.as_str(),
        sale.title,
        sale.total,
        sale.buyer_limit,
        sale.opens_at_ms.map(clock::to_text),
        sale.closes_at_ms.map(clock::to_text),
        sale.version as i64,
    ])?;
    Ok(())
}

/// Every sale, by id; an inner error says which row is no sale's.
pub(crate) fn sales(conn: &Connection) -> rusqlite::Result<Vec<Result<Sale, String>>> {
    let query = "SELECT id, title, total, buyer_limit, opens_at, closes_at, version FROM seckill_sale ORDER BY id";
    let mut statement = conn.prepare(query)?;
    let read = |row: &Row<'_>| {
        let id: String = row.get(0)?;
        let time = |index| -> rusqlite::Result<Result<Option<i64>, String>> {
            let text: Option<String> = row.get(index)?;
            let bad = |text: &str| format!("sale {id}: {text:?} is no time");
            Ok(text
                .map(|t| clock::from_text(&t).ok_or_else(|| bad(&t)))
                .transpose())
        };
        let (opens, closes) = (time(4)?, time(5)?);
        let (title, total) = (row.get(1)?, row.get(2)?);
        let (buyer_limit, version) = (row.get(3)?, row.get::<_, i64>(6)?);
        Ok((|| {
            Ok(Sale {
                id: SaleId::new(&id).map_err(|e| e.to_string())?,
                title,
                total,
                buyer_limit,
                opens_at_ms: opens?,
                closes_at_ms: closes?,
                version: version as u64,
            })
        })())
    };
    statement.query_map((), read)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_every_immutable_column_and_stays_what_it_was() {
        let row = OrderRow {
            date: "2026-11-11T00:00:00.000Z",
            order_id: "o",
            sale: "counter",
            unit: Unit {
                number: 1,
                generation: 1,
            },
            buyer: "ann",
            slot: Some(1),
            key: Some("k"),
            fingerprint: Some(7),
        };
        let others = [
            OrderRow {
                date: "2026-11-11T00:00:00.001Z",
                ..row
            },
            OrderRow {
                order_id: "p",
                ..row
            },
            OrderRow {
                sale: "countes",
                ..row
            },
            OrderRow {
                unit: Unit {
                    number: 2,
                    generation: 1,
                },
                ..row
            },
            OrderRow {
                unit: Unit {
                    number: 1,
                    generation: 2,
                },
                ..row
            },
            OrderRow {
                buyer: "anm",
                ..row
            },
            OrderRow { key: None, ..row },
            OrderRow {
                fingerprint: Some(8),
                ..row
            },
        ];
        for other in others {
            assert_ne!(other.checksum(), row.checksum(), "{other:?}");
        }
        // Stored in files: a change here would make every old row look damaged.
        assert_eq!(row.checksum(), -2_635_964_103_793_003_225);
    }
}
