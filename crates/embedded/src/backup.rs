//! Backups: consistent copies of a database, made even while a service runs, verified by an audit.
//! A file that a service has open is only read, never changed.

use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use seckill_sale::{AuditReport, HistoryEntry};

use crate::audit::{audit_connection, tuning};
use crate::clock;
use crate::file::lock::FolderLock;
use crate::file::{DATABASE_FILE, FileError, LockOwner, folder, meta, schema, sibling};

/// All pages in one step, which is one read transaction: writes of the service do not restart it.
const ALL_PAGES: i32 = -1;

/// A copy that was made.
#[derive(Debug, Clone)]
pub struct CopySummary {
    pub path: PathBuf,
    /// The audit of the copy. It is clean.
    pub report: AuditReport,
    /// When the latest order was stored, RFC 3339.
    pub latest_order: Option<String>,
}

/// Why no copy was made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} exists already; choose another file", path.display())]
    Exists { path: PathBuf },
    #[error("{} has a database already; move it away first, or use --data to choose another folder", path.display())]
    FolderInUse { path: PathBuf },
    #[error("{} was not made by `seckill backup`: a file that was copied from a running service lacks the orders in its write-ahead log; if it was made with sqlite3's .backup, which includes them, repeat with --accept-live-copy", path.display())]
    LiveCopy { path: PathBuf },
    #[error("the copy did not pass its audit and was deleted: {} violations, the first: {first}", report.violation_count)]
    Broken {
        report: Box<AuditReport>,
        first: String,
    },
    #[error("{}: {error}", path.display())]
    Copy {
        path: PathBuf,
        error: std::io::Error,
    },
}

/// Copies the database of a data folder to `to`, even while a service runs, and audits the copy.
pub fn backup(dir: &Path, to: &Path) -> Result<CopySummary, BackupError> {
    let from = dir.join(DATABASE_FILE);
    let source = schema::open_reader(&from, &tuning())?;
    copy(&source, &from, to)
}

/// Copies `from` into a data folder that has no database, and audits the copy.
pub fn restore(
    from: &Path,
    dir: &Path,
    owner: &LockOwner,
    accept_live_copy: bool,
) -> Result<CopySummary, BackupError> {
    let source = schema::open_any_version(from, &tuning())?;
    let sqlite = |error| FileError::from_sqlite(from, error);
    if meta::opened_in(&source).map_err(sqlite)?.is_some() && !accept_live_copy {
        return Err(BackupError::LiveCopy {
            path: from.to_owned(),
        });
    }
    let _lock = FolderLock::take(dir, owner)?;
    let to = dir.join(DATABASE_FILE);
    for suffix in ["", "-wal", "-journal"] {
        if sibling(&to, suffix).exists() {
            return Err(BackupError::FolderInUse {
                path: dir.to_owned(),
            });
        }
    }
    copy(&source, from, &to)
}

/// Copies to a temporary name first, so that an unverified copy never has the final name.
fn copy(source: &Connection, from: &Path, to: &Path) -> Result<CopySummary, BackupError> {
    let exists = || BackupError::Exists {
        path: to.to_owned(),
    };
    if to.exists() {
        return Err(exists());
    }
    let unfinished = Unfinished(sibling(to, ".unfinished"));
    let path = &unfinished.0;
    let failed = |error| BackupError::Copy {
        path: path.clone(),
        error,
    };
    // What a killed process left must not become part of this copy.
    unfinished.remove();
    let file = folder::create_private(path).map_err(failed)?;
    let report = copy_and_audit(source, from, path)?;
    if let Some(first) = report.violations.first() {
        return Err(BackupError::Broken {
            first: first.detail.clone(),
            report: Box::new(report),
        });
    }
    let latest_order = latest_order(path)?;
    file.sync_all().map_err(failed)?;
    rename_to_new(path, to).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(),
        _ => failed(error),
    })?;
    folder::sync(folder::parent(to)).map_err(failed)?;
    Ok(CopySummary {
        path: to.to_owned(),
        report,
        latest_order,
    })
}

/// Renames a file, and fails if the new name exists.
fn rename_to_new(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do both in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if !to.exists() => {
            std::fs::rename(from, to)
        }
        renamed => Ok(renamed?),
    }
}

fn copy_and_audit(source: &Connection, from: &Path, path: &Path) -> Result<AuditReport, FileError> {
    let sqlite = |error| FileError::from_sqlite(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    let pages = Backup::new(source, &mut copy).map_err(sqlite)?;
    let copied = pages
        .step(ALL_PAGES)
        .map_err(|error| FileError::from_sqlite(from, error))?;
    drop(pages);
    if copied != StepResult::Done {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        let error = rusqlite::Error::SqliteFailure(busy, Some("the database is locked".into()));
        return Err(FileError::from_sqlite(from, error));
    }
    // A single file without a write-ahead log, and not marked as open in any folder.
    copy.pragma_update(None, "journal_mode", "DELETE")
        .map_err(sqlite)?;
    meta::set_opened_in(&copy, None).map_err(sqlite)?;
    schema::migrate(&mut copy, path)?;
    audit_connection(&copy, path, &[] as &[HistoryEntry])
}

fn latest_order(path: &Path) -> Result<Option<String>, FileError> {
    let conn = schema::open_copy(path, &tuning())?;
    let query = "SELECT date FROM seckill ORDER BY id DESC LIMIT 1";
    let found = conn.query_row(query, (), |row| row.get(0));
    match found {
        Ok(date_ms) => Ok(Some(clock::to_text(date_ms))),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(FileError::from_sqlite(path, error)),
    }
}

/// The temporary name of a copy, which is removed on drop. A finished copy keeps its final name.
struct Unfinished(PathBuf);

impl Unfinished {
    fn remove(&self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // What does not exist need not be removed.
            let _ = std::fs::remove_file(sibling(&self.0, suffix));
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.remove();
    }
}
