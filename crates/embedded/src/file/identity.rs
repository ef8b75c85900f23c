//! Checks that the opened files are still the ones at their paths. SQLite does not notice when they
//! are replaced, removed or truncated, and would keep writing to files that no restart can find.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{FileError, sibling};

/// Identifies the file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} of device {}", self.inode, self.device)
    }
}

/// A file: its identity when it was opened, and its length at the latest check.
#[derive(Debug, Clone)]
struct OpenedFile {
    path: PathBuf,
    identity: Identity,
    length_bytes: u64,
}

impl OpenedFile {
    fn at(path: &Path) -> Result<Self, FileError> {
        match identity_and_length(path)? {
            Some((identity, length_bytes)) => Ok(Self {
                path: path.to_owned(),
                identity,
                length_bytes,
            }),
            None => Err(FileError::Missing {
                path: path.to_owned(),
            }),
        }
    }

    fn check(&mut self) -> Result<(), FileError> {
        let length_bytes = self.check_identity()?;
        if length_bytes < self.length_bytes {
            return Err(FileError::Truncated {
                path: self.path.clone(),
                from_bytes: self.length_bytes,
                to_bytes: length_bytes,
            });
        }
        self.length_bytes = length_bytes;
        Ok(())
    }

    /// Returns the present length.
    fn check_identity(&self) -> Result<u64, FileError> {
        let found = identity_and_length(&self.path)?;
        match found {
            Some((identity, length_bytes)) if identity == self.identity => Ok(length_bytes),
            _ => Err(FileError::Replaced {
                path: self.path.clone(),
                opened: self.identity,
                found: found.map(|(identity, _)| identity),
            }),
        }
    }
}

fn identity_and_length(path: &Path) -> Result<Option<(Identity, u64)>, FileError> {
    match std::fs::metadata(path) {
        Ok(found) => {
            let identity = Identity {
                device: found.dev(),
                inode: found.ino(),
            };
            Ok(Some((identity, found.len())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::Folder {
            path: path.to_owned(),
            error,
        }),
    }
}

/// The database and its write-ahead log.
#[derive(Debug, Clone)]
pub(crate) struct OpenedFiles {
    database: OpenedFile,
    log: OpenedFile,
    checked_at: Instant,
}

impl OpenedFiles {
    /// Both files must exist, so call it after the first write of a connection.
    pub(crate) fn at(database: &Path) -> Result<Self, FileError> {
        Ok(Self {
            database: OpenedFile::at(database)?,
            log: OpenedFile::at(&sibling(database, "-wal"))?,
            checked_at: Instant::now(),
        })
    }

    /// Costs two system calls. Records the current lengths.
    pub(crate) fn check(&mut self) -> Result<(), FileError> {
        self.database.check()?;
        self.log.check()?;
        self.checked_at = Instant::now();
        Ok(())
    }

    /// Checks the identity of the database unless it was checked just now. A batch that writes is
    /// checked after its commit in any case; this keeps most batches from writing in vain.
    pub(crate) fn check_before_writing(&self) -> Result<(), FileError> {
        const RECENT: Duration = Duration::from_millis(5);
        if self.checked_at.elapsed() < RECENT {
            return Ok(());
        }
        self.check_database()
    }

    /// Checks that the database at the path is the one that was opened, regardless of its length.
    pub(crate) fn check_database(&self) -> Result<(), FileError> {
        self.database.check_identity().map(drop)
    }

    /// The same for its write-ahead log.
    pub(crate) fn check_log(&self) -> Result<(), FileError> {
        self.log.check_identity().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_removed_or_truncated_file_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seckill.db");
        let log = dir.path().join("seckill.db-wal");
        std::fs::write(&path, "12345678").unwrap();
        std::fs::write(&log, "1234").unwrap();
        let mut files = OpenedFiles::at(&path).unwrap();
        files.check().unwrap();
        std::fs::write(&log, "12345678").unwrap();
        files.check().unwrap();
        std::fs::write(&log, "1234").unwrap();
        assert!(matches!(files.check(), Err(FileError::Truncated { .. })));
        std::fs::write(&log, "12345678").unwrap();
        files.check().unwrap();
        let away = dir.path().join("away");
        std::fs::rename(&path, &away).unwrap();
        let gone = files.check().unwrap_err();
        assert!(gone.to_string().contains("there is no file"), "{gone}");
        std::fs::write(&path, "another one").unwrap();
        let replaced = files.check().unwrap_err().to_string();
        assert_eq!(replaced.matches("inode").count(), 2, "{replaced}");
        std::fs::rename(&away, &path).unwrap();
        files.check().unwrap();
    }
}
