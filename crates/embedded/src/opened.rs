//! The file that the writer has open: opens, recovers, reads and closes it.
//! Everything in memory comes from here, and is durable before it is used.

use std::path::Path;
use std::sync::Arc;

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;

use crate::batch::StepError;
use crate::failpoints;
use crate::file::identity::OpenedFiles;
use crate::file::schema::{self, Tuning};
use crate::file::{FileError, folder, meta};
use crate::ledger::SaleLedgers;
use crate::load;
use crate::memory::{Digester, Memory};

pub(crate) struct Opened {
    pub(crate) conn: Connection,
    pub(crate) ledgers: SaleLedgers,
    /// The number of orders in the file.
    pub(crate) orders: u64,
    /// SQLite's counter, which changes when another connection writes to the file.
    pub(crate) data_version: i64,
    pub(crate) files: OpenedFiles,
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
        let folder_id = folder::id(dir).map_err(folder_error)?;
        let conn = schema::open_writer(path, tuning, folder_id.as_deref())?;
        let opened_in = meta::read(&conn).map_err(sqlite)?.opened_in;
        schema::refuse_live_copy(path, opened_in.as_deref(), folder_id.as_deref())?;
        if opened_in.is_some() {
            tracing::info!("the file was not closed cleanly; recovering it");
        }
        let id = match folder_id {
            Some(id) => id,
            None => folder::make_id(dir).map_err(folder_error)?,
        };
        // A killed process may have left writes that are not durable yet. This write makes them
        // durable before anything is answered from them.
        schema::probe_write(&conn).map_err(sqlite)?;
        if opened_in.is_none() {
            meta::set_opened_in(&conn, Some(&id)).map_err(sqlite)?;
        }
        // The mark must be in the main file, so that a copy of the main file alone is recognised.
        if let Err(error) = schema::checkpoint(&conn, "FULL") {
            tracing::warn!(%error, "the write-ahead log could not be moved into the main file");
        }
        Self::read(path, conn, OpenedFiles::at(path)?, digester, 0)
    }

    fn read(
        path: &Path,
        conn: Connection,
        files: OpenedFiles,
        digester: Digester,
        orders_min: u64,
    ) -> Result<(Self, Memory), FileError> {
        // Before the load, so that a write during the load is noticed.
        let version = data_version(&conn).map_err(|error| FileError::from_sqlite(path, error))?;
        let loaded = load::load(&conn, path, digester, orders_min)?;
        let opened = Self {
            conn,
            ledgers: loaded.ledgers,
            orders: loaded.orders,
            data_version: version,
            files,
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
        let (opened, memory) = Self::read(path, conn, files, digester, self.orders)?;
        *self = opened;
        Ok(memory)
    }

    /// Marks the file as closed cleanly, and moves everything into the main file.
    pub(crate) fn close(&mut self) -> Result<(), StepError> {
        self.files.check()?;
        meta::set_opened_in(&self.conn, None)?;
        schema::checkpoint(&self.conn, "TRUNCATE")?;
        Ok(())
    }
}

pub(crate) fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?
        .query_row((), |row| row.get(0))
}
