//! The VFS: forwards SQLite's calls to the machine of the file's folder, or to a temporary file.
//! It must not panic: a panic becomes an I/O error, which hides a bug in the VFS.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};

use rusqlite::ffi as sqlite;

use crate::disk::SECTOR_BYTES;
use crate::ffi;
use crate::interface::{LockLevel, OpenMode, Region, ShmLockMode, Vfs, VfsFile, VfsResult};
use crate::locks::HandleId;
use crate::machine::{SharedState, lock_state, machine_of};
use crate::shm::REGION_BYTES;
use crate::state::{InodeId, State};

/// The name of the VFS that connections to the files of a [`crate::Machine`] must use.
pub const VFS_NAME: &str = "seckill-powercut";

/// Registers the VFS with SQLite, once per process.
pub(crate) fn register() -> anyhow::Result<()> {
    static REGISTERED: OnceLock<VfsResult<()>> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| ffi::register(VFS_NAME, PowercutVfs));
    registered.map_err(|code| anyhow::anyhow!("SQLite refused the VFS with code {code}"))
}

struct PowercutVfs;

/// An open file.
struct Handle {
    file: File,
    is_readonly: bool,
    /// `None` for a temporary file, which does not outlive its handle.
    machine_file: Option<MachineFile>,
}

struct MachineFile {
    state: SharedState,
    inode: InodeId,
    id: HandleId,
}

impl Drop for MachineFile {
    fn drop(&mut self) {
        lock_state(&self.state).close(self.inode, self.id);
    }
}

impl Handle {
    /// Calls `act` with the file's machine. A temporary file has none, and returns `otherwise`.
    fn on_machine<T>(
        &self,
        otherwise: VfsResult<T>,
        act: impl FnOnce(&mut State, &MachineFile) -> VfsResult<T>,
    ) -> VfsResult<T> {
        let Some(machine_file) = &self.machine_file else {
            return otherwise;
        };
        let mut state = lock_state(&machine_file.state);
        act(&mut state, machine_file)
    }

    fn check_up(&self, code: i32) -> VfsResult<()> {
        self.on_machine(Ok(()), |state, _| state.check_up(code))
    }
}

impl Vfs for PowercutVfs {
    type File = Handle;

    fn open(&self, path: &str, mode: OpenMode) -> VfsResult<Handle> {
        let (state, name) = machine_of(path).ok_or(sqlite::SQLITE_CANTOPEN)?;
        let opened = lock_state(&state).open(&name, mode)?;
        Ok(Handle {
            file: opened.file,
            is_readonly: mode == OpenMode::ReadOnly,
            machine_file: Some(MachineFile {
                state,
                inode: opened.inode,
                id: opened.handle,
            }),
        })
    }

    fn open_temporary(&self) -> VfsResult<Handle> {
        let file = tempfile::tempfile().map_err(|_| sqlite::SQLITE_CANTOPEN)?;
        Ok(Handle {
            file,
            is_readonly: false,
            machine_file: None,
        })
    }

    fn delete(&self, path: &str) -> VfsResult<()> {
        let (state, name) = machine_of(path).ok_or(sqlite::SQLITE_IOERR_DELETE)?;
        lock_state(&state).delete(&name)
    }

    fn exists(&self, path: &str) -> VfsResult<bool> {
        let Some((state, name)) = machine_of(path) else {
            return Ok(Path::new(path).exists());
        };
        lock_state(&state).exists(&name)
    }
}

impl VfsFile for Handle {
    fn read(&self, offset: usize, buffer: &mut [u8]) -> VfsResult<usize> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_READ;
        self.check_up(FAILED)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = (offset + done) as u64;
            match self.file.read_at(&mut buffer[done..], at) {
                // The end of the file.
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(FAILED),
            }
        }
        Ok(done)
    }

    fn write(&self, offset: usize, data: &[u8]) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_WRITE;
        if self.is_readonly {
            return Err(FAILED);
        }
        let Some(machine_file) = &self.machine_file else {
            let written = self.file.write_all_at(data, offset as u64);
            return written.map_err(|_| FAILED);
        };
        lock_state(&machine_file.state).write(machine_file.inode, &self.file, offset, data)
    }

    fn truncate(&self, size: usize) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_TRUNCATE;
        if self.is_readonly {
            return Err(FAILED);
        }
        let Some(machine_file) = &self.machine_file else {
            return self.file.set_len(size as u64).map_err(|_| FAILED);
        };
        lock_state(&machine_file.state).truncate(machine_file.inode, &self.file, size)
    }

    fn sync(&self) -> VfsResult<()> {
        self.on_machine(Ok(()), |state, machine_file| state.sync(machine_file.inode))
    }

    fn size(&self) -> VfsResult<usize> {
        self.check_up(sqlite::SQLITE_IOERR_FSTAT)?;
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|_| sqlite::SQLITE_IOERR_FSTAT)?;
        Ok(metadata.len() as usize)
    }

    fn lock(&self, level: LockLevel) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_LOCK;
        // As with fcntl, which refuses a write lock on a file that was opened read-only.
        if self.is_readonly && level > LockLevel::Shared {
            return Err(FAILED);
        }
        self.on_machine(Ok(()), |state, machine_file| {
            state.check_up(FAILED)?;
            state
                .inode(machine_file.inode)?
                .locks
                .lock(machine_file.id, level)
        })
    }

    fn unlock(&self, level: LockLevel) -> VfsResult<()> {
        self.on_machine(Ok(()), |state, machine_file| {
            state
                .inode(machine_file.inode)?
                .locks
                .unlock(machine_file.id, level);
            Ok(())
        })
    }

    fn check_reserved_lock(&self) -> VfsResult<bool> {
        self.on_machine(Ok(false), |state, machine_file| {
            state.check_up(sqlite::SQLITE_IOERR_CHECKRESERVEDLOCK)?;
            Ok(state.inode(machine_file.inode)?.locks.is_reserved())
        })
    }

    fn sector_size(&self) -> i32 {
        SECTOR_BYTES as i32
    }

    /// What SQLite assumes about a disk on Unix, and no more.
    fn device_characteristics(&self) -> i32 {
        sqlite::SQLITE_IOCAP_POWERSAFE_OVERWRITE
    }

    fn shm_map(&self, index: usize, size: usize, extend: bool) -> VfsResult<Option<Region>> {
        if size != REGION_BYTES {
            return Err(sqlite::SQLITE_IOERR);
        }
        self.on_machine(Err(sqlite::SQLITE_IOERR_SHMMAP), |state, machine_file| {
            state.check_up(sqlite::SQLITE_IOERR_SHMMAP)?;
            let shm = &mut state.inode(machine_file.inode)?.shm;
            Ok(shm.map(machine_file.id, index, extend))
        })
    }

    fn shm_lock(&self, offset: usize, count: usize, mode: ShmLockMode) -> VfsResult<()> {
        const FAILED: i32 = sqlite::SQLITE_IOERR_SHMLOCK;
        self.on_machine(Err(FAILED), |state, machine_file| {
            if let ShmLockMode::LockShared | ShmLockMode::LockExclusive = mode {
                state.check_up(FAILED)?;
            }
            let shm = &mut state.inode(machine_file.inode)?.shm;
            shm.lock(machine_file.id, offset, count, mode)
        })
    }

    fn shm_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn shm_unmap(&self) -> VfsResult<()> {
        self.on_machine(Ok(()), |state, machine_file| {
            state.inode(machine_file.inode)?.shm.unmap(machine_file.id);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, ErrorCode, OpenFlags};

    use super::*;
    use crate::machine::Machine;

    fn connect(machine: &Machine) -> Connection {
        let path = machine.folder().join("db");
        Connection::open_with_flags_and_vfs(path, OpenFlags::default(), VFS_NAME).unwrap()
    }

    fn count(conn: &Connection) -> i64 {
        let counted = conn.query_row("SELECT count(*) FROM numbers", (), |row| row.get(0));
        counted.unwrap()
    }

    #[test]
    fn two_connections_share_a_database_and_temporary_files_work() {
        for journal in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            let machine = Machine::new(dir.path(), 1).unwrap();
            let first = connect(&machine);
            let mode = format!("PRAGMA journal_mode = {journal}");
            let mode: String = first.query_row(&mode, (), |row| row.get(0)).unwrap();
            assert_eq!(mode, journal);
            let create = "CREATE TABLE numbers AS WITH RECURSIVE n(i) AS
                (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n";
            first.execute_batch(create).unwrap();
            let second = connect(&machine);
            assert_eq!(count(&second), 20_000);
            first.execute_batch("BEGIN; DELETE FROM numbers").unwrap();
            let busy = second.execute_batch("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE");
            let busy = busy.unwrap_err().sqlite_error_code();
            assert_eq!(busy, Some(ErrorCode::DatabaseBusy));
            first.execute_batch("ROLLBACK").unwrap();
            let spill = "PRAGMA temp_store = FILE; PRAGMA cache_size = 10;
                CREATE TEMP TABLE copied AS SELECT random() AS r, i FROM main.numbers ORDER BY r;
                VACUUM; SELECT datetime('now'), randomblob(8)";
            second.execute_batch(spill).unwrap();
            assert_eq!(count(&first), 20_000);
            let check = first.query_row("PRAGMA integrity_check", (), |row| row.get(0));
            assert_eq!(check, Ok("ok".to_owned()));
        }
    }

    #[test]
    fn a_stopped_machine_returns_io_errors() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(dir.path(), 1).unwrap();
        let conn = connect(&machine);
        conn.execute_batch("CREATE TABLE numbers (i)").unwrap();
        machine.stop();
        let stopped = conn.execute_batch("INSERT INTO numbers VALUES (1)");
        let stopped = stopped.unwrap_err().sqlite_error_code();
        assert_eq!(stopped, Some(ErrorCode::SystemIoFailure));
    }
}
