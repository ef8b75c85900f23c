//! Writes and reads the feed. A claim's own rows stand for its event; all other events have rows in
//! `seckill_event`. Some claims have an entry there as well, so that a reader finds their rows.

use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, Row, params};
use seckill_sale::{
    AuditedEvent, Event, EventFacts, EventKind, IdempotencyKey, ItemId, ORDER_UNITS_MAX,
    OrderState, OrderUnit, OrderUnits, Sale, SaleId,
};

use super::checksum::Checksum;
use super::rows::{self, LINE_COLUMNS, StoredLine};
use crate::order_id;

/// A claim gets an entry in `seckill_event` if its row is farther than this from the one that the
/// sale's latest entry points to. So a reader finds the next claim of a sale within so many rows.
pub(crate) const POINTER_ROWS: i64 = 32_768;

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
    Order(u128, OrderState),
}

impl Kind<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Pointer => RESERVED,
            Self::Created(_) => SALE_CREATED,
            Self::Changed(_) => SALE_CHANGED,
            Self::Order(_, OrderState::Paid) => "order.paid",
            Self::Order(_, OrderState::Expired) => "order.expired",
            Self::Order(_, OrderState::Cancelled) => "order.cancelled",
            // A state that no change leads to.
            Self::Order(_, OrderState::Reserved) => "order.returned",
        }
    }
}

/// The state that an event of this type sets.
fn state_of(name: &str) -> Option<OrderState> {
    let state = name.strip_prefix("order.")?;
    OrderState::from_name(state).filter(|state| *state != OrderState::Reserved)
}

pub(crate) fn insert(conn: &Connection, event: &EventRow<'_>) -> rusqlite::Result<()> {
    let insert = "INSERT INTO seckill_event (sale, sequence, row_id, date, type, order_id, terms, checksum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let terms = match event.kind {
        Kind::Created(sale) | Kind::Changed(sale) => Some(to_json(sale)?),
        Kind::Pointer | Kind::Order(..) => None,
    };
    let order_id = match event.kind {
        Kind::Order(order, _) => Some(order.to_be_bytes()),
        _ => None,
    };
    let stored = StoredEvent {
        sequence: event.sequence as i64,
        row_id: event.row_id,
        date_ms: event.date_ms,
        name: event.kind.name().to_owned(),
        order_id,
        terms,
    };
    conn.prepare_cached(insert)?.execute(params![
        event.sale,
        stored.sequence,
        stored.row_id,
        stored.date_ms,
        stored.name,
        stored.order_id,
        stored.terms,
        stored.checksum(event.sale),
    ])?;
    Ok(())
}

fn to_json(sale: &Sale) -> rusqlite::Result<String> {
    serde_json::to_string(sale)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

struct StoredEvent {
    sequence: i64,
    row_id: i64,
    date_ms: i64,
    name: String,
    order_id: Option<[u8; 16]>,
    terms: Option<String>,
}

const EVENT_COLUMNS: &str = "sequence, row_id, date, type, order_id, terms, checksum, sale";

impl StoredEvent {
    /// Covers every column.
    fn checksum(&self, sale: u32) -> i64 {
        let mut sum = Checksum::new();
        sum.bytes(&sale.to_le_bytes());
        sum.bytes(&self.sequence.to_le_bytes());
        sum.bytes(&self.row_id.to_le_bytes());
        sum.bytes(&self.date_ms.to_le_bytes());
        sum.text(&self.name);
        sum.bytes(&self.order_id.unwrap_or_default());
        sum.optional_text(self.terms.as_deref());
        sum.finish()
    }

    /// Reads a row of [`EVENT_COLUMNS`]. The inner error describes the damage.
    fn read(row: &Row<'_>) -> rusqlite::Result<Result<Self, String>> {
        let event = Self {
            sequence: row.get(0)?,
            row_id: row.get(1)?,
            date_ms: row.get(2)?,
            name: row.get(3)?,
            order_id: row.get(4)?,
            terms: row.get(5)?,
        };
        if row.get::<_, i64>(6)? == event.checksum(row.get(7)?) {
            return Ok(Ok(event));
        }
        let damage = "was modified: its checksum differs";
        Ok(Err(format!("event {} {damage}", event.sequence)))
    }

    fn is_pointer(&self) -> bool {
        self.name == RESERVED
    }

    fn sale(&self) -> Result<Sale, String> {
        let terms = self.terms.as_deref().unwrap_or_default();
        serde_json::from_str(terms)
            .map_err(|error| format!("event {}: its terms: {error}", self.sequence))
    }
}

/// The last number of each sale's feed that `seckill_event` has, and the row that it points to.
pub(crate) fn latest(conn: &Connection) -> rusqlite::Result<Vec<(u32, u64, i64)>> {
    let query = "SELECT sale, max(sequence), max(row_id) FROM seckill_event GROUP BY sale";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?));
    conn.prepare(query)?.query_map((), read)?.collect()
}

/// Calls `each` with every event that has no row of its own, by sale and number. An inner error
/// describes the damage of a row.
pub(crate) fn each_event(
    conn: &Connection,
    sales: &dyn Fn(u32) -> Option<String>,
    mut each: impl FnMut(Result<&EventFacts<'_>, String>),
) -> rusqlite::Result<()> {
    let query = format!("SELECT {EVENT_COLUMNS} FROM seckill_event ORDER BY sale, sequence");
    let mut statement = conn.prepare(&query)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let number: u32 = row.get(7)?;
        let name = sales(number).unwrap_or_else(|| format!("number {number}"));
        let event = match StoredEvent::read(row)? {
            Ok(event) if event.is_pointer() => continue,
            Ok(event) => event,
            Err(damage) => {
                each(Err(format!("sale {name}: {damage}")));
                continue;
            }
        };
        let order_id = event
            .order_id
            .map(|id| order_id::to_text(u128::from_be_bytes(id)));
        let terms;
        let audited = match (&order_id, state_of(&event.name)) {
            (Some(order_id), Some(state)) => AuditedEvent::Order {
                order_id: order_id.as_str(),
                state,
            },
            _ => match event.sale() {
                Ok(sale) => {
                    terms = sale;
                    AuditedEvent::Terms(&terms)
                }
                Err(damage) => {
                    each(Err(format!("sale {name}: {damage}")));
                    continue;
                }
            },
        };
        each(Ok(&EventFacts {
            sale: &name,
            sequence: event.sequence as u64,
            event: audited,
        }));
    }
    Ok(())
}

/// A position in a sale's feed: a number, and a row that no later claim of the sale precedes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) sequence: u64,
    pub(crate) row_id: i64,
}

/// Events of a sale, and where the next page begins.
pub(crate) struct Page {
    pub(crate) events: Vec<Event>,
    pub(crate) end: Position,
}

/// Up to `max` events of a sale after number `after`. `known` is the end of an earlier page, which
/// saves finding the rows. The inner error describes the damage of a row.
pub(crate) fn page(
    conn: &Connection,
    sale: (u32, &Sale),
    after: u64,
    known: Option<Position>,
    max: usize,
) -> rusqlite::Result<Result<Page, String>> {
    // One transaction, so that no change comes between its two queries.
    let transaction = conn.unchecked_transaction()?;
    let mut start = position(conn, sale.0, after)?.unwrap_or(Position {
        sequence: 0,
        row_id: 0,
    });
    if let Some(known) = known.filter(|known| (start.sequence..=after).contains(&known.sequence)) {
        start = known;
    }
    let mut reading = Reading {
        conn,
        number: sale.0,
        sale: sale.1,
        events: Vec::new(),
        latest: after,
        row_id: start.row_id,
        max,
    };
    let read = reading.read()?;
    transaction.commit()?;
    Ok(match read {
        Ok(()) => Ok(Page {
            end: Position {
                sequence: reading.latest,
                row_id: reading.row_id,
            },
            events: reading.events,
        }),
        Err(damage) => Err(format!("sale {}: {damage}", sale.1.id)),
    })
}

/// The last entry up to number `after` + 1.
fn position(conn: &Connection, sale: u32, after: u64) -> rusqlite::Result<Option<Position>> {
    let query = "SELECT sequence, row_id FROM seckill_event WHERE sale = ?1 AND sequence <= ?2 \
         ORDER BY sequence DESC LIMIT 1";
    let next = i64::try_from(after.saturating_add(1)).unwrap_or(i64::MAX);
    let read = |row: &Row<'_>| {
        Ok(Position {
            sequence: row.get::<_, i64>(0)? as u64,
            row_id: row.get(1)?,
        })
    };
    let mut statement = conn.prepare_cached(query)?;
    statement.query_row(params![sale, next], read).optional()
}

struct Reading<'a> {
    conn: &'a Connection,
    number: u32,
    sale: &'a Sale,
    events: Vec<Event>,
    /// The number of the latest event that was read or is not wanted.
    latest: u64,
    /// Later claims have no smaller row id.
    row_id: i64,
    max: usize,
}

type Checked = rusqlite::Result<Result<(), String>>;

impl Reading<'_> {
    fn is_full(&self) -> bool {
        self.events.len() >= self.max
    }

    /// Merges the entries of `seckill_event` with the claims between them.
    fn read(&mut self) -> Checked {
        let after = i64::try_from(self.latest).unwrap_or(i64::MAX);
        let query = format!(
            "SELECT {EVENT_COLUMNS} FROM seckill_event WHERE sale = ?1 AND sequence > ?2 \
             ORDER BY sequence LIMIT ?3"
        );
        let entries: Vec<Result<StoredEvent, String>> = self
            .conn
            .prepare_cached(&query)?
            .query_map(
                params![self.number, after, self.max as i64],
                StoredEvent::read,
            )?
            .collect::<rusqlite::Result<_>>()?;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(damage) => return Ok(Err(damage)),
            };
            let sequence = entry.sequence as u64;
            if self.latest + 1 < sequence
                && let Err(damage) = self.claims(entry.row_id, sequence)?
            {
                return Ok(Err(damage));
            }
            if self.is_full() {
                return Ok(Ok(()));
            }
            self.row_id = self.row_id.max(entry.row_id);
            if entry.is_pointer() {
                continue;
            }
            if let Err(damage) = self.push_entry(&entry)? {
                return Ok(Err(damage));
            }
        }
        if self.is_full() {
            return Ok(Ok(()));
        }
        // The lines of the last claim may lie beyond its first.
        let last_row = self.row_id + POINTER_ROWS + i64::from(ORDER_UNITS_MAX);
        self.claims(last_row, u64::MAX)
    }

    /// Reads the claims up to this row, and before number `end`.
    fn claims(&mut self, last_row: i64, end: u64) -> Checked {
        let query = format!(
            "SELECT {LINE_COLUMNS} FROM seckill AS line \
             WHERE line.id >= ?1 AND line.id <= ?2 AND line.sale = ?3 ORDER BY line.id"
        );
        let mut statement = self.conn.prepare_cached(&query)?;
        let mut rows = statement.query(params![self.row_id, last_row, self.number])?;
        while let Some(row) = rows.next()? {
            match self.line(&rows::stored(row)?, end) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(damage) => return Ok(Err(damage)),
            }
        }
        Ok(Ok(()))
    }

    /// Adds one line of a claim, to the event of its first line.
    fn line(&mut self, line: &StoredLine<'_>, end: u64) -> Result<ControlFlow<()>, String> {
        let row = &line.row;
        if let Some(damage) = line.integrity.damage() {
            return Err(line.damaged(&damage));
        }
        let unit = |sale: &Sale| {
            let item = sale.items.get(row.claimed.item.index());
            item.map_or_else(
                || Err(line.damaged(&"its item does not exist")),
                |item| Ok((item.id.clone(), row.claimed.unit)),
            )
        };
        let (item, number): (ItemId, _) = unit(self.sale)?;
        let unit = OrderUnit { item, unit: number };
        if let Some(sequence) = row.sequence {
            if sequence <= self.latest {
                return Ok(ControlFlow::Continue(()));
            }
            if self.is_full() || sequence >= end {
                return Ok(ControlFlow::Break(()));
            }
            let key = row.key.map(IdempotencyKey::new).transpose();
            self.push(Event {
                sale: self.sale.id.clone(),
                sequence,
                at_ms: row.date_ms,
                kind: EventKind::OrderReserved {
                    order_id: order_id::to_text(row.order_id),
                    buyer: rows::buyer(row.buyer).map_err(|error| line.damaged(&error))?,
                    idempotency_key: key.map_err(|error| line.damaged(&error))?,
                    units: [unit].into_iter().collect(),
                },
            });
            self.row_id = line.id;
            return Ok(ControlFlow::Continue(()));
        }
        let id = order_id::to_text(row.order_id);
        if let Some(Event {
            kind: EventKind::OrderReserved {
                order_id, units, ..
            },
            ..
        }) = self.events.last_mut()
            && *order_id == id
        {
            units.push(unit);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn push(&mut self, event: Event) {
        self.latest = event.sequence;
        self.events.push(event);
    }

    fn push_entry(&mut self, entry: &StoredEvent) -> Checked {
        let kind = match (entry.order_id, state_of(&entry.name)) {
            (Some(order), Some(state)) => {
                let order = u128::from_be_bytes(order);
                let units = match self.units(order)? {
                    Ok(units) => units,
                    Err(damage) => return Ok(Err(damage)),
                };
                EventKind::OrderChanged {
                    order_id: order_id::to_text(order),
                    state,
                    units,
                }
            }
            _ => match entry.sale() {
                Ok(sale) if entry.name == SALE_CREATED => EventKind::SaleCreated(Box::new(sale)),
                Ok(sale) => EventKind::SaleChanged(Box::new(sale)),
                Err(damage) => return Ok(Err(damage)),
            },
        };
        self.push(Event {
            sale: SaleId::clone(&self.sale.id),
            sequence: entry.sequence as u64,
            at_ms: entry.date_ms,
            kind,
        });
        Ok(Ok(()))
    }

    fn units(&self, order: u128) -> rusqlite::Result<Result<OrderUnits, String>> {
        let found = rows::order_by_id(self.conn, order)?;
        Ok(match found {
            Some(found) => found.map(|stored| stored.order.units),
            None => Err(format!("order {} has no rows", order_id::to_text(order))),
        })
    }
}
