//! One process at a time: an advisory lock on `seckill.lock`, which also names its owner.
//! The lock ends with the process, however it ends. The text left in the file then means nothing.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FileError, folder};

pub(crate) const LOCK_FILE: &str = "seckill.lock";
/// Tries to take the lock, and the pause between two. A process that asks for the owner holds it for
/// a moment, too.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// An owner's text is far shorter. A longer one is not ours and is not read.
const OWNER_MAX_BYTES: u64 = 4_096;

/// The process that has a data folder, as it describes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    pub pid: u32,
    /// Such as `serve on 127.0.0.1:3000`.
    pub purpose: String,
    /// Whether it takes commands on the control socket in the folder.
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
    /// Makes the folder if it does not exist, and locks it.
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

/// The process that has the folder now, if any.
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
    fn the_second_is_refused_and_told_who_is_first() {
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
