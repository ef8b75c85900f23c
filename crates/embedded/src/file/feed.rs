//! Reads the feed of a sale page by page: merges the entries of `seckill_event` with the rows of the
//! claims between them. It returns no event before it has returned all earlier ones.

use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, params};
use seckill_sale::{Event, EventKind, IdempotencyKey, ItemUnits, ORDER_UNITS_MAX, OrderId, Sale};

use super::events::{Change, ENTRY_COLUMNS, Entry, POINTER_ROWS};
use super::meta;
use super::rows::{self, LINE_COLUMNS, StoredLine};
use crate::order_id;

/// A position in a sale's feed: a number, and a row that no later claim of the sale precedes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) sequence: u64,
    row_id: i64,
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
    // One transaction, so that no change comes between its queries.
    let transaction = conn.unchecked_transaction()?;
    let page = read_page(conn, sale, after, known, max);
    transaction.commit()?;
    let named = |damage| format!("sale {}: {damage}", sale.1.id);
    match page {
        Ok(page) => Ok(Ok(page)),
        Err(ReadError::Damaged(damage)) => Ok(Err(named(damage))),
        Err(ReadError::Sqlite(error)) => Err(error),
    }
}

enum ReadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<String> for ReadError {
    fn from(damage: String) -> Self {
        Self::Damaged(damage)
    }
}

fn read_page(
    conn: &Connection,
    (number, sale): (u32, &Sale),
    after: u64,
    known: Option<Position>,
    max: usize,
) -> Result<Page, ReadError> {
    let mut start = start(conn, number, after)?;
    if let Some(known) = known.filter(|known| (start.sequence..=after).contains(&known.sequence)) {
        start = known;
    }
    let mut reading = Reading {
        conn,
        number,
        sale,
        has_gaps: meta::row_count(conn)?.deleted > 0,
        events: Vec::new(),
        open_lines: 0,
        latest: after,
        row_id: start.row_id,
        max,
    };
    reading.read()?;
    Ok(Page {
        end: Position {
            sequence: reading.latest,
            row_id: reading.row_id,
        },
        events: reading.events,
    })
}

/// The last entry up to number `after` + 1.
fn start(conn: &Connection, sale: u32, after: u64) -> Result<Position, ReadError> {
    let query = format!(
        "SELECT {ENTRY_COLUMNS} FROM seckill_event WHERE sale = ?1 AND sequence <= ?2 \
         ORDER BY sequence DESC LIMIT 1"
    );
    let next = i64::try_from(after.saturating_add(1)).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(&query)?;
    let entry = statement.query_row(params![sale, next], Entry::read);
    let entry = entry.optional()?.transpose()?;
    Ok(entry.map_or(
        Position {
            sequence: 0,
            row_id: 0,
        },
        |entry| Position {
            sequence: entry.sequence,
            row_id: entry.row_id,
        },
    ))
}

struct Reading<'a> {
    conn: &'a Connection,
    number: u32,
    sale: &'a Sale,
    /// Rows were deleted, and an operator has accepted that.
    has_gaps: bool,
    events: Vec<Event>,
    /// Lines of the last event that have not been read yet.
    open_lines: u32,
    /// The number of the latest event that was read or is not wanted.
    latest: u64,
    /// Later claims have no smaller row id.
    row_id: i64,
    max: usize,
}

impl Reading<'_> {
    fn is_full(&self) -> bool {
        self.events.len() >= self.max
    }

    fn read(&mut self) -> Result<(), ReadError> {
        let after = i64::try_from(self.latest).unwrap_or(i64::MAX);
        let query = format!(
            "SELECT {ENTRY_COLUMNS} FROM seckill_event WHERE sale = ?1 AND sequence > ?2 \
             ORDER BY sequence LIMIT ?3"
        );
        // One more than fits shows where the claims after the last one end.
        let count = self.max as i64 + 1;
        let entries: Vec<Result<Entry, String>> = self
            .conn
            .prepare_cached(&query)?
            .query_map(params![self.number, after, count], Entry::read)?
            .collect::<rusqlite::Result<_>>()?;
        for entry in entries {
            let entry = entry?;
            self.claims(entry.row_id, entry.sequence)?;
            if self.is_full() {
                return Ok(());
            }
            self.row_id = self.row_id.max(entry.row_id);
            if !entry.is_pointer() {
                let event = self.event(&entry)?;
                self.push(event)?;
            }
        }
        self.claims(i64::MAX, u64::MAX)
    }

    /// Reads the claims up to this row and before number `end`.
    fn claims(&mut self, last_row: i64, end: u64) -> Result<(), ReadError> {
        if self.latest.saturating_add(1) >= end {
            return Ok(());
        }
        // The next claim is not farther away; the lines of the last one may be.
        let near = self
            .row_id
            .saturating_add(POINTER_ROWS + i64::from(ORDER_UNITS_MAX));
        let query = format!(
            "SELECT {LINE_COLUMNS} FROM seckill AS line \
             WHERE line.id >= ?1 AND line.id <= ?2 AND line.sale = ?3 ORDER BY line.id"
        );
        let mut statement = self.conn.prepare_cached(&query)?;
        let bounds = params![self.row_id, near.min(last_row), self.number];
        let mut rows = statement.query(bounds)?;
        while let Some(row) = rows.next()? {
            if self.line(&rows::stored(row)??, end)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Adds one line of a claim, to the event of its first line.
    fn line(&mut self, line: &StoredLine<'_>, end: u64) -> Result<ControlFlow<()>, ReadError> {
        let row = &line.row;
        if let Some(damage) = line.integrity.damage() {
            return Err(line.damaged(&damage).into());
        }
        let units: ItemUnits = [row.claimed.item_unit()].into_iter().collect();
        let units = self.sale.order_units(units);
        let units = units.ok_or_else(|| line.damaged(&"its item does not exist"))?;
        if let Some(sequence) = row.sequence {
            if sequence <= self.latest {
                return Ok(ControlFlow::Continue(()));
            }
            if self.is_full() || sequence >= end {
                return Ok(ControlFlow::Break(()));
            }
            let key = row.key.map(IdempotencyKey::new).transpose();
            let kind = EventKind::OrderReserved {
                order_id: order_id::to_text(row.order_id),
                buyer: rows::buyer(row.buyer).map_err(|error| line.damaged(&error))?,
                idempotency_key: key.map_err(|error| line.damaged(&error))?,
                units,
            };
            self.row_id = line.id;
            self.push(Event {
                sale: self.sale.id.clone(),
                sequence,
                at_ms: row.date_ms,
                kind,
            })?;
            self.open_lines = row.lines.saturating_sub(1);
        } else if self.open_lines > 0 {
            self.add(&order_id::to_text(row.order_id), units);
        }
        let is_last = self.open_lines == 0 && self.latest.saturating_add(1) >= end;
        Ok(if is_last {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }

    fn add(&mut self, order: &OrderId, more: seckill_sale::OrderUnits) {
        if let Some(Event {
            kind: EventKind::OrderReserved {
                order_id, units, ..
            },
            ..
        }) = self.events.last_mut()
            && order_id == order
        {
            units.extend(more);
            self.open_lines -= 1;
        }
    }

    fn push(&mut self, event: Event) -> Result<(), ReadError> {
        let expected = self.latest + 1;
        if event.sequence != expected && !self.has_gaps {
            return Err(format!("event {expected} is missing").into());
        }
        self.latest = event.sequence;
        self.events.push(event);
        Ok(())
    }

    fn event(&self, entry: &Entry) -> Result<Event, ReadError> {
        let kind = match entry.change()? {
            Change::Created(sale) => EventKind::SaleCreated(Box::new(sale)),
            Change::Changed(sale) => EventKind::SaleChanged(Box::new(sale)),
            Change::Order(order, state, units) => {
                let units = self.sale.order_units(units);
                let sequence = entry.sequence;
                EventKind::OrderChanged {
                    order_id: order_id::to_text(order),
                    state,
                    units: units
                        .ok_or_else(|| format!("event {sequence}: its item does not exist"))?,
                }
            }
        };
        Ok(Event {
            sale: self.sale.id.clone(),
            sequence: entry.sequence,
            at_ms: entry.date_ms,
            kind,
        })
    }
}
