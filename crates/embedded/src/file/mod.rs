//! The database file: where it lies, who has it open, its schema and its rows.
//! Nothing here decides; the caller has decided already.

pub(crate) mod folder;
pub(crate) mod identity;
pub(crate) mod lock;
pub(crate) mod meta;
pub(crate) mod rows;
pub(crate) mod sales;
pub(crate) mod schema;

use std::path::{Path, PathBuf};

pub use lock::LockOwner;

use identity::Identity;

/// The database inside a data folder.
pub const DATABASE_FILE: &str = "seckill.db";
/// Everything that the engine and the service keep in a data folder.
pub const DATA_FILES: [&str; 7] = [
    DATABASE_FILE,
    "seckill.db-wal",
    "seckill.db-shm",
    lock::LOCK_FILE,
    folder::ID_FILE,
    "seckill.id-new",
    CONTROL_SOCKET_FILE,
];
/// The operator's socket inside a data folder.
pub const CONTROL_SOCKET_FILE: &str = "seckill.sock";

/// Why the file cannot be used. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("data folder {}: {error}; give a folder that this user can write with --data", path.display())]
    Folder {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("data folder {} is in use by {owner}; stop that process, or give another folder with --data", path.display())]
    Locked {
        path: PathBuf,
        owner: Box<LockOwner>,
    },
    #[error("there is no {}; `seckill serve` or `seckill demo` makes one", path.display())]
    Missing { path: PathBuf },
    /// The folder had a database before.
    #[error("{} is gone or empty, but this folder had a database; restore it with `seckill restore`, or delete {} to start over", path.display(), id_path.display())]
    Lost { path: PathBuf, id_path: PathBuf },
    #[error("{} is not a seckill database ({found}); move it away, or give another folder with --data", path.display())]
    NotOurs { path: PathBuf, found: String },
    #[error("{} was copied from a running service, so what its write-ahead log held may be missing; copy a running service with `seckill backup`, and put the copy in place with `seckill restore`", path.display())]
    LiveCopy { path: PathBuf },
    #[error("{} has schema version {found}, this program knows up to {known}; run a newer seckill", path.display())]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// The content contradicts itself.
    #[error("{} is damaged: {detail}; `seckill audit` names everything that is wrong; restore the file from a backup, or repair it with sqlite3", path.display())]
    Damaged { path: PathBuf, detail: String },
    /// Confirmed orders are not in the file.
    #[error("{} has lost orders: {detail}; restore the file from a backup with `seckill restore`", path.display())]
    OrdersLost { path: PathBuf, detail: String },
    /// Another file lies where the opened one was.
    #[error("{} was opened as {opened}, and now {}; put the opened file back, or restart the service on what is there", path.display(), found_text(*.found))]
    Replaced {
        path: PathBuf,
        opened: Identity,
        found: Option<Identity>,
    },
    #[error("{} was truncated from {from_bytes} to {to_bytes} bytes", path.display())]
    Truncated {
        path: PathBuf,
        from_bytes: u64,
        to_bytes: u64,
    },
    #[error("{}: {error}{}", path.display(), disk_hint(path, error))]
    Sqlite {
        path: PathBuf,
        error: rusqlite::Error,
    },
}

fn found_text(found: Option<Identity>) -> String {
    found.map_or_else(
        || "there is no file at that path".to_owned(),
        |found| format!("the file at that path is {found}"),
    )
}

/// SQLite reports a full disk as an I/O error where it needs room for its own files.
fn disk_hint(path: &Path, error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, SystemIoFailure};
    const LITTLE_BYTES: u64 = 1 << 20;
    let code = error.sqlite_error_code();
    if !matches!(code, Some(CannotOpen | DiskFull | SystemIoFailure)) {
        return String::new();
    }
    let folder = path.parent().unwrap_or(path);
    match rustix::fs::statvfs(folder) {
        Ok(stat) if stat.f_bavail * stat.f_frsize < LITTLE_BYTES => format!(
            "; the disk is full: {} bytes are free in {}",
            stat.f_bavail * stat.f_frsize,
            folder.display()
        ),
        _ => String::new(),
    }
}

impl FileError {
    /// What an error of SQLite means for the file at `path`.
    pub(crate) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(NotADatabase) => Self::NotOurs {
                path,
                found: "its header is not SQLite's".into(),
            },
            Some(DatabaseCorrupt) => Self::Damaged {
                path,
                detail: error.to_string(),
            },
            _ => Self::Sqlite { path, error },
        }
    }
}
