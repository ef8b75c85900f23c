//! Rebuilds memory from the file: at startup, and whenever memory and file may differ.
//! It must not guess: it refuses an inconsistent file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use seckill_sale::{Sale, StockRebuild};

use crate::file::FileError;
use crate::file::meta;
use crate::file::rows::{self, StoredRow};
use crate::file::sales;
use crate::ledger::{SaleLedger, SaleLedgers};
use crate::memory::{Digester, Memory, StoredClaim};
use crate::order_id;

/// The maximum number of missing rows that an error lists.
const MISSING_LISTED_MAX: usize = 20;

/// The content of a file.
pub(crate) struct Loaded {
    pub(crate) memory: Memory,
    pub(crate) ledgers: SaleLedgers,
    pub(crate) orders: u64,
}

struct Rebuilding {
    sale: Sale,
    stock: StockRebuild,
    /// Active orders of each named buyer, by digest.
    held: HashMap<u128, u32>,
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
            held: HashMap::new(),
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
    let orders = meta::read(conn)?.orders;
    ids.compare(orders)?;
    if orders < orders_min {
        return Err(LoadError::OrdersLost(format!(
            "it has {orders} orders, but this service has stored {orders_min}"
        )));
    }
    let mut ledgers = SaleLedgers::with_capacity(sales.len());
    let published = memory.sales.pin();
    for Rebuilding { sale, stock, held } in sales {
        let damaged = |fault| LoadError::Damaged(format!("sale {}: {fault}", sale.id));
        let stock = stock.finish().map_err(damaged)?;
        let ledger = SaleLedger::new(sale, stock, held.into_values());
        published.insert(ledger.sale.id.clone(), Arc::clone(&ledger.memory));
        ledgers.insert(ledger.sale.id.clone(), ledger);
    }
    drop(published);
    Ok(Loaded {
        memory,
        ledgers,
        orders,
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

    /// Describes the damage if the number of rows is not the number of orders that were stored.
    pub(crate) fn damage(&self, stored: u64) -> Option<String> {
        let rows = self.rows;
        if rows == stored {
            return None;
        }
        if rows > stored {
            return Some(format!(
                "it has {rows} orders, but this program stored {stored}: another program added rows"
            ));
        }
        let lost = stored - rows;
        // Rows that were deleted from the end leave no gap.
        let from_end = (self.latest + 1..).take(MISSING_LISTED_MAX);
        let named = self.missing.iter().copied().chain(from_end);
        let ids: Vec<String> = named
            .take(MISSING_LISTED_MAX.min(lost as usize))
            .map(|id| id.to_string())
            .collect();
        let more = if lost as usize > ids.len() {
            ", …"
        } else {
            ""
        };
        Some(format!(
            "{lost} of {stored} rows were deleted: row ids {}{more}",
            ids.join(", ")
        ))
    }

    fn compare(&self, stored: u64) -> Result<(), LoadError> {
        match self.damage(stored) {
            None => Ok(()),
            Some(detail) if self.rows < stored => Err(LoadError::OrdersLost(detail)),
            Some(detail) => Err(LoadError::Damaged(detail)),
        }
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
    let mut holding = memory.holding(digest);
    holding.held += 1;
    if let Some(slot) = row.slot {
        holding.slots = holding
            .slots
            .with(slot)
            .ok_or_else(|| damaged("its buyer has another order in the same slot"))?;
    }
    memory.holdings.pin().insert(digest, holding);
    *rebuilding.held.entry(digest).or_default() += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(ids: &[i64], stored: u64) -> Option<String> {
        let mut seen = RowIds::default();
        ids.iter().for_each(|&id| seen.see(id));
        seen.damage(stored)
    }

    #[test]
    fn deleted_rows_are_listed() {
        assert_eq!(damage(&[1, 2, 3], 3), None);
        assert_eq!(damage(&[], 0), None);
        let middle = damage(&[1, 3, 4], 4).unwrap();
        assert!(
            middle.ends_with("1 of 4 rows were deleted: row ids 2"),
            "{middle}"
        );
        let both = damage(&[1, 3], 4).unwrap();
        assert!(both.ends_with("row ids 2, 4"), "{both}");
        let all = damage(&[], 100).unwrap();
        assert!(all.ends_with("19, 20, …"), "{all}");
        let added = damage(&[1, 2], 1).unwrap();
        assert!(added.contains("another program added rows"), "{added}");
        // A gap is not reported again once an operator has set the count.
        assert_eq!(damage(&[1, 3], 2), None);
    }
}
