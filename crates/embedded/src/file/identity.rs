//! Whether the files at the paths are still the ones that were opened. SQLite does not notice when
//! they are replaced, removed or truncated, and would go on writing to what no restart can find.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::FileError;

/// Which file a path leads to.
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

/// One file, as it was when it was opened and as long as it was at most.
#[derive(Debug, Clone)]
struct OpenedFile {
    path: PathBuf,
    identity: Identity,
    length_bytes: u64,
}

impl OpenedFile {
    fn at(path: &Path) -> Result<Self, FileError> {
        match look(path)? {
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
        let found = look(&self.path)?;
        match found {
            Some((identity, length_bytes)) if identity == self.identity => {
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
            _ => Err(FileError::Replaced {
                path: self.path.clone(),
                opened: self.identity,
                found: found.map(|(identity, _)| identity),
            }),
        }
    }
}

fn look(path: &Path) -> Result<Option<(Identity, u64)>, FileError> {
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
}

impl OpenedFiles {
    /// Both must exist: call it after the first write of a connection.
    pub(crate) fn at(database: &Path) -> Result<Self, FileError> {
        let mut log = database.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self {
            database: OpenedFile::at(database)?,
            log: OpenedFile::at(Path::new(&log))?,
        })
    }

    /// Two system calls. Remembers how long the files have grown.
    pub(crate) fn check(&mut self) -> Result<(), FileError> {
        self.database.check()?;
        self.log.check()
    }

    /// Whether the database at the path is the one that was opened, whatever its length.
    pub(crate) fn check_database(&self) -> Result<(), FileError> {
        whatever_its_length(&self.database)
    }

    /// The same for its write-ahead log.
    pub(crate) fn check_log(&self) -> Result<(), FileError> {
        whatever_its_length(&self.log)
    }
}

fn whatever_its_length(file: &OpenedFile) -> Result<(), FileError> {
    match file.clone().check() {
        Err(FileError::Truncated { .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_removed_or_truncated_file_is_noticed() {
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
