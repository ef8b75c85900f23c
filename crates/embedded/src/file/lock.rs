//! One process at a time: an advisory lock on `seckill.lock`, which also says who holds it.
//! The lock goes with the process, however it ends; the text left in the file then means nothing.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::FileError;

const LOCK_FILE: &str = "seckill.lock";
/// Tries to take the lock, and the pause between two: whoever asks for the owner has it for a moment, too.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// A owner's text is far shorter; more is not ours and is not read.
const HOLDER_MAX_BYTES: u64 = 4_096;

/// Who holds a data folder, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    /// Its process id.
    pub pid: u32,
    /// What it does, such as `serve on 127.0.0.1:3000`.
    pub purpose: String,
    /// The Unix socket on which it takes `seckill sale` commands, where it does.
    pub control_socket: Option<PathBuf>,
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process");
        }
        write!(f, "process {} (seckill {})", self.pid, self.purpose)
    }
}

/// A held data folder; dropping it lets go.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Makes the folder if need be and takes its lock.
    pub(crate) fn take(dir: &Path, owner: &LockOwner) -> Result<Self, FileError> {
        let folder = |error| FileError::Folder {
            path: dir.to_owned(),
            error,
        };
        std::fs::create_dir_all(dir).map_err(folder)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(LOCK_FILE))
            .map_err(folder)?;
        let mut tries = 1;
        while let Err(refused) = file.try_lock() {
            match refused {
                TryLockError::WouldBlock if tries < TRIES => {}
                TryLockError::WouldBlock => {
                    return Err(FileError::Held {
                        path: dir.to_owned(),
                        owner: Box::new(read_holder(&mut file).unwrap_or_default()),
                    });
                }
                TryLockError::Error(error) => return Err(folder(error)),
            }
            tries += 1;
            std::thread::sleep(TRY_AGAIN);
        }
        write_holder(&mut file, owner).map_err(folder)?;
        Ok(Self { _file: file })
    }
}

/// Who holds the folder now; none where nobody does.
pub fn lock_owner(dir: &Path) -> Option<LockOwner> {
    let mut file = File::open(dir.join(LOCK_FILE)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(read_holder(&mut file).unwrap_or_default()),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn read_holder(file: &mut File) -> Option<LockOwner> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(HOLDER_MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_holder(file: &mut File, owner: &LockOwner) -> std::io::Result<()> {
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
            control_socket: None,
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
