//! Writes, reads and verifies the entries of `seckill_event`: the events that are not claims, and
//! pointers to the rows of some claims. A claim's own rows stand for its event.

use rusqlite::{Connection, Row, params};
use seckill_sale::{AuditedEvent, EventFacts, ItemNo, ItemUnit, ItemUnits, OrderState, Sale, Unit};

use super::checksum::Checksum;
use crate::order_id;

/// A claim gets an entry in `seckill_event` if its row is farther than this from the one that the
/// sale's latest entry points to. So a reader finds the next claim of a sale within so many rows.
pub(crate) const POINTER_ROWS: i64 = 32_768;

const ORDER: &str = "order.";
const RESERVED: &str = "order.reserved";
const SALE_CREATED: &str = "sale.created";
const SALE_CHANGED: &str = "sale.changed";

/// A row of `seckill_event`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventRow<'a> {
    /// The number of the sale.
    pub(crate) sale: u32,
    pub(crate) sequence: u64,
    /// The row of the claim; for other events, the latest row of any order.
    pub(crate) row_id: i64,
    /// Unix milliseconds.
    pub(crate) date_ms: i64,
    pub(crate) kind: Kind<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    /// Where the rows of a claim are. It is not an event: the claim's rows are.
    Pointer,
    Created(&'a Sale),
    Changed(&'a Sale),
    /// With the units of the order.
    Order(u128, OrderState, &'a [ItemUnit]),
}

impl Kind<'_> {
    fn name(&self) -> String {
        match self {
            Self::Pointer => RESERVED.to_owned(),
            Self::Created(_) => SALE_CREATED.to_owned(),
            Self::Changed(_) => SALE_CHANGED.to_owned(),
            Self::Order(_, state, _) => format!("{ORDER}{}", state.as_str()),
        }
    }
}

/// The state that an event of this type sets.
fn state_of(name: &str) -> Option<OrderState> {
    let state = name.strip_prefix(ORDER)?;
    OrderState::from_name(state).filter(|state| *state != OrderState::Reserved)
}

pub(crate) fn insert(conn: &Connection, event: &EventRow<'_>) -> rusqlite::Result<()> {
    let insert = "INSERT INTO seckill_event (sale, sequence, row_id, date, type, order_id, data, checksum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let data = match event.kind {
        Kind::Created(sale) | Kind::Changed(sale) => Some(to_json(sale)?),
        Kind::Order(_, _, units) => {
            let stored = |unit: &ItemUnit| StoredUnit::from(*unit);
            Some(to_json(&units.iter().map(stored).collect::<Vec<_>>())?)
        }
        Kind::Pointer => None,
    };
    let order_id = match event.kind {
        Kind::Order(order, ..) => Some(order.to_be_bytes()),
        _ => None,
    };
    let entry = Entry {
        sale: event.sale,
        sequence: event.sequence,
        row_id: event.row_id,
        date_ms: event.date_ms,
        name: event.kind.name(),
        order_id,
        data,
    };
    conn.prepare_cached(insert)?.execute(params![
        entry.sale,
        entry.sequence as i64,
        entry.row_id,
        entry.date_ms,
        entry.name,
        entry.order_id,
        entry.data,
        entry.checksum(),
    ])?;
    Ok(())
}

fn to_json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Item, number and generation.
#[derive(serde::Serialize, serde::Deserialize)]
struct StoredUnit(ItemNo, u32, u32);

impl From<ItemUnit> for StoredUnit {
    fn from(ItemUnit { item, unit }: ItemUnit) -> Self {
        Self(item, unit.number, unit.generation)
    }
}

impl From<StoredUnit> for ItemUnit {
    fn from(StoredUnit(item, number, generation): StoredUnit) -> Self {
        let unit = Unit { number, generation };
        Self { item, unit }
    }
}

/// An entry of `seckill_event`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The number of the sale.
    pub(crate) sale: u32,
    pub(crate) sequence: u64,
    pub(crate) row_id: i64,
    /// Unix milliseconds.
    pub(crate) date_ms: i64,
    name: String,
    order_id: Option<[u8; 16]>,
    data: Option<String>,
}

/// What happened, according to an entry that is not a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Created(Sale),
    Changed(Sale),
    Order(u128, OrderState, ItemUnits),
}

pub(super) const ENTRY_COLUMNS: &str =
    "sequence, row_id, date, type, order_id, data, checksum, sale";

impl Entry {
    /// Covers every column.
    fn checksum(&self) -> i64 {
        let mut sum = Checksum::new();
        sum.bytes(&self.sale.to_le_bytes());
        sum.bytes(&self.sequence.to_le_bytes());
        sum.bytes(&self.row_id.to_le_bytes());
        sum.bytes(&self.date_ms.to_le_bytes());
        sum.text(&self.name);
        sum.bytes(&self.order_id.unwrap_or_default());
        sum.optional_text(self.data.as_deref());
        sum.finish()
    }

    /// Reads a row of [`ENTRY_COLUMNS`]. The inner error describes the damage.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Result<Self, String>> {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType,
        };
        let damaged = |detail: &dyn std::fmt::Display| {
            let number = |index| row.get::<_, i64>(index).unwrap_or_default();
            let (sale, sequence) = (number(7), number(0));
            Ok(Err(format!(
                "sale number {sale}: event {sequence}: {detail}"
            )))
        };
        match Self::values(row) {
            Ok((entry, checksum)) if checksum == entry.checksum() => Ok(Ok(entry)),
            Ok(_) => damaged(&"it was modified: its checksum differs"),
            Err(
                error @ (FromSqlConversionFailure(..)
                | IntegralValueOutOfRange(..)
                | InvalidColumnType(..)),
            ) => damaged(&error),
            Err(error) => Err(error),
        }
    }

    fn values(row: &Row<'_>) -> rusqlite::Result<(Self, i64)> {
        let entry = Self {
            sale: row.get(7)?,
            sequence: row.get::<_, i64>(0)? as u64,
            row_id: row.get(1)?,
            date_ms: row.get(2)?,
            name: row.get(3)?,
            order_id: row.get(4)?,
            data: row.get(5)?,
        };
        Ok((entry, row.get(6)?))
    }

    pub(crate) fn is_pointer(&self) -> bool {
        self.name == RESERVED
    }

    /// The inner value of an entry that is not a pointer.
    pub(crate) fn change(&self) -> Result<Change, String> {
        let (name, sequence) = (&self.name, self.sequence);
        let unreadable = |error: serde_json::Error| format!("event {sequence}: its data: {error}");
        let data = self.data.as_deref().unwrap_or_default();
        if let (Some(order), Some(state)) = (self.order_id, state_of(name)) {
            let units: Vec<StoredUnit> = serde_json::from_str(data).map_err(unreadable)?;
            let units = units.into_iter().map(ItemUnit::from).collect();
            return Ok(Change::Order(u128::from_be_bytes(order), state, units));
        }
        let sale = || serde_json::from_str(data).map_err(unreadable);
        match name.as_str() {
            SALE_CREATED => Ok(Change::Created(sale()?)),
            SALE_CHANGED => Ok(Change::Changed(sale()?)),
            _ => Err(format!("event {sequence}: {name:?} is not a type of event")),
        }
    }
}

/// Calls `each` with every entry, by sale and number. An inner error describes the damage of a row.
pub(crate) fn each_entry(
    conn: &Connection,
    mut each: impl FnMut(Result<Entry, String>),
) -> rusqlite::Result<()> {
    let query = format!("SELECT {ENTRY_COLUMNS} FROM seckill_event ORDER BY sale, sequence");
    let mut statement = conn.prepare(&query)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        each(Entry::read(row)?);
    }
    Ok(())
}

/// Calls `each` with every event that has no row of its own, for the audit. An inner error describes
/// the damage of a row. `sales` are the ids by number.
pub(crate) fn each_event(
    conn: &Connection,
    sales: &dyn Fn(u32) -> Option<String>,
    mut each: impl FnMut(Result<&EventFacts<'_>, String>),
) -> rusqlite::Result<()> {
    each_entry(conn, |entry| {
        let entry = match entry {
            Ok(entry) if entry.is_pointer() => return,
            Ok(entry) => entry,
            Err(damage) => return each(Err(damage)),
        };
        let number = entry.sale;
        let sale = sales(number).unwrap_or_else(|| format!("number {number}"));
        let change = match entry.change() {
            Ok(change) => change,
            Err(damage) => return each(Err(format!("sale {sale}: {damage}"))),
        };
        let order_id;
        let event = match &change {
            Change::Created(terms) => AuditedEvent::Created(terms),
            Change::Changed(terms) => AuditedEvent::Changed(terms),
            Change::Order(order, state, _) => {
                order_id = order_id::to_text(*order);
                AuditedEvent::Order {
                    order_id: order_id.as_str(),
                    state: *state,
                }
            }
        };
        each(Ok(&EventFacts {
            sale: &sale,
            sequence: entry.sequence,
            event,
        }));
    })
}

/// The state that the feed last told of an order. Reads all entries of its sale, so it is only for
/// what is rare.
pub(crate) fn told_state(
    conn: &Connection,
    sale: u32,
    order: u128,
) -> rusqlite::Result<OrderState> {
    let query = "SELECT type FROM seckill_event WHERE sale = ?1 AND order_id = ?2 \
         ORDER BY sequence DESC LIMIT 1";
    let mut statement = conn.prepare_cached(query)?;
    let mut types = statement.query_map(params![sale, order.to_be_bytes()], |row| {
        row.get::<_, String>(0)
    })?;
    let told = types.next().transpose()?;
    Ok(told
        .and_then(|name| state_of(&name))
        .unwrap_or(OrderState::Reserved))
}
