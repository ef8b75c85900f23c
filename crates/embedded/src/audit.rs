//! Audits a file: its pages with SQLite's integrity check, its rows with the invariants.
//! It only reads and needs no engine, so it can audit the file of a stopped or a running service.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;
use seckill_sale::{AuditReport, Auditor, HistoryEntry, Invariant, SaleId, Violation};

use crate::file::schema::{self, Tuning};
use crate::file::{DATABASE_FILE, FileError, events, meta, rows, sales};
use crate::load::{self, RowIds};
use crate::memory::Digester;
use crate::order_id;

/// For processes that only read a file.
pub(crate) fn tuning() -> Tuning {
    Tuning {
        busy_wait_ms: 5_000,
        cache_kib: 65_536,
        checkpoint_pages: 0,
        vfs: None,
    }
}

/// Audits the file in a data folder. The gate is assumed to offer what a restart would rebuild.
pub fn audit_file(dir: &Path, history: &[HistoryEntry]) -> Result<AuditReport, FileError> {
    let path = dir.join(DATABASE_FILE);
    let conn = schema::open_reader(&path, &tuning())?;
    schema::check_version(&conn, &path)?;
    audit_connection(&conn, &path, history)
}

pub(crate) fn audit_connection(
    conn: &Connection,
    path: &Path,
    history: &[HistoryEntry],
) -> Result<AuditReport, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    // One transaction, so that the audit sees one point in time while a running service writes.
    conn.execute_batch("BEGIN").map_err(sqlite)?;
    // If the file cannot be loaded, there is no gate to compare; the check of the rows shows why.
    let free = Digester::new()
        .ok()
        .and_then(|digester| load::load(conn, path, digester, 0).ok());
    let free: Vec<_> = free.map_or_else(Vec::new, |loaded| {
        let sales = loaded.ledger.sales().iter();
        sales
            .map(|sale| (sale.sale.id.clone(), sale.free().to_vec()))
            .collect()
    });
    let report = audit_view(conn, &free, history).map_err(sqlite)?;
    conn.execute_batch("COMMIT").map_err(sqlite)?;
    Ok(report)
}

/// Audits what a read transaction sees, against what the gate offered at the same time.
pub(crate) fn audit_view(
    conn: &Connection,
    free: &[(SaleId, Vec<u32>)],
    history: &[HistoryEntry],
) -> rusqlite::Result<AuditReport> {
    let mut violations = Vec::new();
    let mut terms = Vec::new();
    let mut names = HashMap::new();
    for (number, sale) in sales::all(conn)? {
        match sale {
            Ok(sale) => {
                names.insert(number, sale.id.to_string());
                terms.push(sale);
            }
            Err(detail) => violations.push(damage(detail)),
        }
    }
    let mut auditor = Auditor::new(terms);
    for (sale, units) in free {
        auditor.gate_left(sale.as_str(), units);
    }
    history.iter().for_each(|entry| auditor.confirmed(entry));
    let mut ids = RowIds::default();
    let mut unreadable = Vec::new();
    let read = rows::each_line(conn, |id, line| {
        ids.see(id);
        let line = match line {
            Ok(line) => line,
            Err(detail) => {
                unreadable.push(damage(detail));
                return Ok(());
            }
        };
        let order_id = order_id::to_text(line.row.order_id);
        let sale = names.get(&line.row.sale).map_or("", String::as_str);
        auditor.row(&line.facts(order_id.as_str(), sale));
        Ok::<(), rusqlite::Error>(())
    });
    violations.extend(unreadable);
    let counts = meta::row_count(conn)?;
    match read {
        Ok(()) => {
            let deleted = ids.damage(&counts);
            violations.extend(deleted.map(|detail| Violation {
                invariant: Invariant::ConfirmationKept,
                ..damage(detail)
            }));
        }
        Err(error) => violations.push(damage(format!("not all orders could be read: {error}"))),
    }
    let name = |number| names.get(&number).cloned();
    let read = events::each_event(conn, &name, |event| match event {
        Ok(event) => auditor.event(event),
        Err(detail) => violations.push(damage(detail)),
    });
    if let Err(error) = read {
        violations.push(damage(format!("not all events could be read: {error}")));
    }
    violations.extend(damaged_pages(conn)?.into_iter().map(damage));
    let mut report = auditor.finish(counts.deleted);
    // What is wrong with the file comes first: it explains the rest.
    let rest = std::mem::take(&mut report.violations);
    report.violation_count -= rest.len() as u64;
    for violation in violations.into_iter().chain(rest) {
        report.add(violation);
    }
    Ok(report)
}

/// What SQLite's integrity check of all pages and indexes finds.
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
        item: None,
        unit: None,
        order_ids: Vec::new(),
        detail,
    }
}
