//! Opens the file: recognises it, creates its schema, and sets how durable a commit is.
//! The constraints repeat the invariants, so that even a bug in this program cannot sell a unit
//! twice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{FileError, folder, meta, sibling, version_1};

/// `secK`, in SQLite's header: distinguishes our files from those of other programs.
const APPLICATION_ID: i64 = 0x7365_634b;
/// The schema version of files that this program writes.
const VERSION: i64 = 2;

// `id` is SQLite's rowid: it increases by one with each row, and rows are never deleted. Sales and
// items are numbers and times are Unix milliseconds, because every row and every index entry has
// them; the view `seckill_orders` shows them as text. States are numbers as well (0 reserved, 1
// paid, 2 expired, 3 cancelled), which are compared for each index of each row. An active order of
// generation 1, as nearly all are, needs no entry in seckill_generation, because it has one in
// seckill_active_unit.
const SCHEMA: &str = "
CREATE TABLE seckill_meta (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    row_count INTEGER NOT NULL,
    deleted   INTEGER NOT NULL,
    opened_in TEXT
) STRICT;
INSERT INTO seckill_meta (id, row_count, deleted, opened_in) VALUES (1, 0, 0, NULL);

CREATE TABLE seckill_sale (
    number      INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    title       TEXT NOT NULL,
    buyer_limit INTEGER CHECK (buyer_limit BETWEEN 1 AND 64),
    opens_at    TEXT,
    closes_at   TEXT,
    version     INTEGER NOT NULL,
    checksum    INTEGER NOT NULL
) STRICT;

CREATE TABLE seckill_item (
    sale     INTEGER NOT NULL,
    item     INTEGER NOT NULL CHECK (item BETWEEN 1 AND 64),
    id       TEXT NOT NULL,
    title    TEXT NOT NULL,
    total    INTEGER NOT NULL CHECK (total >= 0),
    price    INTEGER,
    currency TEXT,
    PRIMARY KEY (sale, item)
) STRICT, WITHOUT ROWID;

CREATE TABLE seckill (
    id             INTEGER PRIMARY KEY,
    date           INTEGER NOT NULL,
    order_id       BLOB NOT NULL CHECK (length(order_id) = 16),
    line           INTEGER NOT NULL CHECK (line >= 1),
    lines          INTEGER NOT NULL,
    sale           INTEGER NOT NULL,
    item           INTEGER NOT NULL CHECK (item BETWEEN 1 AND 64),
    unit           INTEGER NOT NULL CHECK (unit >= 1),
    generation     INTEGER NOT NULL CHECK (generation >= 1),
    state          INTEGER NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),
    version        INTEGER NOT NULL DEFAULT 1,
    sequence       INTEGER CHECK (sequence >= 1),
    checksum       INTEGER NOT NULL,
    buyer          TEXT NOT NULL,
    slot           INTEGER CHECK (slot BETWEEN 1 AND 64),
    idem_key       TEXT,
    fingerprint    INTEGER,
    state_checksum INTEGER,
    ended_at       INTEGER
) STRICT;

CREATE UNIQUE INDEX seckill_order_id ON seckill (order_id, line);
CREATE UNIQUE INDEX seckill_generation ON seckill (sale, item, unit, generation)
    WHERE generation > 1 OR state > 1;
CREATE UNIQUE INDEX seckill_active_unit ON seckill (sale, item, unit) WHERE state < 2;
CREATE UNIQUE INDEX seckill_key ON seckill (sale, buyer, idem_key) WHERE idem_key IS NOT NULL;
CREATE UNIQUE INDEX seckill_active_slot ON seckill (sale, buyer, slot)
    WHERE slot IS NOT NULL AND state < 2;

CREATE TABLE seckill_event (
    sale     INTEGER NOT NULL,
    sequence INTEGER NOT NULL CHECK (sequence >= 1),
    row_id   INTEGER NOT NULL CHECK (row_id >= 0),
    date     INTEGER NOT NULL,
    type     TEXT NOT NULL,
    order_id BLOB CHECK (length(order_id) = 16),
    data     TEXT,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (sale, sequence)
) STRICT, WITHOUT ROWID;

CREATE VIEW seckill_orders AS
SELECT
    line.id,
    strftime('%Y-%m-%dT%H:%M:%fZ', line.date / 1000.0, 'unixepoch') AS date,
    lower(hex(line.order_id)) AS order_id,
    line.line,
    sale.id AS sale,
    item.id AS item,
    line.unit,
    line.generation,
    line.buyer,
    line.slot,
    line.idem_key,
    CASE line.state WHEN 0 THEN 'reserved' WHEN 1 THEN 'paid' WHEN 2 THEN 'expired' ELSE 'cancelled' END AS state,
    strftime('%Y-%m-%dT%H:%M:%fZ', line.ended_at / 1000.0, 'unixepoch') AS ended_at
FROM seckill AS line
LEFT JOIN seckill_sale AS sale ON sale.number = line.sale
LEFT JOIN seckill_item AS item ON item.sale = line.sale AND item.item = line.item;
";

/// The settings of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Tuning {
    /// How long a statement waits for another process's lock on the file, in milliseconds.
    pub(crate) busy_wait_ms: u32,
    /// SQLite's page cache, in KiB.
    pub(crate) cache_kib: u32,
    /// Pages in the write-ahead log at which SQLite moves them to the main file.
    pub(crate) checkpoint_pages: u32,
    /// SQLite's VFS by name; `None` means the default.
    pub(crate) vfs: Option<Arc<str>>,
}

impl Tuning {
    fn connect(&self, path: &Path, flags: OpenFlags) -> Result<Connection, FileError> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sqlite = |error| FileError::from_sqlite(path, error);
        let conn = match self.vfs.as_deref() {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
            None => Connection::open_with_flags(path, flags),
        };
        let conn = conn.map_err(sqlite)?;
        conn.busy_timeout(Duration::from_millis(self.busy_wait_ms.into()))
            .map_err(sqlite)?;
        Ok(conn)
    }
}

/// Opens the file for its only writer, in a folder that this process has locked, and creates the
/// schema of a new file. `had_database` says whether the folder ever had one. A file of an earlier
/// version still has to be migrated.
pub(crate) fn open_writer(
    path: &Path,
    tuning: &Tuning,
    had_database: bool,
) -> Result<Connection, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let dir = path.parent().unwrap_or(path);
    let folder_error = |error| FileError::Folder {
        path: dir.to_owned(),
        error,
    };
    // SQLite deletes the write-ahead log of an empty database, so it must not see one.
    let log = sibling(path, "-wal");
    if is_empty(path) && (had_database || !is_empty(&log)) {
        return Err(lost(path));
    }
    drop(folder::open_private(path).map_err(folder_error)?);
    for beside in [log, sibling(path, "-shm")] {
        folder::close_to_others(&beside).map_err(folder_error)?;
    }
    let mut conn = tuning.connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if recognise(&conn, path)? == 0 {
        if had_database {
            return Err(lost(path));
        }
        // Before WAL mode is set, so that the main file alone shows what it is.
        create(&mut conn).map_err(sqlite)?;
    }
    folder::sync(dir).map_err(folder_error)?;
    set_up(&conn, tuning).map_err(sqlite)?;
    Ok(conn)
}

/// Opens the file again. A missing or empty file is an error: it must not be mistaken for one
/// without sales.
pub(crate) fn reopen_writer(path: &Path, tuning: &Tuning) -> Result<Connection, FileError> {
    if is_empty(path) {
        return Err(lost(path));
    }
    let conn = tuning.connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    if recognise(&conn, path)? != VERSION {
        return Err(lost(path));
    }
    set_up(&conn, tuning).map_err(|error| FileError::from_sqlite(path, error))?;
    Ok(conn)
}

/// Whether a file is missing or has no content.
fn is_empty(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |found| found.len() == 0)
}

fn lost(path: &Path) -> FileError {
    FileError::Lost {
        path: path.to_owned(),
        id_path: path.with_file_name(folder::ID_FILE),
    }
}

fn set_up(conn: &Connection, tuning: &Tuning) -> rusqlite::Result<()> {
    let set = |name, value: &dyn rusqlite::ToSql| conn.pragma_update(None, name, value);
    set("journal_mode", &"WAL")?;
    set("synchronous", &"FULL")?;
    set("cache_size", &-i64::from(tuning.cache_kib))?;
    set("wal_autocheckpoint", &tuning.checkpoint_pages)
}

/// Opens the file of a data folder read-only, whether or not a writer has it open. It may have an
/// earlier version.
pub(crate) fn open_reader(path: &Path, tuning: &Tuning) -> Result<Connection, FileError> {
    let conn = open_any_version(path, tuning)?;
    let dir = path.parent().unwrap_or(path);
    let id = folder::id(dir).map_err(|error| FileError::Folder {
        path: dir.to_owned(),
        error,
    })?;
    let opened_in = meta::opened_in(&conn).map_err(|error| FileError::from_sqlite(path, error))?;
    let mark = id.and_then(|id| id.mark());
    refuse_live_copy(path, opened_in.as_deref(), mark.as_deref())?;
    Ok(conn)
}

/// Opens a file read-only, wherever it came from. It must have the present version.
pub(crate) fn open_copy(path: &Path, tuning: &Tuning) -> Result<Connection, FileError> {
    let conn = open_any_version(path, tuning)?;
    check_version(&conn, path)?;
    Ok(conn)
}

/// Fails if the file still has to be migrated.
pub(crate) fn check_version(conn: &Connection, path: &Path) -> Result<(), FileError> {
    match recognise(conn, path)? {
        VERSION => Ok(()),
        found => Err(FileError::Older {
            path: path.to_owned(),
            found,
            known: VERSION,
        }),
    }
}

/// Opens a file of this or an earlier version read-only.
pub(crate) fn open_any_version(path: &Path, tuning: &Tuning) -> Result<Connection, FileError> {
    let missing = || FileError::Missing {
        path: path.to_owned(),
    };
    if !path.exists() {
        return Err(missing());
    }
    let empty = || FileError::NotOurs {
        path: path.to_owned(),
        found: "it is empty".into(),
    };
    if is_empty(path) {
        return Err(empty());
    }
    let conn = tuning.connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    if recognise(&conn, path)? == 0 {
        return Err(empty());
    }
    Ok(conn)
}

/// Refuses a file that is marked as open in another folder, or by another opening than the folder's
/// last: its write-ahead log is missing.
pub(crate) fn refuse_live_copy(
    path: &Path,
    opened_in: Option<&str>,
    mark: Option<&str>,
) -> Result<(), FileError> {
    if opened_in.is_some() && opened_in != mark {
        return Err(FileError::LiveCopy {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Checks that the file is ours, and returns its schema version; 0 for a new file.
fn recognise(conn: &Connection, path: &Path) -> Result<i64, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let not_ours = |found: &str| FileError::NotOurs {
        path: path.to_owned(),
        found: found.to_owned(),
    };
    let number = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let version = number("user_version").map_err(sqlite)?;
    let application = number("application_id").map_err(sqlite)?;
    let count = |query| conn.query_row(query, (), |row| row.get::<_, i64>(0));
    let objects = count("SELECT count(*) FROM sqlite_schema").map_err(sqlite)?;
    if application != APPLICATION_ID && (objects > 0 || application != 0) {
        return Err(not_ours("another program's SQLite file"));
    }
    if version > VERSION {
        return Err(FileError::Newer {
            path: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    let our_tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' \
         AND name IN ('seckill', 'seckill_sale', 'seckill_meta')";
    if version > 0 && count(our_tables).map_err(sqlite)? < 3 {
        return Err(not_ours("some of its tables are missing"));
    }
    Ok(version)
}

fn create(conn: &mut Connection) -> rusqlite::Result<()> {
    let transaction = conn.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    finish_creation(&transaction)?;
    transaction.commit()
}

fn finish_creation(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", VERSION)
}

/// Brings a file of an earlier version to the present one, all or nothing.
pub(crate) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let version = recognise(conn, path)?;
    if version == VERSION {
        return Ok(());
    }
    tracing::info!("migrating the file from schema version {version} to {VERSION}");
    let transaction = conn.transaction().map_err(sqlite)?;
    version_1::set_aside(&transaction).map_err(sqlite)?;
    transaction.execute_batch(SCHEMA).map_err(sqlite)?;
    version_1::convert(&transaction, path)?;
    finish_creation(&transaction).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}

/// A write that changes nothing. Once it is durable, so is everything that was written before it.
pub(crate) fn probe_write(conn: &Connection) -> rusqlite::Result<()> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    conn.pragma_update(None, "user_version", version)
}

/// Moves the write-ahead log into the main file, as far as readers allow it.
/// Returns whether all of it was moved.
pub(crate) fn checkpoint(conn: &Connection, mode: &str) -> rusqlite::Result<bool> {
    let pragma = format!("PRAGMA wal_checkpoint({mode})");
    conn.query_row(&pragma, (), |row| Ok(row.get::<_, i64>(0)? == 0))
}
