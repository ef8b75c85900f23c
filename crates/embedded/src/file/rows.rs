//! Reads and verifies the rows of orders, one for each unit, and changes their states.
//! They have checksums, because SQLite does not detect a flipped byte inside a value.

use rusqlite::{Connection, Row, params};
use seckill_sale::{
    Buyer, ClaimedUnit, ClaimedUnits, IdempotencyKey, ItemId, ItemNo, Order, OrderState, OrderUnit,
    RowFacts, RowIntegrity, SaleId, Unit,
};

use super::checksum::Checksum;
use crate::{clock, order_id};

pub(super) const LINE_COLUMNS: &str = "line.id, line.date, line.order_id, line.line, line.lines, line.sale, line.item, line.unit, \
     line.generation, line.sequence, line.buyer, line.slot, line.idem_key, line.fingerprint, line.checksum, line.state, \
     line.version, line.state_checksum, line.ended_at";
/// The index of the first column after [`LINE_COLUMNS`].
const NEXT_COLUMN: usize = 19;
/// The `state_checksum` that marks a manual edit of the state by an operator.
const MANUAL_EDIT: i64 = 0;

/// The columns that are written with a new order, borrowed from the caller or from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineRow<'a> {
    /// Unix milliseconds.
    pub(crate) date_ms: i64,
    pub(crate) order_id: u128,
    /// From 1.
    pub(crate) line: u32,
    /// The number of lines of the order.
    pub(crate) lines: u32,
    /// The number of the sale.
    pub(crate) sale: u32,
    pub(crate) claimed: ClaimedUnit,
    /// The number of the event that the order was reserved. Only the first line has it.
    pub(crate) sequence: Option<u64>,
    pub(crate) buyer: &'a str,
    /// Only the first line has key and fingerprint.
    pub(crate) key: Option<&'a str>,
    pub(crate) fingerprint: Option<u64>,
}

impl LineRow<'_> {
    /// Covers the columns that never change.
    pub(super) fn checksum(&self) -> i64 {
        let ClaimedUnit { item, unit, slot } = self.claimed;
        let mut fixed = [0; 64];
        fixed[..8].copy_from_slice(&self.date_ms.to_le_bytes());
        fixed[8..24].copy_from_slice(&self.order_id.to_be_bytes());
        fixed[24..28].copy_from_slice(&self.line.to_le_bytes());
        fixed[28..32].copy_from_slice(&self.lines.to_le_bytes());
        fixed[32..36].copy_from_slice(&self.sale.to_le_bytes());
        fixed[36..40].copy_from_slice(&unit.number.to_le_bytes());
        fixed[40..44].copy_from_slice(&unit.generation.to_le_bytes());
        fixed[44..52].copy_from_slice(&self.sequence.unwrap_or(0).to_le_bytes());
        fixed[52..60].copy_from_slice(&self.fingerprint.unwrap_or(0).to_le_bytes());
        fixed[60] = item.get();
        fixed[61] = slot.unwrap_or(0);
        fixed[62] = u8::from(self.key.is_some());
        fixed[63] = u8::from(self.fingerprint.is_some());
        let mut sum = Checksum::new();
        sum.bytes(&fixed);
        sum.text(self.buyer);
        if let Some(key) = self.key {
            sum.text(key);
        }
        sum.finish()
    }
}

/// Covers the columns that change with the state. It is null for an order that has not changed.
fn state_checksum(order_id: u128, state: OrderState, version: i64, ended_at: Option<i64>) -> i64 {
    let mut sum = Checksum::new();
    sum.bytes(&order_id.to_be_bytes());
    sum.bytes(&state_code(state).to_le_bytes());
    sum.bytes(&version.to_le_bytes());
    sum.bytes(&ended_at.unwrap_or(-1).to_le_bytes());
    match sum.finish() {
        MANUAL_EDIT => 1,
        sum => sum,
    }
}

/// How the file stores a state.
pub(super) fn state_code(state: OrderState) -> i64 {
    match state {
        OrderState::Reserved => 0,
        OrderState::Paid => 1,
        OrderState::Expired => 2,
        OrderState::Cancelled => 3,
    }
}

fn state_of(code: i64) -> Option<OrderState> {
    OrderState::ALL
        .into_iter()
        .find(|&state| state_code(state) == code)
}

/// A row as it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredLine<'a> {
    pub(crate) id: i64,
    pub(crate) row: LineRow<'a>,
    pub(crate) state: Option<OrderState>,
    pub(crate) version: i64,
    /// Unix milliseconds.
    pub(crate) ended_at_ms: Option<i64>,
    pub(crate) integrity: RowIntegrity,
    /// An operator has edited the state, and the service has not adopted that yet.
    pub(crate) is_edited: bool,
}

/// Calls `each` with every line and its row id, by ascending row id. An inner error describes the
/// damage of a row.
pub(crate) fn each_line<E: From<rusqlite::Error>>(
    conn: &Connection,
    mut each: impl FnMut(i64, Result<&StoredLine<'_>, String>) -> Result<(), E>,
) -> Result<(), E> {
    let query = format!("SELECT {LINE_COLUMNS} FROM seckill AS line ORDER BY line.id");
    let mut statement = conn.prepare(&query)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        match stored(row)? {
            Ok(line) => each(line.id, Ok(&line))?,
            Err(damage) => each(row.get(0)?, Err(damage))?,
        }
    }
    Ok(())
}

/// Reads a row that begins with [`LINE_COLUMNS`]. The inner error describes the damage of a row whose
/// values cannot be what this program wrote.
pub(super) fn stored<'a>(row: &'a Row<'_>) -> rusqlite::Result<Result<StoredLine<'a>, String>> {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    match values(row) {
        Ok(line) => Ok(Ok(line)),
        Err(
            error @ (FromSqlConversionFailure(..)
            | IntegralValueOutOfRange(..)
            | InvalidColumnType(..)),
        ) => Ok(Err(format!("row {}: {error}", row.get::<_, i64>(0)?))),
        Err(error) => Err(error),
    }
}

fn values<'a>(row: &'a Row<'_>) -> rusqlite::Result<StoredLine<'a>> {
    let not_an_item = |index: usize, number: u8| {
        let what = format!("{number} is not an item number").into();
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Integer, what)
    };
    let item: u8 = row.get(6)?;
    let line = LineRow {
        date_ms: row.get(1)?,
        order_id: u128::from_be_bytes(row.get(2)?),
        line: row.get(3)?,
        lines: row.get(4)?,
        sale: row.get(5)?,
        claimed: ClaimedUnit {
            item: ItemNo::new(item).ok_or_else(|| not_an_item(6, item))?,
            unit: Unit {
                number: row.get(7)?,
                generation: row.get(8)?,
            },
            slot: row.get(11)?,
        },
        sequence: row.get::<_, Option<i64>>(9)?.map(|number| number as u64),
        buyer: row.get_ref(10)?.as_str()?,
        key: row.get_ref(12)?.as_str_or_null()?,
        fingerprint: row.get::<_, Option<i64>>(13)?.map(|number| number as u64),
    };
    let state = state_of(row.get(15)?);
    let (version, ended_at_ms): (i64, Option<i64>) = (row.get(16)?, row.get(18)?);
    let found = row.get::<_, Option<i64>>(17)?;
    let is_edited = found == Some(MANUAL_EDIT);
    let has_written_state = match found {
        None => state == Some(OrderState::Reserved) && version == 1 && ended_at_ms.is_none(),
        Some(MANUAL_EDIT) => true,
        found => {
            found == state.map(|state| state_checksum(line.order_id, state, version, ended_at_ms))
        }
    };
    let integrity = if row.get::<_, i64>(14)? != line.checksum() {
        RowIntegrity::ContentDiffers
    } else if !has_written_state {
        RowIntegrity::StateDiffers
    } else {
        RowIntegrity::Intact
    };
    Ok(StoredLine {
        id: row.get(0)?,
        row: line,
        state,
        version,
        ended_at_ms,
        integrity,
        is_edited,
    })
}

impl<'a> StoredLine<'a> {
    /// `order_id` is the row's id as text, and `sale` the id of its sale.
    pub(crate) fn facts(&self, order_id: &'a str, sale: &'a str) -> RowFacts<'a> {
        RowFacts {
            order_id,
            line: self.row.line,
            lines: self.row.lines,
            sale,
            item: self.row.claimed.item,
            unit: self.row.claimed.unit,
            buyer: self.row.buyer,
            key: self.row.key,
            state: self.state,
            sequence: self.row.sequence,
            integrity: self.integrity,
            is_edited: self.is_edited,
        }
    }

    pub(crate) fn damaged(&self, detail: &dyn std::fmt::Display) -> String {
        format!("row {}: {detail}", self.id)
    }
}

pub(super) fn buyer(name: &str) -> Result<Buyer, seckill_sale::InvalidName> {
    if name.is_empty() {
        Ok(Buyer::anonymous())
    } else {
        Buyer::new(name)
    }
}

/// An order, with the columns that only the engine needs.
#[derive(Debug, Clone)]
pub(crate) struct StoredOrder {
    pub(crate) number: u128,
    pub(crate) order: Order,
    pub(crate) units: ClaimedUnits,
    pub(crate) fingerprint: u64,
    ended_at_ms: Option<i64>,
    version: i64,
}

/// The order with this id. The inner error describes the damage of its rows.
pub(crate) fn order_by_id(
    conn: &Connection,
    order_id: u128,
) -> rusqlite::Result<Option<Result<StoredOrder, String>>> {
    let query = format!(
        "SELECT {LINE_COLUMNS}, sale.id, item.id FROM seckill AS line \
         LEFT JOIN seckill_sale AS sale ON sale.number = line.sale \
         LEFT JOIN seckill_item AS item ON item.sale = line.sale AND item.item = line.item \
         WHERE line.order_id = ?1 ORDER BY line.line"
    );
    let mut statement = conn.prepare_cached(&query)?;
    let mut rows = statement.query([order_id.to_be_bytes()])?;
    let mut order: Option<StoredOrder> = None;
    while let Some(row) = rows.next()? {
        let line = match stored(row)? {
            Ok(line) => line,
            Err(damage) => return Ok(Some(Err(damage))),
        };
        let sale = row.get_ref(NEXT_COLUMN)?.as_str_or_null()?;
        let item = row.get_ref(NEXT_COLUMN + 1)?.as_str_or_null()?;
        let added = match (sale, item) {
            (Some(sale), Some(item)) => add_line(&mut order, &line, sale, item),
            _ => Err(line.damaged(&"its sale or its item does not exist")),
        };
        if let Err(damage) = added {
            return Ok(Some(Err(damage)));
        }
    }
    Ok(order.map(Ok))
}

fn add_line(
    order: &mut Option<StoredOrder>,
    line: &StoredLine<'_>,
    sale: &str,
    item: &str,
) -> Result<(), String> {
    let row = &line.row;
    if let Some(damage) = line.integrity.damage() {
        return Err(line.damaged(&damage));
    }
    let state = line
        .state
        .ok_or_else(|| line.damaged(&"its state is not a valid order state"))?;
    let unit = OrderUnit {
        item: ItemId::new(item).map_err(|error| line.damaged(&error))?,
        unit: row.claimed.unit,
    };
    if let Some(order) = order {
        if order.order.state != state || order.version != line.version {
            return Err(line.damaged(&"the lines of its order are in different states"));
        }
        order.units.push(row.claimed);
        order.order.units.push(unit);
        return Ok(());
    }
    let key = row.key.map(IdempotencyKey::new).transpose();
    *order = Some(StoredOrder {
        number: row.order_id,
        order: Order {
            order_id: order_id::to_text(row.order_id),
            sale: SaleId::new(sale).map_err(|error| line.damaged(&error))?,
            units: [unit].into_iter().collect(),
            buyer: buyer(row.buyer).map_err(|error| line.damaged(&error))?,
            idempotency_key: key.map_err(|error| line.damaged(&error))?,
            state,
            date: clock::to_text(row.date_ms),
            cancelled_at: line
                .ended_at_ms
                .filter(|_| state == OrderState::Cancelled)
                .map(clock::to_text),
        },
        units: [row.claimed].into_iter().collect(),
        fingerprint: row.fingerprint.unwrap_or(0),
        ended_at_ms: line.ended_at_ms,
        version: line.version,
    });
    Ok(())
}

/// Changes the state of an order, if all its lines are still in the state in which they were read.
/// Returns whether they were.
pub(crate) fn set_state(
    conn: &Connection,
    stored: &StoredOrder,
    next: OrderState,
    at_ms: i64,
) -> rusqlite::Result<bool> {
    let update = "UPDATE seckill SET state = ?1, version = ?2, state_checksum = ?3, ended_at = ?4 \
         WHERE order_id = ?5 AND state = ?6 AND version = ?7";
    let version = stored.version + 1;
    let ended_at = (!next.is_active()).then_some(at_ms);
    let changed = conn.prepare_cached(update)?.execute(params![
        state_code(next),
        version,
        state_checksum(stored.number, next, version, ended_at),
        ended_at,
        stored.number.to_be_bytes(),
        state_code(stored.order.state),
        stored.version,
    ])?;
    Ok(changed == stored.units.len())
}

/// Gives the manually edited state of an order the checksum of a state that this program wrote.
pub(crate) fn adopt_state(
    conn: &Connection,
    stored: &StoredOrder,
    now_ms: i64,
) -> rusqlite::Result<()> {
    let state = stored.order.state;
    let ended_at = (!state.is_active()).then_some(stored.ended_at_ms.unwrap_or(now_ms));
    write_state(conn, stored.number, state, stored.version, ended_at)
}

/// Sets the state of an order, whatever it was.
pub(super) fn write_state(
    conn: &Connection,
    order_id: u128,
    state: OrderState,
    version: i64,
    ended_at: Option<i64>,
) -> rusqlite::Result<()> {
    let update = "UPDATE seckill SET state = ?1, version = ?2, state_checksum = ?3, ended_at = ?4 \
         WHERE order_id = ?5";
    conn.prepare_cached(update)?.execute(params![
        state_code(state),
        version,
        state_checksum(order_id, state, version, ended_at),
        ended_at,
        order_id.to_be_bytes(),
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_every_column_that_never_changes_and_is_stable() {
        let unit = |number, generation| Unit { number, generation };
        let claimed = ClaimedUnit {
            item: ItemNo::FIRST,
            unit: unit(1, 1),
            slot: Some(1),
        };
        let row = LineRow {
            date_ms: 1_795_000_000_000,
            order_id: 7,
            line: 1,
            lines: 1,
            sale: 1,
            claimed,
            sequence: Some(2),
            buyer: "ann",
            key: Some("k"),
            fingerprint: Some(7),
        };
        let edits: [fn(&mut LineRow<'_>); 14] = [
            |row| row.date_ms += 1,
            |row| row.order_id = 8,
            |row| row.line = 2,
            |row| row.lines = 2,
            |row| row.sale = 2,
            |row| row.claimed.item = ItemNo::new(2).unwrap(),
            |row| row.claimed.unit.number = 2,
            |row| row.claimed.unit.generation = 2,
            |row| row.claimed.slot = None,
            |row| row.sequence = Some(3),
            |row| row.buyer = "anm",
            |row| row.key = None,
            |row| row.key = Some("l"),
            |row| row.fingerprint = None,
        ];
        let mut sums = std::collections::HashSet::from([row.checksum()]);
        for edit in edits {
            let mut edited = row;
            edit(&mut edited);
            assert!(sums.insert(edited.checksum()), "{edited:?}");
        }
        // Checksums are stored in files: if they changed, every existing row would look damaged.
        assert_eq!(row.checksum(), 4_654_903_476_372_712_795);
        let state = |order, state, version, at| state_checksum(order, state, version, at);
        let sums = [
            state(7, OrderState::Cancelled, 2, Some(5)),
            state(7, OrderState::Paid, 2, Some(5)),
            state(7, OrderState::Cancelled, 3, Some(5)),
            state(7, OrderState::Cancelled, 2, None),
            state(8, OrderState::Cancelled, 2, Some(5)),
        ];
        let distinct: std::collections::HashSet<i64> = sums.into_iter().collect();
        assert_eq!(distinct.len(), sums.len());
    }
}
