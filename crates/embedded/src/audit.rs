//! The audit of a file: its pages by SQLite's own check, its rows by the rules'.
//! It only reads, and needs no engine: a stopped service's file can be audited, and a running one's.

use std::path::Path;

use rusqlite::Connection;
use seckill_sale::{AuditReport, Auditor, HistoryEntry, Invariant, SaleId, Violation};

use crate::file::schema::{self, Tuning};
use crate::file::{DATABASE_FILE, FileError, rows};
use crate::load::load;
use crate::memory::Digester;

/// Audits the file in a data folder. What the gate offers is taken to be what a restart would rebuild from it.
pub fn audit_file(dir: &Path, history: &[HistoryEntry]) -> Result<AuditReport, FileError> {
    let tuning = Tuning {
        busy_wait_ms: 5_000,
        cache_kib: 65_536,
        checkpoint_pages: 0,
    };
    let path = dir.join(DATABASE_FILE);
    let conn = schema::open_reader(&path, tuning)?;
    let sqlite = |error| FileError::from_sqlite(&path, error);
    // One transaction: a running service goes on writing, the audit sees one moment.
    conn.execute_batch("BEGIN").map_err(sqlite)?;
    // A file that cannot be rebuilt from offers nothing to compare; its rows say why.
    let free = Digester::new()
        .ok()
        .and_then(|digester| load(&conn, &path, digester).ok());
    let free: Vec<_> = free.map_or_else(Vec::new, |loaded| {
        let ledgers = loaded.ledgers.into_values();
        ledgers
            .map(|ledger| (ledger.sale.id, ledger.stock.free()))
            .collect()
    });
    audit_view(&conn, &free, history).map_err(sqlite)
}

/// Audits what a reading transaction sees, against what the gate offered at the same moment.
pub(crate) fn audit_view(
    conn: &Connection,
    free: &[(SaleId, u32)],
    history: &[HistoryEntry],
) -> rusqlite::Result<AuditReport> {
    let mut outside = Vec::new();
    let mut sales = Vec::new();
    for sale in rows::sales(conn)? {
        match sale {
            Ok(sale) => sales.push(sale),
            Err(detail) => outside.push(damage(detail)),
        }
    }
    let mut auditor = Auditor::new(sales);
    for (sale, units) in free {
        auditor.gate_left(sale.as_str(), *units);
    }
    for yes in history {
        auditor.promise(yes.order_id.as_str(), yes.sale.as_deref(), yes.unit);
    }
    let read = rows::each_order(conn, None, |stored| {
        auditor.order(&stored.facts());
        Ok::<(), rusqlite::Error>(())
    });
    if let Err(error) = read {
        outside.push(damage(format!(
            "the orders cannot be read to their end: {error}"
        )));
    }
    outside.extend(damaged_pages(conn)?.into_iter().map(damage));
    let mut report = auditor.finish();
    outside
        .into_iter()
        .for_each(|violation| report.add(violation));
    Ok(report)
}

/// What SQLite's own check of every page and index finds.
fn damaged_pages(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare("PRAGMA integrity_check")?;
    let found = statement.query_map((), |row| row.get::<_, String>(0))?;
    let mut damages = Vec::new();
    for line in found {
        match line {
            Ok(line) if line == "ok" => {}
            Ok(line) => damages.push(line),
            Err(error) => damages.push(error.to_string()),
        }
    }
    Ok(damages)
}

fn damage(detail: String) -> Violation {
    Violation {
        invariant: Invariant::NoPhantoms,
        sale: String::new(),
        unit: None,
        order_ids: Vec::new(),
        detail,
    }
}
