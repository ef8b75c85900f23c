//! SQLite's interface of a VFS as safe traits, which `ffi` calls. Errors are SQLite's result codes.
//! There must be no C types and no raw pointers here.

use std::sync::atomic::AtomicU64;

use rusqlite::ffi as sqlite;

pub(crate) type VfsResult<T> = Result<T, i32>;

/// Shared memory. It is never freed, because SQLite keeps pointers into it. It consists of atomics,
/// because SQLite writes to it while references to it exist. Only SQLite may use it while it is
/// mapped.
pub(crate) type Region = &'static [AtomicU64];

/// Only SQLite's own code calls these methods, so they should not panic; see [`crate::ffi`].
pub(crate) trait Vfs: Send + Sync + 'static {
    type File: VfsFile;

    fn open(&self, path: &str, mode: OpenMode) -> VfsResult<Self::File>;

    /// A new file without a name, which is deleted when it is closed.
    fn open_temporary(&self) -> VfsResult<Self::File>;

    fn delete(&self, path: &str) -> VfsResult<()>;

    fn exists(&self, path: &str) -> VfsResult<bool>;
}

/// An open file. Dropping it closes it.
pub(crate) trait VfsFile: Send + Sync + 'static {
    /// Returns the number of bytes read, which is smaller than the buffer only at the file's end.
    fn read(&self, offset: usize, buffer: &mut [u8]) -> VfsResult<usize>;

    fn write(&self, offset: usize, data: &[u8]) -> VfsResult<()>;

    fn truncate(&self, size: usize) -> VfsResult<()>;

    fn sync(&self) -> VfsResult<()>;

    fn size(&self) -> VfsResult<usize>;

    fn lock(&self, level: LockLevel) -> VfsResult<()>;

    fn unlock(&self, level: LockLevel) -> VfsResult<()>;

    /// Whether any handle of the file holds a reserved lock or a higher one.
    fn check_reserved_lock(&self) -> VfsResult<bool>;

    fn sector_size(&self) -> i32;

    /// The `SQLITE_IOCAP_` flags of the disk.
    fn device_characteristics(&self) -> i32;

    /// Maps a region of at least `size` bytes; `None` if it does not exist and `extend` is false.
    fn shm_map(&self, index: usize, size: usize, extend: bool) -> VfsResult<Option<Region>>;

    fn shm_lock(&self, offset: usize, count: usize, mode: ShmLockMode) -> VfsResult<()>;

    fn shm_barrier(&self);

    fn shm_unmap(&self) -> VfsResult<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    ReadOnly,
    /// The file must exist.
    ReadWrite,
    /// The file may exist.
    Create,
    /// The file must not exist.
    CreateNew,
}

impl OpenMode {
    pub(crate) fn from_flags(flags: i32) -> Self {
        let has = |flag| flags & flag != 0;
        if !has(sqlite::SQLITE_OPEN_READWRITE) {
            Self::ReadOnly
        } else if !has(sqlite::SQLITE_OPEN_CREATE) {
            Self::ReadWrite
        } else if !has(sqlite::SQLITE_OPEN_EXCLUSIVE) {
            Self::Create
        } else {
            Self::CreateNew
        }
    }
}

/// Whether a file that is opened with these flags does not outlive its handle.
pub(crate) fn is_temporary(flags: i32) -> bool {
    const TEMPORARY: i32 = sqlite::SQLITE_OPEN_DELETEONCLOSE
        | sqlite::SQLITE_OPEN_TEMP_DB
        | sqlite::SQLITE_OPEN_TEMP_JOURNAL
        | sqlite::SQLITE_OPEN_TRANSIENT_DB
        | sqlite::SQLITE_OPEN_SUBJOURNAL;
    flags & TEMPORARY != 0
}

/// The levels of a lock on a whole file, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LockLevel {
    Unlocked,
    Shared,
    Reserved,
    Pending,
    Exclusive,
}

impl LockLevel {
    pub(crate) fn from_code(code: i32) -> Option<Self> {
        match code {
            sqlite::SQLITE_LOCK_NONE => Some(Self::Unlocked),
            sqlite::SQLITE_LOCK_SHARED => Some(Self::Shared),
            sqlite::SQLITE_LOCK_RESERVED => Some(Self::Reserved),
            sqlite::SQLITE_LOCK_PENDING => Some(Self::Pending),
            sqlite::SQLITE_LOCK_EXCLUSIVE => Some(Self::Exclusive),
            _ => None,
        }
    }
}

/// An operation on some of the locks of the WAL index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShmLockMode {
    LockShared,
    LockExclusive,
    UnlockShared,
    UnlockExclusive,
}

impl ShmLockMode {
    pub(crate) fn from_flags(flags: i32) -> Option<Self> {
        const LOCK_SHARED: i32 = sqlite::SQLITE_SHM_LOCK | sqlite::SQLITE_SHM_SHARED;
        const LOCK_EXCLUSIVE: i32 = sqlite::SQLITE_SHM_LOCK | sqlite::SQLITE_SHM_EXCLUSIVE;
        const UNLOCK_SHARED: i32 = sqlite::SQLITE_SHM_UNLOCK | sqlite::SQLITE_SHM_SHARED;
        const UNLOCK_EXCLUSIVE: i32 = sqlite::SQLITE_SHM_UNLOCK | sqlite::SQLITE_SHM_EXCLUSIVE;
        match flags {
            LOCK_SHARED => Some(Self::LockShared),
            LOCK_EXCLUSIVE => Some(Self::LockExclusive),
            UNLOCK_SHARED => Some(Self::UnlockShared),
            UNLOCK_EXCLUSIVE => Some(Self::UnlockExclusive),
            _ => None,
        }
    }
}
