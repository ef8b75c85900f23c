//! Admits one process at a time: an advisory lock on `seckill.lock`, which also names its owner.
//! The system releases the lock when the process ends. The text that remains then has no meaning.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FileError, folder};

pub(crate) const LOCK_FILE: &str = "seckill.lock";
/// Attempts to take the lock, and the pause between them. A process that only looks for the owner
/// holds the lock briefly, too.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// A valid owner is far shorter. The rest of a longer text is not read.
const OWNER_MAX_BYTES: u64 = 4_096;

/// The process that has a data folder open, as it describes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    pub pid: u32,
    /// For example, `serve on 127.0.0.1:3000`.
    pub purpose: String,
    /// Whether it accepts commands on the control socket in the folder.
    pub takes_commands: bool,
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process");
        }
        write!(f, "process {} (seckill {})", self.pid, self.purpose)
    }
}

/// A locked data folder. Dropping this unlocks it.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Creates the folder if it does not exist, and locks it.
    pub(crate) fn take(dir: &Path, owner: &LockOwner) -> Result<Self, FileError> {
        let failed = |error| FileError::Folder {
            path: dir.to_owned(),
            error,
        };
        folder::make(dir).map_err(failed)?;
        let mut file = folder::open_private(&dir.join(LOCK_FILE)).map_err(failed)?;
        let mut tries = 1;
        while let Err(refused) = file.try_lock() {
            match refused {
                TryLockError::WouldBlock if tries < TRIES => {}
                TryLockError::WouldBlock => {
                    return Err(FileError::Locked {
                        path: dir.to_owned(),
                        owner: Box::new(read_owner(&mut file).unwrap_or_default()),
                    });
                }
                TryLockError::Error(error) => return Err(failed(error)),
            }
            tries += 1;
            std::thread::sleep(TRY_AGAIN);
        }
        write_owner(&mut file, owner).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The process that has the folder open now, if any.
pub fn lock_owner(dir: &Path) -> Option<LockOwner> {
    let mut file = File::open(dir.join(LOCK_FILE)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(read_owner(&mut file).unwrap_or_default()),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn read_owner(file: &mut File) -> Option<LockOwner> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(OWNER_MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_owner(file: &mut File, owner: &LockOwner) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(serde_json::to_string(owner)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_and_told_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let owner = LockOwner {
            pid: 42,
            purpose: "serve on 127.0.0.1:3000".into(),
            takes_commands: false,
        };
        assert_eq!(lock_owner(dir.path()), None);
        let first = FolderLock::take(dir.path(), &owner).unwrap();
        let refused = FolderLock::take(dir.path(), &LockOwner::default()).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("process 42 (seckill serve on 127.0.0.1:3000)"),
            "{text}"
        );
        assert_eq!(lock_owner(dir.path()), Some(owner));
        drop(first);
        assert_eq!(lock_owner(dir.path()), None);
        assert!(FolderLock::take(dir.path(), &LockOwner::default()).is_ok());
    }
}
