//! The file that the writer has open: opens, recovers, reads and closes it.
//! Everything in memory comes from here, and is durable before it is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;
use seckill_sale::{ItemUnits, Ledger, OrderState};

use crate::batch::StepError;
use crate::failpoints;
use crate::file::folder::{self, FolderId};
use crate::file::identity::OpenedFiles;
use crate::file::schema::{self, Tuning};
use crate::file::{FileError, events, meta, rows};
use crate::load::{self, FileCounts, Loaded};
use crate::memory::{Digester, Memory};

/// How often the number of rows is recorded while it grows.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// The number of rows that the file itself records. It is not recorded with each batch, since it is
/// another page to write.
pub(crate) struct RecordedRows {
    rows: u64,
    at: Option<Instant>,
}

impl RecordedRows {
    pub(crate) fn is_due(&self, rows: u64) -> bool {
        let is_old = self.at.is_none_or(|at| at.elapsed() >= RECORD_EVERY);
        rows != self.rows && is_old
    }

    pub(crate) fn set(&mut self, rows: u64) {
        self.rows = rows;
        self.at = Some(Instant::now());
    }
}

pub(crate) struct Opened {
    pub(crate) conn: Connection,
    pub(crate) ledger: Ledger<u128>,
    pub(crate) counts: FileCounts,
    /// The row that the latest entry of each sale's feed points to, by sale.
    pub(crate) pointers: Vec<i64>,
    pub(crate) recorded: RecordedRows,
    /// SQLite's counter, which changes when another connection writes to the file.
    pub(crate) data_version: i64,
    pub(crate) files: OpenedFiles,
    folder: (PathBuf, FolderId),
}

impl Opened {
    /// Opens or creates the file in a folder that this process has locked.
    pub(crate) fn open(
        path: &Path,
        tuning: &Tuning,
        digester: Digester,
    ) -> Result<(Self, Memory), FileError> {
        let dir = path.parent().unwrap_or(path);
        let folder_error = |error| FileError::Folder {
            path: dir.to_owned(),
            error,
        };
        let sqlite = |error| FileError::from_sqlite(path, error);
        let known = folder::id(dir).map_err(folder_error)?;
        let mut conn = schema::open_writer(path, tuning, known.is_some())?;
        let opened_in = meta::opened_in(&conn).map_err(sqlite)?;
        let mark = known.as_ref().and_then(FolderId::mark);
        schema::refuse_live_copy(path, opened_in.as_deref(), mark.as_deref())?;
        schema::migrate(&mut conn, path)?;
        let folder = match (known, &opened_in) {
            (Some(folder), Some(_)) => {
                tracing::info!("the file was not closed cleanly; recovering it");
                folder
            }
            (known, _) => {
                let id = known.map_or_else(folder::random, |folder| Ok(folder.id));
                let folder = FolderId {
                    id: id.map_err(folder_error)?,
                    opening: Some(folder::random().map_err(folder_error)?),
                };
                // Before the file is marked: a marked file in a folder without the mark is refused.
                folder::write_id(dir, &folder).map_err(folder_error)?;
                folder
            }
        };
        // A killed process may have left writes that are not durable yet. This write makes them
        // durable before anything is answered from them.
        schema::probe_write(&conn).map_err(sqlite)?;
        if opened_in.is_none() {
            meta::set_opened_in(&conn, folder.mark().as_deref()).map_err(sqlite)?;
        }
        // The mark must be in the main file, so that a copy of the main file alone is recognised.
        match schema::checkpoint(&conn, "FULL") {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "another program is reading the file, so the write-ahead log was not moved into it yet"
            ),
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log could not be moved into the main file");
            }
        }
        let dir = dir.to_owned();
        Self::read(
            path,
            conn,
            OpenedFiles::at(path)?,
            (dir, folder),
            digester,
            0,
        )
    }

    fn read(
        path: &Path,
        conn: Connection,
        files: OpenedFiles,
        folder: (PathBuf, FolderId),
        digester: Digester,
        rows_min: u64,
    ) -> Result<(Self, Memory), FileError> {
        let sqlite = |error| FileError::from_sqlite(path, error);
        // Before the load, so that a write during the load is noticed.
        let version = data_version(&conn).map_err(sqlite)?;
        let mut loaded = load::load(&conn, path, digester, rows_min)?;
        if !loaded.edited.is_empty() {
            adopt_edits(&conn, path, &loaded)?;
            loaded = load::load(&conn, path, digester, rows_min)?;
        }
        let opened = Self {
            conn,
            ledger: loaded.ledger,
            counts: loaded.counts,
            pointers: loaded.pointers,
            recorded: RecordedRows {
                rows: loaded.recorded_rows,
                at: None,
            },
            data_version: version,
            files,
            folder,
        };
        Ok((opened, loaded.memory))
    }

    /// Opens the same file again after a failure, and reads it again.
    pub(crate) fn read_again(
        &mut self,
        path: &Path,
        tuning: &Tuning,
        registry: &Arc<FailPointRegistry>,
        digester: Digester,
    ) -> Result<Memory, FileError> {
        let sqlite = |error| FileError::from_sqlite(path, error);
        self.files.check_database()?;
        if let Err(error) = self.files.check_log() {
            // Only this connection still has the log. Its content is moved into the database, where
            // the next start finds it.
            if let Err(unsaved) = schema::checkpoint(&self.conn, "PASSIVE") {
                tracing::error!(%unsaved, "the removed write-ahead log could not be saved");
            }
            return Err(error);
        }
        failpoints::check(registry, failpoints::REOPEN).map_err(sqlite)?;
        // A new connection: after a failed sync, the old one may cache pages that are not on disk.
        let conn = schema::reopen_writer(path, tuning)?;
        failpoints::check(registry, failpoints::PROBE).map_err(sqlite)?;
        schema::probe_write(&conn).map_err(sqlite)?;
        let files = OpenedFiles::at(path)?;
        self.files.check_database()?;
        let folder = self.folder.clone();
        let rows_min = self.counts.rows;
        let (opened, memory) = Self::read(path, conn, files, folder, digester, rows_min)?;
        *self = opened;
        Ok(memory)
    }

    /// Records the number of rows in a transaction of its own.
    pub(crate) fn record(&mut self, registry: &Arc<FailPointRegistry>) -> Result<(), StepError> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        self.files.check()?;
        check_external_write(&self.conn, self.data_version)?;
        failpoints::check(registry, failpoints::COUNT_ROWS)?;
        meta::set_row_count(&self.conn, self.counts.rows)?;
        self.conn.prepare_cached("COMMIT")?.execute(())?;
        self.recorded.set(self.counts.rows);
        Ok(())
    }

    /// Marks the file as closed cleanly, and moves everything into the main file.
    pub(crate) fn close(&mut self) -> Result<(), StepError> {
        self.files.check()?;
        meta::set_row_count(&self.conn, self.counts.rows)?;
        meta::set_opened_in(&self.conn, None)?;
        schema::checkpoint(&self.conn, "TRUNCATE")?;
        // A copy that was made while the file was open is no longer accepted in this folder.
        let (dir, folder) = &mut self.folder;
        folder.opening = None;
        folder::write_id(dir, folder).map_err(|error| FileError::Folder {
            path: dir.clone(),
            error,
        })?;
        Ok(())
    }
}

/// Completes the state changes that an operator has made by hand: gives them the event and the
/// checksums of a change by this program.
fn adopt_edits(conn: &Connection, path: &Path, loaded: &Loaded) -> Result<(), FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let transaction = conn.unchecked_transaction().map_err(sqlite)?;
    let mut ledger_sequences: Vec<u64> = loaded
        .ledger
        .sales()
        .iter()
        .map(seckill_sale::SaleLedger::sequence)
        .collect();
    let now_ms = jiff::Timestamp::now().as_millisecond();
    for &order_id in &loaded.edited {
        let found = rows::order_by_id(conn, order_id).map_err(sqlite)?;
        let damaged = |detail| FileError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let Some(stored) = found.transpose().map_err(damaged)? else {
            continue;
        };
        let Some(number) = loaded.ledger.number(&stored.order.sale) else {
            continue;
        };
        let (id, state) = (&stored.order.order_id, stored.order.state);
        let told = events::told_state(conn, number.get(), order_id).map_err(sqlite)?;
        if told != state && (!told.is_active() || state == OrderState::Reserved) {
            let (from, to) = (told.as_str(), state.as_str());
            return Err(damaged(format!(
                "order {id}: its state was edited from {from} to {to}; an order that has ended or is paid never becomes \
                 active or reserved again, so set it back to {from}, and sell the unit anew"
            )));
        }
        rows::adopt_state(conn, &stored, now_ms).map_err(sqlite)?;
        if told == state {
            continue;
        }
        tracing::info!(order_id = %id, state = state.as_str(), "adopting a state that was set by hand");
        let sequence = &mut ledger_sequences[number.index()];
        *sequence += 1;
        let units: ItemUnits = stored.units.iter().map(|unit| unit.item_unit()).collect();
        let event = events::EventRow {
            sale: number.get(),
            sequence: *sequence,
            row_id: loaded.counts.latest_row,
            date_ms: now_ms,
            kind: events::Kind::Order(order_id, state, &units),
        };
        events::insert(conn, &event).map_err(sqlite)?;
    }
    transaction.commit().map_err(sqlite)
}

/// Fails if another connection has written to the file since its version was read.
pub(crate) fn check_external_write(conn: &Connection, version: i64) -> Result<(), StepError> {
    if data_version(conn)? == version {
        Ok(())
    } else {
        Err(StepError::ExternalWrite)
    }
}

fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?
        .query_row((), |row| row.get(0))
}
