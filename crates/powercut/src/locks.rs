//! SQLite's five lock levels on one file, between the handles of this process.
//! Nothing here blocks: a conflict returns SQLITE_BUSY, and SQLite's busy handler retries.

use rusqlite::ffi as sqlite;

use crate::interface::{LockLevel, VfsResult};

/// Identifies an open file within its machine.
pub(crate) type HandleId = u64;

/// The handles that hold a lock, and its level.
#[derive(Debug, Default)]
pub(crate) struct FileLocks {
    held: Vec<(HandleId, LockLevel)>,
}

impl FileLocks {
    fn level(&self, handle: HandleId) -> LockLevel {
        let held = self.held.iter().find(|(holder, _)| *holder == handle);
        held.map_or(LockLevel::Unlocked, |(_, level)| *level)
    }

    fn highest_of_others(&self, handle: HandleId) -> LockLevel {
        let others = self.held.iter().filter(|(holder, _)| *holder != handle);
        let levels = others.map(|(_, level)| *level);
        levels.max().unwrap_or(LockLevel::Unlocked)
    }

    fn set(&mut self, handle: HandleId, level: LockLevel) {
        self.held.retain(|(holder, _)| *holder != handle);
        if level > LockLevel::Unlocked {
            self.held.push((handle, level));
        }
    }

    pub(crate) fn lock(&mut self, handle: HandleId, level: LockLevel) -> VfsResult<()> {
        if level <= self.level(handle) {
            return Ok(());
        }
        let others = self.highest_of_others(handle);
        let allowed = match level {
            LockLevel::Unlocked => true,
            LockLevel::Shared => others < LockLevel::Pending,
            LockLevel::Reserved | LockLevel::Pending | LockLevel::Exclusive => {
                others < LockLevel::Reserved
            }
        };
        if !allowed {
            return Err(sqlite::SQLITE_BUSY);
        }
        if level == LockLevel::Exclusive && others >= LockLevel::Shared {
            // Keeps new readers out, so that a retry succeeds once the current ones have finished.
            self.set(handle, LockLevel::Pending);
            return Err(sqlite::SQLITE_BUSY);
        }
        self.set(handle, level);
        Ok(())
    }

    pub(crate) fn unlock(&mut self, handle: HandleId, level: LockLevel) {
        if level < self.level(handle) {
            self.set(handle, level);
        }
    }

    pub(crate) fn is_reserved(&self) -> bool {
        let mut levels = self.held.iter().map(|(_, level)| *level);
        levels.any(|level| level >= LockLevel::Reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: VfsResult<()> = Err(sqlite::SQLITE_BUSY);

    #[test]
    fn a_reserved_lock_allows_readers_and_an_exclusive_one_does_not() {
        let mut locks = FileLocks::default();
        assert_eq!(locks.lock(1, LockLevel::Shared), Ok(()));
        assert_eq!(locks.lock(2, LockLevel::Shared), Ok(()));
        assert!(!locks.is_reserved());
        assert_eq!(locks.lock(1, LockLevel::Reserved), Ok(()));
        assert!(locks.is_reserved());
        assert_eq!(locks.lock(2, LockLevel::Reserved), BUSY);
        assert_eq!(locks.lock(3, LockLevel::Shared), Ok(()));
        // The writer is now waiting for the readers, and keeps new ones out.
        assert_eq!(locks.lock(1, LockLevel::Exclusive), BUSY);
        assert_eq!(locks.lock(4, LockLevel::Shared), BUSY);
        locks.unlock(2, LockLevel::Unlocked);
        assert_eq!(locks.lock(1, LockLevel::Exclusive), BUSY);
        locks.unlock(3, LockLevel::Unlocked);
        assert_eq!(locks.lock(1, LockLevel::Exclusive), Ok(()));
        assert_eq!(locks.lock(2, LockLevel::Shared), BUSY);
        locks.unlock(1, LockLevel::Shared);
        assert!(!locks.is_reserved());
        assert_eq!(locks.lock(2, LockLevel::Shared), Ok(()));
    }
}
