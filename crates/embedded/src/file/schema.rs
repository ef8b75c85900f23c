//! Opens the file: recognises it, makes or upgrades its schema, and sets how durable a commit is.
//! The constraints repeat the invariants, so that not even a fault of this program can store a unit twice.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::FileError;

/// `secK`, in SQLite's header: tells our files from other programs'.
const APPLICATION_ID: i64 = 0x7365_634b;
/// One script for each schema version, the first making version 1. Released scripts never change.
const MIGRATIONS: [&str; 1] = [VERSION_1];

// `id` is SQLite's rowid: it grows by one with each row, and no row is ever deleted. The states are checked by OR, since a
// list of four behind IN becomes a temporary table at every INSERT. An active order of generation 1, as nearly all are, needs
// no place in seckill_generation: seckill_active_unit has it already.
const VERSION_1: &str = "
CREATE TABLE seckill_sale (
    id          TEXT PRIMARY KEY,
    title       TEXT NOT NULL,
    total       INTEGER NOT NULL CHECK (total >= 0),
    buyer_limit INTEGER CHECK (buyer_limit BETWEEN 1 AND 64),
    opens_at    TEXT,
    closes_at   TEXT,
    version         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE seckill (
    id          INTEGER PRIMARY KEY,
    date        TEXT NOT NULL,
    order_id    TEXT NOT NULL,
    sale        TEXT NOT NULL,
    unit        INTEGER NOT NULL CHECK (unit >= 1),
    generation  INTEGER NOT NULL CHECK (generation >= 1),
    buyer       TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state = 'reserved' OR state = 'paid' OR state = 'expired' OR state = 'cancelled'),
    slot        INTEGER CHECK (slot BETWEEN 1 AND 64),
    idem_key    TEXT,
    fingerprint INTEGER,
    version         INTEGER NOT NULL DEFAULT 1,
    checksum    INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX seckill_order_id ON seckill (order_id);
CREATE UNIQUE INDEX seckill_generation ON seckill (sale, unit, generation)
    WHERE generation > 1 OR state = 'expired' OR state = 'cancelled';
CREATE UNIQUE INDEX seckill_active_unit ON seckill (sale, unit) WHERE state = 'reserved' OR state = 'paid';
CREATE UNIQUE INDEX seckill_key ON seckill (sale, buyer, idem_key) WHERE idem_key IS NOT NULL;
CREATE UNIQUE INDEX seckill_active_slot ON seckill (sale, buyer, slot)
    WHERE slot IS NOT NULL AND (state = 'reserved' OR state = 'paid');
";

/// How a connection is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// How long a statement waits for somebody else's lock on the file, in milliseconds.
    pub(crate) busy_wait_ms: u32,
    /// SQLite's page cache, in KiB.
    pub(crate) cache_kib: u32,
    /// Pages in the write-ahead log at which they are moved to the main file.
    pub(crate) checkpoint_pages: u32,
}

/// Opens the file for its one writer, making or upgrading the schema.
pub(crate) fn open_writer(path: &Path, tuning: Tuning) -> Result<Connection, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let mut conn = Connection::open(path).map_err(sqlite)?;
    let version = set_up(&conn, path, tuning)?;
    migrate(&mut conn, version).map_err(sqlite)?;
    Ok(conn)
}

/// Opens the file again. One that is gone or empty meanwhile, as while a backup is put in its place, is an error: it must not
/// be taken for a shop without sales.
pub(crate) fn reopen_writer(path: &Path, tuning: Tuning) -> Result<Connection, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    if !path.exists() {
        return Err(missing(path));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    if set_up(&conn, path, tuning)? == 0 {
        return Err(empty(path));
    }
    Ok(conn)
}

fn missing(path: &Path) -> FileError {
    FileError::Missing {
        path: path.to_owned(),
    }
}

fn empty(path: &Path) -> FileError {
    FileError::NotOurs {
        path: path.to_owned(),
        found: "it is empty".into(),
    }
}

/// Sets how a writer's connection works, once the file is known to be ours; returns its schema version.
fn set_up(conn: &Connection, path: &Path, tuning: Tuning) -> Result<i64, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let busy = std::time::Duration::from_millis(tuning.busy_wait_ms.into());
    conn.busy_timeout(busy).map_err(sqlite)?;
    let version = recognise(conn, path)?;
    let set = |name, value: &dyn rusqlite::ToSql| conn.pragma_update(None, name, value);
    set("journal_mode", &"WAL").map_err(sqlite)?;
    set("synchronous", &"FULL").map_err(sqlite)?;
    set("cache_size", &-i64::from(tuning.cache_kib)).map_err(sqlite)?;
    set("wal_autocheckpoint", &tuning.checkpoint_pages).map_err(sqlite)?;
    Ok(version)
}

/// Opens the file for reading alone, beside the writer or without one.
pub(crate) fn open_reader(path: &Path, tuning: Tuning) -> Result<Connection, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    if !path.exists() {
        return Err(missing(path));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    let busy = std::time::Duration::from_millis(tuning.busy_wait_ms.into());
    conn.busy_timeout(busy).map_err(sqlite)?;
    if recognise(&conn, path)? == 0 {
        return Err(empty(path));
    }
    Ok(conn)
}

/// The schema version of a file that is ours; 0 for a new one.
fn recognise(conn: &Connection, path: &Path) -> Result<i64, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let number = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let version = number("user_version").map_err(sqlite)?;
    let application = number("application_id").map_err(sqlite)?;
    let objects: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
        .map_err(sqlite)?;
    if application != APPLICATION_ID && (objects > 0 || application != 0) {
        return Err(FileError::NotOurs {
            path: path.to_owned(),
            found: "another program's SQLite file".into(),
        });
    }
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(FileError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    Ok(version)
}

fn migrate(conn: &mut Connection, version: i64) -> rusqlite::Result<()> {
    let missing = MIGRATIONS.iter().skip(version as usize);
    for (script, next) in missing.zip(version + 1..) {
        let step = conn.transaction()?;
        step.execute_batch(script)?;
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", next)?;
        step.commit()?;
    }
    Ok(())
}
