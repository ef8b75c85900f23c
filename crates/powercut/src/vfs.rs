//! The VFS: passes SQLite's calls to the machine of the file's folder, or to a temporary file.
//! It must never panic, since its caller is SQLite's C code.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};

use sqlite_plugin::flags::{AccessFlags, LockLevel, OpenKind, OpenOpts, ShmLockMode};
use sqlite_plugin::vars;
use sqlite_plugin::vfs::{RegisterOpts, Vfs, VfsHandle, VfsResult, register_static};

use crate::locks::HandleId;
use crate::machine::{SharedState, lock_state, machine_of};
use crate::shm::REGION_BYTES;
use crate::state::{InodeId, State};

/// The VFS that a connection to a file of a [`crate::Machine`] must name.
pub const VFS_NAME: &str = "seckill-powercut";

/// Registers the VFS with SQLite, once in a process.
pub(crate) fn register() -> anyhow::Result<()> {
    static REGISTERED: OnceLock<Result<(), i32>> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        let name = CString::new(VFS_NAME).map_err(|_| vars::SQLITE_INTERNAL)?;
        let options = RegisterOpts {
            make_default: false,
        };
        register_static(name, PowercutVfs, options).map(|_logger| ())
    });
    registered.map_err(|code| anyhow::anyhow!("SQLite refused the VFS with code {code}"))
}

struct PowercutVfs;

/// An open file.
struct Handle {
    file: File,
    is_readonly: bool,
    /// `None` for a temporary file, which does not outlive its handle.
    place: Option<Place>,
}

struct Place {
    state: SharedState,
    inode: InodeId,
    id: HandleId,
}

impl Handle {
    fn temporary() -> VfsResult<Self> {
        let file = tempfile::tempfile().map_err(|_| vars::SQLITE_CANTOPEN)?;
        Ok(Self {
            file,
            is_readonly: false,
            place: None,
        })
    }

    /// Acts on the file's machine; a temporary file has none, and gets `otherwise`.
    fn on_machine<T>(
        &self,
        otherwise: VfsResult<T>,
        act: impl FnOnce(&mut State, &Place) -> VfsResult<T>,
    ) -> VfsResult<T> {
        let Some(place) = &self.place else {
            return otherwise;
        };
        let mut state = lock_state(&place.state);
        act(&mut state, place)
    }

    fn check_up(&self, code: i32) -> VfsResult<()> {
        self.on_machine(Ok(()), |state, _| state.check_up(code))
    }
}

impl VfsHandle for Handle {
    fn readonly(&self) -> bool {
        self.is_readonly
    }

    fn in_memory(&self) -> bool {
        false
    }
}

impl Vfs for PowercutVfs {
    type Handle = Handle;

    fn open(&self, path: Option<&str>, opts: OpenOpts) -> VfsResult<Handle> {
        let kind = opts.kind();
        let is_temporary = kind.is_temp() || kind == OpenKind::SubJournal || opts.delete_on_close();
        let Some(path) = path.filter(|_| !is_temporary) else {
            return Handle::temporary();
        };
        let (state, name) = machine_of(path).ok_or(vars::SQLITE_CANTOPEN)?;
        let mode = opts.mode();
        let opened = lock_state(&state).open(&name, &mode)?;
        Ok(Handle {
            file: opened.file,
            is_readonly: mode.is_readonly(),
            place: Some(Place {
                state,
                inode: opened.inode,
                id: opened.handle,
            }),
        })
    }

    fn delete(&self, path: &str) -> VfsResult<()> {
        let (state, name) = machine_of(path).ok_or(vars::SQLITE_IOERR_DELETE)?;
        lock_state(&state).delete(&name)
    }

    fn access(&self, path: &str, _flags: AccessFlags) -> VfsResult<bool> {
        let Some((state, name)) = machine_of(path) else {
            return Ok(std::path::Path::new(path).exists());
        };
        lock_state(&state).exists(&name)
    }

    fn file_size(&self, handle: &mut Handle) -> VfsResult<usize> {
        handle.check_up(vars::SQLITE_IOERR_FSTAT)?;
        let metadata = handle.file.metadata();
        let metadata = metadata.map_err(|_| vars::SQLITE_IOERR_FSTAT)?;
        Ok(metadata.len() as usize)
    }

    fn truncate(&self, handle: &mut Handle, size: usize) -> VfsResult<()> {
        const FAILED: i32 = vars::SQLITE_IOERR_TRUNCATE;
        if handle.is_readonly {
            return Err(FAILED);
        }
        let Some(place) = &handle.place else {
            return handle.file.set_len(size as u64).map_err(|_| FAILED);
        };
        lock_state(&place.state).truncate(place.inode, &handle.file, size)
    }

    fn write(&self, handle: &mut Handle, offset: usize, data: &[u8]) -> VfsResult<usize> {
        const FAILED: i32 = vars::SQLITE_IOERR_WRITE;
        if handle.is_readonly {
            return Err(FAILED);
        }
        let file = &handle.file;
        match &handle.place {
            Some(place) => lock_state(&place.state).write(place.inode, file, offset, data)?,
            None => {
                let written = file.write_all_at(data, offset as u64);
                written.map_err(|_| FAILED)?;
            }
        }
        Ok(data.len())
    }

    fn read(&self, handle: &mut Handle, offset: usize, data: &mut [u8]) -> VfsResult<usize> {
        const FAILED: i32 = vars::SQLITE_IOERR_READ;
        handle.check_up(FAILED)?;
        let mut done = 0;
        while done < data.len() {
            let at = (offset + done) as u64;
            match handle.file.read_at(&mut data[done..], at) {
                // The end of the file. The caller fills the rest with zeros and reports it.
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(FAILED),
            }
        }
        Ok(done)
    }

    fn lock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        const FAILED: i32 = vars::SQLITE_IOERR_LOCK;
        // As with fcntl, which gives no write lock on a file that was opened for reading.
        if handle.is_readonly && level > LockLevel::Shared {
            return Err(FAILED);
        }
        handle.on_machine(Ok(()), |state, place| {
            state.check_up(FAILED)?;
            state.inode(place.inode)?.locks.lock(place.id, level)
        })
    }

    fn unlock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        handle.on_machine(Ok(()), |state, place| {
            state.inode(place.inode)?.locks.unlock(place.id, level);
            Ok(())
        })
    }

    fn check_reserved_lock(&self, handle: &mut Handle) -> VfsResult<bool> {
        handle.on_machine(Ok(false), |state, place| {
            state.check_up(vars::SQLITE_IOERR_CHECKRESERVEDLOCK)?;
            Ok(state.inode(place.inode)?.locks.is_reserved())
        })
    }

    fn sync(&self, handle: &mut Handle) -> VfsResult<()> {
        handle.on_machine(Ok(()), |state, place| state.sync(place.inode))
    }

    fn close(&self, handle: Handle) -> VfsResult<()> {
        handle.on_machine(Ok(()), |state, place| {
            state.close(place.inode, place.id);
            Ok(())
        })
    }

    /// What SQLite assumes of a disk on Unix, and no more.
    fn device_characteristics(&self, _handle: &mut Handle) -> VfsResult<i32> {
        Ok(vars::SQLITE_IOCAP_POWERSAFE_OVERWRITE)
    }

    fn shm_map(
        &self,
        handle: &mut Handle,
        region_idx: usize,
        region_size: usize,
        extend: bool,
    ) -> VfsResult<Option<NonNull<u8>>> {
        if region_size != REGION_BYTES {
            return Err(vars::SQLITE_IOERR);
        }
        handle.on_machine(Err(vars::SQLITE_IOERR_SHMMAP), |state, place| {
            state.check_up(vars::SQLITE_IOERR_SHMMAP)?;
            let shm = &mut state.inode(place.inode)?.shm;
            Ok(shm.map(place.id, region_idx, extend))
        })
    }

    fn shm_lock(
        &self,
        handle: &mut Handle,
        offset: u32,
        count: u32,
        mode: ShmLockMode,
    ) -> VfsResult<()> {
        const FAILED: i32 = vars::SQLITE_IOERR_SHMLOCK;
        handle.on_machine(Err(FAILED), |state, place| {
            if let ShmLockMode::LockShared | ShmLockMode::LockExclusive = mode {
                state.check_up(FAILED)?;
            }
            let shm = &mut state.inode(place.inode)?.shm;
            shm.lock(place.id, offset, count, mode)
        })
    }

    fn shm_barrier(&self, _handle: &mut Handle) {
        fence(Ordering::SeqCst);
    }

    fn shm_unmap(&self, handle: &mut Handle, _delete: bool) -> VfsResult<()> {
        handle.on_machine(Ok(()), |state, place| {
            state.inode(place.inode)?.shm.unmap(place.id);
            Ok(())
        })
    }
}
