//! Rebuilds memory from the file: at startup, and whenever memory and file may differ.
//! It must not guess: it refuses an inconsistent file.

use std::path::Path;

use rusqlite::Connection;
use seckill_sale::{Digest, KeyedClaim, Ledger, ORDER_UNITS_MAX, OrderState, SaleRebuild};

use crate::file::meta::{self, RowCount};
use crate::file::rows::{self, StoredLine};
use crate::file::{FileError, events, sales};
use crate::memory::{Digester, Memory};

/// The maximum number of missing rows that an error lists.
const MISSING_LISTED_MAX: usize = 20;

/// The content of a file.
pub(crate) struct Loaded {
    pub(crate) memory: Memory,
    pub(crate) ledger: Ledger<u128>,
    pub(crate) counts: FileCounts,
    /// The number of rows that the file itself records.
    pub(crate) recorded_rows: u64,
    /// The row that the latest entry of each sale's feed points to, by sale.
    pub(crate) pointers: Vec<i64>,
    /// Orders whose state an operator has edited.
    pub(crate) edited: Vec<u128>,
}

/// How many rows and orders the file has, and the id of the latest row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileCounts {
    pub(crate) rows: u64,
    pub(crate) orders: u64,
    pub(crate) latest_row: i64,
}

enum LoadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
    OrdersLost(String),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Reads the whole file in one pass over its rows. There must be at least `rows_min`, the number
/// that this process has stored.
pub(crate) fn load(
    conn: &Connection,
    path: &Path,
    digester: Digester,
    rows_min: u64,
) -> Result<Loaded, FileError> {
    let path = path.to_owned();
    read(conn, digester, rows_min).map_err(|error| match error {
        LoadError::Sqlite(error) => FileError::from_sqlite(&path, error),
        LoadError::Damaged(detail) => FileError::Damaged { path, detail },
        LoadError::OrdersLost(detail) => FileError::OrdersLost { path, detail },
    })
}

fn read(conn: &Connection, digester: Digester, rows_min: u64) -> Result<Loaded, LoadError> {
    let mut loading = Loading {
        memory: Memory::new(digester),
        sales: Vec::new(),
        order: None,
        key: None,
        orders: 0,
        edited: Vec::new(),
    };
    for (number, sale) in sales::all(conn)? {
        let sale = sale.map_err(LoadError::Damaged)?;
        loading.sales.push(SaleRebuild::new(sale));
        if number as usize != loading.sales.len() {
            let detail = format!("sale {} is missing", loading.sales.len());
            return Err(LoadError::Damaged(detail));
        }
    }
    let mut ids = RowIds::default();
    rows::each_line(conn, |id, line| {
        ids.see(id);
        loading.line(line.map_err(LoadError::Damaged)?)
    })?;
    loading.finish_order()?;
    let mut counts = meta::row_count(conn)?;
    let recorded_rows = counts.rows;
    counts.rows = counts.rows.max(rows_min);
    if let Some(detail) = ids.damage(&counts) {
        return Err(LoadError::OrdersLost(detail));
    }
    let (pointers, latest_entry) = loading.entries(conn)?;
    let mut ledgers = Vec::with_capacity(loading.sales.len());
    for sale in loading.sales {
        let id = sale.sale().id.clone();
        let damaged = |fault| LoadError::Damaged(format!("sale {id}: {fault}"));
        ledgers.push(sale.finish().map_err(damaged)?);
    }
    let ledger = Ledger::new(ledgers);
    loading.memory.fill(&ledger);
    Ok(Loaded {
        memory: loading.memory,
        ledger,
        counts: FileCounts {
            rows: ids.rows(),
            orders: loading.orders,
            // The row of a later claim must not lie before the entries of earlier events.
            latest_row: ids.latest.max(latest_entry),
        },
        recorded_rows,
        pointers,
        edited: loading.edited,
    })
}

/// The order whose lines are being read: they are consecutive rows.
struct OpenOrder {
    order_id: u128,
    row_id: i64,
    line: u32,
    lines: u32,
    state: OrderState,
}

struct Loading {
    memory: Memory,
    sales: Vec<SaleRebuild>,
    order: Option<OpenOrder>,
    /// The digest of its key, if it has several lines.
    key: Option<Digest>,
    orders: u64,
    edited: Vec<u128>,
}

impl Loading {
    fn line(&mut self, line: &StoredLine<'_>) -> Result<(), LoadError> {
        let damaged = |detail: &dyn std::fmt::Display| LoadError::Damaged(line.damaged(detail));
        let row = &line.row;
        if let Some(damage) = line.integrity.damage() {
            return Err(damaged(&damage));
        }
        let state = line
            .state
            .ok_or_else(|| damaged(&"its state is not a valid order state"))?;
        self.check_lines(line, state)?;
        let missing = || damaged(&format!("its sale {} does not exist", row.sale));
        let index = row.sale.wrapping_sub(1) as usize;
        let sale = self.sales.get_mut(index).ok_or_else(missing)?;
        let digester = &self.memory.digester;
        let buyer = (!row.buyer.is_empty() && state.is_active())
            .then(|| digester.buyer(&sale.sale().id, row.buyer));
        let seen = sale.unit(row.claimed, state.is_active(), buyer);
        seen.map_err(|fault| damaged(&fault))?;
        if row.line > 1 {
            return self.add_to_key(line);
        }
        self.orders += 1;
        let sequence = row.sequence.ok_or_else(|| damaged(&"it has no event"))?;
        sale.event(sequence);
        if line.is_edited {
            self.edited.push(row.order_id);
        }
        if let Some(key) = row.key {
            let claim = KeyedClaim {
                order_id: row.order_id,
                units: [row.claimed.item_unit()].into_iter().collect(),
                fingerprint: row.fingerprint.unwrap_or(0),
                state,
            };
            let digest = digester.key(&sale.sale().id, row.buyer, key);
            if self.memory.claims.pin().insert(digest, claim).is_some() {
                return Err(damaged(&"its buyer has another claim with the same key"));
            }
            self.key = (row.lines > 1).then_some(digest);
        }
        Ok(())
    }

    /// Reads the entries of the feed. Returns the row that the latest one of each sale points to, and
    /// the highest of them.
    fn entries(&mut self, conn: &Connection) -> Result<(Vec<i64>, i64), LoadError> {
        let mut pointers = vec![0; self.sales.len()];
        let (mut latest, mut damage) = (0, None);
        events::each_entry(conn, |entry| {
            let seen = entry.and_then(|entry| {
                let index = entry.sale.wrapping_sub(1) as usize;
                let missing = || {
                    format!(
                        "an event belongs to sale {}, which does not exist",
                        entry.sale
                    )
                };
                let sale = self.sales.get_mut(index).ok_or_else(missing)?;
                sale.event(entry.sequence);
                // Entries come by number.
                pointers[index] = entry.row_id;
                latest = latest.max(entry.row_id);
                Ok(())
            });
            damage = damage.take().or(seen.err());
        })?;
        match damage {
            Some(damage) => Err(LoadError::Damaged(damage)),
            None => Ok((pointers, latest)),
        }
    }

    /// Adds a further unit to the claim of the order's key.
    fn add_to_key(&self, line: &StoredLine<'_>) -> Result<(), LoadError> {
        if let Some(digest) = self.key {
            let unit = line.row.claimed.item_unit();
            self.memory.claims.pin().update(digest, |claim| {
                let mut claim = claim.clone();
                claim.units.push(unit);
                claim
            });
        }
        Ok(())
    }

    /// The rows of an order are consecutive and complete, and have the same state.
    fn check_lines(&mut self, line: &StoredLine<'_>, state: OrderState) -> Result<(), LoadError> {
        let damaged = |detail: &dyn std::fmt::Display| LoadError::Damaged(line.damaged(detail));
        let row = &line.row;
        if row.lines == 0 || row.lines > ORDER_UNITS_MAX || row.line > row.lines {
            let detail = format!("it is line {} of {}", row.line, row.lines);
            return Err(damaged(&detail));
        }
        if row.line == 1 {
            self.finish_order()?;
            self.key = None;
            self.order = (row.lines > 1).then_some(OpenOrder {
                order_id: row.order_id,
                row_id: line.id,
                line: 1,
                lines: row.lines,
                state,
            });
            return Ok(());
        }
        let is_next = |order: &&mut OpenOrder| {
            (order.order_id, order.line + 1, order.lines) == (row.order_id, row.line, row.lines)
        };
        let Some(order) = self.order.as_mut().filter(is_next) else {
            return Err(damaged(&"the lines before it are missing"));
        };
        if order.state != state {
            return Err(damaged(&"the lines of its order are in different states"));
        }
        order.line = row.line;
        Ok(())
    }

    fn finish_order(&mut self) -> Result<(), LoadError> {
        match self.order.take() {
            Some(order) if order.line < order.lines => Err(LoadError::Damaged(format!(
                "row {}: its order has {} of its {} lines",
                order.row_id, order.line, order.lines
            ))),
            _ => Ok(()),
        }
    }
}

/// The ids of the rows, which increase by one from 1 on, unless rows were deleted.
#[derive(Debug, Default)]
pub(crate) struct RowIds {
    rows: u64,
    latest: i64,
    missing: Vec<i64>,
}

impl RowIds {
    /// Ids must be seen in ascending order.
    pub(crate) fn see(&mut self, id: i64) {
        let named = MISSING_LISTED_MAX.saturating_sub(self.missing.len());
        self.missing
            .extend((self.latest.saturating_add(1)..id).take(named));
        self.rows += 1;
        self.latest = id;
    }

    /// Describes the loss if rows were deleted.
    pub(crate) fn damage(&self, stored: &RowCount) -> Option<String> {
        let gaps = (self.latest.max(0) as u64).saturating_sub(self.rows);
        let from_middle = gaps.saturating_sub(stored.deleted);
        let lost = from_middle.max(stored.rows.saturating_sub(self.rows));
        if lost == 0 {
            return None;
        }
        // What was deleted from the end left no gap.
        let middle = self.missing.iter().copied().filter(|_| from_middle > 0);
        let end = (self.latest + 1..).take(MISSING_LISTED_MAX);
        let ids: Vec<String> = middle
            .chain(end)
            .take(MISSING_LISTED_MAX.min(lost as usize))
            .map(|id| id.to_string())
            .collect();
        let more = if lost as usize > ids.len() {
            ", …"
        } else {
            ""
        };
        Some(format!(
            "{lost} of {} rows were deleted: row ids {}{more}",
            self.rows + lost,
            ids.join(", ")
        ))
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(ids: &[i64], rows: u64, deleted: u64) -> Option<String> {
        let mut seen = RowIds::default();
        ids.iter().for_each(|&id| seen.see(id));
        seen.damage(&RowCount { rows, deleted })
    }

    #[test]
    fn deleted_rows_are_listed() {
        assert_eq!(damage(&[1, 2, 3], 3, 0), None);
        assert_eq!(damage(&[], 0, 0), None);
        // The recorded number may be older than the rows.
        assert_eq!(damage(&[1, 2, 3], 1, 0), None);
        let expected = Some("1 of 4 rows were deleted: row ids 2".to_owned());
        assert_eq!(damage(&[1, 3, 4], 4, 0), expected);
        assert_eq!(damage(&[1, 3, 4], 1, 0), expected);
        let end = damage(&[1, 2, 3], 5, 0).unwrap();
        assert!(
            end.ends_with("2 of 5 rows were deleted: row ids 4, 5"),
            "{end}"
        );
        let both = damage(&[1, 3], 4, 0).unwrap();
        assert!(both.ends_with("row ids 2, 4"), "{both}");
        let all = damage(&[], 100, 0).unwrap();
        assert!(all.ends_with("19, 20, …"), "{all}");
    }

    #[test]
    fn an_accepted_loss_is_not_reported_again() {
        assert_eq!(damage(&[1, 3], 2, 1), None);
        assert!(damage(&[1, 3, 5], 3, 1).is_some());
    }
}
