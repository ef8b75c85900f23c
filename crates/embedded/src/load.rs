//! Rebuilds memory from the file: at start, and whenever memory and file may have parted.
//! It refuses a file that contradicts itself rather than guess.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use seckill_sale::{Sale, SaleId, Slots, Stock, StockRebuild};

use crate::file::FileError;
use crate::file::rows::{self, StoredRow};
use crate::memory::{Digester, Memory, SaleMemory, StoredClaim};
use crate::order_id;

/// The writer's own state of one sale, ahead of memory while a batch is being stored.
#[derive(Debug)]
pub(crate) struct SaleLedger {
    pub(crate) sale: Sale,
    pub(crate) stock: Stock,
    pub(crate) memory: Arc<SaleMemory>,
}

impl SaleLedger {
    pub(crate) fn new(sale: Sale, stock: Stock) -> Self {
        let memory = Arc::new(SaleMemory::new(sale.clone(), stock.free()));
        Self {
            sale,
            stock,
            memory,
        }
    }
}

/// The ledgers of all sales.
pub(crate) type SaleLedgers = HashMap<SaleId, SaleLedger>;

/// What a file holds.
pub(crate) struct Loaded {
    pub(crate) memory: Memory,
    pub(crate) ledgers: SaleLedgers,
}

struct Rebuilding {
    sale: Sale,
    stock: StockRebuild,
}

enum LoadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Reads the whole file in one pass over its orders.
pub(crate) fn load(
    conn: &Connection,
    path: &Path,
    digester: Digester,
) -> Result<Loaded, FileError> {
    read(conn, digester).map_err(|error| match error {
        LoadError::Sqlite(error) => FileError::from_sqlite(path, error),
        LoadError::Damaged(detail) => FileError::Damaged {
            path: path.to_owned(),
            detail,
        },
    })
}

fn read(conn: &Connection, digester: Digester) -> Result<Loaded, LoadError> {
    let memory = Memory::new(digester);
    let mut sales: Vec<Rebuilding> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for sale in rows::sales(conn)? {
        let sale = sale.map_err(LoadError::Damaged)?;
        index.insert(sale.id.to_string(), sales.len());
        let stock = StockRebuild::new(sale.total);
        sales.push(Rebuilding { sale, stock });
    }
    // Rows of one sale mostly follow each other.
    let mut latest = 0;
    rows::each_order(conn, None, |stored| {
        let name = stored.row.sale;
        if sales
            .get(latest)
            .is_none_or(|at| at.sale.id.as_str() != name)
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
    let mut ledgers = SaleLedgers::with_capacity(sales.len());
    let published = memory.sales.pin();
    for Rebuilding { sale, stock } in sales {
        let damaged = |fault| LoadError::Damaged(format!("sale {}: {fault}", sale.id));
        let stock = stock.finish().map_err(damaged)?;
        let ledger = SaleLedger::new(sale, stock);
        published.insert(ledger.sale.id.clone(), Arc::clone(&ledger.memory));
        ledgers.insert(ledger.sale.id.clone(), ledger);
    }
    drop(published);
    Ok(Loaded { memory, ledgers })
}

fn take_row(memory: &Memory, of: &mut Rebuilding, stored: &StoredRow<'_>) -> Result<(), LoadError> {
    let damaged = |what: &str| LoadError::Damaged(format!("row {}: {what}", stored.id));
    let row = &stored.row;
    if !stored.intact {
        return Err(damaged("it is not what was written, its checksum differs"));
    }
    let state = stored
        .state
        .ok_or_else(|| damaged("its state is no state of an order"))?;
    let order = order_id::from_text(row.order_id).ok_or_else(|| damaged("its order_id is none"))?;
    let seen = of.stock.see(row.unit, state.is_active());
    seen.map_err(|fault| damaged(&fault.to_string()))?;
    if let Some(key) = row.key {
        let claim = StoredClaim {
            order,
            unit: row.unit,
            fingerprint: row.fingerprint.unwrap_or(0),
        };
        let digest = memory.digester.key(&of.sale.id, row.buyer, key);
        if memory.claims.pin().insert(digest, claim).is_some() {
            return Err(damaged("its buyer has another claim under the same key"));
        }
    }
    if let Some(slot) = row.slot.filter(|_| state.is_active()) {
        let digest = memory.digester.buyer(&of.sale.id, row.buyer);
        let slots = memory.slots_of(digest).with(slot);
        let slots = slots.ok_or_else(|| damaged("its buyer has another order in the same slot"))?;
        memory.slots.pin().insert(digest, slots);
    }
    Ok(())
}

/// The slots that the file gives each named buyer of a sale, by digest.
pub(crate) fn slots_of_sale(
    conn: &Connection,
    digester: Digester,
    sale: &SaleId,
) -> rusqlite::Result<Vec<(u128, Slots)>> {
    let mut found = Vec::new();
    rows::each_buyer(conn, sale, |buyer, slots| {
        found.push((digester.buyer(sale, buyer), slots));
    })?;
    Ok(found)
}
