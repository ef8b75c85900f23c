//! Writes, reads and verifies the rows of orders.
//! They have checksums, because SQLite does not detect a flipped byte inside a value.

use std::hash::Hasher;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use seckill_sale::{
    Buyer, IdempotencyKey, Order, OrderFacts, OrderId, OrderState, RowIntegrity, SaleId, Unit,
};
use siphasher::sip::SipHasher13;

const INSERT_ORDER: &str = "INSERT INTO seckill (date, order_id, sale, unit, generation, buyer, state, slot, idem_key, \
     fingerprint, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'reserved', ?7, ?8, ?9, ?10)";
const ORDER_COLUMNS: &str = "id, date, order_id, sale, unit, generation, buyer, state, slot, idem_key, fingerprint, \
     checksum, version, state_checksum, ended_at";
/// The `state_checksum` that marks a manual edit of the state by an operator.
const MANUAL_EDIT: i64 = 0;

/// The columns that are written with a new order, borrowed from the caller or from a row.
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

/// A row as it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRow<'a> {
    pub(crate) id: i64,
    pub(crate) row: OrderRow<'a>,
    pub(crate) state: Option<OrderState>,
    pub(crate) version: i64,
    pub(crate) ended_at: Option<&'a str>,
    pub(crate) integrity: RowIntegrity,
}

/// SipHash-1-3 with a zero key, with each text preceded by its length. Checksums are stored, so the
/// algorithm must never change.
pub(super) struct Checksum(SipHasher13);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(SipHasher13::new())
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.write(&(text.len() as u32).to_le_bytes());
        self.0.write(text.as_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(super) fn finish(&self) -> i64 {
        self.0.finish() as i64
    }
}

impl OrderRow<'_> {
    /// Covers the columns that never change.
    fn checksum(&self) -> i64 {
        let mut sum = Checksum::new();
        let texts = [self.date, self.order_id, self.sale, self.buyer];
        texts.into_iter().chain(self.key).for_each(|t| sum.text(t));
        sum.bytes(&self.unit.number.to_le_bytes());
        sum.bytes(&self.unit.generation.to_le_bytes());
        sum.bytes(&self.fingerprint.unwrap_or(0).to_le_bytes());
        sum.finish()
    }
}

/// Covers the columns that change with the state. It is null for an order that has not changed.
fn state_checksum(order_id: &str, state: OrderState, version: i64, ended_at: Option<&str>) -> i64 {
    let mut sum = Checksum::new();
    sum.text(order_id);
    sum.text(state.as_str());
    sum.text(ended_at.unwrap_or_default());
    sum.bytes(&version.to_le_bytes());
    match sum.finish() {
        MANUAL_EDIT => 1,
        sum => sum,
    }
}

/// The statement that inserts an order, prepared once per batch.
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
            row.fingerprint.map(|fingerprint| fingerprint as i64),
            row.checksum(),
        ])?;
        Ok(())
    }
}

/// Calls `each` with every order, by ascending row id.
pub(crate) fn each_order<E: From<rusqlite::Error>>(
    conn: &Connection,
    mut each: impl FnMut(&StoredRow<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let query = format!("SELECT {ORDER_COLUMNS} FROM seckill ORDER BY id");
    let mut statement = conn.prepare(&query)?;
    let mut rows = statement.query(())?;
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
        fingerprint: row
            .get::<_, Option<i64>>(10)?
            .map(|fingerprint| fingerprint as u64),
    };
    let state = OrderState::from_name(text(7)?);
    let (version, ended_at) = (row.get(12)?, row.get_ref(14)?.as_str_or_null()?);
    let expected = state.map(|state| state_checksum(order.order_id, state, version, ended_at));
    let has_written_state = match row.get::<_, Option<i64>>(13)? {
        None => state == Some(OrderState::Reserved) && version == 1 && ended_at.is_none(),
        Some(MANUAL_EDIT) => true,
        found => found == expected,
    };
    let integrity = if row.get::<_, i64>(11)? != order.checksum() {
        RowIntegrity::ContentDiffers
    } else if !has_written_state {
        RowIntegrity::StateDiffers
    } else {
        RowIntegrity::Intact
    };
    Ok(StoredRow {
        id: row.get(0)?,
        state,
        version,
        ended_at,
        integrity,
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
            integrity: self.integrity,
        }
    }

    /// The order, or a description of the damage.
    pub(crate) fn order(&self) -> Result<Order, String> {
        let damaged = |detail: &dyn std::fmt::Display| format!("row {}: {detail}", self.id);
        let row = &self.row;
        if let Some(damage) = self.integrity.damage() {
            return Err(damaged(&damage));
        }
        let buyer = if row.buyer.is_empty() {
            Ok(Buyer::anonymous())
        } else {
            Buyer::new(row.buyer)
        };
        Ok(Order {
            order_id: OrderId::new(row.order_id).map_err(|e| damaged(&e))?,
            sale: SaleId::new(row.sale).map_err(|e| damaged(&e))?,
            unit: row.unit,
            buyer: buyer.map_err(|e| damaged(&e))?,
            idempotency_key: row
                .key
                .map(IdempotencyKey::new)
                .transpose()
                .map_err(|e| damaged(&e))?,
            state: self
                .state
                .ok_or_else(|| damaged(&"its state is not a valid order state"))?,
            date: row.date.to_owned(),
            cancelled_at: self
                .ended_at
                .filter(|_| self.state == Some(OrderState::Cancelled))
                .map(str::to_owned),
        })
    }
}

/// An order, with the columns that only the engine needs.
#[derive(Debug, Clone)]
pub(crate) struct StoredOrder {
    pub(crate) order: Order,
    pub(crate) slot: Option<u8>,
    pub(crate) fingerprint: u64,
    version: i64,
}

/// The order with this id. The inner error describes the damage of its row.
pub(crate) fn order_by_id(
    conn: &Connection,
    order_id: &str,
) -> rusqlite::Result<Option<Result<StoredOrder, String>>> {
    let query = format!("SELECT {ORDER_COLUMNS} FROM seckill WHERE order_id = ?1");
    let mut statement = conn.prepare_cached(&query)?;
    let read = |row: &Row<'_>| {
        let found = stored(row)?;
        Ok(found.order().map(|order| StoredOrder {
            order,
            slot: found.row.slot,
            fingerprint: found.row.fingerprint.unwrap_or(0),
            version: found.version,
        }))
    };
    statement.query_row([order_id], read).optional()
}

/// Changes the state of an order, if its row is still in the state in which it was read. Returns
/// whether it was.
pub(crate) fn set_state(
    conn: &Connection,
    stored: &StoredOrder,
    next: OrderState,
    at: &str,
) -> rusqlite::Result<bool> {
    let update = "UPDATE seckill SET state = ?1, version = ?2, state_checksum = ?3, ended_at = ?4 \
         WHERE order_id = ?5 AND state = ?6 AND version = ?7";
    let order_id = stored.order.order_id.as_str();
    let version = stored.version + 1;
    let ended_at = (!next.is_active()).then_some(at);
    let changed = conn.prepare_cached(update)?.execute(params![
        next.as_str(),
        version,
        state_checksum(order_id, next, version, ended_at),
        ended_at,
        order_id,
        stored.order.state.as_str(),
        stored.version,
    ])?;
    Ok(changed == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_every_column_that_never_changes_and_is_stable() {
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
        // Checksums are stored in files: if they changed, every existing row would look damaged.
        assert_eq!(row.checksum(), -2_635_964_103_793_003_225);
        let state = state_checksum("o", OrderState::Cancelled, 2, Some("at"));
        assert_ne!(state, state_checksum("o", OrderState::Paid, 2, Some("at")));
        assert_ne!(
            state,
            state_checksum("o", OrderState::Cancelled, 3, Some("at"))
        );
        assert_ne!(state, state_checksum("o", OrderState::Cancelled, 2, None));
        assert_ne!(
            state,
            state_checksum("p", OrderState::Cancelled, 2, Some("at"))
        );
    }
}
