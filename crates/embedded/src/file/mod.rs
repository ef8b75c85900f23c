//! The database file: its folder, the process that has it open, its schema and its rows.
//! Nothing here makes decisions; the caller has already made them.

mod checksum;
pub(crate) mod events;
pub(crate) mod feed;
pub(crate) mod folder;
pub(crate) mod identity;
pub(crate) mod insert;
pub(crate) mod lock;
pub(crate) mod meta;
pub(crate) mod rows;
pub(crate) mod sales;
pub(crate) mod schema;
mod version_1;

use std::path::{Path, PathBuf};

pub use lock::LockOwner;

use identity::Identity;

/// The database in a data folder.
pub const DATABASE_FILE: &str = "seckill.db";
/// Everything that the engine and the service keep in a data folder.
pub const DATA_FILES: [&str; 8] = [
    DATABASE_FILE,
    "seckill.db-wal",
    "seckill.db-shm",
    "seckill.db-journal",
    lock::LOCK_FILE,
    folder::ID_FILE,
    "seckill.id-new",
    CONTROL_SOCKET_FILE,
];
/// The socket for operator commands in a data folder.
pub const CONTROL_SOCKET_FILE: &str = "seckill.sock";

/// Why the file cannot be used. The message also states what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("data folder {}: {error}; use --data to choose a folder that this user can write to", path.display())]
    Folder {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("data folder {} is in use by {owner}; stop that process, or use --data to choose another folder", path.display())]
    Locked {
        path: PathBuf,
        owner: Box<LockOwner>,
    },
    #[error("there is no {}; `seckill serve` or `seckill demo` creates it", path.display())]
    Missing { path: PathBuf },
    /// The folder had a database earlier.
    #[error("{} is missing or empty, but this folder had a database; restore it with `seckill restore`, or delete {} to start over", path.display(), id_path.display())]
    Lost { path: PathBuf, id_path: PathBuf },
    #[error("{} is not a seckill database ({found}); move it away, or use --data to choose another folder", path.display())]
    NotOurs { path: PathBuf, found: String },
    #[error("{} was copied from a running service, so orders from its write-ahead log may be missing; copy a running service with `seckill backup`, and install the copy with `seckill restore`", path.display())]
    LiveCopy { path: PathBuf },
    #[error("{} has schema version {found}, but this program supports only up to {known}; use a newer seckill", path.display())]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("{} has schema version {found}, and this program reads version {known}; `seckill serve` migrates the file, and `seckill backup` makes a migrated copy", path.display())]
    Older {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// The content is inconsistent.
    #[error("{} is damaged: {detail}; `seckill audit` lists everything that is wrong; restore the file from a backup, or repair it with sqlite3", path.display())]
    Damaged { path: PathBuf, detail: String },
    /// Confirmed orders are missing from the file.
    #[error("{} has lost orders: {detail}; restore the file from a backup with `seckill restore`", path.display())]
    OrdersLost { path: PathBuf, detail: String },
    /// The path no longer leads to the opened file.
    #[error("{} was opened as {opened}, but now {}; put the opened file back, or restart the service to use what is there", path.display(), found_text(*.found))]
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

/// A file beside another, such as a database's write-ahead log.
pub(crate) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn found_text(found: Option<Identity>) -> String {
    found.map_or_else(
        || "there is no file at that path".to_owned(),
        |found| format!("the file at that path is {found}"),
    )
}

/// SQLite may report a full disk as an I/O error, if it needs space for its own files.
fn disk_hint(path: &Path, error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, SystemIoFailure};
    const FULL_BELOW_BYTES: u64 = 1 << 20;
    let code = error.sqlite_error_code();
    if !matches!(code, Some(CannotOpen | DiskFull | SystemIoFailure)) {
        return String::new();
    }
    let folder = path.parent().unwrap_or(path);
    match rustix::fs::statvfs(folder) {
        Ok(stat) if stat.f_bavail * stat.f_frsize < FULL_BELOW_BYTES => format!(
            "; the disk is full: {} bytes are free in {}",
            stat.f_bavail * stat.f_frsize,
            folder.display()
        ),
        _ => String::new(),
    }
}

impl FileError {
    /// Classifies an error that SQLite returned for the file at `path`.
    pub(crate) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(NotADatabase) => Self::NotOurs {
                path,
                found: "it has no SQLite header".into(),
            },
            Some(DatabaseCorrupt) => Self::Damaged {
                path,
                detail: error.to_string(),
            },
            _ => Self::Sqlite { path, error },
        }
    }
}
