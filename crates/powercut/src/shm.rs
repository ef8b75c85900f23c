//! The shared memory and the eight locks of one file's WAL index, within this process.
//! Regions are never freed, only reused, because SQLite keeps raw pointers into them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::ffi as sqlite;

use crate::interface::{Region, ShmLockMode, VfsResult};
use crate::locks::HandleId;

/// The size of every region that SQLite asks for.
pub(crate) const REGION_BYTES: usize = 32_768;
const SLOTS: usize = 8;

/// Regions that no file uses.
static POOL: Mutex<Vec<Region>> = Mutex::new(Vec::new());

fn take_region() -> Region {
    let unused = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(region) = unused {
        for word in region {
            word.store(0, Ordering::Relaxed);
        }
        return region;
    }
    let words = (0..REGION_BYTES / size_of::<u64>()).map(|_| AtomicU64::new(0));
    Box::leak(words.collect::<Box<[AtomicU64]>>())
}

#[derive(Debug, Default)]
struct Slot {
    holders: Vec<HandleId>,
    is_exclusive: bool,
}

impl Slot {
    fn release(&mut self, handle: HandleId) {
        self.holders.retain(|holder| *holder != handle);
        self.is_exclusive &= !self.holders.is_empty();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shm {
    regions: Vec<Region>,
    users: Vec<HandleId>,
    slots: [Slot; SLOTS],
}

impl Shm {
    /// `None` if the region does not exist and must not be created.
    pub(crate) fn map(&mut self, handle: HandleId, index: usize, extend: bool) -> Option<Region> {
        if !self.users.contains(&handle) {
            self.users.push(handle);
        }
        while extend && self.regions.len() <= index {
            self.regions.push(take_region());
        }
        self.regions.get(index).copied()
    }

    pub(crate) fn lock(
        &mut self,
        handle: HandleId,
        first: usize,
        count: usize,
        mode: ShmLockMode,
    ) -> VfsResult<()> {
        let slots = self.slots.get_mut(first..first.saturating_add(count));
        let slots = slots.ok_or(sqlite::SQLITE_IOERR_SHMLOCK)?;
        let is_others = |slot: &Slot| slot.holders.iter().any(|holder| *holder != handle);
        match mode {
            ShmLockMode::LockShared => {
                if slots
                    .iter()
                    .any(|slot| slot.is_exclusive && is_others(slot))
                {
                    return Err(sqlite::SQLITE_BUSY);
                }
                for slot in slots {
                    if !slot.holders.contains(&handle) {
                        slot.holders.push(handle);
                    }
                }
            }
            ShmLockMode::LockExclusive => {
                if slots.iter().any(is_others) {
                    return Err(sqlite::SQLITE_BUSY);
                }
                for slot in slots {
                    slot.holders = vec![handle];
                    slot.is_exclusive = true;
                }
            }
            ShmLockMode::UnlockShared | ShmLockMode::UnlockExclusive => {
                slots.iter_mut().for_each(|slot| slot.release(handle));
            }
        }
        Ok(())
    }

    /// Releases what a handle uses. After the last handle, the content is discarded, as after the
    /// last process.
    pub(crate) fn unmap(&mut self, handle: HandleId) {
        self.slots.iter_mut().for_each(|slot| slot.release(handle));
        self.users.retain(|user| *user != handle);
        if self.users.is_empty() {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            pool.append(&mut self.regions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: VfsResult<()> = Err(sqlite::SQLITE_BUSY);

    #[test]
    fn a_slot_is_shared_by_readers_or_exclusive_to_a_writer() {
        let mut shm = Shm::default();
        assert_eq!(shm.lock(1, 3, 1, ShmLockMode::LockShared), Ok(()));
        assert_eq!(shm.lock(2, 3, 1, ShmLockMode::LockShared), Ok(()));
        assert_eq!(shm.lock(1, 2, 3, ShmLockMode::LockExclusive), BUSY);
        assert_eq!(shm.lock(1, 4, 2, ShmLockMode::LockExclusive), Ok(()));
        assert_eq!(shm.lock(2, 5, 1, ShmLockMode::LockShared), BUSY);
        assert_eq!(shm.lock(1, 4, 2, ShmLockMode::UnlockExclusive), Ok(()));
        assert_eq!(shm.lock(2, 5, 1, ShmLockMode::LockShared), Ok(()));
        shm.unmap(2);
        assert_eq!(shm.lock(1, 5, 1, ShmLockMode::LockExclusive), Ok(()));
        let outside = shm.lock(1, 7, 2, ShmLockMode::LockShared);
        assert_eq!(outside, Err(sqlite::SQLITE_IOERR_SHMLOCK));
    }

    #[test]
    fn a_region_is_shared_while_it_is_used_and_zero_when_it_is_new() {
        let mut shm = Shm::default();
        assert!(shm.map(1, 0, false).is_none());
        let first = shm.map(1, 1, true).unwrap();
        assert_eq!(size_of_val(first), REGION_BYTES);
        assert!(std::ptr::eq(first, shm.map(2, 1, false).unwrap()));
        first[0].store(7, Ordering::Relaxed);
        shm.unmap(1);
        assert_eq!(shm.regions.len(), 2);
        shm.unmap(2);
        assert!(shm.regions.is_empty());
        shm.map(3, 7, true).unwrap();
        let mut words = shm.regions.iter().flat_map(|region| region.iter());
        assert!(words.all(|word| word.load(Ordering::Relaxed) == 0));
    }
}
