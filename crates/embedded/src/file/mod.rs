//! The file that remembers: where it lies, who holds it, its schema and its rows.
//! Nothing here decides; whoever writes has decided already.

pub(crate) mod clock;
pub(crate) mod lock;
pub(crate) mod rows;
pub(crate) mod schema;

use std::path::{Path, PathBuf};

pub use lock::LockOwner;

/// The database inside a data folder.
pub const DATABASE_FILE: &str = "seckill.db";

/// Why the file cannot be used; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The folder cannot be made or written.
    #[error("data folder {}: {error}; give a folder that this user can write with --data", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another process has it.
    #[error("data folder {} is in use by {owner}; stop that process, or give another folder with --data", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Who has it, as it wrote down itself.
        owner: Box<LockOwner>,
    },
    /// There is nothing to read.
    #[error("there is no {}; `seckill serve` or `seckill demo` makes one", path.display())]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// Not a database of this program.
    #[error("{} is not a seckill database ({found}); move it away, or give another folder with --data", path.display())]
    NotOurs {
        /// The database.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// Written by a later version.
    #[error("{} has schema version {found}, this program knows up to {known}; run a newer seckill", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The latest version known here.
        known: i64,
    },
    /// The content contradicts itself.
    #[error("{} is damaged: {detail}; `seckill audit` names all that is wrong; restore the file from a backup, or mend it with sqlite3", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// SQLite failed for another reason.
    #[error("{}: {error}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        error: rusqlite::Error,
    },
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
