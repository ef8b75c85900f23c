//! Rebuilds memory from the file: at startup, and whenever memory and file may differ.
//! It must not guess: it refuses an inconsistent file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use seckill_sale::{Sale, StockRebuild};

use crate::file::FileError;
use crate::file::meta::{self, Meta};
use crate::file::rows::{self, StoredRow};
use crate::file::sales;
use crate::ledger::{Holdings, SaleLedger, SaleLedgers};
use crate::memory::{Digester, Memory, StoredClaim};
use crate::order_id;

/// The maximum number of missing rows that an error lists.
const MISSING_LISTED_MAX: usize = 20;

/// The content of a file.
pub(crate) struct Loaded {
    pub(crate) memory: Memory,
    pub(crate) ledgers: SaleLedgers,
    pub(crate) orders: u64,
    /// The number of orders that the file itself records.
    pub(crate) recorded: u64,
}

struct Rebuilding {
    sale: Sale,
    stock: StockRebuild,
    /// Active orders of each named buyer, by digest.
    held: Holdings,
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

/// Reads the whole file in one pass over its orders. There must be at least `orders_min`, the
/// number that this process has stored.
pub(crate) fn load(
    conn: &Connection,
    path: &Path,
    digester: Digester,
    orders_min: u64,
) -> Result<Loaded, FileError> {
    let path = path.to_owned();
    read(conn, digester, orders_min).map_err(|error| match error {
        LoadError::Sqlite(error) => FileError::from_sqlite(&path, error),
        LoadError::Damaged(detail) => FileError::Damaged { path, detail },
        LoadError::OrdersLost(detail) => FileError::OrdersLost { path, detail },
    })
}

fn read(conn: &Connection, digester: Digester, orders_min: u64) -> Result<Loaded, LoadError> {
    let memory = Memory::new(digester);
    let mut sales: Vec<Rebuilding> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for sale in sales::all(conn)? {
        let sale = sale.map_err(LoadError::Damaged)?;
        index.insert(sale.id.to_string(), sales.len());
        sales.push(Rebuilding {
            stock: StockRebuild::new(sale.total),
            held: Holdings::default(),
            sale,
        });
    }
    // Consecutive rows mostly belong to the same sale.
    let mut latest = 0;
    let mut ids = RowIds::default();
    rows::each_order(conn, |stored| {
        ids.see(stored.id);
        let name = stored.row.sale;
        if sales
            .get(latest)
            .is_none_or(|rebuilding| rebuilding.sale.id.as_str() != name)
        {
            latest = *index.get(name).ok_or_else(|| {
                LoadError::Damaged(format!(
                    "row {}: its sale {name:?} does not exist",
                    stored.id
                ))
            })?;
        }
        take_row(&memory, &mut sales[latest], stored)
    })?;
    let mut stored = meta::read(conn)?;
    let recorded_orders = stored.orders;
    stored.orders = stored.orders.max(orders_min);
    if let Some(detail) = ids.damage(&stored) {
        return Err(LoadError::OrdersLost(detail));
    }
    let mut ledgers = SaleLedgers::with_capacity(sales.len());
    let published = memory.sales.pin();
    for Rebuilding { sale, stock, held } in sales {
        let damaged = |fault| LoadError::Damaged(format!("sale {}: {fault}", sale.id));
        let stock = stock.finish().map_err(damaged)?;
        if sale.buyer_limit.is_some() {
            let holdings = memory.holdings.pin();
            for (digest, holding) in &held {
                holdings.insert(*digest, *holding);
            }
        }
        let ledger = SaleLedger::new(sale, stock, held);
        published.insert(ledger.sale.id.clone(), Arc::clone(&ledger.memory));
        ledgers.insert(ledger.sale.id.clone(), ledger);
    }
    drop(published);
    Ok(Loaded {
        memory,
        ledgers,
        orders: ids.rows(),
        recorded: recorded_orders,
    })
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
    pub(crate) fn damage(&self, stored: &Meta) -> Option<String> {
        let gaps = (self.latest.max(0) as u64).saturating_sub(self.rows);
        let from_middle = gaps.saturating_sub(stored.deleted);
        let lost = from_middle.max(stored.orders.saturating_sub(self.rows));
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

fn take_row(
    memory: &Memory,
    rebuilding: &mut Rebuilding,
    stored: &StoredRow<'_>,
) -> Result<(), LoadError> {
    let damaged = |detail: &str| LoadError::Damaged(format!("row {}: {detail}", stored.id));
    let row = &stored.row;
    if let Some(damage) = stored.integrity.damage() {
        return Err(damaged(damage));
    }
    let state = stored
        .state
        .ok_or_else(|| damaged("its state is not a valid order state"))?;
    let order =
        order_id::from_text(row.order_id).ok_or_else(|| damaged("its order_id is not valid"))?;
    let seen = rebuilding.stock.see(row.unit, state.is_active());
    seen.map_err(|fault| damaged(&fault.to_string()))?;
    if let Some(key) = row.key {
        let claim = StoredClaim {
            order,
            unit: row.unit,
            fingerprint: row.fingerprint.unwrap_or(0),
            state,
        };
        let digest = memory.digester.key(&rebuilding.sale.id, row.buyer, key);
        if memory.claims.pin().insert(digest, claim).is_some() {
            return Err(damaged("its buyer has another claim with the same key"));
        }
    }
    if !state.is_active() || row.buyer.is_empty() {
        return Ok(());
    }
    let digest = memory.digester.buyer(&rebuilding.sale.id, row.buyer);
    let holding = rebuilding.held.entry(digest).or_default();
    holding.held += 1;
    if let Some(slot) = row.slot {
        holding.slots = holding
            .slots
            .with(slot)
            .ok_or_else(|| damaged("its buyer has another order in the same slot"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(ids: &[i64], orders: u64, deleted: u64) -> Option<String> {
        let mut seen = RowIds::default();
        ids.iter().for_each(|&id| seen.see(id));
        seen.damage(&Meta {
            orders,
            deleted,
            opened_in: None,
        })
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
